"""Divide an answer into passages: speech, narration, stage directions, quotations, lists, code.

The tone step rewrites speech only. Answers of role play mix speech with other text:

- A stage direction stands in brackets or asterisks: （微笑む）, *smiles*, [状態: 空腹].
- A novel-like answer has its speech in 「」, at the start of a line or after a name, and narration
  around it: ``彼女は頷いた。「行きましょう」``. In an answer without such a line, text in 「」 is a
  quotation: ``「光合成」とは…``.
- Lists, headings, tables, block quotes, code, notes of the author and rules are no speech either.

The parser reads character by character, so the result doesn't depend on how a stream is cut.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum, StrEnum, auto
from typing import NamedTuple

from persona_lab.answer_text.code_fences import CodeFenceTracker
from persona_lab.unicode_text import has_japanese


class Kind(StrEnum):
    """What a passage is."""

    SPEECH = "speech"
    NARRATION = "narration"
    DIRECTION = "direction"
    QUOTATION = "quotation"
    LIST = "list"
    BLOCK = "block"
    """A line that isn't prose: code, a table, a heading, a block quote, a note."""


class Passage(NamedTuple):
    """A part of an answer. A passage of speech or narration is one sentence.

    Attributes:
        kind: What the passage is.
        text: Its text. The texts of all passages, joined, are the answer.
        doubtful: Whether the passage is narration if a later line of the answer is speech in 「」.
    """

    kind: Kind
    text: str
    doubtful: bool = False

    @property
    def is_said(self) -> bool:
        """Whether this is speech, and not only white space or marks."""
        return self.kind is Kind.SPEECH and any(map(str.isalnum, self.text))


SENTENCE_MARKS = "。！？!?…"
_CLOSERS = "」』）)”"
_BRACKETS = {"（": "）", "(": ")", "［": "］", "[": "]", "【": "】", "〔": "〕", "〈": "〉"}
_QUOTES = {"「": "」", "『": "』"}
_PAIRS = {**_BRACKETS, **_QUOTES, "“": "”", '"': '"', "`": "`"}
_BLOCK_LINE = re.compile(
    r"[|>#※■□◆◇▼▲▽△★☆]|`{3}|~{3}|(?:[-*_＊―—─－=＝] ?){3,}\n?$"
    r"|(?:OOC|P\.?S\.?|注意?書き|注釈?|補足|作者注?|筆者注?|Note) ?[:：]"
)
_LIST_LINE = re.compile(
    r"(?:[-+•‣◦●○*＊]|\d{1,3}[.)．）]|[(（]\d{1,3}[)）]|[①-⑳]|[a-zA-Z][.)])\s"
    r"|[・①-⑳]|\d{1,3}[．）]|\d{1,3}\.[^\d\s]|[(（]\d{1,3}[)）]|(?:ステップ|手順|Step) ?\d"
)
_LINE_STARTERS = frozenset("|>#※■□◆◇▼▲▽△★☆`~-*_＊―—─－=＝+•‣◦●○・(（ス手注補作筆")
"""First characters of a line that may be no prose. So may be digits and Latin letters."""
_LINE_START_LIMIT = 8
"""Characters of a line after which it is known what the line is."""
_NAME = re.compile(r"[^\s、。！？!?…「」『』（）()\[\]*`:：]{1,20}$")
_NOT_AFTER_NAME = tuple("はがをにでともへのやかねなよって")
_MAX_SENTENCE = 1000
"""Characters after which a sentence ends without a mark."""
_MAX_QUOTED = 4000
"""Characters after which speech that isn't closed ends with its line."""
_ENDS_IN_VERB = re.compile(
    r"(?<!でし)(?<!まし)た$|(?<!だろ)(?<!でしょ)(?<!ましょ)(?<![よおこそごとろも])う$|[るくぐつぬぶむ]$"
    r"|(?<!で)(?<!ま)す$|[\u4e00-\u9fff]んだ$"
)
"""Ends of narrated sentences: a verb in its plain form, present or past."""
_SPEAKERS = re.compile(
    r"私|わたし|わたくし|あたし|アタシ|ワタシ|僕|ぼく|ボク|俺|おれ|オレ|わし|ワシ|拙者|吾輩|我々|我が"
    r"|うち[はもが]|あなた|貴方|君[はがのをにも、]|きみ|キミ|お前|おまえ|貴殿|そなた|みんな"
)
"""Pronouns of the speaker and the listener."""
_AFTER_SPEECH = re.compile(
    r"と(?!は|も|いう|いった|か|[書記呼])[^。]*[たるうくすむぶぐつ](?:[。…！？\s]|$)"
)
"""What follows speech in its sentence: と彼は微笑んだ。"""


