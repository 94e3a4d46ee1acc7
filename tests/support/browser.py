"""A visitor in headless Chromium, and the page that the visitor uses.

Each :class:`BrowserUser` has a cookie, a page and a database user that no other test sees.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    Locator,
    Page,
    TimeoutError,  # noqa: A004 - Playwright's, not Python's
    expect,
)

from persona_lab.db.store import Store
from persona_lab.db.tables import Agent, Generation, Message
from persona_lab.personas.persona import persona_of
from persona_lab.server import COOKIE
from persona_lab.settings import ROOT
from persona_lab.translations import Translations
from persona_lab.types import now
from support.app_process import RunningApp

PAGE = Translations(ROOT / "templates" / "ui.yaml")
FALLBACKS = Translations(ROOT / "templates" / "fallbacks.yaml")
TABS = ("persona", "compare", "chat", "insights", "connect")

ECHO = "mock:echo"
SLOW = "mock:echo?rate=10&tokens=2000"
"""A model that streams for minutes."""
MUTE = "mock:echo?first=60"
"""A model whose first token comes after a minute."""

CORE_IN_JAPANESE = [pytest.param("ja", marks=pytest.mark.core), "en"]
"""Both languages; the fast selection has one of them."""

IDLE_MS = 600
"""How long the page asks for nothing before it counts as idle."""

expect.set_options(timeout=20_000)


class BrowserUser:
    """A visitor at the page.

    Locators and actions are named for what a visitor sees. ``own_personas``, ``messages`` and
    the like read the app's database.
    """

    def __init__(self, served: RunningApp, context: BrowserContext, language: str) -> None:
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
        self.wait_until_ready()

    def reload(self) -> None:
        self.page.reload()
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Wait until a persona is open and the form takes input."""
        self.page.wait_for_selector("#editor-form:not([inert])", state="attached")
        self.page.wait_for_selector("#prompt-preview pre.prompt", state="attached")
        expect(self.text_box("editing")).not_to_have_value("")

    def wait_until_idle(self) -> None:
        """Wait until the page has asked for nothing for ``IDLE_MS``."""
        with suppress(TimeoutError):  # a heartbeat may keep the network busy
            self.page.wait_for_load_state("networkidle", timeout=5_000)
        self.page.evaluate(
            """(idle) => new Promise((resolve) => {
              let last = performance.now();
              new PerformanceObserver(() => { last = performance.now(); })
                .observe({ entryTypes: ["resource"] });
              const timer = setInterval(() => {
                if (performance.now() - last > idle) { clearInterval(timer); resolve(); }
              }, 50);
            })""",
            IDLE_MS,
        )

    def text(self, key: str, **details: Any) -> str:
        """A text of ``ui.yaml`` in the visitor's language."""
        return PAGE(key, self.language, **details)  # type: ignore[arg-type]

    def error_text(self, code: str, **details: Any) -> str:
        """A text of ``fallbacks.yaml`` in the visitor's language."""
        return FALLBACKS(code, self.language, **details)  # type: ignore[arg-type]

    def locator(self, selector: str) -> Locator:
        return self.page.locator(selector)

    def open_tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=self.text(f"tab.{name}"), exact=True).click()

    def text_box(self, id_: str) -> Locator:
        """The text box of a component."""
        return self.locator(f"#{id_} textarea, #{id_} input").first

    def chips(self, field: str) -> Locator:
        return self.locator(f"#field-{field} .token > span")

    def persona_button(self, action: str) -> Locator:
        """A button over the editor."""
        return self.locator(f"#persona-{action}")

    @property
    def preview(self) -> Locator:
        return self.locator("#prompt-preview pre.prompt")

    @property
    def toast(self) -> Locator:
        return self.locator("[data-testid=toast-text]").last

    def choose(self, component: str, label: str, nth: int = 0) -> None:
        """Choose in a dropdown by the option's label."""
        self.locator(f"{component} input").nth(nth).click()
        self.page.get_by_role("option", name=label, exact=True).click()

    def choose_in_header(self, name: str) -> None:
        """Choose a persona in the header's list without waiting until it is open."""
        for _ in range(5):  # the list may change its order under the pointer
            self.locator("#who input").click()
            self.locator("#who [role=option]").filter(has_text=name).first.click()
            if name in self.locator("#who input").input_value():
                return
        raise AssertionError(f"{name} can't be chosen")

    def open_persona(self, agent: Agent) -> None:
        """Reload, choose ``agent`` in the header and wait for its form."""
        self.reload()
        self.choose("#who", agent.name)
        expect(self.text_box("field-name")).to_have_value(agent.name)
        self.wait_until_ready()

    def enter(self, component: str, text: str, nth: int = 0) -> None:
        """Enter a value that is not in a dropdown's list."""
        field = self.locator(f"{component} input").nth(nth)
        field.click()
        field.fill(text)
        field.press("Enter")
        field.press("Escape")

    def use_model(self, model: str) -> None:
        """Choose the model that answers in the chat and in the try box."""
        self.enter("#model", model)
        expect(self.locator("#ready .ready")).to_be_visible()

    def send(self, text: str) -> None:
        self.text_box("chat-message").fill(text)
        self.text_box("chat-message").press("Enter")

    def answers(self) -> Locator:
        """The persona's messages, its greeting first, without the figures under an answer."""
        return self.locator("#thread [data-testid=bot]:not(:has(.figures))")

    def wait_for_answers(self, count: int) -> None:
        """Wait until the thread has ``count`` finished answers."""
        expect(self.locator("#thread .figures")).to_have_count(count)
        expect(self.locator("#chat-send")).to_be_visible()

    def column_answer(self, number: int) -> Locator:
        """The answer in a column of the comparison."""
        return self.locator(f"#column-{number} [data-testid=markdown]")

    # ── the database ──

    @property
    def store(self) -> Store:
        return self.served.store

    def own_personas(self) -> list[Agent]:
        return [a for a in self.store.list_agents(user_id=self.user_id) if a.owner_id]

    def demo_personas(self) -> list[Agent]:
        return [a for a in self.store.list_agents(user_id=self.user_id) if not a.owner_id]

    def personas(self) -> dict[str, dict[str, Any]]:
        """Every persona that the visitor can open, by id."""
        return {a.id: persona_of(a) for a in self.store.list_agents(user_id=self.user_id)}

    def messages(self) -> list[Message]:
        """The messages of the newest chat."""
        chats = self.store.list_chats(user_id=self.user_id)
        return list(self.store.messages(chats[0].id, user_id=self.user_id)) if chats else []

    def create_persona(self, name: str, **fields: Any) -> Agent:
        return self.store.create_agent(
            user_id=self.user_id, name=name, language=self.language, **fields
        )

    def add_generations(self, count: int, *, name: str = "さくら", **fields: Any) -> None:
        """Add generations, one an hour and the last one now; every tenth failed."""
        agent = self.create_persona(name)
        for number in range(count):
            failed = number % 10 == 9
            row = {
                "user_id": self.user_id, "agent_id": agent.id, "provider": "openai",
                "model": f"gpt-{number % 3}", "status": "failed" if failed else "ok",
                "error_type": "timeout" if failed else None, "prompt_tokens": 100 * number,
                "cached_tokens": 50 * number, "completion_tokens": 9, "first_token_ms": 400,
                "total_ms": 900, "cost": None if number % 7 == 6 else 0.01,
                "created_at": now() - timedelta(hours=number),
            }  # fmt: skip
            self.store.record(Generation(**{**row, **fields}))


