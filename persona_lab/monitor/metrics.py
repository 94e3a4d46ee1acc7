"""Metrics for Prometheus, in a registry of the lab's own.

Labels have few values, whatever visitors type. A model has its name if the catalog or the settings
have it, else it is "other". Users and personas are no labels. Cache, circuit breakers, queues and
local engines count by themselves; their numbers are read at each scrape.

prometheus_client is imported for the first generation or the first scrape, not at the start.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_lab.db.generations import FailedAttempt
from persona_lab.settings import PROVIDER_NAMES

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

    from persona_lab.db.generations import GenerationResult
    from persona_lab.llama import EngineStats

OTHER = "other"
METRIC_PREFIX = "persona_lab"

ANSWER_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 8, 13, 20, 30, 60, 120, 300, 600)
"""Buckets of the histogram of whole answers, in seconds."""
FIRST_TOKEN_BUCKETS_S = (0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20, 30, 60)
"""Buckets of the histogram of first tokens, in seconds."""

SERVER_LIMITS = {
    "too_many_requests": "requests_per_minute",
    "tokens_spent": "tokens_per_day",
    "house_spent": "tokens_per_day_total",
}
"""Error code → the limit of this server that it means. No model was called."""
LIMITS = SERVER_LIMITS | {
    "rate_limit": "provider_rate",
    "quota": "provider_quota",
    "circuit_open": "breaker",
}
"""The same with the limits of providers."""
KINDS = frozenset({"chat", "try", "compare", "summary", "api"})
STATUSES = frozenset({"ok", "stopped", "failed"})

Circuits = Callable[[], Mapping[tuple[str, str, str], str]]
"""Returns the state of each circuit breaker by provider, address and model."""


class ModelLabels:
    """The labels of models: a model without a known name is "other"."""

    def __init__(self, models: Iterable[str]) -> None:
        """``models`` are those, as ``provider:model``, that have a name of their own."""
        self._models = frozenset(models)

    def __call__(self, spec: str) -> tuple[str, str]:
        """Return provider and model for labels: a file's name, the mock without its options."""
        provider, _, name = spec.partition(":")
        if provider not in PROVIDER_NAMES:
            return OTHER, OTHER
        name = name if spec in self._models else name.partition("?")[0]
        if f"{provider}:{name}" not in self._models:
            return provider, OTHER
        return provider, Path(name).name


class Metrics:
    """Counts each finished generation. Methods may be called from any thread."""

    def __init__(
        self,
        models: Iterable[str],
        *,
        circuits: Circuits = dict,
        cache: Callable[[], tuple[int, int]] = lambda: (0, 0),
        engines: Callable[[], Iterable[EngineStats]] = tuple,
    ) -> None:
        """Create metrics without any count.

        Args:
            models: The models that have a name of their own, as ``provider:model``.
            circuits: Returns the states of circuit breakers.
            cache: Returns hits and misses of the response cache.
            engines: Returns the statistics of each local engine.
        """
        self.names = ModelLabels(models)
        self.queues: dict[str, Callable[[], int]] = {}
        """A queue's name → a function that returns its length. A queue's owner adds it here."""
        self._circuits = circuits
        self._cache = cache
        self._engines = engines
        self._created_instruments: _Instruments | None = None
        self._lock = threading.Lock()

    def observe(self, outcome: GenerationResult) -> None:
        """Count a finished generation."""
        record, instruments = outcome.record, self._instruments
        labels = self.names(outcome.spec)
        provider, model = labels
        kind = record.kind if record.kind in KINDS else OTHER
        status = record.status if record.status in STATUSES else OTHER
        instruments.turns.labels(provider, model, kind, status).inc()
        if outcome.code not in SERVER_LIMITS:
            instruments.seconds.labels(*labels).observe(record.total_ms / 1000)
        if record.first_token_ms is not None:
            instruments.first.labels(*labels).observe(record.first_token_ms / 1000)
        for name, tokens in {
            "prompt": record.prompt_tokens - record.cached_tokens,
            "cached": record.cached_tokens,
            "completion": record.completion_tokens,
        }.items():
            instruments.tokens.labels(*labels, name).inc(max(0, tokens))
        if record.error_type is not None:
            instruments.errors.labels(*labels, record.error_type).inc()
        last = FailedAttempt(outcome.spec, outcome.code or "", outcome.attempts)
        for spec, code, attempts in (*outcome.failed_attempts, last):
            if code in LIMITS:
                instruments.refusals.labels(*self.names(spec), LIMITS[code]).inc()
            instruments.retries.labels(*self.names(spec)).inc(max(0, attempts - 1))
        for each in outcome.failed_attempts:
            instruments.passed_over.labels(*self.names(each.spec)).inc()
        if record.cost is None:
            instruments.unpriced.labels(*labels).inc()
        else:
            instruments.cost.labels(*labels).inc(record.cost)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Return all metrics as text, and its content type.

        ``accept`` is the request's header; the text is OpenMetrics if it prefers that, else
        Prometheus' format.
        """
        from prometheus_client.exposition import choose_encoder

        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # an invalid version in the header
            encode, content_type = choose_encoder("")
        return encode(self.registry), content_type

    @property
    def registry(self) -> CollectorRegistry:
        """The registry of all metrics."""
        return self._instruments.registry

    @property
    def _instruments(self) -> _Instruments:
        with self._lock:
            if self._created_instruments is None:
                self._created_instruments = _Instruments(self)
            return self._created_instruments

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics whose numbers other parts count."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        hits, misses = self._cache()
        yield CounterMetricFamily(f"{METRIC_PREFIX}_cache_hits", "Answers from the cache.", hits)
        yield CounterMetricFamily(
            f"{METRIC_PREFIX}_cache_misses", "Questions it had none for.", misses
        )

        by_model = ("provider", "model")
        breakers = GaugeMetricFamily(
            f"{METRIC_PREFIX}_breakers",
            "Circuit breakers by their state.",
            labels=(*by_model, "state"),
        )
        found: dict[tuple[str, ...], int] = {}
        for (provider, _, name), state in self._circuits().items():
            names = self.names(f"{provider}:{name}")
            for each in ("closed", "open", "half_open"):
                found[*names, each] = found.get((*names, each), 0) + (each == state)
        for values, number in found.items():
            breakers.add_metric(values, number)
        yield breakers

        running = self._by_model()
        queue = GaugeMetricFamily(
            f"{METRIC_PREFIX}_queue_length", "Requests that wait for their turn.", labels=("queue",)
        )
        queue.add_metric(("local",), sum(stats.waiting for stats in running.values()))
        for name, length in self.queues.items():
            queue.add_metric((name,), length())
        yield queue

        for name, help_, value in _ENGINE_GAUGES:
            gauge = GaugeMetricFamily(f"{METRIC_PREFIX}_engine_{name}", help_, labels=("model",))
            for model, stats in running.items():
                gauge.add_metric((model,), value(stats))
            yield gauge
        for name, help_, value in _ENGINE_COUNTERS:
            counter = CounterMetricFamily(
                f"{METRIC_PREFIX}_engine_{name}", help_, labels=("model",)
            )
            for model, stats in running.items():
                counter.add_metric((model,), value(stats))
            yield counter

    def _by_model(self) -> dict[str, EngineStats]:
        """Return the engines' statistics by label, added up where two share one."""
        found: dict[str, EngineStats] = {}
        for stats in self._engines():
            model = self.names(f"local:{stats.name}")[1]
            found[model] = found[model] + stats if model in found else stats
        return found


