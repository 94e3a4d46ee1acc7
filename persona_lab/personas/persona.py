"""What a persona may hold: its fields, their limits, and their validation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from persona_lab.db.tables import Agent
from persona_lab.errors import (
    InvalidPersona,
)
from persona_lab.unicode_text import composed, is_blank, storable

TRAITS = {"personalities": "personality", "roles": "role", "tones": "tone"}
"""A persona's field → the table of its names; ``agent<table>`` links them in their order."""
TEXTS = ("description", "gender", "background", "first_person", "second_person", "greeting")
LISTS = ("sentence_endings", "catchphrases", "forbidden_words")

NAME_LENGTH = 100
TEXT_LENGTH = 10_000
LIST_ITEMS = 50
ITEM_LENGTH = 200
EXAMPLES = 20


def clean_text(text: str) -> str:
    """``text`` composed (NFC), with ``\\n`` for line ends and no other control characters but tabs.

    Compatibility ideographs stay as typed: NFC would turn a name's 神 (U+FA19) into another form.
    """
    return composed(storable(text))


def persona_of(agent: Agent) -> dict[str, Any]:
    """All that can be edited of ``agent``, as plain data that create and update take back."""
    persona: dict[str, Any] = {field: getattr(agent, field) for field in ("name", *TEXTS)}
    persona |= {field: [trait.name for trait in getattr(agent, field)] for field in TRAITS}
    persona |= {field: list(getattr(agent, field)) for field in LISTS}
    persona["examples"] = [dict(example) for example in agent.examples]
    persona["language"] = agent.language
    return persona


def clean_persona(fields: dict[str, Any]) -> dict[str, Any]:
    """``fields`` of a persona, cleaned: all of :func:`persona_of`'s keys or some of them.

    None counts as empty, and so does a name that shows nothing (of zero-width characters, say);
    empty list items go, and a trait named twice counts once. Raises
    InvalidPersona with ``field``, ``reason`` ("empty", "too_long", "too_many", "wrong_type" or
    "unknown") and, where there is one, ``limit`` (characters or items).
    """
    return {field: _clean_field(field, value) for field, value in fields.items()}


def _clean_field(field: str, value: Any) -> Any:
    if field == "name":
        name = _clean_item(field, value, NAME_LENGTH)
        if is_blank(name):
            raise _invalid(field, "empty")
        return name
    if field in TEXTS:
        return _clean_string(field, value, TEXT_LENGTH)
    if field in LISTS or field in TRAITS:
        texts = [_clean_item(field, item, ITEM_LENGTH) for item in _items(field, value, LIST_ITEMS)]
        texts = [text for text in texts if text]
        return list(dict.fromkeys(texts)) if field in TRAITS else texts
    if field == "examples":
        return [_clean_example(item) for item in _items(field, value, EXAMPLES)]
    if field == "language":
        if value not in ("ja", "en"):
            raise _invalid(field, "unknown")
        return value
    raise _invalid(field, "unknown")


def _clean_string(field: str, value: Any, limit: int) -> str:
    if not isinstance(value, str | None):
        raise _invalid(field, "wrong_type")
    text = clean_text(value or "")
    if len(text) > limit:
        raise _invalid(field, "too_long", limit=limit)
    return text


def _clean_item(field: str, value: Any, limit: int) -> str:
    """One line, without space around it."""
    if isinstance(value, str):
        value = re.sub(r"[\r\n\t]+", " ", value).strip()
    return _clean_string(field, value, limit)


def _items(field: str, value: Any, limit: int) -> Sequence[Any]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise _invalid(field, "wrong_type")
    if len(value) > limit:
        raise _invalid(field, "too_many", limit=limit)
    return value


def _clean_example(example: Any) -> dict[str, str]:
    if not isinstance(example, dict) or set(example) != {"user", "ai"}:
        raise _invalid("examples", "wrong_type")
    return {who: _clean_string("examples", example[who], TEXT_LENGTH) for who in ("user", "ai")}


def _invalid(field: str, reason: str, **details: Any) -> InvalidPersona:
    return InvalidPersona(f"{field}: {reason}", field=field, reason=reason, **details)
