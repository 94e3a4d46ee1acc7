"""Sessions on the database: the base of every class of queries."""

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
"""How long the page offers to bring back what was deleted. It stays in the database."""


class StoreBase:
    """An engine, with sessions to read and to write.

    Safe to use from many threads. SQLite takes one writer at a time: writers of this process wait
    in line for a lock, those of other processes up to 30 seconds for the file.
    """

    def __init__(self, engine: Engine, clock: Callable[[], datetime]) -> None:
        self.engine = engine
        self._clock = clock
        # A transaction that begins by reading can't always go on to write in SQLite: those
        # that mean to write say so at their beginning.
        self._writer = engine.execution_options(persona_lab_writes=True)
        in_memory = isinstance(engine.pool, StaticPool)
        lock = threading.RLock()
        self._writing: AbstractContextManager[Any] = (
            lock if engine.dialect.name == "sqlite" else nullcontext()
        )
        # In memory, all threads share the one connection that holds the data.
        self._reading: AbstractContextManager[Any] = lock if in_memory else nullcontext()

    @contextmanager
    def _read(self) -> Iterator[Session]:
        with (
            translate_errors(),
            self._reading,
            Session(self.engine, expire_on_commit=False) as session,
        ):
            yield session

    @contextmanager
    def _write(self) -> Iterator[Session]:
        with (
            translate_errors(),
            self._writing,
            Session(self._writer, expire_on_commit=False) as session,
        ):
            yield session
            session.commit()
