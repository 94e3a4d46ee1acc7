"""The fault matrix: providers × faults, through the whole house against a server that fails.

One table says what each fault becomes: its class, how often the server is asked, whether the
model's circuit opens, whether another model may answer instead, what the user reads, what is kept.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from support.fake_servers import FAKE_PROVIDERS, PIECES, SECRET, FakeHttpProvider, FakeOpenAI
from support.fakes import NO_PROCESSING, ChatUser
from support.faulty_server import FaultyResponse, FaultyServer, refusing_url
from support.texts import FALLBACKS

from persona_lab import errors
from persona_lab.clients.middleware.stack import ClientStack
from persona_lab.clients.pool import ClientPool
from persona_lab.errors import PersonaLabError
from persona_lab.lab import Lab, open_lab
from persona_lab.pipeline.service import LLMService
from persona_lab.settings import Settings
from persona_lab.types import Reply

WORD = PIECES[0]
"""What has come when a fault strikes in mid-stream."""
DRIP = "…"


@dataclass(frozen=True)
class Row:
    """One fault. ``asked``: requests that the server sees; ``opens``: the circuit, at a threshold
    of one; ``moves``: another model may answer; ``kept``: of the answer;
    ``patience``: the settings that make it quick."""

    fault: str
    error: type[PersonaLabError]
    asked: int
    opens: bool
    moves: bool
    kept: str = ""
    patience: dict[str, float] = field(default_factory=dict)


SOON: Any = {"llm_timeout": 0.5}
IDLE: Any = {"llm_idle_timeout": 0.3}
WHOLE: Any = {"llm_total_timeout": 0.8}

# fmt: off
MATRIX = [
    #    fault                         class                  asked opens  moves  kept
    Row("connection refused",          errors.Offline,          0, True,  True),
    Row("401",                         errors.BadKey,           1, False, True),
    Row("403",                         errors.BadKey,           1, False, True),
    Row("404 model",                   errors.ModelNotFound,    1, False, True),
    Row("400",                         errors.BadRequest,       1, False, True),
    Row("429",                         errors.RateLimited,      3, False, True),
    Row("429, Retry-After: 7",         errors.RateLimited,      3, False, True),
    Row("429, Retry-After: 3600",      errors.RateLimited,      1, False, True),
    Row("quota",                       errors.QuotaExceeded,    1, False, True),
    Row("500",                         errors.Overloaded,       3, True,  True),
    Row("503",                         errors.Overloaded,       3, True,  True),
    Row("529",                         errors.Overloaded,       3, True,  True),
    Row("context too long",            errors.ContextTooLong,   1, False, True),
    Row("not a stream",                errors.InvalidResponse,  1, False, True),
    Row("malformed SSE",               errors.InvalidResponse,  1, False, True),
    Row("empty answer",                errors.InvalidResponse,  1, False, True),
    Row("white space only",            errors.InvalidResponse,  1, False, True),
    Row("refusal",                     errors.Refused,          1, False, False),
    Row("content filter",              errors.Refused,          1, False, False, WORD),
    Row("hang before the head",        errors.ModelTimeout,     1, True,  True, "",   SOON),
    Row("hang before the first token", errors.ModelTimeout,     1, True,  True, "",   SOON),
    Row("hang between tokens",         errors.ModelTimeout,     1, True,  False, WORD, IDLE),
    Row("slow drip",                   errors.ModelTimeout,     1, True,  False, WORD, WHOLE),
    Row("drop before the first token", errors.Offline,          3, True,  True),
    Row("drop in mid-stream",          errors.Offline,          1, True,  False, WORD),
    Row("end without a reason",        errors.Offline,          1, True,  False, WORD),
    Row("error event at once",         errors.Overloaded,       3, True,  True),
    Row("error event in mid-stream",   errors.Overloaded,       1, True,  False, WORD),
    Row("malformed SSE in mid-stream", errors.InvalidResponse,  1, False, False, WORD),
]
# fmt: on


def act(wire: FakeHttpProvider, fault: str) -> FaultyResponse:
    """What the provider's server does."""
    word = wire.events_to_first_text
    begun = wire.answer_events()[:word]
    broken = b'event: message_start\ndata: {"type": \n\n'
    seconds = {"429, Retry-After: 7": "7", "429, Retry-After: 3600": "3600"}.get(fault)
    match fault:
        case "404 model":
            return refused(wire, "404")
        case "401" | "403" | "400" | "429" | "quota" | "500" | "503" | "529" | "context too long":
            return refused(wire, fault)
        case _ if seconds:
            return refused(wire, "429", {"retry-after": seconds})
        case "not a stream":
            return FaultyResponse([b"<h1>Welcome</h1>"], headers={"content-type": "text/html"})
        case "malformed SSE":
            return FaultyResponse([broken])
        case "malformed SSE in mid-stream":
            return FaultyResponse([*begun, broken])
        case "empty answer":
            return FaultyResponse(wire.answer_events([]))
        case "white space only":
            return FaultyResponse(wire.answer_events([" ", "\n\n"]))
        case "refusal" if isinstance(wire, FakeOpenAI):
            return FaultyResponse([wire.delta(refusal="I'm sorry"), wire.delta("stop")])
        case "refusal":
            return FaultyResponse(wire.answer_events([], finish="refusal"))
        case "content filter":
            finish = "content_filter" if isinstance(wire, FakeOpenAI) else "refusal"
            return FaultyResponse(wire.answer_events([WORD], finish=finish))
        case "hang before the head":
            return FaultyResponse(status=0, then="hang")
        case "hang before the first token":
            return FaultyResponse([wire.ping], then="hang")
        case "hang between tokens":
            return FaultyResponse(begun, then="hang")
        case "slow drip":
            return FaultyResponse(
                [*begun, *wire.answer_events([DRIP])[word - 1 : word]], then="drip"
            )
        case "drop before the first token":
            return FaultyResponse(wire.answer_events()[: word - 1], then="drop")
        case "drop in mid-stream":
            return FaultyResponse(begun, then="drop")
        case "end without a reason":
            return FaultyResponse(begun)
        case "error event at once":
            return FaultyResponse([wire.error_event()])
        case "error event in mid-stream":
            return FaultyResponse([*begun, wire.error_event()])
    raise AssertionError(fault)


