"""Costs: the table's prices by hand, overrides ahead of them, and unknown is never free."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from support.fakes import ChatUser, reply_with

from persona_lab.clients.catalog import Catalog, ModelInfo
from persona_lab.clients.pricing import PRICE_TABLE_DATE, cost, price_date, priced
from persona_lab.lab import Lab
from persona_lab.settings import ROOT, Settings
from persona_lab.types import Usage

LISTED = Catalog(Settings().data_dir / "models.yaml").models.values()


def info(spec: str, **fields: Any) -> ModelInfo:
    provider, _, name = spec.partition(":")
    return ModelInfo.model_validate({"provider": provider, "name": name, **fields})


@pytest.mark.parametrize(
    ("spec", "usage", "dollars"),
    [
        # 600 × 0.25 + 400 × 0.025 + 100 × 2 dollars a million
        ("openai:gpt-5-mini", Usage(1000, 100, cached_tokens=400), 360e-6),
        # 1,000 × 0.4 + 100 × 1.6
        ("openai:gpt-4.1-mini", Usage(1000, 100), 560e-6),
        # 200 × 0.4 + 800 × 0.1 + 50 × 1.6
        ("openai:gpt-4.1-mini-2025-04-14", Usage(1000, 50, cached_tokens=800), 240e-6),
        # 300 × 2 + 400 × 0.1 read + 300 × 2.5 written + 100 × 10
        ("anthropic:claude-sonnet-5-5", Usage(1000, 100, 400, written_tokens=300), 2390e-6),
        # 900 × 1 + 100 × 0.1 + 10 × 5
        ("anthropic:claude-haiku-4-5", Usage(1000, 10, cached_tokens=100), 960e-6),
        # above 100,000 tokens of prompt all cost five times as much: 200,000 × 0.5 + 100 × 2.5
        ("anthropic:claude-haiku-5-5", Usage(200_000, 100), 100_250e-6),
        ("anthropic:claude-haiku-5-5", Usage(100_000, 100), 10_050e-6),
    ],
)
def test_the_table_gives_what_a_hand_computes(spec: str, usage: Usage, dollars: float) -> None:
    assert cost(info(spec), usage) == pytest.approx(dollars, rel=1e-9)


def test_the_tables_own_sum_is_the_same_for_every_model_of_the_providers() -> None:
    from genai_prices import Usage as Counts
    from genai_prices.data_snapshot import get_snapshot

    table = get_snapshot()
    compared = 0
    for provider in table.providers:
        for model in provider.models if provider.id in ("openai", "anthropic") else []:
            ours = cost(
                info(f"{provider.id}:{model.id}"), Usage(150_000, 700, 4000, written_tokens=90)
            )
            if ours is None or provider.find_model(model.id) is not model:
                continue
            counts = Counts(
                input_tokens=150_000,
                cache_read_tokens=4000,
                cache_write_tokens=90,
                output_tokens=700,
            )
            theirs = model.calc_price(counts, provider)
            assert ours == pytest.approx(float(theirs.input_price + theirs.output_price)), model.id
            compared += 1
    assert compared > 50


@pytest.mark.parametrize("listed", LISTED, ids=lambda listed: listed.spec)
def test_every_model_on_offer_has_a_price(listed: ModelInfo) -> None:
    dollars = cost(listed, Usage(1000, 100))
    assert dollars == 0 if listed.free else dollars


@pytest.mark.parametrize(
    "spec", ["openai:llama3.3", "openai:gpt-99-typed", "anthropic:gpt-5-mini", "openai:\ud800"]
)
def test_an_unknown_price_is_unknown_and_not_nothing(spec: str) -> None:
    assert cost(info(spec), Usage(10, 1)) is None


def test_a_model_that_has_a_price_for_reading_only_has_none_for_an_answer() -> None:
    embedding = info("openai:text-embedding-3-small")
    assert cost(embedding, Usage(1000)) == pytest.approx(20e-6)
    assert cost(embedding, Usage(1000, 1)) is None


@pytest.mark.parametrize("spec", ["local:gemma-3-270m", "mock:echo", "local:/own.gguf"])
def test_this_machine_and_the_mock_are_free(spec: str) -> None:
    assert cost(info(spec), Usage(1000, 1000)) == 0
    assert price_date(info(spec)) is None


def test_what_took_no_token_is_free_whoever_it_was() -> None:
    assert cost(info("openai:unknown"), Usage()) == 0


def test_what_the_file_says_goes_ahead_of_the_table() -> None:
    usage = Usage(1000, 100, cached_tokens=400)
    both = {"input_price": 1, "output_price": 2}
    assert cost(info("openai:gpt-5-mini", **both), usage) == pytest.approx(1200e-6)
    assert cost(info("openai:own", **both, cached_price=0.5), usage) == pytest.approx(1000e-6)
    half = info("openai:gpt-5-mini", output_price=4)
    assert cost(half, usage) == pytest.approx((600 * 0.25 + 400 * 0.025 + 100 * 4) / 1e6)
    assert cost(info("openai:own", input_price=1), usage) is None


@pytest.mark.parametrize(
    ("server", "spec", "known"),
    [
        ("https://api.openai.com/v1", "openai:gpt-4.1-mini", True),
        ("https://openrouter.ai/api/v1", "openai:openai/gpt-4.1-mini", True),
        ("http://127.0.0.1:11434/v1", "openai:gpt-4.1-mini", False),
        ("https://proxy.example/v1", "openai:gpt-4.1-mini", False),
    ],
)
def test_a_price_is_the_servers_that_is_asked(server: str, spec: str, known: bool) -> None:
    assert (cost(info(spec), Usage(1000, 100), server=server) == pytest.approx(560e-6)) == known
    if not known:
        assert cost(info(spec), Usage(1000, 100), server=server) is None


def test_more_cached_than_there_was_is_all_of_it() -> None:
    whole = cost(info("openai:gpt-4.1-mini"), Usage(1000, 0, cached_tokens=1000))
    assert cost(info("openai:gpt-4.1-mini"), Usage(1000, 0, 5000, written_tokens=9)) == whole


async def test_prices_are_the_same_when_the_table_is_read_beside_the_loop() -> None:
    mini = info("openai:gpt-5-mini")
    assert await priced(mini, Usage(1000, 100)) == cost(mini, Usage(1000, 100))


def test_the_date_is_that_of_the_table_or_of_the_file() -> None:
    both = {"input_price": 1, "output_price": 2}
    assert price_date(info("openai:gpt-5-mini")) == PRICE_TABLE_DATE
    assert price_date(info("openai:x", **both)) is None
    assert price_date(info("openai:x", **both, price_date="2026-10-01")) == date(2026, 10, 1)
    with pytest.raises(ValidationError):
        info("openai:x", price_date="soon")


def test_another_table_is_looked_at_before_its_date_is_believed() -> None:
    pinned = re.search(r"^genai-prices==(\S+)$", (ROOT / "requirements.txt").read_text(), re.M)
    assert pinned is not None
    assert pinned[1] == version("genai-prices") == "0.2.3", (
        "look at the prices, set PRICE_TABLE_DATE"
    )


async def test_a_turn_costs_what_its_tokens_cost(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(reply_with("は", "い"), openai_api_key="key-for-tests")
    lab.clients.get().info = info("openai:gpt-4.1-mini")
    visitor = ChatUser(lab)
    reply = await lab.service.generate_response(message="やあ", **visitor.ids)
    assert reply.metadata["cost"] == pytest.approx((12 * 0.4 + 2 * 1.6) / 1e6)


def test_the_file_on_offer_says_how_prices_are_overridden() -> None:
    head = (Path(ROOT) / "data" / "models.yaml").read_text("utf-8").partition("models:")[0]
    assert {"input_price", "output_price", "cached_price", "price_date"} <= set(
        re.findall(r"`(\w+)`", head)
    )
