"""Real Redis and real PostgreSQL, for this run alone: started here, on free ports, in folders of
their own, and ended with the run. A test may stop and start them.

Where a program is missing its tests are skipped, and say so; with ``PERSONA_LAB_REQUIRE_SERVICES``
they fail.
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

PATIENCE = 30.0
"""Seconds that a service has for starting and stopping."""
_TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
_VERSION = "SELECT version_num FROM alembic_version"


def missing(program: str) -> None:
    """End the test that needs ``program``."""
    reason = f"{program} is not installed"
    if os.environ.get("PERSONA_LAB_REQUIRE_SERVICES"):
        pytest.fail(reason)
    pytest.skip(reason)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def until(done: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline, f"{what} took too long"
        time.sleep(0.02)


async def back(link: RedisLink) -> None:
    """Use ``link``, which was made with ``probe_interval=0``, until Redis answers again."""

    async def nothing() -> None:
        pass

    async with asyncio.timeout(PATIENCE):
        while link.is_down:
            await link.run(lambda redis: redis.ping(), nothing)
            await asyncio.sleep(0.01)


class Service:
    """A server of our own. ``url`` stays the same when it is stopped and started."""

    def __init__(self, name: str, command: list[str], url: str, **how: object) -> None:
        self.url = url
        self._name = name
        self._command = command
        self._how = how
        self._process: subprocess.Popen[bytes] | None = None
        self._paused = False

    def start(self) -> None:
        if self._process is None:
            self._process = subprocess.Popen(
                self._command,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                **self._how,  # type: ignore[call-overload]
            )
        self.resume()
        until(self.ready, f"starting {self._name}")

    def stop(self) -> None:
        """End it, its connections with it."""
        if self._process is not None:
            self.resume()
            self._process.send_signal(signal.SIGINT)
            self._process.wait(PATIENCE)
            self._process = None

    def pause(self) -> None:
        """Let it keep its port and answer nothing."""
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
        assert self._process.poll() is None, f"{self._name} ended by itself"
        return self.answers()

    def answers(self) -> bool:
        raise NotImplementedError

    def empty(self) -> None:
        """As new."""
        raise NotImplementedError


class RedisServer(Service):
    def __init__(self, program: str, folder: Path) -> None:
        self.port = free_port()
        command = [program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        super().__init__("redis-server", command, f"redis://127.0.0.1:{self.port}/0", cwd=folder)

    def say(self, command: str) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
            connection.sendall(f"{command}\r\n".encode())
            return connection.recv(4096)

    def answers(self) -> bool:
        with contextlib.suppress(OSError):
            return self.say("PING") == b"+PONG\r\n"
        return False

    def empty(self) -> None:
        assert self.say("FLUSHALL") == b"+OK\r\n"


class PostgresServer(Service):
    """A cluster made by ``initdb``. PostgreSQL refuses to run as root: then it runs as nobody."""

    def __init__(self, folder: Path) -> None:
        places = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
        found = shutil.which("initdb")
        if not places and not found:
            missing("PostgreSQL")
        programs = max(places, key=lambda path: int(path.parent.name)) if places else None
        programs = programs or Path(str(found)).parent
        who = {"user": "nobody", "group": "nogroup", "extra_groups": []} if not os.getuid() else {}
        data = folder / "data"
        data.mkdir()
        if who:
            for path in (folder, data):
                shutil.chown(path, "nobody", "nogroup")
        options = ["--auth=trust", "--username=lab", "--encoding=UTF8", "--locale=C", "--no-sync"]
        subprocess.run(
            [programs / "initdb", *options, "-D", data], check=True, capture_output=True, **who
        )
        port = free_port()
        settings = [f"port={port}", "listen_addresses=127.0.0.1", "unix_socket_directories="]
        settings += ["fsync=off", "max_connections=200"]
        command = [str(programs / "postgres"), "-D", str(data)]
        for setting in settings:
            command += ["-c", setting]
        url = f"postgresql://lab@127.0.0.1:{port}/postgres"
        super().__init__("PostgreSQL", command, url, cwd=data, **who)
        self._engine = create_engine(
            url.replace("postgresql:", "postgresql+psycopg:"), poolclass=NullPool
        )

    def answers(self) -> bool:
        try:
            with self._engine.connect():
                return True
        except Exception:  # noqa: BLE001 - whatever it is, it isn't ready
            return False

    def _signal(self, number: signal.Signals) -> None:
        """The processes that answer are children of the one that listens."""
        super()._signal(number)
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        if not children.exists():
            pytest.skip("only Linux says which processes belong to PostgreSQL")
        for child in children.read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), number)

    def empty(self) -> None:
        """Drop all tables."""
        with self._engine.begin() as connection:
            connection.execute(text("DROP SCHEMA public CASCADE"))
            connection.execute(text("CREATE SCHEMA public"))

    def clear(self) -> None:
        """Delete all rows. Tables of another version than today's are dropped."""
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
        missing("redis-server")
    server = RedisServer(str(program), tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def _postgres() -> Iterator[PostgresServer]:
    # pytest's own folders are closed to the user that PostgreSQL runs as.
    with tempfile.TemporaryDirectory(prefix="persona-lab-") as folder:
        server = PostgresServer(Path(folder))
        server.start()
        yield server
        server.stop()


@pytest.fixture
def redis_server(_redis: RedisServer) -> Iterator[RedisServer]:
    """Redis, running and empty; running again afterwards."""
    _redis.empty()
    yield _redis
    _redis.start()


@pytest.fixture
def postgres_server(_postgres: PostgresServer) -> Iterator[PostgresServer]:
    """PostgreSQL with a database that has no rows; running again afterwards."""
    _postgres.clear()
    yield _postgres
    _postgres.start()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.external)])
def database_url(request: pytest.FixtureRequest) -> str:
    """A new database of each kind."""
    if request.param == "sqlite":
        return "sqlite://"
    url: str = request.getfixturevalue("postgres_server").url
    return url


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.external)])
async def shared(request: pytest.FixtureRequest) -> AsyncIterator[RedisLink]:
    """Where cached answers, quotas and contexts are kept: in this process, or in Redis."""
    url = None if request.param == "memory" else request.getfixturevalue("redis_server").url
    opened = RedisLink(url, timeout=10)
    yield opened
    await opened.aclose()
    assert not opened.is_down


@pytest.fixture(params=["embedded", pytest.param("services", marks=pytest.mark.external)])
def places(request: pytest.FixtureRequest) -> dict[str, str]:
    """Settings of a lab that keeps all in its process, and of one of several replicas."""
    if request.param == "embedded":
        return {"database_url": "sqlite://"}
    database = request.getfixturevalue("postgres_server").url
    return {"database_url": database, "redis_url": request.getfixturevalue("redis_server").url}
