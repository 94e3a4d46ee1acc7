"""The client pool: create clients by name and reuse them.

``provider:model`` names a client: ``openai:gpt-5-mini``, ``local:gemma-3-270m``, ``mock:echo``.
A provider is one module of this package; see :mod:`persona_lab.clients.registry`. The facts about
its models are in ``data/models.yaml``.
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

from cachetools import TTLCache

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

MAX_CONTEXTS, CONTEXT_TTL_S = 256, 600.0
"""Models whose context is remembered, and for how many seconds. A server may load another."""


class ClientPool:
    """Creates clients by name and keeps them until :meth:`aclose`.

    All models of a remote provider share one set of connections for each event loop. A local model
    has its own client. Only local models in the settings or in the catalog can be opened.
    """

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        *,
        injected: LLMClientInterface | None = None,
        wrap: Callable[[LLMClientInterface], LLMClientInterface] = lambda client: client,
    ) -> None:
        """Create an empty pool.

        Args:
            settings: The settings.
            catalog: Facts about the models.
            injected: A client to use for every model, for tests.
            wrap: Wraps each new client in middleware.

        Raises:
            ConfigurationError: A key can't be read.
        """
        self.keys: ApiKeys | UserKeys = ApiKeys(settings)
        self._shared_pool: ClientPool | None = None
        self.catalog = catalog
        self._injected = injected
        self._wrap = wrap
        self._files: dict[str, ModelInfo] = {}
        self._contexts: TTLCache[str, int] = TTLCache(MAX_CONTEXTS, CONTEXT_TTL_S)
        """The contexts that servers said, by ``provider:model``; 0 if a server says none."""
        self._reset()

    def _reset(self) -> None:
        """Start with no clients."""
        self._open: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, LLMClientInterface]] = (
            WeakKeyDictionary()
        )
        self._unbound: dict[str, LLMClientInterface] = {}
        self._retired: WeakKeyDictionary[
            asyncio.AbstractEventLoop, list[tuple[float, LLMClientInterface]]
        ] = WeakKeyDictionary()
        """Clients whose key was replaced, with the time of the replacement in seconds."""
        self._closing: set[asyncio.Task[None]] = set()

    def with_user_keys(
        self, wrap: Callable[[LLMClientInterface], LLMClientInterface]
    ) -> tuple[ClientPool, UserKeys]:
        """Create a pool for one visitor, which can use the visitor's keys.

        The new pool opens its own connections to a provider for which the visitor has a key. It
        takes all other clients from this pool. The caller must close it.

        Args:
            wrap: Wraps each client that uses a key of the visitor in middleware.

        Returns:
            The pool and the store for the visitor's keys.

        Raises:
            TypeError: This pool already belongs to a visitor.
        """
        shared = self.keys
        if not isinstance(shared, ApiKeys):
            raise TypeError("this pool already has user keys")
        private = copy.copy(self)
        private.keys = keys = shared.with_user_keys()
        private._shared_pool = self
        private._wrap = wrap
        private._reset()
        return private, keys

    @property
    def user_key_providers(self) -> frozenset[str]:
        """Providers that use the visitor's key."""
        return self.keys.providers if isinstance(self.keys, UserKeys) else frozenset()

    def user_pays(self, info: ModelInfo) -> bool:
        """Return whether the visitor's account pays for a call.

        It doesn't if the settings name a server for the provider: the operator runs that server.
        """
        custom_url = get_provider(info.provider).custom_url(self.settings)
        return info.provider in self.user_key_providers and not custom_url

    @property
    def settings(self) -> Settings:
        """The settings with the current keys."""
        return self.keys.settings

    def info(self, spec: str = "") -> ModelInfo:
        """Return the facts about a model.

        Args:
            spec: ``provider:model``; "" for the default model.

        Raises:
            UnknownModel: There is no such model.
            ModelUnavailable: The file of a local model can't be read.
        """
        if self._injected is not None:
            return self._injected.info
        info = self.catalog.find(spec or self.settings.default_model)
        if not info.is_local:
            context = self._contexts.get(info.spec) if info.is_context_assumed else None
            return info if context is None else _with_context(info, context)
        if info.spec not in self.catalog.models:
            info = self._named_file(info)
        # The settings limit the context of a local model; its training limits it too.
        return info.model_copy(update={"context": min(self.settings.local_context, info.context)})

    def _named_file(self, info: ModelInfo) -> ModelInfo:
        """Return the facts that a local file states about its model.

        Only files in the settings are allowed. A name that a visitor types must not open a path
        on this machine or start a download.
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
        """Return the client for a model. This must be called from a running event loop.

        Args:
            spec: ``provider:model``; "" for the default model.

        Raises:
            UnknownModel: There is no such model.
            MissingKey: The provider needs a key that isn't set.
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
        clients = self._unbound
        if kind.bound:
            clients = self._open.setdefault(asyncio.get_running_loop(), {})
        self._retire(clients, info.provider)
        if info.spec in clients:
            return clients[info.spec]
        same_provider = (c for c in clients.values() if c.info.provider == info.provider)
        shared = next(filter(None, (c.for_model(info) for c in same_provider)), None)
        if shared is not None:
            return shared
        return clients.setdefault(info.spec, self._wrap(kind(info, self.settings)))

    async def open(self, spec: str = "") -> LLMClientInterface:
        """Return the client like :meth:`get`, but import the SDK in a thread.

        The import doesn't block the event loop.
        """
        if self._injected is None:
            await asyncio.to_thread(self._prepare, self.info(spec))
        return self.get(spec)

    async def measure_context(self, info: ModelInfo, client: LLMClientInterface) -> ModelInfo:
        """Return ``info`` with the context that the server says, if nothing else says it.

        Args:
            info: The model.
            client: Its client.
        """
        if not info.is_context_assumed:
            return info
        if info.spec not in self._contexts:
            self._contexts[info.spec] = await client.fetch_context() or 0
        return _with_context(info, self._contexts[info.spec])

    def _prepare(self, info: ModelInfo) -> None:
        provider = get_provider(info.provider)
        if self.keys.changing and provider.key_setting:
            self.keys.refresh()
        if self.available(info):
            import_libraries(*provider.libraries)

    def _retire(self, clients: dict[str, LLMClientInterface], provider: str) -> None:
        """Remove the clients of ``provider`` whose key has changed from ``clients``.

        Such a client stays open for its running answers. It is closed after twice the total
        timeout, when these must have ended.
        """
        declared = get_provider(provider)
        retired = self._retired.setdefault(asyncio.get_running_loop(), [])
        for spec, client in list(clients.items()):
            if not declared.key_setting or client.info.provider != provider:
                continue
            if declared.api_key(client.settings) != declared.api_key(self.settings):
                retired.append((time.monotonic(), clients.pop(spec)))
                expired = time.monotonic() - 2 * self.settings.llm_total_timeout
                while retired[0][0] < expired:
                    closing = asyncio.create_task(retired.pop(0)[1].aclose())
                    self._closing.add(closing)
                    closing.add_done_callback(self._closing.discard)

    def _check_key(self, info: ModelInfo) -> None:
        if not self.available(info):
            raise _missing_key(info)

    def available(self, info: ModelInfo) -> bool:
        """Return whether the settings have the key or server that the provider needs."""
        return get_provider(info.provider).is_configured(self.settings)

    def options(self, info: ModelInfo, **overrides: Any) -> Options:
        """Return the options for a call.

        The settings override ``models.yaml``, and ``overrides`` override both.

        Args:
            info: The model.
            **overrides: Fields of :class:`~persona_lab.types.Options`.

        Raises:
            InvalidOption: An override isn't valid, or the provider doesn't support that form of
                structured output.
        """
        settings = self.settings
        chosen: dict[str, Any] = info.sampling.model_dump(exclude_none=True)
        remote_timeout = self._remote_timeout(info)
        chosen |= {
            "timeout": settings.local_timeout if info.is_local else remote_timeout,
            "connect_timeout": settings.llm_connect_timeout,
            "idle_timeout": settings.llm_idle_timeout or remote_timeout,
            "total_timeout": settings.llm_total_timeout,
            "retries": settings.llm_retries,
        }
        if settings.llm_temperature is not None:
            chosen["temperature"] = settings.llm_temperature
        if settings.llm_max_tokens is not None:
            chosen["max_tokens"] = settings.llm_max_tokens
        options = replace(Options(), **(chosen | check_options(overrides)))
        for form in STRUCTURED_OUTPUT_OPTIONS:
            if getattr(options, form) and form not in get_provider(info.provider).structured_output:
                value = repr(info.name)
                raise InvalidOption(info.spec, option=form, why="no_such_form", value=value)
        return options

    def _remote_timeout(self, info: ModelInfo) -> float:
        """Return the timeout of a remote model, in seconds.

        Thoughts aren't an answer, so a model that thinks first is silent for longer. A model of
        which that isn't known may think. ``LLM_TIMEOUT`` applies to all models if it is the only
        one that is set.
        """
        given = self.settings
        is_set = "llm_timeout" in given.model_fields_set
        if info.thinks and "llm_thinking_timeout" in given.model_fields_set:
            is_set = False
        if is_set or info.thinks is False or info.is_local or info.is_practice:
            return given.llm_timeout
        return max(given.llm_timeout, given.llm_thinking_timeout)

    def fallback_chain(self, spec: str = "") -> list[ModelInfo]:
        """Return a model and its fallback models.

        A model that uses the visitor's key has no fallback models.

        Args:
            spec: ``provider:model``; "" for the default model.

        Raises:
            UnknownModel: A model doesn't exist.
            ModelUnavailable: The file of a local model can't be read.
        """
        first = self.info(spec)
        if self._injected is not None or first.provider in self.user_key_providers:
            return [first]
        infos = [first, *map(self.info, self.settings.fallback_models)]
        return list({info.spec: info for info in infos}.values())

    def check_fallback_models(self) -> None:
        """Check that every fallback model can be used.

        Raises:
            UnknownModel: A model doesn't exist.
            MissingKey: A provider needs a key that isn't set.
            ModelUnavailable: The file of a local model can't be read.
        """
        for info in map(self.info, self.settings.fallback_models):
            self._check_key(info)
            if info.is_practice:
                _client_class(info)(info, self.settings)

    def check(self) -> None:
        """Check the models that the settings name.

        Only a remote provider knows whether its model exists, so this can't be checked.

        Raises:
            UnknownModel: A model doesn't exist.
            ModelUnavailable: The file of a local model can't be read.
        """
        for info in self.listed():
            if info.is_practice and self._injected is None:
                _client_class(info)(info, self.settings)

    def listed(self) -> list[ModelInfo]:
        """Return the models for the page: the default, the others in the settings, the catalog."""
        named = [self.info(f"local:{name}") for name in self.settings.local_models]
        offered = [*self.fallback_chain(), *named, *self.catalog.models.values()]
        return list({info.spec: info for info in offered}.values())

    async def aclose(self) -> None:
        """Close every client on its event loop, if that loop still runs.

        All clients are closed even if one fails.

        Raises:
            Exception: The first error of a client.
        """
        here = asyncio.get_running_loop()
        to_close = [(here, [*self._unbound.values()])]
        for loop, retired in self._retired.items():
            to_close.append((loop, [client for _, client in retired]))
        to_close += [(loop, [*clients.values()]) for loop, clients in self._open.items()]
        self._reset()
        errors: list[Exception] = []
        for loop, clients in to_close:
            for client in clients:
                try:
                    await _close(client, loop)
                except Exception as error:  # noqa: BLE001 - the other clients must be closed
                    errors.append(error)
        if errors:
            raise errors[0]


