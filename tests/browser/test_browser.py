"""What a person sees and does, in headless Chromium, against the app as it is started.

One server and one browser serve all tests; each test is a visitor of its own on a page of its
own, and fails also when the page raises an error or asks any other host for anything.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import yaml
from pytest_httpserver import HTTPServer
from support.app_process import GEMMA, SMOLLM, Served, data_with, missing, serving, until
from werkzeug import Request, Response

from persona_lab.db.tables import Agent, Generation, Message
from persona_lab.personas.persona import persona_of
from persona_lab.server import COOKIE
from persona_lab.settings import ROOT
from persona_lab.translations import Translations
from persona_lab.types import now

try:
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import (
        Browser,
        BrowserContext,
        Locator,
        Page,
        TimeoutError,  # noqa: A004 - Playwright's own, which isn't Python's
        expect,
        sync_playwright,
    )
except ModuleNotFoundError:
    missing("playwright")

PAGE = Translations(ROOT / "templates" / "ui.yaml")
FALLBACKS = Translations(ROOT / "templates" / "fallbacks.yaml")
ECHO = "mock:echo"
SLOW = "mock:echo?rate=10&tokens=2000"
"""Answers for minutes, so that there is time to do something meanwhile."""
CHROMIUM = ("chromium-headless-shell", "chromium", "chromium-browser")
"""What a browser may be called. The headless shell is the same engine without the windows that
nobody sees: several times as fast on two cores."""
MUTE = "mock:echo?first=60"
"""Says nothing for as long."""

CORE_IN_JAPANESE = [pytest.param("ja", marks=pytest.mark.core), "en"]
"""Both languages; the fast selection has one of them."""

TABS = ("persona", "compare", "chat", "insights", "connect")

expect.set_options(timeout=20_000)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("browser")) as app:
        yield app


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if path is None:
        missing("chromium")
    flags = [
        "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
    ]  # fmt: skip
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()


class Desk:
    """A visitor at the page. ``own`` and ``messages`` are what the app's database has of theirs."""

    def __init__(self, served: Served, context: BrowserContext, language: str) -> None:
        self.served = served
        self.context = context
        self.language = language
        context.request.get(served.url)
        secret = next(c["value"] for c in context.cookies() if c["name"] == COOKIE)
        self.user_id = served.store.user_for_secret(secret).id
        self.page = context.new_page()

    # ── the page ──

    def open(self) -> None:
        self.page.goto(self.served.url)
        self.settle()

    def reload(self) -> None:
        self.page.reload()
        self.settle()

    def settle(self) -> None:
        """Waits until a persona is open and the form takes input."""
        self.page.wait_for_selector("#editor-form:not([inert])", state="attached")
        self.page.wait_for_selector("#prompt-preview pre.prompt", state="attached")
        expect(self.box("editing")).not_to_have_value("")

    def say(self, key: str, **details: Any) -> str:
        return PAGE(key, self.language, **details)  # type: ignore[arg-type]

    def excuse(self, code: str, **details: Any) -> str:
        return FALLBACKS(code, self.language, **details)  # type: ignore[arg-type]

    def at(self, selector: str) -> Locator:
        return self.page.locator(selector)

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=self.say(f"tab.{name}"), exact=True).click()

    def box(self, id_: str) -> Locator:
        """The text box of a component."""
        return self.at(f"#{id_} textarea, #{id_} input").first

    def chips(self, field: str) -> Locator:
        return self.at(f"#field-{field} .token > span")

    def button(self, action: str) -> Locator:
        """A button over the editor."""
        return self.at(f"#persona-{action}")

    @property
    def preview(self) -> Locator:
        return self.at("#prompt-preview pre.prompt")

    @property
    def toast(self) -> Locator:
        return self.at("[data-testid=toast-text]").last

    def pick(self, component: str, label: str, nth: int = 0) -> None:
        """Chooses in a dropdown by what it says there."""
        self.at(f"{component} input").nth(nth).click()
        self.page.get_by_role("option", name=label, exact=True).click()

    def write(self, component: str, text: str, nth: int = 0) -> None:
        """Writes into a dropdown that takes what isn't in its list."""
        field = self.at(f"{component} input").nth(nth)
        field.click()
        field.fill(text)
        field.press("Enter")
        field.press("Escape")

    def use(self, model: str) -> None:
        """Chooses the model that answers chats and tries."""
        self.write("#model", model)
        expect(self.at("#ready .ready")).to_be_visible()

    def send(self, text: str) -> None:
        self.box("chat-message").fill(text)
        self.box("chat-message").press("Enter")

    def answers(self) -> Locator:
        """What the persona says, its greeting first, without the figures under an answer."""
        return self.at("#thread [data-testid=bot]:not(:has(.figures))")

    def answered(self, count: int) -> None:
        """Waits until ``count`` answers stand in the thread, all of them ended."""
        expect(self.at("#thread .figures")).to_have_count(count)
        expect(self.at("#chat-send")).to_be_visible()

    def column(self, number: int) -> Locator:
        """The answer in a column of the comparison."""
        return self.at(f"#column-{number} [data-testid=markdown]")

    # ── the database ──

    @property
    def store(self) -> Any:
        return self.served.store

    def own(self) -> list[Agent]:
        return [a for a in self.store.list_agents(user_id=self.user_id) if a.owner_id]

    def demos(self) -> list[Agent]:
        return [a for a in self.store.list_agents(user_id=self.user_id) if not a.owner_id]

    def personas(self) -> dict[str, dict[str, Any]]:
        """Every persona that the visitor can open, by id."""
        return {a.id: persona_of(a) for a in self.store.list_agents(user_id=self.user_id)}

    def messages(self) -> list[Message]:
        """Of the newest conversation."""
        chats = self.store.list_chats(user_id=self.user_id)
        return list(self.store.messages(chats[0].id, user_id=self.user_id)) if chats else []

    def make(self, name: str, **fields: Any) -> Agent:
        """A persona of the visitor's."""
        return self.store.create_agent(  # type: ignore[no-any-return]
            user_id=self.user_id, name=name, language=self.language, **fields
        )

    def record(self, count: int, *, name: str = "さくら", **fields: Any) -> None:
        """Turns of the visitor's, an hour between two, the last one now; every tenth failed."""
        agent = self.make(name)
        for number in range(count):
            failed = number % 10 == 9
            told = {
                "user_id": self.user_id, "agent_id": agent.id, "provider": "openai",
                "model": f"gpt-{number % 3}", "status": "failed" if failed else "ok",
                "error_type": "timeout" if failed else None, "prompt_tokens": 100 * number,
                "cached_tokens": 50 * number, "completion_tokens": 9, "first_token_ms": 400,
                "total_ms": 900, "cost": None if number % 7 == 6 else 0.01,
                "created_at": now() - timedelta(hours=number),
            }  # fmt: skip
            self.store.record(Generation(**{**told, **fields}))


Sit = Callable[..., Desk]


@pytest.fixture
def sit(served: Served, chromium: Browser) -> Iterator[Sit]:
    """``sit("en", width=390, dark=True, zone="Asia/Tokyo")``: a new visitor at the open page."""
    contexts: list[BrowserContext] = []
    wrong: list[str] = []

    def make(
        language: str = "ja",
        *,
        width: int = 1280,
        dark: bool = False,
        at: Served = served,
        zone: str | None = None,
    ) -> Desk:
        context = chromium.new_context(
            locale={"ja": "ja-JP", "en": "en-US"}[language],
            viewport={"width": width, "height": 900},
            color_scheme="dark" if dark else "light",
            timezone_id=zone,
        )
        contexts.append(context)
        context.on("page", lambda page: watch(page, urlsplit(at.url).netloc))
        desk = Desk(at, context, language)
        desk.open()
        return desk

    def watch(page: Page, host: str) -> None:
        page.on("pageerror", lambda error: wrong.append(f"error on the page: {error}"))
        page.on("request", lambda request: leaves(request.url, host))

    def leaves(url: str, host: str) -> None:
        asked = urlsplit(url)
        if asked.scheme not in ("data", "blob") and asked.netloc != host:
            wrong.append(f"asked another host: {url}")

    yield make
    for context in contexts:
        context.close()
    assert not wrong, wrong


@pytest.fixture
def desk(sit: Sit) -> Desk:
    return sit()


