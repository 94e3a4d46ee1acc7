"""Lists of a user's personas and chats are read in their order, a page at a time."""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_index("ix_agent_owner_id_updated_at", "agent", ["owner_id", "updated_at"])
    op.create_index("ix_agent_owner_id_name", "agent", ["owner_id", "name"])
    op.create_index("ix_chat_user_id_updated_at", "chat", ["user_id", "updated_at"])
    op.create_index(
        "ix_chat_agent_id_user_id_updated_at", "chat", ["agent_id", "user_id", "updated_at"]
    )
