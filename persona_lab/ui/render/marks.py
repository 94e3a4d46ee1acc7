"""Marks on an answer as HTML: where it leaves the persona."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from html import escape

from persona_lab.personas.fidelity import Mark, marks
from persona_lab.personas.persona import Persona
from persona_lab.ui.session import Visitor

MAX_QUOTE = 30
"""Maximum length of a quotation, in characters. A longer one is cut."""


async def marks_of(reply: str, persona: Persona) -> list[Mark]:
    """Return the marks on an answer. They are found in a thread, which takes milliseconds."""
    return await asyncio.to_thread(marks, reply, persona)


def marks_html(found: Sequence[Mark], visitor: Visitor) -> str:
    """Return a list of marks; "" if there is none."""
    rows = "".join(f"<li>{_mark_html(mark, visitor)}</li>" for mark in found)
    return f'<ul class="marks">{rows}</ul>' if rows else ""


def _mark_html(mark: Mark, visitor: Visitor) -> str:
    """Return the rule, the quotation and what the persona says, with the rule's error rate."""
    quote = mark.quote if len(mark.quote) <= MAX_QUOTE else mark.quote[: MAX_QUOTE - 1] + "…"
    text = visitor.translate(f"marks.{mark.rule}", quote=quote)
    if mark.rule in ("first_person", "second_person") and mark.expected:
        text += f" → {mark.expected}"
    rate = mark.error_rate
    read = (
        visitor.translate("marks.error_rate", judged=rate.judged, wrong=rate.wrong)
        if rate.judged
        else visitor.translate("marks.no_error_rate")
    )
    field = escape(mark.field)
    return f'<span data-mark="{field}" title="{escape(read)}">{escape(text)}</span>'
