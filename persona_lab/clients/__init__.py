"""Clients: one seam to every model.

A client is a :meth:`~LLMClientInterface.stream` of :class:`~persona_lab.models.Chunk`; the rest
comes with the base class. ``provider:model`` names one: ``openai:gpt-5-mini``,
``local:gemma-3-270m``, ``mock:echo``. A new provider is one file in this folder with a class
``Client`` and a line in :data:`~persona_lab.settings.PROVIDERS` (and, if it asks for a key, a
setting and ``connect.key.<name>`` in ``templates/ui.yaml``); what its models accept stands in
``data/models.yaml``.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import importlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from weakref import WeakKeyDictionary

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
)

from persona_lab.errors import (
    ConfigurationError,
    InvalidOption,
    InvalidResponse,
    MissingKey,
    NoVision,
    Refused,
    UnknownModel,
)
from persona_lab.keys import Keys, OwnKeys
from persona_lab.letters import is_blank
from persona_lab.models import Chunk, Completion, Options, Prompt, Usage
from persona_lab.settings import PROVIDERS, ProviderName, Settings
from persona_lab.words import read_yaml


class Sampling(BaseModel):
    """Sampling of a model; what is left out is the provider's own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=100_000)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repeat_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None


def _as_json(schema: Any) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    try:
        return json.dumps(schema, allow_nan=False)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _schema(text: str) -> str:
    try:
        data = json.loads(text) if text else {}
        json.dumps(data, ensure_ascii=False, allow_nan=False).encode()  # or ValueError
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(data, dict):
        raise ValueError("not a JSON object")
    return text


NAME_LENGTH = 300
"""Characters of a model's name with its provider: they stand in records, logs and labels."""
FORMS = ("json_schema", "grammar")
"""Options that say what an answer must be."""

_Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Overrides(Sampling):
    """What a call may set, field by field, of :class:`~persona_lab.models.Options`."""

    stop: tuple[str, ...] | None = None
    json_schema: Annotated[str, BeforeValidator(_as_json), AfterValidator(_schema)] | None = None
    grammar: str | None = None
    timeout: _Seconds | None = None
    connect_timeout: _Seconds | None = None
    idle_timeout: _Seconds | None = None
    total_timeout: _Seconds | None = None
    retries: Annotated[int, Field(ge=0, le=10)] | None = None


