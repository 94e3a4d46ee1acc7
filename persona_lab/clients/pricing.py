"""Calculate the cost of tokens, in US dollars.

Prices come from the table in the package genai-prices. The table has the age of the installed
release; this module downloads nothing. Prices in ``data/models.yaml`` override the table. A model
without a price in either has an unknown cost (None); it isn't free. Local models, the mock and
calls without tokens, such as cached answers, are free.

A price depends on the server, not only on the model's name: ``gpt-4.1-mini`` at another server has
the prices of that server. A server that the table doesn't contain has unknown prices.

This module ignores batches, tools, images and the lifetime of a provider's cache.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

from persona_lab.lazy_imports import import_in_thread

if TYPE_CHECKING:
    from persona_lab.clients.catalog import ModelInfo
    from persona_lab.types import Usage

PRICE_TABLE_DATE = date(2026, 11, 23)
"""The date of the table in the release that requirements.txt pins."""

PRICE_TABLE_MODULES = ("genai_prices", "genai_prices.data")
"""Modules of the table. They take 0.1 s and 22 MB, so the first lookup imports them."""


async def priced(info: ModelInfo, usage: Usage, *, server: str = "") -> float | None:
    """Return the :func:`cost`; a thread imports the table, so the event loop isn't blocked."""
    if _needs_table(info):
        await import_in_thread(*PRICE_TABLE_MODULES)
    return cost(info, usage, server=server)


def cost(info: ModelInfo, usage: Usage, *, server: str = "") -> float | None:
    """Calculate the cost of ``usage``.

    Tokens that the provider read from or wrote to its cache have separate prices. If these are
    unknown, the price of input applies.

    Args:
        info: The model.
        usage: The token counts.
        server: The address of the server; "" for the provider's official server.

    Returns:
        US dollars, or None if a price is unknown.
    """
    if info.free or not usage.total_tokens:
        return 0.0
    rates = _Rates()
    if _needs_table(info):
        rates = _by_table(info, usage.prompt_tokens, server)
    if info.input_price is not None:
        rates = _Rates(info.input_price, rates.output, info.cached_price)
    if info.output_price is not None:
        rates = _Rates(rates.input, info.output_price, rates.cached, rates.written)
    return rates.cost(usage)


def price_date(info: ModelInfo) -> date | None:
    """Return the date of the model's prices; None if it is unknown."""
    return PRICE_TABLE_DATE if _needs_table(info) else info.price_date


def _needs_table(info: ModelInfo) -> bool:
    return not info.free and (info.input_price is None or info.output_price is None)


@dataclass(frozen=True, slots=True)
class _Rates:
    """Prices in US dollars per million tokens; None if unknown."""

    input: float | None = None
    output: float | None = None
    cached: float | None = None
    written: float | None = None

    def cost(self, usage: Usage) -> float | None:
        """Return the cost of ``usage`` in US dollars; None if a price is unknown."""
        cached = min(usage.cached_tokens, usage.prompt_tokens)
        written = min(usage.written_tokens, usage.prompt_tokens - cached)
        parts = (
            (usage.prompt_tokens - cached - written, self.input),
            (cached, self.input if self.cached is None else self.cached),
            (written, self.input if self.written is None else self.written),
            (usage.completion_tokens, self.output),
        )
        total = 0.0
        for tokens, rate in parts:
            if tokens and rate is None:
                return None
            total += tokens * (rate or 0.0)
        return total / 1e6


def _by_table(info: ModelInfo, prompt_tokens: int, server: str) -> _Rates:
    """Return the rates in the table for a prompt of this length.

    The table's own sum isn't used: it counts unknown prices as 0 and takes a millisecond.
    """
    model = _entry(info.provider, info.name, server)
    if model is None:
        return _Rates()
    prices = model.get_prices(datetime.now(UTC))
    names = ("input_mtok", "output_mtok", "cache_read_mtok", "cache_write_mtok")
    return _Rates(*(_rate(getattr(prices, name, None), prompt_tokens) for name in names))


def _rate(price: Any, prompt_tokens: int) -> float | None:
    """Return the price for a prompt of this length. The price of a tier applies to all tokens."""
    for tier in reversed(getattr(price, "tiers", ())):
        if prompt_tokens > tier.start:
            return float(tier.price)
    price = getattr(price, "base", price)
    return None if price is None else float(price)


@functools.lru_cache(maxsize=1024)
def _entry(provider: str, name: str, server: str) -> Any:
    """Return the entry in the table, None if there is none.

    This cache is bounded. The cache of the table keeps every name that visitors type.
    """
    from genai_prices.data_snapshot import get_snapshot

    table = get_snapshot()
    try:
        found = table.find_provider(None, None if server else provider, server or None)
    except LookupError:
        return None
    return found.find_model(name, all_providers=table.providers)
