"""Recorded turns as a spreadsheet: CSV that Excel opens as it is, without what was said."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from datetime import tzinfo

from persona_lab.db.generations import GenerationRow
from persona_lab.ui.render.text import error_words
from persona_lab.ui.session import Visitor

MARK = "\ufeff"
"""By which Excel knows UTF-8."""

COLUMNS = (
    "time", "kind", "persona", "provider", "model", "status", "error", "prompt_tokens",
    "cached_tokens", "completion_tokens", "first_token_ms", "total_ms", "cost", "cache_hit",
)  # fmt: skip
_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")


def spreadsheet(turns: Sequence[GenerationRow], zone: tzinfo, visitor: Visitor) -> str:
    """A line for each turn under headings in the visitor's language.

    Times are ISO with their offset, waits in milliseconds, cost in US dollars; what isn't known is
    an empty cell.
    """

    def told(group: str, value: str) -> str:
        key = f"sheet.{group}.{value}"
        return visitor.translate(key) if key in visitor.words else escape_formula(value)

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(visitor.translate(f"sheet.{column}") for column in COLUMNS)
    for turn in turns:
        persona = turn.agent_name or ""
        if turn.demo:
            persona = visitor.translate("persona.demo", name=persona)
        writer.writerow(
            (
                turn.created_at.astimezone(zone).isoformat(timespec="seconds"),
                told("kinds", turn.kind),
                escape_formula(persona),
                escape_formula(turn.provider),
                escape_formula(turn.model),
                told("statuses", turn.status),
                error_words(turn.error_type, visitor) if turn.error_type else "",
                turn.prompt_tokens,
                turn.cached_tokens,
                turn.completion_tokens,
                turn.first_token_ms,
                turn.total_ms,
                turn.cost,
                int(turn.cache_hit),
            )
        )
    return MARK + text.getvalue()


def escape_formula(text: str) -> str:
    """``text`` as one that a spreadsheet shows and doesn't calculate.

    Full-width signs begin a formula, too, where the keyboard is Japanese.
    """
    line = " ".join(text.split())
    return f"'{line}" if line.startswith(_FORMULA) else line
