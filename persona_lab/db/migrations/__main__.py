"""``make migration WHY="…"``: write the next migration from the changed tables."""

import sys
from typing import Any

from alembic import command
from alembic.operations.ops import AddColumnOp
from sqlalchemy import create_engine

from persona_lab.db import migrations

FORMATTERS = {"fix": "check --fix --silent", "format": "format --quiet"}
"""How ruff makes the written file pass ``make lint``."""


def _refuse_missing_defaults(_context: Any, _revision: Any, directives: list[Any]) -> None:
    """Exit if a new column has no value for the rows that are there, before a file is written."""
    for table in directives[0].upgrade_ops.ops:
        for step in getattr(table, "ops", []):
            if not isinstance(step, AddColumnOp):
                continue
            if not step.column.nullable and step.column.server_default is None:
                sys.exit(
                    f"{step.table_name}.{step.column.name} has no default in the database, which "
                    "its rows need: declare it with _added_field in db/tables.py"
                )


if len(sys.argv) != 2 or not sys.argv[1]:
    sys.exit(__doc__)
settings = migrations.config()
settings.set_section_option("post_write_hooks", "hooks", ", ".join(FORMATTERS))
for name, options in FORMATTERS.items():
    settings.set_section_option("post_write_hooks", f"{name}.type", "module")
    settings.set_section_option("post_write_hooks", f"{name}.module", "ruff")
    settings.set_section_option(
        "post_write_hooks", f"{name}.options", f"{options} REVISION_SCRIPT_FILENAME"
    )
with create_engine("sqlite://").connect() as connection:
    settings.attributes["connection"] = connection
    command.upgrade(settings, "head")
    command.revision(
        settings,
        sys.argv[1],
        autogenerate=True,
        rev_id=f"{int(migrations.HEAD) + 1:04d}",
        process_revision_directives=_refuse_missing_defaults,
    )
