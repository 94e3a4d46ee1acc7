"""The variables that a prompt template can use."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from persona_lab.personas.persona import PERSONA_FIELDS, Example, Persona, PersonaField
from persona_lab.prompts.trace import Traced


def template_variables(
    persona: Persona,
    *,
    message: str,
    history: list[dict[str, str]],
    labels: tuple[str, str],
    with_examples: bool,
) -> dict[str, Any]:
    """Return every variable that a template can use.

    Args:
        persona: Each of its fields becomes a variable.
        message: The user's message; empty for a preview.
        history: Earlier messages, oldest first, as ``sender`` and ``content``.
        labels: The labels of the user and of the persona in a transcript.
        with_examples: Whether the template renders the examples. Otherwise they are empty.
    """
    user_label, persona_label = labels
    variables = {
        field.variable or field.name: _traced_value(field, getattr(persona, field.name))
        for field in PERSONA_FIELDS.values()
    }
    if not with_examples:
        variables["examples"] = []
    return variables | {
        "conversation_history": history,
        "user_message": message,
        "user_label": user_label,
        "persona_label": Traced(persona_label, "name") if persona.name else persona_label,
    }


def traced_list(values: Iterable[str], field: str) -> list[Traced]:
    """Return ``values`` of ``field`` that aren't blank."""
    return [value for value in (Traced(each, field) for each in values) if value]


def traced_examples(examples: Iterable[Example]) -> list[dict[str, Traced]]:
    """Return the exchanges that have both sides: half of one would teach a model to stay silent."""
    pairs = [
        {"user": Traced(each.user, "examples"), "ai": Traced(each.ai, "examples")}
        for each in examples
    ]
    return [pair for pair in pairs if pair["user"] and pair["ai"]]


def _traced_value(field: PersonaField, value: Any) -> Any:
    if field.is_list:
        return traced_list(value, field.name)
    if field.kind == "examples":
        return traced_examples(value)
    return Traced(value, field.name) if field.colour else value