def check_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` that are set, each of its right type.

    Raises InvalidOption for a name that none has, and for a value that can't be one.
    """
    try:
        return Overrides.model_validate(dict(options)).model_dump(exclude_none=True)
    except ValidationError as wrong:
        first = wrong.errors(include_url=False)[0]
        name = str(first["loc"][0])
        why = "unknown_option" if first["type"] == "extra_forbidden" else "option_value"
        value = repr(options[name])[:40]
        raise InvalidOption(f"{name}: {first['msg']}", option=name, why=why, value=value) from None


class ModelInfo(BaseModel):
    """What is known of a model: one entry of ``data/models.yaml``. A name that ends in ``*``
    stands for all that begin so and aren't listed; of several, the longest.

    ``context`` in tokens; ``input_price``, ``output_price`` and ``cached_price`` (of input that the
    provider had read before) in US dollars a million tokens, as of ``price_date``, each ahead of
    what :mod:`persona_lab.costs` knows; ``accepts``: sampling options that the provider takes for
    this model; ``prompt``: "chat" or "transcript" (a base model); ``examples``: whether example
    exchanges stand in the system text or go ahead of the conversation as turns.
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
    cached_price: float | None = None
    price_date: date | None = None
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
        self._families: dict[str, ModelInfo] = {}
        for number, entry in enumerate(entries, 1):
            try:
                info = ModelInfo.model_validate(entry)
            except ValidationError as wrong:
                first = wrong.errors(include_url=False)[0]
                where = ".".join(map(str, first["loc"]))
                raise ConfigurationError(
                    f"{path.name}: model {number}: {where}: {first['msg']}"
                ) from None
            if info.name.endswith("*"):
                self._families[info.spec[:-1]] = info
            else:
                self.models[info.spec] = info

    def find(self, spec: str) -> ModelInfo:
        """Facts for ``provider:model``; an empty model name means the provider's first.

        Raises UnknownModel for a provider that doesn't exist. A model that isn't listed is
        taken with the facts of its family, or with cautious ones: its provider decides whether it
        exists.
        """
        if not isinstance(spec, str) or spec != _sendable(spec) or len(spec) > NAME_LENGTH:
            raise UnknownModel(model=_sendable(str(spec)[:NAME_LENGTH]))
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
        alike = [begins for begins in self._families if spec.startswith(begins)]
        if alike:
            return self._families[max(alike, key=len)].model_copy(update={"name": name})
        return ModelInfo.model_validate({"provider": provider, "name": name, "source": name})


class LLMClientInterface(ABC):
    """A model that answers. ``info`` holds what is known of it."""

    bound: ClassVar[bool] = True
    """Whether it belongs to the event loop that it was first used on, as an SDK's client does."""

    @property
    def base_url(self) -> str:
        """The server that it asks; "" where there is none to choose."""
        return ""

    def __init__(self, info: ModelInfo, settings: Settings) -> None:
        self.info = info
        self.settings = settings

    @abstractmethod
    def stream(self, prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        """The answer as it comes; the last chunk has finish_reason, usage and model.

        Raises ProviderError: ModelTimeout where one of the options' timeouts ran out, NoVision for
        an image that the model can't read. Closing the generator closes the connection or frees
        the sequence.
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
        if is_blank(response.content):
            raise InvalidResponse(**who)

    def check_images(self, prompt: Prompt) -> None:
        """Raises NoVision when the model can't read what the prompt has in it."""
        if not self.info.vision and any(turn.images for turn in prompt.turns):
            raise NoVision(provider=self.info.provider, model=self.info.name)

    def for_model(self, info: ModelInfo) -> LLMClientInterface | None:
        """A client for another of the provider's models that has nothing of its own to close.

        None where each model needs its own client.
        """
        return None

    @property
    def ready(self) -> bool:
        """False while the first call would have to load something that takes time."""
        return True

    @property
    def loaded(self) -> float:
        """The share of it that is loaded, from 0 to 1."""
        return 1.0

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn here; 0 where only the provider knows."""
        return 0

    def check(self) -> None:  # noqa: B027 - only a provider knows what it would say
        """Whether it can be had, as far as that is known without asking. Raises ProviderError."""

    async def warm(self) -> None:  # noqa: B027 - most have nothing to load
        """Load what the first call would wait for. Raises ProviderError when it can't be."""

    async def read_ahead(self, prompts: Sequence[Prompt]) -> None:  # noqa: B027 - most can't
        """Read what all of ``prompts`` begin with, ahead of need and behind all else.

        Does nothing while the model isn't :attr:`ready`.
        """

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
        around: Callable[[LLMClientInterface], LLMClientInterface] = lambda client: client,
    ) -> None:
        """``injected`` answers in place of all; ``around`` puts a client's layers around it.

        Raises ConfigurationError for keys that can't be read.
        """
        self.keys: Keys | OwnKeys = Keys(settings)
        self._house: Clients | None = None
        self.catalog = catalog
        self._injected = injected
        self._around = around
        self._files: dict[str, ModelInfo] = {}
        self._forget()

    def _forget(self) -> None:
        self._open: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, LLMClientInterface]] = (
            WeakKeyDictionary()
        )
        self._unbound: dict[str, LLMClientInterface] = {}
        self._retired: WeakKeyDictionary[
            asyncio.AbstractEventLoop, list[tuple[float, LLMClientInterface]]
        ] = WeakKeyDictionary()
        """Since when, in seconds, and who."""
        self._closing: set[asyncio.Task[None]] = set()

    def with_own_keys(
        self, around: Callable[[LLMClientInterface], LLMClientInterface]
    ) -> tuple[Clients, OwnKeys]:
        """These for a visitor, and where their own keys go. Whom they have a key for is asked over
        connections of their own, with ``around`` put around each client; all others are the
        house's. Whoever made it closes it."""
        house = self.keys
        if not isinstance(house, Keys):
            raise TypeError("own keys stand in place of the house's, not of others' own")
        own = copy.copy(self)
        own.keys = keys = house.with_own()
        own._house = self
        own._around = around
        own._forget()
        return own, keys

    @property
    def own(self) -> frozenset[str]:
        """Providers that are asked with a visitor's own key."""
        return self.keys.providers if isinstance(self.keys, OwnKeys) else frozenset()

    def at_own_cost(self, info: ModelInfo) -> bool:
        """Whether a visitor's own account pays: a server of the house's takes any key."""
        server = PROVIDERS[info.provider].server
        return info.provider in self.own and not (server and getattr(self.settings, server))

    @property
    def settings(self) -> Settings:
        """The settings, with the keys that hold now."""
        return self.keys.settings

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
            info = self._named_file(info)
        # A local model's window is as large as it is opened, up to what it was trained on.
        return info.model_copy(update={"context": min(self.settings.local_context, info.context)})

    def _named_file(self, info: ModelInfo) -> ModelInfo:
        """A local file by what it says of itself.

        Only files that the settings name: what a visitor types must not open a path of this
        machine, nor download what they please.
        """
        if info.name not in self.settings.local_models:
            raise UnknownModel(model=info.spec)
        if info.name not in self._files:
            from persona_lab.clients import llama_cpp

            path = llama_cpp.weights_at_hand(info, self.settings)
            if path is None:
                return info
            facts = llama_cpp.probe(path)
            self._files[info.name] = info.model_copy(update=facts)
        return self._files[info.name]

    def get(self, spec: str = "") -> LLMClientInterface:
        """The client for ``spec``, or the default's. Call it from a running loop.

        Raises UnknownModel; MissingKey when its provider needs a key that isn't set.
        """
        if self._injected is not None:
            return self._injected
        info = self.info(spec)
        if self._house is not None:
            if info.provider not in self.own:
                return self._house.get(spec)
            if getattr(self.settings, PROVIDERS[info.provider].key) is None:
                raise _missing_key(info)
        self._check_key(info)
        kind = _client_class(info)
        kept = self._unbound
        if kind.bound:
            kept = self._open.setdefault(asyncio.get_running_loop(), {})
        self._retire(kept, info.provider)
        if info.spec in kept:
            return kept[info.spec]
        alike = (c.for_model(info) for c in kept.values() if c.info.provider == info.provider)
        shared = next(filter(None, alike), None)
        if shared is not None:
            return shared
        return kept.setdefault(info.spec, self._around(kind(info, self.settings)))

    async def open(self, spec: str = "") -> LLMClientInterface:
        """:meth:`get`, with the SDK imported beside the loop: no other answer waits for that."""
        if self._injected is None:
            await asyncio.to_thread(self._prepare, self.info(spec))
        return self.get(spec)

    def _prepare(self, info: ModelInfo) -> None:
        if self.keys.changing and PROVIDERS[info.provider].key:
            self.keys.refresh()
        if self.available(info):
            _client_class(info)

    def _retire(self, kept: dict[str, LLMClientInterface], provider: str) -> None:
        """Leave clients whose key has changed to the answers that they are still giving, and close
        those whose answers must be over by now."""
        key = PROVIDERS[provider].key
        retired = self._retired.setdefault(asyncio.get_running_loop(), [])
        for spec, client in list(kept.items()):
            if not key or client.info.provider != provider:
                continue
            if getattr(client.settings, key) != getattr(self.settings, key):
                retired.append((time.monotonic(), kept.pop(spec)))
                over = time.monotonic() - 2 * self.settings.llm_total_timeout
                while retired[0][0] < over:
                    closing = asyncio.create_task(retired.pop(0)[1].aclose())
                    self._closing.add(closing)
                    closing.add_done_callback(self._closing.discard)

    def _check_key(self, info: ModelInfo) -> None:
        if not self.available(info):
            raise _missing_key(info)

    def available(self, info: ModelInfo) -> bool:
        """Whether the settings hold what ``info``'s provider asks for."""
        provider = PROVIDERS[info.provider]
        names = [name for name in (provider.key, provider.server) if name]
        return not provider.key or any(getattr(self.settings, name) for name in names)

    def options(self, info: ModelInfo, **overrides: Any) -> Options:
        """How to ask a model: models.yaml, then the settings, then ``overrides``.

        Raises InvalidOption, also where its provider can't give answers of the form asked for.
        """
        given = self.settings
        chosen: dict[str, Any] = info.sampling.model_dump(exclude_none=True)
        chosen |= {
            "timeout": given.local_timeout if info.provider == "local" else given.llm_timeout,
            "connect_timeout": given.llm_connect_timeout,
            "idle_timeout": given.llm_idle_timeout or given.llm_timeout,
            "total_timeout": given.llm_total_timeout,
            "retries": given.llm_retries,
        }
        if given.llm_temperature is not None:
            chosen["temperature"] = given.llm_temperature
        if given.llm_max_tokens is not None:
            chosen["max_tokens"] = given.llm_max_tokens
        options = replace(Options(), **(chosen | check_options(overrides)))
        for form in FORMS:
            if getattr(options, form) and form not in PROVIDERS[info.provider].forms:
                value = repr(info.name)
                raise InvalidOption(info.spec, option=form, why="no_such_form", value=value)
        return options

    def chain(self, spec: str = "") -> list[ModelInfo]:
        """Facts of ``spec``, or of the default model, and of those that stand in for it: nobody
        does where a visitor asks with a key of their own.

        Raises UnknownModel, ModelUnavailable.
        """
        first = self.info(spec)
        if self._injected is not None or first.provider in self.own:
            return [first]
        infos = [first, *map(self.info, self.settings.fallback_models)]
        return list({info.spec: info for info in infos}.values())

    def check_stand_ins(self) -> None:
        """Whether those that stand in can. Raises UnknownModel, MissingKey, ModelUnavailable."""
        for info in map(self.info, self.settings.fallback_models):
            self._check_key(info)
            if info.provider == "mock":
                _client_class(info)(info, self.settings)

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
        offered = [*self.chain(), *named, *self.catalog.models.values()]
        return list({info.spec: info for info in offered}.values())

    async def aclose(self) -> None:
        """Close every client, each on the loop that it is bound to as far as that still runs.

        Raises the first of the errors that came, after all others were closed too.
        """
        here = asyncio.get_running_loop()
        kept = [(here, [*self._unbound.values()])]
        kept += [(loop, [client for _, client in held]) for loop, held in self._retired.items()]
        kept += [(loop, [*clients.values()]) for loop, clients in self._open.items()]
        self._forget()
        errors: list[Exception] = []
        for loop, clients in kept:
            for client in clients:
                try:
                    await _close(client, loop)
                except Exception as error:  # noqa: BLE001 - one's fault must not keep another open
                    errors.append(error)
        if errors:
            raise errors[0]


def _missing_key(info: ModelInfo) -> MissingKey:
    variable = PROVIDERS[info.provider].key.upper()
    return MissingKey(provider=info.provider, model=info.name, variable=variable)


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
