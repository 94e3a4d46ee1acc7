"""The persona tab: the form, the preview of its prompt, undo, copies and the try box."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from playwright.sync_api import TimeoutError, expect  # noqa: A004
from support.app_process import make_data_folder, run_app, wait_until
from support.browser import ECHO, BrowserUser, Ime, PageOpener

from persona_lab.personas.persona import persona_of


@pytest.mark.core
def test_preview_follows_every_keystroke(user: BrowserUser) -> None:
    name = user.text_box("field-name")
    name.fill("")
    written = ""
    for letter in "すみれX1":
        name.press_sequentially(letter)
        written += letter
        expect(user.preview).to_contain_text(f"「{written}」")
    name.press("Backspace")
    expect(user.preview).to_contain_text("「すみれX」")
    user.text_box("field-background").fill("灯台で育った。")
    expect(user.preview).to_contain_text("灯台で育った。")


@pytest.mark.core
def test_preview_follows_text_when_composed_with_an_ime(user: BrowserUser) -> None:
    user.text_box("field-description").fill("")
    user.text_box("field-description").focus()
    ime = Ime(user.page)
    for reading in ("と", "とう", "とうだい"):
        ime.compose(reading)
        expect(user.preview).to_contain_text(reading)
    ime.commit("灯台守")
    expect(user.preview).to_contain_text("灯台守")
    expect(user.preview).not_to_contain_text("とうだい")
    wait_until(lambda: [a.description for a in user.own_personas()] == ["灯台守"])


def test_preview_names_template_and_rule_when_role_changes(user: BrowserUser) -> None:
    user.open_persona(user.create_persona("てすと"))
    expect(user.locator("#prompt-preview .rule")).to_contain_text("default.ja.j2")
    user.enter("#field-roles", "教師")
    expect(user.locator("#prompt-preview .rule")).to_contain_text("teacher")
    expect(user.chips("roles")).to_have_text(["教師"])


@pytest.mark.core
def test_custom_trait_becomes_a_chip_and_is_saved(user: BrowserUser) -> None:
    user.enter("#field-personalities", "星を数える")
    expect(user.preview).to_contain_text("星を数える")
    wait_until(
        lambda: (
            ["星を数える" in a["personalities"] for a in map(persona_of, user.own_personas())]
            == [True]
        )
    )


def test_preview_span_focuses_its_field_when_clicked(user: BrowserUser) -> None:
    user.locator("#prompt-preview .from-greeting").first.click()
    expect(user.text_box("field-greeting")).to_be_focused()


@pytest.mark.core
def test_demo_is_copied_once_when_edited(user: BrowserUser) -> None:
    before = user.personas()
    opened = user.locator("#editing textarea, #editing input").input_value()
    user.text_box("field-name").press("End")
    user.text_box("field-name").press_sequentially("ちゃん先生です", delay=15)
    expect(user.locator("#persona-head h2")).to_have_text(before[opened]["name"] + "ちゃん先生です")
    (copy,) = user.own_personas()
    assert persona_of(copy) == {**before[opened], "name": before[opened]["name"] + "ちゃん先生です"}
    assert {a.id: persona_of(a) for a in user.demo_personas()} == before
    expect(user.locator("#persona-head")).to_contain_text(user.text("editor.state.own"))


@pytest.mark.core
def test_demo_chat_continues_with_the_copy_when_demo_is_edited(user: BrowserUser) -> None:
    user.open_tab("chat")
    user.send("ひとつめ")
    user.wait_for_answers(1)
    user.open_tab("persona")
    user.text_box("field-name").press("End")
    user.text_box("field-name").press_sequentially("さん", delay=15)
    expect(user.locator("#persona-head")).to_contain_text(user.text("editor.state.own"))
    user.open_tab("chat")
    user.send("ふたつめ")
    user.wait_for_answers(2)
    (copy,) = user.own_personas()
    (chat,) = user.served.store.list_chats(user_id=user.user_id, agent_id=copy.id)
    said = user.served.store.messages(chat.id, user_id=user.user_id)
    assert [m.content for m in said if m.sender == "user"] == ["ひとつめ", "ふたつめ"]


def test_personas_stay_unchanged_when_only_opened(user: BrowserUser) -> None:
    for number in range(3):
        user.create_persona(f"人{number}", background=f"背景{number}", roles=[f"役{number}"])
    user.reload()
    before = user.personas()
    for persona in before.values():  # as quickly as a hand can
        user.choose_in_header(persona["name"])
    for persona in list(before.values())[:6]:  # and with time for each to be there
        user.choose_in_header(persona["name"])
        expect(user.text_box("field-name")).to_have_value(persona["name"])
        user.wait_until_ready()
    user.wait_until_idle()
    assert user.personas() == before


def test_persona_never_gets_text_typed_into_another(user: BrowserUser) -> None:
    for number in range(4):
        user.create_persona(
            f"人物{number}", description=f"説明{number}", background=f"背景{number}。",
            personalities=[f"性格{number}"], tones=[f"口調{number}"], greeting=f"やあ{number}",
        )  # fmt: skip
    user.reload()
    before = user.personas()
    names = [p["name"] for p in before.values() if p["name"].startswith("人物")]
    description = user.text_box("field-description")
    marks: dict[str, str] = {}
    for step, (name, mark) in enumerate(zip(names * 3, "アイウエオカキクケコサシ", strict=True)):
        user.choose_in_header(name)
        marks[mark] = name
        with suppress(TimeoutError):  # at once, as a hurried hand would: the form may be closed
            description.click(timeout=20 + 100 * (step % 3), force=True)
        if user.page.evaluate("!!document.activeElement.closest('#field-description')"):
            user.page.keyboard.type(mark)
        if step % 2:
            user.wait_until_ready()
            if user.text_box("field-name").input_value() != name:
                user.choose_in_header(name)  # the choice before was answered late
            expect(user.text_box("field-name")).to_have_value(name)
            user.wait_until_ready()
            description.press("End")
            description.press_sequentially("！")
    user.wait_until_idle()
    after = user.personas()
    assert set(after) == set(before), "a copy was made"
    for id_, persona in before.items():
        typed = after[id_].pop("description")
        assert after[id_] == {k: v for k, v in persona.items() if k != "description"}
        finished = [n for n in (names * 3)[1::2] if n == persona["name"]]
        assert typed.count("！") == len(finished), "what was typed is lost"
        assert persona["description"] in typed
        added = set(typed.replace(persona["description"], "", 1)) - {"！"}
        assert added <= {mark for mark, name in marks.items() if name == persona["name"]}


@pytest.mark.core
def test_undo_restores_the_name_and_duplicate_copies(user: BrowserUser) -> None:
    agent = user.create_persona("もとの名前")
    user.open_persona(agent)
    user.text_box("field-name").fill("ちがう名前")
    expect(user.locator("#persona-head h2")).to_have_text("ちがう名前")
    user.locator("#persona-revert").click()
    expect(user.text_box("field-name")).to_have_value("もとの名前")
    user.wait_until_ready()
    user.locator("#persona-duplicate").click()
    expect(user.locator("#persona-head .label")).to_have_text(
        user.text("editor.copy_label", number=1)
    )
    expect(user.text_box("field-name")).to_have_value("もとの名前")
    assert len(user.own_personas()) == 2


def test_undo_and_redo_step_field_by_field_and_name_the_field(user: BrowserUser) -> None:
    agent = user.create_persona("もと", background="灯台で育った。")
    user.open_persona(agent)
    expect(user.persona_button("revert")).to_be_disabled()
    for field, text in (("name", "はなこ"), ("description", "一番"), ("background", "")):
        user.text_box(f"field-{field}").fill(text)
        wait_until(lambda f=field, t=text: getattr(user.own_personas()[0], f) == t)
    user.text_box("try-message").fill("自分で書いたひとこと")

    def step(button: str, said: str, field: str, value: str) -> None:
        user.persona_button(button).click()
        told = user.text(said, fields=user.text(f"field.{field}"))
        expect(user.locator("#saved")).to_have_text(told)
        expect(user.text_box(f"field-{field}")).to_have_value(value)
        user.wait_until_ready()

    step("revert", "editor.undone", "background", "灯台で育った。")
    step("revert", "editor.undone", "description", "")
    step("redo", "editor.redone", "description", "一番")
    step("revert", "editor.undone", "description", "")
    step("revert", "editor.undone", "name", "もと")
    expect(user.persona_button("revert")).to_be_disabled()
    step("redo", "editor.redone", "name", "はなこ")
    expect(user.text_box("try-message")).to_have_value("自分で書いたひとこと")
    user.text_box("field-name").fill("べつの人")  # from here on there is nothing to do again
    expect(user.persona_button("redo")).to_be_hidden()
    expect(user.persona_button("revert")).to_be_enabled()


@pytest.mark.core
@pytest.mark.core
def test_version_is_saved_compared_and_restored(user: BrowserUser) -> None:
    page, line = user.page, user.page.locator("#version-line")
    background = user.text_box("field-background")
    background.fill("港町で育った。")
    expect(line).to_contain_text("v1")
    expect(line).to_contain_text("背景")
    page.click("#version-commit")
    dialog = page.locator("#commit-dialog")
    expect(dialog.locator("ins").first).to_contain_text("港町")
    expect(dialog.locator("textarea")).to_be_focused()
    expect(dialog.locator("textarea")).to_have_value("背景を変更")
    dialog.locator("textarea").press("Enter")
    expect(dialog).to_have_count(0)
    expect(line).to_contain_text("v2")
    expect(page.locator("#version-history")).to_be_focused()
    background.fill("山里で育った。")
    expect(user.preview).to_contain_text("山里")
    expect(line).to_contain_text("背景")
    page.click("#version-history")
    history = page.locator("#history-dialog")
    expect(history.locator("ins").first).to_have_text("山里")
    page.keyboard.press("Escape")
    expect(history).to_have_count(0)
    page.click("#version-history")
    page.click("#history-restore")
    expect(background).to_have_value("港町で育った。")
    expect(line).to_contain_text("v4")
    expect(history).to_have_count(0)


@pytest.mark.core
def test_answer_becomes_an_example_after_correction(user: BrowserUser) -> None:
    page = user.page
    user.text_box("try-message").fill("おすすめは何ですか？")
    user.text_box("try-message").press("Enter")
    page.click("#tried .example")
    dialog = page.locator("#example-dialog")
    expect(dialog.locator("#example-question textarea")).to_have_value("おすすめは何ですか？")
    answer = dialog.locator("#example-answer textarea")
    expect(answer).to_be_focused()
    answer.fill("玉露です。")
    page.click("#example-confirm")
    expect(dialog).to_have_count(0)
    expect(page.locator("#saved")).to_contain_text("会話例に加えました")
    expect(user.preview).to_contain_text("おすすめは何ですか？")
    expect(user.preview).to_contain_text("玉露です。")
    expect(page.locator("#tried .example")).to_be_focused()


def test_new_persona_is_single_and_its_name_is_selected(user: BrowserUser) -> None:
    for _ in range(2):
        user.persona_button("new").click()
        expect(user.text_box("field-name")).to_have_value(user.text("editor.new_name"))
        user.wait_until_ready()
        expect(user.text_box("field-name")).to_be_focused()
    user.page.keyboard.type("あたらしい人")  # the name was selected
    wait_until(lambda: [a.name for a in user.own_personas()] == ["あたらしい人"])


@pytest.mark.core
def test_deleted_persona_is_restored_by_undo(user: BrowserUser) -> None:
    agent = user.create_persona("消える人", description="さっきまでいた")
    user.open_persona(agent)
    user.locator("#persona-delete").click()
    expect(user.locator("#saved")).to_contain_text(user.text("editor.deleted", name=agent.name))
    expect(user.text_box("field-name")).not_to_have_value(agent.name)
    assert user.own_personas() == []
    user.locator("#persona-restore").click()
    expect(user.text_box("field-description")).to_have_value("さっきまでいた")
    assert [a.id for a in user.own_personas()] == [agent.id]
    expect(user.locator("#persona-restore")).to_be_hidden()


@pytest.mark.core
def test_try_message_answers_without_a_chat(user: BrowserUser) -> None:
    expect(user.text_box("try-message")).not_to_have_value("")
    user.locator("#try-run").click()
    expect(user.locator("#tried .figures")).to_be_visible()
    expect(user.locator("#try-run")).to_be_visible()
    assert user.messages() == []


def test_page_opens_a_new_persona_when_there_are_no_demos(
    open_page: PageOpener, tmp_path: Path
) -> None:
    data = make_data_folder(tmp_path, "models: [{provider: mock, name: echo}]")
    written = (data / "personas.yaml").read_text("utf-8")
    (data / "personas.yaml").write_text(
        yaml.safe_dump(yaml.safe_load(written) | {"personas": []}), "utf-8"
    )
    with run_app(tmp_path, DATA_DIR=str(data)) as empty:
        user = open_page(app=empty)
        expect(user.text_box("field-name")).to_have_value(user.text("editor.new_name"))
        assert [agent.name for agent in user.own_personas()] == [user.text("editor.new_name")]


def test_preview_scrolls_to_the_edited_field(user: BrowserUser) -> None:
    user.locator("#fold-voice button.label-wrap").click()
    for field in ("greeting", "background"):
        user.text_box(f"field-{field}").fill(f"{field}の新しい言葉")
        expect(user.preview).to_contain_text(f"{field}の新しい言葉")
        wait_until(
            lambda field=field: user.page.evaluate(
                """(field) => {
                  const at = (s) => document.querySelector(`#prompt-preview ${s}`);
                  const paper = at(".paper").getBoundingClientRect();
                  const span = at(`.from-${field}`).getBoundingClientRect();
                  return paper.top <= span.top && span.bottom <= paper.bottom;
                }""",
                field,
            ),
            seconds=5,
        )


def test_preview_fills_the_window_and_marks_hidden_text(user: BrowserUser) -> None:
    at_foot = """() => {
      const tried = document.getElementById("prompt-side").getBoundingClientRect();
      return Math.abs(window.innerHeight - 16 - tried.bottom) < 3;
    }"""
    user.page.wait_for_function(at_foot)
    paper = user.locator("#prompt-preview .paper")
    expect(paper).to_have_class(re.compile("has-more"))
    user.page.evaluate("window.scrollTo(0, 300)")
    user.page.wait_for_function(at_foot)
    paper.evaluate("element => element.scrollTo(0, element.scrollHeight)")
    expect(paper).not_to_have_class(re.compile("has-more"))


def test_chip_list_opens_downwards_when_there_is_room(user: BrowserUser) -> None:
    field = user.locator("#field-tones")
    field.evaluate("element => window.scrollBy(0, element.getBoundingClientRect().top - 500)")
    field.locator("input").click()
    choices = field.locator(".options")
    expect(choices).to_be_visible()
    below, above = choices.bounding_box(), field.locator(".wrap").first.bounding_box()
    assert below is not None
    assert above is not None
    assert below["y"] >= above["y"] + above["height"] - 1
    assert below["y"] + below["height"] <= 900
    field.get_by_role("option").nth(1).click()
    expect(user.chips("tones")).to_have_count(2)


def test_enter_makes_no_chip_when_composing(user: BrowserUser) -> None:
    agent = user.create_persona("札のない人")
    user.open_persona(agent)
    user.locator("#field-roles input").click()
    ime = Ime(user.page)
    ime.compose("かんごし")
    ime.press_enter()
    ime.commit("看護師")
    user.page.keyboard.press("Enter")
    expect(user.chips("roles")).to_have_text(["看護師"])
    wait_until(lambda: [persona_of(a)["roles"] for a in user.own_personas()] == [["看護師"]])


def test_own_test_line_stays_when_another_persona_is_opened(user: BrowserUser) -> None:
    agent = user.create_persona("ほか")
    user.open_persona(agent)
    suggested = user.locator("#try-suggestions button").first.inner_text()
    expect(user.text_box("try-message")).to_have_value(suggested)
    user.text_box("try-message").fill("自分の文です。")
    user.locator("#persona-duplicate").click()
    expect(user.locator("#persona-head .label")).to_be_visible()
    user.wait_until_ready()
    expect(user.text_box("try-message")).to_have_value("自分の文です。")


def test_text_over_its_limit_is_said_at_the_field_and_in_sight(user: BrowserUser) -> None:
    user.open_persona(user.create_persona("長い"))
    user.text_box("field-background").fill("あ" * 12_000)
    note = user.locator("#field-background .field-note.over")
    expect(note).to_contain_text("12,000 / 10,000")
    expect(user.locator("#saved .warning")).to_be_in_viewport()
    user.text_box("field-background").fill("あ" * 9_000)
    expect(user.locator("#field-background .field-note")).to_have_text("9,000 / 10,000")
    user.text_box("field-background").fill("あ")
    expect(user.locator("#field-background .field-note")).to_have_text("")


def test_trial_is_marked_when_the_persona_changed_after_it(user: BrowserUser) -> None:
    user.open_persona(user.create_persona("まえ"))
    user.enter("#model", ECHO)
    mark = user.locator("#tried-older")
    user.locator("#try-run").click()
    expect(user.locator("#tried .figures")).to_be_visible()
    expect(mark).to_be_hidden()
    user.text_box("field-name").fill("あと")
    expect(mark).to_be_visible()
    user.locator("#try-run").click()
    expect(mark).to_be_hidden()
