"""Build the exact prompt from persona, history and message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

from persona_lab.db.tables import Agent
from persona_lab.personas.persona import Persona
from persona_lab.prompts.templates import Choice, Kind, PromptTemplateEngine
from persona_lab.prompts.trace import strip_marks
from persona_lab.prompts.variables import template_variables, traced_examples, traced_list
from persona_lab.types import Prompt, PromptMessage, Trace

if TYPE_CHECKING:
    from persona_lab.clients.catalog import ModelInfo


class PromptBuilder:
    """Build the prompt from a persona, a conversation and a message."""

    def __init__(self, engine: PromptTemplateEngine) -> None:
        self.engine = engine

    async def build(
        self,
        agent: Agent,
        message: str,
        context: Sequence[Mapping[str, Any]] = (),
        *,
        info: ModelInfo | None = None,
    ) -> Prompt:
        """Build what is sent to a model, to the byte. The agent may be unsaved.

        Args:
            agent: The persona's row.
            message: The user's message. Empty is a preview: the prompt then has no turn for it.
            context: Earlier messages, oldest first, ``{"sender": "user"|"ai", "content": …}``.
            info: The model; None is a chat model.

        Raises:
            TemplateError: The template failed.
        """
        kind: Kind = info.prompt if info is not None else "chat"
        as_turns = kind == "chat" and info is not None and info.examples == "turns"
        persona = Persona.from_agent(agent)
        choice = self._choose_template(persona, kind)
        user_label, persona_label, stop = self.engine.labels(persona.language, persona.name)
        history = [
            {"sender": entry["sender"], "content": strip_marks(entry["content"])}
            for entry in context
            if strip_marks(entry["content"])
        ]
        variables = template_variables(
            persona,
            message=strip_marks(message),
            history=history,
            labels=(user_label, persona_label),
            with_examples=not as_turns,
        )
        system, spans = self.engine.render(choice, variables)
        trace = Trace(choice.file, choice.rule, choice.reason, spans, dict(choice.reasons))
        if kind == "transcript":
            return Prompt(system, (), kind, message, stop, trace)
        turns: list[PromptMessage] = []
        if as_turns:
            for example in traced_examples(persona.examples):
                turns.append(PromptMessage("user", str.__str__(example["user"])))
                turns.append(PromptMessage("assistant", str.__str__(example["ai"])))
        turns += [
            PromptMessage(
                "user" if entry["sender"] == "user" else "assistant", str(entry["content"])
            )
            for entry in context
            if str(entry["content"]).strip()
        ]
        if message:
            turns.append(PromptMessage("user", message))
        return Prompt(system, tuple(turns), kind, message, (), trace)

    def template_hashes(self, agent: Agent) -> dict[str, str]:
        """Return the hashes of the templates that a persona uses, by the name of the file."""
        persona = Persona.from_agent(agent)
        choices = [self._choose_template(persona, kind) for kind in get_args(Kind)]
        return {choice.file: self.engine.source_hash(choice) for choice in choices}

    def _choose_template(self, persona: Persona, kind: Kind) -> Choice:
        return self.engine.get_template(
            traced_list(persona.personalities, "personalities"),
            traced_list(persona.roles, "roles"),
            tones=traced_list(persona.tones, "tones"),
            language=persona.language,
            kind=kind,
        )
