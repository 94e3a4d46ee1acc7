"""The compare tab: columns, models, errors and stopping."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect
from support.app_process import GEMMA, SMOLLM, RunningApp, wait_until
from support.browser import CORE_IN_JAPANESE, ECHO, SLOW, BrowserUser, PageOpener

WATCH = """() => {
  window.growth = [[], [], [], []];
  for (const i of [0, 1, 2, 3]) {
    const answer = document.querySelector(`#column-${i} .answer`);
    new MutationObserver(() => {
      const length = answer.innerText.trim().length, seen = window.growth[i];
      if (length > (seen.length ? seen[seen.length - 1].length : 0))
        seen.push({ length, at: performance.now() });
    }).observe(answer, { childList: true, subtree: true, characterData: true });
  }
}"""


def test_four_columns_of_two_local_models_answer_concurrently(open_page: PageOpener) -> None:
    user = open_page("en")  # whose demos take a model of English a fifth of the tokens
    user.open_tab("compare")
    for column, model in enumerate((GEMMA, SMOLLM, GEMMA, SMOLLM)):
        if column > 1:
            user.locator("#compare-add").click()
        expect(user.locator(f"#column-{column}")).to_be_visible()
        user.enter(f"#column-{column}", model)
    message = "Please tell me, step by step and in detail, how you spend a whole day."
    for _ in range(2):  # the first run loads the models, which may take them unlike times
        user.text_box("compare-message").fill(message)
        user.page.evaluate(WATCH)
        user.locator("#compare-run").click()
        expect(user.locator("#compare-stop")).to_be_visible()
        for column in range(4):
            expect(user.locator(f"#column-{column} .figures span").first).to_be_visible(
                timeout=90_000
            )
        expect(user.locator("#compare-run")).to_be_visible(timeout=90_000)
    growth = user.page.evaluate("window.growth")
    assert all(len(seen) > 1 for seen in growth), "every column grew in pieces"
    ended, begun = min(seen[-1]["at"] for seen in growth), max(seen[0]["at"] for seen in growth)
    assert ended > begun, "one waited for another"
    kinds = [(r.kind, r.status, r.provider) for r in user.store.records(user_id=user.user_id)]
    assert kinds == [("compare", "ok", "local")] * 8


def test_columns_are_complete_when_the_browser_is_slow(user: BrowserUser) -> None:
    user.open_tab("compare")
    for column, model in enumerate((f"{ECHO}?rate=50&tokens=10", f"{ECHO}?rate=50&tokens=40")):
        user.enter(f"#column-{column}", model)
    slow = user.context.new_cdp_session(user.page)
    slow.send("Emulation.setCPUThrottlingRate", {"rate": 8})
    for number in range(2):
        user.text_box("compare-message").fill(f"{number}回目")
        user.locator("#compare-run").click()
        expect(user.locator("#compare-stop")).to_be_visible()
        expect(user.locator("#compare-run")).to_be_visible()
        for column in (0, 1):
            expect(user.locator(f"#column-{column} .figures span").first).to_be_visible(
                timeout=5_000
            )
            expect(user.column_answer(column)).to_contain_text(f"「{number}回目」")


@pytest.mark.core
def test_columns_are_added_rerun_and_removed(user: BrowserUser) -> None:
    user.open_tab("compare")
    user.locator("#compare-add").click()
    expect(user.locator("#column-2")).to_be_visible()
    personas = [user.locator(f"#column-{n} .choosers input").nth(1) for n in range(3)]
    there = " ".join(persona.input_value() for persona in personas[:2])
    assert personas[2].input_value().partition("（")[0] not in there
    for column in range(3):
        user.enter(f"#column-{column}", ECHO)
    user.text_box("compare-message").fill("三人に")
    user.locator("#compare-run").click()
    for column in range(3):
        expect(user.column_answer(column)).to_contain_text("「三人に」")
    user.text_box("compare-message").fill("ひとりに")
    user.locator("#column-1 button.rerun").click()
    expect(user.column_answer(1)).to_contain_text("「ひとりに」")
    expect(user.column_answer(0)).to_contain_text("「三人に」")
    kept = [personas[n].input_value() for n in (1, 2)]
    expect(user.locator("#column-1-remove")).to_be_visible()
    user.locator("#column-0-remove").click()
    expect(user.locator("#column-2")).to_be_hidden()
    expect(user.column_answer(0)).to_contain_text("「ひとりに」")
    expect(user.column_answer(1)).to_contain_text("「三人に」")
    assert [persona.input_value() for persona in personas[:2]] == kept
    user.locator("#column-1-remove").click()
    expect(user.locator("#column-1")).to_be_hidden()
    expect(user.locator("#column-0-remove")).to_be_hidden()


@pytest.mark.parametrize("language", CORE_IN_JAPANESE)
def test_other_column_answers_when_one_fails(open_page: PageOpener, language: str) -> None:
    user = open_page(language)
    user.open_tab("compare")
    user.enter("#column-0", "nobody:x")
    user.enter("#column-1", ECHO)
    user.text_box("compare-message").fill("hello")
    user.locator("#compare-run").click()
    expect(user.locator("#column-0 [role=alert]")).to_have_text(
        user.error_text("unknown_model", model="nobody:x")
    )
    expect(user.locator("#column-0 .figures")).to_have_count(0)
    expect(user.column_answer(1)).to_contain_text("hello")
    user.enter("#column-0", "openai:gpt-x")
    user.locator("#compare-run").click()
    expect(user.locator("#column-0 [role=alert]")).to_have_text(
        user.error_text("missing_key", variable="OPENAI_API_KEY")
    )
    expect(user.locator("#column-0")).not_to_contain_text(user.text("figures.free"))
    expect(user.locator("#column-0")).not_to_contain_text("入力0")
    expect(user.text_box("compare-message")).to_have_value("hello")


def test_nothing_is_compared_when_the_box_is_empty(user: BrowserUser) -> None:
    user.open_tab("compare")
    user.locator("#compare-run").click()
    expect(user.toast).to_have_text(user.error_text("empty_message"))


def test_column_names_the_open_persona(user: BrowserUser) -> None:
    user.open_tab("compare")
    chosen = user.locator("#column-0 .choosers input").nth(1)
    for name in ("みさき", "さくら"):
        if name == "さくら":
            user.choose_in_header(name)
        expect(chosen).to_have_value(user.text("compare.current", name=name))
    user.reload()
    user.open_tab("compare")
    expect(chosen).to_have_value(user.text("compare.current", name="さくら"))


@pytest.fixture(scope="module")
def four_columns(served: RunningApp, chromium: Browser) -> Iterator[BrowserUser]:
    """A visitor at four columns. The tests that share the page only read it."""
    opener = PageOpener(chromium, served)
    user = opener()
    user.open_tab("compare")
    for number in (2, 3):
        user.locator("#compare-add").click()
        expect(user.locator(f"#column-{number}")).to_be_visible()
    yield user
    opener.close()


@pytest.mark.parametrize("width", [1024, 1280, 1440])
def test_four_columns_lie_in_one_row_or_two_by_two(four_columns: BrowserUser, width: int) -> None:
    four_columns.page.set_viewport_size({"width": width, "height": 900})
    boxes = [four_columns.locator(f"#column-{number}").bounding_box() for number in range(4)]
    rows = Counter(round(box["y"]) for box in boxes if box)
    assert list(rows.values()) in ([4], [2, 2])


@pytest.mark.core
def test_partial_answers_are_kept_when_comparison_is_stopped(user: BrowserUser) -> None:
    user.open_tab("compare")
    user.enter("#column-0", SLOW)
    user.enter("#column-1", SLOW)
    user.text_box("compare-message").fill("長く")
    user.locator("#compare-run").click()
    expect(user.column_answer(1)).to_contain_text("練習用")
    user.locator("#compare-stop").click()
    expect(user.locator("#compare-run")).to_be_visible()
    expect(user.column_answer(1)).to_contain_text("練習用")
    wait_until(
        lambda: [r.status for r in user.store.records(user_id=user.user_id)] == ["stopped"] * 2
    )
