"""Stop calling a provider that is down, and probe it until it answers again."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeGuard

from persona_lab.clients.base import LLMClientInterface
from persona_lab.clients.middleware.circuits import Circuits
from persona_lab.errors import (
    CircuitOpen,
    ModelTimeout,
    Offline,
    Overloaded,
    ProviderError,
)
from persona_lab.types import Chunk, Options, Prompt

if TYPE_CHECKING:
    pass
from persona_lab.clients.middleware.wrapper import ClientWrapper, log_provider_event

OUTAGES = (Overloaded, ModelTimeout, Offline)
"""What opens a breaker, unless a status of 4xx says that the server is well."""


class CircuitBreakerClient(ClientWrapper):
    """Turns callers away from a model that keeps failing, and lets one at a time look again.

    Raises CircuitOpen for who is turned away. A probe is a single try.
    """

    def __init__(self, client: LLMClientInterface, circuits: Circuits) -> None:
        super().__init__(client)
        self._circuits = circuits

    async def stream(self, prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        circuit = self._circuits.of(self)
        caller = circuit.acquire()
        if caller is None:
            seconds = math.ceil(circuit.seconds_until_probe) or 1
            who: dict[str, Any] = {"provider": self.info.provider, "model": self.info.name}
            raise CircuitOpen(**who, retry_after=seconds, seconds=seconds)
        if circuit.is_probe(caller):
            options = replace(options, retries=0)
        well = False
        try:
            async with contextlib.aclosing(self.client.stream(prompt, options)) as chunks:
                async for chunk in chunks:
                    if chunk.text and not well:
                        well = True  # and stays so for a reader who has heard enough
                        circuit.record_first_token(caller)
                    yield chunk
            well = True
        except Exception as error:
            well = False
            if _outage(error):
                circuit.record_failure(caller)
                if circuit.state == "open":
                    log_provider_event(logging.WARNING, "circuit_open", self.info, error)
            raise
        finally:
            (circuit.record_success if well else circuit.release)(caller)


def _outage(error: Exception) -> TypeGuard[ProviderError]:
    """A full queue of this machine's own engine is none: its model is well, and busy."""
    if not isinstance(error, OUTAGES) or error.provider == "local":
        return False
    return error.status is None or not 400 <= error.status < 500
