"""Clients: one seam to every model.

A client is a :meth:`~LLMClientInterface.stream` of :class:`~persona_lab.models.Chunk`; the rest
comes with the base class. ``provider:model`` names one: ``openai:gpt-5-mini``,
``local:gemma-3-270m``, ``mock:echo``. A new provider is one file in this folder with a class
``Client`` and a line in :data:`PROVIDERS`; what its models accept and cost stands in
``data/models.yaml``.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal
from weakref import WeakKeyDictionary

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from persona_lab.errors import (
    ConfigurationError,
    InvalidResponse,
    MissingKey,
    Refused,
    UnknownModel,
)
from persona_lab.models import Chunk, Completion, Options, Prompt, Usage
from persona_lab.settings import Settings
from persona_lab.words import read_yaml

PROVIDERS = {
    "local": "persona_lab.clients.llama_cpp",
    "openai": "persona_lab.clients.openai",
    "anthropic": "persona_lab.clients.anthropic",
    "mock": "persona_lab.clients.mock",
}
"""Provider → module. Imported when first used: an SDK costs up to a second and a half."""


class Sampling(BaseModel):
    """Sampling of a model; what is left out is the provider's own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repeat_penalty: Annotated[float, Field(gt=0)] | None = None
    seed: int | None = None


class ModelInfo(BaseModel):
    """What is known of a model: one entry of ``data/models.yaml``.

    ``context`` in tokens; ``input_price`` and ``output_price`` in US dollars a million tokens
    (None: unknown); ``accepts``: sampling options that the provider takes for this model;
    ``prompt``: "chat" or "transcript" (a base model); ``examples``: whether example exchanges
    stand in the system text or go ahead of the conversation as turns.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    provider: Literal["local", "openai", "anthropic", "mock"]
    name: str
    label: str = ""
    prompt: Literal["chat", "transcript"] = "chat"
    examples: Literal["system", "turns"] = "system"
    context: int = 4096
    languages: tuple[str, ...] = ("ja", "en")
    vision: bool = False
    accepts: frozenset[str] = frozenset({"temperature", "top_p", "max_tokens", "stop"})
    sampling: Sampling = Sampling()
    input_price: float | None = None
    output_price: float | None = None
    source: str = ""
    """Local models: ``package:NAME``, a path, or ``repo:file``."""
    licence: str = ""

    @property
    def spec(self) -> str:
        return f"{self.provider}:{self.name}"


class Catalog:
    """The models that ``data/models.yaml`` knows, in its order, and facts for any other."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigurationError naming the file and the entry that is wrong."""
        try:
            entries = read_yaml(path)["models"]
        except (KeyError, TypeError) as wrong:
            raise ConfigurationError(f"{path.name}: there is no list of models") from wrong
        self.models: dict[str, ModelInfo] = {}
        for number, entry in enumerate(entries, 1):
            try:
                info = ModelInfo.model_validate(entry)
            except ValidationError as wrong:
                first = wrong.errors(include_url=False)[0]
                where = ".".join(map(str, first["loc"]))
                raise ConfigurationError(
                    f"{path.name}: model {number}: {where}: {first['msg']}"
                ) from None
            self.models[info.spec] = info

    def find(self, spec: str) -> ModelInfo:
        """Facts for ``provider:model``; an empty model name means the provider's first.

        Raises UnknownModel for a provider that doesn't exist. A model that isn't listed is
        taken with cautious facts: its provider decides whether it exists.
        """
        provider, _, name = spec.partition(":")
        if provider not in PROVIDERS:
            raise UnknownModel(model=spec)
        if not name:
            first = next((m for m in self.models.values() if m.provider == provider), None)
            if first is None:
                raise UnknownModel(model=spec)
            return first
        known = self.models.get(spec) or self.models.get(spec.partition("?")[0])
        if known is not None:
            return known if known.spec == spec else known.model_copy(update={"name": name})
        return ModelInfo.model_validate({"provider": provider, "name": name, "source": name})


