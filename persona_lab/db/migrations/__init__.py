"""Schema migrations: upgrade a database to the current schema.

After a change of ``db/tables.py``, ``make migration WHY="…"`` writes a migration from the
difference between the tables and the last one. Migrations only go forward.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, inspect, text
from sqlmodel import SQLModel

from persona_lab.db import tables  # noqa: F401  (its tables are what the metadata holds)
from persona_lab.errors import ConfigurationError

if TYPE_CHECKING:
    from alembic.config import Config

HEAD = max(
    file.name.partition("_")[0] for file in (Path(__file__).parent / "versions").glob("[0-9]*.py")
)
"""The id of the newest migration, which is the number in its file name. It isn't read with alembic,
because a start on a current database doesn't import alembic: that takes 0.2 to 0.4 s.
"""

_VERSION_TABLE = (
    "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL, "
    "CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))"
)
"""The same statement as alembic's."""

_alembic_lock = threading.Lock()
"""Alembic's migration context is global in a process."""


def upgrade(engine: Engine) -> None:
    """Upgrade a database to :data:`HEAD` in one transaction.

    An empty database gets the current tables at once, without alembic; a test checks that both ways
    give the same schema.

    Args:
        engine: Its transactions must lock out other writers from their beginning.

    Raises:
        ConfigurationError: A newer Persona Lab or another program made the database.
    """
    with engine.connect() as connection:
        if current(connection) == HEAD:
            return
        connection.rollback()
        with connection.begin():
            _lock_out_other_processes(connection)
            if not inspect(connection).get_table_names():
                SQLModel.metadata.create_all(connection)
                connection.execute(text(_VERSION_TABLE))
                connection.execute(
                    text("INSERT INTO alembic_version VALUES (:head)"), {"head": HEAD}
                )
                return
        from alembic import command

        settings = config()
        with _alembic_lock, _foreign_keys_off(connection), connection.begin():
            _lock_out_other_processes(connection)
            _refuse_unknown_schema(connection)
            settings.attributes["connection"] = connection
            command.upgrade(settings, "head")


def _lock_out_other_processes(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7265)")


def current(connection: Connection) -> str | None:
    """Return the id of the database's last migration; None when it has none."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return found


def config() -> Config:
    """Return alembic's configuration. The caller sets ``attributes["connection"]``."""
    from alembic.config import Config

    settings = Config()
    settings.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return settings


def _refuse_unknown_schema(connection: Connection) -> None:
    from alembic.script import ScriptDirectory

    found = current(connection)
    steps = ScriptDirectory.from_config(config()).walk_revisions()
    if found is None:
        tables = sorted(inspect(connection).get_table_names())
        if tables:
            raise ConfigurationError(
                "DATABASE_URL names a database of another program (it holds "
                f"{', '.join(tables[:3])}); choose an empty one"
            )
    elif found not in {step.revision for step in steps}:
        raise ConfigurationError(
            f"DATABASE_URL names a database of a newer Persona Lab (schema {found}, this one knows "
            f"{HEAD}); update the program or choose another database"
        )


@contextmanager
def _foreign_keys_off(connection: Connection) -> Iterator[None]:
    """Switch off foreign keys in SQLite.

    A migration that rebuilds a table drops the old one, which would delete rows that refer to it.
    The switch has no effect inside a transaction.
    """
    raw = connection.connection.dbapi_connection
    if connection.dialect.name != "sqlite" or raw is None:
        yield
        return
    raw.cursor().execute("PRAGMA foreign_keys=OFF")
    try:
        yield
    finally:
        raw.cursor().execute("PRAGMA foreign_keys=ON")
