"""Indexes for lists of personas and chats."""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Create the indexes that lists of personas and chats are read by."""
    op.create_index("ix_agent_owner_id_updated_at", "agent", ["owner_id", "updated_at"])
    op.create_index("ix_agent_owner_id_name", "agent", ["owner_id", "name"])
    op.create_index("ix_chat_user_id_updated_at", "chat", ["user_id", "updated_at"])
    op.create_index(
        "ix_chat_agent_id_user_id_updated_at", "chat", ["agent_id", "user_id", "updated_at"]
    )