class LLMClientInterface(ABC):
    """A model that answers. ``info`` holds what is known of it."""

    def __init__(self, info: ModelInfo, settings: Settings) -> None:
        self.info = info
        self.settings = settings

    @abstractmethod
    def stream(self, prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        """The answer as it comes; the last chunk has finish_reason, usage and model.

        Raises ProviderError. Closing the generator closes the connection or frees the sequence.
        """

    async def generate(self, prompt: Prompt, **options: Any) -> Completion:
        """The whole answer. ``options`` are fields of :class:`Options`.

        Raises ProviderError, InvalidResponse for an empty answer, Refused for a filtered one.
        """
        text: list[str] = []
        last = Chunk(finish_reason="stop")
        async with contextlib.aclosing(self.stream(prompt, Options(**options))) as chunks:
            async for chunk in chunks:
                text.append(chunk.text)
                last = chunk
        completion = Completion(
            content="".join(text),
            model=last.model or self.info.name,
            usage=last.usage or Usage(),
            finish_reason=last.finish_reason or "stop",
        )
        self.validate_response(completion)
        return completion

    def validate_response(self, response: Completion) -> None:
        """Raises Refused when a filter or the model itself refused, InvalidResponse when empty."""
        who: dict[str, Any] = {"provider": self.info.provider, "model": self.info.name}
        if response.finish_reason in ("content_filter", "refusal"):
            raise Refused(**who)
        if not response.content.strip():
            raise InvalidResponse(**who)

    @property
    def ready(self) -> bool:
        """False while the first call would have to load something that takes time."""
        return True

    async def warm(self) -> None:  # noqa: B027 - most have nothing to load
        """Load what the first call would wait for. Raises ProviderError when it can't be."""

    def count_tokens(self, text: str) -> int:
        """Tokens of ``text``; estimated unless the model's own tokenizer is at hand."""
        return estimate_tokens(text)

    async def aclose(self) -> None:  # noqa: B027 - most have nothing to let go of
        """Let go of connections and memory."""


def estimate_tokens(text: str) -> int:
    """CJK ≈ 0.6 and other characters ≈ 0.25 tokens each: between today's large vocabularies."""
    wide = sum(1 for character in text if character > "\u2e7f")
    return round(0.6 * wide + 0.25 * (len(text) - wide))


class Clients:
    """Opens clients by name and keeps them, one set for each event loop.

    An SDK's async client is bound to the loop it was first used on.
    """

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        *,
        injected: LLMClientInterface | None = None,
    ) -> None:
        self.settings = settings
        self.catalog = catalog
        self._injected = injected
        self._own_files: dict[str, ModelInfo] = {}
        self._open: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, LLMClientInterface]] = (
            WeakKeyDictionary()
        )

    def info(self, spec: str = "") -> ModelInfo:
        """Facts of ``spec``, or of the default model.

        Raises UnknownModel; ModelUnavailable for a local file that can't be read.
        """
        if self._injected is not None:
            return self._injected.info
        info = self.catalog.find(spec or self.settings.default_model)
        if info.provider != "local":
            return info
        if info.spec not in self.catalog.models:
            info = self._own_file(info)
        # A local model's window is as large as it is opened.
        return info.model_copy(update={"context": self.settings.local_context})

    def _own_file(self, info: ModelInfo) -> ModelInfo:
        """A local file by what it says of itself.

        Only files that the settings name: what a visitor types must not open a path of this
        machine, nor download what they please.
        """
        if info.name not in self.settings.local_models:
            raise UnknownModel(model=info.spec)
        if info.name not in self._own_files:
            from persona_lab.clients import llama_cpp

            path = llama_cpp.weights_at_hand(info, self.settings)
            if path is None:
                return info
            facts = llama_cpp.probe(path)
            self._own_files[info.name] = info.model_copy(update=facts)
        return self._own_files[info.name]

    def get(self, spec: str = "") -> LLMClientInterface:
        """The client for ``spec``, or the default's. Call it from a running loop.

        Raises UnknownModel; MissingKey when its provider needs a key that isn't set.
        """
        if self._injected is not None:
            return self._injected
        info = self.info(spec)
        if not self.available(info):
            raise MissingKey(
                provider=info.provider,
                model=info.name,
                variable=f"{info.provider.upper()}_API_KEY",
            )
        clients = self._open.setdefault(asyncio.get_running_loop(), {})
        if info.spec not in clients:
            module = importlib.import_module(PROVIDERS[info.provider])
            clients[info.spec] = module.Client(info, self.settings)
        return clients[info.spec]

    async def open(self, spec: str = "") -> LLMClientInterface:
        """:meth:`get`, with the SDK imported beside the loop: no other answer waits for that."""
        if self._injected is None and self.available(info := self.info(spec)):
            await asyncio.to_thread(importlib.import_module, PROVIDERS[info.provider])
        return self.get(spec)

    def available(self, info: ModelInfo) -> bool:
        """Whether the settings hold what ``info``'s provider asks for."""
        if info.provider == "openai":
            return bool(self.settings.openai_api_key or self.settings.openai_base_url)
        if info.provider == "anthropic":
            return bool(self.settings.anthropic_api_key or self.settings.anthropic_base_url)
        return True

    def options(self, info: ModelInfo, **overrides: Any) -> Options:
        """Sampling for a model: models.yaml, then the settings, then ``overrides``."""
        chosen: dict[str, Any] = info.sampling.model_dump(exclude_none=True)
        chosen["timeout"] = self.settings.llm_timeout
        if self.settings.llm_temperature is not None:
            chosen["temperature"] = self.settings.llm_temperature
        if self.settings.llm_max_tokens is not None:
            chosen["max_tokens"] = self.settings.llm_max_tokens
        chosen.update({k: v for k, v in overrides.items() if v is not None})
        return replace(Options(), **chosen)

    def check(self) -> None:
        """Whether every model that the settings name can be what they say.

        A remote provider alone knows its models. Raises UnknownModel, ModelUnavailable.
        """
        for info in self.listed():
            if info.provider == "mock" and self._injected is None:
                importlib.import_module(PROVIDERS["mock"]).Client(info, self.settings)

    def listed(self) -> list[ModelInfo]:
        """What a page offers: the default, what else the settings name, then the catalogue."""
        named = [self.info(f"local:{name}") for name in self.settings.local_models]
        offered = [self.info(), *named, *self.catalog.models.values()]
        return list({info.spec: info for info in offered}.values())

    async def aclose(self) -> None:
        """Close every client, each on the loop that it is bound to as far as that still runs."""
        here = asyncio.get_running_loop()
        for loop, clients in list(self._open.items()):
            for client in clients.values():
                if loop is here:
                    await client.aclose()
                elif loop.is_running():
                    closing = asyncio.run_coroutine_threadsafe(client.aclose(), loop)
                    await asyncio.wrap_future(closing)
                else:  # its connections went with its loop, and can't be closed again
                    with contextlib.suppress(RuntimeError):
                        await client.aclose()
        self._open.clear()


def open_client(spec: str, settings: Settings | None = None) -> LLMClientInterface:
    """A client on its own, outside a lab: ``open_client("openai:gpt-5-mini")``."""
    settings = settings or Settings()
    return Clients(settings, Catalog(settings.data_dir / "models.yaml")).get(spec)
