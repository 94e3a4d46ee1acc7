"""What a conversation's cached context and its summary need; answers that came from the cache."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
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
