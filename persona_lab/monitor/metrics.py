"""Figures for Prometheus, in a registry of the lab's own.

Labels have few values whatever visitors type: a model is called by its name where the catalogue
or the settings know it, else "other"; users and personas are no labels. What other parts count by
themselves (the cache, breakers, queues, local engines) is read from them when it is asked for.

prometheus_client is imported for the first turn or the first scrape, not at the start.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_lab.db.generations import FailedAttempt
from persona_lab.settings import PROVIDERS

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

    from persona_lab.db.generations import GenerationResult

OTHER = "other"
PREFIX = "persona_lab"

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 8, 13, 20, 30, 60, 120, 300, 600)
"""Bounds of the histogram of whole answers."""
FIRST_SECONDS = (0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20, 30, 60)
"""Bounds of that of first tokens."""

HOUSE_LIMITS = {
    "too_many_requests": "requests_per_minute",
    "tokens_spent": "tokens_per_day",
    "house_spent": "tokens_per_day_total",
}
"""Code of a refusal → which of this house's own limits it was: no model was asked."""
LIMITS = HOUSE_LIMITS | {
    "rate_limit": "provider_rate",
    "quota": "provider_quota",
    "circuit_open": "breaker",
}
"""The same with those of providers."""
KINDS = frozenset({"chat", "try", "compare", "summary", "api"})
STATUSES = frozenset({"ok", "stopped", "failed"})

Circuits = Callable[[], Mapping[tuple[str, str, str], str]]
"""The state of each breaker by provider, address and model."""


class Names:
    """What models are called in labels."""

    def __init__(self, known: Iterable[str]) -> None:
        """``known``: ``provider:model`` of those that have a name of their own."""
        self._known = frozenset(known)

    def __call__(self, spec: str) -> tuple[str, str]:
        """Provider and model. A file is called by its name, and the mock's manners are left out."""
        provider, _, name = spec.partition(":")
        if provider not in PROVIDERS:
            return OTHER, OTHER
        name = name if spec in self._known else name.partition("?")[0]
        if f"{provider}:{name}" not in self._known:
            return provider, OTHER
        return provider, Path(name).name