def _missing_key(info: ModelInfo) -> MissingKey:
    variable = get_provider(info.provider).key_setting.upper()
    return MissingKey(provider=info.provider, model=info.name, variable=variable)


def _with_context(info: ModelInfo, context: int) -> ModelInfo:
    """Return ``info`` with a context that its server said; 0 means that it said none."""
    if not context:
        return info
    return info.model_copy(update={"context": context, "is_context_assumed": False})


def _client_class(info: ModelInfo) -> type[LLMClientInterface]:
    kind: type[LLMClientInterface] = provider_module(info.provider).Client
    return kind


async def _close(client: LLMClientInterface, loop: asyncio.AbstractEventLoop) -> None:
    if loop is asyncio.get_running_loop():
        await client.aclose()
    elif loop.is_running():
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(client.aclose(), loop))
    else:  # the loop has ended and its connections with it
        with contextlib.suppress(RuntimeError):
            await client.aclose()


def open_client(spec: str, settings: Settings | None = None) -> LLMClientInterface:
    """Create a single client without a lab: ``open_client("openai:gpt-5-mini")``.

    Args:
        spec: ``provider:model``.
        settings: The settings; by default those of the environment.

    Returns:
        The client. The caller must close it.
    """
    settings = settings or Settings()
    return ClientPool(settings, Catalog(settings.data_dir / "models.yaml")).get(spec)
