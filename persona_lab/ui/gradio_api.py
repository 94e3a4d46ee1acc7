"""What a program may call: every action of the tabs, by name, with described parameters.

The page's own events are private to it; these are plain functions over the same lab. A client
without the page's cookie works in a space of its own, which lasts as long as its session.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import asdict
from typing import Any, get_type_hints

import gradio as gr
from gradio.utils import get_function_description
from pydantic import ConfigDict, TypeAdapter, ValidationError

from persona_lab.comparison.runner import Comparison, Contestant
from persona_lab.db.tables import Agent, Chat, Message
from persona_lab.errors import InputError
from persona_lab.insights import SPAN, Figures, Summary, zone_of
from persona_lab.lab import Lab
from persona_lab.personas.persona import PERSONA_FIELDS, Persona, clean_persona, persona_of
from persona_lab.responses.changes import metadata_with_raw
from persona_lab.types import Event, Prompt
from persona_lab.ui.csv_export import spreadsheet
from persona_lab.ui.session import Visitor, Visitors
from persona_lab.ui.streaming import paced
from persona_lab.ui.tabs.persona import unsaved


def _field_names() -> str:
    """Return the names of a persona's fields, with the form of those that aren't plain text."""
    names = []
    for field in PERSONA_FIELDS.values():
        form = "a list of user and ai" if field.kind == "examples" else " or ".join(field.values)
        names.append(f"{field.name} ({form})" if form else field.name)
    return ", ".join(names)


def agent_data(agent: Agent) -> dict[str, Any]:
    return {"id": agent.id, "demo": agent.owner_id is None, **persona_of(agent)}


def prompt_data(prompt: Prompt) -> dict[str, Any]:
    return {
        "prompt": str(prompt),
        "system": prompt.system,
        "turns": [{"role": turn.role, "content": turn.content} for turn in prompt.turns],
        "kind": prompt.kind,
        "stop": list(prompt.stop),
        "template": prompt.trace.template,
        "rule": prompt.trace.rule,
        "reason": prompt.trace.reason,
        "spans": [[span.start, span.end, span.field] for span in prompt.trace.spans],
    }


def chat_data(chat: Chat) -> dict[str, Any]:
    return {
        "id": chat.id,
        "persona": chat.agent_id,
        "title": chat.title,
        "updated_at": chat.updated_at.isoformat(),
    }


def message_data(message: Message) -> dict[str, Any]:
    return {
        "id": message.id,
        "sender": message.sender,
        "content": message.content,
        "status": message.status,
        "timestamp": message.created_at.isoformat(),
        "metadata": metadata_with_raw(message.content, message.details)
        if message.sender == "ai"
        else message.details,
    }


def figures_data(figures: Figures) -> dict[str, Any]:
    return {
        "answers": figures.answers,
        "stopped": figures.stopped,
        "errors": figures.errors,
        "error_rate": figures.error_rate,
        "cache_hits": figures.cache_hits,
        "cache_hit_rate": figures.cache_hit_rate,
        "first_token_ms": asdict(figures.first),
        "total_ms": asdict(figures.whole),
        "tokens": {
            "prompt": figures.prompt_tokens,
            "cached": figures.cached_tokens,
            "completion": figures.completion_tokens,
        },
        "cost": figures.cost,
        "unpriced": figures.unpriced,
    }


def summary_data(summary: Summary) -> dict[str, Any]:
    models = [(part.key.partition(":"), part.figures) for part in summary.models]
    return {
        "span": summary.span,
        "zone": summary.zone,
        "since": summary.since.isoformat() if summary.since else None,
        "until": summary.until.isoformat(),
        "total": figures_data(summary.total),
        "kinds": dict(summary.kinds),
        "error_types": dict(summary.error_types),
        "by_persona": [
            {"id": p.key, "name": p.name, "demo": p.demo, **figures_data(p.figures)}
            for p in summary.personas
        ],
        "by_model": [
            {"provider": provider, "model": name, **figures_data(figures)}
            for (provider, _, name), figures in models
        ],
        "by_day": [{"day": p.key, **figures_data(p.figures)} for p in summary.days],
    }


async def grown(
    events: AsyncGenerator[Event, None], chat_id: str
) -> AsyncGenerator[dict[str, Any], None]:
    """Each step has the answer so far, as Gradio's clients expect of a stream."""
    content = ""
    async with aclosing(paced(events)) as batches:
        async for batch in batches:
            done, told = False, {}
            for event in batch:
                done = event.type == "done"
                content = event.content if done else content + event.content
                told = event.metadata if done else {}
            yield {"content": content, "chat_id": chat_id, "done": done, "metadata": told}


