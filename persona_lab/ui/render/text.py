"""Text for the page: prompts as traced HTML, metadata as text."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from html import escape
from typing import Any

from persona_lab.personas.persona import PERSONA_FIELDS
from persona_lab.types import Prompt
from persona_lab.ui.session import Visitor


def _traced_html(prompt: Prompt) -> Iterator[str]:
    position = 0
    for span in prompt.trace.spans:
        yield escape(prompt.system[position : span.start])
        text = escape(prompt.system[span.start : span.end])
        colour = PERSONA_FIELDS[span.field].colour
        yield (
            f'<span class="from from-{span.field} shade-{colour}" data-field="{span.field}"'
            f' role="link" tabindex="-1">{text}</span>'
        )
        position = span.end
    yield escape(prompt.system[position:])


AMBER_SHARE = 0.75
"""The share of a model's context from which the meter warns."""


def meter_html(tokens: int, context: int, text: str) -> str:
    """Return ``text`` with a bar as HTML: how much of the model's context the prompt takes.

    Args:
        tokens: The number of tokens of the prompt.
        context: The length of the model's context window, in tokens.
        text: The text beside the bar.
    """
    state = "over" if tokens > context else "near" if tokens >= AMBER_SHARE * context else "calm"
    return (
        f'<span class="meter {state}"><meter min="0" max="{context}" value="{tokens}"'
        f' aria-hidden="true"></meter>{escape(text)}</span>'
    )


def prompt_html(
    prompt: Prompt, visitor: Visitor, *, tokens: int, context: int = 0, about: bool, price: str
) -> str:
    """Return the prompt panel as HTML: size, price, the rule of the template, and the text.

    Args:
        prompt: The prompt with its trace.
        visitor: The visitor, whose language is used.
        tokens: The number of tokens.
        context: The length of the model's context window, in tokens; 0 if it isn't known.
        about: Whether ``tokens`` is an estimate.
        price: The price as text.
    """
    translate = visitor.translate
    number = f"{tokens:,} / {context:,}" if context else f"{tokens:,}"
    count = translate("preview.tokens_about" if about else "preview.tokens", count=number)
    size = meter_html(tokens, context, count) if context else f"<span>{escape(count)}</span>"
    reason = prompt.trace.reasons.get(visitor.language, prompt.trace.reason)
    if prompt.trace.rule:
        rule = translate("preview.rule", number=prompt.trace.rule, reason=reason)
    else:
        rule = reason
    turns = "".join(turn_html(turn.role, turn.content, visitor) for turn in prompt.turns)
    kind = translate("preview.kind." + prompt.kind)
    note = (
        f'<p class="quiet">{escape(translate("preview.transcript_note"))}</p>'
        if prompt.kind == "transcript"
        else ""
    )
    return (
        f'<div class="figures">{size}<span>{escape(price)}</span>'
        f"<span>{escape(kind)}</span></div>"
        f'<p class="rule"><code>{escape(prompt.trace.template)}</code> ← {escape(rule)}</p>{note}'
        f'<div class="paper" tabindex="0"><pre class="prompt">{"".join(_traced_html(prompt))}</pre>'
        f"{turns}</div>"
    )


def turn_html(role: str, content: str, visitor: Visitor) -> str:
    """Return one prompt message as HTML, under the name of its role."""
    name = escape(visitor.translate("preview.turn." + role))
    return f'<div class="turn turn-{role}"><b>{name}</b><pre>{escape(content)}</pre></div>'


def format_seconds(milliseconds: float | None) -> str:
    """Format milliseconds as seconds with two decimals; a dash for None."""
    return "–" if milliseconds is None else f"{milliseconds / 1000:.2f}"


def format_cost(cost: float | None, visitor: Visitor) -> str:
    """Format a cost in US dollars: "free" for 0, "unknown" for None, in the visitor's language."""
    if cost is None:
        return visitor.translate("figures.cost_unknown")
    if cost == 0:
        return visitor.translate("figures.free")
    return f"${cost:,.2f}" if cost >= 1 else f"${cost:.4f}" if cost >= 0.0001 else f"${cost:.6f}"


def price_with_date(cost: float | None, day: date | None, visitor: Visitor) -> str:
    """Format a cost as :func:`format_cost` does, with the ``day`` of its price list."""
    price = format_cost(cost, visitor)
    if not cost or day is None:
        return price
    return visitor.translate("figures.price_of", price=price, date=day.isoformat())


def waiting_html(words: str, visitor: Visitor) -> str:
    """Return a placeholder for an answer. The page's script adds the waiting time."""
    unit = escape(visitor.translate("waiting.unit"))
    return f'<p class="quiet waiting" data-unit="{unit}">{escape(words)}</p>'


def answer_figures_html(metadata: dict[str, Any], visitor: Visitor) -> str:
    """Return the line under an answer as HTML: fallback model, latency, tokens and cost.

    A note comes first if the answer was cut off. The time to first token counts the first text
    that was shown: the tone filter holds back a sentence while it works on it.
    """
    if metadata.get("total_ms") is None:
        return ""
    usage = metadata.get("usage") or {}
    parts = [visitor.translate("figures.total", seconds=format_seconds(metadata["total_ms"]))]
    first = metadata.get("first_shown_ms") or metadata.get("first_token_ms")
    if first is not None or not metadata.get("fallback"):  # otherwise no model has answered
        parts.insert(0, visitor.translate("figures.first", seconds=format_seconds(first)))
        if metadata.get("cache_hit"):
            parts.append(visitor.translate("figures.cache_hit"))
        else:
            counts = {kind: usage.get(f"{kind}_tokens", 0) for kind in ("prompt", "completion")}
            parts.append(visitor.translate("figures.tokens", **counts))
        if usage.get("cached_tokens"):
            parts.append(visitor.translate("figures.cached", count=usage["cached_tokens"]))
        parts.append(format_cost(metadata.get("cost"), visitor))
    failed_models = metadata.get("fallback_from")
    if failed_models and not metadata.get("fallback"):
        names = {"model": metadata["spec"], "absent": failed_models[0]["model"]}
        parts.insert(0, visitor.translate("figures.stands_in", **names))
    note = "" if metadata.get("fallback") else _end_note(metadata.get("finish_reason"), visitor)
    notes = [note, _context_note(metadata.get("left_out"), visitor)]
    note = "".join(f'<p class="cut">{escape(text)}</p>' for text in notes if text)
    spans = "".join(f"<span>{escape(part)}</span>" for part in parts)
    return f'{note}<div class="figures">{spans}</div>'


def _context_note(left_out: dict[str, Any] | None, visitor: Visitor) -> str:
    """Return which messages the model didn't get; "" if it got all."""
    if not left_out:
        return ""
    key = "figures.left_out_assumed" if left_out["is_assumed"] else "figures.left_out"
    return visitor.translate(key, count=left_out["messages"], tokens=left_out["tokens"])


def _end_note(reason: str | None, visitor: Visitor) -> str:
    """Return what the page says about the end of an answer; "" if the model was finished."""
    if reason in (None, "stop"):
        return ""
    if reason == "length":
        return visitor.translate("figures.cut")
    return visitor.translate("figures.unknown_end", reason=reason)
