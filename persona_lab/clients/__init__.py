"""Clients: one seam to every model.

A client is a :meth:`~LLMClientInterface.stream` of :class:`~persona_lab.models.Chunk`; the rest
comes with the base class. ``provider:model`` names one: ``openai:gpt-5-mini``,
``local:gemma-3-270m``, ``mock:echo``. A new provider is one file in this folder with a class
``Client`` and a line in :data:`~persona_lab.settings.PROVIDERS` (and a setting, if it asks for a
key); what its models accept and cost stands in ``data/models.yaml``.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
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
from persona_lab.settings import PROVIDERS, ProviderName, Settings
from persona_lab.words import read_yaml


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

    provider: ProviderName
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

    @property
    def free(self) -> bool:
        """Whether its tokens cost nothing."""
        return PROVIDERS[self.provider].free


class Catalog:
    """The models that ``data/models.yaml`` knows, in its order, and facts for any other."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigurationError naming the file and the entry that is wrong."""
        try:
            entries = list(read_yaml(path)["models"])
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
        if not isinstance(spec, str) or spec != _sendable(spec):
            raise UnknownModel(model=_sendable(str(spec)))
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

    bound: ClassVar[bool] = True
    """Whether it belongs to the event loop that it was first used on, as an SDK's client does."""

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

    def for_model(self, info: ModelInfo) -> LLMClientInterface | None:
        """A client for another of the provider's models that has nothing of its own to close.

        None where each model needs its own client.
        """
        return None

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


def _sendable(text: str) -> str:
    """``text`` without half surrogates, which no wire and no page takes."""
    return text.encode(errors="replace").decode()


def estimate_tokens(text: str) -> int:
    """CJK ≈ 0.6 and other characters ≈ 0.25 tokens each: between today's large vocabularies."""
    wide = sum(1 for character in text if character > "\u2e7f")
    return round(0.6 * wide + 0.25 * (len(text) - wide))


class Clients:
    """Opens clients by name and keeps those that hold something, until :meth:`aclose`.

    A provider's connections are opened once an event loop, whatever names are typed after it;
    a local model's client is kept under its name, and only names of the settings and of the
    catalogue have one.
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
        self._unbound: dict[str, LLMClientInterface] = {}

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
        # A local model's window is as large as it is opened, up to what it was trained on.
        return info.model_copy(update={"context": min(self.settings.local_context, info.context)})

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
                variable=PROVIDERS[info.provider].key.upper(),
            )
        kind = _client_class(info)
        kept = self._unbound
        if kind.bound:
            kept = self._open.setdefault(asyncio.get_running_loop(), {})
        if info.spec in kept:
            return kept[info.spec]
        alike = (c.for_model(info) for c in kept.values() if c.info.provider == info.provider)
        shared = next(filter(None, alike), None)
        return shared or kept.setdefault(info.spec, kind(info, self.settings))

    async def open(self, spec: str = "") -> LLMClientInterface:
        """:meth:`get`, with the SDK imported beside the loop: no other answer waits for that."""
        if self._injected is None and self.available(info := self.info(spec)):
            await asyncio.to_thread(_client_class, info)
        return self.get(spec)

    def available(self, info: ModelInfo) -> bool:
        """Whether the settings hold what ``info``'s provider asks for."""
        provider = PROVIDERS[info.provider]
        names = [name for name in (provider.key, provider.server) if name]
        return not provider.key or any(getattr(self.settings, name) for name in names)

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
                _client_class(info)(info, self.settings)

    def listed(self) -> list[ModelInfo]:
        """What a page offers: the default, what else the settings name, then the catalogue."""
        named = [self.info(f"local:{name}") for name in self.settings.local_models]
        offered = [self.info(), *named, *self.catalog.models.values()]
        return list({info.spec: info for info in offered}.values())

    async def aclose(self) -> None:
        """Close every client, each on the loop that it is bound to as far as that still runs.

        Raises the first of the errors that came, after all others were closed too.
        """
        here = asyncio.get_running_loop()
        kept = [(here, self._unbound), *self._open.items()]
        self._unbound, self._open = {}, WeakKeyDictionary()
        errors: list[Exception] = []
        for loop, clients in kept:
            for client in clients.values():
                try:
                    await _close(client, loop)
                except Exception as error:  # noqa: BLE001 - one's fault must not keep another open
                    errors.append(error)
        if errors:
            raise errors[0]


def _client_class(info: ModelInfo) -> type[LLMClientInterface]:
    kind: type[LLMClientInterface] = importlib.import_module(PROVIDERS[info.provider].module).Client
    return kind


async def _close(client: LLMClientInterface, loop: asyncio.AbstractEventLoop) -> None:
    if loop is asyncio.get_running_loop():
        await client.aclose()
    elif loop.is_running():
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(client.aclose(), loop))
    else:  # its connections went with its loop, and can't be closed again
        with contextlib.suppress(RuntimeError):
            await client.aclose()


def open_client(spec: str, settings: Settings | None = None) -> LLMClientInterface:
    """A client on its own, outside a lab: ``open_client("openai:gpt-5-mini")``."""
    settings = settings or Settings()
    return Clients(settings, Catalog(settings.data_dir / "models.yaml")).get(spec)
