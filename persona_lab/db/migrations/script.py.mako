"""${message.rstrip(".")}."""

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}

<% steps = [line for line in upgrades.splitlines() if "# ###" not in line] %>
def upgrade() -> None:
    """${message.rstrip(".")}."""
    ${"\n".join(steps).strip() or "pass"}
