"""How an answer is kept: while it grows, and when the store was away at its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from persona_lab.db.tables import Message
from persona_lab.types import Status

if TYPE_CHECKING:
    from persona_lab.db.store import Store


log = logging.getLogger("persona_lab.service")

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

    def append(self, text: str) -> None:
        """Write ``text`` down beside the stream, unless that was done just now.

        A write that fails here is tried again; :meth:`settle` is the one that counts.
        """
        if self._clock() < self._due or (self._writing and not self._writing.done()):
            return
        self._collect()
        self._due = self._clock() + self._every
        self._writing = asyncio.create_task(self._write(text, "streaming", None))

    async def finalize(self, text: str, status: Status, details: dict[str, Any]) -> Message | None:
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

        return await finish_despite_cancel(asyncio.to_thread(write))


async def finish_despite_cancel(work: Awaitable[_T]) -> _T:
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
