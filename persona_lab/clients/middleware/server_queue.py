"""Calls wait for one another at a server that has fewer places than there are calls.

A local server often has one place. With several calls at once it refuses the others, keeps them
waiting until they time out, or breaks off the answer in progress. That isn't a failure while the
server answers another call of ours: the call waits until that one ends, and is made again. The
number of calls that the server took is its limit for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable

from persona_lab.clients.base import LLMClientInterface
from persona_lab.clients.finish_reasons import UNKNOWN
from persona_lab.clients.middleware.wrapper import ClientWrapper, Sleep, log_provider_event
from persona_lab.errors import (
    InvalidResponse,
    ModelTimeout,
    Overloaded,
    ProviderError,
    RateLimited,
)
from persona_lab.types import Chunk, Options, Prompt

MEMORY_S = 600.0
"""Seconds after the last sign of a full server for which its limit applies."""


class ServerQueue:
    """The calls to one server, from one event loop.

    Args:
        clock: Returns seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._limit = 0
        """Calls that the server takes at a time; 0 if no limit is known."""
        self._limit_time = 0.0
        self._can_grow = False
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.running = 0
        """Calls in progress."""
        self.progress = 0
        """Number of signs of life from the server."""

    async def enter(self, seconds: float) -> None:
        """Wait for a place.

        Raises:
            TimeoutError: There was none for so many seconds.
        """
        if not self._waiting and not self._is_full:
            self.running += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(seconds):
                await turn
        except (asyncio.CancelledError, TimeoutError):
            if turn.done() and not turn.cancelled():
                self.leave()  # the place was given to this call at the same moment
            elif turn in self._waiting:
                self._waiting.remove(turn)
            raise

    def leave(self) -> None:
        """Give the place back."""
        self.running -= 1
        while self._waiting and not self._is_full:
            turn = self._waiting.popleft()
            if not turn.done():
                self.running += 1
                turn.set_result(None)

    def limit(self, calls: int, *, can_grow: bool) -> None:
        """Remember how many calls the server takes.

        Args:
            calls: The number of calls.
            can_grow: Whether one more is tried after each answer. A refusal costs nothing; waiting
                for a timeout does.
        """
        self._limit, self._limit_time = max(1, calls), self._clock()
        self._can_grow = can_grow

    def record_answer(self) -> None:
        """Record that a call was answered."""
        if self._limit and self._can_grow:
            self._limit += 1

    @property
    def _is_full(self) -> bool:
        if self._limit and self._clock() - self._limit_time > MEMORY_S:
            self._limit = 0
        return bool(self._limit) and self.running >= self._limit


class QueueingClient(ClientWrapper):
    """A client whose calls wait for one another if the server is full.

    Args:
        client: The wrapped client.
        clock: Returns seconds.
        sleep: Sleeps for a number of seconds.
    """

    def __init__(
        self, client: LLMClientInterface, *, clock: Callable[[], float], sleep: Sleep
    ) -> None:
        super().__init__(client)
        self._queue = ServerQueue(clock)
        self._clock = clock
        self._sleep = sleep

    async def stream(self, prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        """Stream an answer. See :meth:`LLMClientInterface.stream`."""
        queue, began = self._queue, self._clock()
        await queue.enter(options.total_timeout)
        is_inside = True
        try:
            while True:
                own, before, has_text = 0, queue.progress, False
                try:
                    async with contextlib.aclosing(self.client.stream(prompt, options)) as chunks:
                        async for chunk in chunks:
                            has_text = has_text or bool(chunk.text)
                            own += 1
                            queue.progress += 1
                            if chunk.finish_reason == UNKNOWN and queue.running > 1:
                                queue.limit(1, can_grow=False)  # another call broke it off
                            yield chunk
                    queue.record_answer()
                    return
                except ProviderError as error:
                    left = options.total_timeout - (self._clock() - began)
                    others_live = queue.progress - before > own
                    if has_text or left <= 0 or not self._is_full(error, others_live):
                        raise
                    is_refusal = isinstance(error, RateLimited | Overloaded)
                    log_provider_event(logging.INFO, "server_full", self.info, error)
                    queue.limit(queue.running - 1 if is_refusal else 1, can_grow=is_refusal)
                    queue.leave()
                    is_inside = False
                    try:
                        await queue.enter(left)
                    except TimeoutError:
                        raise error from None
                    is_inside = True
                    if error.retry_after:
                        await self._sleep(error.retry_after)
        finally:
            if is_inside:
                queue.leave()

    def _is_full(self, error: ProviderError, others_live: bool) -> bool:
        """Return whether the call failed because others are answered.

        Args:
            error: The error of the call.
            others_live: Whether the server answered other calls meanwhile.
        """
        if (error.retry_after or 0) > self.settings.llm_retry_wait:
            return False
        if isinstance(error, RateLimited | Overloaded):
            return others_live or self._queue.running > 1
        if isinstance(error, InvalidResponse):  # an empty answer, which another call broke off
            return self._queue.running > 1
        return isinstance(error, ModelTimeout) and others_live
