"""Every query, each taking the user it is for: nobody reads or changes another's rows.

Methods are synchronous and short (call them through ``asyncio.to_thread``); a transaction never
spans a call to a model. What they return is detached and whole: readable without a session.

All methods raise StorageError when the database fails (DiskFull when it has no room) and NotFound
for a row that is missing or another user's: which of the two isn't told. Nothing is half written.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

from sqlmodel import delete, select

from persona_lab.db import migrations
from persona_lab.db.base import RESTORABLE
from persona_lab.db.chats import ChatQueries, ChatState
from persona_lab.db.deprecated import FormerNames
from persona_lab.db.engine import _expect_words, create_db_engine, translate_open_errors
from persona_lab.db.generations import GenerationQueries
from persona_lab.db.messages import TITLE_LENGTH, MessageQueries
from persona_lab.db.persona_rows import BURST, REVISIONS
from persona_lab.db.personas import CHOICES_FROM, AgentName, PersonaQueries
from persona_lab.db.prompt_parts import convert, orphans
from persona_lab.db.tables import StoredPrompt
from persona_lab.db.users import PREFIX, TOKENS, USED_EVERY, UserQueries
from persona_lab.errors import StorageError
from persona_lab.types import now

__all__ = [
    "BURST",
    "CHATS_AT_ONCE",
    "CHOICES_FROM",
    "PREFIX",
    "RESTORABLE",
    "REVISIONS",
    "TITLE_LENGTH",
    "TOKENS",
    "USED_EVERY",
    "AgentName",
    "ChatState",
    "Store",
]

CHATS_AT_ONCE = 100
"""Chats that are converted in one transaction after an update."""


class Store(
    UserQueries, PersonaQueries, ChatQueries, MessageQueries, GenerationQueries, FormerNames
):
    """The database behind ``url``: ``sqlite:///file``, ``sqlite://`` (in memory), ``postgresql://``.

    Safe to use from many threads. SQLite takes one writer at a time: writers of this process wait
    in line for a lock, those of other processes up to 30 seconds for the file.
    """

    def __init__(self, url: str, *, clock: Callable[[], datetime] = now) -> None:
        """Open the database, making it and its folder if need be, and bring its schema up to date.

        ``clock`` gives aware moments. Raises ConfigurationError with one line when ``url`` can't be
        used: no database, no permission, no driver, or a schema newer than this code.
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
                _expect_words(self.engine, address)

    def close(self) -> None:
        """Let go of all connections. What was in memory is gone."""
        self.engine.dispose()

    def check(self) -> None:
        """Whether the database answers."""
        with self._read() as session:
            session.exec(select(1)).one()

    def _tidy_prompts(self) -> None:
        """Convert rows of the version before, a few chats at a time, and delete unused prompts.

        A chat that is deleted by hand leaves its prompts; those that other chats need stay.
        """
        converted = CHATS_AT_ONCE
        while converted == CHATS_AT_ONCE:
            with self._write() as session:
                converted = convert(session, CHATS_AT_ONCE)
        with self._read() as session:
            if session.exec(select(StoredPrompt.hash).where(orphans()).limit(1)).first() is None:
                return
        with suppress(StorageError), self._write() as session:  # another replica may need one now
            session.exec(delete(StoredPrompt).where(orphans()))
