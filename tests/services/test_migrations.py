"""The schema's steps: each leads on from every earlier one with its rows, on both databases."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import JSON, Column, Connection, Engine, MetaData, create_engine, select, text
from sqlalchemy import inspect as look_at
from sqlalchemy.pool import NullPool
from sqlmodel import SQLModel
from support.backends import Service

from persona_lab.db import migrations
from persona_lab.db.store import Store
from persona_lab.settings import ROOT

STEPS = [
    step.revision for step in ScriptDirectory.from_config(migrations.config()).walk_revisions()
]
"""The newest first."""
MOMENT = datetime(2026, 4, 1, 12, 30, tzinfo=UTC)


class Base:
    """A database of one kind, with nothing in it."""

    def __init__(self, url: str, empty: Callable[[], None]) -> None:
        self.url = url
        self.empty = empty
        driver = url.replace("postgresql:", "postgresql+psycopg:")
        self.engine: Engine = create_engine(driver, poolclass=NullPool)

    def step_to(self, revision: str) -> None:
        settings = migrations.config()
        with self.engine.begin() as connection:
            settings.attributes["connection"] = connection
            command.upgrade(settings, revision)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.external)])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Base]:
    if request.param == "sqlite":
        path = tmp_path / "lab.db"
        made = Base(f"sqlite:///{path}", path.unlink)
    else:
        server: Service = request.getfixturevalue("postgres_server")
        server.empty()
        made = Base(server.url, server.empty)
    yield made
    made.engine.dispose()


def _said(index: Any) -> str:
    options = {name: str(value) for name, value in index.get("dialect_options", {}).items()}
    return str({**index, "dialect_options": options})


def tables(connection: Connection) -> dict[str, Any]:
    inspector = look_at(connection)
    return {
        table: (
            sorted(str(sorted(c.items(), key=str)) for c in inspector.get_columns(table)),
            sorted(map(_said, inspector.get_indexes(table))),
            sorted(map(str, inspector.get_foreign_keys(table))),
            sorted(map(str, inspector.get_unique_constraints(table))),
            inspector.get_pk_constraint(table)["constrained_columns"],
        )
        for table in inspector.get_table_names()
    }


def _json_default_differs(
    _context: Any, _found: Any, column: Column[Any], found: str | None, _default: Any, wanted: Any
) -> bool | None:
    """Compare texts: PostgreSQL can't compare JSON. None leaves other types to alembic."""
    if not isinstance(column.type, JSON):
        return None
    return (found or "").removesuffix("::json") != (wanted or "")


@pytest.mark.core
def test_the_steps_lead_to_the_tables_of_a_new_database_and_those_of_the_models(
    base: Base,
) -> None:
    base.step_to("head")
    with base.engine.connect() as connection:
        options = {"compare_type": True, "compare_server_default": _json_default_differs}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, SQLModel.metadata) == []
        assert migrations.current(connection) == migrations.HEAD
        by_steps = tables(connection)
    base.empty()
    Store(base.url).close()
    with base.engine.connect() as connection:
        assert tables(connection) == by_steps
        assert migrations.current(connection) == migrations.HEAD


def test_the_head_that_is_looked_for_is_the_newest_step() -> None:
    assert ScriptDirectory.from_config(migrations.config()).get_heads() == [migrations.HEAD]


ROWS: dict[str, list[dict[str, Any]]] = {
    "user": [{"id": "u", "secret_hash": "x" * 64}, {"id": "v"}],
    "agent": [
        {"id": "a", "owner_id": "u", "name": "さくら", "examples": [{"user": "空", "ai": "青"}]},
        {"id": "d", "seed": "demo", "name": "デモ", "deleted_at": MOMENT},
    ],
    "personality": [{"id": "p", "name": "明るい"}],
    "role": [{"id": "r", "name": "教師"}],
    "tone": [{"id": "t", "name": "敬語"}],
    "agentpersonality": [{"agent_id": "a", "personality_id": "p"}],
    "agentrole": [{"agent_id": "a", "role_id": "r"}],
    "agenttone": [{"agent_id": "a", "tone_id": "t", "position": 3}],
    "agentrevision": [{"id": 7, "agent_id": "a", "owner_id": "u", "persona": {"name": "前"}}],
    "agentversion": [
        {"id": "w", "agent_id": "a", "owner_id": "u", "number": 1, "persona": {"name": "前"},
         "options": {}, "templates": {}, "hash": "h"},
    ],
    "chat": [{"id": "c", "user_id": "u", "agent_id": "a", "title": "題"}],
    "message": [
        {"id": "m", "chat_id": "c", "position": 0, "sender": "user", "content": "やあ👩‍👩‍👧"},
        {"id": "n", "chat_id": "c", "position": 1, "sender": "ai", "content": "はい",
         "status": "ok", "details": {"prompt": "あ"}, "prompt_parts": {}},
    ],
    "prompt": [{"hash": "h", "user_id": "u", "content": "文章"}],
    "chatprompt": [{"chat_id": "c", "hash": "h"}],
    "turnrecord": [
        {"id": "x", "user_id": "u", "agent_id": "a", "chat_id": "c", "provider": "mock",
         "model": "echo", "status": "ok", "cost": 0.5},
    ],
    "apitoken": [{"id": "k", "user_id": "u", "name": "program", "token_hash": "y" * 64}],
}  # fmt: skip
"""Of every table there ever was. What is left out and must be there is filled in by type."""


