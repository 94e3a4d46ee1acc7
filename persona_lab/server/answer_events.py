"""One message to a persona and its answer, as the doors tell it: plain data, step by step.

::

    {"id", "content", "sender": "user", "timestamp"}                 it is kept
    {"type": "stream_chunk", "content", "complete": false}           as often as there is news
    {"error": {…}, "fallback": true}                                 a stand-in said why it failed
    {"type": "stream_complete", "complete": true, "id", "content",
     "sender": "ai", "timestamp", "metadata"}                        the whole answer

An answer that the database didn't take has an error with ``"fallback": false`` ahead of its end,
and no ``id``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from persona_lab.clients.options import Sampling
from persona_lab.db.tables import Chat, Message
from persona_lab.errors import PersonaLabError
from persona_lab.lab import Lab
from persona_lab.server.auth import Caller
from persona_lab.server.error_responses import AnswerFailed, error_response
from persona_lab.server.serializers import message_data
from persona_lab.types import Event, now

AnswerEvent = dict[str, Any]


class MessageIn(Sampling):
    """What a program says in a chat, and how it wants it answered."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    content: str = Field(description="What you say.", examples=["こんにちは"])
    model: str = Field(
        default="",
        description="Who answers, as provider:name; empty takes the default.",
        examples=[""],
    )
    stop: list[str] = Field(default=[], max_length=16, description="Words that end the answer.")
    pending: bool = Field(
        default=False,
        description="Whether chunks have the unfinished text too, which can still change.",
    )

    def options(self) -> dict[str, Any]:
        """The sampling that was asked for."""
        chosen: dict[str, Any] = {name: getattr(self, name) for name in Sampling.model_fields}
        chosen["stop"] = tuple(self.stop) or None
        return {name: value for name, value in chosen.items() if value is not None}


class MessageOut(BaseModel):
    """A message as it is kept."""

    id: str = Field(description="Its id; empty for an answer that couldn't be kept.")
    content: str
    sender: str = Field(description="user or ai.")
    status: str = Field(description="ok, streaming, stopped, interrupted or failed.")
    timestamp: datetime
    metadata: dict[str, Any] = Field(
        description="Of an answer: model, usage, processing_applied, cost, prompt and more; raw is "
        "the model's own text, and changes name the step, the span of content and the text before."
    )

    @classmethod
    def of(cls, message: Message) -> MessageOut:
        """The message as it is stored."""
        return cls.model_validate(message_data(message))


async def stream_answer_events(
    lab: Lab, chat: Chat, said: MessageIn, caller: Caller
) -> AsyncGenerator[AnswerEvent, None]:
    """The steps. Closing the generator stops the model and keeps what has come.

    What it raises it raises before the first step: InputError, NotFound, StorageError.
    """
    events = caller.operations(lab).send(
        said.content,
        chat.id,
        chat.agent_id,
        model=said.model,
        pending=said.pending,
        **said.options(),
    )
    async with aclosing(events):
        async for event in events:
            if event.type == "start":
                yield {
                    "id": event.metadata["user_message_id"],
                    "content": event.metadata["content"],
                    "sender": "user",
                    "timestamp": event.metadata["timestamp"],
                }
            elif event.type == "delta":
                chunk = {"type": "stream_chunk", "content": event.content, "complete": False}
                yield chunk | ({"pending": event.pending} if said.pending else {})
            else:
                if event.metadata.get("error"):
                    failed = error_response(AnswerFailed(event.metadata), lab.error_handler, "ja")
                    yield failed | {"fallback": bool(event.metadata.get("fallback"))}
                yield await _complete(lab, event, caller)


async def _complete(lab: Lab, event: Event, caller: Caller) -> AnswerEvent:
    at = now()
    if event.message_id:
        get = lab.store.get_message
        with suppress(PersonaLabError):  # it was kept; a database that went since costs a moment
            kept = await asyncio.to_thread(get, event.message_id, user_id=caller.user_id)
            at = kept.created_at
    return {
        "type": "stream_complete",
        "complete": True,
        "id": event.message_id,
        "content": event.content,
        "sender": "ai",
        "timestamp": at.isoformat(),
        "metadata": event.metadata,
    }
