"""Generations that a user's own key paid for; an index of streamed messages."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add whether a user's own key paid, and an index of streamed messages."""
    with op.batch_alter_table("turnrecord") as table:
        table.add_column(sa.Column("own", sa.Boolean(), server_default=sa.false(), nullable=False))
    streaming = sa.text("status = 'streaming'")
    op.create_index(
        "ix_message_streaming",
        "message",
        ["chat_id"],
        sqlite_where=streaming,
        postgresql_where=streaming,
    )
