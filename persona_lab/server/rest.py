"""``/api/v1``: personas, conversations, messages and tokens of whoever calls.

Every operation takes a :data:`~persona_lab.server.app.TheCaller`, and every query is for that
user: another's id is as good as none. ``/api/v1/openapi.json`` describes it all.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse

from persona_lab.db.tables import Agent, ApiToken, Chat
from persona_lab.errors import PageOnly, PersonaLabError
from persona_lab.lab import Lab
from persona_lab.server.answer_events import (
    AnswerEvent,
    MessageIn,
    MessageOut,
    stream_answer_events,
)
from persona_lab.server.app import CallerDep, LabDep, OperationsDep, create_api_app
from persona_lab.server.error_responses import (
    AnswerFailed,
    error_response,
    headers_of,
    ours,
    status_of,
)
from persona_lab.server.persona_schema import request_fields, response_fields
from persona_lab.server.serializers import model_data, persona_data
from persona_lab.server.sse import EventStreamResponse, as_json, cancel_on_disconnect, sse
from persona_lab.types import Language

MAX_BODY = 8 * 1024 * 1024
"""Bytes. The longest persona, with every character escaped, is a little less."""


# ── what travels ──────────────────────────────────────────────────────────────────────────


class ErrorDetails(BaseModel):
    """What went wrong. Further fields say more of some errors: field, limit, retry_after."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="The class of the error, such as invalid_input or rate_limit.")
    code: str = Field(description="Its name, such as not_found.")
    message: str = Field(description="In words, Japanese or English by Accept-Language.")


class ErrorOut(BaseModel):
    """The one shape of every error."""

    error: ErrorDetails


@request_fields
class PersonaFields(BaseModel):
    """What can be set of a persona; what is left out stays as it is."""

    model_config = ConfigDict(extra="forbid")

    def given(self) -> dict[str, Any]:
        """The fields that the request contains."""
        return self.model_dump(exclude_unset=True)


class NewPersona(PersonaFields):
    """A persona to be made."""

    name: str = Field(description="At most 100 characters.", examples=["さくら"])
    language: Literal["ja", "en"] = "ja"


@response_fields
class _AgentFields(BaseModel):
    id: str
    demo: bool


class AgentOut(_AgentFields):
    """A persona: your own, or a demo, which everybody may read and talk with."""

    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, agent: Agent) -> AgentOut:
        """The persona of a row."""
        return cls(**persona_data(agent), created_at=agent.created_at, updated_at=agent.updated_at)


class NewChat(BaseModel):
    """A conversation to be begun."""

    model_config = ConfigDict(extra="forbid")

    agent_id: str = Field(description="The persona to talk with.")


class ChatOut(BaseModel):
    """A conversation. ``/ws/{id}`` speaks with it too."""

    id: str
    agent_id: str
    title: str = Field(description="How it began; empty before the first message.")
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, chat: Chat) -> ChatOut:
        """The conversation of a row."""
        return cls.model_validate(chat, from_attributes=True)


class Sending(MessageIn):
    """A message to the persona."""

    model_config = ConfigDict(extra="forbid")

    stream: bool = Field(
        default=False, description="The answer as server-sent events, as it comes."
    )


class Exchange(BaseModel):
    """What was said, and the answer."""

    user: MessageOut
    answer: MessageOut


class Failed(ErrorOut):
    """The answer failed. The message is kept all the same, with a stand-in's answer to it."""

    fallback: bool
    user: MessageOut
    answer: MessageOut


