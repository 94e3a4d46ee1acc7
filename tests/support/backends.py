"""Real Redis and PostgreSQL servers for this test run, on free ports and in temporary folders.

A test can stop and start them. Tests whose server isn't installed are skipped; with
``PERSONA_LAB_REQUIRE_SERVICES`` they fail.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from persona_lab.db.migrations import HEAD
from persona_lab.db.redis import RedisLink

TIMEOUT_S = 30.0
"""Seconds that a server has to start and to stop."""
_TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
_VERSION = "SELECT version_num FROM alembic_version"


def skip_if_missing(program: str) -> None:
    """Skip or fail the test that needs ``program``."""
    reason = f"{program} is not installed"
    if os.environ.get("PERSONA_LAB_REQUIRE_SERVICES"):
        pytest.fail(reason)
    pytest.skip(reason)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} took too long"
        time.sleep(0.02)


async def wait_for_redis(link: RedisLink) -> None:
    """Use ``link`` until Redis answers again. It must have ``probe_interval=0``."""

    async def fallback() -> None:
        pass

    async with asyncio.timeout(TIMEOUT_S):
        while link.is_down:
            await link.run(lambda redis: redis.ping(), fallback)
            await asyncio.sleep(0.01)


class Service:
    """A server process. ``url`` stays the same when it is stopped and started."""

    def __init__(self, name: str, command: list[str], url: str, **process_options: object) -> None:
        self.url = url
        self._name = name
        self._command = command
        self._process_options = process_options
        self._process: subprocess.Popen[bytes] | None = None
        self._paused = False

    def start(self) -> None:
        if self._process is None:
            self._process = subprocess.Popen(
                self._command,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                **self._process_options,  # type: ignore[call-overload]
            )
        self.resume()
        wait_until(self.ready, f"starting {self._name}")

    def stop(self) -> None:
        """Stop the server and its connections."""
        if self._process is not None:
            self.resume()
            self._process.send_signal(signal.SIGINT)
            self._process.wait(TIMEOUT_S)
            self._process = None

    def pause(self) -> None:
        """Stop all answers; the port stays open."""
        self._signal(signal.SIGSTOP)
        self._paused = True

    def resume(self) -> None:
        if self._process is not None and self._paused:
            self._signal(signal.SIGCONT)
            self._paused = False

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"{self._name} exited"
        return self.answers()

    def answers(self) -> bool:
        raise NotImplementedError

    def empty(self) -> None:
        """Delete all data."""
        raise NotImplementedError


class RedisServer(Service):
    def __init__(self, program: str, folder: Path) -> None:
        self.port = free_port()
        command = [program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        super().__init__("redis-server", command, f"redis://127.0.0.1:{self.port}/0", cwd=folder)

    def send(self, command: str) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
            connection.sendall(f"{command}\r\n".encode())
            return connection.recv(4096)

    def answers(self) -> bool:
        with contextlib.suppress(OSError):
            return self.send("PING") == b"+PONG\r\n"
        return False

    def empty(self) -> None:
        assert self.send("FLUSHALL") == b"+OK\r\n"


class PostgresServer(Service):
    """A cluster made by ``initdb``. PostgreSQL can't run as root; root starts it as nobody."""

    def __init__(self, folder: Path) -> None:
        folders = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
        on_path = shutil.which("initdb")
        if not folders and not on_path:
            skip_if_missing("PostgreSQL")
        programs = max(folders, key=lambda path: int(path.parent.name)) if folders else None
        programs = programs or Path(str(on_path)).parent
        user = {"user": "nobody", "group": "nogroup", "extra_groups": []} if not os.getuid() else {}
        data = folder / "data"
        data.mkdir()
        if user:
            for path in (folder, data):
                shutil.chown(path, "nobody", "nogroup")
        options = ["--auth=trust", "--username=lab", "--encoding=UTF8", "--locale=C", "--no-sync"]
        subprocess.run(
            [programs / "initdb", *options, "-D", data], check=True, capture_output=True, **user
        )
        port = free_port()
        settings = [f"port={port}", "listen_addresses=127.0.0.1", "unix_socket_directories="]
        settings += ["fsync=off", "max_connections=200"]
        command = [str(programs / "postgres"), "-D", str(data)]
        for setting in settings:
            command += ["-c", setting]
        url = f"postgresql://lab@127.0.0.1:{port}/postgres"
        super().__init__("PostgreSQL", command, url, cwd=data, **user)
        self._engine = create_engine(
            url.replace("postgresql:", "postgresql+psycopg:"), poolclass=NullPool
        )

    def answers(self) -> bool:
        try:
            with self._engine.connect():
                return True
        except Exception:  # noqa: BLE001 - any error means that it isn't ready
            return False

    def _signal(self, number: signal.Signals) -> None:
        """Signal the main process and the processes that serve the connections."""
        super()._signal(number)
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        if not children.exists():
            pytest.skip("only Linux lists the processes of PostgreSQL")
        for child in children.read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), number)

    def empty(self) -> None:
        """Drop all tables."""
        with self._engine.begin() as connection:
            connection.execute(text("DROP SCHEMA public CASCADE"))
            connection.execute(text("CREATE SCHEMA public"))

    def clear(self) -> None:
        """Delete all rows. Tables of an older version are dropped."""
        with self._engine.begin() as connection:
            names = set(connection.scalars(text(_TABLES)))
            known = "alembic_version" in names and list(connection.scalars(text(_VERSION)))
            if known == [HEAD]:
                rows = ", ".join(f'"{name}"' for name in sorted(names - {"alembic_version"}))
                connection.execute(text(f"TRUNCATE {rows} RESTART IDENTITY CASCADE"))
                return
        self.empty()


@pytest.fixture(scope="session")
def _redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    program = shutil.which("redis-server")
    if program is None:
        skip_if_missing("redis-server")
    server = RedisServer(str(program), tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def _postgres() -> Iterator[PostgresServer]:
    # The user of PostgreSQL can't read pytest's folders.
    with tempfile.TemporaryDirectory(prefix="persona-lab-") as folder:
        server = PostgresServer(Path(folder))
        server.start()
        yield server
        server.stop()


@pytest.fixture
def redis_server(_redis: RedisServer) -> Iterator[RedisServer]:
    """Redis, running and empty. It is started again afterwards."""
    _redis.empty()
    yield _redis
    _redis.start()


@pytest.fixture
def postgres_server(_postgres: PostgresServer) -> Iterator[PostgresServer]:
    """PostgreSQL with an empty database. It is started again afterwards."""
    _postgres.clear()
    yield _postgres
    _postgres.start()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.external)])
def database_url(request: pytest.FixtureRequest) -> str:
    """A new database of SQLite and of PostgreSQL."""
    if request.param == "sqlite":
        return "sqlite://"
    url: str = request.getfixturevalue("postgres_server").url
    return url


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.external)])
async def shared(request: pytest.FixtureRequest) -> AsyncIterator[RedisLink]:
    """The shared state of cache, quotas and contexts: in this process, and in Redis."""
    url = None if request.param == "memory" else request.getfixturevalue("redis_server").url
    link = RedisLink(url, timeout=10)
    yield link
    await link.aclose()
    assert not link.is_down


@pytest.fixture(params=["embedded", pytest.param("services", marks=pytest.mark.external)])
def places(request: pytest.FixtureRequest) -> dict[str, str]:
    """Settings of a lab that keeps all in its process, and of one of several replicas."""
    if request.param == "embedded":
        return {"database_url": "sqlite://"}
    database = request.getfixturevalue("postgres_server").url
    return {"database_url": database, "redis_url": request.getfixturevalue("redis_server").url}
