"""Run ``app.py`` as a separate process on a free port.

It gets the settings of the test, never those of the shell, and a new database.
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
TIMEOUT_S = 120.0
"""Seconds that the app has to serve its page or to exit."""
GEMMA, SMOLLM = "local:gemma-3-270m", "local:smollm2-135m-instruct"


def skip_if_missing(what: str) -> None:
    """Skip the test because ``what`` isn't installed.

    With ``PERSONA_LAB_REQUIRE_SERVICES=1`` the test fails instead.
    """
    if os.environ.get("PERSONA_LAB_REQUIRE_SERVICES") == "1":
        pytest.fail(f"{what} is required here")
    pytest.skip(f"{what} isn't installed")


@dataclass(frozen=True)
class RunningApp:
    """A running app."""

    url: str
    database_url: str
    process: subprocess.Popen[bytes]
    log_file: Path
    stores: list[Store] = field(default_factory=list)

    @property
    def log(self) -> str:
        """The log so far."""
        return self.log_file.read_text("utf-8", errors="replace")

    @property
    def store(self) -> Store:
        """A second connection to the database of the app."""
        if not self.stores:
            self.stores.append(Store(self.database_url))
        return self.stores[0]


def environment(folder: Path, **settings: str) -> dict[str, str]:
    """Return the shell's environment with ``settings`` instead of the shell's settings."""
    names = {name.upper() for name in Settings.model_fields}
    return {
        **{name: value for name, value in os.environ.items() if name.upper() not in names},
        "GRADIO_SERVER_PORT": str(free_port()),
        "DATABASE_URL": f"sqlite:///{folder / 'lab.db'}",
        "LLM_PROVIDER": "mock",
        "LLM_MODEL": "echo",
        # With the tone step, an answer of one sentence would be a single chunk.
        "TONE_ADJUSTMENT": "false",
        "ROLE_LIMITS": "false",
        **settings,
    }


@contextmanager
def run_app(folder: Path, *, command: Sequence[str] = APP, **settings: str) -> Iterator[RunningApp]:
    """Run the app until the block ends.

    Args:
        folder: The folder of its database and log.
        command: The command line.
        settings: Its settings as environment variables.

    Raises:
        RuntimeError: The page isn't served; the message has the end of the log.
    """
    variables = environment(folder, **settings)
    log_file = folder / "app.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            list(command), cwd=folder, env=variables, stdout=log, stderr=subprocess.STDOUT
        )
    served = RunningApp(
        f"http://127.0.0.1:{variables['GRADIO_SERVER_PORT']}",
        variables["DATABASE_URL"],
        process,
        log_file,
    )
    try:
        deadline = time.monotonic() + TIMEOUT_S
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


def run_failing_app(folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the app with settings that stop its start; return its output and exit code."""
    return subprocess.run(
        APP,
        cwd=folder,
        env=environment(folder, **settings),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(
    condition: Callable[[], object], *, seconds: float = 20, every: float = 0.05, what: str = ""
) -> None:
    """Return as soon as ``condition()`` is true.

    Args:
        condition: Is called repeatedly.
        seconds: The longest time to wait.
        every: Seconds between two calls.
        what: The message of a failure.

    Raises:
        AssertionError: The condition wasn't true in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what or f"never became true: {condition}"
        time.sleep(every)


def make_data_folder(folder: Path, models: str) -> Path:
    """Return a data folder with the demo personas and ``models`` as ``models.yaml``."""
    data = folder / "data"
    data.mkdir()
    shutil.copy(ROOT / "data" / "personas.yaml", data)
    (data / "models.yaml").write_text(models, "utf-8")
    return data


def _answers(url: str) -> bool:
    host = url.removeprefix("http://")
    with closing(http.client.HTTPConnection(host, timeout=TIMEOUT_S)) as connection:
        try:
            connection.request("GET", "/")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False


def client_headers(language: str = "ja", cookie: str = "") -> Mapping[str, str]:
    """Return the request headers of a client with a language and a cookie."""
    result = {"accept-language": language}
    return result | ({"cookie": cookie} if cookie else {})
