"""Words that the persona never uses."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from persona_lab.answer_text.passages import Kind
from persona_lab.japanese.morphology import Word, words_of
from persona_lab.personas.fidelity.answer import Answer, Part, Token
from persona_lab.personas.fidelity.mark import CannotMeasure, Fault

_FIELD = "forbidden_words"


def forbidden_word(answer: Answer) -> Iterator[Fault]:
    """Find the words of ``forbidden_words``, in any spelling with kana and in any inflection.

    A word in its dictionary form is found in each of its forms. Another form, such as 死ね, is
    found only as it is. Narration and the speech of others aren't searched: the persona doesn't say
    them.
    """
    words = [word for word in answer.persona.forbidden_words if word.strip()]
    if not words:
        raise CannotMeasure(_FIELD, "not_stated")
    for part in answer.parts:
        if part.kind in (Kind.NARRATION, Kind.DIRECTION, Kind.QUOTATION):
            continue
        spans = {
            span: word
            for word in words
            for span in (*_as_written(part, word), *_inflected(part, word))
        }
        end = 0
        for (start, stop), word in sorted(
            spans.items(), key=lambda item: (item[0][0], -item[0][1])
        ):
            if start >= end:
                yield Fault(start, stop, _FIELD, word)
                end = stop


def _as_written(part: Part, word: str) -> Iterator[tuple[int, int]]:
    folded, sought = _fold(part.text), _fold(word)
    if sought not in folded:
        return
    starts = {token.start for token in part.tokens}
    ends = {token.end for token in part.tokens}
    at = folded.find(sought)
    while at >= 0:
        start, end = part.start + at, part.start + at + len(sought)
        if start in starts and end in ends:
            yield start, end
        at = folded.find(sought, at + 1)


def _inflected(part: Part, word: str) -> Iterator[tuple[int, int]]:
    sought = _analysed(word)
    if not sought or not _inflects(sought[-1]) or sought[-1].surface != sought[-1].lemma:
        return
    if _fold(_stem(sought)) not in _fold(part.text):
        return
    tokens = part.tokens
    for at in range(len(tokens) - len(sought) + 1):
        run = tokens[at : at + len(sought)]
        if all(map(_same, run, sought)):
            yield run[0].start, run[-1].end


def _same(token: Token, word: Word) -> bool:
    found = token.word
    if not _inflects(word):
        return _fold(found.surface) == _fold(word.surface)
    return _fold(found.lemma) == _fold(word.lemma) and _inflects(found)


def _stem(words: tuple[Word, ...]) -> str:
    """Return the characters that every form of the words begins with."""
    before = "".join(word.surface for word in words[:-1])
    return (
        before + words[-1].surface[:-1]
        if words[-1].surface not in ("する", "来る", "くる")
        else before
    )


def _inflects(word: Word) -> bool:
    return word.is_verb() or word.is_adjective()


@lru_cache(maxsize=1024)
def _analysed(word: str) -> tuple[Word, ...]:
    return tuple(words_of(word.strip()))


def _fold(text: str) -> str:
    """Return ``text`` with hiragana for katakana and small ASCII letters, in the same length."""
    return "".join(map(_fold_character, text))


def _fold_character(character: str) -> str:
    if "ァ" <= character <= "ヶ":
        return chr(ord(character) - 0x60)
    if "！" <= character <= "～":
        character = chr(ord(character) - 0xFEE0)
    return character.lower() if character.isascii() else character
