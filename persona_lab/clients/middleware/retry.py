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
"""Transient errors. Other errors would occur again, or the call was already paid for."""

FIRST_PAUSE_S, MAX_PAUSE_S = 0.5, 8.0
"""Upper bounds of the random pause before the second attempt, and before any."""


class RetryingClient(ClientWrapper):
    """A client that retries a call without text, after a pause with random jitter.

    All attempts together must deliver the first token within ``options.timeout``. The pause
    includes the provider's Retry-After. If the pause would be too long, the call fails at once.
    The first chunk has the number of ``attempts`` in its metadata, and an error has it too.

    Args:
        client: The wrapped client.
        clock: Returns seconds.
        sleep: Sleeps for a number of seconds.
    """

    def __init__(self, client: LLMClientInterface, *, clock: Clock, sleep: Sleep) -> None:
        super().__init__(client)
        self._clock = clock
        self._sleep = sleep

    async def stream(self, prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        """Stream an answer. See :meth:`LLMClientInterface.stream`."""
        import tenacity

        began = self._clock()
        attempts = 0

        def left(seconds: float) -> float:
            return began + seconds - self._clock()

        def pause(state: tenacity.RetryCallState) -> float:
            jitter = tenacity.wait_random_exponential(FIRST_PAUSE_S, MAX_PAUSE_S)(state)
            return (_error(state).retry_after or 0) + jitter

        def should_stop(state: tenacity.RetryCallState) -> bool:
            requested = _error(state).retry_after or 0
            return (
                attempts > options.retries
                or requested > self.settings.llm_retry_wait
                or state.upcoming_sleep >= left(min(options.timeout, options.total_timeout))
            )

        async def attempt() -> tuple[list[Chunk], AsyncGenerator[Chunk, None]]:
            nonlocal attempts
            attempts += 1
            attempt_options = replace(
                options,
                timeout=left(options.timeout),
                idle_timeout=options.idle,
                total_timeout=left(options.total_timeout),
            )
            chunks = self.client.stream(prompt, attempt_options)
            return await _until_first_text(chunks), chunks

        trying = tenacity.AsyncRetrying(
            sleep=self._sleep,
            wait=pause,
            stop=should_stop,
            retry=tenacity.retry_if_exception_type(RETRYABLE),
            before_sleep=lambda state: self._log_retry(state, attempts),
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

    def _log_retry(self, state: tenacity.RetryCallState, attempts: int) -> None:
        fields = {"attempts": attempts, "pause": state.upcoming_sleep}
        log_provider_event(logging.INFO, "retry", self.info, _error(state), **fields)


def _error(state: tenacity.RetryCallState) -> ProviderError:
    return cast("ProviderError", state.outcome and state.outcome.exception())


async def _until_first_text(chunks: AsyncGenerator[Chunk, None]) -> list[Chunk]:
    """Return the chunks up to the first with text, or all chunks if none has text."""
    held = []
    async for chunk in chunks:
        held.append(chunk)
        if not is_blank(chunk.text):
            break
    return held
