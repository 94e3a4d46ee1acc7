"""Clients around a client, and the one place where they are put together.

::

    Fallback([Cached(Limited(Breaker(Retrying(sdk)))), …])

What must outlive a call (a model's retries need nothing, its breaker does) is put around a client
once, by :meth:`Layers.keep`; what belongs to a caller goes around it at each call, by
:meth:`Layers.for_call`. :class:`Fallback` stands above them all. A prompt is worded for one model,
so it doesn't hand the same one on: it asks for each model's answer by the model's name.

Once a word of an answer has come, nothing here begins again: it stays, and the error follows it.
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
