"""Labels of personas, which tell copies of one name apart."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Add the column."""
    op.add_column(
        "agent", sa.Column("label", sa.String(), server_default=sa.text("''"), nullable=False)
    )
