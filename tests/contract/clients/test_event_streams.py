"""Answers as servers and proxies send them, byte by byte, through the clients.

The names in brackets are public reports about comparable tools.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import httpx2
import pytest
from support.clients import catch_error, collect_chunks
from support.fake_servers import FakeAnthropic, FakeOpenAI
from support.faulty_server import FaultyResponse, FaultyServer

from persona_lab.clients.anthropic import AnthropicClient
from persona_lab.clients.catalog import ModelInfo
from persona_lab.clients.openai import OpenAIClient
from persona_lab.errors import (
    InvalidResponse,
    Offline,
    Overloaded,
    PersonaLabError,
    RateLimited,
)
from persona_lab.settings import Settings
from persona_lab.types import Chunk, Options


def chunk(text: Any = None, finish: Any = None, **fields: Any) -> bytes:
    """A chunk of OpenAI's form."""
    choice = {"index": 0, "delta": {"content": text} if text is not None else {}}
    event = {"model": "m", "choices": [{**choice, "finish_reason": finish}], **fields}
    return b"data: " + json.dumps(event).encode() + b"\n\n"


def named(kind: str, *, name: bool = True, **fields: Any) -> bytes:
    """An event of Anthropic's form, with or without its ``event:`` line."""
    line = f"event: {kind}\n" if name else ""
    return f"{line}data: {json.dumps({'type': kind, **fields})}\n\n".encode()


def words(text: str, **options: Any) -> bytes:
    delta = {"type": "text_delta", "text": text}
    return named("content_block_delta", index=0, delta=delta, **options)


