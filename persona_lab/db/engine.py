"""Create database engines, and translate errors of the database."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import StaticPool

from persona_lab.db.error_mapping import map_storage_error
from persona_lab.errors import (
    ConfigurationError,
    DiskFull,
    StorageError,
)

BUSY_TIMEOUT_S = 30.0
"""Seconds that SQLite waits for a lock of another process."""

POSTGRES_TIMEOUTS = {
    "connect_timeout": "5",
    "tcp_user_timeout": "15000",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
}
"""Connection timeouts of PostgreSQL, unless the URL sets them.

``tcp_user_timeout`` is in milliseconds. It detects a host that no longer answers.
:func:`limit_statement_time` gives statements a timeout of the same length. Neither ends a statement
whose server process is frozen on a host that still answers: the readiness check reports that.
"""


def database_file(url: str) -> Path | None:
    """Return the file of a SQLite URL with links resolved; None when the database is not a file."""
    try:
        address = make_url(url)
    except (ArgumentError, ValueError):  # such as an invalid port
        return None  # opening the database reports the error
    name = address.database or ""
    if name.startswith("file:") and "uri" in address.query:
        name = "" if address.query.get("mode") == "memory" else unquote(urlsplit(name).path)
    if address.get_backend_name() != "sqlite" or name in ("", ":memory:"):
        return None
    try:
        return Path(name).resolve()
    except (OSError, RuntimeError):  # a cycle of links
        return Path(name).absolute()


@contextmanager
def translate_errors() -> Iterator[None]:
    """Raise our errors instead of those of SQLAlchemy and the driver."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error, UnicodeError) as error:
        raise map_storage_error(error) or StorageError() from error


@contextmanager
def translate_open_errors(url: str) -> Iterator[URL]:
    """Yield the parsed URL, and raise ConfigurationError for errors while the database opens.

    Raises:
        ConfigurationError: One line that names the setting.
        DiskFull: The disk has no room.
    """
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
    """Serialize as compact JSON. Lone surrogates, which UTF-8 can't encode, stay escaped."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":"))
    return text


def create_db_engine(url: URL) -> Engine:
    """Create an engine for SQLite, in a file or in memory, or for PostgreSQL."""
    if url.get_backend_name() != "sqlite":
        if url.drivername == "postgresql":
            url = url.set(drivername="postgresql+psycopg")
        url = url.set(query={**POSTGRES_TIMEOUTS, **url.query})
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
        connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False},
        hide_parameters=True,
        json_serializer=_to_json,
        **options,
    )
    event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def limit_statement_time(engine: Engine, url: URL) -> None:
    """Let PostgreSQL end a statement that takes longer than the URL's ``tcp_user_timeout``.

    Such a statement waits for a lock, for example. Migrations may take longer, so this function is
    called after them. A ``statement_timeout`` in the URL's ``options`` stays as it is.

    It is set by a statement, because a connection pooler such as PgBouncer refuses it among the
    options of a connection.
    """
    timeout = int(str(url.query.get("tcp_user_timeout", POSTGRES_TIMEOUTS["tcp_user_timeout"])))
    if timeout <= 0 or "statement_timeout" in str(url.query.get("options", "")):
        return

    def set_timeout(connection: DBAPIConnection, _record: object) -> None:
        connection.cursor().execute(f"SET statement_timeout = {timeout}")
        connection.commit()  # a rollback would undo it

    event.listen(engine, "connect", set_timeout)
    engine.dispose()  # open connections have no timeout


def _set_up_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # the driver would begin late and never "IMMEDIATE"
    _switch_to_wal(connection)
    for pragma in ("synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    """Set the journal mode to WAL, and retry while another process has a lock.

    SQLite's own busy timeout does not apply to this statement.
    """
    deadline = time.monotonic() + BUSY_TIMEOUT_S
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
