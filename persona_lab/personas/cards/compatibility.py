"""What other programs make of a card, and what a format has no place for.

The tables state what SillyTavern 1.12 and later, RisuAI and programs that know only V2 do with each
field, after their documentation and source. They concern the card at hand: a field that it doesn't
have makes no row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from persona_lab.personas.cards.document import PROMPT_FIELDS, V3_FIELDS
from persona_lab.personas.cards.mapping import map_card
from persona_lab.personas.cards.model import OWN, Card, Fate, Format, Row, outside_fields
from persona_lab.personas.cards.png import fits_png
from persona_lab.personas.cards.writer import fits_inline

Program = Literal["sillytavern", "risuai", "v2", "persona_lab"]
PROGRAMS: tuple[Program, ...] = get_args(Program)
_JAPANESE = re.compile("[\u3041-\u30ff\u3400-\u9fff]")
_DECORATOR = re.compile(r"^@@@?([a-z_]+)", re.MULTILINE)
_SILLYTAVERN_DECORATORS = {"activate", "dont_activate"}


@dataclass(frozen=True, slots=True)
class Reading:
    """How a program reads a field.

    Attributes:
        fate: Whether it uses the field, keeps it in the card, or loses it.
        key: What it does with it, as a key of ``templates/cards.yaml``.
    """

    fate: Fate
    key: str


_PROMPT = {
    "name": Reading("used", "reads.name"),
    "description": Reading("used", "reads.prompt"),
    "personality": Reading("used", "reads.prompt"),
    "scenario": Reading("used", "reads.prompt"),
    "first_mes": Reading("used", "reads.greeting"),
    "mes_example": Reading("used", "reads.examples"),
    "alternate_greetings": Reading("used", "reads.swipes"),
    "system_prompt": Reading("used", "reads.system_prompt"),
    "post_history_instructions": Reading("used", "reads.last_words"),
    "creator_notes": Reading("used", "reads.shown"),
    "creator": Reading("used", "reads.shown"),
    "character_version": Reading("used", "reads.shown"),
    "tags": Reading("used", "reads.tags"),
}
_KEPT = Reading("kept", "reads.kept")
_DROPPED = Reading("lost", "reads.dropped")
_READINGS: dict[Program, dict[str, Reading]] = {
    "sillytavern": {
        **_PROMPT,
        **dict.fromkeys(V3_FIELDS, _KEPT),
        "assets": Reading("kept", "reads.icon_only"),
        "picture": Reading("used", "reads.face"),
    },
    "risuai": {
        **_PROMPT,
        **dict.fromkeys(V3_FIELDS, Reading("used", "reads.v3")),
        "picture": Reading("used", "reads.face"),
    },
    "v2": {
        **_PROMPT,
        **dict.fromkeys(V3_FIELDS, _KEPT),
        "assets": _KEPT,
        "picture": Reading("used", "reads.face"),
    },
}


def compatibility(card: Card, program: Program) -> tuple[Row, ...]:
    """Return what ``program`` makes of each field that ``card`` has.

    In a row, ``target`` is empty, and ``key`` says what the program does with the field.
    """
    if program == "persona_lab":
        return map_card(card).rows
    readings = _READINGS[program]
    rows = [
        Row(name, "", readings[name].fate, readings[name].key)
        for name in (*_PROMPT, *V3_FIELDS)
        if card.data.get(name)
    ]
    rows += _unknown(card)
    if card.picture is not None:
        rows.append(Row("picture", "", readings["picture"].fate, readings["picture"].key))
    rows += [Row(f"file:{path}", "", *_file_fate(program)) for path in card.members]
    book = card.data.get("character_book")
    if book:
        rows += _BOOK_ROWS[program](book)
    return tuple(rows)


def format_losses(card: Card, format: Format) -> tuple[Row, ...]:  # noqa: A002 - as in write_card
    """Return what ``format`` has no place for, or holds in another place."""
    rows: list[Row] = []
    if format == "text":
        plan = map_card(card)
        used = {part for row in plan.rows for part in row.source.split(" + ") if row.target}
        used.discard("character_book")
        every = [name for name in (*_PROMPT, *V3_FIELDS, "character_book") if card.data.get(name)]
        rows += [Row(name, "", "lost", "format.text") for name in every if name not in used]
        rows += [Row(row.source, "", "lost", "format.text") for row in _unknown(card)]
    if format in ("v2-json", "v2-png"):
        late = [name for name in V3_FIELDS if card.data.get(name)]
        rows += [Row(name, "", "kept", "format.v3_in_extensions") for name in late]
    has_files = format in ("charx", "v2-png", "v3-png") or (
        format in ("json", "yaml") and fits_inline(card)
    )
    if card.picture is not None and not has_files:
        rows.append(Row("picture", "", "lost", "format.no_picture"))
    for path in card.members:
        if not has_files or (format.endswith("png") and not fits_png(path)):
            rows.append(Row(f"file:{path}", "", "lost", "format.no_files"))
    if card.prefix and format not in ("charx", "json", "yaml"):
        rows.append(Row("prefix", "", "lost", "format.no_files"))
    return tuple(rows)


def _unknown(card: Card) -> list[Row]:
    known = {*_PROMPT, *V3_FIELDS, *PROMPT_FIELDS, "extensions", "character_book"}
    rows = [Row(name, "", "kept", "reads.unknown") for name in card.data if name not in known]
    rows += [
        Row(f"extensions.{name}", "", "kept", "reads.kept")
        for name in card.data["extensions"]
        if name != OWN
    ]
    return rows + [Row(f"../{name}", "", "kept", "reads.unknown") for name in outside_fields(card)]


def _file_fate(program: Program) -> tuple[Fate, str]:
    return ("used", "reads.files") if program == "risuai" else ("lost", "reads.dropped")


# ── lorebooks ─────────────────────────────────────────────────────────────────────────────


def _numbers(entries: Iterable[Mapping[str, Any]], has: Any) -> str:
    return ", ".join(str(number) for number, entry in enumerate(entries, 1) if has(entry))


def _sillytavern_book(book: Mapping[str, Any]) -> Iterator[Row]:
    entries = book["entries"]
    yield Row("character_book", "", "used", "reads.book_asked", {"count": len(entries)})
    for name in ("scan_depth", "token_budget", "recursive_scanning"):
        if name in book:
            yield Row(f"character_book.{name}", "", "kept", "reads.own_setting")
    checks: dict[str, tuple[Any, Fate, str]] = {
        "keys": (lambda e: _JAPANESE.search("".join(e["keys"])), "used", "reads.japanese_keys"),
        "priority": (lambda e: "priority" in e, "kept", "reads.kept"),
        "case_sensitive": (
            lambda e: "case_sensitive" in e and "case_sensitive" not in e["extensions"],
            "kept",
            "reads.own_setting",
        ),
        "use_regex": (
            lambda e: e.get("use_regex") and not all(key.startswith("/") for key in e["keys"]),
            "kept",
            "reads.regex_by_slashes",
        ),
        "content": (
            lambda e: set(_DECORATOR.findall(e["content"])) - _SILLYTAVERN_DECORATORS,
            "used",
            "reads.decorators",
        ),
    }
    for name, (has, fate, key) in checks.items():
        if numbers := _numbers(entries, has):
            yield Row(f"character_book.entries.{name}", "", fate, key, {"numbers": numbers})


def _risuai_book(book: Mapping[str, Any]) -> Iterator[Row]:
    entries = book["entries"]
    yield Row("character_book", "", "used", "reads.book", {"count": len(entries)})
    japanese = _numbers(entries, lambda e: _JAPANESE.search("".join(e["keys"])))
    if japanese:
        details = {"numbers": japanese}
        yield Row("character_book.entries.keys", "", "used", "reads.japanese_keys", details)


def _v2_book(book: Mapping[str, Any]) -> Iterator[Row]:
    entries = book["entries"]
    yield Row("character_book", "", "used", "reads.book_maybe", {"count": len(entries)})
    for name in ("use_regex", "case_sensitive"):
        if numbers := _numbers(entries, lambda e, name=name: e.get(name)):
            details = {"numbers": numbers}
            yield Row(f"character_book.entries.{name}", "", "kept", "reads.ignored", details)
    if numbers := _numbers(entries, lambda e: _DECORATOR.search(e["content"])):
        details = {"numbers": numbers}
        yield Row("character_book.entries.content", "", "used", "reads.decorators", details)


_BOOK_ROWS: dict[Program, Any] = {
    "sillytavern": _sillytavern_book,
    "risuai": _risuai_book,
    "v2": _v2_book,
}