def endpoint(function: Callable[..., Any], visitors: Visitors) -> Callable[..., Any]:
    """``function`` as Gradio calls it: with a request, from which the visitor is known.

    A program may send anything: values of another kind than the signature says are refused as
    InputError, and every error leaves as words for the visitor.
    """
    hints = get_type_hints(function)
    parameters = [p for p in inspect.signature(function).parameters.values() if p.name != "visitor"]
    strict = ConfigDict(strict=True)
    kinds = [TypeAdapter(hints[p.name], config=strict) for p in parameters]

    def valid(values: tuple[Any, ...]) -> list[Any]:
        try:
            return [kind.validate_python(v) for kind, v in zip(kinds, values, strict=True)]
        except ValidationError as wrong:
            raise InputError from wrong

    async def ask(*values: Any) -> Any:
        visitor = await visitors.of(values[-1])
        with visitor.error_toasts():
            return await function(*valid(values[:-1]), visitor=visitor)

    async def stream(*values: Any) -> AsyncGenerator[Any, None]:
        visitor = await visitors.of(values[-1])
        with visitor.error_toasts():
            async with aclosing(function(*valid(values[:-1]), visitor=visitor)) as steps:
                async for step in steps:
                    yield step

    called: Any = stream if inspect.isasyncgenfunction(function) else ask
    request = inspect.Parameter(
        "request", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=gr.Request
    )
    called.__name__, called.__doc__ = function.__name__, function.__doc__
    called.__signature__ = inspect.Signature(
        [*parameters, request], return_annotation=hints["return"]
    )
    called.__annotations__ = {p.name: hints[p.name] for p in parameters} | {
        "request": gr.Request,
        "return": hints["return"],
    }
    return called  # type: ignore[no-any-return]


def describe(page: gr.Blocks) -> None:
    """Hands clients the parameters' descriptions, which gr.api keeps to itself."""
    for endpoint in page.fns.values():
        if endpoint.api_visibility == "public":
            _, described, _ = get_function_description(endpoint.fn)
            # Parameters come in the signature's order; the request, which is last, has no input.
            for component, text in zip(endpoint.inputs, described.values(), strict=False):
                component._api_info = {**component._api_info, "additional_description": text}


