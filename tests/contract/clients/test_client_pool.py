"""The pool of clients, and the providers that it knows."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from types import ModuleType
from typing import Any
from unittest.mock import Mock

import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI
from pydantic import ValidationError
from support import tiny_gguf as tiny_gguf
from support.fake_servers import (
    PROMPT,
)

from persona_lab import settings as settings_module
from persona_lab.clients.base import LLMClientInterface
from persona_lab.clients.catalog import Catalog, ModelInfo
from persona_lab.clients.pool import ClientPool
from persona_lab.clients.provider import Provider
from persona_lab.clients.registry import list_providers
from persona_lab.errors import (
    MissingKey,
)
from persona_lab.settings import Settings
from persona_lab.types import Chunk, Options, Prompt, Usage


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
