"""Create database engines, and translate driver errors."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from sqlalchemy import (
    URL,
    Connection,
    Engine,
    create_engine,
    event,
    make_url,
)
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import StaticPool

from persona_lab.db.error_mapping import map_storage_error
from persona_lab.errors import (
    ConfigurationError,
    DiskFull,
    StorageError,
)

BUSY_TIMEOUT = 30.0
"""Seconds that SQLite waits for another's transaction."""

POSTGRES = {
    "connect_timeout": "5",
    "tcp_user_timeout": "15000",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
}
"""How long PostgreSQL may take to accept a connection and be silent, where the address doesn't
say: a server that hangs is one that is away. The system sees only whether the other one's system is
there (``tcp_user_timeout``, in milliseconds): whether a statement is answered we see to ourselves,
by the same number."""


def database_file(url: str) -> Path | None:
    """The file behind a SQLite ``url``, past links and however it is written; None without one."""
    try:
        address = make_url(url)
    except (ArgumentError, ValueError):  # a port that is none
        return None  # opening it will say what is wrong
    name = address.database or ""
    if name.startswith("file:") and "uri" in address.query:
        name = "" if address.query.get("mode") == "memory" else unquote(urlsplit(name).path)
    if address.get_backend_name() != "sqlite" or name in ("", ":memory:"):
        return None
    try:
        return Path(name).resolve()
    except (OSError, RuntimeError):  # links that go round in a circle
        return Path(name).absolute()


@contextmanager
def translate_errors() -> Iterator[None]:
    """Errors of the database and of its driver leave as ours."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error, UnicodeError) as error:
        raise map_storage_error(error) or StorageError() from error


@contextmanager
def translate_open_errors(url: str) -> Iterator[URL]:
    """The parsed ``url``; whatever goes wrong within becomes one line that names the variable."""
    try:
        yield make_url(url)
    except (SQLAlchemyError, sqlite3.Error, OSError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(map_storage_error(error), DiskFull):
            raise DiskFull() from error
        reason = " ".join(str(getattr(error, "orig", None) or error).split())
        raise ConfigurationError(f"DATABASE_URL: {reason}") from error
    except ModuleNotFoundError as error:
        wanted = "psycopg[binary]" if error.name == "psycopg" else error.name
        raise ConfigurationError(f"DATABASE_URL needs a driver: pip install '{wanted}'") from error


def _to_json(value: Any) -> str:
    """Compact JSON; halves of surrogate pairs, which UTF-8 can't hold, stay escaped."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":"))
    return text


def create_db_engine(url: URL) -> Engine:
    if url.get_backend_name() != "sqlite":
        if url.drivername == "postgresql":
            url = url.set(drivername="postgresql+psycopg")
        url = url.set(query={**POSTGRES, **url.query})
        return create_engine(
            url, pool_pre_ping=True, hide_parameters=True, json_serializer=_to_json
        )
    options: dict[str, Any] = {"pool_size": 8, "max_overflow": -1}
    if url.database in (None, "", ":memory:"):
        options = {"poolclass": StaticPool}
    elif not str(url.database).startswith("file:"):
        Path(str(url.database)).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(
        url,
        connect_args={"timeout": BUSY_TIMEOUT, "check_same_thread": False},
        hide_parameters=True,
        json_serializer=_to_json,
        **options,
    )
    event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _expect_words(engine: Engine, url: URL) -> None:
    """From here on a server that says nothing to a statement for too long is away: it may be
    stopped, and its system go on to accept what is sent. To bring a schema up to date may take
    longer."""
    said = url.query.get("tcp_user_timeout", POSTGRES["tcp_user_timeout"])
    silence = int(str(said)) / 1000
    if silence > 0:
        event.listen(engine, "do_connect", partial(_connect, silence))
        engine.dispose()  # those that are open were made without


def _connect(silence: float, _dialect: object, _record: object, args: Any, fields: Any) -> Any:
    connection = _impatient().connect(*args, **fields)
    connection.silence = silence
    return connection


@cache
def _impatient() -> Any:
    import psycopg

    class Silent(psycopg.OperationalError):
        """Nothing came. The connection is closed: an answer to the last question may still come."""

    class Impatient(psycopg.Connection[Any]):
        silence: float

        def wait(self, gen: Any, *args: Any, **options: Any) -> Any:
            try:
                return super().wait(heard(gen, self.silence), *args, **options)
            except Silent:
                self.close()
                raise

    def heard(work: Any, silence: float) -> Any:
        """``work``, which psycopg wakes whether something has come or not, every tenth of a
        second."""
        end = time.monotonic() + silence
        try:
            wanted = next(work)
            while True:
                ready = yield wanted
                if ready:
                    end = time.monotonic() + silence
                elif time.monotonic() > end:
                    raise Silent(f"the server says nothing for {silence:g} s")
                wanted = work.send(ready)
        except StopIteration as done:
            return done.value

    return Impatient


def _set_up_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # the driver would begin late and never "IMMEDIATE"
    _switch_to_wal(connection)
    for pragma in ("synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    """SQLite doesn't wait for others when it changes the journal's mode, but says at once that
    the database is locked: the waiting is ours."""
    deadline = time.monotonic() + BUSY_TIMEOUT
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL").close()
            return
        except sqlite3.OperationalError as error:
            busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not busy or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("persona_lab_writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