def name_endpoints(page: gr.Blocks, lab: Lab, visitors: Visitors) -> None:
    """Declares the named endpoints. Call it inside the Blocks."""
    store = lab.store

    async def find(persona: str, user_id: str) -> Agent:
        return await asyncio.to_thread(store.get_agent, persona, user_id=user_id)

    async def meant(persona_id: str, changes: dict[str, Any] | None, visitor: Visitor) -> Agent:
        """A kept persona, or one that isn't kept: fields, or changes to the kept one."""
        if not changes:
            return await find(persona_id, visitor.user_id)
        base = (
            persona_of(await find(persona_id, visitor.user_id))
            if persona_id
            else Persona(name="?").to_dict()
        )
        return unsaved({**base, **clean_persona(changes)}, persona_id)

    async def list_personas(*, visitor: Visitor) -> list[dict[str, Any]]:
        """Your personas, the newest change first, then the demos.

        Returns:
            Personas with id, demo and every editable field.
        """
        agents = await asyncio.to_thread(store.list_agents, user_id=visitor.user_id)
        return [agent_data(agent) for agent in agents]

    async def save_persona(
        persona: dict[str, Any], persona_id: str = "", *, visitor: Visitor
    ) -> dict[str, Any]:
        """Create a persona, or change one; a changed demo becomes a copy of your own.

        Args:
            persona: Fields to set: {fields}.
            persona_id: The id of the persona to change; empty creates one.

        Returns:
            The persona as it is kept, with its id.
        """
        # What list_personas gives may come back as it is.
        fields = clean_persona({k: v for k, v in persona.items() if k not in ("id", "demo")})
        if persona_id:
            agent = await asyncio.to_thread(
                store.update_agent, persona_id, user_id=visitor.user_id, **fields
            )
        else:
            named = {"name": "", **fields}
            agent = await asyncio.to_thread(store.create_agent, user_id=visitor.user_id, **named)
        return agent_data(agent)

    save_persona.__doc__ = str(save_persona.__doc__).format(fields=_field_names())

    async def duplicate_persona(
        persona_id: str, name: str = "", *, visitor: Visitor
    ) -> dict[str, Any]:
        """Copy a persona, a demo too, into your own.

        Args:
            persona_id: The id of the persona to copy.
            name: The copy's name; empty keeps the name.

        Returns:
            The copy.
        """
        agent = await find(persona_id, visitor.user_id)
        copy = await asyncio.to_thread(
            store.duplicate_agent, persona_id, user_id=visitor.user_id, name=name or agent.name
        )
        return agent_data(copy)

    async def delete_persona(persona_id: str, *, visitor: Visitor) -> dict[str, Any]:
        """Delete a persona of yours; restore_persona brings it back.

        Args:
            persona_id: The id of the persona.

        Returns:
            The id of what was deleted.
        """
        await asyncio.to_thread(store.delete_agent, persona_id, user_id=visitor.user_id)
        return {"deleted": persona_id}

    async def restore_persona(persona_id: str, *, visitor: Visitor) -> dict[str, Any]:
        """Bring a deleted persona back.

        Args:
            persona_id: The id of the persona.

        Returns:
            The persona.
        """
        agent = await asyncio.to_thread(store.restore_agent, persona_id, user_id=visitor.user_id)
        return agent_data(agent)

    async def undo_persona(persona_id: str, *, visitor: Visitor) -> dict[str, Any]:
        """Step back to what a persona was before its last change.

        Args:
            persona_id: The id of the persona.

        Returns:
            The persona as it is now; unchanged where there was no earlier state.
        """
        agent = await asyncio.to_thread(store.undo_agent, persona_id, user_id=visitor.user_id)
        return agent_data(agent or await find(persona_id, visitor.user_id))

    async def list_models(*, visitor: Visitor) -> list[dict[str, Any]]:
        """The models that can be chosen, the default first.

        Returns:
            For each: model (provider:name, what the other endpoints take), label, available, context.
        """  # noqa: E501 - Gradio reads one line a return value
        return [
            {
                "model": info.spec,
                "label": info.label or info.name,
                "available": visitor.service.clients.available(info),
                "context": info.context,
                "languages": list(info.languages),
            }
            for info in lab.clients.listed()
        ]

    async def preview_prompt(
        persona_id: str = "",
        message: str = "",
        model: str = "",
        persona: dict[str, Any] | None = None,
        *,
        visitor: Visitor,
    ) -> dict[str, Any]:
        """The exact prompt that would be sent, to the byte, and where each part comes from.

        Args:
            persona_id: The id of a kept persona; empty when persona is given.
            message: What the user would say; may be empty.
            model: The model it would go to, as provider:name; empty takes the default.
            persona: Fields of a persona that isn't kept, or changes to the kept one.

        Returns:
            prompt, system, turns, kind, stop, template, rule, reason and spans (start, end, field).
        """
        agent = await meant(persona_id, persona, visitor)
        return prompt_data(await visitor.service.preview(agent, message, model=model))

    async def try_message(
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
            persona_id: The id of a kept persona; empty when persona is given.
            model: The model, as provider:name; empty takes the default.
            persona: Fields of a persona that isn't kept, or changes to the kept one.

        Returns:
            content, chat_id (empty), done, and on the last step metadata.
        """  # noqa: E501 - Gradio reads one line a description
        agent = await meant(persona_id, persona, visitor)
        events = visitor.service.answer(
            agent, message, user_id=visitor.user_id, model=model, language=visitor.language
        )
        async with aclosing(grown(events, "")) as steps:
            async for step in steps:
                yield step

    async def compare(
        message: str, models: list[str], persona_ids: list[str], *, visitor: Visitor
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
        agents = [await find(id_, visitor.user_id) for id_ in ids]
        players = [Contestant(m, a) for m, a in zip(models, agents, strict=True)]
        runs = Comparison(visitor.service).run(
            message, players, visitor.user_id, language=visitor.language
        )
        async with aclosing(runs) as snapshots:
            async for cells in snapshots:
                yield [
                    {
                        "model": player.model,
                        "persona": player.agent.id,
                        "text": cell.text,
                        "state": cell.state,
                        "error": cell.error,
                        "metadata": cell.metadata,
                    }
                    for player, cell in zip(players, cells, strict=True)
                ]

    async def chat(
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
        text = lab.input_validator.validate_message(message)
        lab.clients.info(model)
        if not chat_id:
            begun = await asyncio.to_thread(
                store.create_chat, user_id=visitor.user_id, agent_id=persona_id
            )
            chat_id = begun.id
        events = visitor.service.generate_streaming(
            text, persona_id, chat_id, visitor.user_id, model=model, language=visitor.language
        )
        async with aclosing(grown(events, chat_id)) as steps:
            async for step in steps:
                yield step

    async def regenerate(
        chat_id: str, model: str = "", *, visitor: Visitor
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Another answer to the last message of a conversation; the one before is kept.

        Args:
            chat_id: The conversation.
            model: The model, as provider:name; empty takes the default.

        Returns:
            content, chat_id, done, and on the last step metadata.
        """
        events = visitor.service.regenerate_streaming(
            chat_id, visitor.user_id, model=model, language=visitor.language
        )
        async with aclosing(grown(events, chat_id)) as steps:
            async for step in steps:
                yield step

    async def list_chats(persona_id: str = "", *, visitor: Visitor) -> list[dict[str, Any]]:
        """Your conversations, the newest first.

        Args:
            persona_id: Only those with this persona; empty gives all.

        Returns:
            For each: id, persona, title, updated_at.
        """
        chats = await asyncio.to_thread(
            store.list_chats, user_id=visitor.user_id, agent_id=persona_id or None
        )
        return [chat_data(chat) for chat in chats]

    async def get_chat(chat_id: str, *, visitor: Visitor) -> list[dict[str, Any]]:
        """The messages of a conversation, the oldest first.

        Args:
            chat_id: The conversation.

        Returns:
            For each: id, sender (user or ai), content, status, timestamp, metadata.
        """
        messages = await asyncio.to_thread(store.messages, chat_id, user_id=visitor.user_id)
        return [message_data(message) for message in messages]

    async def delete_chat(chat_id: str, *, visitor: Visitor) -> dict[str, Any]:
        """Delete a conversation; restore_chat brings it back.

        Args:
            chat_id: The conversation.

        Returns:
            The id of what was deleted.
        """
        await asyncio.to_thread(store.delete_chat, chat_id, user_id=visitor.user_id)
        return {"deleted": chat_id}

    async def restore_chat(chat_id: str, *, visitor: Visitor) -> dict[str, Any]:
        """Bring a deleted conversation back.

        Args:
            chat_id: The conversation.

        Returns:
            The conversation.
        """
        await asyncio.to_thread(store.restore_chat, chat_id, user_id=visitor.user_id)
        found = await asyncio.to_thread(store.get_chat, chat_id, user_id=visitor.user_id)
        return chat_data(found)

    async def insights(span: str = SPAN, zone: str = "UTC", *, visitor: Visitor) -> dict[str, Any]:
        """What your personas did, how long it took and what it cost: waits at P50, P95 and P99, tokens, cost, errors, cache hits.

        Args:
            span: today, 7days or 30days (today is the last of them), or all.
            zone: The time zone in which days begin, such as Asia/Tokyo; one that is unknown counts as UTC.

        Returns:
            span, zone, since, until, total, kinds, error_types, by_persona, by_model and by_day. Times are in milliseconds and cost in US dollars: null where no price is known, unpriced counting what it leaves out.
        """  # noqa: E501 - Gradio reads one line a description
        found = await asyncio.to_thread(
            lab.insights.summary, user_id=visitor.user_id, span=span, zone=zone
        )
        return summary_data(found)

    async def export_turns(span: str = SPAN, zone: str = "UTC", *, visitor: Visitor) -> str:
        """The figures of every answer of a span as CSV, without what was said.

        Args:
            span: today, 7days, 30days or all.
            zone: The time zone of its times and days, such as Asia/Tokyo.

        Returns:
            The file's text, with headings in your language.
        """
        turns = await asyncio.to_thread(
            lab.insights.turns, user_id=visitor.user_id, span=span, zone=zone
        )
        return spreadsheet(turns, zone_of(zone), visitor)

    for function in (
        list_personas, save_persona, duplicate_persona, delete_persona, restore_persona,
        undo_persona, list_models, preview_prompt, try_message, compare, chat, regenerate,
        list_chats, get_chat, delete_chat, restore_chat, insights, export_turns,
    ):  # fmt: skip
        name = function.__name__
        gr.api(endpoint(function, visitors), api_name=name, concurrency_limit=None)
    describe(page)
