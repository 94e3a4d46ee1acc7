"""The page by keyboard, its focus, and axe's rules."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect
from support.browser import ECHO, SLOW, TABS, BrowserUser, PageOpener


def test_persona_is_chosen_by_keyboard_and_tab_changes_nothing(user: BrowserUser) -> None:
    who = user.locator("#who input")
    who.click()
    user.page.keyboard.type("さくら")
    user.page.keyboard.press("Enter")
    expect(user.text_box("field-name")).to_have_value("さくら")
    user.wait_until_ready()
    expect(who).to_be_focused()
    expect(user.locator(".options")).to_have_count(0)
    user.page.evaluate(
        """() => new MutationObserver(() => { window.closed = true; })
          .observe(document.getElementById("editor-form"), { attributeFilter: ["inert"] })"""
    )
    who.focus()
    user.page.keyboard.press("Tab")
    expect(user.locator("#model input")).to_be_focused()
    user.wait_until_idle()
    assert not user.page.evaluate("window.closed")


def test_option_list_closes_when_the_focus_leaves(user: BrowserUser) -> None:
    agent = user.create_persona("なにもない人")
    user.open_persona(agent)
    user.wait_until_idle()  # an answer that comes late draws the header again
    user.locator("#who input").focus()
    for passed in ("who", "model"):
        expect(user.locator(f"#{passed} .options")).to_be_visible()
        user.page.keyboard.press("Tab")
    expect(user.locator("#switches button").first).to_be_focused()
    user.wait_until_idle()
    expect(user.locator(".options")).to_have_count(0)
    user.text_box("field-personalities").focus()
    for passed, reached in pairwise(("personalities", "roles", "tones")):
        expect(user.locator(f"#field-{passed} .options")).to_be_visible()
        user.page.keyboard.press("Tab")
        expect(user.text_box(f"field-{reached}")).to_be_focused()
        expect(user.locator(f"#field-{passed} .options")).to_have_count(0)
    user.page.keyboard.press("Escape")
    expect(user.locator(".options")).to_have_count(0)
    expect(user.text_box("field-tones")).to_be_focused()


def test_focus_moves_on_when_the_used_button_disappears(user: BrowserUser) -> None:
    def press(button: str, then: str) -> None:
        user.locator(f"#{button}").focus()
        user.page.keyboard.press("Enter")
        there = user.locator(f"#{then} textarea, #{then} input, button#{then}").first
        expect(there).to_be_focused()

    user.use_model(SLOW)
    user.text_box("try-message").fill("長い話をして")
    press("try-run", "try-message")
    press("try-stop", "try-message")
    user.open_tab("chat")
    user.send("長い話をして")
    expect(user.answers().last).to_contain_text("練習用")
    press("chat-stop", "chat-message")
    expect(user.locator("#chat-again")).to_be_visible()
    press("chat-again", "chat-message")
    press("chat-stop", "chat-message")
    expect(user.locator("#chat-delete")).to_be_visible()
    press("chat-delete", "chat-undo")
    press("chat-undo", "chat-message")
    user.open_tab("compare")
    user.enter("#column-0", SLOW)
    user.text_box("compare-message").fill("長い話をして")
    press("compare-run", "compare-message")
    press("compare-stop", "compare-message")
    expect(user.locator("#column-1-remove")).to_be_visible()
    press("column-1-remove", "compare-add")
    user.open_tab("connect")
    user.text_box("key-openai").fill("sk-visitors-own-0123456789")
    user.text_box("key-openai").press("Enter")
    expect(user.locator("#key-openai-forget")).to_be_visible()
    press("key-openai-forget", "key-openai")
    for _ in range(2):
        user.locator("#token-make").click()
        expect(user.locator("#token-made code")).to_be_visible()
    expect(user.locator("#token-list label")).to_have_count(2)
    for then in ("token-list", "token-name"):
        user.locator("#token-list label").first.click()
        expect(user.locator("#token-revoke")).to_be_enabled()
        user.locator("#token-revoke").press("Enter")
        expect(user.locator("#token-revoke")).to_contain_text(user.text("connect.revoke_sure"))
        press("token-revoke", then)


def test_focus_moves_to_undo_when_a_persona_is_deleted(user: BrowserUser) -> None:
    for name in ("ひとりめ", "ふたりめ"):
        user.create_persona(name)
    user.reload()
    user.choose("#who", "ひとりめ")
    expect(user.text_box("field-name")).to_have_value("ひとりめ")
    user.wait_until_ready()
    user.locator("#persona-delete").focus()
    user.page.keyboard.press("Enter")
    expect(user.locator("#persona-restore")).to_be_focused()
    user.page.keyboard.press("Enter")
    expect(user.text_box("field-name")).to_have_value("ひとりめ")
    expect(user.text_box("field-name")).to_be_focused()


@pytest.mark.parametrize(
    ("language", "dark"), [pytest.param("ja", False, marks=pytest.mark.core), ("en", True)]
)
def test_tabs_have_no_serious_axe_violation(
    open_page: PageOpener, language: str, dark: bool
) -> None:
    user = open_page(language, dark=dark)
    faults = {}
    for name in TABS:
        user.open_tab(name)
        if name == "persona":
            user.locator("#fold-voice button.label-wrap").click()
            user.locator("#fold-examples button.label-wrap").click()
            expect(user.text_box("field-examples")).to_be_visible()
        if name == "compare":
            user.enter("#column-0", ECHO)
            user.enter("#column-1", "openai:gpt-x")
            user.text_box("compare-message").fill("やあ")
            user.locator("#compare-run").click()
            expect(user.locator("#column-1 [role=alert]")).to_be_visible()
            expect(user.locator("#compare-run")).to_be_visible()
        if name == "chat":
            user.send("やあ")
            user.wait_for_answers(1)
        if name == "insights":
            user.add_generations(40)
            user.locator("#insights-again").click()
            expect(user.locator("#insights-board svg.chart")).to_have_count(4)
            for fold in user.locator("#insights-board summary").all():
                fold.click()
        for _ in range(10):  # what is half drawn yet, or fading in, is no fault
            found = [
                fault
                for fault in Axe().run(user.page).response["violations"]
                if fault["impact"] in ("serious", "critical")
            ]
            if not found:
                break
            user.page.wait_for_timeout(300)
        for fault in found:
            faults[f"{name}: {fault['id']}"] = [node["target"][0] for node in fault["nodes"]]
    assert not faults, json.dumps(faults, ensure_ascii=False, indent=1)


RING = """() => {
  const had = document.activeElement;
  if (had === document.body) return null;
  const name = `${had.tagName} in ${had.closest("[id]")?.id}`;
  let ring = had, look = getComputedStyle(ring);
  while (look.outlineStyle === "none" || look.opacity === "0") {
    ring = ring.parentElement;
    if (!ring) return `${name}: no ring`;
    look = getComputedStyle(ring);
  }
  const reach = parseFloat(look.outlineOffset) + parseFloat(look.outlineWidth);
  const box = ring.getBoundingClientRect();
  for (let e = ring.parentElement; e !== document.body; e = e.parentElement) {
    if (getComputedStyle(e).overflow === "visible") continue;
    const sight = e.getBoundingClientRect();
    const left = sight.left + e.clientLeft, top = sight.top + e.clientTop;
    const over = Math.max(left - box.left, box.right - left - e.clientWidth,
      top - box.top, box.bottom - top - e.clientHeight) + reach;
    if (over > 0.5) return `${name}: cut by ${over}`;
  }
  let ground = reach > 0 ? ring.parentElement : ring;
  while (/, 0[)]$/.test(getComputedStyle(ground).backgroundColor)) ground = ground.parentElement;
  const colours = [look.outlineColor, getComputedStyle(ground).backgroundColor];
  const [dark, light] = colours.map((colour) => {
    const parts = colour.match(/[0-9.]+/g).map((part) => (part / 255) ** 2.2);
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2] + 0.05;
  }).sort((a, b) => a - b);
  return light < 3 * dark ? `${name}: contrast ${light / dark}` : name;
}"""


@pytest.mark.parametrize("dark", [False, True])
def test_focus_ring_is_whole_and_visible_at_every_stop(open_page: PageOpener, dark: bool) -> None:
    user = open_page(dark=dark)
    user.page.emulate_media(reduced_motion="reduce")
    stops = []
    for name in TABS:
        user.open_tab(name)
        user.wait_until_idle()
        user.locator("#who input").focus()
        for _ in range(60):
            stop = user.page.evaluate(RING)
            if stop is None:
                break
            stops.append(stop)
            user.page.keyboard.press("Tab")
    assert [stop for stop in stops if ":" in stop] == []
    seen = {stop.rpartition(" ")[2] for stop in stops}
    assert seen >= {"chat-message", "try-message", "compare-message", "model", "insights-span"}
