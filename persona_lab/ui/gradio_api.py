"""The named Gradio endpoints: each action of the tabs, with described parameters.

The page's own events are private. The endpoints are plain functions over the same lab. A client
without the page's cookie is a visitor of its own, as long as its Gradio session lasts.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import gradio as gr

from persona_lab.comparison.runner import Contestant
from persona_lab.db.persona_rows import unsaved_agent
from persona_lab.db.tables import Agent
from persona_lab.errors import InputError
from persona_lab.insights import DEFAULT_SPAN, generations_to_csv, parse_time_zone
from persona_lab.lab import Lab
from persona_lab.personas.persona import PERSONA_FIELDS, Persona, clean_persona, persona_of
from persona_lab.server.gradio_middleware import CallInput, FindInputs
from persona_lab.server.operations import Operations
from persona_lab.server.serializers import (
    cell_data,
    chat_data,
    message_data,
    model_data,
    persona_data,
    prompt_data,
    summary_data,
)
from persona_lab.ui.endpoint_adapter import accumulate, describe_parameters, endpoint
from persona_lab.ui.session import Visitor, Visitors


def _field_names() -> str:
    """Return the names of a persona's fields, with the form of those that aren't plain text."""
    names = []
    for field in PERSONA_FIELDS.values():
        form = "a list of user and ai" if field.kind == "examples" else " or ".join(field.values)
        names.append(f"{field.name} ({form})" if form else field.name)
    return ", ".join(names)


def input_finder(page: gr.Blocks) -> FindInputs:
    """Return a function that finds the inputs of an endpoint of ``page``, or of an event."""
    described = page.get_api_info()["named_endpoints"]
    named = {
        path.removeprefix("/"): [
            CallInput(each["parameter_name"], required=not each["parameter_has_default"])
            for each in endpoint["parameters"]
        ]
        for path, endpoint in described.items()
    }
    # An event without a function runs in the browser only, or cancels other events.
    called = {index: event for index, event in page.fns.items() if event.fn}
    events = {index: [CallInput()] * len(event.inputs) for index, event in called.items()}
    private = {event.api_name: events[index] for index, event in called.items()}

    def find(name: str, index: int | None) -> list[CallInput] | None:
        return named.get(name, private.get(name)) if index is None else events.get(index)

    return find


class Endpoints:
    """The named endpoints, one method each. Names, parameters and docstrings are public."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    def _operations(self, visitor: Visitor) -> Operations:
        return visitor.operations(self._lab)

    async def _draft(
        self, persona_id: str, changes: dict[str, Any] | None, visitor: Visitor
    ) -> Agent:
        """Return a saved persona, or an unsaved one built from ``changes``.

        With both, the changes apply to the saved persona, but aren't saved.
        """
        operations = self._operations(visitor)
        if not changes:
            return await operations.get_persona(persona_id)
        base = (
            persona_of(await operations.get_persona(persona_id))
            if persona_id
            else Persona(name="?").to_dict()
        )
        return unsaved_agent({**base, **clean_persona(changes)}, persona_id)

    async def list_personas(self, *, visitor: Visitor) -> list[dict[str, Any]]:
        """Your personas, the newest change first, then the demos.

        Returns:
            Personas with id, demo and every editable field.
        """
        return [persona_data(a) for a in await self._operations(visitor).list_personas()]

    async def save_persona(
        self, persona: dict[str, Any], persona_id: str = "", *, visitor: Visitor
    ) -> dict[str, Any]:
        """Create a persona, or change one; a changed demo becomes a copy of your own.

        Args:
            persona: Fields to set: {fields}.
            persona_id: The id of the persona to change; empty creates one.

        Returns:
            The persona as it is saved, with its id.
        """
        # A client may send back an unchanged value of list_personas.
        fields = clean_persona({k: v for k, v in persona.items() if k not in ("id", "demo")})
        operations = self._operations(visitor)
        if persona_id:
            return persona_data(await operations.update_persona(persona_id, **fields))
        return persona_data(await operations.create_persona(**{"name": "", **fields}))

    save_persona.__doc__ = str(save_persona.__doc__).format(fields=_field_names())

    async def duplicate_persona(
        self, persona_id: str, name: str = "", *, visitor: Visitor
    ) -> dict[str, Any]:
        """Copy a persona, a demo too, into your own.

        Args:
            persona_id: The id of the persona to copy.
            name: The copy's name; empty keeps the name.

        Returns:
            The copy.
        """
        operations = self._operations(visitor)
        agent = await operations.get_persona(persona_id)
        return persona_data(await operations.duplicate_persona(persona_id, name or agent.name))

    async def delete_persona(self, persona_id: str, *, visitor: Visitor) -> dict[str, Any]:
        """Delete a persona of yours; restore_persona brings it back.

        Args:
            persona_id: The id of the persona.

        Returns:
            The id of what was deleted.
        """
        await self._operations(visitor).delete_persona(persona_id)
        return {"deleted": persona_id}

    async def restore_persona(self, persona_id: str, *, visitor: Visitor) -> dict[str, Any]:
        """Bring a deleted persona back.

        Args:
            persona_id: The id of the persona.

        Returns:
            The persona.
        """
        return persona_data(await self._operations(visitor).restore_persona(persona_id))

    async def undo_persona(self, persona_id: str, *, visitor: Visitor) -> dict[str, Any]:
        """Step back to what a persona was before its last change.

        Args:
            persona_id: The id of the persona.

        Returns:
            The persona as it is now; unchanged where there was no earlier state.
        """
        operations = self._operations(visitor)
        undone = await operations.undo_persona(persona_id)
        return persona_data(undone or await operations.get_persona(persona_id))

    async def list_models(self, *, visitor: Visitor) -> list[dict[str, Any]]:
        """The models that can be chosen, the default first.

        Returns:
            For each: model (provider:name, what the other endpoints take), label, available, context.
        """  # noqa: E501 - Gradio reads one line a return value
        return [model_data(*listed) for listed in self._operations(visitor).list_models()]

    async def preview_prompt(
        self,
        persona_id: str = "",
        message: str = "",
        model: str = "",
        persona: dict[str, Any] | None = None,
        *,
        visitor: Visitor,
    ) -> dict[str, Any]:
        """The exact prompt that would be sent, to the byte, and where each part comes from.

        Args:
            persona_id: The id of a saved persona; empty when persona is given.
            message: What the user would say; may be empty.
            model: The model it would go to, as provider:name; empty takes the default.
            persona: Fields of a persona that isn't saved, or changes to the saved one.

        Returns:
            prompt, system, turns, kind, stop, template, rule, reason and spans (start, end, field).
        """
        agent = await self._draft(persona_id, persona, visitor)
        return prompt_data(await self._operations(visitor).preview(agent, message, model=model))

    async def try_message(
        self,
        message: str,
        persona_id: str = "",
        model: str = "",
        persona: dict[str, Any] | None = None,
        *,
        visitor: Visitor,
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Say one thing to a persona, kept or not, without a conversation; each step has the answer so far.

        Args:
            message: What you say.
            persona_id: The id of a saved persona; empty when persona is given.
            model: The model, as provider:name; empty takes the default.
            persona: Fields of a persona that isn't saved, or changes to the saved one.

        Returns:
            content, chat_id (empty), done, and on the last step metadata.
        """  # noqa: E501 - Gradio reads one line a description
        agent = await self._draft(persona_id, persona, visitor)
        events = self._operations(visitor).answer(agent, message, model=model)
        async with aclosing(accumulate(events, "")) as steps:
            async for step in steps:
                yield step

    async def compare(
        self, message: str, models: list[str], persona_ids: list[str], *, visitor: Visitor
    ) -> AsyncGenerator[list[dict[str, Any]], None]:
        """One message to several columns at once; each step is a snapshot of all columns.

        Args:
            message: What the user says.
            models: A model for each column, as provider:name.
            persona_ids: A persona's id for each column, or one for all.

        Returns:
            For each column: model, persona, text, state (waiting, streaming, done, failed, stopped), error, metadata.
        """  # noqa: E501 - Gradio reads one line a return value
        ids = persona_ids * len(models) if len(persona_ids) == 1 else persona_ids
        if len(ids) != len(models):
            raise InputError
        operations = self._operations(visitor)
        agents = [await operations.get_persona(id_) for id_ in ids]
        contestants = [Contestant(m, a) for m, a in zip(models, agents, strict=True)]
        async with aclosing(operations.compare(message, contestants)) as snapshots:
            async for cells in snapshots:
                yield [cell_data(*column) for column in zip(contestants, cells, strict=True)]

    async def chat(
        self,
        message: str,
        persona_id: str,
        chat_id: str = "",
        model: str = "",
        *,
        visitor: Visitor,
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Say something to a persona; each step has the answer so far.

        Args:
            message: What you say.
            persona_id: The id of the persona, the one that the conversation was begun with.
            chat_id: The conversation to go on with; empty begins one.
            model: The model, as provider:name; empty takes the default.

        Returns:
            content, chat_id, done, and on the last step metadata.
        """
        operations = self._operations(visitor)
        text, chat = await operations.chat_for(message, chat_id, persona_id, model=model)
        events = operations.send(text, chat.id, persona_id, model=model)
        async with aclosing(accumulate(events, chat.id)) as steps:
            async for step in steps:
                yield step

    async def regenerate(
        self, chat_id: str, model: str = "", *, visitor: Visitor
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Another answer to the last message of a conversation; the one before is kept.

        Args:
            chat_id: The conversation.
            model: The model, as provider:name; empty takes the default.

        Returns:
            content, chat_id, done, and on the last step metadata.
        """
        events = self._operations(visitor).regenerate(chat_id, model=model)
        async with aclosing(accumulate(events, chat_id)) as steps:
            async for step in steps:
                yield step

    async def list_chats(self, persona_id: str = "", *, visitor: Visitor) -> list[dict[str, Any]]:
        """Your conversations, the newest first.

        Args:
            persona_id: Only those with this persona; empty gives all.

        Returns:
            For each: id, persona, title, updated_at.
        """
        return [chat_data(c) for c in await self._operations(visitor).list_chats(persona_id)]

    async def get_chat(self, chat_id: str, *, visitor: Visitor) -> list[dict[str, Any]]:
        """The messages of a conversation, the oldest first.

        Args:
            chat_id: The conversation.

        Returns:
            For each: id, sender (user or ai), content, status, timestamp, metadata.
        """
        return [message_data(m) for m in await self._operations(visitor).list_messages(chat_id)]

    async def delete_chat(self, chat_id: str, *, visitor: Visitor) -> dict[str, Any]:
        """Delete a conversation; restore_chat brings it back.

        Args:
            chat_id: The conversation.

        Returns:
            The id of what was deleted.
        """
        await self._operations(visitor).delete_chat(chat_id)
        return {"deleted": chat_id}

    async def restore_chat(self, chat_id: str, *, visitor: Visitor) -> dict[str, Any]:
        """Bring a deleted conversation back.

        Args:
            chat_id: The conversation.

        Returns:
            The conversation.
        """
        return chat_data(await self._operations(visitor).restore_chat(chat_id))

    async def insights(
        self, span: str = DEFAULT_SPAN, zone: str = "UTC", *, visitor: Visitor
    ) -> dict[str, Any]:
        """What your personas did, how long it took and what it cost: waits at P50, P95 and P99, tokens, cost, errors, cache hits.

        Args:
            span: today, 7days or 30days (today is the last of them), or all.
            zone: The time zone in which days begin, such as Asia/Tokyo; one that is unknown counts as UTC.

        Returns:
            span, zone, since, until, total, kinds, error_types, by_persona, by_model and by_day. Times are in milliseconds and cost in US dollars: null where no price is known, unpriced counting what it leaves out.
        """  # noqa: E501 - Gradio reads one line a description
        return summary_data(await self._operations(visitor).summary(span, zone))

    async def export_turns(
        self, span: str = DEFAULT_SPAN, zone: str = "UTC", *, visitor: Visitor
    ) -> str:
        """The figures of every answer of a span as CSV, without what was said.

        Args:
            span: today, 7days, 30days or all.
            zone: The time zone of its times and days, such as Asia/Tokyo.

        Returns:
            The file's text, with headings in your language.
        """
        turns = await self._operations(visitor).list_turns(span, zone)
        return generations_to_csv(
            turns, parse_time_zone(zone), visitor.translations, visitor.language
        )

    def all(self) -> list[Callable[..., Any]]:
        """Return every endpoint, in the order in which clients list them."""
        return [
            self.list_personas,
            self.save_persona,
            self.duplicate_persona,
            self.delete_persona,
            self.restore_persona,
            self.undo_persona,
            self.list_models,
            self.preview_prompt,
            self.try_message,
            self.compare,
            self.chat,
            self.regenerate,
            self.list_chats,
            self.get_chat,
            self.delete_chat,
            self.restore_chat,
            self.insights,
            self.export_turns,
        ]


def name_endpoints(page: gr.Blocks, lab: Lab, visitors: Visitors) -> None:
    """Declare the named endpoints. Call it inside the Blocks."""
    for function in Endpoints(lab).all():
        name = function.__name__
        gr.api(endpoint(function, visitors), api_name=name, concurrency_limit=None)
    describe_parameters(page)
