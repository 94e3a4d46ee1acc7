"""Retry database writes that failed while the database was away."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import Awaitable, Callable
from weakref import WeakValueDictionary

from persona_lab.errors import PersonaLabError, StorageError

log = logging.getLogger("persona_lab.service")

MAX_WAITING = 256
"""The largest number of answers that wait for an unreachable store."""
_MAX_PAUSE_FACTOR = 60
"""The longest pause between two attempts, as a multiple of the first pause."""


class FailedWriteRetrier:
    """Retries the writes of answers that failed because the store was unreachable.

    A write is retried in the background with growing pauses, before the next turn of its chat, and
    at :meth:`aclose`. At most :data:`MAX_WAITING` answers wait; the oldest is dropped after that.

    Args:
        chat_locks: The lock of each chat that has a turn.
        pause: Seconds before the first retry.
    """

    def __init__(self, chat_locks: WeakValueDictionary[str, asyncio.Lock], pause: float) -> None:
        self._chat_locks = chat_locks
        self._pause = pause
        self._waiting: dict[str, Callable[[], Awaitable[object]]] = {}
        self._retry_task: asyncio.Task[None] | None = None

    def add(self, chat_id: str, write: Callable[[], Awaitable[object]]) -> None:
        """Retry ``write``, which stores a chat's answer, after the current turn."""
        self._waiting[chat_id] = write
        if len(self._waiting) > MAX_WAITING:
            self._drop(next(iter(self._waiting)))
        if self._retry_task is None or self._retry_task.done():
            # The task belongs to no request, so its log lines have no request fields.
            self._retry_task = asyncio.create_task(self._retry(), context=contextvars.Context())

    async def retry_now(self, chat_id: str) -> None:
        """Store the chat's answer now, if one waits.

        Raises:
            StorageError: The store is still unreachable.
        """
        write = self._waiting.get(chat_id)
        if write is not None:
            await write()
            self._waiting.pop(chat_id, None)
            log.info("an answer is stored", extra={"event": "answer_kept", "chat_id": chat_id})

    async def aclose(self) -> None:
        """Stop the retries, and try each waiting write once more."""
        task = self._retry_task
        if task is not None and task.get_loop() is asyncio.get_running_loop():
            task.cancel()
            await asyncio.wait([task])
        for chat_id in list(self._waiting):
            with contextlib.suppress(PersonaLabError):
                await self.retry_now(chat_id)

    async def _retry(self) -> None:
        pause = self._pause
        while self._waiting:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _MAX_PAUSE_FACTOR * self._pause)
            for chat_id in list(self._waiting):
                lock = self._chat_locks.setdefault(chat_id, asyncio.Lock())
                if lock.locked():  # the running turn writes the answer itself
                    continue
                try:
                    async with lock:
                        await self.retry_now(chat_id)
                except StorageError:  # the other writes would fail too; this chat goes last
                    if chat_id in self._waiting:
                        self._waiting[chat_id] = self._waiting.pop(chat_id)
                    break
                except Exception as error:  # noqa: BLE001 - a retry can't succeed, for example: no chat
                    self._drop(chat_id, type(error).__name__)

    def _drop(self, chat_id: str, reason: str = "too many wait") -> None:
        self._waiting.pop(chat_id, None)
        fields = {"event": "answer_lost", "chat_id": chat_id, "error_class": reason}
        log.error("an answer is lost", extra=fields)
