"""One browser for each file of this folder, and a new visitor for each test."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright
from support.app_process import RunningApp, skip_if_missing
from support.browser import BrowserUser, PageOpener

PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser")
"""Chromium's names. The headless shell is the same engine without windows: several times as fast
on two cores."""


# Playwright's event loop runs until the browser is closed, and async tests need a loop of their
# own. A worker runs other files after a file of this folder, so the browser ends with its file.
@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if path is None:
        skip_if_missing("chromium")
    flags = [
        "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
    ]  # fmt: skip
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def open_page(served: RunningApp, chromium: Browser) -> Iterator[PageOpener]:
    """``open_page("en", width=390, dark=True)``: a new visitor at the open page."""
    opener = PageOpener(chromium, served)
    yield opener
    opener.close()


@pytest.fixture
def user(open_page: PageOpener) -> BrowserUser:
    """A visitor who reads Japanese."""
    return open_page()