class _State(Enum):
    """What the parser reads."""

    LINE_START = auto()
    PROSE = auto()
    QUOTED_LINE = auto()
    """A line that may contain speech in 「」. It is divided when it is complete."""
    LIST = auto()
    BLOCK = auto()


class PassageParser:
    """Divides a stream of characters into passages.

    Args:
        name: The name of the persona that speaks.

    Attributes:
        narrative: Whether a line with speech in 「」 was read: the text around 「」 is narration.
    """

    def __init__(self, name: str = "") -> None:
        self.narrative = False
        self._name = name.strip()
        self._fences = CodeFenceTracker()
        self._sentences = _SentenceReader()
        self._state = _State.LINE_START
        self._held = ""
        """The text of the line, unless the sentence reader has it."""
        self._in_list = False
        self._may_quote = True
        """Whether a 「 would be the first text of its line, but for stage directions."""

    @property
    def pending(self) -> str:
        """The text of the passage that isn't complete."""
        return self._sentences.held + self._held

    def feed(self, text: str) -> list[Passage]:
        """Read text, and return the passages that are complete."""
        return [passage for character in text for passage in self._read(character)]

    def finish(self) -> list[Passage]:
        """End the text, and return the last passages."""
        found: list[Passage] = []
        if self._state is _State.LINE_START:
            found += self._begin_line(ends=True)
        found += self._end_line()
        return [*found, *map(self._judged, self._sentences.finish())]

    def _read(self, character: str) -> Iterator[Passage]:
        if self._state is _State.LINE_START:
            self._held += character
            yield from self._begin_line(ends=character == "\n")
        elif self._state is _State.PROSE:
            yield from self._read_prose(character)
        else:
            self._held += character
            if character == "\n" and not self._continues():
                yield from self._end_line()
        self._fences.feed(character)

    def _begin_line(self, *, ends: bool) -> Iterator[Passage]:
        """Tell what a line is from its first characters, as soon as they tell it."""
        line, text = self._held, self._held.lstrip(" 　\t")
        if self._sentences.in_direction or (ends and not text.strip()):
            state: _State | None = _State.PROSE
        elif not text.strip():
            return
        else:
            state = self._state_of_line(line, text, ends=ends)
        if state is None:
            return
        self._state = state
        if state is _State.PROSE:
            self._held = ""
            for character in line:
                if self._state is _State.PROSE:
                    yield from self._read_prose(character)
                else:
                    self._held += character
        if self._held.endswith("\n") and not self._continues():
            yield from self._end_line()

    def _state_of_line(self, line: str, text: str, *, ends: bool) -> _State | None:
        """Return the state for a line that begins so; None if more characters are needed."""
        if self._fences.open:
            return _State.BLOCK
        if self._in_list and line[:1] in (" ", "\t", "　"):
            return _State.LIST
        prose = _State.QUOTED_LINE if self.narrative else _State.PROSE
        if not (text[0] in _LINE_STARTERS or text[0].isascii() or text[0].isdigit()):
            state = prose
        elif _BLOCK_LINE.match(text):
            state = _State.BLOCK
        elif _LIST_LINE.match(text):
            state = _State.LIST
        elif ends or len(text) >= _LINE_START_LIMIT:
            state = prose
        else:
            return None
        self._in_list = state is _State.LIST
        return state

    def _read_prose(self, character: str) -> Iterator[Passage]:
        reader = self._sentences
        first = not reader.held.strip() or self._is_label(reader.held)
        if character in _QUOTES and self._may_quote and first and not reader.in_direction:
            self._held, reader.held = reader.held + character, ""
            self._state = _State.QUOTED_LINE
            return
        for passage in reader.feed(character):
            if passage.is_said:
                self._may_quote = False
            yield self._judged(passage)
        if character == "\n":
            self._state, self._may_quote = _State.LINE_START, True

    def _judged(self, passage: Passage) -> Passage:
        """Return a passage of prose with its doubt."""
        doubtful = passage.kind is Kind.SPEECH and _may_narrate(passage.text)
        return passage._replace(doubtful=doubtful)

    def _continues(self) -> bool:
        """Tell whether speech in 「」 goes on in the next line."""
        held = self._held
        if self._state is not _State.QUOTED_LINE or len(held) > _MAX_QUOTED:
            return False
        is_open = any(held.count(mark) > held.count(end) for mark, end in _QUOTES.items())
        return is_open and not held.endswith("\n\n")

    def _end_line(self) -> Iterator[Passage]:
        line, self._held = self._held, ""
        state = self._state
        self._state, self._may_quote = _State.LINE_START, True
        if not line:
            return
        if state is _State.LIST:
            yield Passage(Kind.LIST, line)
        elif state is _State.BLOCK:
            yield Passage(Kind.BLOCK, line)
        else:
            yield from self._divide(line)

    # ── speech in 「」 ──

    def _divide(self, line: str) -> Iterator[Passage]:
        """Divide a complete line that may contain speech in 「」."""
        spans = list(self._speech_spans(line))
        if not self.narrative and not (spans and _is_speech(line[spans[0].end + 1 :])):
            yield from map(self._judged, _sentences(line))
            return
        self.narrative = True
        at = 0
        for span in spans:
            yield Passage(Kind.NARRATION, line[at : span.start])
            for passage in _sentences(line[span.start : span.end]):
                speech = passage.kind is Kind.SPEECH
                yield passage._replace(kind=Kind.QUOTATION) if speech and not span.own else passage
            at = span.end
        if at < len(line):
            yield Passage(Kind.NARRATION, line[at:])

    def _speech_spans(self, line: str) -> Iterator[_Span]:
        """Find the 「」 that begin a line or follow a sentence, a direction or a name."""
        at = start = 0
        while at < len(line):
            character = line[at]
            closing = _PAIRS.get(character, "")
            end = _matching(line, at, closing) if closing else -1
            if character in _QUOTES:
                before = line[start:at].strip()
                label = self._is_label(before)
                if not before or label:
                    stop = end if end >= 0 else len(line.rstrip("\n"))
                    yield _Span(at + 1, stop, not label or self._is_own_name(before))
                    start = stop + 1
                    at = stop
                elif end >= 0:
                    at = end
            elif end >= 0:
                if character in _BRACKETS:
                    start = end + 1
                at = end
            elif character in SENTENCE_MARKS + "*\n":
                start = at + 1
            at += 1

    def _is_label(self, text: str) -> bool:
        """Tell whether a text before a 「 is the name of a speaker."""
        label = text.strip().rstrip(":：").rstrip()
        if not _NAME.match(label):
            return False
        return label == self._name or not label.endswith(_NOT_AFTER_NAME)

    def _is_own_name(self, label: str) -> bool:
        label = label.strip().rstrip(":：").rstrip()
        return not self._name or label in self._name or self._name in label


