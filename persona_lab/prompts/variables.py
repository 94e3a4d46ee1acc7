"""The variables that a prompt template sees."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from persona_lab.db.tables import Agent

if TYPE_CHECKING:
    pass
from persona_lab.prompts.trace import Traced


def _variables(
    agent: Agent,
    personalities: list[Traced],
    roles: list[Traced],
    tones: list[Traced],
    *,
    message: str,
    history: list[dict[str, str]],
    labels: tuple[str, str],
    with_examples: bool,
) -> dict[str, Any]:
    """Every variable that a template can use: the specification's and the persona's voice."""
    user_label, persona_label = labels
    return {
        "agent_name": Traced(agent.name, "name"),
        "agent_description": Traced(agent.description, "description"),
        "agent_background": Traced(agent.background, "background"),
        "gender": Traced(agent.gender, "gender"),
        "personalities": personalities,
        "roles": roles,
        "tones": tones,
        "first_person": Traced(agent.first_person, "first_person"),
        "second_person": Traced(agent.second_person, "second_person"),
        "sentence_endings": _traced_list(agent.sentence_endings, "sentence_endings"),
        "catchphrases": _traced_list(agent.catchphrases, "catchphrases"),
        "forbidden_words": _traced_list(agent.forbidden_words, "forbidden_words"),
        "examples": _examples(agent) if with_examples else [],
        "greeting": Traced(agent.greeting, "greeting"),
        "language": agent.language,
        "conversation_history": history,
        "user_message": message,
        "user_label": user_label,
        "persona_label": Traced(persona_label, "name") if agent.name else persona_label,
    }


def _traced_list(values: Iterable[str] | None, field: str) -> list[Traced]:
    return [value for value in (Traced(each, field) for each in values or ()) if value]


def _examples(agent: Agent) -> list[dict[str, Traced]]:
    """The exchanges that have both sides: a half one would teach a model to stay silent."""
    pairs = [
        {side: Traced(example.get(side), "examples") for side in ("user", "ai")}
        for example in agent.examples or ()
    ]
    return [pair for pair in pairs if pair["user"] and pair["ai"]]
