"""What every client keeps to: the real SDKs on fake wires, the local model and the mock."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from support import tiny_gguf as tiny_gguf
from support.clients import (
    OPTIONS,
    PROMPT_WITH_IMAGES,
    catch_error,
    collect_chunks,
    mock_client,
)
from support.fake_servers import (
    FAKE_PROVIDERS,
    FAULTS,
    MID_STREAM,
    PIECES,
    PROMPT,
    SECRET,
    USAGE,
    FakeHttpProvider,
    FakeLocal,
    FakeOpenAI,
    FakeProvider,
    HangingServer,
)
from support.faulty_server import FaultyResponse, FaultyServer, unresponsive_url

from persona_lab.clients.base import LLMClientInterface
from persona_lab.errors import (
    BadKey,
    InvalidResponse,
    ModelTimeout,
    NoVision,
    RateLimited,
    Refused,
)
from persona_lab.llama import close_engines
from persona_lab.settings import Settings
from persona_lab.types import Chunk, Completion, Options, Usage


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tiny_gguf.write(tmp_path_factory.mktemp("weights") / "tiny.gguf")
    close_engines()


@pytest.fixture(params=[*FAKE_PROVIDERS, "local"])
def wire(request: pytest.FixtureRequest) -> FakeProvider:
    if request.param == "local":
        return FakeLocal(request.getfixturevalue("weights"))
    return FAKE_PROVIDERS[request.param]()


@pytest.fixture(params=list(FAKE_PROVIDERS))
def faulty(request: pytest.FixtureRequest) -> FakeProvider:
    """Wires on which faults can be played."""
    return FAKE_PROVIDERS[request.param]()


async def test_the_pieces_of_a_stream_make_the_whole_answer(wire: FakeProvider) -> None:
    chunks = await collect_chunks(wire.answering_client())
    assert "".join(chunk.text for chunk in chunks) == wire.text
    assert len([chunk for chunk in chunks if chunk.text]) > 1


async def test_generate_collects_what_stream_gives(wire: FakeProvider) -> None:
    completion = await wire.answering_client().generate(PROMPT, timeout=30, seed=7)
    assert completion.content == wire.text
    assert completion.finish_reason == ("length" if wire.provider == "local" else "stop")


async def test_only_the_last_chunk_tells_usage_finish_and_model(wire: FakeProvider) -> None:
    *before, last = await collect_chunks(wire.answering_client())
    assert all(chunk == Chunk(chunk.text) for chunk in before)
    assert last.finish_reason == ("length" if wire.provider == "local" else "stop")
    assert last.usage is not None
    assert last.usage.completion_tokens > 0
    assert last.model.startswith(wire.name)


async def test_usage_counts_cached_tokens_as_part_of_the_prompt(http: FakeHttpProvider) -> None:
    last = (await collect_chunks(http.answering_client()))[-1]
    assert last.usage is not None
    assert replace(last.usage, written_tokens=0) == USAGE
    assert last.usage.written_tokens == (5 if http.provider == "anthropic" else 0)


@pytest.mark.parametrize("count", [-5, 10**12])
async def test_a_count_that_cannot_be_is_estimated(http: FakeHttpProvider, count: int) -> None:
    told = Usage(prompt_tokens=120, completion_tokens=count)
    last = (await collect_chunks(http.streaming_client(http.answer_events(usage=told))))[-1]
    assert last.usage is not None
    assert last.usage.estimated
    assert 0 < last.usage.completion_tokens < 100


@pytest.mark.parametrize("size", [1, 2, 7])
async def test_japanese_survives_bytes_cut_anywhere(http: FakeHttpProvider, size: int) -> None:
    whole = b"".join(http.answer_events())
    cut = [whole[at : at + size] for at in range(0, len(whole), size)]
    chunks = await collect_chunks(http.streaming_client(cut))
    assert [chunk.text for chunk in chunks if chunk.text] == list(PIECES)


async def test_stopping_early_closes_the_response(http: FakeHttpProvider) -> None:
    stream = http.answering_client().stream(PROMPT, OPTIONS)
    assert (await anext(stream)).text == PIECES[0]
    assert not http.body.closed
    await stream.aclose()
    assert http.body.closed


@pytest.mark.parametrize("fault", FAULTS)
async def test_every_fault_has_its_place_in_our_tree(faulty: FakeProvider, fault: str) -> None:
    patience = 0.02 if fault == "keep-alive without end" else 30
    error = await catch_error(faulty.failing_client(fault), patience)
    assert type(error) is FAULTS[fault]
    assert error.provider == faulty.provider
    assert error.model.startswith(faulty.name)


@pytest.mark.parametrize("fault", MID_STREAM)
async def test_what_came_before_a_fault_was_given(faulty: FakeProvider, fault: str) -> None:
    got = []
    with pytest.raises(FAULTS[fault]):
        async for chunk in faulty.failing_client(fault).stream(PROMPT, OPTIONS):
            got.append(chunk.text)
    assert got
    assert faulty.text.startswith("".join(got))


@pytest.mark.parametrize("fault", FAULTS)
async def test_no_error_tells_the_key_even_when_the_server_repeats_it(
    http: FakeHttpProvider, fault: str
) -> None:
    patience = 0.02 if fault == "keep-alive without end" else 30
    error = await catch_error(http.failing_client(fault), patience)
    told = [str(error), repr(error), str(error.details), *traceback.format_exception(error)]
    assert SECRET not in "".join(told)


async def test_a_harmless_cause_stays_behind_our_error(http: FakeHttpProvider) -> None:
    error = await catch_error(http.failing_client("500"))
    assert getattr(error.__cause__, "status_code", None) == 500


async def test_client_sends_no_key_when_a_header_cannot_hold_it(
    http: FakeHttpProvider,
) -> None:
    http.settings = {http.key: "sk-かぎ\nx"}
    client = http.answering_client()
    assert type(await catch_error(client)) is BadKey
    assert http.requests == []


async def test_rate_limited_keeps_the_retry_after_seconds(http: FakeHttpProvider) -> None:
    error = await catch_error(http.failing_client("429"))
    assert isinstance(error, RateLimited)
    assert (error.status, error.retry_after) == (429, 7.0)


async def test_nothing_is_tried_twice(http: FakeHttpProvider) -> None:
    await catch_error(http.failing_client("500"))
    assert len(http.requests) == 1


async def test_a_refusal_is_refused_by_generate(http: FakeHttpProvider) -> None:
    finish = {"openai": "content_filter", "anthropic": "refusal"}[http.provider]
    with pytest.raises(Refused):
        await http.streaming_client(http.answer_events(finish=finish)).generate(PROMPT)


@pytest.mark.parametrize("content", ["", " ", "\n\n", "　"])
async def test_an_answer_without_a_word_is_invalid(wire: FakeProvider, content: str) -> None:
    client = wire.answering_client()
    with pytest.raises(InvalidResponse) as caught:
        client.validate_response(Completion(content, "m", Usage(), "stop"))
    assert (caught.value.provider, caught.value.model) == (wire.provider, wire.name)
    client.validate_response(Completion("はい", "m", Usage(), "length"))


@pytest.mark.parametrize("reason", ["content_filter", "refusal"])
async def test_client_raises_refused_when_a_filter_or_model_declines(
    wire: FakeProvider, reason: str
) -> None:
    with pytest.raises(Refused):
        wire.answering_client().validate_response(Completion("それは", "m", Usage(), reason))


async def test_an_empty_answer_is_invalid(faulty: FakeProvider) -> None:
    client = (
        faulty.streaming_client(faulty.answer_events(pieces=[]))
        if isinstance(faulty, FakeHttpProvider)
        else mock_client("echo?tokens=0")
    )
    with pytest.raises(InvalidResponse):
        await client.generate(PROMPT)


async def test_client_raises_no_vision_when_the_model_takes_no_images(wire: FakeProvider) -> None:
    with pytest.raises(NoVision):
        await collect_chunks(wire.answering_client(), PROMPT_WITH_IMAGES)
    assert wire.requests == []


@pytest.mark.parametrize("way", ["closing the stream", "cancelling the task"])
async def test_a_real_server_notices_that_the_reader_left(http: FakeHttpProvider, way: str) -> None:
    async with HangingServer(http.answer_events()[: http.events_to_first_text]) as server:
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


async def test_a_silent_server_is_given_up_within_the_timeout(http: FakeHttpProvider) -> None:
    async with HangingServer(http.answer_events()[: http.events_to_first_text]) as server:
        base = {"openai": "openai_base_url", "anthropic": "anthropic_base_url"}[http.provider]
        settings = Settings(**{base: server.url})
        plain = httpx2.AsyncClient(trust_env=False)
        client = http.client_class(http.info(), settings, http_client=plain)
        error = await catch_error(client, timeout=0.1)
        assert type(error) is ModelTimeout
        await asyncio.wait_for(server.left.wait(), 5)
        await client.aclose()


async def at(http: FakeHttpProvider, url: str) -> LLMClientInterface:
    """The client of a server at ``url``."""
    settings = Settings(**{f"{http.provider}_base_url": url})
    plain = httpx2.AsyncClient(trust_env=False)
    return http.client_class(http.info(), settings, http_client=plain)


async def test_client_ends_at_connect_timeout_when_nobody_accepts(
    http: FakeHttpProvider,
) -> None:
    with unresponsive_url() as url:
        client = await at(http, url)
        async with asyncio.timeout(10):
            with pytest.raises(ModelTimeout):
                await collect_chunks(client, options=Options(timeout=30, connect_timeout=0.05))
        await client.aclose()


@pytest.mark.parametrize(
    ("bound", "limit", "then"),
    [("timeout", 0.1, "hang"), ("idle_timeout", 0.1, "hang"), ("total_timeout", 0.8, "drip")],
)
async def test_each_timeout_ends_the_answer_and_the_connection(
    http: FakeHttpProvider, bound: str, limit: float, then: Any
) -> None:
    begun = http.answer_events()[: http.events_to_first_text]
    parts = [http.ping] if bound == "timeout" else begun
    got = []
    async with FaultyServer(FaultyResponse(parts, then=then)) as server:
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
    http: FakeHttpProvider, then: Any
) -> None:
    *answer, _ = http.answer_events()  # all but what closes the stream
    while b"finish" not in answer[-1] and b"stop_reason" not in answer[-1]:
        answer.pop()
    async with FaultyServer(FaultyResponse(answer, then=then)) as server:
        client = await at(http, server.url)
        async with asyncio.timeout(10):
            *pieces, last = await collect_chunks(client, options=Options(idle_timeout=0.2))
        await client.aclose()
    assert "".join(chunk.text for chunk in pieces) == "".join(PIECES)
    assert last.finish_reason == "stop"
    assert last.usage is not None


@pytest.mark.parametrize(
    "usage",
    [{}, {"total_tokens": 5}, {"prompt_tokens": None, "completion_tokens": 2},
     {"prompt_tokens": "x"}, "many", 7],
)  # fmt: skip
async def test_an_odd_count_of_tokens_is_estimated_and_costs_no_answer(
    openai: FakeOpenAI, usage: object
) -> None:
    *answer, done = openai.answer_events(usage=None)
    *_, last = await collect_chunks(
        openai.streaming_client([*answer, openai.event(usage=usage), done])
    )
    assert last.finish_reason == "stop"
    assert last.usage is not None
    assert last.usage.estimated


async def test_a_slow_reader_is_not_taken_for_a_slow_model(http: FakeHttpProvider) -> None:
    got = ""
    async with FaultyServer(FaultyResponse([http.ping, *http.answer_events()])) as server:
        client = await at(http, server.url)
        async with asyncio.timeout(10):
            async for chunk in client.stream(PROMPT, Options(total_timeout=0.3)):
                got += chunk.text
                await asyncio.sleep(0.2)
        await client.aclose()
    assert got == "".join(PIECES)


async def test_a_server_that_never_stops_is_left_at_the_answers_bound(
    http: FakeHttpProvider,
) -> None:
    *_, word = http.answer_events()[: http.events_to_first_text]
    begun = http.answer_events()[: http.events_to_first_text]
    client = http.streaming_client(begun, then=word)
    async with asyncio.timeout(10):
        *pieces, last = await collect_chunks(client, options=Options(max_tokens=10, timeout=30))
    text = "".join(chunk.text for chunk in pieces)
    assert text == (PIECES[0] * 160)[:160]
    assert last.finish_reason == "length"
    assert last.usage is not None
    assert last.usage.estimated
    assert last.usage.completion_tokens > 10
    assert http.body.closed


async def test_a_server_that_sends_wordless_events_without_end_is_left(
    http: FakeHttpProvider,
) -> None:
    begun = http.answer_events()[: http.events_to_first_text]
    client = http.streaming_client(
        begun, then=http.answer_events([""])[http.events_to_first_text - 1]
    )
    async with asyncio.timeout(10):
        *_, last = await collect_chunks(client, options=Options(max_tokens=10, timeout=30))
    assert last.finish_reason == "length"
    assert http.body.closed


async def test_an_answer_as_long_as_the_bound_is_whole(http: FakeHttpProvider) -> None:
    answer = http.answer_events(["あ" * 16])
    *_, last = await collect_chunks(
        http.streaming_client(answer), options=Options(max_tokens=1, timeout=30)
    )
    assert last.finish_reason == "stop"
