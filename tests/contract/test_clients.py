"""Every client keeps one contract: the real SDKs on fake wires, and the mock."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import traceback
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import Mock

import httpx2
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI
from pydantic import ValidationError
from support import tiny_gguf as tiny_gguf
from support.fake_servers import (
    COUNTED,
    FAULTS,
    MESSAGE,
    MID_STREAM,
    PIECES,
    PROMPT,
    SECRET,
    WIRES,
    AnthropicWire,
    HttpWire,
    LocalWire,
    MockWire,
    OpenAIWire,
    Server,
    Wire,
)
from support.faulty_server import Act, Faulty, nobody_accepts

from persona_lab import settings as settings_module
from persona_lab.clients.base import LLMClientInterface
from persona_lab.clients.catalog import Catalog, ModelInfo
from persona_lab.clients.mock import MockClient
from persona_lab.clients.openai import OpenAIClient
from persona_lab.clients.pool import ClientPool
from persona_lab.clients.provider import Provider
from persona_lab.clients.registry import list_providers
from persona_lab.errors import (
    BadKey,
    InvalidResponse,
    MissingKey,
    ModelTimeout,
    NoVision,
    Overloaded,
    ProviderError,
    RateLimited,
    Refused,
    UnknownModel,
)
from persona_lab.llama import close_engines
from persona_lab.settings import Settings
from persona_lab.types import Chunk, Completion, Image, Options, Prompt, PromptMessage, Usage

OPTIONS = Options(timeout=30, seed=7)
EVERYTHING = Options(
    temperature=1.5,
    max_tokens=50,
    top_p=0.9,
    top_k=40,
    min_p=0.05,
    repeat_penalty=1.1,
    seed=7,
    stop=("終",),
)
ALL = frozenset(
    {"temperature", "max_tokens", "top_p", "top_k", "min_p", "repeat_penalty", "seed", "stop"}
)
TRANSCRIPT = Prompt(
    system="ミナ：やあ\nユーザー：元気？\nミナ：",
    kind="transcript",
    message=MESSAGE,
    stop=("\nユーザー:", "\nユーザー："),
)


PICTURED = replace(
    PROMPT,
    turns=(
        PromptMessage(
            "user",
            "これは？",
            (Image("https://example.org/a.png"), Image(data=b"\xff\xd8", media_type="image/jpeg")),
        ),
    ),
)
"""Two images, one at an address and one at hand."""


@pytest.fixture(autouse=True)
def no_keys_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for provider in ("OPENAI", "ANTHROPIC"):
        for name in ("API_KEY", "BASE_URL", "CUSTOM_HEADERS"):
            monkeypatch.delenv(f"{provider}_{name}", raising=False)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tiny_gguf.write(tmp_path_factory.mktemp("weights") / "tiny.gguf")
    close_engines()


@pytest.fixture(params=[*WIRES, "local"])
def wire(request: pytest.FixtureRequest) -> Wire:
    if request.param == "local":
        return LocalWire(request.getfixturevalue("weights"))
    return WIRES[request.param]()


@pytest.fixture(params=list(WIRES))
def faulty(request: pytest.FixtureRequest) -> Wire:
    """Wires on which faults can be played."""
    return WIRES[request.param]()


@pytest.fixture(params=["openai", "anthropic"])
def http(request: pytest.FixtureRequest) -> HttpWire:
    made = WIRES[request.param]()
    assert isinstance(made, HttpWire)
    return made


@pytest.fixture
def openai() -> OpenAIWire:
    return OpenAIWire()


@pytest.fixture
def anthropic() -> AnthropicWire:
    return AnthropicWire()


async def chunks_of(
    client: LLMClientInterface, prompt: Prompt = PROMPT, options: Options = OPTIONS
) -> list[Chunk]:
    async with contextlib.aclosing(client.stream(prompt, options)) as chunks:
        return [chunk async for chunk in chunks]


async def failure_of(client: LLMClientInterface, timeout: float = 30) -> ProviderError:  # noqa: ASYNC109 - the model's, not the test's
    with pytest.raises(ProviderError) as caught:
        await chunks_of(client, options=Options(timeout=timeout))
    return caught.value


def mock(name: str, **fakes: object) -> MockClient:
    return MockClient(ModelInfo(provider="mock", name=name), Settings(), **fakes)


# ── the contract ──────────────────────────────────────────────────────────────────────────


async def test_the_pieces_of_a_stream_make_the_whole_answer(wire: Wire) -> None:
    chunks = await chunks_of(wire.answering())
    assert "".join(chunk.text for chunk in chunks) == wire.text
    assert len([chunk for chunk in chunks if chunk.text]) > 1


async def test_generate_collects_what_stream_gives(wire: Wire) -> None:
    completion = await wire.answering().generate(PROMPT, timeout=30, seed=7)
    assert completion.content == wire.text
    assert completion.finish_reason == ("length" if wire.provider == "local" else "stop")


async def test_only_the_last_chunk_tells_usage_finish_and_model(wire: Wire) -> None:
    *before, last = await chunks_of(wire.answering())
    assert all(chunk == Chunk(chunk.text) for chunk in before)
    assert last.finish_reason == ("length" if wire.provider == "local" else "stop")
    assert last.usage is not None
    assert last.usage.completion_tokens > 0
    assert last.model.startswith(wire.name)


async def test_usage_counts_cached_tokens_as_part_of_the_prompt(http: HttpWire) -> None:
    last = (await chunks_of(http.answering()))[-1]
    assert last.usage is not None
    assert replace(last.usage, written_tokens=0) == COUNTED
    assert last.usage.written_tokens == (5 if http.provider == "anthropic" else 0)


@pytest.mark.parametrize("count", [-5, 10**12])
async def test_a_count_that_cannot_be_is_estimated(http: HttpWire, count: int) -> None:
    told = Usage(prompt_tokens=120, completion_tokens=count)
    last = (await chunks_of(http.streaming(http.answer(usage=told))))[-1]
    assert last.usage is not None
    assert last.usage.estimated
    assert 0 < last.usage.completion_tokens < 100


@pytest.mark.parametrize("size", [1, 2, 7])
async def test_japanese_survives_bytes_cut_anywhere(http: HttpWire, size: int) -> None:
    whole = b"".join(http.answer())
    cut = [whole[at : at + size] for at in range(0, len(whole), size)]
    chunks = await chunks_of(http.streaming(cut))
    assert [chunk.text for chunk in chunks if chunk.text] == list(PIECES)


async def test_stopping_early_closes_the_response(http: HttpWire) -> None:
    stream = http.answering().stream(PROMPT, OPTIONS)
    assert (await anext(stream)).text == PIECES[0]
    assert not http.body.closed
    await stream.aclose()
    assert http.body.closed


@pytest.mark.parametrize("fault", FAULTS)
async def test_every_fault_has_its_place_in_our_tree(faulty: Wire, fault: str) -> None:
    patience = 0.02 if fault == "keep-alive without end" else 30
    error = await failure_of(faulty.failing(fault), patience)
    assert type(error) is FAULTS[fault]
    assert error.provider == faulty.provider
    assert error.model.startswith(faulty.name)


@pytest.mark.parametrize("fault", MID_STREAM)
async def test_what_came_before_a_fault_was_given(faulty: Wire, fault: str) -> None:
    got = []
    with pytest.raises(FAULTS[fault]):
        async for chunk in faulty.failing(fault).stream(PROMPT, OPTIONS):
            got.append(chunk.text)
    assert got
    assert faulty.text.startswith("".join(got))


@pytest.mark.parametrize("fault", FAULTS)
async def test_no_error_tells_the_key_even_when_the_server_repeats_it(
    http: HttpWire, fault: str
) -> None:
    patience = 0.02 if fault == "keep-alive without end" else 30
    error = await failure_of(http.failing(fault), patience)
    told = [str(error), repr(error), str(error.details), *traceback.format_exception(error)]
    assert SECRET not in "".join(told)


async def test_a_harmless_cause_stays_behind_our_error(http: HttpWire) -> None:
    error = await failure_of(http.failing("500"))
    assert getattr(error.__cause__, "status_code", None) == 500


async def test_client_sends_no_key_when_a_header_cannot_hold_it(
    http: HttpWire,
) -> None:
    http.settings = {http.key: "sk-かぎ\nx"}
    client = http.answering()
    assert type(await failure_of(client)) is BadKey
    assert http.requests == []


async def test_rate_limited_keeps_the_retry_after_seconds(http: HttpWire) -> None:
    error = await failure_of(http.failing("429"))
    assert isinstance(error, RateLimited)
    assert (error.status, error.retry_after) == (429, 7.0)


async def test_nothing_is_tried_twice(http: HttpWire) -> None:
    await failure_of(http.failing("500"))
    assert len(http.requests) == 1


async def test_a_refusal_is_refused_by_generate(http: HttpWire) -> None:
    finish = {"openai": "content_filter", "anthropic": "refusal"}[http.provider]
    with pytest.raises(Refused):
        await http.streaming(http.answer(finish=finish)).generate(PROMPT)


@pytest.mark.parametrize("content", ["", " ", "\n\n", "　"])
async def test_an_answer_without_a_word_is_invalid(wire: Wire, content: str) -> None:
    client = wire.answering()
    with pytest.raises(InvalidResponse) as caught:
        client.validate_response(Completion(content, "m", Usage(), "stop"))
    assert (caught.value.provider, caught.value.model) == (wire.provider, wire.name)
    client.validate_response(Completion("はい", "m", Usage(), "length"))


@pytest.mark.parametrize("reason", ["content_filter", "refusal"])
async def test_client_raises_refused_when_a_filter_or_model_declines(
    wire: Wire, reason: str
) -> None:
    with pytest.raises(Refused):
        wire.answering().validate_response(Completion("それは", "m", Usage(), reason))


async def test_an_empty_answer_is_invalid(faulty: Wire) -> None:
    client = (
        faulty.streaming(faulty.answer(pieces=[]))
        if isinstance(faulty, HttpWire)
        else mock("echo?tokens=0")
    )
    with pytest.raises(InvalidResponse):
        await client.generate(PROMPT)


async def test_client_raises_no_vision_when_the_model_takes_no_images(wire: Wire) -> None:
    with pytest.raises(NoVision):
        await chunks_of(wire.answering(), PICTURED)
    assert wire.requests == []


@pytest.mark.parametrize("way", ["closing the stream", "cancelling the task"])
async def test_a_real_server_notices_that_the_reader_left(http: HttpWire, way: str) -> None:
    async with Server(http.answer()[: http.events_to_first_word]) as server:
        base = {"openai": "openai_base_url", "anthropic": "anthropic_base_url"}[http.provider]
        settings = Settings(**{base: server.url})
        plain = httpx2.AsyncClient(trust_env=False)
        client = http.client_class(http.info(), settings, http_client=plain)
        stream = client.stream(PROMPT, OPTIONS)
        assert (await anext(stream)).text == PIECES[0]
        if way == "closing the stream":
            await stream.aclose()
        else:
            waiting = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        await asyncio.wait_for(server.left.wait(), 5)
        await client.aclose()


async def test_a_silent_server_is_given_up_within_the_timeout(http: HttpWire) -> None:
    async with Server(http.answer()[: http.events_to_first_word]) as server:
        base = {"openai": "openai_base_url", "anthropic": "anthropic_base_url"}[http.provider]
        settings = Settings(**{base: server.url})
        plain = httpx2.AsyncClient(trust_env=False)
        client = http.client_class(http.info(), settings, http_client=plain)
        error = await failure_of(client, timeout=0.1)
        assert type(error) is ModelTimeout
        await asyncio.wait_for(server.left.wait(), 5)
        await client.aclose()


async def at(http: HttpWire, url: str) -> LLMClientInterface:
    """The client of a server at ``url``."""
    settings = Settings(**{f"{http.provider}_base_url": url})
    plain = httpx2.AsyncClient(trust_env=False)
    return http.client_class(http.info(), settings, http_client=plain)


async def test_client_ends_at_connect_timeout_when_nobody_accepts(
    http: HttpWire,
) -> None:
    with nobody_accepts() as url:
        client = await at(http, url)
        async with asyncio.timeout(10):
            with pytest.raises(ModelTimeout):
                await chunks_of(client, options=Options(timeout=30, connect_timeout=0.05))
        await client.aclose()


@pytest.mark.parametrize(
    ("bound", "limit", "then"),
    [("timeout", 0.1, "hang"), ("idle_timeout", 0.1, "hang"), ("total_timeout", 0.8, "drip")],
)
async def test_each_timeout_ends_the_answer_and_the_connection(
    http: HttpWire, bound: str, limit: float, then: Any
) -> None:
    begun = http.answer()[: http.events_to_first_word]
    parts = [http.ping] if bound == "timeout" else begun
    got = []
    async with Faulty(Act(parts, then=then)) as server:
        client = await at(http, server.url)
        async with asyncio.timeout(10):
            with pytest.raises(ModelTimeout):
                async for chunk in client.stream(PROMPT, Options(**{bound: limit})):
                    got.append(chunk.text)
            await server.left.wait()
        await client.aclose()
    assert bool(got) is (bound != "timeout")


@pytest.mark.parametrize("then", ["drop", "hang"])
async def test_answer_is_whole_when_the_connection_fails_after_its_end(
    http: HttpWire, then: Any
) -> None:
    *answer, _ = http.answer()  # all but what closes the stream
    while b"finish" not in answer[-1] and b"stop_reason" not in answer[-1]:
        answer.pop()
    async with Faulty(Act(answer, then=then)) as server:
        client = await at(http, server.url)
        async with asyncio.timeout(10):
            *pieces, last = await chunks_of(client, options=Options(idle_timeout=0.2))
        await client.aclose()
    assert "".join(chunk.text for chunk in pieces) == "".join(PIECES)
    assert last.finish_reason == "stop"
    assert last.usage is not None


@pytest.mark.parametrize(
    "usage",
    [{}, {"total_tokens": 5}, {"prompt_tokens": None, "completion_tokens": 2},
     {"prompt_tokens": "x"}, "many", 7,
     {"prompt_tokens": 1, "completion_tokens": 2, "prompt_tokens_details": 7}],
)  # fmt: skip
async def test_an_odd_count_of_tokens_is_estimated_and_costs_no_answer(
    openai: OpenAIWire, usage: object
) -> None:
    *answer, done = openai.answer(usage=None)
    *_, last = await chunks_of(openai.streaming([*answer, openai.event(usage=usage), done]))
    assert last.finish_reason == "stop"
    assert last.usage is not None
    assert last.usage.estimated


async def test_a_slow_reader_is_not_taken_for_a_slow_model(http: HttpWire) -> None:
    got = ""
    async with Faulty(Act([http.ping, *http.answer()])) as server:
        client = await at(http, server.url)
        async with asyncio.timeout(10):
            async for chunk in client.stream(PROMPT, Options(total_timeout=0.3)):
                got += chunk.text
                await asyncio.sleep(0.2)
        await client.aclose()
    assert got == "".join(PIECES)


async def test_a_server_that_never_stops_is_left_at_the_answers_bound(http: HttpWire) -> None:
    *_, word = http.answer()[: http.events_to_first_word]
    begun = http.answer()[: http.events_to_first_word]
    client = http.streaming(begun, then=word)
    async with asyncio.timeout(10):
        *pieces, last = await chunks_of(client, options=Options(max_tokens=10, timeout=30))
    text = "".join(chunk.text for chunk in pieces)
    assert text == (PIECES[0] * 160)[:160]
    assert last.finish_reason == "length"
    assert last.usage is not None
    assert last.usage.estimated
    assert last.usage.completion_tokens > 10
    assert http.body.closed


async def test_a_server_that_sends_wordless_events_without_end_is_left(http: HttpWire) -> None:
    begun = http.answer()[: http.events_to_first_word]
    client = http.streaming(begun, then=http.answer([""])[http.events_to_first_word - 1])
    async with asyncio.timeout(10):
        *_, last = await chunks_of(client, options=Options(max_tokens=10, timeout=30))
    assert last.finish_reason == "length"
    assert http.body.closed


async def test_an_answer_as_long_as_the_bound_is_whole(http: HttpWire) -> None:
    answer = http.answer(["あ" * 16])
    *_, last = await chunks_of(http.streaming(answer), options=Options(max_tokens=1, timeout=30))
    assert last.finish_reason == "stop"


# ── one of many ───────────────────────────────────────────────────────────────────────────


def clients(
    *,
    wrap: Callable[[LLMClientInterface], LLMClientInterface] = lambda client: client,
    **settings: Any,
) -> ClientPool:
    given = Settings(openai_api_key="k", anthropic_api_key="k", **settings)
    return ClientPool(given, Catalog(given.data_dir / "models.yaml"), wrap=wrap)


@pytest.mark.parametrize("provider", ["openai", "anthropic", "mock"])
async def test_pool_connects_to_a_provider_once_for_all_models(
    monkeypatch: pytest.MonkeyPatch, provider: str
) -> None:
    kept: list[LLMClientInterface] = []
    sdks = {"openai": Mock(wraps=AsyncOpenAI), "anthropic": Mock(wraps=AsyncAnthropic)}
    monkeypatch.setattr("openai.AsyncOpenAI", sdks["openai"])
    monkeypatch.setattr("anthropic.AsyncAnthropic", sdks["anthropic"])

    def keep(client: LLMClientInterface) -> LLMClientInterface:
        kept.append(client)
        return client

    many = clients(wrap=keep)
    names = [f"{provider}:{'echo?tokens=' if provider == 'mock' else 'm'}{n}" for n in range(20)]
    opened = [await many.open(name) for name in names]
    assert [client.info.spec for client in opened] == names
    assert len(kept) == 1
    made = {name: sdk.call_count for name, sdk in sdks.items() if sdk.called}
    assert made == ({provider: 1} if provider in sdks else {})
    await many.aclose()


async def test_a_client_that_fails_to_close_keeps_no_other_open() -> None:
    many = clients()
    closed = []

    async def fail() -> None:
        raise OSError("the first")

    async def close() -> None:
        closed.append(True)

    bad, good = await many.open("openai:a"), await many.open("anthropic:b")
    bad.aclose, good.aclose = fail, close  # type: ignore[method-assign]
    with pytest.raises(OSError, match="the first"):
        await many.aclose()
    assert closed == [True]
    await many.aclose()  # nothing is left to close


class Toy(LLMClientInterface):
    provider = Provider(name="toy", free=True)

    async def stream(self, prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        yield Chunk("はい", "stop", Usage(1, 1), self.info.name)


async def test_a_new_provider_is_one_file_and_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("persona_lab.clients.toy")
    module.Client = Toy  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "persona_lab.clients.toy", module)
    names = (*settings_module.PROVIDER_NAMES, "toy")
    monkeypatch.setattr(settings_module, "PROVIDER_NAMES", names)
    many = clients(llm_provider="toy", llm_model="bear")
    client = await many.open()
    assert (client.info.spec, client.info.free) == ("toy:bear", True)
    assert (await client.generate(PROMPT)).content == "はい"


@pytest.mark.parametrize(("name", "free"), [("mock", True), ("local", True), ("openai", False)])
def test_model_info_is_free_for_mock_and_local_only(name: str, free: bool) -> None:
    assert ModelInfo(provider=name, name="x").free is free


def test_providers_name_settings_that_exist() -> None:
    assert {provider.name for provider in list_providers()} == set(settings_module.PROVIDER_NAMES)
    for provider in list_providers():
        keys = (
            [provider.key_setting, f"{provider.key_setting}_file"] if provider.key_setting else []
        )
        assert {*keys, provider.url_setting} - {""} <= set(Settings.model_fields)


def test_provider_declarations_load_no_sdk() -> None:
    code = (
        "import sys; from persona_lab.clients.registry import list_providers; list_providers();"
        "print([m for m in ('openai', 'anthropic', 'llama_cpp', 'httpx2', 'numpy', 'psutil')"
        " if m in sys.modules])"
    )
    out = subprocess.check_output([sys.executable, "-c", code], cwd=settings_module.ROOT, text=True)
    assert out.strip() == "[]"


@pytest.mark.parametrize("name", ["openai", "anthropic"])
async def test_pool_needs_a_key_unless_another_server_is_set(name: str) -> None:
    bare = Catalog(Settings().data_dir / "models.yaml")
    with pytest.raises(MissingKey) as missing:
        await ClientPool(Settings(), bare).open(f"{name}:x")
    assert missing.value.details["variable"] == f"{name.upper()}_API_KEY"
    other = Settings(**{f"{name}_base_url": "http://127.0.0.1:1"})
    assert ClientPool(other, bare).available(bare.find(f"{name}:x"))


def test_an_unknown_provider_is_refused_by_settings_and_catalogue() -> None:
    for make in (lambda: Settings(llm_provider="x"), lambda: ModelInfo(provider="x", name="y")):
        with pytest.raises(ValidationError, match="must be one of local, openai"):
            make()


# ── OpenAI and its protocol ───────────────────────────────────────────────────────────────


async def test_openais_own_server_gets_its_own_fields(openai: OpenAIWire) -> None:
    await chunks_of(openai.streaming(openai.answer(), accepts=ALL), options=EVERYTHING)
    sent = openai.requests[0]
    assert openai.paths == ["/v1/chat/completions"]
    assert sent["messages"] == PROMPT.messages()
    assert sent["max_completion_tokens"] == 50
    assert "max_tokens" not in sent
    assert sent["stream_options"] == {"include_usage": True}
    assert (sent["temperature"], sent["top_p"], sent["seed"]) == (1.5, 0.9, 7)


async def test_the_cache_key_is_the_personas_and_not_the_conversations(
    openai: OpenAIWire,
) -> None:
    other_turn = replace(PROMPT, turns=(PromptMessage("user", "さようなら"),))
    other_persona = replace(PROMPT, system="あなたはケンです。")
    for prompt in (PROMPT, other_turn, other_persona):
        await chunks_of(openai.answering(), prompt)
    keys = [sent["prompt_cache_key"] for sent in openai.requests]
    assert keys[0] == keys[1] != keys[2]


async def test_other_servers_get_the_fields_that_they_know(openai: OpenAIWire) -> None:
    openai.settings = {"openai_base_url": "http://localhost:11434/v1"}
    await chunks_of(openai.streaming(openai.answer(), accepts=ALL), options=EVERYTHING)
    sent = openai.requests[0]
    assert sent["max_tokens"] == 50
    assert not {"max_completion_tokens", "prompt_cache_key"} & set(sent)
    assert (sent["top_k"], sent["min_p"]) == (40, 0.05)
    assert sent["repetition_penalty"] == sent["repeat_penalty"] == 1.1


async def test_openai_gets_images_as_parts_ahead_of_the_words(openai: OpenAIWire) -> None:
    await chunks_of(openai.streaming(openai.answer(), vision=True), PICTURED)
    *images, words = openai.requests[0]["messages"][-1]["content"]
    assert [image["image_url"]["url"] for image in images] == [
        "https://example.org/a.png",
        "data:image/jpeg;base64,/9g=",
    ]
    assert words == {"type": "text", "text": "これは？"}


async def test_a_look_alike_host_is_not_openais_own(openai: OpenAIWire) -> None:
    openai.settings = {"openai_base_url": "https://api.openai.com.example.org/v1"}
    await chunks_of(openai.answering())
    assert "prompt_cache_key" not in openai.requests[0]


async def test_a_server_without_a_key_is_sent_a_harmless_one() -> None:
    seen = []

    def handle(request: httpx2.Request) -> httpx2.Response:
        seen.append(request.headers["authorization"])
        return httpx2.Response(200, content=b"".join(OpenAIWire().answer()))

    client = OpenAIClient(
        ModelInfo(provider="openai", name="llama"),
        Settings(openai_base_url="http://localhost:11434/v1"),
        http_client=httpx2.AsyncClient(transport=httpx2.MockTransport(handle)),
    )
    await chunks_of(client)
    assert seen == ["Bearer none"]


async def test_blanks_that_pasting_added_to_a_key_are_not_sent(http: HttpWire) -> None:
    http.settings = {http.key: f" {SECRET}\n"}
    assert (await chunks_of(http.answering()))[-1].finish_reason == "stop"


async def test_only_accepted_options_are_sent(http: HttpWire) -> None:
    client = http.streaming(http.answer(), accepts=frozenset({"top_p"}))
    await chunks_of(client, options=EVERYTHING)
    sent = set(http.requests[0])
    assert "top_p" in sent
    refused = {"temperature", "top_k", "min_p", "seed", "stop", "stop_sequences", "max_tokens"}
    # Anthropic's API demands max_tokens of every request.
    assert sent & refused == ({"max_tokens"} if http.provider == "anthropic" else set())


async def test_unset_options_are_left_to_the_provider(http: HttpWire) -> None:
    client = http.streaming(http.answer(), accepts=ALL)
    await chunks_of(client, options=Options(temperature=None))
    sent = http.requests[0]
    assert not {"temperature", "top_p", "top_k", "seed", "stop", "stop_sequences"} & set(sent)


async def test_a_transcript_goes_to_the_completions_endpoint_with_its_stops(
    openai: OpenAIWire,
) -> None:
    openai.settings = {"openai_base_url": "http://localhost:8000/v1"}
    events = [
        openai.event(choices=[{"index": 0, "text": "元気", "finish_reason": None}]),
        openai.event(choices=[{"index": 0, "text": "だよ", "finish_reason": "stop"}]),
        openai.counted(Usage(20, 2)),
        b"data: [DONE]\n\n",
    ]
    chunks = await chunks_of(openai.streaming(events), TRANSCRIPT)
    assert [chunk.text for chunk in chunks] == ["元気", "だよ", ""]
    assert chunks[-1].usage == Usage(20, 2)
    assert openai.paths == ["/v1/completions"]
    assert openai.requests[0]["prompt"] == TRANSCRIPT.system
    assert openai.requests[0]["stop"] == list(TRANSCRIPT.stop)


async def test_openais_own_server_gets_no_more_stops_than_it_takes(openai: OpenAIWire) -> None:
    options = Options(stop=("1", "2", "2", "3", "4", "5"))
    await chunks_of(openai.answering(), options=options)
    assert openai.requests[0]["stop"] == ["1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("content_filter", "content_filter"),
        ("tool_calls", "stop"),
        ("eos", "stop"),
    ],
)
async def test_openais_finish_reasons_become_ours(
    openai: OpenAIWire, theirs: str, ours: str
) -> None:
    chunks = await chunks_of(openai.streaming(openai.answer(finish=theirs)))
    assert chunks[-1].finish_reason == ours


async def test_refusal_text_is_not_part_of_the_answer(openai: OpenAIWire) -> None:
    events = [
        openai.delta(role="assistant", refusal=""),
        openai.delta(refusal="I'm sorry"),
        openai.delta("stop"),
    ]
    chunks = await chunks_of(openai.streaming(events))
    assert [(chunk.text, chunk.finish_reason) for chunk in chunks] == [("", "refusal")]


async def test_a_server_that_counts_nothing_is_estimated(openai: OpenAIWire) -> None:
    last = (await chunks_of(openai.streaming(openai.answer(usage=None))))[-1]
    assert last.usage is not None
    assert last.usage.estimated
    assert last.usage.prompt_tokens > 0
    assert last.usage.completion_tokens > 0


async def test_usage_is_kept_when_it_comes_before_the_end(openai: OpenAIWire) -> None:
    events = [openai.delta(content="はい"), openai.counted(COUNTED), openai.delta("stop")]
    assert (await chunks_of(openai.streaming(events)))[-1].usage == COUNTED


@pytest.mark.parametrize("code", [502, "server_error"])
async def test_error_event_is_mapped_by_the_code_in_its_body(
    openai: OpenAIWire, code: int | str
) -> None:
    event = openai.event(error={"code": code, "message": "gone"})
    error = await failure_of(openai.streaming([event]))
    assert type(error) is Overloaded


# ── Anthropic ─────────────────────────────────────────────────────────────────────────────


async def test_anthropic_gets_the_persona_as_a_cached_system_block(
    anthropic: AnthropicWire,
) -> None:
    await chunks_of(anthropic.answering())
    sent = anthropic.requests[0]
    assert sent["system"] == [
        {"type": "text", "text": PROMPT.system, "cache_control": {"type": "ephemeral"}}
    ]
    assert [turn["role"] for turn in sent["messages"]] == ["user", "assistant", "user"]
    assert sent["max_tokens"] == OPTIONS.max_tokens


async def test_anthropic_gets_images_as_blocks_ahead_of_the_words(
    anthropic: AnthropicWire,
) -> None:
    await chunks_of(anthropic.streaming(anthropic.answer(), vision=True), PICTURED)
    far, near, words = anthropic.requests[0]["messages"][-1]["content"]
    assert far["source"] == {"type": "url", "url": "https://example.org/a.png"}
    assert near["source"] == {"type": "base64", "media_type": "image/jpeg", "data": "/9g="}
    assert words == {"type": "text", "text": "これは？"}


async def test_anthropics_temperature_ends_at_one(anthropic: AnthropicWire) -> None:
    await chunks_of(anthropic.streaming(anthropic.answer(), accepts=ALL), options=EVERYTHING)
    sent = anthropic.requests[0]
    assert (sent["temperature"], sent["top_p"], sent["top_k"]) == (1.0, 0.9, 40)
    assert sent["stop_sequences"] == ["終"]


async def test_a_temperature_of_zero_is_sent(http: HttpWire) -> None:
    await chunks_of(http.answering(), options=Options(temperature=0))
    assert http.requests[0]["temperature"] == 0


async def test_anthropic_is_spared_stops_and_turns_that_it_refuses(
    anthropic: AnthropicWire,
) -> None:
    prompt = replace(
        PROMPT,
        turns=(PromptMessage("user", "やあ"), PromptMessage("assistant", ""), PROMPT.turns[-1]),
    )
    await chunks_of(anthropic.answering(), prompt, Options(stop=("\n\n", "終")))
    sent = anthropic.requests[0]
    assert sent["stop_sequences"] == ["終"]
    assert [turn["content"] for turn in sent["messages"]] == ["やあ", MESSAGE]


async def test_anthropic_continues_a_transcript_that_a_user_sends(
    anthropic: AnthropicWire,
) -> None:
    await chunks_of(anthropic.answering(), TRANSCRIPT)
    sent = anthropic.requests[0]
    assert sent["messages"] == [{"role": "user", "content": TRANSCRIPT.system}]
    assert "system" not in sent
    assert sent["stop_sequences"] == list(TRANSCRIPT.stop)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("refusal", "refusal"),
    ],
)
async def test_anthropics_stop_reasons_become_ours(
    anthropic: AnthropicWire, theirs: str, ours: str
) -> None:
    chunks = await chunks_of(anthropic.streaming(anthropic.answer(finish=theirs)))
    assert chunks[-1].finish_reason == ours


async def test_thinking_is_not_part_of_the_answer(anthropic: AnthropicWire) -> None:
    events = anthropic.answer()
    thought = {"type": "thinking_delta", "thinking": "hm"}
    events.insert(1, anthropic.event("content_block_delta", index=0, delta=thought))
    chunks = await chunks_of(anthropic.streaming(events))
    assert "".join(chunk.text for chunk in chunks) == anthropic.text


# ── the mock ──────────────────────────────────────────────────────────────────────────────


class Clock:
    """Time that passes only in :meth:`sleep`, which always sleeps ``late`` seconds too long."""

    def __init__(self, late: float = 0) -> None:
        self.now = 100.0
        self.late = late

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds + self.late


async def test_mock_answers_in_the_language_of_the_message() -> None:
    english = Prompt(system="あなたはミナです。", turns=(PromptMessage("user", "Hello there"),))
    assert "no model was asked" in (await mock("echo").generate(english)).content
    assert "練習用" in (await mock("echo").generate(PROMPT)).content
    wordless = replace(PROMPT, turns=(PromptMessage("user", "!?"),), message="!?")
    assert "練習用" in (await mock("echo").generate(wordless)).content


async def test_mock_repeats_any_message() -> None:
    odd = "{message} {0} %s 😊\n次の行"
    answer = await mock("echo").generate(replace(PROMPT, message=odd))
    assert odd in answer.content


async def test_mock_does_not_sleep_by_default() -> None:
    async def never(seconds: float) -> None:
        raise AssertionError(seconds)

    assert len(await chunks_of(mock("echo?tokens=500", sleep=never))) == 501


async def test_mock_rate_does_not_drift_when_sleeps_are_late() -> None:
    clock = Clock(late=0.003)
    times = []
    client = mock("echo?rate=100&first=5&tokens=200", clock=clock, sleep=clock.sleep)
    async for chunk in client.stream(PROMPT, OPTIONS):
        if chunk.text:
            times.append(clock.now - 100)
    assert len(times) == 200
    assert times[0] == pytest.approx(5, abs=0.01)
    assert times[-1] == pytest.approx(5 + 199 / 100, abs=0.01)


async def test_mock_has_the_tokens_of_its_name_up_to_max_tokens() -> None:
    chunks = await chunks_of(mock("echo?tokens=200"), options=Options(max_tokens=20))
    assert len(chunks) == 21
    assert chunks[-1].finish_reason == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 20


async def test_mock_fails_after_the_tokens_of_its_name() -> None:
    got = []
    with pytest.raises(RateLimited):
        async for chunk in mock("echo?fail=rate_limit&after=3").stream(PROMPT, OPTIONS):
            got.append(chunk.text)
    assert len(got) == 3


async def test_the_mock_loses_the_readers_patience_like_any_other() -> None:
    clock = Clock()
    client = mock("echo?first=60", clock=clock, sleep=clock.sleep)
    assert type(await failure_of(client, timeout=30)) is ModelTimeout
    assert clock.now == 130


@pytest.mark.parametrize(
    ("bound", "limit", "given", "until"),
    [("timeout", 3, 0, 3), ("idle_timeout", 3, 1, 8), ("total_timeout", 18, 2, 18)],
)
async def test_the_mock_keeps_each_bound_on_waiting(
    bound: str, limit: float, given: int, until: float
) -> None:
    clock, got = Clock(), []
    client = mock("echo?first=5&rate=0.1", clock=clock, sleep=clock.sleep)
    with pytest.raises(ModelTimeout):
        async for chunk in client.stream(PROMPT, Options(**{bound: limit})):
            got.append(chunk.text)
    assert len(got) == given
    assert clock.now - 100 == pytest.approx(until)


@pytest.mark.parametrize(
    "name",
    [
        "parrot",
        "echo?speed=3",
        "echo?rate=0",
        "echo?rate=inf",
        "echo?fail=nonsense",
        "echo?fail=",
        "echo?tokens",
        "echo?tokens=many",
        "echo?after=-1",
    ],
)
def test_a_mock_that_does_not_exist_is_an_unknown_model(name: str) -> None:
    with pytest.raises(UnknownModel):
        mock(name)


@pytest.mark.parametrize("spec", [5, None, "openai:\ud800", "\ud800"])
def test_catalog_raises_unknown_model_when_the_name_is_malformed(spec: object) -> None:
    catalog = Catalog(Settings().data_dir / "models.yaml")
    with pytest.raises(UnknownModel) as told:
        catalog.find(spec)  # type: ignore[arg-type]
    assert str(told.value.details["model"]).encode()


def test_a_question_mark_alone_changes_nothing() -> None:
    assert mock("echo?").behaviour == MockWire().answering().behaviour


# ── a real server, for who has one ────────────────────────────────────────────────────────


@pytest.mark.skipif(
    not os.environ.get("OPENAI_COMPATIBLE_URL"),
    reason="set OPENAI_COMPATIBLE_URL (and _MODEL, _KEY where it asks for them)",
)
async def test_a_real_compatible_server_answers() -> None:
    settings = Settings(
        openai_base_url=os.environ["OPENAI_COMPATIBLE_URL"],
        openai_api_key=os.environ.get("OPENAI_COMPATIBLE_KEY"),
    )
    name = os.environ.get("OPENAI_COMPATIBLE_MODEL", "default")
    client = OpenAIClient(ModelInfo(provider="openai", name=name), settings)
    chunks = await chunks_of(client, options=Options(max_tokens=16, timeout=120))
    await client.aclose()
    assert "".join(chunk.text for chunk in chunks).strip()
    assert chunks[-1].finish_reason in ("stop", "length")
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0
