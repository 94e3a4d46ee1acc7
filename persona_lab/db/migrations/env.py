"""Run by alembic, on the connection and inside the transaction that the caller opened."""

from typing import Any, Literal

from alembic import context
from sqlalchemy import False_, TextClause, True_, TypeDecorator
from sqlmodel import SQLModel

from persona_lab.db import tables  # noqa: F401  (its tables are what the metadata holds)


def _render_item(kind: str, item: Any, _context: Any) -> str | Literal[False]:
    """Write what alembic would write for SQLite or with SQLModel's name; False for all else."""
    if kind == "type" and isinstance(item, TypeDecorator):
        return f"sa.{item.impl!r}"
    if kind == "server_default" and isinstance(item.arg, False_ | True_):
        return f"sa.{item.arg}()"
    if kind == "server_default" and isinstance(item.arg, TextClause):
        return f"sa.text({item.arg.text!r})"
    return False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=SQLModel.metadata,
    render_as_batch=True,
    render_item=_render_item,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
