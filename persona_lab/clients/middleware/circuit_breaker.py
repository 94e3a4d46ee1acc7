"""The circuit breaker: stop calling a model that keeps failing, and probe it after a cooldown.

This is not a library because existing ones admit all callers at once for a probe, or don't notice
the failure of an ``async def``.
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
    """The circuit of one model: closed (calls pass), open (calls fail), half open (one probe).

    It opens after ``threshold`` consecutive failures. After the cooldown, the next call is the
    probe. All other calls are rejected until the probe ends. This class is thread-safe.

    Args:
        threshold: Number of consecutive failures that open the circuit.
        cooldown: Seconds from the last failure to the probe.
        clock: Returns seconds.
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
        """The state of the circuit."""
        if self._failures < self._threshold:
            return "closed"
        return "open" if self.seconds_until_probe else "half_open"

    @property
    def seconds_until_probe(self) -> float:
        """Seconds until a probe is allowed; 0 if it is allowed now."""
        return max(0.0, self._opened + self._cooldown - self._clock())

    def acquire(self) -> object | None:
        """Ask for permission to call the model.

        Returns:
            A token for the caller, None if the call is rejected. The caller must pass the token to
            :meth:`record_success`, :meth:`record_failure` or :meth:`release`.
        """
        with self._lock:
            if self.state == "closed":
                return object()
            if self.state == "open" or self._probe is not None:
                return None
            self._probe = object()
            return self._probe

    def is_probe(self, caller: object) -> bool:
        """Return whether this call is the probe."""
        return caller is self._probe

    def record_first_token(self, caller: object) -> None:
        """Close the circuit after the first token of the probe. The next failure opens it again."""
        with self._lock:
            if caller is self._probe:
                self._probe, self._failures = None, self._threshold - 1

    def record_success(self, caller: object) -> None:
        """Record a successful call."""
        with self._lock:
            if self.state == "closed" or caller is self._probe:
                self._probe, self._failures = None, 0

    def record_failure(self, caller: object) -> None:
        """Record a failed call."""
        with self._lock:
            if self.state == "closed" or caller is self._probe:
                self._probe = None
                self._failures += 1
                self._opened = self._clock()

    def release(self, caller: object) -> None:
        """Record that the call ended without a result, for example because it was cancelled."""
        with self._lock:
            if caller is self._probe:
                self._probe = None


class Circuits:
    """The circuit of each model, by provider, base URL and name.

    Visitors may type any model name, so the number of circuits is bounded (LRU).

    Args:
        threshold: Number of consecutive failures that open a circuit.
        cooldown: Seconds from the last failure to the probe.
        clock: Returns seconds.
    """

    MOST = 1024

    def __init__(self, threshold: int, cooldown: float, clock: Clock) -> None:
        self._new = functools.partial(Circuit, threshold, cooldown, clock)
        self._circuits: LRUCache[tuple[str, str, str], Circuit] = LRUCache(self.MOST)
        self._lock = threading.Lock()

    def of(self, client: LLMClientInterface) -> Circuit:
        """Return the circuit of the client's model."""
        key = (client.info.provider, client.base_url, client.info.name)
        with self._lock:
            if key not in self._circuits:
                self._circuits[key] = self._new()
            return self._circuits[key]

    def states(self) -> dict[tuple[str, str, str], State]:
        """Return the state of each circuit, by (provider, base URL, name)."""
        with self._lock:
            return {key: circuit.state for key, circuit in self._circuits.items()}


OUTAGES = (Overloaded, ModelTimeout, Offline)
"""Errors that count as a failure, unless a 4xx status shows that the server works."""


class CircuitBreakerClient(ClientWrapper):
    """A client that rejects calls while the circuit of its model is open.

    A probe isn't retried.

    Args:
        client: The wrapped client.
        circuits: The circuits of all models.
    """

    def __init__(self, client: LLMClientInterface, circuits: Circuits) -> None:
        super().__init__(client)
        self._circuits = circuits

    async def stream(self, prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        """Stream an answer. See :meth:`LLMClientInterface.stream`.

        Raises:
            CircuitOpen: The circuit is open, or another call is the probe.
        """
        circuit = self._circuits.of(self)
        caller = circuit.acquire()
        if caller is None:
            seconds = math.ceil(circuit.seconds_until_probe) or 1
            context: dict[str, Any] = {"provider": self.info.provider, "model": self.info.name}
            raise CircuitOpen(**context, retry_after=seconds, seconds=seconds)
        if circuit.is_probe(caller):
            options = replace(options, retries=0)
        healthy = False
        try:
            async with contextlib.aclosing(self.client.stream(prompt, options)) as chunks:
                async for chunk in chunks:
                    if chunk.text and not healthy:
                        healthy = True  # also if the reader then stops
                        circuit.record_first_token(caller)
                    yield chunk
            healthy = True
        except Exception as error:
            healthy = False
            if not self.info.is_local and _is_outage(error):
                circuit.record_failure(caller)
                if circuit.state == "open":
                    log_provider_event(logging.WARNING, "circuit_open", self.info, error)
            raise
        finally:
            (circuit.record_success if healthy else circuit.release)(caller)


def _is_outage(error: Exception) -> TypeGuard[ProviderError]:
    if not isinstance(error, OUTAGES):
        return False
    return error.status is None or not 400 <= error.status < 500