class NewToken(BaseModel):
    """A token to be made."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field("", description="To tell tokens apart; at most 100 characters.")


class TokenOut(BaseModel):
    """A token that holds. Its secret was shown once, when it was made."""

    id: str
    name: str
    created_at: datetime
    last_used_at: datetime | None = Field(description="To a minute; null before the first use.")

    @classmethod
    def of(cls, token: ApiToken) -> TokenOut:
        """The token of a row."""
        return cls.model_validate(token, from_attributes=True)


class MadeToken(TokenOut):
    """A new token, with the secret that nobody can read again."""

    token: str = Field(description="What to send as `Authorization: Bearer`; it begins with pl_.")


class ModelOut(BaseModel):
    """A model that can be asked."""

    model: str = Field(description="provider:name, as messages take it.")
    label: str
    available: bool = Field(description="Whether the settings hold what its provider asks for.")
    context: int = Field(description="Tokens that it can read.")
    languages: list[str]


# ── what can be done ──────────────────────────────────────────────────────────────────────


def _may_fail(*statuses: int, failed: bool = False) -> dict[int | str, dict[str, Any]]:
    """``failed``: a stand-in's answer may come with the error."""
    always = (401, 413, 422, 500, 503)
    reasons = {
        401: "Nobody knows who calls.",
        403: "The page alone may do it.",
        404: "There is no such thing for the caller.",
        413: "It is too long.",
        422: "It can't be used as it is.",
        429: "The caller's quota is used up; Retry-After says until when.",
        500: "Something unexpected went wrong.",
        503: "The database or the model can't be had.",
        504: "The model didn't answer in time.",
    }
    return {
        status: {
            "model": Failed | ErrorOut if failed and status in _OF_ANSWERS else ErrorOut,
            "description": reasons[status],
        }
        for status in sorted({*always, *statuses})
    }


_OF_ANSWERS = frozenset({422, 429, 500, 503, 504})
"""Statuses that an answer may end with."""

agents = APIRouter(prefix="/agents", tags=["agents"])
chats = APIRouter(prefix="/chats", tags=["chats"])
tokens = APIRouter(prefix="/tokens", tags=["tokens"])
models = APIRouter(prefix="/models", tags=["models"])


@agents.get("", responses=_may_fail())
async def list_agents(operations: OperationsDep) -> list[AgentOut]:
    """Your personas, the last changed first, then the demos."""
    return [AgentOut.of(agent) for agent in await operations.list_personas()]


@agents.post("", status_code=201, responses=_may_fail())
async def create_agent(persona: NewPersona, operations: OperationsDep) -> AgentOut:
    """Make a persona."""
    return AgentOut.of(await operations.create_persona(**persona.given()))


@agents.get("/{agent_id}", responses=_may_fail(404))
async def read_agent(agent_id: str, operations: OperationsDep) -> AgentOut:
    """One persona, your own or a demo."""
    return AgentOut.of(await operations.get_persona(agent_id))


@agents.patch("/{agent_id}", responses=_may_fail(404))
async def change_agent(
    agent_id: str, persona: PersonaFields, operations: OperationsDep
) -> AgentOut:
    """Change a persona. A changed demo becomes a copy of your own: go on with its new id."""
    return AgentOut.of(await operations.update_persona(agent_id, **persona.given()))


@agents.delete("/{agent_id}", status_code=204, responses=_may_fail(404))
async def delete_agent(agent_id: str, operations: OperationsDep) -> None:
    """Delete a persona of yours. Its conversations stay readable."""
    await operations.delete_persona(agent_id)


@chats.get("", responses=_may_fail())
async def list_chats(
    operations: OperationsDep,
    agent_id: Annotated[str | None, Query(description="Only those with this persona.")] = None,
    limit: Annotated[int, Query(ge=1, le=500, description="How many at most.")] = 50,
) -> list[ChatOut]:
    """Your conversations, the last used first."""
    found = await operations.list_chats(agent_id or "", limit=limit)
    return [ChatOut.of(chat) for chat in found]


@chats.post("", status_code=201, responses=_may_fail(404))
async def create_chat(begun: NewChat, operations: OperationsDep) -> ChatOut:
    """Begin a conversation with a persona, your own or a demo."""
    return ChatOut.of(await operations.create_chat(begun.agent_id))


@chats.get("/{chat_id}", responses=_may_fail(404))
async def read_chat(chat_id: str, operations: OperationsDep) -> ChatOut:
    """One conversation, without its messages."""
    return ChatOut.of(await operations.get_chat(chat_id))


@chats.delete("/{chat_id}", status_code=204, responses=_may_fail(404))
async def delete_chat(chat_id: str, operations: OperationsDep) -> None:
    """Delete a conversation."""
    await operations.delete_chat(chat_id)


