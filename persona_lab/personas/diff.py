"""The difference between two states of a persona, or between two texts.

Japanese has no spaces between words, so a text is compared by words of Latin letters, numbers and
katakana, and by single characters otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, Literal

from persona_lab.personas.persona import PERSONA_FIELDS

MAX_COMPARISONS = 4_000_000
"""Pairs of words up to which two texts are compared word by word. Longer ones differ as a whole."""

MIN_SAME_LENGTH = 2
"""Length of the shortest equal part between two differences, in characters."""

_WORD = re.compile(r"[A-Za-zÀ-ɏ]+|\d+|[ァ-ヺー]+|[^\S\n]+|.", re.DOTALL)


@dataclass(frozen=True, slots=True)
class TextPart:
    """A part of a text: in both states, only in the later one, or only in the earlier one."""

    kind: Literal["same", "added", "removed"]
    text: str


@dataclass(frozen=True, slots=True)
class FieldChange:
    """A field of a persona whose value changed. The values are plain data."""

    field: str
    before: Any
    after: Any

    def parts(self) -> list[TextPart]:
        """Return the difference as text, with an item of a list on each line."""
        return diff_text(field_text(self.before), field_text(self.after))


def changed_fields(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[FieldChange]:
    """Return the fields whose values differ, in the order of the form's table.

    Args:
        before: A persona as plain data. A missing field counts as empty.
        after: The same, later.
    """
    return [
        FieldChange(name, before.get(name, _empty(name)), after.get(name, _empty(name)))
        for name in PERSONA_FIELDS
        if before.get(name, _empty(name)) != after.get(name, _empty(name))
    ]


def field_text(value: Any) -> str:
    """Return the value of a field as text for people, an item of a list on each line."""
    if isinstance(value, list):
        return "\n".join(
            f"> {item['user']}\n{item['ai']}" if isinstance(item, dict) else str(item)
            for item in value
        )
    return str(value)


def diff_text(before: str, after: str) -> list[TextPart]:
    """Return the parts of which ``before`` and ``after`` consist.

    The parts that aren't added make ``before``, and those that aren't removed make ``after``.
    """
    lines = before.splitlines(keepends=True), after.splitlines(keepends=True)
    parts: list[TextPart] = []
    for old, new, is_same in _blocks(*lines):
        if is_same:
            parts.append(TextPart("same", "".join(old)))
        else:
            parts += _diff_words("".join(old), "".join(new))
    return _merge(parts)


def _diff_words(before: str, after: str) -> list[TextPart]:
    old, new = _WORD.findall(before), _WORD.findall(after)
    if len(old) * len(new) > MAX_COMPARISONS:
        return [TextPart("removed", before), TextPart("added", after)]
    parts: list[TextPart] = []
    blocks = list(_blocks(old, new))
    for index, (removed, added, is_same) in enumerate(blocks):
        text = "".join(removed)
        is_inside = 0 < index < len(blocks) - 1
        if is_same and not (is_inside and len(text) < MIN_SAME_LENGTH and not text.isspace()):
            parts.append(TextPart("same", text))
        else:
            parts += [TextPart("removed", text), TextPart("added", "".join(added))]
    return parts


def _blocks(
    before: Sequence[str], after: Sequence[str]
) -> Iterator[tuple[Sequence[str], Sequence[str], bool]]:
    """Yield the pieces that stand for each other, and whether they are equal."""
    matcher = SequenceMatcher(None, before, after, autojunk=False)
    for tag, start, end, new_start, new_end in matcher.get_opcodes():
        yield before[start:end], after[new_start:new_end], tag == "equal"


def _merge(parts: Sequence[TextPart]) -> list[TextPart]:
    """Join the removed and the added parts between two equal ones, and drop empty parts."""
    merged: list[TextPart] = []
    removed = added = ""
    for part in (*parts, TextPart("same", "")):
        if part.kind == "removed":
            removed += part.text
        elif part.kind == "added":
            added += part.text
        else:
            merged += [TextPart("removed", removed), TextPart("added", added), part]
            removed = added = ""
    joined: list[TextPart] = []
    for part in merged:
        if not part.text:
            continue
        if joined and joined[-1].kind == part.kind:
            joined[-1] = TextPart(part.kind, joined[-1].text + part.text)
        else:
            joined.append(part)
    return joined


def _empty(field: str) -> Any:
    kind = PERSONA_FIELDS[field].kind
    return [] if kind in ("list", "traits", "examples") else ""
