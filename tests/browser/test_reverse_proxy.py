"""The page behind proxies, and in browsers that keep nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from playwright.sync_api import Browser, Page, expect
from support.app_process import RunningApp, run_app
from support.browser import PAGE
from support.reverse_proxy import Rewrite, change_host, drop_cookies, reverse_proxy, strip_prefix

Visit = Callable[..., Page]

REFUSE_STORAGE = """
for (const name of ["localStorage", "sessionStorage"])
  Object.defineProperty(window, name, {
    configurable: true,
    get() { throw new DOMException("denied", "SecurityError"); },
  });
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    with run_app(tmp_path_factory.mktemp("prefixed"), GRADIO_ROOT_PATH="/lab") as app:
        yield app


@pytest.fixture
def visit(served: RunningApp, chromium: Browser) -> Iterator[Visit]:
    """``visit("/lab/", request=change_host)``: the page of a new visitor, through a proxy."""
    with ExitStack() as stack:

        def open_page(path: str, script: str = "", **rewrites: Rewrite) -> Page:
            url = stack.enter_context(reverse_proxy(served.url, **rewrites))
            context = stack.enter_context(chromium.new_context(locale="en-GB"))
            if script:
                context.add_init_script(script)
            page = context.new_page()
            page.goto(url + path)
            return page

        yield open_page


def rename(page: Page, name: str) -> None:
    page.wait_for_selector("#editor-form:not([inert])", state="attached")
    page.locator("#field-name input, #field-name textarea").first.fill(name)
    expect(page.locator("#persona-head h2")).to_have_text(name)


@pytest.mark.core
@pytest.mark.parametrize("strips", [True, False])
def test_page_works_when_a_proxy_changes_host_and_path(visit: Visit, strips: bool) -> None:
    strip = strip_prefix(b"/lab") if strips else bytes
    page = visit("/lab/", request=lambda head: strip(change_host(head)))
    origin = page.url.removesuffix("/lab/")
    loads: list[str] = []
    page.on("load", lambda: loads.append(page.url))
    rename(page, "Behind a proxy")
    expect(page.locator("#saved")).to_contain_text(PAGE("editor.saved", "en"))
    page.get_by_role("tab", name=PAGE("tab.connect", "en"), exact=True).click()
    example = page.locator("#connect-example")
    expect(example.locator("[data-origin]").first).to_have_text(f"{origin}/lab")
    expect(example.locator("[data-origin=ws]")).to_have_text(
        f"{origin}/lab".replace("http", "ws", 1)
    )
    assert page.request.get(example.locator("a").evaluate("(link) => link.href")).ok
    page.wait_for_timeout(2000)
    assert loads == []
    page.reload()
    expect(page.locator("#persona-head h2")).to_have_text("Behind a proxy")
    expect(page.locator("#no-cookie, #no-storage, #lost, #unreachable")).to_have_count(3)
    for state in ("no-storage", "lost", "unreachable"):
        expect(page.locator(f"#{state}")).to_be_hidden()


def test_page_says_so_when_its_cookie_does_not_come_back(visit: Visit) -> None:
    page = visit("/lab/", response=drop_cookies)
    expect(page.locator("#no-cookie")).to_contain_text(PAGE("bar.no_cookie", "en"))
    rename(page, "Short-lived")
    expect(page.locator("#saved")).to_contain_text(PAGE("editor.saved_in_page", "en"))


def test_page_works_and_says_so_when_storage_is_refused(visit: Visit) -> None:
    page = visit("/lab/", script=REFUSE_STORAGE)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    expect(page.locator("#no-storage")).to_contain_text(PAGE("bar.no_storage", "en"))
    rename(page, "Without storage")
    expect(page.locator("#saved")).to_contain_text(PAGE("editor.saved", "en"))
    page.get_by_role("tab", name=PAGE("tab.chat", "en"), exact=True).click()
    page.locator("#chat-message textarea").fill("hello")
    page.locator("#chat-message textarea").press("Enter")
    expect(page.locator("#thread")).to_contain_text("hello")
    page.locator("#switches [data-light]").click()
    assert errors == []


def test_page_reloads_once_when_it_cannot_reach_its_server(visit: Visit) -> None:
    loads: list[bytes] = []

    def break_calls(head: bytes) -> bytes:
        if head.startswith(b"GET /lab/ "):
            loads.append(head)
        return head.replace(b" /lab/gradio_api/", b" /elsewhere/", 1)

    def fail(head: bytes) -> bytes:
        return head.replace(b" 404 Not Found", b" 502 Bad Gateway", 1)

    page = visit("/lab/", request=break_calls, response=fail)
    expect(page.locator("#unreachable")).to_contain_text(PAGE("bar.unreachable", "en"))
    page.wait_for_timeout(4000)
    assert len(loads) == 2
