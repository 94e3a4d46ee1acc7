"""Versions of a persona: what a version holds, and whether two states are the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from persona_lab.personas.diff import FieldChange

MESSAGE_LENGTH = 200
"""Maximum length of a version's message, in characters."""

MAX_VERSION = 2**31 - 1
"""The largest number of a version that the database can hold."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that shapes the prompt of a persona, as plain data.

    Attributes:
        persona: The fields of the persona.
        options: The model options that are kept with the persona.
        templates: The hash of each template that the persona uses, by file name. Empty if it isn't
            known.
    """

    persona: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    templates: Mapping[str, str] = field(default_factory=dict)

    @property
    def hash(self) -> str:
        """The hash of the persona's fields."""
        return persona_hash(self.persona)

    def is_same(self, other: Snapshot) -> bool:
        """Return whether both shape a prompt in the same way."""
        known = self.templates and other.templates
        return (
            self.persona == other.persona
            and self.options == other.options
            and (not known or self.templates == other.templates)
        )


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """What a list shows of a version.

    Attributes:
        number: Counts from 1 for each persona.
        message: What the designer wrote about it; "" if nothing.
        created_at: When it was committed.
        hash: The hash of the persona's fields.
        restored_from: The number of the version that it restores; None for others.
    """

    number: int
    message: str
    created_at: datetime
    hash: str
    restored_from: int | None = None


@dataclass(frozen=True, slots=True)
class DraftState:
    """How the draft of a persona differs from its newest version.

    Attributes:
        version: The newest version; None if there is none.
        changes: The fields that differ from it.
        is_committed: Whether nothing that shapes the prompt differs from it.
    """

    version: VersionInfo | None
    changes: list[FieldChange]
    is_committed: bool


@dataclass(frozen=True, slots=True)
class VersionDiff:
    """The difference between two states of a persona.

    Attributes:
        changes: The fields that differ.
        prompts: The prompt of the earlier and of the later state.
    """

    changes: list[FieldChange]
    prompts: tuple[str, str]


def persona_hash(persona: Mapping[str, Any]) -> str:
    """Return the hash of a persona's fields: 16 hexadecimal digits.

    Each answer keeps it, to tell later which version it is from.
    """
    text = json.dumps(persona, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
