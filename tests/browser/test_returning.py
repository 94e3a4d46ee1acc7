"""A phone that locks while a persona answers."""

from __future__ import annotations

import socket
from contextlib import suppress
from dataclasses import replace

import pytest
from playwright.sync_api import Browser, Error, Page, expect
from support.app_process import RunningApp, wait_until
from support.browser import SLOW, BrowserUser
from support.reverse_proxy import reverse_proxy


def lock(page: Page, connections: set[socket.socket]) -> None:
    """Hide the page, and end its connections, as a phone does."""
    page.evaluate(
        """() => {
          Object.defineProperty(document, "hidden", { get: () => true, configurable: true });
          document.dispatchEvent(new Event("visibilitychange"));
        }"""
    )
    for connection in list(connections):
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


def unlock(page: Page) -> None:
    """Show the page again. It may be reloading, because it has noticed the lost server."""
    with suppress(Error):
        page.evaluate(
            """() => {
              delete document.hidden;
              document.dispatchEvent(new Event("visibilitychange"));
            }"""
        )


@pytest.mark.parametrize("finished", [True, False])
def test_answer_goes_on_and_is_shown_when_a_phone_is_unlocked(
    served: RunningApp, chromium: Browser, finished: bool
) -> None:
    connections: set[socket.socket] = set()
    with (
        reverse_proxy(served.url, connections=connections) as url,
        chromium.new_context(locale="ja-JP") as context,
    ):
        user = BrowserUser(replace(served, url=url), context, "ja")
        user.open()
        user.use_model("mock:echo?rate=10&tokens=120")
        user.open_tab("chat")
        user.send(f"長い話をして（{finished}）")  # another message each time: answers are cached
        expect(user.answers().last).to_contain_text("練習用")
        lock(user.page, connections)
        user.page.wait_for_timeout(2000)
        assert user.messages()[-1].status == "streaming"
        if finished:
            wait_until(lambda: user.messages()[-1].status == "ok")
        unlock(user.page)
        user.wait_for_answers(1)
        whole = user.messages()[-1]
        assert whole.status == "ok"
        expect(user.answers().last).to_contain_text(whole.content[-20:])
        expect(user.toast).to_have_count(0)
        user.send("もう一度")
        user.locator("#chat-stop").click()
        wait_until(lambda: user.messages()[-1].status == "stopped")


def test_answer_goes_on_and_is_followed_when_the_page_is_reloaded(user: BrowserUser) -> None:
    user.use_model(SLOW)
    user.open_tab("chat")
    user.send("長い話をして")
    expect(user.answers().last).to_contain_text("練習用")
    user.reload()
    user.open_tab("chat")
    expect(user.locator("#chat-stop")).to_be_visible()
    length = len(user.answers().last.inner_text())
    wait_until(lambda: len(user.answers().last.inner_text()) > length)
    user.locator("#chat-stop").click()
    expect(user.answers().last).to_contain_text(user.text("chat.status.stopped"))
    assert user.messages()[-1].status == "stopped"
