"""An answer, divided and analysed once for all rules."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from persona_lab.answer_text.passages import Kind, PassageParser
from persona_lab.japanese.morphology import Word, words_of
from persona_lab.personas.persona import Persona
from persona_lab.types import PromptMessage
from persona_lab.unicode_text import has_japanese

Message = PromptMessage | Mapping[str, str]
"""A message of the conversation: a value with ``role`` and ``content``, or a mapping of them."""

CODE = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]+`|https?://\S+|(?<![\w.+-])[\w.+-]+@[\w-]+\.[\w.]+", re.DOTALL
)
"""Code and addresses."""
_LABEL = re.compile(r"[^\s、。！？!?…「」『』（）()\[\]*`:：はがをにでとへ]{1,20}")
"""A speaker's name before speech."""
_DIALOGUE = re.compile("」[ 　]*\n[ 　]*「")
"""Speech in the line after speech: speakers take turns."""
_NAME_PART = re.compile("[一-龥々]+|[ァ-ヶー]+|[ぁ-ん]+|[A-Za-z0-9-]+")
_CALLED_LOUDLY = re.compile("号?[！!]")
_CALLED_PLAINLY = re.compile("号?[、！!？?]")
_ASIDE = re.compile("[（(][^（）()]*[）)]")
_SAID_BY = re.compile(r"[」』]?と、?((?!私|僕|俺|彼|自分)[一-龥ァ-ヶA-Za-zー]{1,12})[がは]")
_CALLED = re.compile(
    "(?:先輩|先生|博士|閣下)[、。！？!?…]|(?:さん|さま|様|殿|ちゃん|くん|君)(?![はがだでに])"
)


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


def parts_of(text: str, name: str) -> list[Part]:
    """Divide ``text``, which the persona ``name`` says, into its passages.

    Models also write lines of other speakers. Their speech becomes a quotation: from another
    speaker's label to the next label of the persona, and where narration names another speaker. If
    a line without a label calls the persona by name, or speech follows speech line by line, no line
    without a label is surely the persona's.
    """
    parser = PassageParser(name)
    at = 0
    parts: list[Part] = []
    for passage in (*parser.feed(text), *parser.finish()):
        narrated = passage.doubtful and parser.narrative
        kind = Kind.NARRATION if narrated else passage.kind
        parts.append(Part(kind, passage.text, at, passage.doubtful))
        at += len(passage.text)
    return _without_others(parts, name)


def _without_others(parts: list[Part], name: str) -> list[Part]:
    found: list[Part] = []
    unlabelled: list[int] = []
    other = labelled = called = False
    new_line = True
    for at, part in enumerate(parts):
        label = _label_of(part, name, new_line=new_line)
        if label:
            other, labelled = not _is_name_of(label, name), True
        elif new_line and not other:
            labelled = False
        if part.kind is Kind.SPEECH:
            if not labelled:
                unlabelled.append(at)
                called = called or is_addressed(part.text, name)
            if other or _is_said_by_other(parts[at + 1 : at + 3], name):
                part = replace(part, kind=Kind.QUOTATION)
        new_line = part.text.endswith("\n") or (new_line and not part.text.strip())
        found.append(part)
    dialogue = _DIALOGUE.search("".join(part.text for part in parts))
    for at in unlabelled if called or dialogue else ():
        found[at] = replace(found[at], kind=Kind.QUOTATION)
    return found


def _label_of(part: Part, name: str, *, new_line: bool) -> str:
    """Return the speaker's name that a passage gives for the speech after it; "" without one."""
    text = part.text.strip()
    if part.kind in (Kind.NARRATION, Kind.SPEECH) and text.endswith(("「", "『")):
        label = _ASIDE.sub("", text[:-1]).strip().rstrip(":：").strip()
        return label if _LABEL.fullmatch(label) else ""
    if part.kind is Kind.DIRECTION and new_line and _LABEL.fullmatch(text[1:-1]):
        label = text[1:-1]
        return label if _is_name_of(label, name) or _is_persons_name(label) else ""
    return ""


def _is_persons_name(text: str) -> bool:
    return all(word.pos.startswith("名詞-固有名詞-人名") for word in words_of(text))


def _is_said_by_other(after: list[Part], name: str) -> bool:
    """Tell whether the narration after a speech (」と父が言った) names another speaker."""
    narration = next((part.text for part in after if part.kind is Kind.NARRATION), "")
    match = _SAID_BY.match(narration)
    return match is not None and not _is_name_of(match[1], name)


def _is_name_of(label: str, name: str) -> bool:
    """Tell whether a speaker's label is the persona's name or a part of it."""
    return not name or label in name or name in label or label[:2] == name[:2]


def is_addressed(sentence: str, name: str) -> bool:
    """Tell whether a sentence calls the persona ``name``: somebody else speaks."""
    text = sentence.strip()
    for called in _names(name):
        at = text.find(called)
        if at < 0:
            continue
        after = text[at + len(called) :]
        if _CALLED.match(after) or (at == 0 and _CALLED_PLAINLY.match(after)):
            return True
        if len(called) > 2 and _CALLED_LOUDLY.match(after):
            return True
    return False


@lru_cache(maxsize=256)
def _names(name: str) -> tuple[str, ...]:
    """Return a name and its parts, such as 星野 and ミア of 星野ミア."""
    parts = [match[0] for match in _NAME_PART.finditer(name)]
    beginnings = [name[:length] for length in range(len(name) - 1, 1, -1)]
    return tuple(dict.fromkeys(each for each in (name, *parts, *beginnings) if len(each) > 1))


def _role_and_content(message: Message) -> tuple[str, str]:
    if isinstance(message, Mapping):
        return message.get("role", ""), message.get("content") or ""
    return message.role, message.content
