"""Retries, circuit breakers and fallback models, with scripted models and a settable clock."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace
from html import unescape
from types import SimpleNamespace
from typing import Any

import pytest
from support.fakes import ChatUser, ScriptedClient, reply_with

from persona_lab.clients.base import LLMClientInterface
from persona_lab.clients.catalog import Catalog, ModelInfo
from persona_lab.clients.error_mapping import map_error
from persona_lab.clients.middleware.circuit_breaker import Circuit, CircuitBreakerClient, Circuits
from persona_lab.clients.middleware.retry import RetryingClient
from persona_lab.clients.middleware.stack import ClientStack
from persona_lab.clients.middleware.wrapper import CallContext, ClientWrapper, Wrap
from persona_lab.clients.options import check_options
from persona_lab.clients.pool import ClientPool
from persona_lab.db.generations import GenerationResult
from persona_lab.errors import (
    BadKey,
    BadRequest,
    CircuitOpen,
    ConfigurationError,
    ContextTooLong,
    InvalidOption,
    InvalidResponse,
    MissingKey,
    ModelNotFound,
    ModelTimeout,
    ModelUnavailable,
    NoVision,
    Offline,
    Overloaded,
    ProviderError,
    QuotaExceeded,
    RateLimited,
    Refused,
    StorageError,
)
from persona_lab.lab import Lab, open_lab
from persona_lab.settings import ROOT, Settings
from persona_lab.translations import Translations
from persona_lab.types import Chunk, Options, Prompt, PromptMessage, Usage
from persona_lab.ui.render.text import answer_figures_html

PROMPT = Prompt("あなたはミナです。", (PromptMessage("user", "やあ"),))
NEVER_AGAIN = [
    BadKey(),
    MissingKey(),
    QuotaExceeded(),
    BadRequest(),
    ContextTooLong(),
    ModelNotFound(),
    ModelUnavailable(),
    NoVision(),
    InvalidResponse(),
    Refused(),
    CircuitOpen(),
]
MakeLab = Callable[..., Lab]


class Clock:
    """Time that passes only in :meth:`sleep`."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class Script:
    """A model that plays ``plays`` in turn, the last again and again; ``asked`` with what."""

    def __init__(self, *plays: Any) -> None:
        self.plays = plays
        self.asked: list[Options] = []
        self.closed = 0
        self.client = ScriptedClient(self.play)

    async def play(self, prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        play = self.plays[min(len(self.asked), len(self.plays) - 1)]
        self.asked.append(options)
        try:
            async for chunk in play(prompt, options):
                yield chunk
        finally:
            self.closed += 1


def fails(error: Exception) -> Any:
    return reply_with(error=error)


async def said(
    client: LLMClientInterface, options: Options | None = None, prompt: Prompt = PROMPT
) -> str:
    chunks = client.stream(prompt, options or Options())
    return "".join([chunk.text async for chunk in chunks])


async def told(client: LLMClientInterface) -> dict[str, Any]:
    """The metadata that all chunks bear together."""
    found: dict[str, Any] = {}
    async for chunk in client.stream(PROMPT, Options()):
        found |= chunk.metadata
    return found


@pytest.fixture
def clock() -> Clock:
    return Clock()


# ── retrying ──────────────────────────────────────────────────────────────────────────────


def retrying(script: Script, clock: Clock, **settings: Any) -> RetryingClient:
    script.client.settings = Settings(**settings)
    return RetryingClient(script.client, clock=clock, sleep=clock.sleep)


@pytest.mark.parametrize("error", [RateLimited(), Overloaded(), ModelTimeout(), Offline()])
async def test_what_may_be_over_in_a_moment_is_tried_again(
    clock: Clock, error: ProviderError
) -> None:
    script = Script(fails(error), fails(error), reply_with("はい"))
    assert await said(retrying(script, clock)) == "はい"
    assert len(script.asked) == 3
    assert script.closed == 3


@pytest.mark.parametrize("error", NEVER_AGAIN, ids=lambda error: error.code)
async def test_what_would_fail_the_same_way_is_not_tried_again(
    clock: Clock, error: ProviderError
) -> None:
    script = Script(fails(error))
    with pytest.raises(type(error)):
        await said(retrying(script, clock))
    assert (len(script.asked), clock.slept) == (1, [])


async def test_retry_raises_the_last_error_with_its_attempts(clock: Clock) -> None:
    last = RateLimited(status=429)
    script = Script(fails(Overloaded()), fails(Offline()), fails(last))
    with pytest.raises(RateLimited) as caught:
        await said(retrying(script, clock))
    assert caught.value is last
    assert last.attempts == 3


async def test_an_answer_tells_how_often_was_asked(clock: Clock) -> None:
    script = Script(fails(Offline()), reply_with("はい"))
    assert await told(retrying(script, clock)) == {"attempts": 2}


async def test_nothing_begins_again_once_a_word_has_come(clock: Clock) -> None:
    script = Script(reply_with("は", error=Offline()))
    got = []
    with pytest.raises(Offline):
        async for chunk in retrying(script, clock).stream(PROMPT, Options()):
            got.append(chunk.text)
    assert "".join(got) == "は"
    assert len(script.asked) == 1


async def test_white_space_is_no_word_and_is_not_given_twice(clock: Clock) -> None:
    script = Script(reply_with(" ", "\n", error=Offline()), reply_with(" ", "はい"))
    assert await said(retrying(script, clock)) == " はい"


async def test_pauses_are_partly_chance_and_the_bound_of_chance_grows() -> None:
    pauses = []
    for _ in range(40):
        clock = Clock()
        with pytest.raises(Offline):
            await said(retrying(Script(fails(Offline())), clock), Options(retries=4))
        pauses.append(clock.slept)
    for number, bound in enumerate([0.5, 1, 2, 4]):
        column = [slept[number] for slept in pauses]
        assert 0 <= min(column) < bound / 2 < max(column) <= bound


async def test_retry_after_is_honoured_and_chance_added(clock: Clock) -> None:
    script = Script(fails(RateLimited(retry_after=7)), reply_with("はい"))
    await said(retrying(script, clock))
    assert 7 <= clock.slept[0] <= 7.5


@pytest.mark.parametrize(
    ("asks", "patience"), [(11, 30), (8, 8)], ids=["over the bound", "over the timeout"]
)
async def test_retry_stops_when_retry_after_is_too_long(
    clock: Clock, asks: float, patience: float
) -> None:
    script = Script(fails(RateLimited(retry_after=asks)))
    with pytest.raises(RateLimited):
        await said(retrying(script, clock, llm_retry_wait=10), Options(timeout=patience))
    assert (len(script.asked), clock.slept) == (1, [])


async def test_retries_share_the_timeout_of_the_first_token(clock: Clock) -> None:
    async def slow(prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        clock.now += min(12, options.timeout)
        raise ModelTimeout
        yield Chunk()

    script = Script(slow)
    with pytest.raises(ModelTimeout):
        await said(retrying(script, clock), Options(timeout=30, retries=9))
    assert clock.now <= 130
    first, second, *_ = script.asked
    assert (first.timeout, first.total_timeout) == (30, 600)
    assert second.timeout <= 18
    assert second.total_timeout <= 588
    assert {options.idle for options in script.asked} == {30}


async def test_no_retries_means_one_try(clock: Clock) -> None:
    script = Script(fails(Offline()))
    with pytest.raises(Offline):
        await said(retrying(script, clock), Options(retries=0))
    assert len(script.asked) == 1


@pytest.mark.parametrize("asleep", [True, False], ids=["in a pause", "while it waits"])
async def test_a_cancelled_try_is_closed_and_none_follows(clock: Clock, asleep: bool) -> None:
    waiting = asyncio.Event()

    async def for_ever(*_: object) -> None:
        waiting.set()
        await asyncio.Event().wait()

    async def silent(prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        await for_ever()
        yield Chunk()

    script = Script(fails(Offline()) if asleep else silent)
    client = RetryingClient(script.client, clock=clock, sleep=for_ever)
    task = asyncio.ensure_future(said(client))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(script.asked) == script.closed == 1


# ── the breaker ───────────────────────────────────────────────────────────────────────────


def breaker(
    script: Script, clock: Clock, threshold: int = 2
) -> tuple[CircuitBreakerClient, Circuit]:
    circuits = Circuits(threshold, 30, clock)
    around = CircuitBreakerClient(script.client, circuits)
    return around, circuits.of(around)


async def failing(client: LLMClientInterface, error: type[Exception], times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(error):
            await said(client)


async def test_circuit_opens_after_consecutive_failures(clock: Clock) -> None:
    script = Script(fails(Overloaded()))
    client, circuit = breaker(script, clock)
    await failing(client, Overloaded, 2)
    clock.now += 12.5
    with pytest.raises(CircuitOpen) as turned:
        await said(client)
    assert circuit.state == "open"
    assert len(script.asked) == 2
    assert turned.value.details["seconds"] == turned.value.retry_after == 18


async def test_a_success_between_failures_starts_the_count_again(clock: Clock) -> None:
    script = Script(fails(Offline()), reply_with("はい"), fails(Offline()), reply_with("はい"))
    client, circuit = breaker(script, clock)
    await failing(client, Offline)
    await said(client)
    await failing(client, Offline)
    assert circuit.state == "closed"


@pytest.mark.parametrize(
    "error",
    [*NEVER_AGAIN, RateLimited(status=429), ModelTimeout(status=408), StorageError()],
    ids=lambda error: error.code,
)
async def test_what_tells_nothing_of_the_models_health_does_not_count(
    clock: Clock, error: Exception
) -> None:
    client, circuit = breaker(Script(fails(error)), clock, threshold=1)
    await failing(client, type(error), 3)
    assert circuit.state == "closed"


async def test_circuit_does_not_count_a_leaving_reader(clock: Clock) -> None:
    client, circuit = breaker(Script(reply_with("は", "い")), clock, threshold=1)
    stream = client.stream(PROMPT, Options())
    await anext(stream)
    await stream.aclose()
    assert circuit.state == "closed"


async def test_circuit_resets_failures_when_a_reader_got_text(clock: Clock) -> None:
    client, circuit = breaker(
        Script(fails(Offline()), reply_with("は", "い"), fails(Offline())), clock
    )
    await failing(client, Offline)
    stream = client.stream(PROMPT, Options())
    await anext(stream)
    await stream.aclose()
    await failing(client, Offline)
    assert circuit.state == "closed"


async def test_an_answer_that_breaks_off_counts(clock: Clock) -> None:
    client, circuit = breaker(Script(reply_with("は", error=Offline())), clock)
    await failing(client, Offline, 2)
    assert circuit.state == "open"


class Gate:
    """A model that waits to be let through, call by call."""

    def __init__(self) -> None:
        self.calls: list[asyncio.Future[Any]] = []
        self.called = asyncio.Event()

    async def play(self, prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        self.calls.append(asyncio.get_running_loop().create_future())
        self.called.set()
        play = await self.calls[-1]
        async for chunk in play(prompt, options):
            yield chunk


async def half_open(clock: Clock) -> tuple[CircuitBreakerClient, Circuit, Gate]:
    gate = Gate()
    script = Script(fails(Overloaded()), gate.play)
    client, circuit = breaker(script, clock, threshold=1)
    await failing(client, Overloaded)
    clock.now += 30
    assert circuit.state == "half_open"
    return client, circuit, gate


async def started(client: LLMClientInterface, gate: Gate) -> asyncio.Task[str]:
    """A call that has come to the model, or was turned away."""
    gate.called.clear()
    task = asyncio.create_task(said(client))
    reached = asyncio.create_task(gate.called.wait())
    await asyncio.wait([task, reached], return_when=asyncio.FIRST_COMPLETED)
    reached.cancel()
    return task


async def test_circuit_lets_one_probe_through_after_the_cooldown(clock: Clock) -> None:
    client, circuit, gate = await half_open(clock)
    tasks = [await started(client, gate) for _ in range(5)]
    assert len(gate.calls) == 1
    gate.calls[0].set_result(reply_with("はい"))
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results[0] == "はい"
    assert {type(result) for result in results[1:]} == {CircuitOpen}
    assert circuit.state == "closed"


async def test_a_probe_that_fails_opens_it_for_as_long_again(clock: Clock) -> None:
    client, circuit, gate = await half_open(clock)
    task = await started(client, gate)
    gate.calls[0].set_result(fails(Offline()))
    with pytest.raises(Offline):
        await task
    assert (circuit.state, circuit.seconds_until_probe) == ("open", 30)


@pytest.mark.parametrize("end", ["cancelled", "closed", "401"])
async def test_circuit_stays_half_open_when_a_probe_is_inconclusive(clock: Clock, end: str) -> None:
    client, circuit, gate = await half_open(clock)
    task = await started(client, gate)
    if end == "401":
        gate.calls[0].set_result(fails(BadKey(status=401)))
    else:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError, BadKey):
        await task
    assert circuit.state == "half_open"
    again = await started(client, gate)
    gate.calls[1].set_result(reply_with("はい"))
    assert await again == "はい"


async def test_the_first_word_of_a_probe_lets_the_others_in(clock: Clock) -> None:
    client, circuit, gate = await half_open(clock)
    probe = client.stream(PROMPT, Options())
    first = asyncio.ensure_future(anext(probe))
    await gate.called.wait()
    gate.calls[0].set_result(reply_with("は", error=Offline()))
    assert (await first).text == "は"
    assert circuit.state == "closed"
    with pytest.raises(Offline):
        await anext(probe)
    assert circuit.state == "open"


async def test_a_probe_is_a_single_try(clock: Clock) -> None:
    script = Script(fails(Overloaded()))
    circuits = Circuits(1, 30, clock)
    client = CircuitBreakerClient(retrying(script, clock), circuits)
    await failing(client, Overloaded)
    assert len(script.asked) == 3
    clock.now += 30
    await failing(client, Overloaded)
    assert len(script.asked) == 4


async def test_what_began_before_it_opened_changes_nothing_after(clock: Clock) -> None:
    gate = Gate()
    client, circuit = breaker(Script(gate.play), clock, threshold=1)
    early, late, bad = [await started(client, gate) for _ in range(3)]
    gate.calls[2].set_result(fails(Offline()))
    await asyncio.wait([bad])
    clock.now += 10
    gate.calls[0].set_result(reply_with("はい"))
    gate.calls[1].set_result(fails(Offline()))
    await asyncio.wait([early, late, bad])
    assert (circuit.state, circuit.seconds_until_probe) == ("open", 20)
    assert isinstance(bad.exception(), Offline)
    assert isinstance(late.exception(), Offline)


def layered(**settings: Any) -> tuple[ClientPool, ClientStack]:
    given = Settings(openai_api_key="k", anthropic_api_key="k", **settings)
    layers = ClientStack(given, clock=Clock(), sleep=asyncio.sleep)
    catalog = Catalog(given.data_dir / "models.yaml")
    return ClientPool(given, catalog, wrap=layers.wrap_shared), layers


async def test_each_provider_server_and_model_has_a_circuit_of_its_own() -> None:
    many, layers = layered()
    other, _ = layered(openai_base_url="http://127.0.0.1:1/v1")
    clients = [await many.open(name) for name in ("openai:a", "openai:b", "anthropic:a")]
    clients.append(await other.open("openai:a"))
    found = [layers.circuits.of(client) for client in clients]
    assert len(set(map(id, found))) == 4
    assert ("openai", "https://api.openai.com/v1", "a") in layers.circuits.states()
    assert ("openai", "http://127.0.0.1:1/v1", "a") in layers.circuits.states()
    await many.aclose()
    await other.aclose()


def test_a_circuit_outlives_calls_and_event_loops() -> None:
    many, layers = layered(llm_breaker_failures=2)

    async def fail_once() -> None:
        client = await many.open("mock:echo?fail=overloaded")
        with pytest.raises(Overloaded):
            await said(client, Options(retries=0))

    for _ in range(2):
        asyncio.run(fail_once())
    assert list(layers.circuits.states().values()) == ["open"]
    asyncio.run(many.aclose())


def test_names_that_visitors_type_do_not_fill_the_memory(clock: Clock) -> None:
    circuits = Circuits(1, 30, clock)
    client = ScriptedClient(reply_with())
    for number in range(2 * Circuits.MOST):
        client.info = ModelInfo(provider="mock", name=f"echo?tokens={number}")
        circuits.of(client)
    assert len(circuits.states()) == Circuits.MOST


async def test_wrapper_has_the_interface_of_its_client() -> None:
    many, _ = layered()
    client = await many.open("openai:gpt-5-mini")
    twin = await many.open("openai:gpt-4.1-mini")
    assert isinstance(client, CircuitBreakerClient)
    assert isinstance(client.client, RetryingClient)
    assert (client.info.name, twin.info.name) == ("gpt-5-mini", "gpt-4.1-mini")
    assert isinstance(twin, CircuitBreakerClient)
    assert twin.base_url == client.base_url == "https://api.openai.com/v1"
    assert twin.count_tokens("やあ") == twin.client.client.count_tokens("やあ")
    await many.aclose()


async def test_wrapper_reports_loading_and_waiting_of_its_client(clock: Clock) -> None:
    class Busy(ScriptedClient):
        is_loaded, load_progress, waiting = False, 0.4, 3

    inner = RetryingClient(Busy(reply_with()), clock=clock, sleep=clock.sleep)
    outer = CircuitBreakerClient(inner, Circuits(1, 30, clock))
    assert (outer.is_loaded, outer.load_progress, outer.waiting) == (False, 0.4, 3)


# ── the fallback ──────────────────────────────────────────────────────────────────────────


@dataclass
class Answered:
    """What a chain of models answered, which models were asked, and what failed."""

    text: str
    asked: list[str]
    code: str | None
    failed: list[str]


async def first_of(make_lab: MakeLab, *plays: Any) -> Answered:
    names = [f"echo?tokens={number}" for number in range(1, len(plays) + 1)]
    specs = [f"mock:{name}" for name in names]
    asked: list[str] = []
    results: list[GenerationResult] = []

    class Playing(ClientWrapper):
        async def stream(self, prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
            asked.append("abc"[names.index(self.info.name)])
            async for chunk in plays[names.index(self.info.name)](prompt, options):
                yield chunk

    lab = make_lab(llm_fallback=",".join(specs[1:]))
    lab.layers.outer = (lambda client, asking: Playing(client),)
    lab.service.observers = (results.append,)
    events = lab.service.generate_streaming("やあ", **ChatUser(lab).ids, model=specs[0])
    text = ""
    with contextlib.suppress(InvalidOption):
        async for event in events:
            if event.type == "delta" and "fallback" not in event.metadata:
                text += event.content
    [result] = results
    return Answered(text, asked, result.code, [each.code for each in result.failed_attempts])


async def test_fallback_stops_at_the_first_model_with_text(
    make_lab: MakeLab,
) -> None:
    answered = await first_of(
        make_lab, fails(Offline()), reply_with("はい", "。"), reply_with("いいえ")
    )
    assert answered == Answered("はい。", ["a", "b"], None, ["offline"])


@pytest.mark.parametrize(
    "error",
    [e for e in NEVER_AGAIN if not isinstance(e, Refused)] + [RateLimited(), TimeoutError()],
    ids=lambda error: type(error).__name__,
)
async def test_fallback_asks_the_next_model_on_any_provider_error(
    make_lab: MakeLab, error: Exception
) -> None:
    answered = await first_of(make_lab, fails(error), reply_with("はい"))
    assert (answered.text, answered.asked, answered.code) == ("はい", ["a", "b"], None)


@pytest.mark.parametrize("error", [Refused(), StorageError(), InvalidOption(), ValueError()])
async def test_what_is_refused_or_is_our_own_fault_goes_to_no_other(
    make_lab: MakeLab, error: Exception
) -> None:
    answered = await first_of(make_lab, fails(error), reply_with("はい"))
    assert (answered.text, answered.asked) == ("", ["a"])
    assert answered.code == map_error(error).code


async def test_after_the_first_word_no_other_is_asked(make_lab: MakeLab) -> None:
    answered = await first_of(make_lab, reply_with("は", error=Offline()), reply_with("いいえ"))
    assert answered == Answered("は", ["a"], "offline", [])


async def test_white_space_of_one_that_failed_is_not_given(make_lab: MakeLab) -> None:
    answered = await first_of(make_lab, reply_with("\n", error=Offline()), reply_with("はい"))
    assert answered == Answered("はい", ["a", "b"], None, ["offline"])


async def test_fallback_raises_the_first_error_when_all_fail(make_lab: MakeLab) -> None:
    answered = await first_of(make_lab, fails(Overloaded()), fails(BadKey()), fails(Offline()))
    assert (answered.asked, answered.code) == (["a", "b", "c"], "overloaded")
    assert answered.failed == ["bad_key", "offline"]


# ── the fallback, in the house ────────────────────────────────────────────────────────────


DOWN = "mock:echo?fail=overloaded"


async def reply_of(lab: Lab, **how: Any) -> Any:
    visitor = ChatUser(lab)
    return await lab.service.generate_response("やあ", **visitor.ids, **how)


async def test_fallback_model_gets_its_own_prompt_and_options(make_lab: MakeLab) -> None:
    lab = make_lab(llm_retries=0, llm_fallback="mock:echo")
    infos = {
        DOWN.partition(":")[2]: {"prompt": "chat", "context": 100_000},
        "echo": {"prompt": "transcript", "context": 100_000},
    }
    for name, facts in infos.items():
        info = ModelInfo.model_validate({"provider": "mock", "name": name, **facts})
        lab.catalog.models[info.spec] = info
    seen: list[tuple[str, Prompt, Options]] = []

    class Watching(ClientWrapper):
        async def stream(self, prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
            seen.append((self.info.name, prompt, options))
            async with contextlib.aclosing(self.client.stream(prompt, options)) as chunks:
                async for chunk in chunks:
                    yield chunk

    lab.layers.outer = (lambda client, asking: Watching(client),)
    reply = await reply_of(lab, model=DOWN, temperature=0.25)
    (_, first, _), (name, second, options) = seen
    assert (first.kind, name, second.kind) == ("chat", "echo", "transcript")
    assert second.stop
    assert second.turns == ()
    assert options.temperature == 0.25
    assert reply.metadata["prompt"] == second.system
    assert reply.metadata["spec"] == "mock:echo"


async def test_fallback_models_share_the_total_timeout(make_lab: MakeLab, clock: Clock) -> None:
    given = []

    class Slow(ClientWrapper):
        async def stream(self, prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
            given.append(options.total_timeout)
            clock.now += 25
            async with contextlib.aclosing(self.client.stream(prompt, options)) as chunks:
                async for chunk in chunks:
                    yield chunk

    lab = make_lab(llm_retries=0, llm_fallback="mock:echo", llm_total_timeout=90, clock=clock)
    lab.layers.outer = (lambda client, asking: Slow(client),)
    await reply_of(lab, model=DOWN)
    assert given == [90, 65]


async def test_fallback_prompt_fits_a_smaller_context(make_lab: MakeLab) -> None:
    lab = make_lab(llm_retries=0, llm_fallback="mock:echo")
    small = lab.catalog.models["mock:echo"].model_copy(update={"context": 1200})
    lab.catalog.models[DOWN] = small.model_copy(
        update={"name": DOWN.partition(":")[2], "context": 100_000}
    )
    visitor = ChatUser(lab)
    for number in range(4):
        await lab.service.generate_response(f"{number}" + "長" * 300, **visitor.ids)
    lab.catalog.models["mock:echo"] = small
    reply = await lab.service.generate_response("やあ", **visitor.ids, model=DOWN)
    assert reply.metadata["spec"] == "mock:echo"
    assert reply.metadata["turns"] < 9


async def test_metadata_names_the_fallback_and_its_reason(make_lab: MakeLab) -> None:
    lab = make_lab(llm_retries=0, llm_fallback="mock:echo?fail=offline,mock:echo")
    reply = await reply_of(lab, model=DOWN)
    assert (reply.metadata["model"], reply.metadata["provider"]) == ("echo", "mock")
    first, second = reply.metadata["fallback_from"]
    assert first == {
        "model": DOWN,
        "error_type": "api_error",
        "code": "overloaded",
        "status": None,
        "attempts": 1,
    }
    assert (second["model"], second["code"]) == ("mock:echo?fail=offline", "offline")
    assert "fallback" not in reply.metadata
    assert "error" not in reply.metadata


async def test_first_models_error_is_reported_when_all_models_fail(
    make_lab: MakeLab,
) -> None:
    lab = make_lab(llm_retries=0, llm_fallback="mock:echo?fail=offline")
    visitor = ChatUser(lab)
    reply = await lab.service.generate_response("やあ", **visitor.ids, model=DOWN)
    assert (reply.metadata["code"], reply.metadata["spec"]) == ("overloaded", DOWN)
    assert [one["code"] for one in reply.metadata["fallback_from"]] == ["overloaded", "offline"]
    [record] = lab.store.records(user_id=visitor.user_id)
    assert (record.model, record.status) == ("echo?fail=overloaded", "failed")


async def test_fallback_replaces_a_model_without_a_key(make_lab: MakeLab) -> None:
    reply = await reply_of(make_lab(llm_fallback="mock:echo"), model="openai:gpt-5-mini")
    assert reply.metadata["spec"] == "mock:echo"
    assert reply.metadata["fallback_from"][0]["code"] == "missing_key"


async def test_compare_and_try_use_no_fallback(make_lab: MakeLab) -> None:
    lab = make_lab(llm_retries=0, llm_fallback="mock:echo")
    visitor = ChatUser(lab)
    for kind in ("try", "compare"):
        events = lab.service.answer(
            visitor.agent, "やあ", user_id=visitor.user_id, model=DOWN, kind=kind
        )
        done = [event async for event in events][-1]
        assert done.metadata["code"] == "overloaded"
        assert "fallback_from" not in done.metadata


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"llm_fallback": "nobody:x"}, "nobody:x is no model that is known"),
        ({"llm_fallback": "mock:echo,nobody"}, "nobody is no model that is known"),
        ({"llm_fallback": "mock:parrot"}, "mock:parrot is no model that is known"),
        ({"llm_fallback": "anthropic:claude-haiku-4-5"}, "needs ANTHROPIC_API_KEY"),
        ({"llm_fallback": "local:/nowhere/none.gguf"}, "there is no such file"),
    ],
)
def test_a_wrong_chain_stops_the_start_with_one_line(
    settings: dict[str, str], complaint: str
) -> None:
    with pytest.raises(ConfigurationError) as stopped:
        open_lab(Settings(database_url="sqlite://", llm_provider="mock", **settings))
    assert str(stopped.value).startswith("LLM_FALLBACK: ")
    assert complaint in str(stopped.value)
    assert "\n" not in str(stopped.value)


def test_fallback_chain_has_no_duplicates_and_resolves_local() -> None:
    given = Settings(llm_provider="mock", llm_fallback=" anthropic: , local,mock:echo, local ")
    many = ClientPool(given, Catalog(given.data_dir / "models.yaml"))
    specs = [info.spec for info in many.fallback_chain()]
    assert specs == ["mock:echo", "anthropic:claude-sonnet-5-5", "local:gemma-3-270m"]
    assert many.fallback_chain("local:gemma-3-270m")[0].spec == "local:gemma-3-270m"
    own = Settings(local_model="smollm2-135m-instruct", llm_fallback="local")
    assert own.fallback_models == ["local:smollm2-135m-instruct"]
    assert Settings(llm_fallback="local:a/b:c.gguf").local_models == ["a/b:c.gguf"]


async def test_call_wrappers_get_the_call_context_in_their_order(
    make_lab: MakeLab,
) -> None:
    lab = make_lab()
    calls: list[tuple[str, CallContext]] = []

    def layer(name: str) -> Wrap:
        def around(client: LLMClientInterface, asking: CallContext) -> LLMClientInterface:
            calls.append((f"{name} around {type(client).__name__}", asking))
            return Layered(client)

        return around

    class Layered(ClientWrapper):
        async def stream(self, prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
            yield Chunk("はい", metadata={"cache_hit": True})
            yield Chunk(finish_reason="stop", usage=Usage(1, 1), model="m")

    lab.layers.outer = (layer("Limited"), layer("Cached"))
    visitor = ChatUser(lab)
    reply = await lab.service.generate_response("やあ", **visitor.ids)
    assert reply.metadata["cache_hit"] is True
    names = ["Limited around CircuitBreakerClient", "Cached around Layered"]
    asking = CallContext(visitor.user_id)
    assert calls == [(name, asking) for name in names]
    async for _ in lab.service.regenerate_streaming(visitor.chat.id, visitor.user_id):
        pass
    assert calls[-1][1] == replace(asking, bypass_cache=True)


# ── options ───────────────────────────────────────────────────────────────────────────────


WRONG: Sequence[dict[str, Any]] = [
    {"warmth": 1},
    {"max_tokens": -5},
    {"max_tokens": "many"},
    {"temperature": 9},
    {"temperature": float("nan")},
    {"stop": "終"},
    {"timeout": 0},
    {"top_p": "x"},
]


@pytest.mark.parametrize("options", WRONG, ids=str)
async def test_invalid_option_is_named_and_nothing_is_stored(
    make_lab: MakeLab, options: dict[str, Any]
) -> None:
    lab = make_lab()
    visitor = ChatUser(lab)
    with pytest.raises(InvalidOption) as refused:
        await lab.service.generate_response("やあ", **visitor.ids, **options)
    [name] = options
    assert refused.value.details["option"] == name
    for language in ("ja", "en"):
        assert name in lab.error_handler.error_text(refused.value, language)
    with pytest.raises(InvalidOption):
        await anext(lab.service.answer(visitor.agent, "やあ", user_id=visitor.user_id, **options))
    assert visitor.thread() == []
    assert lab.store.records(user_id=visitor.user_id) == []


async def test_invalid_option_keeps_the_present_answer(make_lab: MakeLab) -> None:
    lab = make_lab()
    visitor = ChatUser(lab)
    await lab.service.generate_response("やあ", **visitor.ids)
    before = visitor.thread()
    with pytest.raises(InvalidOption):
        await anext(
            lab.service.regenerate_streaming(visitor.chat.id, visitor.user_id, max_tokens=0)
        )
    assert visitor.thread() == before


def test_missing_and_none_options_use_the_default() -> None:
    assert check_options({"temperature": None, "stop": ["終"], "seed": 3}) == {
        "stop": ("終",),
        "seed": 3,
    }


def test_each_timeout_has_its_setting_and_local_models_their_own() -> None:
    given = Settings(
        llm_timeout=11,
        llm_connect_timeout=3,
        llm_idle_timeout=7,
        llm_total_timeout=99,
        llm_retries=1,
        local_timeout=222,
    )
    many = ClientPool(given, Catalog(given.data_dir / "models.yaml"))
    options = many.options(many.info("openai:gpt-5-mini"))
    assert (options.timeout, options.connect_timeout, options.idle) == (11, 3, 7)
    assert (options.total_timeout, options.retries) == (99, 1)
    assert many.options(many.info("local:")).timeout == 222
    assert ClientPool(Settings(llm_timeout=5), many.catalog).options(many.info("mock:")).idle == 5


# ── what is known of a model ──────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("spec", "accepts_temperature"),
    [
        ("openai:gpt-5-nano", False),
        ("openai:gpt-5.9-codex", False),
        ("openai:gpt-5-chat-latest", True),
        ("openai:o1", False),
        ("openai:o3-mini-2025-01-31", False),
        ("openai:o4-mini", False),
        ("openai:gpt-4o-mini", True),
        ("openai:llama3.3", True),
        ("openai:ol-1", True),
        ("anthropic:claude-haiku-4-5-20251001", True),
        ("anthropic:claude-sonnet-9", False),
    ],
)
def test_unlisted_model_has_the_facts_of_the_longest_match(
    spec: str, accepts_temperature: bool
) -> None:
    catalog = Catalog(Settings().data_dir / "models.yaml")
    info = catalog.find(spec)
    assert info.spec == spec
    assert ("temperature" in info.accepts) is accepts_temperature
    assert info.input_price is None


def test_families_are_not_offered() -> None:
    catalog = Catalog(Settings().data_dir / "models.yaml")
    assert not [spec for spec in catalog.models if "*" in spec]


def test_what_is_free_is_said_once() -> None:
    catalog = Catalog(Settings().data_dir / "models.yaml")
    free = [info for info in catalog.models.values() if info.free]
    assert free
    assert [info.spec for info in free if info.input_price is not None] == []


# ── on the page ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("language", ["ja", "en"])
async def test_page_names_the_fallback_and_the_failed_model(
    make_lab: MakeLab, language: str
) -> None:
    words = Translations(ROOT / "templates" / "ui.yaml")
    visitor: Any = SimpleNamespace(translate=lambda key, **blanks: words(key, language, **blanks))
    lab = make_lab(llm_retries=0, llm_fallback="mock:echo")
    stood_in, own = await reply_of(lab, model="mock:echo?fail=offline"), await reply_of(lab)
    shown = answer_figures_html(stood_in.metadata, visitor)
    models = {"absent": "mock:echo?fail=offline", "model": "mock:echo"}
    assert words("figures.stands_in", language, **models) in unescape(shown)
    assert "mock" not in answer_figures_html(own.metadata, visitor)