DONE = b"data: [DONE]\n\n"
STOP = chunk(finish="stop")
START = named("message_start", message={"model": "m", "usage": {"input_tokens": 7}})
END = named("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 3})
LAST = named("message_stop")


async def answer(
    fake: FakeOpenAI | FakeAnthropic, *parts: bytes, cut: int = 0
) -> tuple[str, Chunk]:
    """Return the text and the last chunk; ``cut`` is the length of the pieces of the body."""
    body = b"".join(parts)
    pieces = [body[at : at + cut] for at in range(0, len(body), cut)] if cut else list(parts)
    chunks = await collect_chunks(fake.streaming_client(pieces))
    return "".join(chunk.text for chunk in chunks), chunks[-1]


def document(**fields: Any) -> bytes:
    return json.dumps(fields, indent=1).encode()


OPENAI_BODIES = {
    "null (openai-python#2722)": [chunk("はい"), b"data: null\n\n", STOP, DONE],
    "number": [b"data: 17\n\n", chunk("はい"), STOP, DONE],
    "text": [b"data: keep-alive\n\n", chunk("はい"), b"data: true\n\n", STOP, DONE],
    "empty list and object": [b"data: []\n\n", b"data: {}\n\n", chunk("はい"), STOP, DONE],
    "retry alone": [b"retry: 3000\n\n", chunk("はい"), STOP, DONE],
    "data alone": [b"data:\n\n", chunk("はい"), b"data: \n\n", STOP, DONE],
    "comments": [b": OPENROUTER PROCESSING\n\n", chunk("はい"), b":\n\n", STOP, DONE],
    "ids and unknown fields": [b"id: 1\nfoo: x\n" + chunk("はい"), b"id\n\n", STOP, DONE],
    "no blank after the colon": [chunk("はい").replace(b": ", b":"), STOP, DONE],
    "CRLF": [b"".join([chunk("はい"), STOP, DONE]).replace(b"\n", b"\r\n")],
    "CR": [b"".join([chunk("はい"), STOP, DONE]).replace(b"\n", b"\r")],
    "byte order mark": [b"\xef\xbb\xbf", chunk("はい"), STOP, DONE],
    "no blank lines": [b"".join([chunk("はい"), STOP, DONE]).replace(b"\n\n", b"\n")],
    "no blank line at the end": [chunk("はい"), STOP.rstrip()],
    "a list of events": [b"data: [" + chunk("はい")[6:].strip() + b"]\n\n", STOP, DONE],
    "several lines of data": [b'data: {"choices":\ndata: []}\n\n', chunk("はい"), STOP, DONE],
    "no choices (Azure)": [b'data: {"choices": []}\n\n', chunk("はい"), STOP, DONE],
    "choices of another type": [b'data: {"choices": {"a": 1}}\n\n', chunk("はい"), STOP, DONE],
    "choices null": [b'data: {"choices": null}\n\n', chunk("はい"), STOP, DONE],
    "delta null": [b'data: {"choices": [{"delta": null}]}\n\n', chunk("はい"), STOP, DONE],
    "choice null": [b'data: {"choices": [null]}\n\n', chunk("はい"), STOP, DONE],
    "content a number": [chunk(5), chunk("はい"), STOP, DONE],
    "model a number": [chunk("はい", model=4), STOP, DONE],
    "error null": [chunk("はい", error=None), STOP, DONE],
    "parts (Magistral)": [chunk([{"type": "text", "text": "はい"}]), STOP, DONE],
    "parts with thoughts (litellm#16272)": [
        chunk([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]),
        chunk([{"type": "text", "text": "は"}, {"type": "text", "text": "い"}]),
        STOP,
        DONE,
    ],
    "thoughts in a field of their own": [
        b'data: {"choices": [{"delta": {"reasoning_content": "hm", "content": null}}]}\n\n',
        chunk("はい"),
        STOP,
        DONE,
    ],
    "two choices": [
        b'data: {"choices": [{"index": 0, "delta": {"content": "\xe3\x81\xaf\xe3\x81\x84"}},'
        b' {"index": 1, "delta": {"content": "No"}}]}\n\n',
        STOP,
        DONE,
    ],
    "whole completion (litellm#8448)": [
        document(model="m", choices=[{"message": {"content": "はい"}, "finish_reason": "stop"}])
    ],
    "whole completion as an event": [
        b"data: "
        + json.dumps(
            {"choices": [{"message": {"content": "はい"}, "finish_reason": "stop"}]}
        ).encode()
        + b"\n\n",
        DONE,
    ],
    "a line for each event": [chunk("はい")[6:-1], STOP[6:-1]],
}

ANTHROPIC_BODIES = {
    "no event lines": [
        part.partition(b"\n")[2] for part in (START, words("はい"), END, LAST)
    ],
    "no type in the data": [
        START,
        b'event: content_block_delta\ndata: {"delta": {"type": "text_delta", "text": "\xe3\x81\xaf'
        b'\xe3\x81\x84"}}\n\n',
        END,
        LAST,
    ],
    "no message_start": [words("はい"), END, LAST],
    "words in the start of a block": [
        START,
        named("content_block_start", index=0, content_block={"type": "text", "text": "は"}),
        words("い"),
        END,
        LAST,
    ],
    "a delta without a type": [
        START, named("content_block_delta", delta={"text": "はい"}), END, LAST
    ],
    "null, numbers and unknown events": [
        START, b"data: null\n\n", b"data: 3\n\n", named("status", text="No"),
        words("はい"), END, LAST
    ],
    "thoughts": [
        START,
        named("content_block_start", content_block={"type": "thinking", "thinking": "hm"}),
        named("content_block_delta", delta={"type": "thinking_delta", "thinking": "hm"}),
        named("content_block_delta", delta={"type": "signature_delta", "signature": "x"}),
        words("はい"),
        END,
        LAST,
    ],
    "odd shapes": [
        START,
        named("content_block_delta", delta=None),
        named("content_block_start", content_block=4),
        named("message_start", message=None),
        words("はい"),
        named("message_delta", delta=None, usage="many"),
        END,
        LAST,
    ],
    "whole message": [
        document(
            type="message",
            model="m",
            content=[{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "はい"}],
            stop_reason="end_turn",
            usage={"input_tokens": 7, "output_tokens": 3},
        )
    ],
}  # fmt: skip


@pytest.mark.parametrize("cut", [0, 1, 5])
@pytest.mark.parametrize("case", OPENAI_BODIES)
async def test_openai_answer_is_whole_whatever_else_the_server_sends(
    openai: FakeOpenAI, case: str, cut: int
) -> None:
    text, last = await answer(openai, *OPENAI_BODIES[case], cut=cut)
    assert (text, last.finish_reason) == ("はい", "stop")


@pytest.mark.parametrize("cut", [0, 1, 5])
@pytest.mark.parametrize("case", ANTHROPIC_BODIES)
async def test_anthropic_answer_is_whole_whatever_else_the_server_sends(
    anthropic: FakeAnthropic, case: str, cut: int
) -> None:
    text, last = await answer(anthropic, *ANTHROPIC_BODIES[case], cut=cut)
    assert (text, last.finish_reason) == ("はい", "stop")


@pytest.fixture
def anthropic() -> FakeAnthropic:
    return FakeAnthropic()


@pytest.mark.parametrize("cut", [0, 1])
async def test_halves_of_an_emoji_in_two_events_are_joined(
    openai: FakeOpenAI, anthropic: FakeAnthropic, cut: int
) -> None:
    """eliza#30904."""
    halves = [
        chunk("花\ud83c"),
        chunk("\udf1e"),
        chunk(""),
        chunk("\ud83c"),
        chunk(""),
        chunk("\udf1e"),
    ]
    text, _ = await answer(openai, *halves, STOP, DONE, cut=cut)
    assert text == "花🌞🌞"
    text, _ = await answer(anthropic, START, words("\ud83c"), words("\udf1e花"), END, cut=cut)
    assert text == "🌞花"


async def test_a_single_half_of_an_emoji_is_left_out(openai: FakeOpenAI) -> None:
    text, _ = await answer(openai, chunk("\ud83c"), chunk("花\udf1e"), chunk("\ud83c"), STOP, DONE)
    assert text == "花"


@pytest.mark.parametrize("reason", ["", None, "null", 7])
async def test_answer_without_a_reason_is_kept_when_its_end_is_marked(
    openai: FakeOpenAI, reason: object
) -> None:
    """new-api#696, ollama#4357, llama-cpp-python#867."""
    text, last = await answer(openai, chunk("はい", reason), chunk("。", reason), DONE)
    assert (text, last.finish_reason) == ("はい。", "unknown")


async def test_anthropic_answer_without_message_delta_is_kept(anthropic: FakeAnthropic) -> None:
    text, last = await answer(anthropic, START, words("はい"), LAST)
    assert (text, last.finish_reason) == ("はい", "unknown")


async def test_answer_without_reason_and_mark_is_a_lost_connection(openai: FakeOpenAI) -> None:
    assert type(await catch_error(openai.streaming_client([chunk("はい")]))) is Offline


@pytest.mark.parametrize(
    "parts", [[DONE], [chunk(""), DONE], [chunk(), DONE], [b"data: null\n\n", DONE], []]
)
async def test_an_answer_without_text_is_invalid_and_no_lost_connection(
    openai: FakeOpenAI, parts: list[bytes]
) -> None:
    assert type(await catch_error(openai.streaming_client(parts))) is InvalidResponse


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("max_tokens", "length"), ("MAX_TOKENS", "length"), ("model_length", "length"),
        ("max_output_tokens", "length"), ("pause_turn", "length"), ("sensitive", "content_filter"),
        ("SAFETY", "content_filter"), ("content-filter", "content_filter"),
        ("refusal", "refusal"), ("STOP", "stop"), ("FINISH_REASON_STOP", "stop"),
        ("eos_token", "stop"), ("moonbeam", "moonbeam"),
    ],
)  # fmt: skip
async def test_finish_reasons_of_all_providers_are_known(
    openai: FakeOpenAI, anthropic: FakeAnthropic, theirs: str, ours: str
) -> None:
    """cherry-studio PR16079."""
    _, last = await answer(openai, chunk("はい"), chunk(finish=theirs), DONE)
    assert last.finish_reason == ours
    end = named("message_delta", delta={"stop_reason": theirs}, usage={"output_tokens": 3})
    _, last = await answer(anthropic, START, words("はい"), end, LAST)
    assert last.finish_reason == ours


