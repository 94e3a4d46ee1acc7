"""The one place where a client's middleware is put together.

::

    Fallback([Cached(Limited(Breaker(Retrying(sdk)))), …])

Middleware with state that outlives a call, such as the circuit breaker, wraps a client once, in
:meth:`ClientStack.wrap_shared`. Middleware of one caller wraps it at each call, in
:meth:`ClientStack.wrap_for_call`. A prompt is written for one model, so the fallback is above all
middleware: it builds the next model's prompt and calls that model's client.

After the first text of an answer, nothing here retries: the text stays, and the error follows it.
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
from persona_lab.clients.middleware.wrapper import CallContext, Sleep, Wrap

if TYPE_CHECKING:
    from persona_lab.settings import Settings

log = logging.getLogger("persona_lab.layers")


class ClientStack:
    """Puts the layers around clients, and holds what they remember between calls.

    ``outer`` are those that need to know whose call it is, the innermost first: Limited, Cached.
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
        """``client`` with the layers that all calls share."""
        return CircuitBreakerClient(self.wrap_private(client), self.circuits)

    def wrap_private(self, client: LLMClientInterface) -> LLMClientInterface:
        """``client`` with those of one visitor's: their account's troubles are nobody else's."""
        return RetryingClient(client, clock=self._clock, sleep=self._sleep)

    def wrap_for_call(self, client: LLMClientInterface, asking: CallContext) -> LLMClientInterface:
        """``client`` with the layers of this call as well."""
        for around in self.outer:
            client = around(client, asking)
        return client
