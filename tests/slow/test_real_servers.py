"""Real servers of llama.cpp, each with one place: one question, and six at once, in Japanese."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from support.clients import collect_chunks
from support.fake_servers import PROMPT
from support.llama_servers import CONTEXT, llama_server

from persona_lab.clients.anthropic import AnthropicClient
from persona_lab.clients.base import LLMClientInterface
from persona_lab.clients.catalog import ModelInfo
from persona_lab.clients.middleware.stack import ClientStack
from persona_lab.clients.openai import OpenAIClient
from persona_lab.settings import Settings
from persona_lab.types import Chunk, Options, Prompt

QUESTIONS = (
    "元気ですか？",
    "今日の天気は？",
    "好きな色は？",
    "何歳ですか？",
    "趣味は？",
    "おはよう！",
)
OPTIONS = Options(max_tokens=12, temperature=0.2, seed=1, timeout=120, total_timeout=300)
SERVERS = {
    "llama.cpp, OpenAI's form": ("xllamacpp", "openai", "/v1"),
    "llama.cpp, Anthropic's form": ("xllamacpp", "anthropic", ""),
    "llama_cpp.server": ("llama_cpp.server", "openai", "/v1"),
}
CLASSES: dict[str, Any] = {"openai": OpenAIClient, "anthropic": AnthropicClient}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The addresses of the servers by their kinds."""
    folder = tmp_path_factory.mktemp("servers")
    with (
        llama_server("xllamacpp", folder) as one,
        llama_server("llama_cpp.server", folder) as other,
    ):
        yield {"xllamacpp": one, "llama_cpp.server": other}


def client_of(servers: dict[str, str], name: str, **facts: Any) -> LLMClientInterface:
    kind, provider, path = SERVERS[name]
    settings = Settings(**{f"{provider}_base_url": servers[kind] + path})
    client = CLASSES[provider](ModelInfo(provider=provider, name="smollm2", **facts), settings)
    stack = ClientStack(settings, clock=asyncio.get_running_loop().time, sleep=asyncio.sleep)
    return stack.wrap_shared(client)


def prompt_of(question: str) -> Prompt:
    turn = replace(PROMPT.turns[-1], content=question)
    return replace(PROMPT, turns=(*PROMPT.turns[:-1], turn), message=question)


def check(chunks: list[Chunk]) -> None:
    """Check that an answer is whole, as far as the server says it."""
    last = chunks[-1]
    assert "".join(chunk.text for chunk in chunks).strip()
    assert last.finish_reason in ("stop", "length", "unknown")
    assert last.usage is not None
    assert last.usage.prompt_tokens > 0
    assert last.usage.completion_tokens > 0


@pytest.mark.parametrize("name", SERVERS)
async def test_one_question_is_answered(servers: dict[str, str], name: str) -> None:
    client = client_of(servers, name)
    check(await collect_chunks(client, prompt_of(QUESTIONS[0]), OPTIONS))
    await client.aclose()


@pytest.mark.parametrize("name", SERVERS)
async def test_six_questions_at_once_are_answered(servers: dict[str, str], name: str) -> None:
    client = client_of(servers, name)
    asked = [collect_chunks(client, prompt_of(question), OPTIONS) for question in QUESTIONS]
    for chunks in await asyncio.gather(*asked):
        check(chunks)
    await client.aclose()


async def test_llama_server_says_its_context(servers: dict[str, str]) -> None:
    client = client_of(servers, "llama.cpp, OpenAI's form", is_context_assumed=True)
    assert await client.fetch_context() == CONTEXT
    await client.aclose()
