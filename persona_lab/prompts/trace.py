"""Trace which span of a rendered prompt came from which field of the persona.

A value from a field is wrapped in noncharacters of Unicode before it is rendered. They are
removed afterwards, and their positions become the spans of the trace.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from persona_lab.types import Span

if TYPE_CHECKING:
    pass


FIELDS = (
    "name",
    "description",
    "gender",
    "background",
    "first_person",
    "second_person",
    "sentence_endings",
    "catchphrases",
    "forbidden_words",
    "personalities",
    "roles",
    "tones",
    "examples",
    "greeting",
)
"""The persona's fields that a span can name."""

# Unicode keeps U+FDD0–U+FDEF free for use inside a program: no text may contain them.
_CLOSE = "\ufdd0"
_OPEN = {field: chr(0xFDD1 + number) for number, field in enumerate(FIELDS)}
_FIELD = {mark: field for field, mark in _OPEN.items()}
_MARKS = re.compile("([\ufdd0-\ufdef])")


class Traced(str):
    """A persona's value that, printed by a template, says which field it came from.

    Only ``str()`` adds the marks, and ``str()`` is what Jinja's output, ``join`` and ``~`` call.
    Everything else (equality, truth, length, membership) is the plain value's, so a template
    can't tell it from one. A filter that computes a new text, such as ``upper``, loses the
    trace and nothing else.
    """

    __slots__ = ("field",)
    field: str

    def __new__(cls, value: object, field: str) -> Traced:
        text = super().__new__(cls, _clean(value))
        text.field = field
        return text

    def __str__(self) -> str:
        plain = str.__str__(self)
        return f"{_OPEN[self.field]}{plain}{_CLOSE}" if plain else ""


def _clean(value: object) -> str:
    return _MARKS.sub("", str(value or "")).strip()


def unmark(text: str) -> tuple[str, tuple[Span, ...]]:
    """``text`` without its marks, and the spans that they stood around, in order of appearance."""
    plain: list[str] = []
    spans: list[Span] = []
    length = 0
    opened: tuple[str, int] | None = None
    for piece in _MARKS.split(text):
        if piece in _FIELD:
            opened = (_FIELD[piece], length)
        elif piece == _CLOSE:
            if opened is not None:
                spans.append(Span(opened[1], length, opened[0]))
            opened = None
        else:
            plain.append(piece)
            length += len(piece)
    return "".join(plain), tuple(spans)
