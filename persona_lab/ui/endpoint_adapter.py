"""Adapt plain functions to Gradio's named endpoints: visitor, types, errors, descriptions."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, get_type_hints

import gradio as gr
from gradio.utils import get_function_description
from pydantic import ConfigDict, TypeAdapter, ValidationError

from persona_lab.errors import InputError
from persona_lab.types import Event
from persona_lab.ui.session import Visitors
from persona_lab.ui.streaming import batch_events


async def accumulate(
    events: AsyncGenerator[Event, None], chat_id: str
) -> AsyncGenerator[dict[str, Any], None]:
    """Turn events into steps that each hold the answer so far, as Gradio's clients expect.

    Args:
        events: The events of one answer.
        chat_id: The chat's id; "" outside a chat.

    Yields:
        content, chat_id, done and, on the last step, metadata.
    """
    content = ""
    async with aclosing(batch_events(events)) as batches:
        async for batch in batches:
            done, metadata = False, {}
            for event in batch:
                done = event.type == "done"
                content = event.content if done else content + event.content
                metadata = event.metadata if done else {}
            yield {"content": content, "chat_id": chat_id, "done": done, "metadata": metadata}


def endpoint(function: Callable[..., Any], visitors: Visitors) -> Callable[..., Any]:
    """Adapt ``function`` to Gradio, which calls it with a request instead of a visitor.

    A program may send any JSON. A value whose type doesn't match the signature is an InputError.
    Each error becomes a gr.Error with a text in the visitor's language.

    Args:
        function: A coroutine or an async generator.
        visitors: Finds the visitor of a request.

    Returns:
        A function with the name, docstring and parameters of ``function``.
    """
    hints = get_type_hints(function)
    parameters = [p for p in inspect.signature(function).parameters.values() if p.name != "visitor"]
    strict = ConfigDict(strict=True)
    kinds = [TypeAdapter(hints[p.name], config=strict) for p in parameters]

    def valid(values: tuple[Any, ...]) -> list[Any]:
        try:
            return [kind.validate_python(v) for kind, v in zip(kinds, values, strict=True)]
        except ValidationError as error:
            raise InputError from error

    async def call(*values: Any) -> Any:
        visitor = await visitors.from_request(values[-1])
        with visitor.error_toasts():
            return await function(*valid(values[:-1]), visitor=visitor)

    async def stream(*values: Any) -> AsyncGenerator[Any, None]:
        visitor = await visitors.from_request(values[-1])
        with visitor.error_toasts():
            async with aclosing(function(*valid(values[:-1]), visitor=visitor)) as steps:
                async for step in steps:
                    yield step

    called: Any = stream if inspect.isasyncgenfunction(function) else call
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


def describe_parameters(page: gr.Blocks) -> None:
    """Add the parameters' descriptions to the API info of ``page``, which gr.api leaves out."""
    for endpoint in page.fns.values():
        if endpoint.api_visibility == "public":
            _, described, _ = get_function_description(endpoint.fn)
            # Parameters come in the signature's order. The request is last and has no component.
            for component, text in zip(endpoint.inputs, described.values(), strict=False):
                component._api_info = {**component._api_info, "additional_description": text}
