"""Statements that more than one file of queries needs."""

from __future__ import annotations

from typing import Any

from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session, SQLModel


def insert_new(session: Session, table: str, rows: list[dict[str, Any]]) -> None:
    """Insert ``rows`` and skip those that exist, also when others insert the same at once."""
    dialect = {"sqlite": sqlite, "postgresql": postgresql}[session.get_bind().dialect.name]
    insert = dialect.insert(SQLModel.metadata.tables[table]).on_conflict_do_nothing()
    session.connection().execute(insert, rows)


def is_id(value: object) -> bool:
    """Return whether ``value`` can be an id.

    Drivers fail on NUL and on lone surrogates, so such values never reach a query.
    """
    return isinstance(value, str) and value.isascii() and value.isprintable()
