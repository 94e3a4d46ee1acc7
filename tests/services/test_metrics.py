"""Metrics: what Prometheus' own parser reads after scripted turns, and how few its labels are."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_families
from prometheus_client.parser import text_string_to_metric_families as families
from support.fakes import ChatUser, reply_with

from persona_lab.db.generations import FailedAttempt, GenerationResult
from persona_lab.db.tables import Generation
from persona_lab.errors import Offline, QuotaExceeded
from persona_lab.lab import Lab
from persona_lab.llama import EngineStats
from persona_lab.monitor.metrics import LIMITS, OTHER, Metrics, ModelLabels
from persona_lab.types import Chunk, Options, Prompt, Usage

MakeLab = Callable[..., Lab]

ASKED = "光合成とは何ですか？"
KNOWN = ("openai:gpt-5-mini", "mock:echo", "local:gemma")


class Read:
    """What a scrape gave: ``read("persona_lab_turns_total", status="ok")`` adds up what fits."""

    def __init__(self, metrics: Metrics) -> None:
        body, self.content_type = metrics.render()
        self.samples = [s for family in families(body.decode()) for s in family.samples]

    def __call__(self, name: str, **labels: str) -> float:
        return sum(
            s.value for s in self.samples if s.name == name and labels.items() <= s.labels.items()
        )

    def labels(self, label: str) -> set[str]:
        return {s.labels[label] for s in self.samples if label in s.labels}


def outcome(spec: str = "openai:gpt-5-mini", **fields: Any) -> GenerationResult:
    about = {
        name: fields.pop(name) for name in ("code", "attempts", "failed_attempts") if name in fields
    }
    provider, _, model = spec.partition(":")
    turn = {"user_id": "u", "agent_id": "a", "provider": provider, "model": model, "status": "ok"}
    return GenerationResult(Generation(**(turn | fields)), spec, **about)


# ── through the house ─────────────────────────────────────────────────────────────────────


async def test_turns_become_figures_that_a_parser_reads(make_lab: MakeLab) -> None:
    async def play(prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        yield Chunk("はい")
        yield Chunk(finish_reason="stop", usage=Usage(10, 15, cached_tokens=4), model="scripted-1")

    lab = make_lab(play)
    visitor = ChatUser(lab)
    for _ in range(3):
        await lab.service.generate_response(message=ASKED, **visitor.ids)
    read = Read(lab.monitor.metrics)
    assert read.content_type.startswith("text/plain")
    assert read("persona_lab_turns_total", status="ok", kind="chat") == 3
    assert read("persona_lab_response_seconds_count") == 3
    assert read("persona_lab_first_token_seconds_count") == 3
    assert read("persona_lab_response_seconds_bucket", le="+Inf") == 3
    assert read("persona_lab_tokens_total", kind="prompt") == 18
    assert read("persona_lab_tokens_total", kind="cached") == 12
    assert read("persona_lab_tokens_total", kind="completion") == 45
    assert read("persona_lab_cost_dollars_total") == 0
    assert read("persona_lab_errors_total") == 0


async def test_failures_are_counted_by_class_and_stops_are_none(make_lab: MakeLab) -> None:
    lab = make_lab(reply_with("は", error=Offline(provider="mock", model="scripted")))
    visitor = ChatUser(lab)
    await lab.service.generate_response(message=ASKED, **visitor.ids)
    events = lab.service.generate_streaming(message=ASKED, **visitor.ids)
    await anext(events)
    await events.aclose()
    read = Read(lab.monitor.metrics)
    assert read("persona_lab_errors_total", error="offline") == 1
    assert read("persona_lab_errors_total") == 1
    assert read("persona_lab_turns_total", status="failed") == 1
    assert read("persona_lab_turns_total", status="stopped") == 1


async def test_hits_and_misses_of_the_cache_are_counted(make_lab: MakeLab) -> None:
    lab = make_lab()
    visitor = ChatUser(lab)
    for _ in range(3):
        chat = lab.store.create_chat(user_id=visitor.user_id, agent_id=visitor.agent.id)
        await lab.service.generate_response(
            message=ASKED, chat_id=chat.id, agent_id=visitor.agent.id, user_id=visitor.user_id
        )
    read = Read(lab.monitor.metrics)
    assert read("persona_lab_cache_hits_total") == 2
    assert read("persona_lab_cache_misses_total") == 1


async def test_a_users_own_limit_is_told_apart_from_a_providers(make_lab: MakeLab) -> None:
    lab = make_lab(requests_per_minute=1, response_cache_ttl=0, llm_retries=0)
    visitor = ChatUser(lab)
    for model in ("mock:echo?fail=rate_limit", "mock:echo"):
        await lab.service.generate_response(message=ASKED, **visitor.ids, model=model)
    read = Read(lab.monitor.metrics)
    assert read("persona_lab_refusals_total", limit="provider_rate") == 1
    assert read("persona_lab_refusals_total", limit="requests_per_minute") == 1
    assert read("persona_lab_refusals_total") == 2
    assert read("persona_lab_response_seconds_count") == 1


async def test_breakers_are_shown_by_their_state(make_lab: MakeLab) -> None:
    lab = make_lab(llm_breaker_failures=1, llm_retries=0, requests_per_minute=0)
    visitor = ChatUser(lab)
    for model in ("mock:echo?fail=offline", "mock:echo"):
        await lab.service.generate_response(message=ASKED, **visitor.ids, model=model)
    read = Read(lab.monitor.metrics)
    assert read("persona_lab_breakers", model="echo", state="open") == 1
    assert read("persona_lab_breakers", model="echo", state="closed") == 1
    assert read("persona_lab_breakers", model="echo", state="half_open") == 0


async def test_a_stand_ins_answer_counts_whom_it_stands_in_for(make_lab: MakeLab) -> None:
    lab = make_lab(llm_fallback="mock:echo", llm_retries=0)
    await lab.service.generate_response(
        message=ASKED, **ChatUser(lab).ids, model="mock:echo?fail=quota"
    )
    read = Read(lab.monitor.metrics)
    assert read("persona_lab_passed_over_total") == 1
    assert read("persona_lab_refusals_total", limit="provider_quota") == 1
    assert read("persona_lab_errors_total") == 0


async def test_tries_of_a_model_that_was_stood_in_for_are_its_retries(make_lab: MakeLab) -> None:
    lab = make_lab(llm_fallback="mock:echo?tokens=5", llm_retries=2, sleep=_no_sleep)
    reply = await lab.service.generate_response(
        message=ASKED, **ChatUser(lab).ids, model="mock:echo?fail=overloaded"
    )
    [passed] = reply.metadata["fallback_from"]
    read = Read(lab.monitor.metrics)
    assert read("persona_lab_retries_total") == passed["attempts"] - 1 > 0


async def _no_sleep(seconds: float) -> None:
    """Time is money."""


async def test_odd_names_of_models_add_no_series(make_lab: MakeLab) -> None:
    lab = make_lab(requests_per_minute=0, llm_retries=0, openai_base_url="http://127.0.0.1:9/v1")
    visitor = ChatUser(lab)
    await lab.service.generate_response(message=ASKED, **visitor.ids)
    dice = random.Random(5)
    odd = ['{"', "\n", "\u2028", "猫", "../../etc", "a" * 500, 'x"}', "\\", "\ud800"]
    for number in range(500):
        name = f"{dice.choice(odd)}{number}"
        for spec in (f"openai:{name}", f"mock:{name}", f"{name}:x", f"local:{name}", name):
            lab.monitor.metrics.observe(
                outcome(
                    spec,
                    code="quota",
                    failed_attempts=(FailedAttempt(f"anthropic:{name}", "rate_limit"),),
                )
            )
        lab.layers.circuits.of(_client(name))
    read = Read(lab.monitor.metrics)
    assert read.labels("model") == {"echo", OTHER}
    assert read.labels("provider") == {"openai", "mock", "local", "anthropic", OTHER}
    assert read("persona_lab_turns_total", model=OTHER) == 2500
    assert read("persona_lab_breakers", state="closed", provider="openai") == 500
    assert len(read.samples) < 600
    users = {visitor.user_id, visitor.agent.id, visitor.chat.id, "u", "a"}
    assert not users & {value for s in read.samples for value in s.labels.values()}


def _client(name: str) -> Any:
    from types import SimpleNamespace

    return SimpleNamespace(info=SimpleNamespace(provider="openai", name=name), base_url="x")


async def test_each_lab_counts_for_itself(make_lab: MakeLab) -> None:
    one, other = make_lab(), make_lab()
    await one.service.generate_response(message=ASKED, **ChatUser(one).ids)
    assert Read(one.monitor.metrics)("persona_lab_turns_total") == 1
    assert Read(other.monitor.metrics)("persona_lab_turns_total") == 0


# ── by itself ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("spec", "label"),
    [
        ("openai:gpt-5-mini", ("openai", "gpt-5-mini")),
        ("mock:echo?rate=5", ("mock", "echo")),
        ("openai:gpt-5-mini-of-mine", ("openai", OTHER)),
        ("local:/srv/models/own.gguf", ("local", "own.gguf")),
        ("nobody:gpt-5-mini", (OTHER, OTHER)),
        ("", (OTHER, OTHER)),
    ],
)
def test_a_model_has_a_name_where_somebody_wrote_it_down(spec: str, label: tuple[str, str]) -> None:
    assert ModelLabels([*KNOWN, "local:/srv/models/own.gguf"])(spec) == label


def test_an_unknown_price_is_counted_as_that_and_not_as_nothing() -> None:
    metrics = Metrics(KNOWN)
    metrics.observe(outcome(cost=None))
    metrics.observe(outcome(cost=0.25))
    read = Read(metrics)
    assert read("persona_lab_unpriced_total", model="gpt-5-mini") == 1
    assert read("persona_lab_cost_dollars_total", model="gpt-5-mini") == 0.25


def test_kinds_and_states_that_nobody_knows_are_others() -> None:
    metrics = Metrics(KNOWN)
    metrics.observe(outcome(kind="x" * 99, status="y"))
    assert Read(metrics)("persona_lab_turns_total", kind=OTHER, status=OTHER) == 1


def test_every_limit_of_the_house_and_of_providers_has_a_name() -> None:
    metrics = Metrics(KNOWN)
    for code in LIMITS:
        metrics.observe(outcome(code=code))
    metrics.observe(outcome(code="offline"))
    assert Read(metrics)("persona_lab_refusals_total") == len(LIMITS)
    assert QuotaExceeded.code in LIMITS


def test_queues_are_read_when_asked_for() -> None:
    metrics = Metrics(KNOWN)
    waiting = [1, 2, 3]
    metrics.queues["page"] = waiting.__len__
    assert Read(metrics)("persona_lab_queue_length", queue="page") == 3
    waiting.clear()
    assert Read(metrics)("persona_lab_queue_length", queue="page") == 0


def test_a_local_engine_shows_its_memory_and_its_pace() -> None:
    def running() -> Iterator[EngineStats]:
        yield EngineStats("gemma", 4096, 300, 2, 5, 100, 40, 50, 48, 2.0)
        yield EngineStats("typed by somebody", 10, 1, 0, 0)
        yield EngineStats("gemma", 1024, 100, 1, 0, 100, 0, 10, 12, 1.0)

    read = Read(Metrics(KNOWN, engines=running))
    assert read("persona_lab_engine_cells", model="gemma") == 5120
    assert read("persona_lab_engine_cells_used", model="gemma") == 400
    assert read("persona_lab_engine_live", model="gemma") == 3
    assert read("persona_lab_engine_waiting", model="gemma") == 5
    assert read("persona_lab_engine_reuse_ratio", model="gemma") == 0.2
    assert read("persona_lab_engine_tokens_per_second", model="gemma") == 20
    assert read("persona_lab_engine_written_tokens_total", model="gemma") == 60
    assert read("persona_lab_engine_cells", model=OTHER) == 10
    assert read("persona_lab_queue_length", queue="local") == 5


@pytest.mark.parametrize("accept", ["", "text/plain;version=odd", "*/*", "a/b;;,", "text/html"])
def test_whatever_a_reader_accepts_they_get_text(accept: str) -> None:
    body, content_type = Metrics(KNOWN).render(accept)
    assert content_type.startswith("text/plain")
    assert list(families(body.decode()))


def test_who_prefers_open_metrics_gets_them() -> None:
    metrics = Metrics(KNOWN)
    metrics.observe(outcome(cost=1.5))
    body, content_type = metrics.render("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert list(open_families(body.decode()))


async def test_turns_on_many_threads_are_all_counted() -> None:
    metrics = Metrics(KNOWN)

    def many() -> None:
        for _ in range(200):
            metrics.observe(outcome(prompt_tokens=1))

    await asyncio.gather(*(asyncio.to_thread(many) for _ in range(8)))
    assert Read(metrics)("persona_lab_tokens_total", kind="prompt") == 1600
