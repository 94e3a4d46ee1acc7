"""What tokens cost, in US dollars.

Prices come from the table that the package genai-prices brings along: it is as old as the release
that is installed, and nothing is fetched. What ``data/models.yaml`` says of a model goes ahead of
it. A model that neither knows has no price, which is None and is said to be unknown: it isn't free.
Free are models of this machine, the mock, and whatever took no token, such as a cached answer.

Prices belong to who is asked, not to the name alone: ``gpt-4.1-mini`` at another server is that
server's. One that the table doesn't know, a proxy or a machine of one's own, has unknown prices.

What isn't looked at: batches, tools, pictures, and how long a provider keeps what it cached.
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

TABLE_DATE = date(2026, 11, 23)
"""When the table of the release that requirements.txt pins was looked at last."""

TABLE = ("genai_prices", "genai_prices.data")
"""0.1 s to import and 22 MB: for whom a provider's price is asked for first."""


async def priced(info: ModelInfo, usage: Usage, *, server: str = "") -> float | None:
    """:func:`cost`, with the table read beside the loop."""
    if _needs_table(info):
        await import_in_thread(*TABLE)
    return cost(info, usage, server=server)


def cost(info: ModelInfo, usage: Usage, *, server: str = "") -> float | None:
    """What ``usage`` costs with the model; None where that isn't known.

    ``server``: the address that is asked; "" for the provider's own. Tokens that the provider read
    from or wrote into its cache have their own prices where those are known, else that of input.
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
    return rates.of(usage)


def price_date(info: ModelInfo) -> date | None:
    """When the model's prices were right; None where nobody said so."""
    return TABLE_DATE if _needs_table(info) else info.price_date


def _needs_table(info: ModelInfo) -> bool:
    return not info.free and (info.input_price is None or info.output_price is None)


@dataclass(frozen=True, slots=True)
class _Rates:
    """US dollars a million tokens; None where nobody knows."""

    input: float | None = None
    output: float | None = None
    cached: float | None = None
    written: float | None = None

    def of(self, usage: Usage) -> float | None:
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
    """The table's rates for a prompt of that length.

    Its own sum takes what has no price for free, and a millisecond.
    """
    model = _entry(info.provider, info.name, server)
    if model is None:
        return _Rates()
    prices = model.get_prices(datetime.now(UTC))
    names = ("input_mtok", "output_mtok", "cache_read_mtok", "cache_write_mtok")
    return _Rates(*(_rate(getattr(prices, name, None), prompt_tokens) for name in names))


def _rate(price: Any, prompt_tokens: int) -> float | None:
    """Of a price that grows with the prompt, the step that it is on: it holds for all tokens."""
    for tier in reversed(getattr(price, "tiers", ())):
        if prompt_tokens > tier.start:
            return float(tier.price)
    price = getattr(price, "base", price)
    return None if price is None else float(price)


@functools.lru_cache(maxsize=1024)
def _entry(provider: str, name: str, server: str) -> Any:
    """The table's entry, None where it has none. Its own search keeps every name ever typed."""
    from genai_prices.data_snapshot import get_snapshot

    table = get_snapshot()
    try:
        theirs = table.find_provider(None, None if server else provider, server or None)
    except LookupError:
        return None
    return theirs.find_model(name, all_providers=table.providers)
