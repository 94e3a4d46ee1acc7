"""Build every part from the settings, once, and hand them on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self

from persona_lab.clients.base import LLMClientInterface
from persona_lab.clients.catalog import Catalog
from persona_lab.clients.middleware.rate_limit import RateLimitedClient, RateLimiter
from persona_lab.clients.middleware.response_cache import CachedClient, CacheManager
from persona_lab.clients.middleware.stack import ClientStack
from persona_lab.clients.middleware.wrapper import CallContext
from persona_lab.clients.pool import ClientPool
from persona_lab.clients.registry import get_provider
from persona_lab.comparison.runner import Comparison
from persona_lab.db.redis import RedisLink
from persona_lab.db.store import Store
from persona_lab.db.tables import Agent
from persona_lab.errors import ConfigurationError, MissingKey, ModelUnavailable, UnknownModel
from persona_lab.insights import Insights
from persona_lab.monitor import Monitor
from persona_lab.monitor.alerts import Alerts, Change
from persona_lab.monitor.logs import log_turn
from persona_lab.monitor.metrics import Metrics
from persona_lab.monitor.webhook import Webhook
from persona_lab.personas.demos import load_demos
from persona_lab.pipeline.context import ContextManager
from persona_lab.pipeline.fallback import ErrorHandler
from persona_lab.pipeline.input import InputValidator
from persona_lab.pipeline.service import LLMService
from persona_lab.prompts.builder import PromptBuilder
from persona_lab.prompts.templates import PromptTemplateEngine
from persona_lab.responses.output_filter import BlockReason, Moderator, OutputFilter
from persona_lab.responses.processor import ResponseProcessor
from persona_lab.responses.steps import ordered_steps
from persona_lab.responses.tone import Tones
from persona_lab.settings import LOCAL, Settings, load_settings
from persona_lab.translations import Translations, load_texts

if TYPE_CHECKING:
    from persona_lab.llama import EngineStats


@dataclass(frozen=True, slots=True)
class Lab:
    """The parts, by the names that the specification gives them. Made by :func:`open_lab`."""

    settings: Settings
    catalog: Catalog
    store: Store
    shared: RedisLink
    cache_manager: CacheManager
    rate_limiter: RateLimiter
    layers: ClientStack
    clients: ClientPool
    template_engine: PromptTemplateEngine
    prompt_builder: PromptBuilder
    context_manager: ContextManager
    response_processor: ResponseProcessor
    error_handler: ErrorHandler
    input_validator: InputValidator
    service: LLMService
    comparison: Comparison
    monitor: Monitor
    insights: Insights

    async def aclose(self) -> None:
        """Close models, connections and the database, in that order."""
        try:
            await self.service.aclose()
            await asyncio.to_thread(self.monitor.close)
            await self.shared.aclose()
            await self.clients.aclose()
        finally:
            await asyncio.to_thread(self.store.close)

    def close(self) -> None:
        """Close the lab where no event loop runs; see :meth:`aclose`."""
        asyncio.run(self.aclose())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()


def open_lab(
    settings: Settings | None = None,
    *,
    client: LLMClientInterface | None = None,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Lab:
    """Open a lab.

    This loads every template and text, migrates the database, adds the demo personas, and marks
    answers that a crash cut off.

    Args:
        settings: None reads them from the environment.
        client: Answers in place of all models, without retries, with cache and quotas around it.
        clock: Returns seconds.
        sleep: Waits between the tries of a model.

    Raises:
        ConfigurationError: A setting or a file is wrong. One line names the fault.
    """
    settings = settings if settings is not None else load_settings()
    catalog = Catalog(settings.data_dir / "models.yaml")
    shared = RedisLink(settings.redis_url)
    cache_manager, rate_limiter = _cache_and_limits(settings, shared)
    layers = _middleware(settings, cache_manager, rate_limiter, clock, sleep)
    clients = _client_pool(settings, catalog, client, layers)
    engine = PromptTemplateEngine(settings.templates_dir)
    prompt_builder = PromptBuilder(engine)
    fallback_texts = load_texts(settings.templates_dir, "fallbacks.yaml")
    error_handler = ErrorHandler(fallback_texts)
    output_filter = _output_filter(clients, fallback_texts)
    response_processor = _response_processor(settings, output_filter)
    input_validator = InputValidator(settings.max_message_length)
    summary_words = load_texts(settings.templates_dir, "summary.yaml")
    store = _open_store(settings)
    context_manager = ContextManager(
        store,
        max_context_length=settings.max_context_length,
        context_ttl=settings.context_ttl,
        summary_words=summary_words if settings.context_summary else None,
        shared=shared,
    )
    monitor = _monitor(settings, catalog, store, cache_manager, layers, client)
    service = LLMService(
        store=store,
        clients=clients,
        input_validator=input_validator,
        context_manager=context_manager,
        prompt_builder=prompt_builder,
        response_processor=response_processor,
        error_handler=error_handler,
        layers=layers,
        output_filter=output_filter,
        observers=[
            partial(log_turn, texts=settings.log_messages),
            monitor.metrics.observe,
            monitor.alerts.observe,
        ],
        clock=clock,
    )
    return Lab(
        settings=settings,
        catalog=catalog,
        store=store,
        shared=shared,
        cache_manager=cache_manager,
        rate_limiter=rate_limiter,
        layers=layers,
        clients=clients,
        template_engine=engine,
        prompt_builder=prompt_builder,
        context_manager=context_manager,
        response_processor=response_processor,
        error_handler=error_handler,
        input_validator=input_validator,
        service=service,
        comparison=Comparison(service),
        monitor=monitor,
        insights=Insights(store),
    )


# ── the parts, in the order of open_lab ───────────────────────────────────────────────────


def _cache_and_limits(settings: Settings, shared: RedisLink) -> tuple[CacheManager, RateLimiter]:
    return CacheManager(settings.response_cache_ttl, shared=shared), RateLimiter(
        settings.requests_per_minute,
        settings.tokens_per_day,
        total=settings.tokens_per_day_total,
        shared=shared,
    )


def _middleware(
    settings: Settings,
    cache_manager: CacheManager,
    rate_limiter: RateLimiter,
    clock: Callable[[], float],
    sleep: Callable[[float], Awaitable[None]],
) -> ClientStack:
    def limited(client: LLMClientInterface, call: CallContext) -> LLMClientInterface:
        return RateLimitedClient(client, rate_limiter, call)

    def cached(client: LLMClientInterface, call: CallContext) -> LLMClientInterface:
        return CachedClient(client, cache_manager, fresh=call.bypass_cache or call.user_key)

    return ClientStack(settings, clock=clock, sleep=sleep, outer=[limited, cached])


def _client_pool(
    settings: Settings,
    catalog: Catalog,
    injected: LLMClientInterface | None,
    layers: ClientStack,
) -> ClientPool:
    """Return the pool of clients.

    Raises:
        ConfigurationError: The settings name a model that can't be used.
    """
    clients = ClientPool(settings, catalog, injected=injected, wrap=layers.wrap_shared)
    _check_setting("LLM_FALLBACK", clients.check_fallback_models)
    _check_setting("LLM_MODEL, LOCAL_MODEL", clients.check)
    return clients


def _output_filter(clients: ClientPool, fallback_texts: Translations) -> OutputFilter:
    """Return the filter for answers, with the refusal texts of ``fallback_texts``.

    Raises:
        ConfigurationError: The filter's rules are wrong, or the moderator can't be used.
    """
    settings = clients.settings

    def refusal_text(agent: Agent, reason: BlockReason) -> str:
        name = agent.name.strip() or fallback_texts("blocked.nobody", agent.language)
        return fallback_texts(f"blocked.{reason}", agent.language, name=name)

    return OutputFilter(
        settings.templates_dir / "guards.yaml",
        refusal_text,
        personal_data=settings.mask_personal_data,
        words=settings.word_filter,
        limits=settings.role_limits,
        moderator=_moderator(clients),
    )


def _moderator(clients: ClientPool) -> Moderator | None:
    """Return the moderator that the settings name.

    Raises:
        ConfigurationError: It has neither a key nor a server of its own.
    """
    settings = clients.settings
    if settings.moderation == "off":
        return None
    from persona_lab.clients.moderation import OpenAIModerator

    if not get_provider("openai").is_configured(settings):
        raise ConfigurationError("MODERATION: openai needs OPENAI_API_KEY")
    return OpenAIModerator(lambda: clients.settings)


def _response_processor(settings: Settings, output_filter: OutputFilter) -> ResponseProcessor:
    tones = Tones(settings.templates_dir / "tones.yaml")  # checked also where it isn't used
    return ResponseProcessor(
        ordered_steps(output_filter.step, tones if settings.tone_adjustment else None)
    )


def _open_store(settings: Settings) -> Store:
    """Open the database, add the demo personas, and mark answers that a crash cut off."""
    demos = load_demos(settings.data_dir / "personas.yaml")
    store = Store(settings.database_url)
    try:
        store.seed_agents(demos)
        store.mark_interrupted()
    except BaseException:
        store.close()
        raise
    return store


def _monitor(
    settings: Settings,
    catalog: Catalog,
    store: Store,
    cache_manager: CacheManager,
    layers: ClientStack,
    injected: LLMClientInterface | None,
) -> Monitor:
    models = _named_models(settings, catalog)
    metrics = Metrics(
        models,
        circuits=layers.circuits.states,
        cache=lambda: (cache_manager.hits, cache_manager.misses),
        engines=_engines,
    )
    watched = frozenset([*models, *([injected.info.spec] if injected is not None else [])])
    webhook = None
    if settings.alert_webhook is not None:
        webhook = Webhook(settings.alert_webhook.get_secret_value(), proxies=settings.proxies)
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    alerts = Alerts(
        settings,
        cost_today=store.total_cost(today) if settings.alert_cost else 0.0,
        is_watched=watched.__contains__,
        receivers=[_alert_sender(settings, webhook)] if webhook is not None else [],
    )
    return Monitor(metrics, alerts, webhook)


def _alert_sender(settings: Settings, webhook: Webhook) -> Callable[[Change], None]:
    texts = load_texts(settings.templates_dir, "ui.yaml")

    def send(change: Change) -> None:
        webhook.send(lambda: change.as_message(texts))

    return send


def _named_models(settings: Settings, catalog: Catalog) -> list[str]:
    """Return the models that metrics name: those of the catalog and of the settings."""
    local = [f"{LOCAL}:{name}" for name in settings.local_models]
    return [*catalog.models, settings.default_model, *settings.fallback_models, *local]


def _engines() -> list[EngineStats]:
    from persona_lab.llama import running_engines

    return [engine.stats for engine in running_engines()]


def _check_setting(names: str, check: Callable[[], None]) -> None:
    """Run ``check``, and turn its error into a ConfigurationError with the settings' ``names``."""
    try:
        check()
    except MissingKey as error:
        needs = f"{error.provider}:{error.model} needs {error.details['variable']}"
        raise ConfigurationError(f"{names}: {needs}") from error
    except ModelUnavailable as error:
        raise ConfigurationError(f"{names}: {error}") from error
    except UnknownModel as error:
        unknown = f"{error.details['model']} is no model that is known"
        raise ConfigurationError(f"{names}: {unknown}") from error
