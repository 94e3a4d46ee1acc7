"""Export recorded generations as CSV that Excel opens directly, without message texts."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from datetime import tzinfo

from persona_lab.db.generations import GenerationRow
from persona_lab.ui.render.text import error_words
from persona_lab.ui.session import Visitor

MARK = "\ufeff"
"""The byte order mark: Excel needs it to detect UTF-8."""

COLUMNS = (
    "time", "kind", "persona", "provider", "model", "status", "error", "prompt_tokens",
    "cached_tokens", "completion_tokens", "first_token_ms", "total_ms", "cost", "cache_hit",
)  # fmt: skip
_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")


def spreadsheet(turns: Sequence[GenerationRow], zone: tzinfo, visitor: Visitor) -> str:
    """Write one CSV line per generation, under headings in the visitor's language.

    Times are ISO 8601 with their offset, latencies are in milliseconds, and costs in US dollars.
    An unknown value is an empty cell.

    Args:
        turns: The generations, in the order of the lines.
        zone: The time zone of the times.
        visitor: The visitor, whose language is used.

    Returns:
        The text of the file, with a byte order mark.
    """

    def label(group: str, value: str) -> str:
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
                label("kinds", turn.kind),
                escape_formula(persona),
                escape_formula(turn.provider),
                escape_formula(turn.model),
                label("statuses", turn.status),
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
    """Escape ``text`` so that a spreadsheet shows it and doesn't evaluate it as a formula.

    Full-width signs also begin a formula where the keyboard is Japanese.
    """
    line = " ".join(text.split())
    return f"'{line}" if line.startswith(_FORMULA) else line
