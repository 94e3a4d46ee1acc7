"""Statements that more than one file of queries needs."""

from __future__ import annotations

from typing import Any

from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session, SQLModel


def insert_new(session: Session, table: str, rows: list[dict[str, Any]]) -> None:
    """Insert those of ``rows`` that aren't there yet, also while others insert the same."""
    dialect = {"sqlite": sqlite, "postgresql": postgresql}[session.get_bind().dialect.name]
    insert = dialect.insert(SQLModel.metadata.tables[table]).on_conflict_do_nothing()
    session.connection().execute(insert, rows)


def is_id(given: object) -> bool:
    """Whether ``given`` can name a row; drivers choke on NUL and on halves of surrogate pairs."""
    return isinstance(given, str) and given.isascii() and given.isprintable()
