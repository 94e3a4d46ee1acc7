"""How an answer is kept: while it grows, and when the store was away at its end."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakValueDictionary

from persona_lab.errors import PersonaLabError, StorageError
from persona_lab.models import Message, Status

if TYPE_CHECKING:
    from persona_lab.store import Store

log = logging.getLogger("persona_lab.service")

MOST = 256
"""Answers that wait for a store which is away: as many as are under way when it goes, at most."""
_LONGEST_PAUSE = 60
"""How many times as long as the first a pause between two tries grows."""

_T = TypeVar("_T")


class Draft:
    """An answer's row in the store while it grows: at most one write at a time."""

    def __init__(
        self,
        store: Store,
        chat_id: str,
        user_id: str,
        clock: Callable[[], float],
        every: float,
        *,
        instead: bool = False,
    ) -> None:
        """``clock`` counts seconds; it is written down ``every`` so many; ``instead`` of another
        answer."""
        self.row: Message | None = None
        self._store = store
        self._chat_id = chat_id
        self._user_id = user_id
        self._clock = clock
        self._every = every
        self._instead = instead
        self._due = clock()
        self._writing: asyncio.Task[Message] | None = None

    @property
    def message_id(self) -> str:
        return self.row.id if self.row else ""

    def grow(self, text: str) -> None:
        """Write ``text`` down beside the stream, unless that was done just now.

        A write that fails here is tried again; :meth:`settle` is the one that counts.
        """
        if self._clock() < self._due or (self._writing and not self._writing.done()):
            return
        self._collect()
        self._due = self._clock() + self._every
        self._writing = asyncio.create_task(self._write(text, "streaming", None))

    async def settle(self, text: str, status: Status, details: dict[str, Any]) -> Message | None:
        """The last write. Nothing is kept of an answer without a word."""
        if self._writing:
            await asyncio.wait([self._writing])
            self._collect()
        return await self._write(text, status, details) if text else None

    def _collect(self) -> None:
        if self._writing and not self._writing.cancelled() and self._writing.exception():
            log.warning("a growing answer couldn't be written", extra={"event": "draft_failed"})
        self._writing = None

    async def _write(self, text: str, status: Status, details: dict[str, Any] | None) -> Message:
        about: dict[str, Any] = {"content": text, "status": status, "details": details}

        def write() -> Message:
            # Here and not after it: who waits for a write may be cancelled, and it is made.
            if self.row is None:
                self.row = self._store.add_message(
                    self._chat_id,
                    user_id=self._user_id,
                    sender="ai",
                    instead=self._instead,
                    **about,
                )
            else:
                self.row = self._store.update_message(self.row.id, user_id=self._user_id, **about)
            return self.row

        return await to_the_end(asyncio.to_thread(write))


class Unkept:
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


async def to_the_end(work: Awaitable[_T]) -> _T:
    """Wait for ``work`` even when cancelled meanwhile; the cancellation follows after it."""
    inner = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not inner.done():
        try:
            await asyncio.wait([inner])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return inner.result()
