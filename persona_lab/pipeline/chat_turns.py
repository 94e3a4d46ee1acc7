"""Give each chat one turn at a time, so that a chat has whole exchanges.

This holds within one process: replicas don't wait for one another.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from persona_lab.errors import NotFound
from persona_lab.pipeline.drafts import finish_despite_cancel
from persona_lab.pipeline.write_retry import FailedWriteRetrier
from persona_lab.types import Event

if TYPE_CHECKING:
    from persona_lab.db.store import Store
    from persona_lab.db.turns import TurnStart


class ChatTurns:
    """Runs the turns of each chat one after another.

    Args:
        store: The store of the chats.
        retry_pause: Seconds before the first retry of a failed write.

    Attributes:
        locks: The lock of each chat that has a turn. It lives as long as a turn holds it or waits.
        failed_writes: The answers that the store didn't take yet.
    """

    def __init__(self, store: Store, retry_pause: float) -> None:
        self._store = store
        self.locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self.failed_writes = FailedWriteRetrier(self.locks, retry_pause)

    async def run(
        self,
        chat_id: str,
        user_id: str,
        agent_id: str | None,
        *,
        begin: Callable[[str | None], TurnStart],
        answer: Callable[[TurnStart], AsyncGenerator[Event, None]],
        restore: Callable[[], Awaitable[None]] | None = None,
    ) -> AsyncGenerator[Event, None]:
        """Stream the events of one turn, after the turns before it.

        Args:
            chat_id: The chat.
            user_id: The owner of the chat.
            agent_id: The agent that the chat must have; None for any.
            begin: Stores or finds the message to answer. It is called on a thread with the agent
                that the chat must have, or None.
            answer: Answers that message.
            restore: Called when the answer has ended in any way, before the next turn begins.

        Raises:
            NotFound: The user has no such chat, or the chat has another agent.
            StorageError: The store can't be read or written.
        """
        lock = self.locks.setdefault(chat_id, asyncio.Lock())
        if lock.locked():  # check before the wait: the chat may get a copy of its demo meanwhile
            chat = await asyncio.to_thread(self._store.get_chat, chat_id, user_id=user_id)
            if agent_id not in (None, chat.agent_id):
                raise NotFound(kind="agent")
            agent_id = None
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(lock)
            await self.failed_writes.retry_now(chat_id)
            if restore is not None:
                stack.push_async_callback(lambda: finish_despite_cancel(restore()))
            start = await finish_despite_cancel(asyncio.to_thread(begin, agent_id))
            async with contextlib.aclosing(answer(start)) as events:
                async for event in events:
                    if event.type == "done":  # the answer is stored: let the next turn begin
                        await stack.aclose()
                    yield event
