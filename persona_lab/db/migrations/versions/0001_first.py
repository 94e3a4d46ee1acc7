"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the first tables."""
    op.create_table(
        "personality",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_personality"),
    )
    op.create_index("ix_personality_name", "personality", ["name"], unique=True)

    op.create_table(
        "role",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_role"),
    )
    op.create_index("ix_role_name", "role", ["name"], unique=True)

    op.create_table(
        "tone",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_tone"),
    )
    op.create_index("ix_tone_name", "tone", ["name"], unique=True)

    op.create_table(
        "user",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("secret_hash", sa.String(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_user"),
    )
    op.create_index("ix_user_secret_hash", "user", ["secret_hash"], unique=True)

    op.create_table(
        "agent",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("owner_id", sa.String(), nullable=True),
        sa.Column("seed", sa.String(), nullable=True),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("description", sa.String(), nullable=False),
        sa.Column("gender", sa.String(), nullable=False),
        sa.Column("background", sa.String(), nullable=False),
        sa.Column("first_person", sa.String(), nullable=False),
        sa.Column("second_person", sa.String(), nullable=False),
        sa.Column("sentence_endings", sa.JSON(), nullable=False),
        sa.Column("catchphrases", sa.JSON(), nullable=False),
        sa.Column("forbidden_words", sa.JSON(), nullable=False),
        sa.Column("examples", sa.JSON(), nullable=False),
        sa.Column("greeting", sa.String(), nullable=False),
        sa.Column("language", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["owner_id"], ["user.id"], name="fk_agent_owner_id"),
        sa.PrimaryKeyConstraint("id", name="pk_agent"),
        sa.UniqueConstraint("seed", name="uq_agent_seed"),
    )
    op.create_index("ix_agent_owner_id", "agent", ["owner_id"])

    op.create_table(
        "turnrecord",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("user_id", sa.String(), nullable=False),
        sa.Column("agent_id", sa.String(), nullable=False),
        sa.Column("chat_id", sa.String(), nullable=True),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("provider", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("error_type", sa.String(), nullable=True),
        sa.Column("prompt_tokens", sa.Integer(), nullable=False),
        sa.Column("completion_tokens", sa.Integer(), nullable=False),
        sa.Column("cached_tokens", sa.Integer(), nullable=False),
        sa.Column("first_token_ms", sa.Float(), nullable=True),
        sa.Column("total_ms", sa.Float(), nullable=False),
        sa.Column("cost", sa.Float(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["user.id"], name="fk_turnrecord_user_id"),
        sa.PrimaryKeyConstraint("id", name="pk_turnrecord"),
    )
    op.create_index("ix_turnrecord_agent_id", "turnrecord", ["agent_id"])
    op.create_index("ix_turnrecord_chat_id", "turnrecord", ["chat_id"])
    op.create_index("ix_turnrecord_created_at", "turnrecord", ["created_at"])
    op.create_index("ix_turnrecord_user_id", "turnrecord", ["user_id"])

    op.create_table(
        "agentpersonality",
        sa.Column("agent_id", sa.String(), nullable=False),
        sa.Column("personality_id", sa.String(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["agent_id"], ["agent.id"], name="fk_agentpersonality_agent_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["personality_id"], ["personality.id"], name="fk_agentpersonality_personality_id"
        ),
        sa.PrimaryKeyConstraint("agent_id", "personality_id", name="pk_agentpersonality"),
    )
    op.create_table(
        "agentrevision",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("agent_id", sa.String(), nullable=False),
        sa.Column("owner_id", sa.String(), nullable=False),
        sa.Column("persona", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["agent_id"], ["agent.id"], name="fk_agentrevision_agent_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["owner_id"], ["user.id"], name="fk_agentrevision_owner_id"),
        sa.PrimaryKeyConstraint("id", name="pk_agentrevision"),
    )
    op.create_index("ix_agentrevision_agent_id", "agentrevision", ["agent_id"])
    op.create_index("ix_agentrevision_owner_id", "agentrevision", ["owner_id"])

    op.create_table(
        "agentrole",
        sa.Column("agent_id", sa.String(), nullable=False),
        sa.Column("role_id", sa.String(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["agent_id"], ["agent.id"], name="fk_agentrole_agent_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["role_id"], ["role.id"], name="fk_agentrole_role_id"),
        sa.PrimaryKeyConstraint("agent_id", "role_id", name="pk_agentrole"),
    )
    op.create_table(
        "agenttone",
        sa.Column("agent_id", sa.String(), nullable=False),
        sa.Column("tone_id", sa.String(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["agent_id"], ["agent.id"], name="fk_agenttone_agent_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["tone_id"], ["tone.id"], name="fk_agenttone_tone_id"),
        sa.PrimaryKeyConstraint("agent_id", "tone_id", name="pk_agenttone"),
    )
    op.create_table(
        "chat",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("user_id", sa.String(), nullable=False),
        sa.Column("agent_id", sa.String(), nullable=False),
        sa.Column("title", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["agent_id"], ["agent.id"], name="fk_chat_agent_id"),
        sa.ForeignKeyConstraint(["user_id"], ["user.id"], name="fk_chat_user_id"),
        sa.PrimaryKeyConstraint("id", name="pk_chat"),
    )
    op.create_index("ix_chat_agent_id", "chat", ["agent_id"])
    op.create_index("ix_chat_updated_at", "chat", ["updated_at"])
    op.create_index("ix_chat_user_id", "chat", ["user_id"])

    op.create_table(
        "message",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("chat_id", sa.String(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("sender", sa.String(), nullable=False),
        sa.Column("content", sa.String(), nullable=False),
        sa.Column("image_url", sa.String(), nullable=True),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("superseded", sa.Boolean(), nullable=False),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["chat_id"], ["chat.id"], name="fk_message_chat_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_message"),
        sa.UniqueConstraint("chat_id", "position", name="uq_message_chat_id_position"),
    )
