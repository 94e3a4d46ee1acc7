"""What other programs and formats make of a card."""

from __future__ import annotations

import pytest
from support.card_files import CARDS, OWN_CASES, dump, v3

from persona_lab.personas.cards import (
    FORMATS,
    PROGRAMS,
    Card,
    compatibility,
    format_losses,
    read_card,
    write_card,
)
from persona_lab.settings import ROOT
from persona_lab.translations import Translations

TEXTS = Translations(ROOT / "templates" / "cards.yaml")
LORE = v3(
    first_mes="x",
    scenario="y",
    nickname="z",
    character_book={
        "scan_depth": 2,
        "entries": [
            {"keys": ["京都"], "content": "a", "priority": 1},
            {"keys": ["a.b"], "content": "@@depth 2\nb", "use_regex": True, "case_sensitive": True},
        ],
    },
)


def every_card() -> list[Card]:
    files = [path.read_bytes() for path in sorted(CARDS.glob("**/*.*"))]
    return [read_card(data) for data in [*files, *OWN_CASES.values(), dump(LORE)]]


def test_each_row_has_a_text_in_both_languages() -> None:
    for card in every_card():
        rows = [row for program in PROGRAMS for row in compatibility(card, program)]
        rows += [row for format_ in FORMATS for row in format_losses(card, format_)]
        for row in rows:
            if row.key:
                assert TEXTS(row.key, "ja", **row.details) != TEXTS(row.key, "en", **row.details)


def test_each_program_has_a_name() -> None:
    assert all(f"program.{program}" in TEXTS for program in PROGRAMS)


@pytest.mark.parametrize(
    ("program", "source", "fate", "key"),
    [
        ("sillytavern", "scenario", "used", "reads.prompt"),
        ("sillytavern", "nickname", "kept", "reads.kept"),
        ("sillytavern", "character_book.scan_depth", "kept", "reads.own_setting"),
        ("sillytavern", "character_book.entries.keys", "used", "reads.japanese_keys"),
        ("sillytavern", "character_book.entries.use_regex", "kept", "reads.regex_by_slashes"),
        ("sillytavern", "character_book.entries.case_sensitive", "kept", "reads.own_setting"),
        ("sillytavern", "character_book.entries.content", "used", "reads.decorators"),
        ("risuai", "nickname", "used", "reads.v3"),
        ("v2", "nickname", "kept", "reads.kept"),
        ("persona_lab", "nickname", "kept", ""),
        ("persona_lab", "character_book", "used", "row.lore"),
    ],
)
def test_program_reads_a_field(program: str, source: str, fate: str, key: str) -> None:
    rows = {row.source: row for row in compatibility(read_card(dump(LORE)), program)}  # type: ignore[arg-type]
    assert (rows[source].fate, rows[source].key) == (fate, key)


def test_rows_name_the_entries_concerned() -> None:
    rows = {row.source: row for row in compatibility(read_card(dump(LORE)), "sillytavern")}
    assert rows["character_book.entries.keys"].details == {"numbers": "1"}
    assert rows["character_book.entries.content"].details == {"numbers": "2"}


def test_absent_field_makes_no_row() -> None:
    card = read_card(dump(v3(first_mes="x")))
    for program in PROGRAMS:
        assert {row.source for row in compatibility(card, program)} <= {"name", "first_mes"}


@pytest.mark.parametrize("format_", FORMATS)
def test_what_is_not_said_to_be_lost_survives(format_: str) -> None:
    if format_ == "text":
        return
    for card in every_card():
        lost = {row.source for row in format_losses(card, format_) if row.fate == "lost"}  # type: ignore[arg-type]
        again = read_card(write_card(card, format_))  # type: ignore[arg-type]
        assert again.data == card.data
        assert (again.picture == card.picture) == ("picture" not in lost)
        kept = {path for path in card.members if f"file:{path}" not in lost}
        assert again.members.keys() == kept
        assert (again.prefix == card.prefix) == ("prefix" not in lost)


def test_text_says_what_it_leaves_out() -> None:
    lost = {row.source for row in format_losses(read_card(dump(LORE)), "text")}
    assert lost == {"nickname", "character_book"}
