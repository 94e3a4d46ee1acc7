"""The order of the client middleware.

::

    CachedClient(RateLimitedClient(CircuitBreakerClient(RetryingClient(QueueingClient(client)))))

Middleware that keeps state between calls, such as the circuit breaker, wraps a client once, in
:meth:`ClientStack.wrap_shared`. Middleware that depends on the caller wraps it for each call, in
:meth:`ClientStack.wrap_for_call`. A prompt is built for one model. The fallback chain is
therefore outside of the middleware: :mod:`persona_lab.pipeline.turn` builds the prompt of the next
model and calls that model's client.

No middleware retries after the first text of an answer. The text stays, and then the error is
raised.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from persona_lab.clients.base import LLMClientInterface
from persona_lab.clients.middleware.circuit_breaker import (
    CircuitBreakerClient,
    Circuits,
    Clock,
)
from persona_lab.clients.middleware.retry import RetryingClient
from persona_lab.clients.middleware.server_queue import QueueingClient
from persona_lab.clients.middleware.wrapper import CallContext, Sleep, Wrap

if TYPE_CHECKING:
    from persona_lab.settings import Settings

log = logging.getLogger("persona_lab.layers")


class ClientStack:
    """Wraps clients in middleware and holds the state that is shared between calls.

    Args:
        settings: The settings.
        clock: Returns seconds.
        sleep: Sleeps for a number of seconds.
        outer: Middleware that depends on the caller, innermost first: rate limit, cache.
    """

    def __init__(
        self, settings: Settings, *, clock: Clock, sleep: Sleep, outer: Sequence[Wrap] = ()
    ) -> None:
        self.circuits = Circuits(
            settings.llm_breaker_failures, settings.llm_breaker_cooldown, clock
        )
        self.outer = tuple(outer)
        self._clock = clock
        self._sleep = sleep

    def wrap_shared(self, client: LLMClientInterface) -> LLMClientInterface:
        """Wrap ``client`` in the middleware that all calls share."""
        return CircuitBreakerClient(self.wrap_private(client), self.circuits)

    def wrap_private(self, client: LLMClientInterface) -> LLMClientInterface:
        """Wrap a ``client`` that uses a visitor's key.

        It has no circuit breaker, because errors of one account say nothing about other accounts.
        """
        if client.bound:
            client = QueueingClient(client, clock=self._clock, sleep=self._sleep)
        return RetryingClient(client, clock=self._clock, sleep=self._sleep)

    def wrap_for_call(self, client: LLMClientInterface, context: CallContext) -> LLMClientInterface:
        """Wrap ``client`` in the middleware that depends on the caller."""
        for wrap in self.outer:
            client = wrap(client, context)
        return client