@pytest.mark.parametrize("reason", ["error", "network_error", "ABORT", "cancelled", "timeout"])
async def test_a_broken_off_answer_is_an_error(openai: FakeOpenAI, reason: str) -> None:
    parts = [chunk("半分"), chunk(finish=reason), DONE]
    assert type(await catch_error(openai.streaming_client(parts))) is Overloaded


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([document(error={"code": 429, "message": "slow down"})], RateLimited),
        ([document(error={"code": "429", "message": "slow down"})], RateLimited),
        ([b'[{"error": {"code": 429}}]'], RateLimited),
        ([document(code=429, message="slow down")], RateLimited),
        ([document(object="error", code=429, message="slow down")], RateLimited),
        ([b'data: {"error": {"code": "429"}}\n\n'], RateLimited),
        ([chunk("半"), b'data: {"error": {"code": 429}}\n\n', DONE], RateLimited),
        ([chunk("半"), b'{"error": {"code": 429}}'], RateLimited),
        ([chunk("半"), b'event: error\ndata: {"code": 429, "message": "x"}\n\n'], RateLimited),
        ([chunk("半", error={"code": 429})], RateLimited),
        ([b'data: {"choices": [{"delta": {}, "error": {"code": 429}}]}\n\n'], RateLimited),
        ([chunk("半"), named("error", error={"type": "server_error"})], Overloaded),
    ],
)  # fmt: skip
async def test_an_error_in_a_response_with_status_200_is_the_error_it_says(
    openai: FakeOpenAI, parts: list[bytes], expected: type[PersonaLabError]
) -> None:
    """litellm#8448, litellm#40578."""
    assert type(await catch_error(openai.streaming_client(parts))) is expected