class _Span(NamedTuple):
    """The text within a 「」. ``own``: whether the persona says it."""

    start: int
    end: int
    own: bool


class _SentenceReader:
    """Divides prose into sentences and stage directions, character by character.

    Attributes:
        held: The text of the passage that isn't complete.
    """

    def __init__(self) -> None:
        self.held = ""
        self._open: list[str] = []
        """The closing marks of what is open in the held text, the innermost last."""
        self._direction = ""
        """The closing mark of the stage direction that is being read."""
        self._ended = False
        """Whether the sentence has its mark. Another mark may follow."""

    @property
    def in_direction(self) -> bool:
        """Whether a stage direction is open."""
        return bool(self._direction)

    def feed(self, character: str) -> Iterator[Passage]:
        """Read a character, and return what it completes."""
        if self._direction:
            yield from self._read_direction(character)
            return
        if self._ended and character not in SENTENCE_MARKS + _CLOSERS + "\n":
            yield from self._release(Kind.SPEECH)
        if not self.held.strip() and (character in _BRACKETS or character == "*"):
            self._direction = _BRACKETS.get(character, "*")
            self._open = [self._direction]
            self.held += character
            return
        self.held += character
        if character == "\n":
            yield from self._release(Kind.SPEECH)
            return
        self._track(character)
        if not self._open:
            self._ended = self._ended or character in SENTENCE_MARKS
            latin = character == " " and self.held[-2:-1] in (".", ":")
            if latin and not has_japanese(self.held):
                yield from self._release(Kind.SPEECH)
        if len(self.held) >= _MAX_SENTENCE:
            yield from self._release(Kind.SPEECH)

    def finish(self) -> Iterator[Passage]:
        """End the text, and return the last passage."""
        yield from self._release(Kind.DIRECTION if self._direction else Kind.SPEECH)

    def _read_direction(self, character: str) -> Iterator[Passage]:
        closing, before = self._direction, self.held
        self.held += character
        if closing == "*" and before.strip() == "*" and (character == "*" or character.isspace()):
            self._direction, self._open = "", []  # bold text
        elif character == closing:
            self._open.pop()
            if not self._open:
                yield from self._release(Kind.DIRECTION)
        elif _BRACKETS.get(character) == closing:
            self._open.append(closing)
        elif character == "\n" and (closing == "*" or before.endswith("\n")):
            yield from self._release(Kind.DIRECTION)

    def _track(self, character: str) -> None:
        """Follow quotations and brackets within a sentence."""
        if self._open and character == self._open[-1]:
            self._open.pop()
        elif "`" not in self._open and character in _PAIRS:
            self._open.append(_PAIRS[character])

    def _release(self, kind: Kind) -> Iterator[Passage]:
        held, self.held = self.held, ""
        self._open, self._direction, self._ended = [], "", False
        if held:
            yield Passage(kind, held)


