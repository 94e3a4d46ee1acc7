"""The values of character cards, and the bounds of what is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

MAX_FILE_BYTES = 50_000_000
MAX_TEXT_BYTES = 10_000_000
"""The JSON or YAML of one card."""
MAX_UNPACKED_BYTES = 100_000_000
"""The members of a zip file together, and one compressed chunk of a PNG file."""
MAX_ARCHIVE_BYTES = 200_000_000
"""An archive of many cards, and what it unpacks to."""
MAX_INLINE_BYTES = 6_000_000
"""Pictures and files that our own JSON and YAML hold; with more, they hold the card alone."""
MAX_DEPTH = 64
MAX_VALUES = 500_000
"""Values of one document; this bounds memory and time."""
MAX_PARTS = 50_000
"""Chunks of a PNG file, or members of a zip file."""
MAX_ENTRIES = 10_000
"""Entries of a lorebook."""

Spec = Literal["v1", "v2", "v3", "own"]
Source = Literal["json", "png", "charx", "yaml", "own", "sheet", "persona"]
Format = Literal["v2-json", "v3-json", "v2-png", "v3-png", "charx", "yaml", "json", "text"]
Fate = Literal["used", "kept", "lost"]
"""``used``: it reaches a field of the persona, or the lorebook. ``kept``: it stays in the card and
is written again. ``lost``: the target has no place for it."""

OWN = "persona_lab"
"""The name of our part of ``extensions``."""


@dataclass(frozen=True, slots=True)
class Note:
    """What was unusual in a file, and what was done about it.

    Attributes:
        key: The key of its text in ``templates/cards.yaml``.
        path: The place in the card, such as ``character_book.entries.3.keys``.
        details: The values of the text's placeholders.
    """

    key: str
    path: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Row:
    """What happens with one field, as a row of a table.

    Attributes:
        source: The field of the card or the label of the sheet.
        target: The field of the persona, ``lorebook``, or "".
        fate: Whether it is used, kept aside or lost.
        key: The key of an explanation in ``templates/cards.yaml``, or "".
        details: The values of the explanation's placeholders.
    """

    source: str
    target: str
    fate: Fate
    key: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Card:
    """A character card, in the same form for each version of the specification.

    Two cards are equal if their content is, however it was stored.

    Attributes:
        data: The fields of the card by the names of V3, repaired where the file was outside the
            specification. What fits nowhere is under ``extensions.persona_lab.kept``.
        outside: Fields beside ``data`` that no specification names.
        picture: A PNG file without the card's chunks. Foreign chunks are in it.
        members: The files that came with the card, by path.
        prefix: The bytes before a zip file, such as a JPEG picture.
        spec: The version that was read.
        spec_version: The version as the file states it.
        source: The kind of file that was read.
        original: The bytes that were read; empty for a card that was made here.
        notes: What was unusual in the file.
    """

    data: dict[str, Any]
    outside: dict[str, Any] = field(default_factory=dict)
    picture: bytes | None = field(default=None, repr=False)
    members: dict[str, bytes] = field(default_factory=dict, repr=False)
    prefix: bytes = field(default=b"", repr=False)
    spec: Spec = field(default="v3", compare=False)
    spec_version: str = field(default="3.0", compare=False)
    source: Source = field(default="persona", compare=False)
    original: bytes = field(default=b"", compare=False, repr=False)
    notes: tuple[Note, ...] = field(default=(), compare=False)

    @property
    def name(self) -> str:
        """The character's name."""
        return str(self.data["name"])

    @property
    def edited(self) -> bool:
        """Whether the card was changed here after it was imported."""
        return own_part(self.data).get("edited") is True


def outside_fields(card: Card) -> list[str]:
    """Return the names of fields beside ``data``, without the copies that old programs read."""
    return [
        name
        for name, value in card.outside.items()
        if name not in card.data or card.data[name] != value
    ]


def own_part(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return our part of the extensions of ``data``; empty if there is none."""
    part = data.get("extensions", {}).get(OWN)
    return part if isinstance(part, dict) else {}
