"""Store an answer while it grows."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, TypeVar

from persona_lab.db.tables import Generation, Message
from persona_lab.types import Status

if TYPE_CHECKING:
    from persona_lab.db.store import Store


log = logging.getLogger("persona_lab.service")

_T = TypeVar("_T")


class Draft:
    """The row of an answer while the answer grows. At most one write runs at a time.

    The row is written ``save_every`` seconds after the first text, and then again and again while
    the text grows. An answer that is complete before that is written once.
    """

    def __init__(
        self,
        store: Store,
        chat_id: str,
        user_id: str,
        save_every: float,
        *,
        replaces_answer: bool = False,
    ) -> None:
        """Prepare the draft. Nothing is written yet.

        Args:
            store: The store that gets the row.
            chat_id: The chat of the answer.
            user_id: The owner of the chat.
            save_every: Seconds between two writes.
            replaces_answer: Whether the answer replaces another one.
        """
        self.row: Message | None = None
        self._store = store
        self._chat_id = chat_id
        self._user_id = user_id
        self._save_every = save_every
        self._replaces_answer = replaces_answer
        self._text = ""
        self._written_text = ""
        self._is_final = False
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Task[Message] | None = None

    @property
    def message_id(self) -> str:
        """The id of the row; "" before the first write."""
        return self.row.id if self.row else ""

    def append(self, text: str) -> None:
        """Take the text of the answer so far, which is written in the background.

        The next call repeats a write that fails. :meth:`finalize` writes the final text.
        """
        self._text = text
        if self._timer is None and self._writing is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._save_every, self._start_write)

    async def wait(self) -> None:
        """Wait for the write that runs in the background. No further one begins."""
        self._is_final = True
        if self._timer is not None:
            self._timer.cancel()
        if self._writing is not None:
            await asyncio.wait([self._writing])

    def finalize(
        self, generation: Generation, text: str, status: Status, details: dict[str, Any]
    ) -> Message:
        """Store the whole answer with its generation, and return its row.

        Call it on a thread after :meth:`wait`. It may be called again after an error.
        """
        self.row = self._store.finish_turn(
            generation,
            chat_id=self._chat_id,
            user_id=self._user_id,
            content=text,
            status=status,
            details=details,
            message_id=self.message_id,
            instead=self._replaces_answer,
        )
        return self.row

    def _start_write(self) -> None:
        self._timer = None
        self._writing = asyncio.get_running_loop().create_task(self._write(self._text))
        self._writing.add_done_callback(self._after_write)

    def _after_write(self, task: asyncio.Task[Message]) -> None:
        self._writing = None
        if not task.cancelled() and task.exception():
            log.warning("a growing answer couldn't be written", extra={"event": "draft_failed"})
        elif not self._is_final and self._text != self._written_text:
            self.append(self._text)

    async def _write(self, text: str) -> Message:
        self._written_text = text

        def write() -> Message:
            # Set the row in this thread: the write completes even if its caller is cancelled.
            if self.row is None:
                self.row = self._store.add_message(
                    self._chat_id,
                    user_id=self._user_id,
                    sender="ai",
                    content=text,
                    status="streaming",
                    instead=self._replaces_answer,
                )
            else:
                self.row = self._store.update_message(
                    self.row.id, user_id=self._user_id, content=text
                )
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