@pytest.mark.parametrize(
    "body", [b"event: error\ndata: it broke\n\n", b'data: {"error": "it broke"}\n\n',
             b'{"detail": "it broke"}'],
)  # fmt: skip
async def test_an_error_without_a_code_is_an_error(openai: FakeOpenAI, body: bytes) -> None:
    await catch_error(openai.streaming_client([body]))


@pytest.mark.parametrize(
    ("usage", "prompt", "completion", "is_estimated"),
    [
        ({"prompt_tokens": 70, "completion_tokens": 9}, 70, 9, False),
        ({"prompt_tokens": 70, "completion_tokens": 0}, 70, None, True),
        ({"prompt_tokens": 0, "completion_tokens": 9}, None, 9, True),
        ({"prompt_tokens": 70}, 70, None, True),
        ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, None, None, True),
        ({"prompt_tokens": 70, "completion_tokens": 9, "prompt_tokens_details": 7}, 70, 9, False),
    ],
)
async def test_each_missing_count_is_estimated_by_itself(
    openai: FakeOpenAI,
    usage: dict[str, int],
    prompt: int | None,
    completion: int | None,
    is_estimated: bool,
) -> None:
    """LocalAI#9927."""
    _, last = await answer(
        openai, chunk("はい、そうです。"), chunk(finish="stop", usage=usage), DONE
    )
    assert last.usage is not None
    assert last.usage.estimated is is_estimated
    assert last.usage.prompt_tokens == prompt or (prompt is None and last.usage.prompt_tokens > 0)
    assert last.usage.completion_tokens == (completion or 5)


async def test_anthropic_input_is_estimated_without_message_start(
    anthropic: FakeAnthropic,
) -> None:
    _, last = await answer(anthropic, words("はい"), END, LAST)
    assert last.usage is not None
    assert (last.usage.completion_tokens, last.usage.estimated) == (3, True)
    assert last.usage.prompt_tokens > 0


@pytest.mark.parametrize("end", [STOP, DONE, STOP + DONE])
async def test_answer_ends_soon_when_the_connection_stays_open(end: bytes) -> None:
    """bifrost#6784."""
    async with FaultyServer(FaultyResponse([chunk("はい"), end], then="hang")) as server:
        client = OpenAIClient(
            ModelInfo(provider="openai", name="m"),
            Settings(openai_base_url=server.url),
            http_client=httpx2.AsyncClient(trust_env=False),
        )
        begun = time.monotonic()
        *pieces, _ = await collect_chunks(client, options=Options(timeout=30))
        assert time.monotonic() - begun < 5
        assert "".join(piece.text for piece in pieces) == "はい"
        async with asyncio.timeout(5):
            await server.left.wait()
        await client.aclose()


async def test_connection_is_used_again_after_an_answer() -> None:
    connections = 0
    closed = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = head.lower().partition(b"content-length:")[2].split(maxsplit=1)[0]
                await reader.readexactly(int(length))
                body = START + words("はい") + END + LAST
                writer.write(b"HTTP/1.1 200 x\r\ncontent-length: %d\r\n\r\n" % len(body))
                writer.write(body)
        except asyncio.IncompleteReadError:
            writer.close()
            await writer.wait_closed()
            closed.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = AnthropicClient(
        ModelInfo(provider="anthropic", name="m"),
        Settings(anthropic_base_url=f"http://127.0.0.1:{port}"),
        http_client=httpx2.AsyncClient(trust_env=False),
    )
    for _ in range(3):
        await collect_chunks(client)
    assert connections == 1
    await client.aclose()
    async with asyncio.timeout(5):
        await closed.wait()
    server.close()


async def test_an_endless_line_is_refused(openai: FakeOpenAI) -> None:
    client = openai.streaming_client([b"data: "], then=b"x" * 1_000_000)
    assert type(await catch_error(client)) is InvalidResponse
