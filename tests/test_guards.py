import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persona_lab.errors import EmptyMessage, InputError, MessageTooLong
from persona_lab.guards import InputValidator

validate = InputValidator(2000).validate_message


def test_ordinary_text_passes_unchanged() -> None:
    text = "こんにちは！ <b>返品</b>は？\n\t'; DROP TABLE agent; -- {{ name }} 👩‍👩‍👧"
    assert validate(text) == text


def test_characters_that_nobody_sees_and_that_change_the_rest_are_removed() -> None:
    assert validate("a\x00b\x1bc\x7f\u202ed\u2066e\ufdd0f\U0001fffeg\ud800h") == "abcdefgh"


def test_line_ends_become_newlines() -> None:
    assert validate("a\r\nb\rc") == "a\nb\nc"


def test_decomposed_kana_are_composed() -> None:
    assert validate(unicodedata.normalize("NFD", "ガギグ")) == "ガギグ"


def test_the_kanji_of_a_name_stay_as_typed() -> None:
    assert validate("\ufa19田") == "\ufa19田"


@pytest.mark.parametrize("text", ["", "  \n\t　", "\u200b\u200d", "\x00\u202e", "\ufeff", "\u3164"])
def test_a_message_without_a_visible_character_is_empty(text: str) -> None:
    with pytest.raises(EmptyMessage):
        validate(text)


def test_a_message_that_is_too_long_is_refused_with_both_numbers() -> None:
    assert len(validate("あ" * 2000)) == 2000
    with pytest.raises(MessageTooLong) as refused:
        validate("あ" * 100_000)
    assert refused.value.details == {"length": 100_000, "limit": 2000}


def test_length_is_counted_after_cleaning() -> None:
    assert len(validate(unicodedata.normalize("NFD", "が" * 2000))) == 2000


@given(st.text(st.characters()))
def test_cleaning_twice_changes_nothing_more_and_leaves_storable_text(text: str) -> None:
    clean = InputValidator().clean(text)
    assert InputValidator().clean(clean) == clean
    clean.encode("utf-8")


@pytest.mark.parametrize("text", [None, 5, b"a", ["a"]])
def test_what_is_no_text_is_refused_as_such(text: object) -> None:
    with pytest.raises(InputError) as refused:
        validate(text)  # type: ignore[arg-type]
    assert refused.value.code == "invalid_input"
