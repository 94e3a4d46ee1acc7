"""Options and prompts for the tests of clients, and helpers that collect their answers."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest

from persona_lab.clients.base import LLMClientInterface
from persona_lab.clients.catalog import ModelInfo
from persona_lab.clients.mock import MockClient
from persona_lab.errors import (
    ProviderError,
)
from persona_lab.settings import Settings
from persona_lab.types import Chunk, Image, Options, Prompt, PromptMessage
from support import tiny_gguf as tiny_gguf
from support.fake_servers import (
    MESSAGE,
    PROMPT,
)

OPTIONS = Options(timeout=30, seed=7)


ALL_OPTIONS = Options(
    temperature=1.5,
    max_tokens=50,
    top_p=0.9,
    top_k=40,
    min_p=0.05,
    repeat_penalty=1.1,
    seed=7,
    stop=("終",),
)


OPTION_NAMES = frozenset(
    {"temperature", "max_tokens", "top_p", "top_k", "min_p", "repeat_penalty", "seed", "stop"}
)


TRANSCRIPT = Prompt(
    system="ミナ：やあ\nユーザー：元気？\nミナ：",
    kind="transcript",
    message=MESSAGE,
    stop=("\nユーザー:", "\nユーザー："),
)


PROMPT_WITH_IMAGES = replace(
    PROMPT,
    turns=(
        PromptMessage(
            "user",
            "これは？",
            (Image("https://example.org/a.png"), Image(data=b"\xff\xd8", media_type="image/jpeg")),
        ),
    ),
)
"""A prompt with two images: one by URL and one as bytes."""


async def collect_chunks(
    client: LLMClientInterface, prompt: Prompt = PROMPT, options: Options = OPTIONS
) -> list[Chunk]:
    async with contextlib.aclosing(client.stream(prompt, options)) as chunks:
        return [chunk async for chunk in chunks]


async def catch_error(client: LLMClientInterface, timeout: float = 30) -> ProviderError:  # noqa: ASYNC109 - the timeout of the model
    with pytest.raises(ProviderError) as caught:
        await collect_chunks(client, options=Options(timeout=timeout))
    return caught.value


def mock_client(name: str, **dependencies: object) -> MockClient:
    return MockClient(ModelInfo(provider="mock", name=name), Settings(), **dependencies)
