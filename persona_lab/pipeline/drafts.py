"""Store an answer while it grows."""

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
    """The row of an answer while the answer grows. At most one write runs at a time."""

    def __init__(
        self,
        store: Store,
        chat_id: str,
        user_id: str,
        clock: Callable[[], float],
        every: float,
        *,
        replaces_answer: bool = False,
    ) -> None:
        """Prepare the draft. Nothing is written yet.

        Args:
            store: The store that gets the row.
            chat_id: The chat of the answer.
            user_id: The owner of the chat.
            clock: Counts seconds.
            every: Seconds between two writes.
            replaces_answer: Whether the answer replaces another one.
        """
        self.row: Message | None = None
        self._store = store
        self._chat_id = chat_id
        self._user_id = user_id
        self._clock = clock
        self._every = every
        self._replaces_answer = replaces_answer
        self._due = clock()
        self._writing: asyncio.Task[Message] | None = None

    @property
    def message_id(self) -> str:
        """The id of the row; "" before the first write."""
        return self.row.id if self.row else ""

    def append(self, text: str) -> None:
        """Start a write of ``text`` in the background, unless the last write was too recent.

        The next call repeats a write that fails. :meth:`finalize` writes the final text.
        """
        if self._clock() < self._due or (self._writing and not self._writing.done()):
            return
        self._check_write()
        self._due = self._clock() + self._every
        self._writing = asyncio.create_task(self._write(text, "streaming", None))

    async def finalize(self, text: str, status: Status, details: dict[str, Any]) -> Message | None:
        """Write the final text and return the row; None for an empty answer, which has no row."""
        if self._writing:
            await asyncio.wait([self._writing])
            self._check_write()
        return await self._write(text, status, details) if text else None

    def _check_write(self) -> None:
        if self._writing and not self._writing.cancelled() and self._writing.exception():
            log.warning("a growing answer couldn't be written", extra={"event": "draft_failed"})
        self._writing = None

    async def _write(self, text: str, status: Status, details: dict[str, Any] | None) -> Message:
        about: dict[str, Any] = {"content": text, "status": status, "details": details}

        def write() -> Message:
            # Set the row in this thread: the write completes even if its caller is cancelled.
            if self.row is None:
                self.row = self._store.add_message(
                    self._chat_id,
                    user_id=self._user_id,
                    sender="ai",
                    instead=self._replaces_answer,
                    **about,
                )
            else:
                self.row = self._store.update_message(self.row.id, user_id=self._user_id, **about)
            return self.row

        return await finish_despite_cancel(asyncio.to_thread(write))


async def finish_despite_cancel(work: Awaitable[_T]) -> _T:
    """Wait for ``work`` to end even if the caller is cancelled, then raise the cancellation."""
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
