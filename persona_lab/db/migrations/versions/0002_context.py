"""Revisions and summaries of chats; generations that the cache answered."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add revision and summary to chats, and cache hits to generations."""
    with op.batch_alter_table("chat") as table:
        table.add_column(
            sa.Column("revision", sa.Integer(), server_default=sa.text("0"), nullable=False)
        )
        table.add_column(
            sa.Column("summary", sa.String(), server_default=sa.text("''"), nullable=False)
        )
        table.add_column(
            sa.Column("summary_through", sa.Integer(), server_default=sa.text("-1"), nullable=False)
        )
    with op.batch_alter_table("turnrecord") as table:
        table.add_column(
            sa.Column("cache_hit", sa.Boolean(), server_default=sa.false(), nullable=False)
        )