def _sentences(text: str) -> Iterator[Passage]:
    """Divide a complete text into sentences and stage directions."""
    reader = _SentenceReader()
    for character in text:
        yield from reader.feed(character)
    yield from reader.finish()


def _is_speech(rest: str) -> bool:
    """Tell from the text after a 「」 at the start of a line whether the 「」 is speech."""
    rest = rest.removeprefix("。")
    first = rest[:1]
    return (
        not first.strip()
        or first in "「『*"
        or first in _BRACKETS
        or bool(_AFTER_SPEECH.match(rest))
    )


def _matching(text: str, start: int, closing: str) -> int:
    """Return the index of the mark that closes the pair at ``start``; -1 without one."""
    depth = 0
    for at in range(start, len(text)):
        if text[at] == text[start] and (not depth or closing != text[start]):
            depth += 1
        elif text[at] == closing:
            depth -= 1
            if not depth:
                return at
    return -1


def _may_narrate(sentence: str) -> bool:
    """Tell whether a sentence may be narration: an act, without a sign that somebody speaks."""
    text = sentence.strip()
    if not has_japanese(text) or text.endswith(("！", "？", "!", "?")):
        return False
    text = text.rstrip(SENTENCE_MARKS + _CLOSERS + "♪～〜 　")
    return bool(_ENDS_IN_VERB.search(text)) and not _SPEAKERS.search(text)