@chats.get("/{chat_id}/messages", responses=_may_fail(404))
async def list_messages(
    chat_id: str,
    operations: OperationsDep,
    limit: Annotated[int, Query(ge=1, le=500, description="How many at most.")] = 500,
    before: Annotated[str, Query(description="Those ahead of the message with this id.")] = "",
) -> list[MessageOut]:
    """The last messages of a conversation, the oldest first."""
    found = await operations.list_messages(chat_id, limit=limit, before=before)
    return [MessageOut.of(message) for message in found]


_STREAMED: dict[str, Any] = {
    "model": Exchange,
    "description": "The exchange; with stream, its steps as they come, as the WebSocket has them.",
    "content": {"text/event-stream": {"schema": {"description": "Events."}}},
}


@chats.post(
    "/{chat_id}/messages",
    response_model=None,
    responses={200: _STREAMED, **_may_fail(404, 429, 504, failed=True)},
)
async def send_message(
    chat_id: str, said: Sending, request: Request, lab: LabDep, caller: CallerDep
) -> Response:
    """Say something to the persona.

    An answer that fails has the status of its error, and beside it stands what was kept.
    """
    chat = await caller.operations(lab).get_chat(chat_id)
    steps = stream_answer_events(lab, chat, said, caller)
    if said.stream:
        return EventStreamResponse(_events(steps), partial(_excuse, lab, caller.language))
    failed, user, answer = await cancel_on_disconnect(request, _collected(steps))
    body = failed | {"user": _message_out(user), "answer": _message_out(answer)}
    if not failed:
        return JSONResponse(body)
    error = AnswerFailed(answer["metadata"])
    return JSONResponse(body, status_of(error), headers_of(error))


async def _collected(
    steps: AsyncGenerator[AnswerEvent, None],
) -> tuple[AnswerEvent, AnswerEvent, AnswerEvent]:
    """The error, empty where there is none; the message; the answer."""
    failed: AnswerEvent = {}
    said: dict[str, AnswerEvent] = {}
    async with aclosing(steps):
        async for step in steps:
            if "error" in step:
                failed = step
            elif "sender" in step:
                said[step["sender"]] = step
    return failed, said["user"], said["ai"]


async def _events(steps: AsyncGenerator[AnswerEvent, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(steps):
        async for step in steps:
            yield sse(as_json(step))


def _excuse(lab: Lab, language: Language, error: Exception) -> bytes:
    return sse(as_json(error_response(ours(error), lab.error_handler, language)))


def _message_out(step: AnswerEvent) -> Any:
    metadata = step.get("metadata", {})
    message = MessageOut(
        id=step["id"],
        content=step["content"],
        sender=step["sender"],
        status=metadata.get("status", "ok"),
        timestamp=step["timestamp"],
        metadata=metadata,
    )
    return message.model_dump(mode="json")


@tokens.get("", responses=_may_fail())
async def list_tokens(operations: OperationsDep) -> list[TokenOut]:
    """Your tokens that hold, the newest first."""
    return [TokenOut.of(token) for token in await operations.list_tokens()]


@tokens.post("", status_code=201, responses=_may_fail(403))
async def create_token(wanted: NewToken, operations: OperationsDep, caller: CallerDep) -> MadeToken:
    """Make a token, from the page alone. Keep its secret: it is shown this once."""
    if caller.by_token:
        raise PageOnly
    token, secret = await operations.create_token(wanted.name)
    return MadeToken(**TokenOut.of(token).model_dump(), token=secret)


@tokens.delete("/{token_id}", status_code=204, responses=_may_fail(404))
async def revoke_token(token_id: str, operations: OperationsDep) -> None:
    """Revoke a token: from now on it leads to nobody."""
    await operations.revoke_token(token_id)


@models.get("", responses=_may_fail())
async def list_models(operations: OperationsDep) -> list[ModelOut]:
    """The models that can be asked, the default first."""
    return [ModelOut(**model_data(*listed)) for listed in operations.list_models()]


def rest_app(lab: Lab) -> FastAPI:
    """The app behind ``/api/v1``."""
    return create_api_app(
        lab,
        [agents, chats, tokens, models],
        shape=_shape,
        max_body=MAX_BODY,
        title="Persona Lab",
        summary="Personas, and conversations with them.",
        version="1",
    )


def _shape(error: PersonaLabError, lab: Lab, language: Language) -> Any:
    return error_response(error, lab.error_handler, language)
