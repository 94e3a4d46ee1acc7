"""The specification's nouns under the import path that programs use.

The definitions live in :mod:`persona_lab.types` and :mod:`persona_lab.db.tables`. A name that
changed in 0.1.0 is still found here under its old name, with a DeprecationWarning, until 0.2.
"""

from __future__ import annotations

import warnings

from persona_lab import types
from persona_lab.db import generations, tables
from persona_lab.db.tables import (
    Agent,
    AgentPersonality,
    AgentRevision,
    AgentRole,
    AgentTone,
    ApiToken,
    Chat,
    Message,
    Personality,
    Role,
    Tone,
    User,
)
from persona_lab.types import (
    Chunk,
    Completion,
    Event,
    Image,
    Language,
    Options,
    Prompt,
    Reply,
    Sender,
    Span,
    Status,
    Trace,
    Usage,
    new_id,
    now,
)

__all__ = [
    "Agent",
    "AgentPersonality",
    "AgentRevision",
    "AgentRole",
    "AgentTone",
    "ApiToken",
    "Chat",
    "Chunk",
    "Completion",
    "Event",
    "Image",
    "Language",
    "Message",
    "Options",
    "Personality",
    "Prompt",
    "Reply",
    "Role",
    "Sender",
    "Span",
    "Status",
    "Tone",
    "Trace",
    "Usage",
    "User",
    "new_id",
    "now",
]

_RENAMED = {
    "Turn": ("types", "PromptMessage"),
    "TurnRecord": ("tables", "Generation"),
    "PastTurn": ("generations", "GenerationRow"),
    "PassedOver": ("generations", "FailedAttempt"),
    "Outcome": ("generations", "GenerationResult"),
}


def __getattr__(name: str) -> object:
    if name not in _RENAMED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home, new_name = _RENAMED[name]
    module = {"types": types, "tables": tables, "generations": generations}[home]
    warnings.warn(
        f"persona_lab.models.{name} is now {module.__name__}.{new_name}",
        DeprecationWarning,
        stacklevel=2,
    )
    return getattr(module, new_name)
