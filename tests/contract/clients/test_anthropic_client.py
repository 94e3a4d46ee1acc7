"""Anthropic's protocol."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support import tiny_gguf as tiny_gguf
from support.clients import (
    ALL_OPTIONS,
    OPTION_NAMES,
    OPTIONS,
    PROMPT_WITH_IMAGES,
    TRANSCRIPT,
    collect_chunks,
)
from support.fake_servers import (
    MESSAGE,
    PROMPT,
    FakeAnthropic,
    FakeHttpProvider,
)

from persona_lab.types import Options, PromptMessage


@pytest.fixture
def anthropic() -> FakeAnthropic:
    return FakeAnthropic()


async def test_anthropic_gets_the_persona_as_a_cached_system_block(
    anthropic: FakeAnthropic,
) -> None:
    await collect_chunks(anthropic.answering_client())
    sent = anthropic.requests[0]
    assert sent["system"] == [
        {"type": "text", "text": PROMPT.system, "cache_control": {"type": "ephemeral"}}
    ]
    assert [turn["role"] for turn in sent["messages"]] == ["user", "assistant", "user"]
    assert sent["max_tokens"] == OPTIONS.max_tokens


async def test_anthropic_gets_images_as_blocks_ahead_of_the_words(
    anthropic: FakeAnthropic,
) -> None:
    await collect_chunks(
        anthropic.streaming_client(anthropic.answer_events(), vision=True), PROMPT_WITH_IMAGES
    )
    far, near, words = anthropic.requests[0]["messages"][-1]["content"]
    assert far["source"] == {"type": "url", "url": "https://example.org/a.png"}
    assert near["source"] == {"type": "base64", "media_type": "image/jpeg", "data": "/9g="}
    assert words == {"type": "text", "text": "これは？"}


async def test_anthropics_temperature_ends_at_one(anthropic: FakeAnthropic) -> None:
    await collect_chunks(
        anthropic.streaming_client(anthropic.answer_events(), accepts=OPTION_NAMES),
        options=ALL_OPTIONS,
    )
    sent = anthropic.requests[0]
    assert (sent["temperature"], sent["top_p"], sent["top_k"]) == (1.0, 0.9, 40)
    assert sent["stop_sequences"] == ["終"]


async def test_a_temperature_of_zero_is_sent(http: FakeHttpProvider) -> None:
    await collect_chunks(http.answering_client(), options=Options(temperature=0))
    assert http.requests[0]["temperature"] == 0


async def test_anthropic_is_spared_stops_and_turns_that_it_refuses(
    anthropic: FakeAnthropic,
) -> None:
    prompt = replace(
        PROMPT,
        turns=(PromptMessage("user", "やあ"), PromptMessage("assistant", ""), PROMPT.turns[-1]),
    )
    await collect_chunks(anthropic.answering_client(), prompt, Options(stop=("\n\n", "終")))
    sent = anthropic.requests[0]
    assert sent["stop_sequences"] == ["終"]
    assert [turn["content"] for turn in sent["messages"]] == ["やあ", MESSAGE]


async def test_anthropic_continues_a_transcript_that_a_user_sends(
    anthropic: FakeAnthropic,
) -> None:
    await collect_chunks(anthropic.answering_client(), TRANSCRIPT)
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
    anthropic: FakeAnthropic, theirs: str, ours: str
) -> None:
    chunks = await collect_chunks(
        anthropic.streaming_client(anthropic.answer_events(finish=theirs))
    )
    assert chunks[-1].finish_reason == ours


async def test_thinking_is_not_part_of_the_answer(anthropic: FakeAnthropic) -> None:
    events = anthropic.answer_events()
    thought = {"type": "thinking_delta", "thinking": "hm"}
    events.insert(1, anthropic.event("content_block_delta", index=0, delta=thought))
    chunks = await collect_chunks(anthropic.streaming_client(events))
    assert "".join(chunk.text for chunk in chunks) == anthropic.text
