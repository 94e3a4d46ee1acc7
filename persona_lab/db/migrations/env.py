"""Run by alembic, on the connection and inside the transaction that the caller opened."""

from alembic import context
from sqlmodel import SQLModel

from persona_lab.db import tables  # noqa: F401  (its tables are what the metadata holds)

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=SQLModel.metadata,
    render_as_batch=True,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