class Ime:
    """A Japanese input method, as Chromium's own protocol drives one."""

    def __init__(self, page: Page) -> None:
        self.protocol = page.context.new_cdp_session(page)

    def compose(self, text: str) -> None:
        """``text`` stands underlined in the focused field, not yet decided."""
        self.protocol.send(
            "Input.imeSetComposition",
            {"text": text, "selectionStart": len(text), "selectionEnd": len(text)},
        )

    def enter(self) -> None:
        """Enter while composing: browsers report key code 229 for it."""
        for kind in ("rawKeyDown", "keyUp"):
            self.protocol.send(
                "Input.dispatchKeyEvent",
                {"type": kind, "key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 229},
            )

    def decide(self, text: str) -> None:
        self.protocol.send("Input.insertText", {"text": text})


# ── the editor and its preview ────────────────────────────────────────────────────────────


@pytest.mark.core
def test_the_preview_follows_every_keystroke(desk: Desk) -> None:
    name = desk.box("field-name")
    name.fill("")
    written = ""
    for letter in "すみれX1":
        name.press_sequentially(letter)
        written += letter
        expect(desk.preview).to_contain_text(f"「{written}」")
    name.press("Backspace")
    expect(desk.preview).to_contain_text("「すみれX」")
    desk.box("field-background").fill("灯台で育った。")
    expect(desk.preview).to_contain_text("灯台で育った。")


@pytest.mark.core
def test_the_preview_follows_what_an_input_method_writes(desk: Desk) -> None:
    desk.box("field-description").fill("")
    desk.box("field-description").focus()
    ime = Ime(desk.page)
    for reading in ("と", "とう", "とうだい"):
        ime.compose(reading)
        expect(desk.preview).to_contain_text(reading)
    ime.decide("灯台守")
    expect(desk.preview).to_contain_text("灯台守")
    expect(desk.preview).not_to_contain_text("とうだい")
    until(lambda: [a.description for a in desk.own()] == ["灯台守"])


def test_the_preview_names_the_template_and_the_rule_that_a_role_chooses(desk: Desk) -> None:
    agent = desk.make("てすと")
    desk.reload()
    desk.pick("#who", agent.name)
    expect(desk.at("#prompt-preview .rule")).to_contain_text("default.ja.j2")
    desk.write("#field-roles", "教師")
    expect(desk.at("#prompt-preview .rule")).to_contain_text("teacher")
    expect(desk.chips("roles")).to_have_text(["教師"])


@pytest.mark.core
def test_an_own_word_becomes_a_chip_and_is_kept(desk: Desk) -> None:
    desk.write("#field-personalities", "星を数える")
    expect(desk.preview).to_contain_text("星を数える")
    until(
        lambda: ["星を数える" in a["personalities"] for a in map(persona_of, desk.own())] == [True]
    )


def test_a_touch_on_a_traced_span_leads_to_its_field(desk: Desk) -> None:
    desk.at("#prompt-preview .from-greeting").first.click()
    expect(desk.box("field-greeting")).to_be_focused()


@pytest.mark.core
def test_an_edited_demo_becomes_exactly_one_copy_and_the_demo_stays(desk: Desk) -> None:
    before = desk.personas()
    opened = desk.at("#editing textarea, #editing input").input_value()
    desk.box("field-name").press("End")
    desk.box("field-name").press_sequentially("ちゃん先生です", delay=15)
    expect(desk.at("#persona-head h2")).to_have_text(before[opened]["name"] + "ちゃん先生です")
    (copy,) = desk.own()
    assert persona_of(copy) == {**before[opened], "name": before[opened]["name"] + "ちゃん先生です"}
    assert {a.id: persona_of(a) for a in desk.demos()} == before
    expect(desk.at("#persona-head")).to_contain_text(desk.say("editor.state.own"))


@pytest.mark.core
def test_a_talk_with_a_demo_goes_on_when_the_demo_is_edited(desk: Desk) -> None:
    desk.tab("chat")
    desk.send("ひとつめ")
    desk.answered(1)
    desk.tab("persona")
    desk.box("field-name").press("End")
    desk.box("field-name").press_sequentially("さん", delay=15)
    expect(desk.at("#persona-head")).to_contain_text(desk.say("editor.state.own"))
    desk.tab("chat")
    desk.send("ふたつめ")
    desk.answered(2)
    (copy,) = desk.own()
    (chat,) = desk.served.store.list_chats(user_id=desk.user_id, agent_id=copy.id)
    said = desk.served.store.messages(chat.id, user_id=desk.user_id)
    assert [m.content for m in said if m.sender == "user"] == ["ひとつめ", "ふたつめ"]


def test_opening_every_persona_one_after_another_copies_and_changes_nothing(desk: Desk) -> None:
    for number in range(3):
        desk.make(f"人{number}", background=f"背景{number}", roles=[f"役{number}"])
    desk.reload()
    before = desk.personas()
    for persona in before.values():  # as quickly as a hand can
        choose_in_header(desk, persona["name"])
    for persona in list(before.values())[:6]:  # and with time for each to be there
        choose_in_header(desk, persona["name"])
        expect(desk.box("field-name")).to_have_value(persona["name"])
        desk.settle()
    quiet(desk.page)
    assert desk.personas() == before


def test_a_persona_never_gets_what_was_typed_into_another(desk: Desk) -> None:
    for number in range(4):
        desk.make(
            f"人物{number}", description=f"説明{number}", background=f"背景{number}。",
            personalities=[f"性格{number}"], tones=[f"口調{number}"], greeting=f"やあ{number}",
        )  # fmt: skip
    desk.reload()
    before = desk.personas()
    names = [p["name"] for p in before.values() if p["name"].startswith("人物")]
    description = desk.box("field-description")
    marks: dict[str, str] = {}
    for step, (name, mark) in enumerate(zip(names * 3, "アイウエオカキクケコサシ", strict=True)):
        choose_in_header(desk, name)
        marks[mark] = name
        with suppress(TimeoutError):  # at once, as a hurried hand would: the form may be closed
            description.click(timeout=20 + 100 * (step % 3), force=True)
        if desk.page.evaluate("!!document.activeElement.closest('#field-description')"):
            desk.page.keyboard.type(mark)
        if step % 2:
            desk.settle()
            if desk.box("field-name").input_value() != name:
                choose_in_header(desk, name)  # the choice before was answered late
            expect(desk.box("field-name")).to_have_value(name)
            desk.settle()
            description.press("End")
            description.press_sequentially("！")
    quiet(desk.page)
    after = desk.personas()
    assert set(after) == set(before), "a copy was made"
    for id_, persona in before.items():
        typed = after[id_].pop("description")
        assert after[id_] == {k: v for k, v in persona.items() if k != "description"}
        finished = [n for n in (names * 3)[1::2] if n == persona["name"]]
        assert typed.count("！") == len(finished), "what was typed is lost"
        assert persona["description"] in typed
        added = set(typed.replace(persona["description"], "", 1)) - {"！"}
        assert added <= {mark for mark, name in marks.items() if name == persona["name"]}


def choose_in_header(desk: Desk, name: str) -> None:
    """Opens a persona through the header's list without waiting for it to be open."""
    for _ in range(5):  # the list may change its order under the pointer
        desk.at("#who input").click()
        desk.at("#who [role=option]").filter(has_text=name).first.click()
        if name in desk.at("#who input").input_value():
            return
    raise AssertionError(f"{name} can't be chosen")


def quiet(page: Page) -> None:
    """Waits until the page has asked for nothing for half a second."""
    with suppress(Exception):
        page.wait_for_load_state("networkidle", timeout=5_000)
    page.evaluate(
        """() => new Promise((resolve) => {
          let last = performance.now();
          new PerformanceObserver(() => { last = performance.now(); })
            .observe({ entryTypes: ["resource"] });
          const timer = setInterval(() => {
            if (performance.now() - last > 600) { clearInterval(timer); resolve(); }
          }, 50);
        })"""
    )


@pytest.mark.core
def test_undo_steps_back_and_duplicate_copies(desk: Desk) -> None:
    agent = desk.make("もとの名前")
    desk.reload()
    desk.pick("#who", agent.name)
    expect(desk.box("field-name")).to_have_value("もとの名前")
    desk.settle()
    desk.box("field-name").fill("ちがう名前")
    expect(desk.at("#persona-head h2")).to_have_text("ちがう名前")
    desk.at("#persona-revert").click()
    expect(desk.box("field-name")).to_have_value("もとの名前")
    desk.settle()
    desk.at("#persona-duplicate").click()
    expect(desk.box("field-name")).to_have_value(desk.say("editor.copy_name", name="もとの名前"))
    assert len(desk.own()) == 2


def test_undo_goes_back_field_by_field_says_which_and_redo_comes_back(desk: Desk) -> None:
    agent = desk.make("もと", background="灯台で育った。")
    desk.reload()
    desk.pick("#who", agent.name)
    expect(desk.box("field-name")).to_have_value("もと")
    desk.settle()
    expect(desk.button("revert")).to_be_disabled()
    for field, text in (("name", "はなこ"), ("description", "一番"), ("background", "")):
        desk.box(f"field-{field}").fill(text)
        until(lambda f=field, t=text: getattr(desk.own()[0], f) == t)
    desk.box("try-message").fill("自分で書いたひとこと")

    def step(button: str, said: str, field: str, value: str) -> None:
        desk.button(button).click()
        told = desk.say(said, fields=desk.say(f"field.{field}"))
        expect(desk.at("#saved")).to_have_text(told)
        expect(desk.box(f"field-{field}")).to_have_value(value)
        desk.settle()

    step("revert", "editor.undone", "background", "灯台で育った。")
    step("revert", "editor.undone", "description", "")
    step("redo", "editor.redone", "description", "一番")
    step("revert", "editor.undone", "description", "")
    step("revert", "editor.undone", "name", "もと")
    expect(desk.button("revert")).to_be_disabled()
    step("redo", "editor.redone", "name", "はなこ")
    expect(desk.box("try-message")).to_have_value("自分で書いたひとこと")
    desk.box("field-name").fill("べつの人")  # from here on there is nothing to do again
    expect(desk.button("redo")).to_be_hidden()
    expect(desk.button("revert")).to_be_enabled()


def test_a_persona_is_chosen_by_keyboard_and_passing_the_chooser_does_nothing(desk: Desk) -> None:
    who = desk.at("#who input")
    who.click()
    desk.page.keyboard.type("さくら")
    desk.page.keyboard.press("Enter")
    expect(desk.box("field-name")).to_have_value("さくら")
    desk.settle()
    expect(who).to_be_focused()
    expect(desk.at(".options")).to_have_count(0)
    desk.page.evaluate(
        """() => new MutationObserver(() => { window.closed = true; })
          .observe(document.getElementById("editor-form"), { attributeFilter: ["inert"] })"""
    )
    who.focus()
    desk.page.keyboard.press("Tab")
    expect(desk.at("#model input")).to_be_focused()
    quiet(desk.page)
    assert not desk.page.evaluate("window.closed")


def test_a_list_closes_behind_the_focus_and_is_no_stop_on_the_way(desk: Desk) -> None:
    agent = desk.make("なにもない人")
    desk.reload()
    desk.pick("#who", agent.name)
    expect(desk.box("field-name")).to_have_value(agent.name)
    desk.settle()
    quiet(desk.page)  # an answer that comes late draws the header again
    desk.at("#who input").focus()
    for passed in ("who", "model"):
        expect(desk.at(f"#{passed} .options")).to_be_visible()
        desk.page.keyboard.press("Tab")
    expect(desk.at("#switches button").first).to_be_focused()
    quiet(desk.page)
    expect(desk.at(".options")).to_have_count(0)
    desk.box("field-personalities").focus()
    for passed, reached in pairwise(("personalities", "roles", "tones")):
        expect(desk.at(f"#field-{passed} .options")).to_be_visible()
        desk.page.keyboard.press("Tab")
        expect(desk.box(f"field-{reached}")).to_be_focused()
        expect(desk.at(f"#field-{passed} .options")).to_have_count(0)
    desk.page.keyboard.press("Escape")
    expect(desk.at(".options")).to_have_count(0)
    expect(desk.box("field-tones")).to_be_focused()


@pytest.mark.core
def test_a_new_persona_is_named_at_once_and_there_is_one_at_a_time(desk: Desk) -> None:
    for _ in range(2):
        desk.button("new").click()
        expect(desk.box("field-name")).to_have_value(desk.say("editor.new_name"))
        desk.settle()
        expect(desk.box("field-name")).to_be_focused()
    desk.page.keyboard.type("あたらしい人")  # the name was selected
    until(lambda: [a.name for a in desk.own()] == ["あたらしい人"])


@pytest.mark.core
def test_a_deleted_persona_comes_back_with_undo(desk: Desk) -> None:
    agent = desk.make("消える人", description="さっきまでいた")
    desk.reload()
    desk.pick("#who", agent.name)
    expect(desk.box("field-name")).to_have_value(agent.name)
    desk.settle()
    desk.at("#persona-delete").click()
    expect(desk.at("#saved")).to_contain_text(desk.say("editor.deleted", name=agent.name))
    expect(desk.box("field-name")).not_to_have_value(agent.name)
    assert desk.own() == []
    desk.at("#persona-restore").click()
    expect(desk.box("field-description")).to_have_value("さっきまでいた")
    assert [a.id for a in desk.own()] == [agent.id]
    expect(desk.at("#persona-restore")).to_be_hidden()


@pytest.mark.core
def test_a_persona_that_cannot_be_kept_says_so_and_loses_nothing(desk: Desk) -> None:
    agent = desk.make("名のある人")
    desk.reload()
    desk.pick("#who", agent.name)
    expect(desk.box("field-name")).to_have_value(agent.name)
    desk.settle()
    desk.box("field-name").fill("")
    expect(desk.at("#saved [role=alert]")).to_be_visible()
    expect(desk.at("#editor-form [aria-invalid=true]")).to_have_count(1)
    expect(desk.box("field-name")).to_have_attribute("aria-invalid", "true")
    desk.box("field-background").fill("灯台で育った。")
    expect(desk.preview).to_contain_text("灯台で育った。")
    desk.reload()
    expect(desk.box("field-background")).to_have_value("灯台で育った。")
    expect(desk.at("#saved [role=alert]")).to_be_visible()
    assert [(a.name, a.background) for a in desk.own()] == [("名のある人", "")]
    desk.box("field-name").fill("また名のある人")
    expect(desk.at("#saved")).to_contain_text(desk.say("editor.saved"))
    expect(desk.box("field-name")).to_have_attribute("aria-invalid", "false")
    until(lambda: [a.name for a in desk.own()] == ["また名のある人"])
    for name in ("", "また名のある人"):  # back to what is saved, the warning goes
        desk.box("field-name").fill(name)
        expect(desk.at("#saved [role=alert]")).to_have_count(0 if name else 1)


def test_editing_a_persona_that_was_deleted_in_another_tab_says_so_and_keeps_what_is_typed(
    desk: Desk,
) -> None:
    agent = desk.make("ふたつの窓")
    desk.reload()
    desk.pick("#who", agent.name)
    expect(desk.box("field-name")).to_have_value(agent.name)
    desk.settle()
    desk.store.delete_agent(agent.id, user_id=desk.user_id)
    desk.box("field-description").fill("消されたあとに書いた")
    expect(desk.at("#saved")).to_contain_text(desk.say("editor.deleted_elsewhere"))
    desk.at("#persona-restore").click()
    expect(desk.at("#persona-restore")).to_be_hidden()
    expect(desk.box("field-description")).to_have_value("消されたあとに書いた")
    assert [(a.id, a.description) for a in desk.own()] == [(agent.id, "消されたあとに書いた")]


@pytest.mark.core
def test_two_tabs_with_one_persona_keep_each_others_work(desk: Desk) -> None:
    agent = desk.make("ふたつの窓")
    desk.reload()
    desk.pick("#who", agent.name)
    expect(desk.box("field-name")).to_have_value(agent.name)
    desk.settle()
    first, second = desk.page, desk.context.new_page()
    desk.page = second
    desk.open()
    expect(desk.box("field-name")).to_have_value(agent.name)
    desk.box("field-description").fill("右の窓で書いた")
    until(lambda: desk.own()[0].description == "右の窓で書いた")
    desk.page = first
    desk.box("field-background").fill("左の窓で書いた")
    until(lambda: desk.own()[0].background == "左の窓で書いた")
    assert [(a.id, a.description) for a in desk.own()] == [(agent.id, "右の窓で書いた")]


@pytest.mark.core
def test_one_message_can_be_tried_without_a_conversation(desk: Desk) -> None:
    expect(desk.box("try-message")).not_to_have_value("")
    desk.at("#try-run").click()
    expect(desk.at("#tried .figures")).to_be_visible()
    expect(desk.at("#try-run")).to_be_visible()
    assert desk.messages() == []


def test_the_mark_says_saved_only_once_the_server_has_answered(desk: Desk) -> None:
    held: list[Any] = []
    desk.page.route("**/run/predict*", lambda route: held.append(route))
    desk.box("field-description").press("End")
    desk.page.keyboard.type("！")
    expect(desk.at("#saving")).to_have_text(re.compile(desk.say("editor.saving")))
    expect(desk.at("#saved")).to_be_hidden()
    # Playwright hands a request over only while it is asked for something.
    until(lambda: desk.page.wait_for_timeout(20) or held)
    expect(desk.at("#saved")).to_be_hidden()
    desk.page.unroute("**/run/predict*")  # lets go on what was held
    expect(desk.at("#saved")).to_have_text(desk.say("editor.saved"))
    expect(desk.at("#saving")).to_be_hidden()
    assert "！" in desk.own()[0].description


@pytest.mark.parametrize("language", ["ja", "en"])
def test_what_is_typed_while_the_server_is_gone_is_kept_and_saved_when_it_is_back(
    sit: Sit, language: str
) -> None:
    desk = sit(language)
    agent = desk.make("Ada")
    desk.reload()
    desk.pick("#who", agent.name)
    expect(desk.box("field-name")).to_have_value(agent.name)
    desk.settle()
    expect(desk.at("#lost")).to_be_hidden()
    desk.context.set_offline(True)
    desk.box("field-background").fill("灯台で育った。")
    expect(desk.at("#lost")).to_be_visible()
    assert desk.say("bar.lost") in desk.at("#lost").inner_text()
    expect(desk.at("#saving")).to_be_visible()
    desk.write("#field-tones", "小声")
    desk.box("field-description").fill("灯台守")
    assert desk.own()[0].background == ""
    # Another tab opens another persona meanwhile.
    desk.page.evaluate("id => localStorage.setItem('persona_lab.persona', id)", desk.demos()[0].id)
    desk.context.set_offline(False)
    expect(desk.at("#lost")).to_be_hidden()  # the page opens anew by itself
    desk.settle()
    expect(desk.box("field-background")).to_have_value("灯台で育った。")
    expect(desk.box("field-description")).to_have_value("灯台守")
    expect(desk.chips("tones")).to_have_text(["小声"])
    expect(desk.at("#saved")).to_have_text(desk.say("editor.saved"))
    until(lambda: not desk.page.evaluate("sessionStorage['persona_lab.unsaved'] || ''"))
    (kept,) = map(persona_of, desk.own())
    assert (kept["background"], kept["description"], kept["tones"]) == (
        "灯台で育った。", "灯台守", ["小声"],
    )  # fmt: skip


def test_a_house_without_demos_opens_on_a_new_persona(sit: Sit, tmp_path: Path) -> None:
    data = data_with(tmp_path, "models: [{provider: mock, name: echo}]")
    written = (data / "personas.yaml").read_text("utf-8")
    (data / "personas.yaml").write_text(
        yaml.safe_dump(yaml.safe_load(written) | {"personas": []}), "utf-8"
    )
    with serving(tmp_path, DATA_DIR=str(data)) as empty:
        desk = sit(at=empty)
        expect(desk.box("field-name")).to_have_value(desk.say("editor.new_name"))
        assert [agent.name for agent in desk.own()] == [desk.say("editor.new_name")]


def test_what_could_not_be_saved_is_there_again_when_its_persona_is(desk: Desk) -> None:
    agent = desk.make("Grace")
    desk.reload()
    desk.pick("#who", agent.name)
    expect(desk.box("field-name")).to_have_value(agent.name)
    desk.settle()
    desk.box("field-name").fill("")
    expect(desk.at("#saved [role=alert]")).to_be_visible()
    desk.box("field-background").fill("船の上で育った。")
    until(lambda: "船の上" in (desk.page.evaluate("sessionStorage['persona_lab.unsaved']") or ""))
    expect(desk.at("#saved [role=alert]")).to_be_visible()
    demo = desk.demos()[0].name
    desk.pick("#who", desk.say("persona.demo", name=demo))
    expect(desk.box("field-name")).to_have_value(demo)
    desk.settle()
    desk.pick("#who", agent.name)
    expect(desk.box("field-background")).to_have_value("船の上で育った。")
    expect(desk.box("field-name")).to_have_value("")
    expect(desk.at("#saved [role=alert]")).to_be_visible()
    desk.settle()
    desk.box("field-name").fill("Hopper")
    expect(desk.at("#saved")).to_have_text(desk.say("editor.saved"))
    until(lambda: not desk.page.evaluate("sessionStorage['persona_lab.unsaved'] || ''"))
    assert [(a.name, a.background) for a in desk.own()] == [("Hopper", "船の上で育った。")]


def test_a_full_storage_of_the_browser_keeps_nothing_from_being_saved(desk: Desk) -> None:
    desk.page.evaluate(
        """() => {
          for (let size = 1 << 22, n = 0; size >= 1; n++)
            try { sessionStorage.setItem(`full${n}`, "x".repeat(size)); } catch { size >>= 1; }
        }"""
    )
    desk.box("field-description").fill("満杯でも残る")
    until(lambda: [agent.description for agent in desk.own()] == ["満杯でも残る"])
    expect(desk.at("#saved")).to_have_text(desk.say("editor.saved"))


def test_a_copy_whose_making_the_page_did_not_hear_of_is_not_made_twice(desk: Desk) -> None:
    demo = desk.box("editing").input_value()
    text = desk.box("field-description").input_value() + "！"
    desk.box("field-description").fill(text)
    until(lambda: [a.description for a in desk.own()] == [text])
    expect(desk.at("#saved")).to_have_text(desk.say("editor.saved"))
    desk.page.evaluate(
        "unsaved => sessionStorage.setItem('persona_lab.unsaved', unsaved)",
        json.dumps({demo: {"description": text}}),
    )
    desk.reload()
    expect(desk.box("field-description")).to_have_value(text)
    until(lambda: not desk.page.evaluate("sessionStorage['persona_lab.unsaved'] || ''"))
    assert [a.id for a in desk.own()] == [desk.box("editing").input_value()]


def test_a_model_that_is_in_no_list_is_still_chosen_after_a_reload(desk: Desk) -> None:
    desk.use("mock:echo?rate=70")
    desk.reload()
    expect(desk.at("#model input").first).to_have_value("mock:echo?rate=70")


def test_a_chat_goes_on_though_its_demo_was_changed_in_another_tab(desk: Desk) -> None:
    desk.tab("chat")
    desk.send("一つめ")
    desk.answered(1)
    (chat,) = desk.store.list_chats(user_id=desk.user_id)
    desk.store.update_agent(chat.agent_id, user_id=desk.user_id, description="別の窓で変えた")
    desk.send("二つめ")
    desk.answered(2)
    assert [m.content for m in desk.messages() if m.sender == "user"] == ["一つめ", "二つめ"]


def test_the_preview_keeps_in_sight_what_is_being_edited(desk: Desk) -> None:
    desk.at("#fold-voice button.label-wrap").click()
    for field in ("greeting", "background"):
        desk.box(f"field-{field}").fill(f"{field}の新しい言葉")
        expect(desk.preview).to_contain_text(f"{field}の新しい言葉")
        until(
            lambda field=field: desk.page.evaluate(
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


def test_the_prompt_takes_the_windows_height_and_shows_that_it_goes_on(desk: Desk) -> None:
    at_foot = """() => {
      const tried = document.getElementById("prompt-side").getBoundingClientRect();
      return Math.abs(window.innerHeight - 16 - tried.bottom) < 3;
    }"""
    desk.page.wait_for_function(at_foot)
    paper = desk.at("#prompt-preview .paper")
    expect(paper).to_have_class(re.compile("goes-on"))
    desk.page.evaluate("window.scrollTo(0, 300)")
    desk.page.wait_for_function(at_foot)
    paper.evaluate("element => element.scrollTo(0, element.scrollHeight)")
    expect(paper).not_to_have_class(re.compile("goes-on"))


def test_a_list_of_chips_opens_downwards_where_there_is_room(desk: Desk) -> None:
    field = desk.at("#field-tones")
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
    expect(desk.chips("tones")).to_have_count(2)


# ── talking ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.core
def test_two_turns_an_unsent_text_and_the_persona_are_there_again_after_a_reload(
    desk: Desk,
) -> None:
    desk.pick("#who", desk.say("persona.demo", name=desk.demos()[2].name))
    expect(desk.box("field-name")).to_have_value(desk.demos()[2].name)
    desk.tab("chat")
    for count, text in enumerate(("一つめの話", "二つめの話"), 1):
        desk.send(text)
        expect(desk.box("chat-message")).to_have_value("")
        desk.answered(count)
    desk.box("chat-message").fill("まだ送っていない")
    said = desk.at("#thread [data-testid=user]").all_inner_texts()
    assert said == ["一つめの話", "二つめの話"]
    desk.reload()
    desk.tab("chat")
    desk.answered(2)
    assert desk.at("#thread [data-testid=user]").all_inner_texts() == said
    expect(desk.box("chat-message")).to_have_value("まだ送っていない")
    expect(desk.box("field-name")).to_have_value(desk.demos()[2].name)
    assert [m.sender for m in desk.messages()] == ["user", "ai", "user", "ai"]


def test_what_was_sent_is_shown_to_the_letter(desk: Desk) -> None:
    desk.tab("chat")
    desk.send("やあ")
    desk.answered(1)
    desk.at("#thread summary").click()
    shown = desk.page.evaluate(
        "[...document.querySelectorAll('#thread details pre')].map((each) => each.textContent)"
    )
    assert shown == [desk.messages()[-1].details["prompt"], "やあ"]


@pytest.mark.core
def test_stopping_in_mid_answer_keeps_the_half_marked(desk: Desk) -> None:
    desk.use(SLOW)
    desk.tab("chat")
    desk.send("長い話をして")
    expect(desk.answers().last).to_contain_text("練習用")
    desk.at("#chat-stop").click()
    expect(desk.answers().last).to_contain_text(desk.say("chat.status.stopped"))
    expect(desk.at("#chat-send")).to_be_visible()
    kept = desk.messages()[-1]
    assert (kept.sender, kept.status) == ("ai", "stopped")
    assert "練習用" in kept.content
    desk.reload()
    desk.tab("chat")
    expect(desk.answers().last).to_contain_text(desk.say("chat.status.stopped"))
    expect(desk.answers().last).to_contain_text(kept.content[:10])


def test_a_long_wait_says_what_for_and_how_long_and_a_stop_leaves_a_word(desk: Desk) -> None:
    desk.use(MUTE)
    desk.tab("chat")
    desk.send("だまっている人へ")
    waiting = desk.at("#thread .waiting")
    expect(waiting).to_have_text(desk.say("waiting.answer"))
    desk.page.wait_for_function(
        "() => /2秒/.test(getComputedStyle(document.querySelector('#thread .waiting'),"
        " '::after').content)"
    )
    desk.at("#chat-stop").click()
    expect(desk.answers().last).to_have_text(desk.say("chat.status.unanswered"))
    expect(waiting).to_have_count(0)
    desk.use(ECHO)
    desk.at("#chat-again").click()
    desk.answered(1)
    expect(desk.at("#thread")).not_to_contain_text(desk.say("chat.status.unanswered"))


@pytest.mark.core
def test_another_answer_takes_the_place_of_the_last(desk: Desk) -> None:
    desk.tab("chat")
    desk.send("やあ")
    desk.answered(1)
    first = desk.messages()[-1]
    desk.at("#chat-again").click()
    until(lambda: desk.messages()[-1].id != first.id and desk.messages()[-1].status == "ok")
    desk.answered(1)
    assert [m.sender for m in desk.messages()] == ["user", "ai"]


def test_ones_own_message_comes_into_sight_and_a_reader_is_left_where_they_are(desk: Desk) -> None:
    desk.use(ECHO)
    desk.tab("chat")
    for number in range(2):
        desk.send("長い話" * 150)
        desk.answered(number + 1)
    thread = desk.at("#thread .bubble-wrap")
    rest = "thread => thread.scrollHeight - thread.scrollTop - thread.clientHeight"
    until(lambda: thread.evaluate(rest) < 2)
    thread.evaluate("thread => thread.scrollTo(0, 0)")
    desk.send("ここにいます")
    expect(desk.at("#thread [data-testid=user]").last).to_be_in_viewport()
    desk.answered(3)
    expect(desk.answers().last).to_be_in_viewport()
    thread.evaluate("thread => thread.scrollTo(0, 0)")
    desk.use(SLOW)
    desk.at("#chat-again").click()
    expect(desk.answers().last).to_contain_text("練習用")
    expect(desk.answers().last).to_be_in_viewport()
    thread.hover()
    desk.page.mouse.wheel(0, -300)
    until(lambda: thread.evaluate(rest) > 200)
    length = len(desk.answers().last.inner_text())
    stood = thread.evaluate("thread => thread.scrollTop")
    until(lambda: len(desk.answers().last.inner_text()) > length + 20)
    assert thread.evaluate("thread => thread.scrollTop") == stood


def test_the_focus_goes_on_where_a_button_that_was_used_has_gone(desk: Desk) -> None:
    def use(button: str, then: str) -> None:
        desk.at(f"#{button}").focus()
        desk.page.keyboard.press("Enter")
        there = desk.at(f"#{then} textarea, #{then} input, button#{then}").first
        expect(there).to_be_focused()

    desk.use(SLOW)
    use("try-run", "try-message")
    use("try-stop", "try-message")
    desk.tab("chat")
    desk.send("長い話をして")
    expect(desk.answers().last).to_contain_text("練習用")
    use("chat-stop", "chat-message")
    expect(desk.at("#chat-again")).to_be_visible()
    use("chat-again", "chat-message")
    use("chat-stop", "chat-message")
    expect(desk.at("#chat-delete")).to_be_visible()
    use("chat-delete", "chat-undo")
    use("chat-undo", "chat-message")
    desk.tab("compare")
    desk.write("#column-0", SLOW)
    use("compare-run", "compare-message")
    use("compare-stop", "compare-message")
    expect(desk.at("#column-1-remove")).to_be_visible()
    use("column-1-remove", "compare-add")
    desk.tab("connect")
    desk.box("key-openai").fill("sk-visitors-own-0123456789")
    desk.box("key-openai").press("Enter")
    expect(desk.at("#key-openai-forget")).to_be_visible()
    use("key-openai-forget", "key-openai")
    for _ in range(2):
        desk.at("#token-make").click()
        expect(desk.at("#token-made code")).to_be_visible()
    expect(desk.at("#token-list label")).to_have_count(2)
    for then in ("token-list", "token-name"):
        desk.at("#token-list label").first.click()
        expect(desk.at("#token-revoke")).to_be_enabled()
        desk.at("#token-revoke").press("Enter")
        expect(desk.at("#token-revoke")).to_contain_text(desk.say("connect.revoke_sure"))
        use("token-revoke", then)


def test_after_a_persona_was_deleted_the_focus_stands_on_undo(desk: Desk) -> None:
    for name in ("ひとりめ", "ふたりめ"):
        desk.make(name)
    desk.reload()
    desk.pick("#who", "ひとりめ")
    expect(desk.box("field-name")).to_have_value("ひとりめ")
    desk.settle()
    desk.at("#persona-delete").focus()
    desk.page.keyboard.press("Enter")
    expect(desk.at("#persona-restore")).to_be_focused()
    desk.page.keyboard.press("Enter")
    expect(desk.box("field-name")).to_have_value("ひとりめ")
    expect(desk.box("field-name")).to_be_focused()


@pytest.mark.core
def test_a_deleted_conversation_comes_back_with_undo(desk: Desk) -> None:
    desk.tab("chat")
    desk.send("消える話")
    desk.answered(1)
    desk.at("#chat-delete").click()
    expect(desk.at("#thread")).not_to_contain_text("消える話")
    assert desk.messages() == []
    desk.at("#chat-undo").click()
    expect(desk.at("#thread")).to_contain_text("消える話")
    assert [m.content for m in desk.messages()][:1] == ["消える話"]


@pytest.mark.core
def test_a_conversation_begins_with_the_greeting_and_it_stays(desk: Desk) -> None:
    greeting = desk.demos()[0].greeting
    desk.tab("chat")
    expect(desk.answers()).to_have_text([greeting])
    desk.send("やあ")
    desk.answered(1)
    expect(desk.answers().first).to_have_text(greeting)
    desk.reload()
    desk.tab("chat")
    desk.answered(1)
    expect(desk.answers().first).to_have_text(greeting)


def test_what_is_typed_right_after_sending_stays_in_the_box(desk: Desk) -> None:
    desk.tab("chat")
    message = desk.box("chat-message")
    drafts = ("次に言うこと", "その次", "three", "four letters", "その次の次")
    for turn, (draft, delay) in enumerate(zip(drafts, (15, 0, 40, 5, 25), strict=True), start=1):
        message.fill("はい")  # the same words again are news, too
        message.press("Enter")
        message.press_sequentially(draft, delay=delay)
        expect(desk.at("#thread [data-testid=user]")).to_have_count(turn)
        # Gradio reads the box a moment after Enter: a letter of that moment goes along.
        said = desk.at("#thread [data-testid=user]").last.inner_text().strip()
        left = f"はい{draft}".removeprefix(said)
        assert len(left) >= len(draft) - 1
        expect(message).to_have_value(left)
        desk.answered(turn)
        expect(message).to_have_value(left)
    desk.reload()
    expect(message).to_have_value(left)


@pytest.mark.core
def test_past_conversations_can_be_opened_again(desk: Desk) -> None:
    desk.tab("chat")
    for text in ("春の話", "秋の話"):
        desk.at("#chat-new").click()
        expect(desk.at("#thread [data-testid=user]")).to_have_count(0)
        desk.send(text)
        desk.answered(1)
    desk.at("#chat-list label").filter(has_text="春の話").click()
    expect(desk.at("#thread")).to_contain_text("春の話")
    expect(desk.at("#thread")).not_to_contain_text("秋の話")
    desk.send("続き")
    expect(desk.at("#thread [data-testid=user]")).to_have_text(["春の話", "続き"])


def test_talking_to_a_persona_that_was_deleted_in_another_tab_says_so_and_keeps_the_text(
    desk: Desk,
) -> None:
    agent = desk.make("いない人")
    desk.reload()
    desk.pick("#who", agent.name)
    expect(desk.box("field-name")).to_have_value(agent.name)
    desk.tab("chat")
    desk.store.delete_agent(agent.id, user_id=desk.user_id)
    desk.send("だいじな話")
    expect(desk.toast).to_have_text(desk.excuse("not_found"))
    text = desk.box("chat-message").input_value()
    assert "だいじな話" in (text, *[m.content for m in desk.messages()])


# ── Enter while composing ─────────────────────────────────────────────────────────────────


@pytest.mark.core
def test_enter_while_composing_sends_nothing_and_the_enter_after_it_does(desk: Desk) -> None:
    ime = Ime(desk.page)
    boxes = (("persona", "try"), ("compare", "compare"), ("chat", "chat"))
    for number, (tab, box) in enumerate(boxes):
        desk.tab(tab)
        message = desk.box(f"{box}-message")
        message.fill("")
        message.focus()
        ime.compose("にほんご")
        ime.enter()
        ime.decide("日本語で話そう")
        expect(message).to_have_value("日本語で話そう")
        kinds = [r.kind for r in desk.store.records(user_id=desk.user_id)]
        assert "".join(kinds) == "".join(["try", "compare" * 2][:number]), f"{box} was sent"
        desk.page.keyboard.press("Enter")
        if box == "try":
            expect(desk.at("#tried .figures")).to_be_visible()
        elif box == "compare":
            for column in (0, 1):
                expect(desk.at(f"#column-{column} .figures span").first).to_be_visible()
        else:
            desk.answered(1)
    assert [m.content for m in desk.messages() if m.sender == "user"] == ["日本語で話そう"]


def test_enter_while_composing_makes_no_chip(desk: Desk) -> None:
    agent = desk.make("札のない人")
    desk.reload()
    desk.pick("#who", agent.name)
    expect(desk.box("field-name")).to_have_value(agent.name)
    desk.settle()
    desk.at("#field-roles input").click()
    ime = Ime(desk.page)
    ime.compose("かんごし")
    ime.enter()
    ime.decide("看護師")
    desk.page.keyboard.press("Enter")
    expect(desk.chips("roles")).to_have_text(["看護師"])
    until(lambda: [persona_of(a)["roles"] for a in desk.own()] == [["看護師"]])


# ── comparing ─────────────────────────────────────────────────────────────────────────────

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


def test_four_columns_of_two_local_models_answer_side_by_side_at_the_same_time(sit: Sit) -> None:
    desk = sit("en")  # whose demos take a model of English a fifth of the tokens
    desk.tab("compare")
    for column, model in enumerate((GEMMA, SMOLLM, GEMMA, SMOLLM)):
        if column > 1:
            desk.at("#compare-add").click()
        expect(desk.at(f"#column-{column}")).to_be_visible()
        desk.write(f"#column-{column}", model)
    message = "Please tell me, step by step and in detail, how you spend a whole day."
    for _ in range(2):  # the first run loads the models, which may take them unlike times
        desk.box("compare-message").fill(message)
        desk.page.evaluate(WATCH)
        desk.at("#compare-run").click()
        expect(desk.at("#compare-stop")).to_be_visible()
        for column in range(4):
            expect(desk.at(f"#column-{column} .figures span").first).to_be_visible(timeout=90_000)
        expect(desk.at("#compare-run")).to_be_visible(timeout=90_000)
    growth = desk.page.evaluate("window.growth")
    assert all(len(seen) > 1 for seen in growth), "every column grew in pieces"
    ended, begun = min(seen[-1]["at"] for seen in growth), max(seen[0]["at"] for seen in growth)
    assert ended > begun, "one waited for another"
    kinds = [(r.kind, r.status, r.provider) for r in desk.store.records(user_id=desk.user_id)]
    assert kinds == [("compare", "ok", "local")] * 8


def test_a_slow_browser_gets_the_last_words_and_figures_too(desk: Desk) -> None:
    desk.tab("compare")
    for column, model in enumerate((f"{ECHO}?rate=50&tokens=10", f"{ECHO}?rate=50&tokens=40")):
        desk.write(f"#column-{column}", model)
    slow = desk.context.new_cdp_session(desk.page)
    slow.send("Emulation.setCPUThrottlingRate", {"rate": 8})
    for number in range(2):
        desk.box("compare-message").fill(f"{number}回目")
        desk.at("#compare-run").click()
        expect(desk.at("#compare-stop")).to_be_visible()
        expect(desk.at("#compare-run")).to_be_visible()
        for column in (0, 1):
            expect(desk.at(f"#column-{column} .figures span").first).to_be_visible(timeout=5_000)
            expect(desk.column(column)).to_contain_text(f"「{number}回目」")


@pytest.mark.core
def test_columns_can_be_added_asked_again_and_taken_away(desk: Desk) -> None:
    desk.tab("compare")
    desk.at("#compare-add").click()
    expect(desk.at("#column-2")).to_be_visible()
    personas = [desk.at(f"#column-{n} .choosers input").nth(1) for n in range(3)]
    there = " ".join(persona.input_value() for persona in personas[:2])
    assert personas[2].input_value().partition("（")[0] not in there
    for column in range(3):
        desk.write(f"#column-{column}", ECHO)
    desk.box("compare-message").fill("三人に")
    desk.at("#compare-run").click()
    for column in range(3):
        expect(desk.column(column)).to_contain_text("「三人に」")
    desk.box("compare-message").fill("ひとりに")
    desk.at("#column-1 button.again").click()
    expect(desk.column(1)).to_contain_text("「ひとりに」")
    expect(desk.column(0)).to_contain_text("「三人に」")
    kept = [personas[n].input_value() for n in (1, 2)]
    expect(desk.at("#column-1-remove")).to_be_visible()
    desk.at("#column-0-remove").click()
    expect(desk.at("#column-2")).to_be_hidden()
    expect(desk.column(0)).to_contain_text("「ひとりに」")
    expect(desk.column(1)).to_contain_text("「三人に」")
    assert [persona.input_value() for persona in personas[:2]] == kept
    desk.at("#column-1-remove").click()
    expect(desk.at("#column-1")).to_be_hidden()
    expect(desk.at("#column-0-remove")).to_be_hidden()


@pytest.mark.parametrize("language", CORE_IN_JAPANESE)
def test_a_column_that_fails_says_why_and_the_other_answers(sit: Sit, language: str) -> None:
    desk = sit(language)
    desk.tab("compare")
    desk.write("#column-0", "nobody:x")
    desk.write("#column-1", ECHO)
    desk.box("compare-message").fill("hello")
    desk.at("#compare-run").click()
    expect(desk.at("#column-0 [role=alert]")).to_have_text(
        desk.excuse("unknown_model", model="nobody:x")
    )
    expect(desk.at("#column-0 .figures")).to_have_count(0)
    expect(desk.column(1)).to_contain_text("hello")
    desk.write("#column-0", "openai:gpt-x")
    desk.at("#compare-run").click()
    expect(desk.at("#column-0 [role=alert]")).to_have_text(
        desk.excuse("missing_key", variable="OPENAI_API_KEY")
    )
    expect(desk.at("#column-0")).not_to_contain_text(desk.say("figures.free"))
    expect(desk.at("#column-0")).not_to_contain_text("入力0")
    expect(desk.box("compare-message")).to_have_value("hello")


def test_an_empty_box_compares_with_the_suggestion_that_stands_in_it(desk: Desk) -> None:
    desk.tab("compare")
    for column in (0, 1):
        desk.write(f"#column-{column}", ECHO)
    desk.at("#compare-run").click()
    for column in (0, 1):
        expect(desk.column(column)).to_contain_text(desk.say("compare.message_hint"))
    expect(desk.box("compare-message")).to_have_value(desk.say("compare.message_hint"))


def test_an_empty_box_begins_a_chat_with_the_suggestion_and_then_sends_nothing(desk: Desk) -> None:
    desk.tab("chat")
    suggestion = desk.say("compare.message_hint")
    hint = desk.say("chat.first_hint")
    assert suggestion in hint
    expect(desk.box("chat-message")).to_have_attribute("placeholder", hint)
    desk.at("#chat-send").click()
    desk.answered(1)
    expect(desk.at("#thread [data-testid=user]")).to_have_text([suggestion])
    expect(desk.box("chat-message")).to_have_attribute("placeholder", desk.say("chat.message_hint"))
    desk.at("#chat-send").click()
    expect(desk.toast).to_have_text(desk.excuse("empty_message"))
    assert len(desk.messages()) == 2


def test_every_column_names_its_persona_from_the_first_and_after_another_is_opened(
    desk: Desk,
) -> None:
    desk.tab("compare")
    chosen = desk.at("#column-0 .choosers input").nth(1)
    for name in ("みさき", "さくら"):
        if name == "さくら":
            choose_in_header(desk, name)
        expect(chosen).to_have_value(desk.say("compare.current", name=name))
    desk.reload()
    desk.tab("compare")
    expect(chosen).to_have_value(desk.say("compare.current", name="さくら"))


@pytest.mark.parametrize("width", [1024, 1280, 1440])
def test_four_columns_lie_in_one_row_or_two_by_two(sit: Sit, width: int) -> None:
    desk = sit("ja", width=width)
    desk.tab("compare")
    for number in (2, 3):
        desk.at("#compare-add").click()
        expect(desk.at(f"#column-{number}")).to_be_visible()
    boxes = [desk.at(f"#column-{number}").bounding_box() for number in range(4)]
    rows = Counter(round(box["y"]) for box in boxes if box)
    assert list(rows.values()) in ([4], [2, 2])


@pytest.mark.core
def test_stopping_a_comparison_keeps_what_had_come(desk: Desk) -> None:
    desk.tab("compare")
    desk.write("#column-0", SLOW)
    desk.write("#column-1", SLOW)
    desk.box("compare-message").fill("長く")
    desk.at("#compare-run").click()
    expect(desk.column(1)).to_contain_text("練習用")
    desk.at("#compare-stop").click()
    expect(desk.at("#compare-run")).to_be_visible()
    expect(desk.column(1)).to_contain_text("練習用")
    until(lambda: [r.status for r in desk.store.records(user_id=desk.user_id)] == ["stopped"] * 2)


# ── insights ──────────────────────────────────────────────────────────────────────────────


def number(desk: Desk, name: str) -> Locator:
    """One of the four figures."""
    return desk.at(f"#insights-board .number-{name} .figure")


@pytest.mark.parametrize("language", CORE_IN_JAPANESE)
def test_a_new_visitor_is_told_what_to_do_and_sees_their_first_answer_on_reopening(
    sit: Sit, language: str
) -> None:
    desk = sit(language)
    desk.tab("insights")
    expect(desk.at("#insights-board .empty")).to_have_text(desk.say("insights.empty"))
    desk.tab("chat")
    desk.send("やあ")
    desk.answered(1)
    desk.tab("insights")
    expect(number(desk, "answers")).to_have_text("1")
    expect(number(desk, "errors")).to_have_text("0.0%")
    expect(number(desk, "cost")).to_have_text(desk.say("figures.free"))
    desk.record(9)
    desk.at("#insights-again").click()
    expect(number(desk, "answers")).to_have_text("10")


def test_a_span_is_chosen_with_the_keyboard_and_days_are_the_visitors(sit: Sit) -> None:
    desk = sit("ja", zone="Pacific/Kiritimati")
    desk.record(3, created_at=now() - timedelta(days=20))
    desk.tab("insights")
    expect(desk.at("#insights-board .empty")).to_have_text(desk.say("insights.empty_span"))
    expect(desk.at("#insights-board .as-of")).to_contain_text("Pacific/Kiritimati")
    desk.at("#insights-span input:checked").focus()
    desk.page.keyboard.press("ArrowRight")
    expect(number(desk, "answers")).to_have_text("3")
    desk.page.keyboard.press("ArrowLeft")
    expect(desk.at("#insights-board .empty")).to_be_visible()


def test_points_of_a_chart_tell_their_figures_and_a_name_is_no_html(desk: Desk) -> None:
    trick = "<img src=x onerror=\"document.title='got'\">"
    desk.record(20, name=trick, created_at=now())
    desk.tab("insights")
    expect(desk.at("#insights-board svg.chart")).to_have_count(4)
    titles = desk.at("#insights-board svg.over-time").first.locator("title").all_text_contents()
    assert len(titles) == 7
    month, day = PAGE("insights.months", "ja").split(), now().astimezone()
    at = desk.say("insights.at.day", year=day.year, month=month[day.month - 1], day=day.day, hour=0)
    assert titles[-1] == desk.say("insights.answers_at", at=at, answers="20", errors="2")
    expect(
        desk.at(
            "#insights-board th[scope=row]",
        ).filter(has_text=trick)
    ).to_have_count(1)
    assert desk.at("#insights-board img").count() == 0
    assert desk.page.title() == "Persona Lab"


@pytest.mark.parametrize("language", CORE_IN_JAPANESE)
def test_ones_own_turns_are_saved_as_a_file_that_excel_reads(sit: Sit, language: str) -> None:
    desk, other = sit(language, zone="Asia/Tokyo"), sit(language)
    other.record(5, name="よその人")
    desk.record(12, name="=HYPERLINK(1)")
    desk.tab("insights")
    expect(number(desk, "answers")).to_have_text("12")
    with desk.page.expect_download() as saving:
        desk.at("#insights-save").click()
    file = saving.value
    today = desk.page.evaluate("new Date().toLocaleDateString('sv')")
    assert file.suggested_filename == f"persona-lab-{today}.csv"
    text = Path(file.path()).read_bytes().decode("utf-8")
    assert text.startswith("\ufeff")
    head, *lines = csv.reader(text.removeprefix("\ufeff").splitlines())
    assert head[2] == desk.say("sheet.persona")
    assert len(lines) == 12
    assert {line[2] for line in lines} == {"'=HYPERLINK(1)"}
    assert all(line[0].endswith("+09:00") for line in lines)
    until(lambda: desk.box("insights-sheet").input_value() == "")


def test_an_alert_marks_the_insights_tab_from_every_tab(sit: Sit, tmp_path: Path) -> None:
    troubled = {"LLM_MODEL": "echo?fail=overloaded", "ALERT_MIN_TURNS": "1", "LLM_RETRIES": "0"}
    with serving(tmp_path, **troubled) as app:
        desk, other = sit(at=app), sit("en", at=app)
        mark = "getComputedStyle(document.getElementById('insights-button'), '::before').content"
        assert desk.page.evaluate(mark) == "none"
        desk.tab("chat")
        desk.send("やあ")
        for each in (desk, other):
            expect(each.at("#watch")).to_contain_text(each.say("insights.alerts_stand"))
            assert each.page.evaluate(mark) == '""'
        other.tab("insights")
        expect(other.at("#insights-alerts")).to_contain_text(other.say("insights.alerts_about"))
        expect(other.at("#insights-board .empty")).to_be_visible()


def test_a_long_name_in_a_chart_ends_where_its_figure_begins(sit: Sit) -> None:
    desk = sit(width=390)
    desk.record(9, model="m" * 120)
    desk.tab("insights")
    words = desk.at("#insights-board .words").first.locator("span")
    expect(words).to_have_count(2)
    name, value = words.all()
    ends, begins = (box.bounding_box() or {} for box in (name, value))
    assert ends["x"] + ends["width"] <= begins["x"]
    assert name.evaluate("name => name.scrollWidth > name.clientWidth")


# ── bad input ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("language", CORE_IN_JAPANESE)
def test_a_message_that_cannot_be_sent_is_refused_and_stays_in_its_box(
    sit: Sit, language: str
) -> None:
    desk = sit(language)
    too_long = desk.excuse("message_too_long", length=100_000, limit=2000)
    for tab, box in (("persona", "try"), ("compare", "compare"), ("chat", "chat")):
        desk.tab(tab)
        for text, words in (("  ", desk.excuse("empty_message")), ("長" * 100_000, too_long)):
            desk.box(f"{box}-message").fill(text)
            desk.box(f"{box}-message").press("Enter")
            if box == "try":  # it has a place for it
                expect(desk.at("#tried .warning")).to_have_text(words)
            else:
                expect(desk.toast).to_have_text(words)
                desk.at("[data-testid=toast-close]").first.click()
                expect(desk.at("[data-testid=toast-text]")).to_have_count(0)
            assert desk.box(f"{box}-message").input_value() == text
    assert desk.messages() == []
    assert desk.store.records(user_id=desk.user_id) == []


@pytest.mark.parametrize("language", ["ja", "en"])
def test_an_unknown_model_is_refused_and_the_message_is_kept(sit: Sit, language: str) -> None:
    desk = sit(language)
    desk.write("#model", "nobody:x")
    expect(desk.at("#ready")).to_contain_text(desk.say("model.state.failed"))
    desk.tab("chat")
    desk.send("大切な話")
    expect(desk.toast).to_have_text(desk.excuse("unknown_model", model="nobody:x"))
    kept = [m.content for m in desk.messages()]
    assert "大切な話" in (desk.box("chat-message").input_value(), *kept)


def test_a_model_without_its_key_answers_with_an_excuse_and_the_message_is_kept(
    desk: Desk,
) -> None:
    desk.write("#model", "openai:gpt-x")
    expect(desk.at("#ready")).to_contain_text(desk.say("model.state.needs_key"))
    desk.tab("chat")
    desk.send("大切な話")
    desk.answered(1)
    expect(desk.answers().last).to_contain_text("OPENAI_API_KEY")
    expect(desk.at("#thread .under.failed")).to_be_visible()
    assert next(m.content for m in desk.messages()) == "大切な話"


@pytest.mark.core
def test_what_a_persona_or_a_model_says_is_never_run_as_html(desk: Desk) -> None:
    trick = "<img src=x onerror=\"document.title='got'\"><script>document.title='got'</script>"
    desk.box("field-name").fill(trick[:90])
    desk.box("field-background").fill(trick)
    expect(desk.preview).to_contain_text("<script>")
    desk.box("try-message").fill(trick)
    desk.at("#try-run").click()
    expect(desk.at("#tried .figures")).to_be_visible()
    desk.tab("compare")
    desk.write("#column-0", ECHO)
    desk.box("compare-message").fill(trick)
    desk.at("#compare-run").click()
    expect(desk.at("#column-0 .figures span").first).to_be_visible()
    desk.tab("chat")
    desk.send(trick)
    desk.answered(1)
    desk.at("#thread summary").click()
    for place in ("#persona-head", "#prompt-preview", "#tried", "#column-0", "#thread", "#who"):
        assert desk.at(f"{place} img[src=x], {place} script").count() == 0, place
    assert desk.page.title() == "Persona Lab"


def test_an_answer_cannot_make_the_browser_fetch_anything(desk: Desk) -> None:
    traps = (
        "![x](http://203.0.113.1/x.png)",
        "`x\n` <img src=http://203.0.113.1/x.png> `y`",
        "<img src=http://203.0.113.1/x.png>",
        "[x]: http://203.0.113.1/x.png\n\n![x]",
    )
    desk.tab("compare")
    desk.write("#column-0", ECHO)
    for number, trap in enumerate(traps, 1):
        desk.tab("compare")
        desk.box("compare-message").fill(trap)
        desk.at("#compare-run").click()
        expect(desk.column(0)).to_contain_text("practice")
        desk.tab("chat")
        desk.send(trap)
        desk.answered(number)
        assert desk.at("#thread img, #column-0 img").count() == 0, trap


# ── connecting ────────────────────────────────────────────────────────────────────────────


@pytest.mark.core
def test_an_own_key_is_used_on_its_page_alone_and_gone_after_a_reload(
    sit: Sit, tmp_path: Path, httpserver: HTTPServer
) -> None:
    shown: list[str] = []

    def answer(request: Request) -> Response:
        shown.append(request.headers["Authorization"].removeprefix("Bearer "))
        wrong = {"error": {"message": "no", "type": "x", "code": "invalid_api_key"}}
        return Response(json.dumps(wrong), 401, content_type="application/json")

    httpserver.expect_request("/v1/chat/completions").respond_with_handler(answer)
    key = "sk-visitors-own-0123456789"
    with serving(tmp_path, OPENAI_BASE_URL=httpserver.url_for("/v1")) as app:
        desk, other = sit(at=app), sit(at=app)
        desk.tab("connect")
        state = desk.at("#key-openai-state")
        expect(state).to_contain_text(desk.say("connect.key_state.none"))
        desk.box("key-openai").fill(key)
        desk.box("key-openai").press("Enter")
        expect(state).to_contain_text(desk.say("connect.key_state.own"))
        expect(desk.box("key-openai")).to_have_value("")
        for page in (desk, other):
            page.tab("compare")
            page.write("#column-0", "openai:somebodys-model")
            page.box("compare-message").fill("やあ")
            page.at("#compare-run").click()
            expect(page.at("#column-0 [role=alert]")).to_be_visible()
        assert shown[0] == key
        assert key not in shown[1:]
        assert len(shown) == 2
        assert key not in desk.page.content()
        storage = desk.page.evaluate("JSON.stringify([localStorage, sessionStorage])")
        assert key not in storage
        desk.reload()
        desk.tab("connect")
        expect(state).to_contain_text(desk.say("connect.key_state.none"))
        wrong = state.locator("[role=alert]")
        for written, words in (("これは鍵ではない", "no_key"), ("", "empty_key")):
            desk.box("key-openai").fill(written)
            desk.at("#key-openai-use").click()
            expect(wrong).to_have_text(desk.say(f"connect.{words}"))
        desk.box("key-openai").fill(key)
        desk.at("#key-openai-use").click()
        expect(state).to_contain_text(desk.say("connect.key_state.own"))
        expect(wrong).to_have_count(0)
        assert key not in app.log
    assert all(key.encode() not in file.read_bytes() for file in tmp_path.iterdir())


@pytest.mark.core
def test_a_token_is_made_shown_once_used_by_a_program_and_revoked(desk: Desk) -> None:
    desk.tab("connect")
    desk.box("token-name").fill("案内ボット")
    desk.at("#token-make").click()
    token = desk.at("#token-made code").inner_text()
    about = {"Authorization": f"Bearer {token}"}

    def called() -> int:
        return httpx.get(f"{desk.served.url}/api/v1/agents", headers=about).status_code

    assert called() == 200
    expect(desk.at("#token-list label")).to_contain_text("案内ボット")
    expect(desk.at("#token-revoke")).to_be_disabled()
    desk.reload()
    desk.tab("connect")
    expect(desk.at("#token-list label")).to_contain_text("案内ボット")
    assert token not in desk.page.content()
    desk.at("#token-list label").click()
    desk.at("#token-revoke").click()
    expect(desk.at("#token-revoke")).to_have_text(desk.say("connect.revoke_sure"))
    assert called() == 200
    desk.at("#token-revoke").click()
    expect(desk.at("#token-made")).to_have_text(desk.say("connect.revoked", name="案内ボット"))
    expect(desk.at("#token-list")).to_be_hidden()
    assert called() == 401
    desk.at("#connect-example summary").click()
    expect(desk.at("#connect-example pre")).to_contain_text(f"{desk.served.url}/v1")
    desk.context.grant_permissions(["clipboard-read", "clipboard-write"])
    desk.at("#connect-example .copy").click()
    expect(desk.at("#connect-example .copied")).to_be_visible()
    example = desk.page.evaluate("navigator.clipboard.readText()")
    compile(example, "example", "exec")
    assert f'api_key="{desk.say("connect.token_here")}"' in example
    form = desk.at("#connect-example a").evaluate("link => link.href")
    assert "/agents" in httpx.get(form).text


# ── language, width, light, and who may look ──────────────────────────────────────────────


@pytest.mark.core
def test_the_page_speaks_the_browsers_language_first_and_can_be_switched(sit: Sit) -> None:
    for language, other in (("ja", "en"), ("en", "ja")):
        desk = sit(language)
        for spoken in (language, other, language):
            desk.language = spoken
            if desk.at("html").get_attribute("lang") != spoken:
                desk.at(f"#switches [data-language={spoken}]").click()
                desk.page.wait_for_function(f"document.documentElement.lang === '{spoken}'")
            desk.settle()
            expect(desk.page.get_by_role("tab")).to_have_text(
                [desk.say(f"tab.{name}") for name in TABS]
            )
            expect(desk.at("#persona-head .demo")).to_have_text(desk.say("editor.state.demo"))
            expect(desk.at("#field-background label")).to_contain_text(desk.say("field.background"))


def test_the_language_is_switched_over_a_key_or_answers_only_when_asked_and_agreed(
    desk: Desk,
) -> None:
    def switch(to: str) -> Locator:
        desk.at(f"#switches [data-language={to}]").click()
        return desk.at("#switches dialog")

    def switched(to: str) -> None:
        desk.page.wait_for_function(f"document.documentElement.lang === '{to}'")
        desk.settle()
        desk.language = to

    assert not switch("ja").is_visible()  # it is Japanese already
    desk.tab("connect")
    desk.box("key-openai").fill("sk-visitors-own-0123456789")
    desk.box("key-openai").press("Enter")
    expect(desk.at("#key-openai-state")).to_contain_text(desk.say("connect.key_state.own"))
    asked = switch("en")
    expect(asked).to_contain_text(desk.say("bar.sure"))
    desk.page.keyboard.press("Escape")
    expect(asked).to_be_hidden()
    switch("en").get_by_role("button", name=desk.say("bar.stay")).click()
    expect(asked).to_be_hidden()
    quiet(desk.page)
    expect(desk.at("#key-openai-state")).to_contain_text(desk.say("connect.key_state.own"))
    switch("en").get_by_role("button", name=desk.say("bar.go")).click()
    switched("en")
    desk.tab("compare")
    switch("ja")
    switched("ja")
    desk.tab("compare")
    desk.write("#column-0", ECHO)
    desk.box("compare-message").fill("やあ")
    desk.at("#compare-run").click()
    expect(desk.column(0)).to_contain_text("「やあ」")
    expect(switch("en")).to_be_visible()


@pytest.mark.parametrize("language", CORE_IN_JAPANESE)
def test_nothing_scrolls_sideways_on_a_phone(sit: Sit, language: str) -> None:
    desk = sit(language, width=390)
    for name in TABS:
        desk.tab(name)
        if name == "compare":
            desk.box("compare-message").fill("ひとこと" * 20)
            desk.at("#compare-run").click()
            expect(desk.at("#column-1 .figures span").first).to_be_visible(timeout=60_000)
        if name == "chat":
            desk.send("長い言葉" * 20 + "x" * 80)
            desk.answered(1)
        if name == "insights":
            desk.record(40, name="長い名前の人" * 6)
            desk.at("#insights-again").click()
            expect(desk.at("#insights-board svg.chart")).to_have_count(4)
            for fold in desk.at("#insights-board summary").all():
                fold.click()
        width = desk.page.evaluate("document.documentElement.scrollWidth")
        assert width <= 390, f"{name} is {width} wide"


def test_on_a_phone_the_bar_is_low_and_the_chats_box_is_at_hand(sit: Sit) -> None:
    desk = sit("ja", width=390)
    bar = desk.at("#topbar").bounding_box()
    assert bar is not None
    assert bar["height"] < 130
    desk.tab("chat")
    for text in ("一つめ", "二つめ"):
        expect(desk.box("chat-message")).to_be_in_viewport(ratio=1)
        desk.send(text * 40)
    expect(desk.at("#chat-send")).to_be_in_viewport(ratio=1)


def test_a_message_lies_beside_the_tabs_and_over_nothing_that_is_operated(desk: Desk) -> None:
    desk.tab("compare")
    too_long = desk.excuse("message_too_long", length=3000, limit=2000)
    for text, words in ((" ", desk.excuse("empty_message")), ("長" * 3000, too_long)):
        desk.box("compare-message").fill(text)
        desk.box("compare-message").press("Enter")
        expect(desk.toast).to_have_text(words)
    boxes = [desk.at(f"{place}").first.bounding_box() for place in (".toast-body", "#topbar")]
    toast, bar = (box for box in boxes if box)
    assert toast["y"] >= bar["y"] + bar["height"] - 2
    desk.at("#compare-run").click(trial=True)
    desk.at("#switches [data-light]").click(trial=True)


def test_the_open_tab_is_open_again_after_a_reload(desk: Desk) -> None:
    desk.tab("chat")
    desk.at("#switches [data-language=en]").click()
    desk.page.wait_for_function("document.documentElement.lang === 'en'")
    expect(desk.at("#chat-message")).to_be_visible()
    desk.settle()
    desk.language = "en"
    desk.tab("persona")
    desk.reload()
    expect(desk.box("field-name")).to_be_visible()


@pytest.mark.parametrize(
    ("language", "dark"), [pytest.param("ja", False, marks=pytest.mark.core), ("en", True)]
)
def test_no_serious_fault_of_accessibility_on_any_tab(sit: Sit, language: str, dark: bool) -> None:
    desk = sit(language, dark=dark)
    faults = {}
    for name in TABS:
        desk.tab(name)
        if name == "persona":
            desk.at("#fold-voice button.label-wrap").click()
            desk.at("#fold-examples button.label-wrap").click()
            expect(desk.box("field-examples")).to_be_visible()
        if name == "compare":
            desk.write("#column-0", ECHO)
            desk.write("#column-1", "openai:gpt-x")
            desk.box("compare-message").fill("やあ")
            desk.at("#compare-run").click()
            expect(desk.at("#column-1 [role=alert]")).to_be_visible()
            expect(desk.at("#compare-run")).to_be_visible()
        if name == "chat":
            desk.send("やあ")
            desk.answered(1)
        if name == "insights":
            desk.record(40)
            desk.at("#insights-again").click()
            expect(desk.at("#insights-board svg.chart")).to_have_count(4)
            for fold in desk.at("#insights-board summary").all():
                fold.click()
        for _ in range(10):  # what is half drawn yet, or fading in, is no fault
            found = [
                fault
                for fault in Axe().run(desk.page).response["violations"]
                if fault["impact"] in ("serious", "critical")
            ]
            if not found:
                break
            desk.page.wait_for_timeout(300)
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
def test_the_ring_of_the_focus_is_whole_and_seen_at_every_stop(sit: Sit, dark: bool) -> None:
    desk = sit(dark=dark)
    desk.page.emulate_media(reduced_motion="reduce")
    stops = []
    for name in TABS:
        desk.tab(name)
        quiet(desk.page)
        desk.at("#who input").focus()
        for _ in range(60):
            stop = desk.page.evaluate(RING)
            if stop is None:
                break
            stops.append(stop)
            desk.page.keyboard.press("Tab")
    assert [stop for stop in stops if ":" in stop] == []
    seen = {stop.rpartition(" ")[2] for stop in stops}
    assert seen >= {"chat-message", "try-message", "compare-message", "model", "insights-span"}


def test_nothing_secret_stays_in_the_browsers_own_storage(desk: Desk) -> None:
    desk.tab("chat")
    desk.send("ひみつの話")
    desk.answered(1)
    desk.box("chat-message").fill("書きかけ")
    desk.page.wait_for_timeout(50)
    secret = next(c["value"] for c in desk.context.cookies() if c["name"] == COOKIE)
    kept, unsent = desk.page.evaluate(
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
    assert secret not in desk.page.evaluate("document.cookie")
    databases = desk.page.evaluate("indexedDB.databases().then((all) => all.length)")
    assert databases == 0


@pytest.mark.core
def test_two_visitors_do_not_see_each_others_personas(sit: Sit) -> None:
    one, other = sit(), sit()
    one.box("field-name").fill("わたしだけの人")
    until(lambda: len(one.own()) == 1)
    other.reload()
    other.at("#who input").click()
    expect(other.page.get_by_role("option").first).to_be_visible()
    assert "わたしだけの人" not in other.page.content()
    one.reload()
    one.at("#who input").click()
    expect(one.page.get_by_role("option", name="わたしだけの人", exact=True)).to_be_visible()
