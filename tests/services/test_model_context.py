"""The context of a model that isn't listed: what the server says, or what is assumed."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pytest_httpserver import HTTPServer
from support.fake_servers import FakeOpenAI
from support.fakes import ChatUser
from werkzeug import Request, Response

from persona_lab.clients.catalog import ASSUMED_CONTEXT, Catalog
from persona_lab.clients.pool import ClientPool
from persona_lab.clients.server_facts import find_context
from persona_lab.db.tables import Agent
from persona_lab.lab import Lab
from persona_lab.settings import ROOT, Settings

CATALOG = Catalog(ROOT / "data" / "models.yaml")
Answers = dict[str, Any]
"""What a server answers, by method and path."""


def listed(**fields: Any) -> Answers:
    return {"GET /v1/models": {"data": [{"id": "other", "n_ctx": 777}, {"id": "m", **fields}]}}


def respond(httpserver: HTTPServer, answers: Answers) -> None:
    def serve(request: Request) -> Response:
        body = answers.get(f"{request.method} {request.path}")
        if isinstance(body, bytes):
            return Response(body, content_type="text/event-stream")
        return Response(json.dumps(body), 404 if body is None else 200)

    httpserver.expect_request(re.compile(".*")).respond_with_handler(serve)


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[tuple[ClientPool, Any, Any]]:
    pool = ClientPool(Settings(openai_base_url=url), CATALOG)
    info = pool.info("openai:m")
    yield pool, info, await pool.open("openai:m")
    await pool.aclose()


@pytest.mark.parametrize(
    ("answers", "context"),
    [
        (listed(max_model_len=8192), 8192),  # vLLM
        (listed(context_length=16384, top_provider={"context_length": 9999}), 16384),  # OpenRouter
        (listed(top_provider={"context_length": 9999}), 9999),
        (listed(context_window=131072), 131072),  # Groq
        (listed(max_context_length="32000"), 32000),  # Mistral
        ({"GET /v1/models": {"data": [{"id": "a.gguf", "owned_by": "llamacpp",
                                       "meta": {"n_ctx_train": 32768}}]},
          "GET /props": {"default_generation_settings": {"n_ctx": 2048}}}, 2048),  # llama-server
        ({"GET /props": {"default_generation_settings": {"n_ctx": 1024}}}, 1024),
        ({"GET /v1/models": {"data": [{"id": "m"}]},
          "GET /api/v0/models/m": {"max_context_length": 131072, "loaded_context_length": 4096}},
         4096),  # LM Studio
        ({"GET /v1/models": {"data": [{"id": "m:latest", "owned_by": "library"}]},
          "POST /api/show": {"model_info": {"llama.context_length": 131072}}}, 4096),  # Ollama
        ({"POST /api/show": {"model_info": {}, "parameters": 'num_ctx     8192\nstop "x"'}}, 8192),
        ({"POST /api/show": {"model_info": {}},
          "GET /api/ps": {"models": [{"name": "m", "context_length": 16384}]}}, 16384),
        (listed(), None),
        (listed(context_length=-1, max_model_len=True, n_ctx="many"), None),
        ({"GET /v1/models": []}, None),
        ({"GET /v1/models": {"data": "none"}}, None),
        ({"GET /v1/models": b"<html>"}, None),
        ({}, None),
    ],
)  # fmt: skip
async def test_server_says_the_context(
    httpserver: HTTPServer, answers: Answers, context: int | None
) -> None:
    respond(httpserver, answers)
    async with opened(httpserver.url_for("/v1")) as (pool, info, client):
        assert (info.context, info.is_context_assumed) == (ASSUMED_CONTEXT, True)
        measured = await pool.measure_context(info, client)
        assert measured.context == (context or ASSUMED_CONTEXT)
        assert measured.is_context_assumed is (context is None)
        assert pool.info("openai:m") == measured
        asked = len(httpserver.log)
        await pool.measure_context(info, client)
        assert len(httpserver.log) == asked


async def test_server_that_hangs_is_asked_for_three_seconds() -> None:
    closed = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            pass
        writer.close()
        await writer.wait_closed()
        closed.set()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    async with opened(url) as (_, _, client):
        began = asyncio.get_running_loop().time()
        assert await client.fetch_context() is None
        assert asyncio.get_running_loop().time() - began < 6
    async with asyncio.timeout(5):
        await closed.wait()
    server.close()


def test_deep_description_is_read_in_bounded_time() -> None:
    described: dict[str, Any] = {}
    for _ in range(100):
        described = {"a": described, "b": described}
    assert find_context(described) is None


@pytest.mark.parametrize(
    ("name", "context", "is_assumed"),
    [
        ("openai/gpt-5", 400_000, False),
        ("Qwen/Qwen3-8B", 32_768, True),
        ("qwen2.5-7b@q4_k_m", 32_768, True),
        ("meta-llama/Llama-3.1-8B-Instruct", 131_072, True),
        ("google/gemma-3-27b-it", 131_072, True),
        ("us.anthropic.claude-sonnet-4-5-20250929-v1:0", 200_000, False),
        ("models/gemini-3-flash", 1_000_000, True),
        ("nobody-knows", ASSUMED_CONTEXT, True),
    ],
)
def test_family_gives_the_context_at_any_host(name: str, context: int, is_assumed: bool) -> None:
    info = CATALOG.find(f"openai:{name}")
    assert (info.name, info.context, info.is_context_assumed) == (name, context, is_assumed)


MakeLab = Callable[..., Lab]


@pytest.fixture
def events() -> Iterator[bytes]:
    yield b"".join(FakeOpenAI().answer_events())


async def ask(lab: Lab, background: str, history: int) -> dict[str, Any]:
    """Ask with earlier messages; return the metadata of the answer."""
    agent = Agent(name="ミナ", background=background)
    context = [
        {"sender": ("user", "ai")[number % 2], "content": f"{number}：" + "あ" * 400}
        for number in range(history)
    ]
    user_id = ChatUser(lab).user_id
    events = lab.service.answer(agent, "元気？", user_id=user_id, context=context, model="openai:m")
    done = [event async for event in events][-1]
    await lab.clients.aclose()
    assert done.content == FakeOpenAI().text
    return dict(done.metadata)


@pytest.mark.parametrize(("context", "left_out"), [(2048, True), (100_000, False)])
async def test_answer_says_which_messages_were_left_out(
    make_lab: MakeLab, httpserver: HTTPServer, events: bytes, context: int, left_out: bool
) -> None:
    respond(httpserver, listed(max_model_len=context) | {"POST /v1/chat/completions": events})
    lab = make_lab(openai_base_url=httpserver.url_for("/v1"), max_context_length=40)
    metadata = await ask(lab, "背景。" * 100, 20)
    told = metadata.get("left_out")
    assert bool(told) is left_out
    if told:
        assert told["tokens"] == context
        assert 0 < told["messages"] <= 20
        assert told["is_assumed"] is False
