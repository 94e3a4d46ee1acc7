"""An answer, divided and analysed once for all rules."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from persona_lab.answer_text.passages import Kind, PassageParser
from persona_lab.japanese.morphology import Word, words_of
from persona_lab.personas.persona import Persona
from persona_lab.types import PromptMessage
from persona_lab.unicode_text import has_japanese

Message = PromptMessage | Mapping[str, str]
"""A message of the conversation: a value with ``role`` and ``content``, or a mapping of them."""

CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`|https?://\S+|[\w.+-]+@[\w-]+\.[\w.]+", re.DOTALL)
"""Code and addresses."""
_LABEL = re.compile(r"[^\s、。！？!?…「」『』（）()\[\]*`:：はがをにでとへ]{1,20}")
"""A speaker's name before speech."""
_CALLED_PLAINLY = re.compile("号?[、！!？?]")
_SAID_BY = re.compile(r"[」』]?と、?((?!私|僕|俺|彼|自分)[一-龥ァ-ヶA-Za-zー]{1,12})[がは]")
_CALLED = re.compile(r"(?:さん|さま|様|殿|先輩|先生|博士|閣下|ちゃん|くん|君)[、。！？!?…]")


@dataclass(frozen=True, slots=True)
class Token:
    """A word and its place in the answer."""

    word: Word
    start: int
    end: int


@dataclass(frozen=True)
class Part:
    """A passage of an answer: a sentence of speech or narration, or a passage of another kind.

    Attributes:
        kind: What the passage is.
        text: Its text.
        start: Its offset in the answer.
        doubtful: Whether it may be narration.
    """

    kind: Kind
    text: str
    start: int
    doubtful: bool

    @property
    def span(self) -> tuple[int, int]:
        """The offsets of the text without the white space around it."""
        start = self.start + len(self.text) - len(self.text.lstrip())
        return start, start + len(self.text.strip())

    @cached_property
    def tokens(self) -> tuple[Token, ...]:
        """The words of the passage, with marks and white space."""
        found, at = [], self.start
        for word in words_of(self.text):
            found.append(Token(word, at, at + len(word.surface)))
            at += len(word.surface)
        return tuple(found)

    @cached_property
    def said(self) -> tuple[Token, ...]:
        """The spoken words outside quotations, code and brackets."""
        return tuple(t for t in self.tokens if not t.word.kept and t.word.is_spoken())


class Answer:
    """An answer of a persona, and the conversation before it.

    Args:
        text: The model's raw words.
        persona: The persona.
        history: The messages before the answer, the oldest first.
    """

    def __init__(self, text: str, persona: Persona, history: Sequence[Message] = ()) -> None:
        self.text = text
        self.persona = persona
        turns = [_role_and_content(message) for message in history]
        self.user_turns = [content for role, content in turns if role == "user"]
        self.own_turns = [content for role, content in turns if role == "assistant"]

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The passages. Their texts, joined, are the answer."""
        return tuple(parts_of(self.text, self.persona.name))

    @cached_property
    def speech(self) -> tuple[Part, ...]:
        """The sentences that the persona says."""
        return tuple(
            p for p in self.parts if p.kind is Kind.SPEECH and any(map(str.isalnum, p.text))
        )

    @cached_property
    def prose(self) -> tuple[Part, ...]:
        """Everything but code, tables, headings and notes."""
        return tuple(p for p in self.parts if p.kind is not Kind.BLOCK)

    @cached_property
    def is_japanese(self) -> bool:
        """Whether the answer has Japanese text."""
        return has_japanese(self.text)


def parts_of(text: str, name: str) -> Iterator[Part]:
    """Divide ``text``, which the persona ``name`` says, into its passages.

    Speech that another speaker's label introduces, or that calls the persona by name and title,
    is somebody else's: it becomes a quotation.
    """
    parser = PassageParser(name)
    at = 0
    line: list[Part] = []
    for passage in (*parser.feed(text), *parser.finish()):
        narrated = passage.doubtful and parser.narrative
        kind = Kind.NARRATION if narrated else passage.kind
        line.append(Part(kind, passage.text, at, passage.doubtful))
        at += len(passage.text)
        if passage.text.endswith("\n"):
            yield from _without_others(line, name)
            line = []
    yield from _without_others(line, name)


def _without_others(line: list[Part], name: str) -> Iterator[Part]:
    """Return the passages of a line; speech of others is a quotation."""
    other = any(part.kind is Kind.SPEECH and is_addressed(part.text, name) for part in line)
    for at, part in enumerate(line):
        if part.kind in (Kind.NARRATION, Kind.SPEECH) and part.text.rstrip().endswith(("「", "『")):
            label = part.text.rstrip()[:-1].strip().rstrip(":：").strip()
            label = label or (
                line[at - 2].text.strip() if at > 1 and _is_aside(line[at - 1]) else ""
            )
            if _LABEL.fullmatch(label):
                other = not _is_name_of(label, name)
        if part.kind is Kind.SPEECH and (other or _is_said_by_other(line[at + 1 :], name)):
            part = replace(part, kind=Kind.QUOTATION)
        yield part


def _is_said_by_other(after: list[Part], name: str) -> bool:
    """Tell whether the narration after a speech (」と父が言った) names another speaker."""
    narration = next((part.text for part in after if part.kind is Kind.NARRATION), "")
    match = _SAID_BY.match(narration)
    return match is not None and not _is_name_of(match[1], name)


def _is_aside(part: Part) -> bool:
    return part.kind is Kind.DIRECTION


def _is_name_of(label: str, name: str) -> bool:
    """Tell whether a speaker's label is the persona's name or a part of it."""
    return not name or label in name or name in label or label[:2] == name[:2]


def is_addressed(sentence: str, name: str) -> bool:
    """Tell whether a sentence calls the persona ``name``: somebody else speaks."""
    if len(name) < 2:
        return False
    if sentence.strip().startswith(name) and _CALLED_PLAINLY.match(sentence.strip()[len(name) :]):
        return True
    for length in range(len(name), 1, -1):
        at = sentence.find(name[:length])
        if at >= 0:
            return bool(_CALLED.match(sentence[at + length :]))
    return False


def _role_and_content(message: Message) -> tuple[str, str]:
    if isinstance(message, Mapping):
        return message["role"], message["content"]
    return message.role, message.content
