"""Answers that go on when their page's stream ends.

A phone that locks, or a train in a tunnel, ends the stream of a page. The answer goes on and is
stored. The page that returns follows it from the start, or finds it finished.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from persona_lab.types import Event
from persona_lab.ui.visitor_keys import Page

UNWATCHED_LIMIT_S = 600.0
"""Seconds that an answer goes on without a page that follows it."""
STOP_LIMIT_S = 10.0
"""Seconds to wait for a stopped answer. Its text may have to wait for the database."""


class RunningAnswer:
    """One answer, which any number of pages can follow.

    Attributes:
        page: The page that began it, or took it over. When that page leaves the chat, it stops.
    """

    def __init__(
        self,
        events: AsyncGenerator[Event, None],
        page: Page,
        *,
        unwatched_limit: float = UNWATCHED_LIMIT_S,
    ) -> None:
        """Begin to receive ``events``."""
        self.page = page
        self._received: list[Event] = []
        self._changed = asyncio.Event()
        self._watchers = 0
        self._unwatched_limit = unwatched_limit
        self.task = asyncio.create_task(self._receive(events))
        self.task.add_done_callback(self._on_done)

    async def _receive(self, events: AsyncGenerator[Event, None]) -> None:
        async with aclosing(events):
            async for event in events:
                self._received.append(event)
                self._notify()

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _on_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            task.exception()  # a follower raises it; without one the chat shows that it failed
        self._notify()

    async def follow(self) -> AsyncGenerator[Event, None]:
        """Yield all events from the start. Closing this generator doesn't stop the answer.

        Raises:
            PersonaLabError: As the events of the answer do.
        """
        self._watchers += 1
        sent = 0
        try:
            while not (self.task.done() and sent == len(self._received)):
                if sent == len(self._received):
                    await self._changed.wait()
                    continue
                yield self._received[sent]
                sent += 1
        finally:
            self._watchers -= 1
            if not self._watchers:
                asyncio.get_running_loop().call_later(
                    self._unwatched_limit, self._stop_if_unwatched
                )
        if not self.task.cancelled():
            self.task.result()

    def _stop_if_unwatched(self) -> None:
        if not self._watchers:
            self.task.cancel()

    async def stop(self) -> None:
        """Stop the answer; return when its text is stored, or after :data:`STOP_LIMIT_S`."""
        self.task.cancel()
        await asyncio.wait([self.task], timeout=STOP_LIMIT_S)


class RunningAnswers:
    """The running answers of all chats."""

    def __init__(self) -> None:
        self._by_chat: dict[str, RunningAnswer] = {}

    def start(self, chat_id: str, page: Page, events: AsyncGenerator[Event, None]) -> RunningAnswer:
        """Run the answer with these events. A later answer of the chat replaces it here."""
        answer = self._by_chat[chat_id] = RunningAnswer(events, page)

        def forget(_: asyncio.Task[None]) -> None:
            if self._by_chat.get(chat_id) is answer:
                del self._by_chat[chat_id]

        answer.task.add_done_callback(forget)
        return answer

    def get(self, chat_id: str) -> RunningAnswer | None:
        """Return the answer that runs in a chat, if any."""
        answer = self._by_chat.get(chat_id)
        return None if answer is None or answer.task.done() else answer

    async def stop(self, chat_id: str) -> None:
        """Stop the answer of a chat; return when its text is stored."""
        answer = self.get(chat_id)
        if answer is not None:
            await answer.stop()

    async def stop_others(self, page: Page, chat_id: str) -> None:
        """Stop the answers that a page has left, which are those of all chats but ``chat_id``."""
        for other, answer in list(self._by_chat.items()):
            if answer.page == page and other != chat_id:
                await answer.stop()

    async def wait(self, page: Page) -> None:
        """Wait until no answer of a page runs."""
        tasks = [answer.task for answer in self._by_chat.values() if answer.page == page]
        if tasks:
            await asyncio.wait(tasks)