def refused(
    wire: FakeHttpProvider, fault: str, headers: dict[str, str] | None = None
) -> FaultyResponse:
    response = wire.error_response(fault)
    given = {"content-type": "application/json", **(headers or {})}
    return FaultyResponse([response.content], response.status_code, given)


@pytest.fixture(params=["openai", "anthropic"])
def wire(request: pytest.FixtureRequest) -> FakeHttpProvider:
    made = FAKE_PROVIDERS[request.param]()
    assert isinstance(made, FakeHttpProvider)
    return made


@dataclass
class House:
    """A visitor of a lab whose default model is at a faulty server; ``slept``: its pauses."""

    visitor: ChatUser
    server: FaultyServer | None
    slept: list[float]

    @property
    def lab(self) -> Lab:
        return self.visitor.lab

    async def say(self, message: str = "やあ") -> Reply:
        return await self.lab.service.generate_response(message=message, **self.visitor.ids)

    @property
    def asked(self) -> int:
        return len(self.server.requests) if self.server else 0

    @property
    def circuits(self) -> list[str]:
        return [
            state
            for (provider, *_), state in self.lab.layers.circuits.states().items()
            if provider != "mock"
        ]


Open = Callable[..., Any]


@pytest.fixture(scope="module")
def rest() -> Iterator[Lab]:
    """The parts of the house that no setting here changes: opening them takes longest."""
    with open_lab(Settings(database_url="sqlite://", llm_provider="mock", **NO_PROCESSING)) as lab:
        yield lab


