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
"""The largest number of answers that wait for an unreachable store."""
_MAX_PAUSE_FACTOR = 60
"""The longest pause between two attempts, as a multiple of the first pause."""


class FailedWriteRetrier:
    """Retries the writes of answers that failed because the store was unreachable.

    A write is retried in the background with growing pauses, before the next turn of its chat, and
    at :meth:`aclose`. At most :data:`MOST` answers wait; the oldest is dropped after that.

    Args:
        turns: The lock of each chat that has a turn.
        pause: Seconds before the first retry.
    """

    def __init__(self, turns: WeakValueDictionary[str, asyncio.Lock], pause: float) -> None:
        self._turns = turns
        self._pause = pause
        self._waiting: dict[str, Callable[[], Awaitable[object]]] = {}
        self._retry_task: asyncio.Task[None] | None = None

    def add(self, chat_id: str, keep: Callable[[], Awaitable[object]]) -> None:
        """Retry ``keep``, the write of a chat's answer, after the current turn."""
        self._waiting[chat_id] = keep
        if len(self._waiting) > MOST:
            self._drop(next(iter(self._waiting)))
        if self._retry_task is None or self._retry_task.done():
            # The task belongs to no request, so its log lines have no request fields.
            self._retry_task = asyncio.create_task(self._retry(), context=contextvars.Context())

    async def keep(self, chat_id: str) -> None:
        """Write the chat's answer now, if one waits.

        Raises:
            StorageError: The store is still unreachable.
        """
        keep = self._waiting.get(chat_id)
        if keep is not None:
            await keep()
            self._waiting.pop(chat_id, None)
            log.info("an answer is kept", extra={"event": "answer_kept", "chat_id": chat_id})

    async def aclose(self) -> None:
        """Stop the retries, and try each waiting write once more."""
        trying = self._retry_task
        if trying is not None and trying.get_loop() is asyncio.get_running_loop():
            trying.cancel()
            await asyncio.wait([trying])
        for chat_id in list(self._waiting):
            with contextlib.suppress(PersonaLabError):
                await self.keep(chat_id)

    async def _retry(self) -> None:
        pause = self._pause
        while self._waiting:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _MAX_PAUSE_FACTOR * self._pause)
            for chat_id in list(self._waiting):
                turn = self._turns.setdefault(chat_id, asyncio.Lock())
                if turn.locked():  # the running turn writes the answer itself
                    continue
                try:
                    async with turn:
                        await self.keep(chat_id)
                except StorageError:  # the other writes would fail too; this chat goes last
                    if chat_id in self._waiting:
                        self._waiting[chat_id] = self._waiting.pop(chat_id)
                    break
                except Exception as error:  # noqa: BLE001 - a retry can't succeed, for example: no chat
                    self._drop(chat_id, type(error).__name__)

    def _drop(self, chat_id: str, why: str = "too many wait") -> None:
        self._waiting.pop(chat_id, None)
        about = {"event": "answer_lost", "chat_id": chat_id, "error_class": why}
        log.error("an answer is lost", extra=about)
