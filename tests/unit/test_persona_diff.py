"""The difference between two texts, and between two states of a persona."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persona_lab.personas.diff import TextPart, changed_fields, diff_text, field_text
from persona_lab.personas.persona import Persona


def shown(parts: list[TextPart]) -> str:
    marks = {"same": "{}", "added": "[+{}]", "removed": "[-{}]"}
    return "".join(marks[part.kind].format(part.text) for part in parts)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("", "", ""),
        ("同じ", "同じ", "同じ"),
        ("", "新しい", "[+新しい]"),
        ("古い", "", "[-古い]"),
        ("京都の女将です。", "大阪の女将です。", "[-京都][+大阪]の女将です。"),
        (
            "好きな飲み物はコーヒー。",
            "好きな飲み物はココア。",
            "好きな飲み物は[-コーヒー][+ココア]。",
        ),
        ("I like tea.", "I like coffee.", "I like [-tea][+coffee]."),
        ("a\nb\nc\n", "a\nc\n", "a\n[-b\n]c\n"),
        ("一行目\n二行目", "一行目\n二列目", "一行目\n二[-行][+列]目"),
    ],
)
def test_a_difference_is_shown_by_words(before: str, after: str, expected: str) -> None:
    assert shown(diff_text(before, after)) == expected


@given(st.text("あいう\nab ア", max_size=30), st.text("あいう\nab ア", max_size=30))
def test_the_parts_make_both_texts(before: str, after: str) -> None:
    parts = diff_text(before, after)
    assert "".join(part.text for part in parts if part.kind != "added") == before
    assert "".join(part.text for part in parts if part.kind != "removed") == after
    assert all(part.text for part in parts)
    assert all(one.kind != two.kind for one, two in pairwise(parts))


def test_two_long_texts_differ_as_a_whole_within_bounded_time() -> None:
    before, after = "あいうえお" * 2_000, "かきくけこ" * 2_000
    begun = time.monotonic()
    assert shown(diff_text(before, after)) == f"[-{before}][+{after}]"
    assert time.monotonic() - begun < 2


def test_changed_fields_come_in_the_order_of_the_form() -> None:
    before = Persona(name="さくら", tones=("敬語",)).to_dict()
    after = Persona(name="さくら", tones=("敬語", "関西弁"), background="港町").to_dict()
    changes = changed_fields(before, after)
    assert [change.field for change in changes] == ["background", "tones"]
    assert shown(changes[1].parts()) == "敬語[+\n関西弁]"


def test_a_field_that_a_stored_state_lacks_counts_as_empty() -> None:
    after = Persona(name="さくら", roles=("教師",)).to_dict()
    before = {name: value for name, value in after.items() if name != "roles"}
    assert [change.field for change in changed_fields(before, after)] == ["roles"]
    del after["roles"]
    assert changed_fields(before, after) == []


def test_examples_are_shown_as_exchanges() -> None:
    assert field_text([{"user": "やあ", "ai": "はい"}]) == "> やあ\nはい"