class Metrics:
    """Counts every :class:`~persona_lab.db.generations.Outcome` it is given. From any thread."""

    def __init__(
        self,
        known: Iterable[str],
        *,
        circuits: Circuits = dict,
        cache: Callable[[], tuple[int, int]] = lambda: (0, 0),
        engines: Callable[[], Iterable[Any]] = tuple,
    ) -> None:
        """``known`` as :class:`Names` takes it; ``cache`` gives hits and misses; ``engines`` those
        of local models, as :class:`persona_lab.llama.EngineStats`."""
        self.names = Names(known)
        self.queues: dict[str, Callable[[], int]] = {}
        """How many wait, by the name of the queue. Whoever has one puts it here."""
        self._circuits = circuits
        self._cache = cache
        self._engines = engines
        self._figures: _Counted | None = None
        self._first = threading.Lock()

    def observe(self, outcome: GenerationResult) -> None:
        record, counted = outcome.record, self._counted
        provider, model = who = self.names(outcome.spec)
        kind = record.kind if record.kind in KINDS else OTHER
        status = record.status if record.status in STATUSES else OTHER
        counted.turns.labels(provider, model, kind, status).inc()
        if outcome.code not in HOUSE_LIMITS:
            counted.seconds.labels(*who).observe(record.total_ms / 1000)
        if record.first_token_ms is not None:
            counted.first.labels(*who).observe(record.first_token_ms / 1000)
        for name, tokens in {
            "prompt": record.prompt_tokens - record.cached_tokens,
            "cached": record.cached_tokens,
            "completion": record.completion_tokens,
        }.items():
            counted.tokens.labels(*who, name).inc(max(0, tokens))
        if record.error_type is not None:
            counted.errors.labels(*who, record.error_type).inc()
        last = FailedAttempt(outcome.spec, outcome.code or "", outcome.attempts)
        for spec, code, attempts in (*outcome.failed_attempts, last):
            if code in LIMITS:
                counted.refusals.labels(*self.names(spec), LIMITS[code]).inc()
            counted.retries.labels(*self.names(spec)).inc(max(0, attempts - 1))
        for each in outcome.failed_attempts:
            counted.passed_over.labels(*self.names(each.spec)).inc()
        if record.cost is None:
            counted.unpriced.labels(*who).inc()
        else:
            counted.cost.labels(*who).inc(record.cost)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """All figures and their content type: OpenMetrics where ``accept``, the header of who
        asks, prefers it, else Prometheus' text."""
        from prometheus_client.exposition import choose_encoder

        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # a version that is none
            encode, content_type = choose_encoder("")
        return encode(self.registry), content_type

    @property
    def registry(self) -> CollectorRegistry:
        return self._counted.registry

    @property
    def _counted(self) -> _Counted:
        with self._first:
            if self._figures is None:
                self._figures = _Counted(self)
            return self._figures

    def read(self) -> Iterator[Metric]:
        """What others count."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        hits, misses = self._cache()
        yield CounterMetricFamily(f"{PREFIX}_cache_hits", "Answers from the cache.", hits)
        yield CounterMetricFamily(f"{PREFIX}_cache_misses", "Questions it had none for.", misses)

        who = ("provider", "model")
        breakers = GaugeMetricFamily(
            f"{PREFIX}_breakers", "Circuit breakers by their state.", labels=(*who, "state")
        )
        found: dict[tuple[str, ...], int] = {}
        for (provider, _, name), state in self._circuits().items():
            names = self.names(f"{provider}:{name}")
            for each in ("closed", "open", "half_open"):
                found[*names, each] = found.get((*names, each), 0) + (each == state)
        for labels, number in found.items():
            breakers.add_metric(labels, number)
        yield breakers

        running = self._by_model()
        queue = GaugeMetricFamily(
            f"{PREFIX}_queue_length", "Requests that wait for their turn.", labels=("queue",)
        )
        queue.add_metric(("local",), sum(figures.waiting for figures in running.values()))
        for name, length in self.queues.items():
            queue.add_metric((name,), length())
        yield queue

        for name, help_, value in _ENGINE_GAUGES:
            gauge = GaugeMetricFamily(f"{PREFIX}_engine_{name}", help_, labels=("model",))
            for model, figures in running.items():
                gauge.add_metric((model,), value(figures))
            yield gauge
        for name, help_, value in _ENGINE_COUNTERS:
            counter = CounterMetricFamily(f"{PREFIX}_engine_{name}", help_, labels=("model",))
            for model, figures in running.items():
                counter.add_metric((model,), value(figures))
            yield counter

    def _by_model(self) -> dict[str, Any]:
        """Figures of the engines; those of two that have one label are added up."""
        found: dict[str, Any] = {}
        for figures in self._engines():
            model = self.names(f"local:{figures.name}")[1]
            found[model] = found[model] + figures if model in found else figures
        return found


_ENGINE_GAUGES: tuple[tuple[str, str, Callable[[Any], float]], ...] = (
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
_ENGINE_COUNTERS: tuple[tuple[str, str, Callable[[Any], float]], ...] = (
    ("prompt_tokens", "Tokens of the prompts that were begun.", lambda f: f.prompt_tokens),
    ("reused_tokens", "Those of them that had been read before.", lambda f: f.reused_tokens),
    ("written_tokens", "Tokens of answers.", lambda f: f.written_tokens),
    ("writing_seconds", "Time in which at least one answer was written.", lambda f: f.seconds),
)


class _Counted:
    """The figures that are counted here."""

    def __init__(self, metrics: Metrics) -> None:
        from prometheus_client import CollectorRegistry, Counter, Histogram
        from prometheus_client.process_collector import ProcessCollector
        from prometheus_client.registry import Collector

        class Read(Collector):
            def collect(self) -> Iterable[Metric]:
                return metrics.read()

        self.registry = CollectorRegistry()
        who = ("provider", "model")

        def counter(name: str, help_: str, *labels: str) -> Any:
            return Counter(f"{PREFIX}_{name}", help_, (*who, *labels), registry=self.registry)

        def histogram(name: str, help_: str, bounds: tuple[float, ...]) -> Any:
            return Histogram(f"{PREFIX}_{name}", help_, who, buckets=bounds, registry=self.registry)

        self.turns = counter("turns", "Generations by how they ended.", "kind", "status")
        self.seconds = histogram("response_seconds", "Until an answer was over.", SECONDS)
        self.first = histogram("first_token_seconds", "Until its first token.", FIRST_SECONDS)
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
