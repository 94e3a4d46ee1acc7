"""Which models and personas the columns of a comparison have when a page loads."""

from __future__ import annotations

import json
from collections.abc import Collection

from persona_lab.comparison.runner import MAX_COLUMNS
from persona_lab.lab import Lab
from persona_lab.ui.model_status import supports_language
from persona_lab.ui.session import Visitor

CURRENT = "current"
"""The value of a column's persona that is open in the editor. An empty value shows an empty box."""

INITIAL_COLUMNS = 2
"""Number of columns that are open at first."""


def open_columns(shown: float | None) -> int:
    """Return the number of open columns, within bounds for any number that a client sends."""
    return min(MAX_COLUMNS, max(1, int(shown or INITIAL_COLUMNS)))


def parse_layout(text: str) -> tuple[int, list[str], list[str]] | None:
    """Parse the JSON of the layout of the compare tab that a browser stored.

    Returns:
        The number of open columns, the models, and the personas; None if the JSON is invalid.
    """
    try:
        count, *values = json.loads(text)
        shown = open_columns(count)
    except (ValueError, TypeError, OverflowError):
        return None
    models, personas = values[:MAX_COLUMNS], values[MAX_COLUMNS:]
    if len(personas) != MAX_COLUMNS or not all(isinstance(v, str) for v in models[:shown]):
        return None
    return shown, [str(v or "") for v in models], [str(v or "") for v in personas]


async def pick_unused_persona(lab: Lab, used: Collection[str], visitor: Visitor) -> str:
    """Pick another persona in the visitor's language, with a name that isn't used yet.

    Args:
        lab: The open lab.
        used: The ids of the personas that are used.
        visitor: The visitor.

    Returns:
        The id of the persona; ``CURRENT`` if there is none.
    """
    agents = await visitor.operations(lab).list_persona_names()
    names = {agent.name for agent in agents if agent.id in used}
    unused = (a.id for a in agents if a.language == visitor.language and a.name not in names)
    return next(unused, CURRENT)


async def first_comparison(lab: Lab, opened: str, visitor: Visitor) -> tuple[list[str], list[str]]:
    """Choose the first models and personas of the columns.

    Models are local ones that support the visitor's language. If there is only the default
    model, it answers as two personas.

    Args:
        lab: The open lab.
        opened: The id of the open persona.
        visitor: The visitor.

    Returns:
        A model and a persona for each column, as two lists.
    """
    default = lab.clients.info()
    others = [
        info.spec
        for info in lab.clients.listed()
        if info.is_local and info.spec != default.spec
        if supports_language(info, visitor.language)
    ]
    personas = [CURRENT] * MAX_COLUMNS
    if not others:
        personas[1] = await pick_unused_persona(lab, [opened], visitor)
    return ([default.spec, *others[:1]] * MAX_COLUMNS)[:MAX_COLUMNS], personas
