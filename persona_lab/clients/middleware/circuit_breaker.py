"""Circuit breaker: stop calling a model that keeps failing, and probe it until it answers again.

Libraries for this let every waiting caller through at once when they probe, or don't notice that
an ``async def`` failed.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import threading
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from typing import Any, Literal, TypeGuard

from cachetools import LRUCache

from persona_lab.clients.base import LLMClientInterface
from persona_lab.clients.middleware.wrapper import ClientWrapper, log_provider_event
from persona_lab.errors import (
    CircuitOpen,
    ModelTimeout,
    Offline,
    Overloaded,
    ProviderError,
)
from persona_lab.types import Chunk, Options, Prompt

Clock = Callable[[], float]
State = Literal["closed", "open", "half_open"]


class Circuit:
    """Whether a model is asked: closed (it is), open (it isn't), half open (one caller tries).

    Opens after ``threshold`` failures in a row; ``cooldown`` seconds on ``clock`` later the next
    caller's try is the probe, and all others go on being turned away until it has ended. Any
    thread may call it.
    """

    def __init__(self, threshold: int, cooldown: float, clock: Clock) -> None:
        self._threshold = threshold
        self._cooldown = cooldown
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._opened = 0.0
        self._probe: object | None = None

    @property
    def state(self) -> State:
        if self._failures < self._threshold:
            return "closed"
        return "open" if self.seconds_until_probe else "half_open"

    @property
    def seconds_until_probe(self) -> float:
        """Until somebody is let through."""
        return max(0.0, self._opened + self._cooldown - self._clock())

    def acquire(self) -> object | None:
        """A caller's pass, or None for who is turned away. Give it back to one of the others."""
        with self._lock:
            if self.state == "closed":
                return object()
            if self.state == "open" or self._probe is not None:
                return None
            self._probe = object()
            return self._probe

    def is_probe(self, caller: object) -> bool:
        return caller is self._probe

    def record_first_token(self, caller: object) -> None:
        """The first word came: a probe lets the others in, and the next failure shuts them out."""
        with self._lock:
            if caller is self._probe:
                self._probe, self._failures = None, self._threshold - 1

    def record_success(self, caller: object) -> None:
        with self._lock:
            if self.state == "closed" or caller is self._probe:
                self._probe, self._failures = None, 0

    def record_failure(self, caller: object) -> None:
        with self._lock:
            if self.state == "closed" or caller is self._probe:
                self._probe = None
                self._failures += 1
                self._opened = self._clock()

    def release(self, caller: object) -> None:
        """It ended without telling anything of the model's health."""
        with self._lock:
            if caller is self._probe:
                self._probe = None


class Circuits:
    """The circuit of each model, by provider, base URL and name.

    Visitors may type any name of a model: who was asked longest ago is forgotten.
    """

    MOST = 1024

    def __init__(self, threshold: int, cooldown: float, clock: Clock) -> None:
        self._new = functools.partial(Circuit, threshold, cooldown, clock)
        self._circuits: LRUCache[tuple[str, str, str], Circuit] = LRUCache(self.MOST)
        self._lock = threading.Lock()

    def of(self, client: LLMClientInterface) -> Circuit:
        key = (client.info.provider, client.base_url, client.info.name)
        with self._lock:
            if key not in self._circuits:
                self._circuits[key] = self._new()
            return self._circuits[key]

    def states(self) -> dict[tuple[str, str, str], State]:
        """Of every model that was asked, by (provider, base URL, name)."""
        with self._lock:
            return {key: circuit.state for key, circuit in self._circuits.items()}


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
