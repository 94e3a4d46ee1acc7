"""Versions of personas: committed states, beside the draft that the persona’s row is."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Create the table of versions."""
    op.create_table(
        "agentversion",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("agent_id", sa.String(), nullable=False),
        sa.Column("owner_id", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("message", sa.String(), nullable=False),
        sa.Column("persona", sa.JSON(), nullable=False),
        sa.Column("options", sa.JSON(), nullable=False),
        sa.Column("templates", sa.JSON(), nullable=False),
        sa.Column("hash", sa.String(), nullable=False),
        sa.Column("restored_from", sa.Integer(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["agent_id"], ["agent.id"], name=op.f("fk_agentversion_agent_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["owner_id"], ["user.id"], name=op.f("fk_agentversion_owner_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_agentversion")),
        sa.UniqueConstraint("agent_id", "number", name=op.f("uq_agentversion_agent_id_number")),
    )
    with op.batch_alter_table("agentversion", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_agentversion_owner_id"), ["owner_id"], unique=False)
