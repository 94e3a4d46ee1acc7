"""Recognise labels such as ``ユーザー：`` or ``### Assistant`` at the start of a line."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

from persona_lab.unicode_text import is_visible

USER_LABELS = ("ユーザー", "ユーザ", "あなた", "User", "Human", "You")
"""Names under which models write turns for the user."""
ASSISTANT_LABELS = ("アシスタント", "Assistant", "AI")
"""Names under which models write turns of their own, besides the persona's name."""

_LIST_MARKERS = ("-", "*", "+")
_BEFORE_NAMES = ("", *("#" * level for level in range(1, 7)))
_AROUND_NAMES = (
    ("", ""), ("*", "*"), ("**", "**"), ("_", "_"), ("__", "__"),
    ("【", "】"), ("[", "]"), ("「", "」"), ("『", "』"),
)  # fmt: skip


def _frames(befores: Sequence[str]) -> dict[str, tuple[str, ...]]:
    frames: dict[str, tuple[str, ...]] = {}
    for before, (left, right) in itertools.product(befores, _AROUND_NAMES):
        head = before + left  # "*" begins an item and emphasis
        frames[head] = (*frames.get(head, ()), f"{right}:", f":{right}")
    return frames


_FRAMES = _frames(_BEFORE_NAMES)
"""The text before a speaker's name → the texts that may follow the name, as comparison keys.

Examples are ``名前：``, ``**Name**:`` and ``### Name:``.
"""
LIST_FRAMES = _frames((*_BEFORE_NAMES, *_LIST_MARKERS))
"""All frames, and those of labels in a list item (``- 名前：``)."""
BRACKET_FRAMES = {"【": ("】", *_FRAMES["【"])}
"""Frames of labels in brackets without a colon. They occur before the persona's answer."""
HEADER_FRAMES = {"###": ("\n", *_FRAMES["###"])}
"""Frames of headings without a colon. They occur before the answer and before the next turn."""

_CONTINUATION = re.compile(
    # Particles and the copula. The exceptions are words that begin an answer, such as はい, では、
    r"の(?!ん|ど|う|ー|び|ろ)"
    r"|は(?!い(?:[^ぁ-んァ-ヶ一-龥]|$|はい|です|ー)|[ーぁっじは！!。…～〜]|あ[い、。！!…ー]"
    r"|て[、。…]|やく)"
    r"|が(?![んおっ！!])|を|に(?![ゃこっやんー])|へ(?![えぇーへいっ])"
    r"|と(?![りてこきんおっー]|も[だか]|に)|も(?![しうちっーぐの])|や(?=[一-龥ァ-ヶA-Za-z【「『<、])"
    r"|で(?![きーっん]|[はも][、,]|も[ねさ])|だ(?!から|[めいれんー]|って)|か(?:ら(?![かっ])|も)"
    r"|まで|より(?![よども])|って(?!ば)|なら|など|ばかり|だけ|しか|という|ら(?:し[いく]|[のはがを])"
    r"|さん|さま|ちゃん|くん|たち|[様達]|[、，,・／/＝=→⇒&＆＋]"
    r"|['’]s\b|(?:is|are|was|were|means?|and|or|has|will|can)\b",
    re.IGNORECASE,
)  # fmt: skip
_CONTINUATION_LENGTH = 5
"""Characters that are needed to judge a continuation."""


def continues_sentence(text: str, *, ended: bool = False) -> bool | None:
    """Return whether ``text`` continues a sentence whose subject stands before it.

    So ``【さくら】の開花予想`` and ``<think>とは`` are sentences, and not a label or a tag of the
    model. Only clear cases count.

    Args:
        text: The text after the subject.
        ended: Whether the text is complete. The end of a line completes it, too.

    Returns:
        None if more text is needed.
    """
    line, newline, _ = text.partition("\n")
    line = line.strip()
    if len(line) < _CONTINUATION_LENGTH and not newline and not ended:
        return None
    return _CONTINUATION.match(line) is not None


@lru_cache(maxsize=4096)
def comparison_key(character: str) -> str:
    """Return the comparison key of a character; "" for an invisible one. A line end stays."""
    if character == "\n" or is_visible(character):
        return unicodedata.normalize("NFKC", character).casefold()
    return ""


class SpeakerLabels:
    """Recognises the speaker labels of ``names`` in texts that consist of comparison keys.

    Args:
        names: The names of the speakers.
        frames: Further texts around a name, in addition to :data:`_FRAMES`.
    """

    def __init__(self, names: Sequence[str], frames: Mapping[str, Sequence[str]]) -> None:
        self._names = [key for name in names if (key := "".join(map(comparison_key, name)))]
        self._frames = {**_FRAMES, **frames} if self._names else {}
        self._firsts = {text[0] for text in (*self._frames, *self._names) if text}

    def is_label(self, text: str) -> bool:
        """Return whether ``text`` is a label."""
        return any(rest in tails for rest, tails in self._match_names(text))

    def may_become_label(self, text: str) -> bool:
        """Return whether ``text`` is the beginning of a label."""
        if not text or text[0] not in self._firsts:
            return not text and bool(self._names)
        return (
            any(head.startswith(text) for head in self._frames)
            or any(name.startswith(rest) for rest, _ in self._match_heads(text)
                   for name in self._names)
            or any(tail.startswith(rest) for rest, tails in self._match_names(text)
                   for tail in tails)
        )  # fmt: skip

    def _match_heads(self, text: str) -> Iterator[tuple[str, Sequence[str]]]:
        """Yield the text after each possible frame's head, with the frame's tails."""
        for head, tails in self._frames.items():
            if text.startswith(head):
                yield text[len(head) :], tails

    def _match_names(self, text: str) -> Iterator[tuple[str, Sequence[str]]]:
        """Yield the text after each possible head and name, with the frame's tails."""
        for rest, tails in self._match_heads(text):
            for name in self._names:
                if rest.startswith(name):
                    yield rest[len(name) :], tails
