"""OpenAI's protocol, as its server and others speak it."""

from __future__ import annotations

import os
from dataclasses import replace

import httpx2
import pytest
from support import tiny_gguf as tiny_gguf
from support.clients import (
    ALL_OPTIONS,
    OPTION_NAMES,
    PROMPT_WITH_IMAGES,
    TRANSCRIPT,
    catch_error,
    collect_chunks,
)
from support.fake_servers import (
    PROMPT,
    SECRET,
    USAGE,
    FakeHttpProvider,
    FakeOpenAI,
)

from persona_lab.clients.catalog import ModelInfo
from persona_lab.clients.openai import OpenAIClient
from persona_lab.errors import (
    Overloaded,
)
from persona_lab.settings import Settings
from persona_lab.types import Options, PromptMessage, Usage


async def test_openais_own_server_gets_its_own_fields(openai: FakeOpenAI) -> None:
    await collect_chunks(
        openai.streaming_client(openai.answer_events(), accepts=OPTION_NAMES), options=ALL_OPTIONS
    )
    sent = openai.requests[0]
    assert openai.paths == ["/v1/chat/completions"]
    assert sent["messages"] == PROMPT.messages()
    assert sent["max_completion_tokens"] == 50
    assert "max_tokens" not in sent
    assert sent["stream_options"] == {"include_usage": True}
    assert (sent["temperature"], sent["top_p"], sent["seed"]) == (1.5, 0.9, 7)


async def test_the_cache_key_is_the_personas_and_not_the_conversations(
    openai: FakeOpenAI,
) -> None:
    other_turn = replace(PROMPT, turns=(PromptMessage("user", "さようなら"),))
    other_persona = replace(PROMPT, system="あなたはケンです。")
    for prompt in (PROMPT, other_turn, other_persona):
        await collect_chunks(openai.answering_client(), prompt)
    keys = [sent["prompt_cache_key"] for sent in openai.requests]
    assert keys[0] == keys[1] != keys[2]


async def test_other_servers_get_the_fields_that_they_know(openai: FakeOpenAI) -> None:
    openai.settings = {"openai_base_url": "http://localhost:11434/v1"}
    await collect_chunks(
        openai.streaming_client(openai.answer_events(), accepts=OPTION_NAMES), options=ALL_OPTIONS
    )
    sent = openai.requests[0]
    assert sent["max_tokens"] == 50
    assert not {"max_completion_tokens", "prompt_cache_key"} & set(sent)
    assert (sent["top_k"], sent["min_p"]) == (40, 0.05)
    assert sent["repetition_penalty"] == sent["repeat_penalty"] == 1.1


async def test_openai_gets_images_as_parts_ahead_of_the_words(openai: FakeOpenAI) -> None:
    await collect_chunks(
        openai.streaming_client(openai.answer_events(), vision=True), PROMPT_WITH_IMAGES
    )
    *images, words = openai.requests[0]["messages"][-1]["content"]
    assert [image["image_url"]["url"] for image in images] == [
        "https://example.org/a.png",
        "data:image/jpeg;base64,/9g=",
    ]
    assert words == {"type": "text", "text": "これは？"}


async def test_a_look_alike_host_is_not_openais_own(openai: FakeOpenAI) -> None:
    openai.settings = {"openai_base_url": "https://api.openai.com.example.org/v1"}
    await collect_chunks(openai.answering_client())
    assert "prompt_cache_key" not in openai.requests[0]


async def test_a_server_without_a_key_is_sent_a_harmless_one() -> None:
    seen = []

    def handle(request: httpx2.Request) -> httpx2.Response:
        seen.append(request.headers["authorization"])
        return httpx2.Response(200, content=b"".join(FakeOpenAI().answer_events()))

    client = OpenAIClient(
        ModelInfo(provider="openai", name="llama"),
        Settings(openai_base_url="http://localhost:11434/v1"),
        http_client=httpx2.AsyncClient(transport=httpx2.MockTransport(handle)),
    )
    await collect_chunks(client)
    assert seen == ["Bearer none"]