class PageOpener:
    """Open the page for new visitors, and note what goes wrong on their pages.

    Args:
        chromium: The browser.
        served: The app that visitors use unless a test starts its own.
    """

    def __init__(self, chromium: Browser, served: RunningApp) -> None:
        self.chromium = chromium
        self.served = served
        self.contexts: list[BrowserContext] = []
        self.problems: list[str] = []

    def __call__(
        self,
        language: str = "ja",
        *,
        width: int = 1280,
        dark: bool = False,
        app: RunningApp | None = None,
        time_zone: str | None = None,
    ) -> BrowserUser:
        """Return a new visitor at the open page."""
        app = app or self.served
        host = urlsplit(app.url).netloc
        context = self.chromium.new_context(
            locale={"ja": "ja-JP", "en": "en-US"}[language],
            viewport={"width": width, "height": 900},
            color_scheme="dark" if dark else "light",
            timezone_id=time_zone,
        )
        self.contexts.append(context)
        context.on("page", lambda page: self._watch(page, host))
        user = BrowserUser(app, context, language)
        user.open()
        return user

    def close(self) -> None:
        """Close all pages.

        Raises:
            AssertionError: A page raised an error, or asked another host for something.
        """
        for context in self.contexts:
            context.close()
        assert not self.problems, self.problems

    def _watch(self, page: Page, host: str) -> None:
        page.on("pageerror", lambda error: self.problems.append(f"error on the page: {error}"))
        page.on("request", lambda request: self._check_host(request.url, host))

    def _check_host(self, url: str, host: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("data", "blob") and parts.netloc != host:
            self.problems.append(f"asked another host: {url}")


class Ime:
    """A Japanese input method, driven through Chromium's protocol."""

    def __init__(self, page: Page) -> None:
        self.protocol = page.context.new_cdp_session(page)

    def compose(self, text: str) -> None:
        """Show ``text`` underlined in the focused field, not yet committed."""
        self.protocol.send(
            "Input.imeSetComposition",
            {"text": text, "selectionStart": len(text), "selectionEnd": len(text)},
        )

    def press_enter(self) -> None:
        """Press Enter while composing: browsers report key code 229 for it."""
        for kind in ("rawKeyDown", "keyUp"):
            self.protocol.send(
                "Input.dispatchKeyEvent",
                {"type": kind, "key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 229},
            )

    def commit(self, text: str) -> None:
        self.protocol.send("Input.insertText", {"text": text})
