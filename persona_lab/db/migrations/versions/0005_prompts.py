"""Prompts are stored once, and answers refer to them. Rows are converted when the store opens."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Create the tables of prompts, and the column that refers to them."""
    op.create_table(
        "prompt",
        sa.Column("hash", sa.String(), nullable=False),
        sa.Column("user_id", sa.String(), nullable=False),
        sa.Column("content", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["user.id"], name="fk_prompt_user_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("hash", name="pk_prompt"),
    )
    op.create_table(
        "chatprompt",
        sa.Column("chat_id", sa.String(), nullable=False),
        sa.Column("hash", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["chat_id"], ["chat.id"], name="fk_chatprompt_chat_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["hash"], ["prompt.hash"], name="fk_chatprompt_hash"),
        sa.PrimaryKeyConstraint("chat_id", "hash", name="pk_chatprompt"),
    )
    op.create_index("ix_chatprompt_hash", "chatprompt", ["hash"])
    op.add_column("message", sa.Column("prompt_parts", sa.JSON(), nullable=True))
    unconverted = sa.text("prompt_parts IS NULL AND sender = 'ai'")
    op.create_index(
        "ix_message_unconverted",
        "message",
        ["chat_id"],
        sqlite_where=unconverted,
        postgresql_where=unconverted,
    )
