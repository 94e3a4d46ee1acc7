"""``python -m persona_lab.db.migrations "why"``: write the next step from the changed tables."""

import sys

from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from persona_lab.db import migrations

if len(sys.argv) != 2:
    sys.exit(__doc__)
settings = migrations.config()
engine = create_engine("sqlite://")
with engine.connect() as connection:
    settings.attributes["connection"] = connection
    command.upgrade(settings, "head")
    steps = len(list(ScriptDirectory.from_config(settings).walk_revisions()))
    command.revision(settings, sys.argv[1], autogenerate=True, rev_id=f"{steps + 1:04d}")
