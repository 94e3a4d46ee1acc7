"""Sessions on the database, for the classes with queries."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.pool import StaticPool
from sqlmodel import Session

from persona_lab.db.engine import translate_errors

RESTORABLE = timedelta(days=1)
"""How long the page offers to restore a deleted row. The row itself stays in the database."""


class StoreBase:
    """A database engine with read sessions and write sessions.

    It is safe to use from many threads. SQLite allows one writer at a time: threads of this process
    wait for a lock, and other processes wait up to 30 seconds for the file.
    """

    def __init__(self, engine: Engine, clock: Callable[[], datetime]) -> None:
        self.engine = engine
        self._clock = clock
        # A SQLite transaction that begins with a read can fail when it writes later: write sessions
        # take the lock at their beginning.
        self._writer = engine.execution_options(persona_lab_writes=True)
        in_memory = isinstance(engine.pool, StaticPool)
        lock = threading.RLock()
        self._write_lock: AbstractContextManager[Any] = (
            lock if engine.dialect.name == "sqlite" else nullcontext()
        )
        # In memory, all threads share one connection, which holds the data.
        self._read_lock: AbstractContextManager[Any] = lock if in_memory else nullcontext()

    @contextmanager
    def _read(self) -> Iterator[Session]:
        """Open a session that only reads."""
        with (
            translate_errors(),
            self._read_lock,
            Session(self.engine, expire_on_commit=False) as session,
        ):
            yield session

    @contextmanager
    def _write(self) -> Iterator[Session]:
        """Open a session that commits at its end, and rolls back after an error."""
        with (
            translate_errors(),
            self._write_lock,
            Session(self._writer, expire_on_commit=False) as session,
        ):
            yield session
            session.commit()
