"""Deprecated import path: use :mod:`persona_lab.types` and :mod:`persona_lab.db.tables`.

Every name that stood here until 0.1.0 can still be imported, with a DeprecationWarning. The module
goes away with 0.2.
"""

from __future__ import annotations

import warnings

from persona_lab import types
from persona_lab.db import generations, tables

_RENAMED = {
    "Turn": "PromptMessage",
    "TurnRecord": "Generation",
    "PastTurn": "GenerationRow",
    "PassedOver": "FailedAttempt",
    "Outcome": "GenerationResult",
}


def __getattr__(name: str) -> object:
    for module in (types, tables, generations):
        new_name = _RENAMED.get(name, name)
        if not name.startswith("_") and hasattr(module, new_name):
            warnings.warn(
                f"persona_lab.models.{name} is now {module.__name__}.{new_name}",
                DeprecationWarning,
                stacklevel=2,
            )
            return getattr(module, new_name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
