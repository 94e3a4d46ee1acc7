"""Retry database writes that failed while the database was away."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from persona_lab.errors import PersonaLabError, StorageError

if TYPE_CHECKING:
    pass


log = logging.getLogger("persona_lab.service")

MOST = 256
"""Answers that wait for a store which is away: as many as are under way when it goes, at most."""
_LONGEST_PAUSE = 60
"""How many times as long as the first a pause between two tries grows."""


class FailedWriteRetrier:
    """Answers that an outage of the store kept from being kept, each tried again until it is.

    That happens by itself, after pauses that grow; before the next turn of its chat, which waits
    for it; and for the last time at the end. At most :data:`MOST` wait.
    """

    def __init__(self, turns: WeakValueDictionary[str, asyncio.Lock], pause: float) -> None:
        self._turns = turns
        self._pause = pause
        self._waiting: dict[str, Callable[[], Awaitable[object]]] = {}
        self._trying: asyncio.Task[None] | None = None

    def add(self, chat_id: str, keep: Callable[[], Awaitable[object]]) -> None:
        """``keep`` is to be done again, after the turn that is under way."""
        self._waiting[chat_id] = keep
        if len(self._waiting) > MOST:
            self._lose(next(iter(self._waiting)))
        if self._trying is None or self._trying.done():
            # It belongs to no request: its lines in the log are told as those of none.
            self._trying = asyncio.create_task(self._try(), context=contextvars.Context())

    async def keep(self, chat_id: str) -> None:
        """Keep the chat's answer now, if one waits. Raises StorageError."""
        keep = self._waiting.get(chat_id)
        if keep is not None:
            await keep()
            self._waiting.pop(chat_id, None)
            log.info("an answer is kept", extra={"event": "answer_kept", "chat_id": chat_id})

    async def aclose(self) -> None:
        trying = self._trying
        if trying is not None and trying.get_loop() is asyncio.get_running_loop():
            trying.cancel()
            await asyncio.wait([trying])
        for chat_id in list(self._waiting):
            with contextlib.suppress(PersonaLabError):
                await self.keep(chat_id)

    async def _try(self) -> None:
        pause = self._pause
        while self._waiting:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE * self._pause)
            for chat_id in list(self._waiting):
                turn = self._turns.setdefault(chat_id, asyncio.Lock())
                if turn.locked():  # it does so itself
                    continue
                try:
                    async with turn:
                        await self.keep(chat_id)
                except StorageError:  # the others would fare no better, and have the next go first
                    if chat_id in self._waiting:
                        self._waiting[chat_id] = self._waiting.pop(chat_id)
                    break
                except Exception as error:  # noqa: BLE001 - its chat is gone, say: it never will be
                    self._lose(chat_id, type(error).__name__)

    def _lose(self, chat_id: str, why: str = "too many wait") -> None:
        self._waiting.pop(chat_id, None)
        about = {"event": "answer_lost", "chat_id": chat_id, "error_class": why}
        log.error("an answer is lost", extra=about)
