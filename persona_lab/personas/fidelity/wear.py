"""Catch-phrases, length and repetition."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from persona_lab.answer_text.passages import Kind
from persona_lab.japanese.morphology import words_of
from persona_lab.personas.fidelity.answer import Answer
from persona_lab.personas.fidelity.mark import CannotMeasure, Fault
from persona_lab.personas.fidelity.reference import own_lines
from persona_lab.personas.fidelity.register import SET_PHRASES

MISSING_AFTER = 6
"""Answers in a row without any catch-phrase that are one too many."""
MIN_OWN_SHARE = 0.3
"""The share of the persona's lines that have a catch-phrase, if it must come often."""
WORN_AFTER = 3
"""Answers in a row with the same catch-phrase that wear it out."""
MIN_LINES = 3
"""The persona's lines that are needed to judge a length."""
LENGTH_FACTOR = 3
"""How many times longer than the longest line, or shorter than the shortest, is a fault."""
MIN_EXCESS = 150
"""Characters over the longest line that are needed, too."""
MIN_REPEATED = 12
"""Characters of a repeated sentence."""
MIN_REPEATED_OVER_TURNS = 16
"""Characters of a sentence that an earlier answer has, too."""
MIN_FORMULA = 24
"""Characters of a sentence with ありがとうございます and the like that is no formula any more."""
_MARKS = re.compile(r"[\s、。！？!?…・「」『』（）()〜～ー♪*]+")
_SENTENCE = re.compile(r"[^。！？!?\n「」『』（）()]+[。！？!?…]*")


def catchphrase_missing(answer: Answer) -> Iterator[Fault]:
    """Find the answer that is the sixth in a row without a catch-phrase, and those after it.

    Only a persona whose own lines often have one must say it.
    """
    phrases = _phrases(answer)
    lines = own_lines(answer.persona)
    if len(lines) < MIN_LINES:
        raise CannotMeasure("examples", "too_few_examples")
    share = sum(_says(line.text, phrases) for line in lines) / len(lines)
    if share < MIN_OWN_SHARE:
        raise CannotMeasure("examples", "not_stated")
    turns = [*answer.own_turns, answer.text]
    if len(turns) < MISSING_AFTER:
        raise CannotMeasure("catchphrases", "too_few_examples")
    if answer.text.strip() and not any(_says(turn, phrases) for turn in turns[-MISSING_AFTER:]):
        yield Fault(0, len(answer.text), "catchphrases", "・".join(phrases))


def catchphrase_worn(answer: Answer) -> Iterator[Fault]:
    """Find a catch-phrase that comes twice in an answer, or in the third answer in a row."""
    lines = [line.text for line in own_lines(answer.persona)]
    for phrase in _phrases(answer):
        found = [
            (part.start + match.start(), part.start + match.end())
            for part in answer.speech
            for match in re.finditer(re.escape(phrase), part.text)
        ]
        often = max((line.count(phrase) for line in lines), default=0)
        if len(found) >= 2 and often < 2:
            for start, end in found[1:]:
                yield Fault(start, end, "catchphrases", phrase)
        elif found and _comes_always(answer, phrase, lines):
            yield Fault(*found[0], "catchphrases", phrase)


def _comes_always(answer: Answer, phrase: str, lines: Sequence[str]) -> bool:
    before = answer.own_turns[-(WORN_AFTER - 1) :]
    if len(before) < WORN_AFTER - 1 or not all(phrase in turn for turn in before):
        return False
    share = sum(phrase in line for line in lines) / len(lines) if lines else 0
    return share < 2 / 3


def _phrases(answer: Answer) -> tuple[str, ...]:
    phrases = tuple(p.strip("。！？!?…〜～ 　") for p in answer.persona.catchphrases if p.strip())
    phrases = tuple(_without_inflection(phrase) for phrase in phrases if len(phrase) >= 2)
    if not phrases:
        raise CannotMeasure("catchphrases", "not_stated")
    return phrases


def _without_inflection(phrase: str) -> str:
    """Return 興味深 for 興味深い, so that 興味深く counts, too."""
    last = words_of(phrase)[-1]
    inflects = last.is_adjective() or (last.is_verb() and last.lemma != "する")
    return phrase[:-1] if inflects and last.surface == last.lemma and len(phrase) > 3 else phrase


def _says(text: str, phrases: Sequence[str]) -> bool:
    said = _MARKS.sub("", text)
    return any(_MARKS.sub("", phrase) in said for phrase in phrases)


def length(answer: Answer) -> Iterator[Fault]:
    """Find an answer that is far longer or shorter than the persona's own lines.

    An answer with a list, a table or code may be as long as it needs.
    """
    lengths = [len(line.text) for line in own_lines(answer.persona)]
    if len(lengths) < MIN_LINES:
        raise CannotMeasure("examples", "too_few_examples")
    if any(part.kind in (Kind.LIST, Kind.BLOCK) for part in answer.parts):
        raise CannotMeasure("examples", "no_speech")
    size, longest, shortest = len(answer.text.strip()), max(lengths), min(lengths)
    if size > LENGTH_FACTOR * longest and size > longest + MIN_EXCESS:
        yield Fault(longest, len(answer.text), "examples", f"{shortest}–{longest}")
    elif 0 < size * LENGTH_FACTOR * 2 < shortest:
        yield Fault(0, len(answer.text), "examples", f"{shortest}–{longest}")


def repetition(answer: Answer) -> Iterator[Fault]:
    """Find sentences that the answer says a second time, and words that go round in a loop."""
    seen: set[str] = set()
    for match in _SENTENCE.finditer(answer.text):
        key = _MARKS.sub("", match[0])
        if len(key) < MIN_REPEATED or not any(map(str.isalpha, key)):
            continue
        if key in seen:
            yield Fault(*_trimmed(answer.text, *match.span()), "")
        seen.add(key)
    for match in _LOOP.finditer(answer.text):
        if len(set(match[1])) > 1 and any(map(str.isalpha, match[1])):  # no ああああ and ＝＝＝＝
            yield Fault(*_trimmed(answer.text, *match.span()), "")


_LOOP = re.compile(r"([^\n]{2,40}?)\1{4,}")
"""Five times the same characters."""


def repetition_over_turns(answer: Answer) -> Iterator[Fault]:
    """Find sentences that an earlier answer of the persona has word for word, or nearly whole."""
    earlier = [_MARKS.sub("", turn) for turn in answer.own_turns if turn.strip()]
    if not earlier:
        raise CannotMeasure("", "too_few_examples")
    allowed = [*answer.persona.catchphrases, answer.persona.greeting, *answer.user_turns]
    said = "\n".join(earlier)
    for part in answer.parts:
        if part.kind in (Kind.LIST, Kind.BLOCK):
            continue
        for match in _SENTENCE.finditer(part.text):
            key = _MARKS.sub("", match[0])
            formula = len(key) < MIN_FORMULA and SET_PHRASES.search(match[0])
            known = formula or any(match[0].strip() in each for each in allowed)
            if len(key) >= MIN_REPEATED_OVER_TURNS and not known and key in said:
                start = part.start + match.start()
                yield Fault(*_trimmed(answer.text, start, start + len(match[0])), "")


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    piece = text[start:end]
    return start + len(piece) - len(piece.lstrip()), start + len(piece.rstrip())
