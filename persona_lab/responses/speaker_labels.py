"""Recognise labels such as ``ユーザー：`` or ``### Assistant`` at the start of a line."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

from persona_lab.unicode_text import is_visible

MARKUP_CHARACTERS = tuple("*_-+#【[「『")
"""First characters of labels that may also be a heading, a list item or emphasis."""
USER_LABELS = ("ユーザー", "ユーザ", "あなた", "User", "Human", "You")
"""Names under which models write turns for the user."""

_BEFORE_NAMES = ("", "-", "*", "+", *("#" * level for level in range(1, 7)))
_AROUND_NAMES = (
    ("", ""), ("*", "*"), ("**", "**"), ("_", "_"), ("__", "__"),
    ("【", "】"), ("[", "]"), ("「", "」"), ("『", "』"),
)  # fmt: skip
_FRAMES: dict[str, tuple[str, ...]] = {}
for _before, (_left, _right) in itertools.product(_BEFORE_NAMES, _AROUND_NAMES):
    _head = _before + _left  # "*" begins an item and emphasis
    _FRAMES[_head] = (*_FRAMES.get(_head, ()), f"{_right}:", f":{_right}")
"""The text before a speaker's name → the texts that may follow the name, as comparison keys.

Examples are ``名前：``, ``**Name**:`` and ``### Name:``.
"""
BRACKET_FRAMES = {"【": ("】", *_FRAMES["【"])}
"""Frames of labels in brackets without a colon. They occur before the persona's answer."""
HEADER_FRAMES = {"###": ("\n", *_FRAMES["###"]), "<|": ("|>",), "<|im_start|>": ("\n",)}
"""Frames of headings without a colon. They occur before the answer and before the next turn."""


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
