"""Trace which span of a rendered prompt came from which field of the persona.

A value from a field is wrapped in noncharacters of Unicode before it is rendered. They are
removed afterwards, and their positions become the spans of the trace.
"""

from __future__ import annotations

import re

from persona_lab.personas.persona import PERSONA_FIELDS
from persona_lab.types import Span

FIELDS = tuple(field.name for field in PERSONA_FIELDS.values() if field.colour)
"""The persona's fields that a span can name."""

# Unicode reserves U+FDD0–U+FDEF for use inside a program: no text may contain them.
_CLOSE_MARK = "\ufdd0"
_OPEN_MARKS = {field: chr(0xFDD1 + number) for number, field in enumerate(FIELDS)}
_FIELD_OF_MARK = {mark: field for field, mark in _OPEN_MARKS.items()}
_ANY_MARK = re.compile("([\ufdd0-\ufdef])")


class Traced(str):
    """A value of a persona that names its field when a template prints it.

    Only ``str()`` adds the marks, and ``str()`` is what Jinja's output, ``join`` and ``~`` call.
    Everything else (equality, truth, length, membership) behaves as the plain value, so a template
    cannot see a difference. A filter that computes a new text, such as ``upper``, loses the trace
    and nothing else.
    """

    __slots__ = ("field",)
    field: str

    def __new__(cls, value: object, field: str) -> Traced:
        """Wrap ``value``, without marks and surrounding space, as a value of ``field``."""
        text = super().__new__(cls, strip_marks(value))
        text.field = field
        return text

    def __str__(self) -> str:
        """Return the value between the marks of its field."""
        plain = str.__str__(self)
        return f"{_OPEN_MARKS[self.field]}{plain}{_CLOSE_MARK}" if plain else ""


def strip_marks(value: object) -> str:
    """Return ``value`` as text without marks and surrounding space; None is empty."""
    return _ANY_MARK.sub("", str(value or "")).strip()


def extract_spans(text: str) -> tuple[str, tuple[Span, ...]]:
    """Return ``text`` without its marks, and the spans that they enclosed, in order."""
    plain: list[str] = []
    spans: list[Span] = []
    length = 0
    opened: tuple[str, int] | None = None
    for piece in _ANY_MARK.split(text):
        if piece in _FIELD_OF_MARK:
            opened = (_FIELD_OF_MARK[piece], length)
        elif piece == _CLOSE_MARK:
            if opened is not None:
                spans.append(Span(opened[1], length, opened[0]))
            opened = None
        else:
            plain.append(piece)
            length += len(piece)
    return "".join(plain), tuple(spans)