_ENGINE_GAUGES: tuple[tuple[str, str, Callable[[EngineStats], float]], ...] = (
    ("cells", "Tokens that the engine's memory holds at most.", lambda f: f.cells),
    ("cells_used", "Tokens that it holds.", lambda f: f.cells_used),
    ("live", "Answers that are being written.", lambda f: f.live),
    ("waiting", "Answers that wait.", lambda f: f.waiting),
    (
        "reuse_ratio",
        "Share of the prompts' tokens that had been read before.",
        lambda f: f.reuse_ratio,
    ),
    (
        "tokens_per_second",
        "Tokens written a second while it was writing.",
        lambda f: f.tokens_per_second,
    ),
)
_ENGINE_COUNTERS: tuple[tuple[str, str, Callable[[EngineStats], float]], ...] = (
    ("prompt_tokens", "Tokens of the prompts that were begun.", lambda f: f.prompt_tokens),
    ("reused_tokens", "Those of them that had been read before.", lambda f: f.reused_tokens),
    ("written_tokens", "Tokens of answers.", lambda f: f.written_tokens),
    ("writing_seconds", "Time in which at least one answer was written.", lambda f: f.seconds),
)


class _Instruments:
    """The counters and histograms that :meth:`Metrics.observe` updates."""

    def __init__(self, metrics: Metrics) -> None:
        from prometheus_client import CollectorRegistry, Counter, Histogram
        from prometheus_client.process_collector import ProcessCollector
        from prometheus_client.registry import Collector

        class Read(Collector):
            def collect(self) -> Iterable[Metric]:
                return metrics.collect()

        self.registry = CollectorRegistry()
        by_model = ("provider", "model")

        def counter(name: str, help_: str, *labels: str) -> Any:
            return Counter(
                f"{METRIC_PREFIX}_{name}", help_, (*by_model, *labels), registry=self.registry
            )

        def histogram(name: str, help_: str, bounds: tuple[float, ...]) -> Any:
            return Histogram(
                f"{METRIC_PREFIX}_{name}", help_, by_model, buckets=bounds, registry=self.registry
            )

        self.turns = counter("turns", "Generations by how they ended.", "kind", "status")
        self.seconds = histogram("response_seconds", "Until an answer was over.", ANSWER_BUCKETS_S)
        self.first = histogram(
            "first_token_seconds", "Until its first token.", FIRST_TOKEN_BUCKETS_S
        )
        self.tokens = counter(
            "tokens",
            "Tokens. Those of the prompt that a provider or an engine had read before are cached, "
            "and not prompt.",
            "kind",
        )
        self.errors = counter("errors", "Generations that failed, by class of error.", "error")
        self.retries = counter("retries", "Further tries of a model.")
        self.passed_over = counter("passed_over", "Answers that another model stood in for.")
        self.refusals = counter("refusals", "Refusals by the limit that was reached.", "limit")
        self.cost = counter("cost_dollars", "What answers cost, in US dollars.")
        self.unpriced = counter("unpriced", "Generations whose price isn't known.")
        self.registry.register(Read())
        ProcessCollector(registry=self.registry)