def fill(connection: Connection) -> None:
    known = MetaData()
    known.reflect(connection)
    for table in known.sorted_tables:
        for given in ROWS.get(table.name, []):
            row = {name: value for name, value in given.items() if name in table.columns}
            for column in table.columns:
                if column.name not in row and not column.nullable and column.server_default is None:
                    row[column.name] = _any(column.type.python_type)
            connection.execute(table.insert().values(**row))


def _any(kind: type) -> Any:
    return {int: 0, float: 0.0, str: "", bool: False, datetime: MOMENT, object: []}[kind]


def everything(connection: Connection) -> dict[str, list[dict[str, Any]]]:
    known = MetaData()
    known.reflect(connection)
    return {
        table.name: sorted(
            map(dict, connection.execute(select(table)).mappings()),
            key=lambda row: json.dumps(row, default=str),
        )
        for table in known.sorted_tables
        if table.name != "alembic_version"
    }


@pytest.mark.parametrize("since", STEPS[1:])
def test_a_database_of_every_earlier_step_is_brought_up_to_date_with_all_its_rows(
    base: Base, since: str
) -> None:
    base.step_to(since)
    with base.engine.begin() as connection:
        fill(connection)
        before = everything(connection)
    assert all(before.values())
    assert set(before) <= set(ROWS)
    store = Store(base.url)
    with base.engine.connect() as connection:
        after = everything(connection)
        assert migrations.current(connection) == migrations.HEAD
    for table, rows in before.items():
        # Opening the store marks answers whose prompt it has converted.
        names = rows[0].keys() - {"prompt_parts"}
        kept = [{name: row[name] for name in names} for row in after[table]]
        given = [{name: row[name] for name in names} for row in rows]
        assert sorted(kept, key=str) == sorted(given, key=str), table
    [chat] = store.list_chats(user_id="u")
    assert (chat.title, chat.revision, chat.summary, chat.summary_through) == ("題", 0, "", -1)
    [record] = store.records(user_id="u")
    assert (record.cache_hit, record.user_key) == (False, False)
    asked, answered = store.messages("c", user_id="u")
    assert (asked.content, answered.details) == ("やあ👩‍👩‍👧", {"prompt": "あ"})
    store.add_message("c", user_id="u", sender="user", content="また")
    _, secret = store.create_token(user_id="u")
    assert store.user_for_token(secret).id == "u"
    store.close()


def test_migration_command_writes_a_file_that_passes_lint(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "persona_lab", tmp_path / "persona_lab")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    tables_file = tmp_path / "persona_lab/db/tables.py"
    versions = tmp_path / "persona_lab/db/migrations/versions"
    known = set(versions.glob("*.py"))

    def write_migration(columns: str) -> subprocess.CompletedProcess[str]:
        after = '    language: str = "ja"\n'
        source = (ROOT / "persona_lab/db/tables.py").read_text("utf-8")
        tables_file.write_text(source.replace(after, after + columns), "utf-8")
        command = [sys.executable, "-m", "persona_lab.db.migrations", "Add a trial."]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    refused = write_migration('    trial_name: str = ""\n')
    assert refused.returncode == 1
    assert "agent.trial_name has no default in the database" in refused.stderr
    assert set(versions.glob("*.py")) == known

    made = write_migration(
        '    trial_name: str = _added_field("it\'s")\n'
        "    trial_list: list[str] = _added_field([])\n"
        "    trial_flag: bool = _added_field(False)\n"
        "    trial_number: int = _added_field(-1)\n"
    )
    assert made.returncode == 0, made.stderr
    [file] = set(versions.glob("*.py")) - known
    assert file.name == f"{int(migrations.HEAD) + 1:04d}_add_a_trial.py"
    for check in (["check"], ["format", "--check"]):
        subprocess.run([sys.executable, "-m", "ruff", *check, file], cwd=tmp_path, check=True)
    written = file.read_text("utf-8")
    assert written.startswith('"""Add a trial."""\n')
    for default in ("sa.text(\"'it''s'\")", "sa.text(\"'[]'\")", "sa.false()", 'sa.text("-1")'):
        assert f"server_default={default}, nullable=False" in written


def test_a_replica_of_the_version_before_goes_on_writing_after_the_step(base: Base) -> None:
    Store(base.url).close()
    new = {"revision", "summary", "summary_through", "cache_hit", "own"}
    with base.engine.begin() as connection:
        known = MetaData()
        known.reflect(connection)
        assert new <= {c.name for table in known.sorted_tables for c in table.columns}
        fill(connection)  # it leaves out what has a default, and knows nothing of it
        row = connection.execute(text("SELECT revision, summary, summary_through FROM chat")).one()
        assert tuple(row) == (0, "", -1)