async def test_blanks_that_pasting_added_to_a_key_are_not_sent(http: FakeHttpProvider) -> None:
    http.settings = {http.key: f" {SECRET}\n"}
    assert (await collect_chunks(http.answering_client()))[-1].finish_reason == "stop"


async def test_only_accepted_options_are_sent(http: FakeHttpProvider) -> None:
    client = http.streaming_client(http.answer_events(), accepts=frozenset({"top_p"}))
    await collect_chunks(client, options=ALL_OPTIONS)
    sent = set(http.requests[0])
    assert "top_p" in sent
    refused = {"temperature", "top_k", "min_p", "seed", "stop", "stop_sequences", "max_tokens"}
    # Anthropic's API demands max_tokens of every request.
    assert sent & refused == ({"max_tokens"} if http.provider == "anthropic" else set())


async def test_unset_options_are_left_to_the_provider(http: FakeHttpProvider) -> None:
    client = http.streaming_client(http.answer_events(), accepts=OPTION_NAMES)
    await collect_chunks(client, options=Options(temperature=None))
    sent = http.requests[0]
    assert not {"temperature", "top_p", "top_k", "seed", "stop", "stop_sequences"} & set(sent)


async def test_a_transcript_goes_to_the_completions_endpoint_with_its_stops(
    openai: FakeOpenAI,
) -> None:
    openai.settings = {"openai_base_url": "http://localhost:8000/v1"}
    events = [
        openai.event(choices=[{"index": 0, "text": "元気", "finish_reason": None}]),
        openai.event(choices=[{"index": 0, "text": "だよ", "finish_reason": "stop"}]),
        openai.usage_event(Usage(20, 2)),
        b"data: [DONE]\n\n",
    ]
    chunks = await collect_chunks(openai.streaming_client(events), TRANSCRIPT)
    assert [chunk.text for chunk in chunks] == ["元気", "だよ", ""]
    assert chunks[-1].usage == Usage(20, 2)
    assert openai.paths == ["/v1/completions"]
    assert openai.requests[0]["prompt"] == TRANSCRIPT.system
    assert openai.requests[0]["stop"] == list(TRANSCRIPT.stop)


async def test_openais_own_server_gets_no_more_stops_than_it_takes(openai: FakeOpenAI) -> None:
    options = Options(stop=("1", "2", "2", "3", "4", "5"))
    await collect_chunks(openai.answering_client(), options=options)
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
    openai: FakeOpenAI, theirs: str, ours: str
) -> None:
    chunks = await collect_chunks(openai.streaming_client(openai.answer_events(finish=theirs)))
    assert chunks[-1].finish_reason == ours


async def test_refusal_text_is_not_part_of_the_answer(openai: FakeOpenAI) -> None:
    events = [
        openai.delta(role="assistant", refusal=""),
        openai.delta(refusal="I'm sorry"),
        openai.delta("stop"),
    ]
    chunks = await collect_chunks(openai.streaming_client(events))
    assert [(chunk.text, chunk.finish_reason) for chunk in chunks] == [("", "refusal")]


async def test_a_server_that_counts_nothing_is_estimated(openai: FakeOpenAI) -> None:
    last = (await collect_chunks(openai.streaming_client(openai.answer_events(usage=None))))[-1]
    assert last.usage is not None
    assert last.usage.estimated
    assert last.usage.prompt_tokens > 0
    assert last.usage.completion_tokens > 0


async def test_usage_is_kept_when_it_comes_before_the_end(openai: FakeOpenAI) -> None:
    events = [openai.delta(content="はい"), openai.usage_event(USAGE), openai.delta("stop")]
    assert (await collect_chunks(openai.streaming_client(events)))[-1].usage == USAGE


@pytest.mark.parametrize("code", [502, "server_error"])
async def test_error_event_is_mapped_by_the_code_in_its_body(
    openai: FakeOpenAI, code: int | str
) -> None:
    event = openai.event(error={"code": code, "message": "gone"})
    error = await catch_error(openai.streaming_client([event]))
    assert type(error) is Overloaded


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
    chunks = await collect_chunks(client, options=Options(max_tokens=16, timeout=120))
    await client.aclose()
    assert "".join(chunk.text for chunk in chunks).strip()
    assert chunks[-1].finish_reason in ("stop", "length")
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0