@pytest.fixture
async def house(rest: Lab, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Open]:
    """``await house(wire, acts, **settings)``: a house at a server that does ``acts``."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    async with AsyncExitStack() as opened:

        async def build(
            wire: FakeHttpProvider, acts: Sequence[FaultyResponse], **fields: Any
        ) -> House:
            server = await opened.enter_async_context(FaultyServer(*acts)) if acts else None
            url = server.url if server else opened.enter_context(refusing_url())
            slept: list[float] = []

            async def sleep(seconds: float) -> None:
                slept.append(seconds)

            chosen: dict[str, Any] = {
                "llm_provider": wire.provider,
                "llm_model": wire.name,
                wire.key: SECRET,
                f"{wire.provider}_base_url": url,
                "llm_breaker_failures": 1,
                **fields,
            }
            settings = Settings(**chosen)
            layers = ClientStack(settings, clock=time.monotonic, sleep=sleep)
            clients = ClientPool(settings, rest.catalog, wrap=layers.wrap_shared)
            opened.push_async_callback(clients.aclose)
            service = LLMService(
                store=rest.store,
                clients=clients,
                input_validator=rest.input_validator,
                context_manager=rest.context_manager,
                prompt_builder=rest.prompt_builder,
                response_processor=rest.response_processor,
                error_handler=rest.error_handler,
                layers=layers,
            )
            lab = replace(rest, settings=settings, layers=layers, clients=clients, service=service)
            return House(ChatUser(lab), server, slept)

        yield build


def acts_of(wire: FakeHttpProvider, row: Row) -> list[FaultyResponse]:
    return [] if row.fault == "connection refused" else [act(wire, row.fault)]


@pytest.mark.parametrize("row", MATRIX, ids=lambda row: row.fault)
async def test_fault_has_its_error_retries_text_and_stored_answer(
    house: Open, wire: FakeHttpProvider, row: Row
) -> None:
    at = await house(wire, acts_of(wire, row), **row.patience)
    reply = await at.say()
    met = reply.metadata
    assert (met["code"], met["error_type"]) == (row.error.code, row.error.type.value)
    assert (met["provider"], met["fallback"]) == (wire.provider, True)
    assert at.asked == row.asked
    assert met["attempts"] == (row.asked or 3)
    assert at.circuits == ["open" if row.opens else "closed"]
    text = reply.metadata["error"]
    shown = FALLBACKS("broken_off", "ja", words=text) if row.kept else text
    said = reply.content.replace(DRIP, "")
    assert said == "\n\n".join(filter(None, [row.kept, shown]))
    assert at.visitor.thread() == [("user", "やあ", "ok"), ("ai", reply.content, "failed")]
    [record] = at.lab.store.records(user_id=at.visitor.user_id)
    assert (record.status, record.error_type) == ("failed", row.error.type.value)
    assert SECRET not in str([reply, at.visitor.thread()])


@pytest.mark.parametrize("row", MATRIX, ids=lambda row: row.fault)
async def test_fallback_answers_when_no_text_had_come_and_none_refused(
    house: Open, wire: FakeHttpProvider, row: Row
) -> None:
    at = await house(wire, acts_of(wire, row), **row.patience, llm_fallback="mock:echo")
    reply = await at.say()
    assert at.asked == row.asked
    if not row.moves:
        assert reply.metadata["code"] == row.error.code
        assert "fallback_from" not in reply.metadata
        return
    assert "練習用の返事" in reply.content
    assert (reply.metadata["spec"], reply.metadata["status"]) == ("mock:echo", "ok")
    [passed] = reply.metadata["fallback_from"]
    assert passed["model"] == f"{wire.provider}:{wire.name}"
    assert (passed["code"], passed["attempts"]) == (row.error.code, row.asked or 3)
    assert at.visitor.thread() == [("user", "やあ", "ok"), ("ai", reply.content, "ok")]
    [record] = at.lab.store.records(user_id=at.visitor.user_id)
    assert (record.provider, record.model, record.error_type) == ("mock", "echo", None)


@pytest.mark.parametrize("faults", [["503"], ["429", "500"], ["drop before the first token"]])
async def test_answer_is_whole_and_counts_attempts_after_faults(
    house: Open, wire: FakeHttpProvider, faults: list[str]
) -> None:
    acts = [*(act(wire, fault) for fault in faults), FaultyResponse(wire.answer_events())]
    at = await house(wire, acts)
    reply = await at.say()
    assert reply.content == "".join(PIECES)
    assert reply.metadata["attempts"] == at.asked == len(acts)
    assert len(at.slept) == len(faults)
    assert at.circuits == ["closed"]
    assert not {"fallback", "fallback_from"} & reply.metadata.keys()


async def test_retry_pauses_grow_within_bounds_and_honour_retry_after(
    house: Open, wire: FakeHttpProvider
) -> None:
    at = await house(wire, [act(wire, "503"), act(wire, "429, Retry-After: 7"), act(wire, "500")])
    await at.say()
    assert 0 <= at.slept[0] <= 0.5
    assert 7 <= at.slept[1] <= 8


async def test_open_circuit_blocks_requests_until_the_cooldown_ends(
    house: Open, wire: FakeHttpProvider
) -> None:
    at = await house(wire, [act(wire, "500")], llm_retries=0, llm_breaker_failures=2)
    for _ in range(4):
        reply = await at.say()
    assert at.asked == 2
    assert reply.metadata["code"] == "circuit_open"
    assert reply.content == FALLBACKS("circuit_open", "ja", seconds=reply.metadata["seconds"])
    assert at.circuits == ["open"]


async def test_a_model_that_came_back_answers_again(house: Open, wire: FakeHttpProvider) -> None:
    at = await house(
        wire,
        [act(wire, "500"), FaultyResponse(wire.answer_events())],
        llm_retries=0,
        llm_breaker_cooldown=1e-9,
    )
    assert (await at.say()).metadata["code"] == "overloaded"
    assert (await at.say()).content == "".join(PIECES)
    assert at.circuits == ["closed"]


async def test_leaving_reader_closes_connection_and_opens_no_circuit(
    house: Open, wire: FakeHttpProvider
) -> None:
    at = await house(wire, [act(wire, "hang between tokens")])
    events = at.lab.service.generate_streaming("やあ", **at.visitor.ids)
    async for event in events:
        if event.type == "delta":
            break
    await events.aclose()
    await at.server.left.wait()
    assert at.circuits == ["closed"]
    assert at.visitor.thread()[-1] == ("ai", WORD, "stopped")


async def test_answer_without_a_finish_reason_is_kept_and_opens_no_circuit(
    house: Open, wire: FakeHttpProvider
) -> None:
    reason, marked = b'"finish_reason": "stop"', b'"finish_reason": ""'
    events = [
        event.replace(reason, marked)
        for event in wire.answer_events()
        if b"event: message_delta" not in event
    ]
    at = await house(wire, [FaultyResponse(events)])
    for _ in range(2):
        reply = await at.say()
        assert reply.content == "".join(PIECES)
        assert (reply.metadata["finish_reason"], reply.metadata["status"]) == ("unknown", "ok")
    assert at.asked == 2
    assert at.circuits == ["closed"]
    assert [status for _, _, status in at.visitor.thread()] == ["ok"] * 4
