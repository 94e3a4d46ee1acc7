"""Circuit breakers: what is remembered of models that keep failing. Nobody is asked here.

Libraries for this let every waiting caller through at once when they look again, or don't notice
that an ``async def`` failed.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Literal

from cachetools import LRUCache

from persona_lab.clients.base import LLMClientInterface

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
