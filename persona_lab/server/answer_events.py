"""One message to a persona and its answer as JSON-ready events, for REST and the WebSocket.

::

    {"id", "content", "sender": "user", "timestamp"}                 the message is stored
    {"type": "stream_chunk", "content", "complete": false}           more text of the answer
    {"error": {…}, "fallback": true}                                 the answer is a fallback text
    {"type": "stream_complete", "complete": true, "id", "content",
     "sender": "ai", "timestamp", "metadata"}                        the whole answer

If the database couldn't store the answer, an error with ``"fallback": false`` comes before the last
event, whose ``id`` is empty.
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
    """A message to a persona, and options for the answer."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    content: str = Field(description="The text of the message.", examples=["こんにちは"])
    model: str = Field(
        default="",
        description="The model, as provider:name; empty means the default model.",
        examples=[""],
    )
    stop: list[str] = Field(
        default=[], max_length=16, description="Texts at which the answer ends."
    )
    pending: bool = Field(
        default=False,
        description="Whether chunks also have the unfinished text, which can still change.",
    )

    def options(self) -> dict[str, Any]:
        """Return the sampling options that the request contains."""
        options: dict[str, Any] = {name: getattr(self, name) for name in Sampling.model_fields}
        options["stop"] = tuple(self.stop) or None
        return {name: value for name, value in options.items() if value is not None}


class MessageOut(BaseModel):
    """A stored message."""

    id: str = Field(description="Its id; empty for an answer that couldn't be stored.")
    content: str
    sender: str = Field(description="user or ai.")
    status: str = Field(description="ok, streaming, stopped, interrupted or failed.")
    timestamp: datetime
    metadata: dict[str, Any] = Field(
        description="Of an answer: model, usage, processing_applied, cost, prompt and more; raw is "
        "the model's own text, and changes name the step, the span of content and the text before."
    )

    @classmethod
    def from_row(cls, message: Message) -> MessageOut:
        """Return the message of a row."""
        return cls.model_validate(message_data(message))


async def stream_answer_events(
    lab: Lab, chat: Chat, message: MessageIn, caller: Caller
) -> AsyncGenerator[AnswerEvent, None]:
    """Send a message and yield the events of its answer.

    Closing the generator stops the model and stores the text that has arrived.

    Raises:
        InputError: The message or an option can't be used. Raised before the first event.
        NotFound: The chat or the persona doesn't exist. Raised before the first event.
        StorageError: The message couldn't be stored. Raised before the first event.
    """
    events = caller.operations(lab).send(
        message.content,
        chat.id,
        chat.agent_id,
        model=message.model,
        pending=message.pending,
        **message.options(),
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
                yield chunk | ({"pending": event.pending} if message.pending else {})
            else:
                if event.metadata.get("error"):
                    error = error_response(AnswerFailed(event.metadata), lab.error_handler, "ja")
                    yield error | {"fallback": bool(event.metadata.get("fallback"))}
                yield await _complete_event(lab, event, caller)


async def _complete_event(lab: Lab, event: Event, caller: Caller) -> AnswerEvent:
    timestamp = now()
    if event.message_id:
        get_message = lab.store.get_message
        # If the database has failed since it stored the answer, the current time is close enough.
        with suppress(PersonaLabError):
            row = await asyncio.to_thread(get_message, event.message_id, user_id=caller.user_id)
            timestamp = row.created_at
    return {
        "type": "stream_complete",
        "complete": True,
        "id": event.message_id,
        "content": event.content,
        "sender": "ai",
        "timestamp": timestamp.isoformat(),
        "metadata": event.metadata,
    }
