"""The product as people start it: ``app.py`` as a process of its own, on a free port.

Its settings are those that a test gives, never those of the shell; its database is a new one.
"""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from persona_lab.db.store import Store
from persona_lab.settings import ROOT, Settings

APP = [sys.executable, str(ROOT / "app.py")]
PATIENCE = 120.0
"""Seconds after which a page that isn't served is a failure."""
GEMMA, SMOLLM = "local:gemma-3-270m", "local:smollm2-135m-instruct"


def missing(what: str) -> None:
    """Skips the test for want of ``what``; fails it where everything is promised to be there."""
    if os.environ.get("PERSONA_LAB_REQUIRE_SERVICES") == "1":
        pytest.fail(f"{what} is required here")
    pytest.skip(f"{what} isn't installed")


@dataclass(frozen=True)
class Served:
    """A running app. ``log`` is what it has said so far."""

    url: str
    database_url: str
    process: subprocess.Popen[bytes]
    log_file: Path
    stores: list[Store] = field(default_factory=list)

    @property
    def log(self) -> str:
        return self.log_file.read_text("utf-8", errors="replace")

    @property
    def store(self) -> Store:
        """The app's own database, read and written from beside it."""
        if not self.stores:
            self.stores.append(Store(self.database_url))
        return self.stores[0]


def environment(folder: Path, **settings: str) -> dict[str, str]:
    """The shell's environment without the lab's settings, then ``settings``."""
    ours = {name.upper() for name in Settings.model_fields}
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return {
        **kept,
        "GRADIO_SERVER_PORT": str(free_port()),
        "DATABASE_URL": f"sqlite:///{folder / 'lab.db'}",
        "LLM_PROVIDER": "mock",
        "LLM_MODEL": "echo",
        # An answer of one sentence would come in one piece.
        "TONE_ADJUSTMENT": "false",
        "ROLE_LIMITS": "false",
        **settings,
    }


@contextmanager
def serving(folder: Path, *, command: Sequence[str] = APP, **settings: str) -> Iterator[Served]:
    """The app with ``settings``, served until the block ends; ``folder`` holds its state.

    Raises RuntimeError with the end of its log when no page comes.
    """
    variables = environment(folder, **settings)
    log_file = folder / "app.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            list(command), cwd=folder, env=variables, stdout=log, stderr=subprocess.STDOUT
        )
    served = Served(
        f"http://127.0.0.1:{variables['GRADIO_SERVER_PORT']}",
        variables["DATABASE_URL"],
        process,
        log_file,
    )
    try:
        deadline = time.monotonic() + PATIENCE
        while process.poll() is not None or not _answers(served.url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no page was served:\n{served.log[-3000:]}")
            time.sleep(0.05)
        yield served
    finally:
        for store in served.stores:
            store.close()
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def ended(folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """The app with settings that don't let it start: what it said, and its exit code."""
    return subprocess.run(
        APP,
        cwd=folder,
        env=environment(folder, **settings),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(
    wanted: Callable[[], object], *, seconds: float = 20, every: float = 0.05, what: str = ""
) -> None:
    """Returns as soon as ``wanted()`` is true, looking ``every`` so often. Raises AssertionError
    after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not wanted():
        assert time.monotonic() < deadline, what or f"never came true: {wanted}"
        time.sleep(every)


def data_with(folder: Path, models: str) -> Path:
    """A data folder with the demo personas and a ``models.yaml`` of ``models``."""
    data = folder / "data"
    data.mkdir()
    shutil.copy(ROOT / "data" / "personas.yaml", data)
    (data / "models.yaml").write_text(models, "utf-8")
    return data


def _answers(url: str) -> bool:
    host = url.removeprefix("http://")
    with closing(http.client.HTTPConnection(host, timeout=PATIENCE)) as connection:
        try:
            connection.request("GET", "/")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False


def headers(language: str = "ja", cookie: str = "") -> Mapping[str, str]:
    """What a client sends along to speak ``language``, and to be a visitor with a cookie."""
    spoken = {"accept-language": language}
    return spoken | ({"cookie": cookie} if cookie else {})
