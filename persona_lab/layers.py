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

import contextlib
import copy
import logging
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self, TypeGuard, cast

from persona_lab.circuits import Circuits, Clock
from persona_lab.clients import LLMClientInterface, ModelInfo
from persona_lab.errors import (
    CircuitOpen,
    ModelTimeout,
    Offline,
    Overloaded,
    ProviderError,
    RateLimited,
    Refused,
    from_foreign,
)
from persona_lab.letters import is_blank
from persona_lab.models import Chunk, Completion, Options, Prompt

if TYPE_CHECKING:
    import tenacity

    from persona_lab.settings import Settings

log = logging.getLogger("persona_lab.layers")

Sleep = Callable[[float], Awaitable[None]]

TRIED_AGAIN = (RateLimited, Overloaded, ModelTimeout, Offline)
"""What may be over in a moment. All else fails the same way again, or was paid for."""
OUTAGES = (Overloaded, ModelTimeout, Offline)
"""What opens a breaker, unless a status of 4xx says that the server is well."""

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0
"""Seconds: bounds of the random pause before the second try, and before any."""


def _log(level: int, event: str, info: ModelInfo, error: ProviderError, **more: Any) -> None:
    """An error's own words and details may hold what nobody else should read."""
    about = {"event": event, "error": error.type.value, "code": error.code, "status": error.status}
    log.log(level, "%s: %s", event, info.spec, extra={"model": info.spec, **about, **more})


class Layer(LLMClientInterface):
    """A client with the face of the one that it stands around."""

    def __init__(self, client: LLMClientInterface) -> None:
        super().__init__(client.info, client.settings)
        self.client = client

    def for_model(self, info: ModelInfo) -> Self | None:
        inner = self.client.for_model(info)
        if inner is None:
            return None
        twin = copy.copy(self)
        twin.client, twin.info = inner, info
        return twin

    @property
    def base_url(self) -> str:
        return self.client.base_url

    @property
    def ready(self) -> bool:
        return self.client.ready

    @property
    def loaded(self) -> float:
        return self.client.loaded

    @property
    def waiting(self) -> int:
        return self.client.waiting

    def check(self) -> None:
        self.client.check()

    async def warm(self) -> None:
        await self.client.warm()

    async def read_ahead(self, prompts: Sequence[Prompt]) -> None:
        await self.client.read_ahead(prompts)

    def count_tokens(self, text: str) -> int:
        return self.client.count_tokens(text)

    def validate_response(self, response: Completion) -> None:
        self.client.validate_response(response)

    async def aclose(self) -> None:
        await self.client.aclose()


# ── the same model again ──────────────────────────────────────────────────────────────────


class Retrying(Layer):
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
            retry=tenacity.retry_if_exception_type(TRIED_AGAIN),
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
        _log(logging.INFO, "retry", self.info, _error(state), **fields)


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


# ── a model that is down ──────────────────────────────────────────────────────────────────


class Breaker(Layer):
    """Turns callers away from a model that keeps failing, and lets one at a time look again.

    Raises CircuitOpen for who is turned away. A probe is a single try.
    """

    def __init__(self, client: LLMClientInterface, circuits: Circuits) -> None:
        super().__init__(client)
        self._circuits = circuits

    async def stream(self, prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        circuit = self._circuits.of(self)
        caller = circuit.enter()
        if caller is None:
            seconds = math.ceil(circuit.seconds) or 1
            who: dict[str, Any] = {"provider": self.info.provider, "model": self.info.name}
            raise CircuitOpen(**who, retry_after=seconds, seconds=seconds)
        if circuit.probes(caller):
            options = replace(options, retries=0)
        well = False
        try:
            async with contextlib.aclosing(self.client.stream(prompt, options)) as chunks:
                async for chunk in chunks:
                    if chunk.text and not well:
                        well = True  # and stays so for a reader who has heard enough
                        circuit.answered(caller)
                    yield chunk
            well = True
        except Exception as error:
            well = False
            if _outage(error):
                circuit.failed(caller)
                if circuit.state == "open":
                    _log(logging.WARNING, "circuit_open", self.info, error)
            raise
        finally:
            (circuit.succeeded if well else circuit.left)(caller)


def _outage(error: Exception) -> TypeGuard[ProviderError]:
    """A full queue of this machine's own engine is none: its model is well, and busy."""
    if not isinstance(error, OUTAGES) or error.provider == "local":
        return False
    return error.status is None or not 400 <= error.status < 500


# ── another model ─────────────────────────────────────────────────────────────────────────


def moves_on(error: Exception) -> TypeGuard[ProviderError]:
    """Whether another model may be asked instead.

    Whatever is wrong with one provider: not with us, nor with what the user asked for. What one
    model refuses isn't carried to the next until some small one answers it.
    """
    return isinstance(error, ProviderError) and not isinstance(error, Refused)


class Fallback:
    """The first of ``models`` that gives a word. Good for one answer.

    ``ask`` streams a model's answer to a prompt that is made for that model, and raises what is
    wrong with an answer that has no word, or what was wrong with the one before where there is no
    time for another. ``failed`` are the errors of those that were passed over.
    """

    def __init__(
        self, models: Sequence[ModelInfo], ask: Callable[[ModelInfo], AsyncGenerator[Chunk, None]]
    ) -> None:
        self._models = models
        self._ask = ask
        self.failed: list[ProviderError] = []

    async def stream(self) -> AsyncGenerator[Chunk, None]:
        """Raises the first model's error when none gave a word."""
        for info in self._models:
            begun, held = False, []
            try:
                async with contextlib.aclosing(self._ask(info)) as chunks:
                    async for chunk in chunks:
                        held.append(chunk)
                        begun = begun or not is_blank(chunk.text)
                        while begun and held:
                            yield held.pop(0)
            except Exception as error:
                ours = from_foreign(error, provider=info.provider, model=info.name)
                if any(ours is former for former in self.failed):  # there is no time for this one
                    break
                if begun or not moves_on(ours):
                    raise
                self.failed.append(ours)
                _log(logging.WARNING, "passed_over", info, ours)
            else:
                for chunk in held:
                    yield chunk
                return
        raise self.failed[0]


# ── all of them ───────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Asking:
    """Whose call it is. ``fresh``: they want another answer than the one that they had; ``own``:
    they pay for it with a key of their own; ``again``: it is for the same message as the one
    before, which counted as their request."""

    user_id: str
    fresh: bool = False
    own: bool = False
    again: bool = False


Around = Callable[[LLMClientInterface, Asking], LLMClientInterface]


class Layers:
    """Puts the layers around clients, and holds what they remember between calls.

    ``outer`` are those that need to know whose call it is, the innermost first: Limited, Cached.
    """

    def __init__(
        self, settings: Settings, *, clock: Clock, sleep: Sleep, outer: Sequence[Around] = ()
    ) -> None:
        self.circuits = Circuits(
            settings.llm_breaker_failures, settings.llm_breaker_cooldown, clock
        )
        self.outer = tuple(outer)
        self._clock = clock
        self._sleep = sleep

    def keep(self, client: LLMClientInterface) -> LLMClientInterface:
        """``client`` with the layers that all calls share."""
        return Breaker(self.alone(client), self.circuits)

    def alone(self, client: LLMClientInterface) -> LLMClientInterface:
        """``client`` with those of one visitor's: their account's troubles are nobody else's."""
        return Retrying(client, clock=self._clock, sleep=self._sleep)

    def for_call(self, client: LLMClientInterface, asking: Asking) -> LLMClientInterface:
        """``client`` with the layers of this call as well."""
        for around in self.outer:
            client = around(client, asking)
        return client
