"""The page as a whole: language, width, toasts, storage, HTML in texts and other visitors."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import Locator, expect
from support.app_process import wait_until
from support.browser import CORE_IN_JAPANESE, ECHO, TABS, BrowserUser, PageOpener

from persona_lab.server import COOKIE


def test_unlisted_model_stays_chosen_after_a_reload(user: BrowserUser) -> None:
    user.use_model("mock:echo?rate=70")
    user.reload()
    expect(user.locator("#model input").first).to_have_value("mock:echo?rate=70")


@pytest.mark.parametrize("language", CORE_IN_JAPANESE)
def test_invalid_message_is_refused_and_stays_in_its_box(
    open_page: PageOpener, language: str
) -> None:
    user = open_page(language)
    too_long = user.error_text("message_too_long", length=100_000, limit=2000)
    for tab, box in (("persona", "try"), ("compare", "compare"), ("chat", "chat")):
        user.open_tab(tab)
        for text, words in (("  ", user.error_text("empty_message")), ("長" * 100_000, too_long)):
            user.text_box(f"{box}-message").fill(text)
            user.text_box(f"{box}-message").press("Enter")
            if box == "try":  # it has a place for it
                expect(user.locator("#tried .warning")).to_have_text(words)
            else:
                expect(user.toast).to_have_text(words)
                user.locator("[data-testid=toast-close]").first.click()
                expect(user.locator("[data-testid=toast-text]")).to_have_count(0)
            assert user.text_box(f"{box}-message").input_value() == text
    assert user.messages() == []
    assert user.store.records(user_id=user.user_id) == []


@pytest.mark.core
def test_persona_and_answer_text_never_runs_as_html(user: BrowserUser) -> None:
    trick = "<img src=x onerror=\"document.title='got'\"><script>document.title='got'</script>"
    user.text_box("field-name").fill(trick[:90])
    user.text_box("field-background").fill(trick)
    expect(user.preview).to_contain_text("<script>")
    user.text_box("try-message").fill(trick)
    user.locator("#try-run").click()
    expect(user.locator("#tried .figures")).to_be_visible()
    user.open_tab("compare")
    user.enter("#column-0", ECHO)
    user.text_box("compare-message").fill(trick)
    user.locator("#compare-run").click()
    expect(user.locator("#column-0 .figures span").first).to_be_visible()
    user.open_tab("chat")
    user.send(trick)
    user.wait_for_answers(1)
    user.locator("#thread summary").click()
    for place in ("#persona-head", "#prompt-preview", "#tried", "#column-0", "#thread", "#who"):
        assert user.locator(f"{place} img[src=x], {place} script").count() == 0, place
    assert user.page.title() == "Persona Lab"


def test_answer_cannot_make_the_browser_fetch_anything(user: BrowserUser) -> None:
    traps = (
        "![x](http://203.0.113.1/x.png)",
        "`x\n` <img src=http://203.0.113.1/x.png> `y`",
        "<img src=http://203.0.113.1/x.png>",
        "[x]: http://203.0.113.1/x.png\n\n![x]",
    )
    user.open_tab("compare")
    user.enter("#column-0", ECHO)
    for number, trap in enumerate(traps, 1):
        user.open_tab("compare")
        user.text_box("compare-message").fill(trap)
        user.locator("#compare-run").click()
        expect(user.column_answer(0)).to_contain_text("practice")
        user.open_tab("chat")
        user.send(trap)
        user.wait_for_answers(number)
        assert user.locator("#thread img, #column-0 img").count() == 0, trap


@pytest.mark.core
def test_language_follows_the_browser_and_can_be_switched(open_page: PageOpener) -> None:
    for language, other in (("ja", "en"), ("en", "ja")):
        user = open_page(language)
        for spoken in (language, other, language):
            user.language = spoken
            if user.locator("html").get_attribute("lang") != spoken:
                user.locator(f"#switches [data-language={spoken}]").click()
                user.page.wait_for_function(f"document.documentElement.lang === '{spoken}'")
            user.wait_until_ready()
            expect(user.page.get_by_role("tab")).to_have_text(
                [user.text(f"tab.{name}") for name in TABS]
            )
            expect(user.locator("#persona-head .demo")).to_have_text(user.text("editor.state.demo"))
            expect(user.locator("#field-background label")).to_contain_text(
                user.text("field.background")
            )


def test_language_switch_asks_first_when_a_key_or_answer_is_lost(user: BrowserUser) -> None:
    def switch(to: str) -> Locator:
        user.locator(f"#switches [data-language={to}]").click()
        return user.locator("#switches dialog")

    def switched(to: str) -> None:
        user.page.wait_for_function(f"document.documentElement.lang === '{to}'")
        user.wait_until_ready()
        user.language = to

    assert not switch("ja").is_visible()  # it is Japanese already
    user.open_tab("connect")
    user.text_box("key-openai").fill("sk-visitors-own-0123456789")
    user.text_box("key-openai").press("Enter")
    expect(user.locator("#key-openai-state")).to_contain_text(
        user.text("connect.key_state.own", end="6789")
    )
    asked = switch("en")
    expect(asked).to_contain_text(user.text("bar.sure"))
    user.page.keyboard.press("Escape")
    expect(asked).to_be_hidden()
    switch("en").get_by_role("button", name=user.text("bar.stay")).click()
    expect(asked).to_be_hidden()
    user.wait_until_idle()
    expect(user.locator("#key-openai-state")).to_contain_text(
        user.text("connect.key_state.own", end="6789")
    )
    switch("en").get_by_role("button", name=user.text("bar.go")).click()
    switched("en")
    user.open_tab("compare")
    switch("ja")
    switched("ja")
    user.open_tab("compare")
    user.enter("#column-0", ECHO)
    user.text_box("compare-message").fill("やあ")
    user.locator("#compare-run").click()
    expect(user.column_answer(0)).to_contain_text("「やあ」")
    expect(switch("en")).to_be_visible()


@pytest.mark.parametrize("language", CORE_IN_JAPANESE)
def test_page_does_not_scroll_sideways_on_a_phone(open_page: PageOpener, language: str) -> None:
    user = open_page(language, width=390)
    for name in TABS:
        user.open_tab(name)
        if name == "compare":
            user.text_box("compare-message").fill("ひとこと" * 20)
            user.locator("#compare-run").click()
            expect(user.locator("#column-1 .figures span").first).to_be_visible(timeout=60_000)
        if name == "chat":
            user.send("長い言葉" * 20 + "x" * 80)
            user.wait_for_answers(1)
        if name == "insights":
            user.add_generations(40, name="長い名前の人" * 6)
            user.locator("#insights-again").click()
            expect(user.locator("#insights-board svg.chart")).to_have_count(4)
            for fold in user.locator("#insights-board summary").all():
                fold.click()
        width = user.page.evaluate("document.documentElement.scrollWidth")
        assert width <= 390, f"{name} is {width} wide"


def test_top_bar_is_low_and_chat_box_visible_on_a_phone(open_page: PageOpener) -> None:
    user = open_page("ja", width=390)
    bar = user.locator("#topbar").bounding_box()
    assert bar is not None
    assert bar["height"] < 130
    user.open_tab("chat")
    for text in ("一つめ", "二つめ"):
        expect(user.text_box("chat-message")).to_be_in_viewport(ratio=1)
        user.send(text * 40)
    expect(user.locator("#chat-send")).to_be_in_viewport(ratio=1)


def test_toast_covers_no_control(user: BrowserUser) -> None:
    user.open_tab("compare")
    too_long = user.error_text("message_too_long", length=3000, limit=2000)
    for text, words in ((" ", user.error_text("empty_message")), ("長" * 3000, too_long)):
        user.text_box("compare-message").fill(text)
        user.text_box("compare-message").press("Enter")
        expect(user.toast).to_have_text(words)
    boxes = [user.locator(f"{place}").first.bounding_box() for place in (".toast-body", "#topbar")]
    toast, bar = (box for box in boxes if box)
    assert toast["y"] >= bar["y"] + bar["height"] - 2
    user.locator("#compare-run").click(trial=True)
    user.locator("#switches [data-light]").click(trial=True)


def test_open_tab_stays_open_after_a_reload(user: BrowserUser) -> None:
    user.open_tab("chat")
    user.locator("#switches [data-language=en]").click()
    user.page.wait_for_function("document.documentElement.lang === 'en'")
    expect(user.locator("#chat-message")).to_be_visible()
    user.wait_until_ready()
    user.language = "en"
    user.open_tab("persona")
    user.reload()
    expect(user.text_box("field-name")).to_be_visible()


def test_browser_storage_holds_no_secret(user: BrowserUser) -> None:
    user.open_tab("chat")
    user.send("ひみつの話")
    user.wait_for_answers(1)
    user.text_box("chat-message").fill("書きかけ")
    user.page.wait_for_timeout(50)
    secret = next(c["value"] for c in user.context.cookies() if c["name"] == COOKIE)
    kept, unsent = user.page.evaluate(
        "[localStorage, sessionStorage].map((s) => Object.entries(s).map((e) => e.join('=')))"
    )
    assert {entry.partition("=")[0] for entry in kept} <= {
        "persona_lab.persona", "persona_lab.model", "persona_lab.light",
    }  # fmt: skip
    chosen = [entry for entry in unsent if entry.startswith("persona_lab.columns=")]
    assert sorted(set(unsent) - set(chosen)) == [
        "persona_lab.tab=2", "persona_lab.unsent.chat-message=書きかけ",
    ]  # fmt: skip
    everything = json.dumps([kept, unsent], ensure_ascii=False)
    assert secret not in everything
    assert "ひみつ" not in everything
    assert secret not in user.page.evaluate("document.cookie")
    databases = user.page.evaluate("indexedDB.databases().then((all) => all.length)")
    assert databases == 0


@pytest.mark.core
def test_visitors_do_not_see_each_others_personas(open_page: PageOpener) -> None:
    one, other = open_page(), open_page()
    one.text_box("field-name").fill("わたしだけの人")
    wait_until(lambda: len(one.own_personas()) == 1)
    other.reload()
    other.locator("#who input").click()
    expect(other.page.get_by_role("option").first).to_be_visible()
    assert "わたしだけの人" not in other.page.content()
    one.reload()
    one.locator("#who input").click()
    expect(one.page.get_by_role("option", name="わたしだけの人", exact=True)).to_be_visible()


@pytest.mark.parametrize("width", [820, 1024])
def test_header_is_one_row_between_phone_and_desktop(user: BrowserUser, width: int) -> None:
    user.page.set_viewport_size({"width": width, "height": 800})
    box = user.locator("#topbar").bounding_box()
    assert box is not None
    assert box["height"] <= 80
    assert user.page.evaluate("document.documentElement.scrollWidth") <= width


def test_name_and_state_are_apart_on_a_very_narrow_screen(user: BrowserUser) -> None:
    user.page.set_viewport_size({"width": 320, "height": 700})
    name = user.locator("#brand h1").bounding_box()
    state = user.locator("#ready p").bounding_box()
    assert name is not None
    assert state is not None
    assert state["y"] >= name["y"] + name["height"] or state["x"] >= name["x"] + name["width"]


def test_text_boxes_fit_their_text_after_a_resize(user: BrowserUser) -> None:
    user.text_box("field-background").fill("長い文です。" * 40)
    user.text_box("field-name").focus()
    user.page.set_viewport_size({"width": 500, "height": 800})
    hidden = "box => box.scrollHeight - box.clientHeight"
    wait_until(lambda: user.text_box("field-background").evaluate(hidden) <= 4)
