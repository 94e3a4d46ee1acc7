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


def prompt_html(prompt: Prompt, visitor: Visitor, *, tokens: int, about: bool, price: str) -> str:
    """Return the prompt panel as HTML: size, price, the rule of the template, and the text.

    Args:
        prompt: The prompt with its trace.
        visitor: The visitor, whose language is used.
        tokens: The number of tokens.
        about: Whether ``tokens`` is an estimate.
        price: The price as text.
    """
    translate = visitor.translate
    count = translate("preview.tokens_about" if about else "preview.tokens", count=f"{tokens:,}")
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
        f'<div class="figures"><span>{escape(count)}</span><span>{escape(price)}</span>'
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
