"""The store: one object with every query.

The queries are in one file per aggregate: :mod:`~persona_lab.db.users`,
:mod:`~persona_lab.db.personas`, :mod:`~persona_lab.db.versions`, :mod:`~persona_lab.db.chats`,
:mod:`~persona_lab.db.messages`, :mod:`~persona_lab.db.turns` and
:mod:`~persona_lab.db.generations`. :class:`Store` inherits them.

- Each query takes the user that it works for. No user reads or changes the rows of another.
- Methods are synchronous and short. Async code calls them through ``asyncio.to_thread``.
- A transaction never spans a call to a model. A write is complete or is rolled back.
- Returned rows are detached and fully loaded: they are readable without a session.
- Every method raises StorageError when the database fails, and DiskFull when it has no room.
- A row that is missing and a row of another user raise the same NotFound.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

from sqlmodel import delete, select

from persona_lab.db import migrations
from persona_lab.db.base import RESTORABLE
from persona_lab.db.chats import ChatQueries, ChatState
from persona_lab.db.engine import create_db_engine, limit_statement_time, translate_open_errors
from persona_lab.db.generations import GenerationQueries
from persona_lab.db.messages import TITLE_LENGTH, MessageQueries
from persona_lab.db.persona_rows import BURST, REVISIONS
from persona_lab.db.personas import CHOICES_FROM, AgentName, PersonaQueries
from persona_lab.db.prompt_parts import convert_old_rows, count_old_rows, is_unused
from persona_lab.db.tables import StoredPrompt
from persona_lab.db.turns import TurnQueries
from persona_lab.db.users import LAST_USED_PRECISION, MAX_API_TOKENS, TOKEN_PREFIX, UserQueries
from persona_lab.db.versions import VersionQueries
from persona_lab.deprecated import former_method
from persona_lab.errors import StorageError
from persona_lab.types import now

__all__ = [
    "BURST",
    "CHATS_AT_ONCE",
    "CHOICES_FROM",
    "LAST_USED_PRECISION",
    "MAX_API_TOKENS",
    "RESTORABLE",
    "REVISIONS",
    "TITLE_LENGTH",
    "TOKEN_PREFIX",
    "AgentName",
    "ChatState",
    "Store",
]

log = logging.getLogger(__name__)

PROGRESS_INTERVAL_S = 5.0
"""Seconds between two log lines of a conversion."""
CHATS_AT_ONCE = 100
"""Number of chats that one transaction converts after an upgrade."""


class Store(
    UserQueries,
    PersonaQueries,
    VersionQueries,
    ChatQueries,
    MessageQueries,
    TurnQueries,
    GenerationQueries,
):
    """The database at a URL: ``sqlite:///file``, ``sqlite://`` (in memory) or ``postgresql://``."""

    def __init__(self, url: str, *, clock: Callable[[], datetime] = now) -> None:
        """Open the database and bring its schema up to date.

        A SQLite file and its folder are created when they don't exist.

        Args:
            url: The address of the database.
            clock: Returns the current time, with a time zone.

        Raises:
            ConfigurationError: The URL is not usable (for example the database, a permission or a
                driver is missing), or the schema is newer than this code. The message is one line.
            DiskFull: The disk has no room.
        """
        with translate_open_errors(url) as address:
            super().__init__(create_db_engine(address), clock)
            try:
                migrations.upgrade(self._writer)
                self._tidy_prompts()
            except BaseException:
                self.engine.dispose()
                raise
            if self.engine.dialect.driver == "psycopg":
                limit_statement_time(self.engine, address)

    exchanges = former_method("Store", "exchanges", "list_exchanges")
    mark = former_method("Store", "mark", "chat_state")
    spent = former_method("Store", "spent", "total_cost")
    past_turns = former_method("Store", "past_turns", "list_generation_rows")

    def close(self) -> None:
        """Close all connections. An in-memory database is lost."""
        self.engine.dispose()

    def check(self) -> None:
        """Run a query that reads nothing, to see whether the database answers.

        Raises:
            StorageError: It doesn't answer.
        """
        with self._read() as session:
            session.exec(select(1)).one()

    def _tidy_prompts(self) -> None:
        """Convert rows of an older version, some chats at a time, and delete unused prompts.

        A chat that was deleted by SQL leaves its prompts behind. Prompts that other chats use stay.
        """
        converted, chats, reported = CHATS_AT_ONCE, 0, -PROGRESS_INTERVAL_S
        while converted == CHATS_AT_ONCE:
            with self._write() as session:
                converted = convert_old_rows(session, CHATS_AT_ONCE)
            chats += converted
            if converted and time.monotonic() - reported >= PROGRESS_INTERVAL_S:
                reported = time.monotonic()
                with self._read() as session:
                    remaining = count_old_rows(session)
                log.info(
                    "database upgrade: converted the answers of %d chats, %d answers left; "
                    "the server starts after that",
                    chats,
                    remaining,
                    extra={"event": "database_upgrade"},
                )
        with self._read() as session:
            if session.exec(select(StoredPrompt.hash).where(is_unused()).limit(1)).first() is None:
                return
        with suppress(StorageError), self._write() as session:  # a replica may use one by now
            session.exec(delete(StoredPrompt).where(is_unused()))
