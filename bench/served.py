"""A page served by a process of its own, as a user starts it, and a browser in front of it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from persona_lab.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
TABS = 4
CHROMIUM = ("chromium-headless-shell", "chromium", "chromium-browser")
"""What a browser may be called. The headless shell is the same engine without the windows that
nobody sees: several times as fast on two cores."""
PATIENCE = 120.0
"""Seconds after which a page that isn't served is a failure."""


@dataclass(frozen=True)
class Served:
    """``seconds`` from the start of the process to the page and its tabs being served."""

    url: str
    seconds: float
    pid: int


@contextlib.contextmanager
def served(program: str, folder: Path, *, tabs: int = TABS, **environment: str) -> Iterator[Served]:
    """Run ``program``, a file or a module, until the block ends; its state is in ``folder``.
    The page is there with as many ``tabs``.

    Raises RuntimeError with the end of its log when no page comes.
    """
    port = free_port()
    # Settings of the shell must not decide what is measured.
    ours = {name.upper() for name in Settings.model_fields}
    inherited = {name: value for name, value in os.environ.items() if name not in ours}
    log = folder / "log.txt"
    with log.open("wb") as output:
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *(["-m"] if not program.endswith(".py") else []), program],
            cwd=ROOT,
            env={
                **inherited,
                "DATABASE_URL": f"sqlite:///{folder / 'lab.db'}",
                "GRADIO_SERVER_PORT": str(port),
                "GRADIO_ANALYTICS_ENABLED": "False",
                "PYTHONUNBUFFERED": "1",
                **environment,
            },
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        while not _answers(port, tabs):
            if process.poll() is not None or time.perf_counter() - began > PATIENCE:
                end = log.read_text("utf-8", errors="replace")[-2000:]
                raise RuntimeError(f"{program} served no page:\n{end}")
            time.sleep(0.005)
        seconds = time.perf_counter() - began
        yield Served(f"http://127.0.0.1:{port}", seconds, process.pid)
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Headless Chromium that talks to nobody but the page."""
    chromium = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if chromium is None:
        raise RuntimeError("chromium isn't installed (Debian: apt install chromium)")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=chromium,
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
            ],
        )
        try:
            yield opened
        finally:
            opened.close()


def free_port() -> int:
    """Below the range from which the system takes ports for those who connect.

    Whoever keeps knocking at a port of that range may be given it, and answer themselves.
    """
    while True:
        port = random.randrange(20_000, 30_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _answers(port: int, tabs: int) -> bool:
    """Whether the page is there, and with it the configuration that holds all ``tabs``."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/")
        page = connection.getresponse()
        page.read()
        if page.status != http.HTTPStatus.OK:
            return False
        connection.request("GET", "/config")
        config = connection.getresponse()
        body = config.read()
        if config.status != http.HTTPStatus.OK:
            return False
        kinds = [component["type"] for component in json.loads(body)["components"]]
        return kinds.count("tabitem") >= tabs
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
