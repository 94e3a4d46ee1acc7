"""Retry a call that failed before its first token."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from persona_lab.clients.base import LLMClientInterface
from persona_lab.clients.middleware.circuit_breaker import Clock
from persona_lab.errors import (
    ModelTimeout,
    Offline,
    Overloaded,
    ProviderError,
    RateLimited,
)
from persona_lab.types import Chunk, Options, Prompt
from persona_lab.unicode_text import is_blank

if TYPE_CHECKING:
    import tenacity

from persona_lab.clients.middleware.wrapper import ClientWrapper, Sleep, log_provider_event

RETRYABLE = (RateLimited, Overloaded, ModelTimeout, Offline)
"""What may be over in a moment. All else fails the same way again, or was paid for."""

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0
"""Seconds: bounds of the random pause before the second try, and before any."""


class RetryingClient(ClientWrapper):
    """Asks again while no word has come, after a pause that is partly chance.

    All tries together keep to ``options.timeout``, which bounds the wait for the first word. A
    provider's Retry-After is honoured; where that, or the pause itself, would be too long, it
    fails at once. A chunk ahead of all others, or the error, tells the ``attempts``.
    """

    def __init__(self, client: LLMClientInterface, *, clock: Clock, sleep: Sleep) -> None:
        super().__init__(client)
        self._clock = clock
        self._sleep = sleep

    async def stream(self, prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        import tenacity

        began = self._clock()
        attempts = 0

        def left(seconds: float) -> float:
            return began + seconds - self._clock()

        def pause(state: tenacity.RetryCallState) -> float:
            chance = tenacity.wait_random_exponential(FIRST_PAUSE, LONGEST_PAUSE)(state)
            return (_error(state).retry_after or 0) + chance

        def enough(state: tenacity.RetryCallState) -> bool:
            asked = _error(state).retry_after or 0
            return (
                attempts > options.retries
                or asked > self.settings.llm_retry_wait
                or state.upcoming_sleep >= left(min(options.timeout, options.total_timeout))
            )

        async def attempt() -> tuple[list[Chunk], AsyncGenerator[Chunk, None]]:
            nonlocal attempts
            attempts += 1
            patience = replace(
                options,
                timeout=left(options.timeout),
                idle_timeout=options.idle,
                total_timeout=left(options.total_timeout),
            )
            chunks = self.client.stream(prompt, patience)
            return await _begun(chunks), chunks

        trying = tenacity.AsyncRetrying(
            sleep=self._sleep,
            wait=pause,
            stop=enough,
            retry=tenacity.retry_if_exception_type(RETRYABLE),
            before_sleep=lambda state: self._tell(state, attempts),
            reraise=True,
        )
        try:
            begun: tuple[list[Chunk], AsyncGenerator[Chunk, None]] = await trying(attempt)
            first, rest = begun
            async with contextlib.aclosing(rest):
                yield Chunk(metadata={"attempts": attempts})
                for chunk in first:
                    yield chunk
                async for chunk in rest:
                    yield chunk
        except ProviderError as error:
            error.attempts = attempts
            raise

    def _tell(self, state: tenacity.RetryCallState, attempts: int) -> None:
        fields = {"attempts": attempts, "pause": state.upcoming_sleep}
        log_provider_event(logging.INFO, "retry", self.info, _error(state), **fields)


def _error(state: tenacity.RetryCallState) -> ProviderError:
    return cast("ProviderError", state.outcome and state.outcome.exception())


async def _begun(chunks: AsyncGenerator[Chunk, None]) -> list[Chunk]:
    """The chunks as far as the first with a word in it, or all where there is none."""
    held = []
    async for chunk in chunks:
        held.append(chunk)
        if not is_blank(chunk.text):
            break
    return held
