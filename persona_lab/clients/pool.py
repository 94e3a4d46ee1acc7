"""Clients: one seam to every model.

A client is a :meth:`~LLMClientInterface.stream` of :class:`~persona_lab.types.Chunk`; the rest
comes with the base class. ``provider:model`` names one: ``openai:gpt-5-mini``,
``local:gemma-3-270m``, ``mock:echo``. A new provider is one file in this package; see
:mod:`persona_lab.clients.registry`. What its models accept is in ``data/models.yaml``.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

from persona_lab.clients.api_keys import ApiKeys, UserKeys
from persona_lab.clients.base import LLMClientInterface
from persona_lab.clients.catalog import Catalog, ModelInfo
from persona_lab.clients.options import STRUCTURED_OUTPUT_OPTIONS, check_options
from persona_lab.clients.registry import get_provider, provider_module
from persona_lab.errors import (
    InvalidOption,
    MissingKey,
    UnknownModel,
)
from persona_lab.lazy_imports import import_libraries
from persona_lab.settings import Settings
from persona_lab.types import Options


class ClientPool:
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
        self.keys: ApiKeys | UserKeys = ApiKeys(settings)
        self._shared_pool: ClientPool | None = None
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

    def with_user_keys(
        self, around: Callable[[LLMClientInterface], LLMClientInterface]
    ) -> tuple[ClientPool, UserKeys]:
        """These for a visitor, and where their own keys go. Whom they have a key for is asked over
        connections of their own, with ``around`` put around each client; all others are the
        house's. Whoever made it closes it."""
        house = self.keys
        if not isinstance(house, ApiKeys):
            raise TypeError("own keys stand in place of the house's, not of others' own")
        own = copy.copy(self)
        own.keys = keys = house.with_user_keys()
        own._shared_pool = self
        own._around = around
        own._forget()
        return own, keys

    @property
    def user_key_providers(self) -> frozenset[str]:
        """Providers that are asked with a visitor's own key."""
        return self.keys.providers if isinstance(self.keys, UserKeys) else frozenset()

    def user_pays(self, info: ModelInfo) -> bool:
        """Whether a visitor's own account pays: a server of the house's takes any key."""
        custom_url = get_provider(info.provider).custom_url(self.settings)
        return info.provider in self.user_key_providers and not custom_url

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
            from persona_lab.clients.local import probe
            from persona_lab.clients.weights import find_local_weights

            path = find_local_weights(info, self.settings)
            if path is None:
                return info
            facts = probe(path)
            self._files[info.name] = info.model_copy(update=facts)
        return self._files[info.name]

    def get(self, spec: str = "") -> LLMClientInterface:
        """The client for ``spec``, or the default's. Call it from a running loop.

        Raises UnknownModel; MissingKey when its provider needs a key that isn't set.
        """
        if self._injected is not None:
            return self._injected
        info = self.info(spec)
        if self._shared_pool is not None:
            if info.provider not in self.user_key_providers:
                return self._shared_pool.get(spec)
            if get_provider(info.provider).api_key(self.settings) is None:
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
        provider = get_provider(info.provider)
        if self.keys.changing and provider.key_setting:
            self.keys.refresh()
        if self.available(info):
            import_libraries(*provider.libraries)

    def _retire(self, kept: dict[str, LLMClientInterface], provider: str) -> None:
        """Leave clients whose key has changed to the answers that they are still giving, and close
        those whose answers must be over by now."""
        declared = get_provider(provider)
        retired = self._retired.setdefault(asyncio.get_running_loop(), [])
        for spec, client in list(kept.items()):
            if not declared.key_setting or client.info.provider != provider:
                continue
            if declared.api_key(client.settings) != declared.api_key(self.settings):
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
        return get_provider(info.provider).is_configured(self.settings)

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
        for form in STRUCTURED_OUTPUT_OPTIONS:
            if getattr(options, form) and form not in get_provider(info.provider).structured_output:
                value = repr(info.name)
                raise InvalidOption(info.spec, option=form, why="no_such_form", value=value)
        return options

    def fallback_chain(self, spec: str = "") -> list[ModelInfo]:
        """Facts of ``spec``, or of the default model, and of those that stand in for it: nobody
        does where a visitor asks with a key of their own.

        Raises UnknownModel, ModelUnavailable.
        """
        first = self.info(spec)
        if self._injected is not None or first.provider in self.user_key_providers:
            return [first]
        infos = [first, *map(self.info, self.settings.fallback_models)]
        return list({info.spec: info for info in infos}.values())

    def check_fallback_models(self) -> None:
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
        offered = [*self.fallback_chain(), *named, *self.catalog.models.values()]
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
    variable = get_provider(info.provider).key_setting.upper()
    return MissingKey(provider=info.provider, model=info.name, variable=variable)


def _client_class(info: ModelInfo) -> type[LLMClientInterface]:
    kind: type[LLMClientInterface] = provider_module(info.provider).Client
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
    return ClientPool(settings, Catalog(settings.data_dir / "models.yaml")).get(spec)
