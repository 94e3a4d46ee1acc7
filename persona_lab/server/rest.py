"""``/api/v1``: the caller's personas and their versions, chats, messages, tokens; the models.

Every route acts as the authenticated caller. A row of another user counts as missing (404).
``/api/v1/openapi.json`` describes all routes.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Path, Query, Request, Response
from starlette.responses import JSONResponse

from persona_lab.errors import PageOnly, PersonaLabError
from persona_lab.lab import Lab
from persona_lab.personas.versions import MAX_VERSION
from persona_lab.server.answer_events import (
    AnswerEvent,
    MessageOut,
    stream_answer_events,
)
from persona_lab.server.app import CallerDep, LabDep, OperationsDep, create_api_app
from persona_lab.server.error_responses import (
    AnswerFailed,
    error_response,
    headers_of,
    status_of,
    to_lab_error,
)
from persona_lab.server.rest_schemas import (
    AgentOut,
    ChatOut,
    DiffOut,
    ErrorOut,
    Exchange,
    FailedExchange,
    MessageRequest,
    ModelOut,
    NewChat,
    NewPersona,
    NewToken,
    NewVersion,
    PersonaFields,
    TokenOut,
    TokenWithSecret,
    VersionOut,
    VersionWithPersona,
)
from persona_lab.server.serializers import diff_data, model_data, version_data
from persona_lab.server.sse import (
    EventStreamResponse,
    cancel_on_disconnect,
    encode_event,
    to_json_line,
)
from persona_lab.types import Language

MAX_BODY = 8 * 1024 * 1024
"""The largest body in bytes. The longest persona with all characters escaped is a bit smaller."""


_ANSWER_STATUSES = frozenset({422, 429, 500, 503, 504})
"""Statuses of failed answers."""


def _error_responses(*statuses: int, answers: bool = False) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI description of the error responses of a route.

    Args:
        statuses: Statuses that the route has besides those of every route.
        answers: A failed answer has the body of :class:`FailedExchange`.
    """
    common = (401, 413, 422, 500, 503)
    descriptions = {
        401: "The caller is unknown.",
        403: "Only the page may do this.",
        404: "The caller has no such resource.",
        413: "The body or the message is too long.",
        422: "The request is invalid, or the model refused it.",
        429: "A rate limit or quota of the caller is used up; see Retry-After.",
        500: "Unexpected error.",
        503: "The database or the model is unavailable.",
        504: "The model didn't answer in time.",
    }
    return {
        status: {
            "model": FailedExchange | ErrorOut
            if answers and status in _ANSWER_STATUSES
            else ErrorOut,
            "description": descriptions[status],
        }
        for status in sorted({*common, *statuses})
    }


agents = APIRouter(prefix="/agents", tags=["agents"])
chats = APIRouter(prefix="/chats", tags=["chats"])
tokens = APIRouter(prefix="/tokens", tags=["tokens"])
models = APIRouter(prefix="/models", tags=["models"])


@agents.get("", responses=_error_responses())
async def list_agents(operations: OperationsDep) -> list[AgentOut]:
    """List your personas, the last changed first, then the demos."""
    return [AgentOut.from_row(agent) for agent in await operations.list_personas()]


@agents.post("", status_code=201, responses=_error_responses())
async def create_agent(persona: NewPersona, operations: OperationsDep) -> AgentOut:
    """Create a persona."""
    return AgentOut.from_row(await operations.create_persona(**persona.given()))


@agents.get("/{agent_id}", responses=_error_responses(404))
async def read_agent(agent_id: str, operations: OperationsDep) -> AgentOut:
    """Read a persona of your own or a demo."""
    return AgentOut.from_row(await operations.get_persona(agent_id))


@agents.patch("/{agent_id}", responses=_error_responses(404))
async def change_agent(
    agent_id: str, persona: PersonaFields, operations: OperationsDep
) -> AgentOut:
    """Change a persona. A change of a demo makes a copy of your own, with a new id."""
    return AgentOut.from_row(await operations.update_persona(agent_id, **persona.given()))


@agents.delete("/{agent_id}", status_code=204, responses=_error_responses(404))
async def delete_agent(agent_id: str, operations: OperationsDep) -> None:
    """Delete a persona of your own. Its conversations stay readable."""
    await operations.delete_persona(agent_id)


_VersionNumber = Annotated[int, Path(ge=1, le=MAX_VERSION)]


@agents.get("/{agent_id}/versions", responses=_error_responses(404))
async def list_versions(agent_id: str, operations: OperationsDep) -> list[VersionOut]:
    """List the versions of a persona, the newest first. The persona itself is the draft."""
    versions = await operations.list_versions(agent_id)
    return [VersionOut(**version_data(version)) for version in versions]


@agents.post("/{agent_id}/versions", status_code=201, responses=_error_responses(404))
async def commit_version(
    agent_id: str, new: NewVersion, operations: OperationsDep
) -> VersionWithPersona:
    """Keep the draft as the next version. 422 (nothing_to_commit) if the newest is the same."""
    return VersionWithPersona.from_row(await operations.commit_version(agent_id, new.message))


@agents.get("/{agent_id}/versions/{number}", responses=_error_responses(404))
async def read_version(
    agent_id: str, number: _VersionNumber, operations: OperationsDep
) -> VersionWithPersona:
    """Read a version."""
    return VersionWithPersona.from_row(await operations.get_version(agent_id, number))


@agents.post("/{agent_id}/versions/{number}/restore", responses=_error_responses(404))
async def restore_version(
    agent_id: str, number: _VersionNumber, operations: OperationsDep
) -> VersionWithPersona:
    """Make a version the draft, as a new version. A changed draft becomes a version first."""
    _, version = await operations.restore_version(agent_id, number)
    return VersionWithPersona.from_row(version)


@agents.get("/{agent_id}/versions/{number}/diff", responses=_error_responses(404))
async def diff_versions(
    agent_id: str,
    number: _VersionNumber,
    operations: OperationsDep,
    to: Annotated[
        int | None,
        Query(ge=1, le=MAX_VERSION, description="The later version; the draft if left out."),
    ] = None,
    model: Annotated[str, Query(description="The model of the prompts, as provider:name.")] = "",
) -> DiffOut:
    """Compare two versions: their fields, and the prompts that they make."""
    diff = await operations.diff_versions(agent_id, number, to, model=model)
    return DiffOut(**diff_data(diff))


@chats.get("", responses=_error_responses())
async def list_chats(
    operations: OperationsDep,
    agent_id: Annotated[str | None, Query(description="Only those with this persona.")] = None,
    limit: Annotated[int, Query(ge=1, le=500, description="The largest number of results.")] = 50,
) -> list[ChatOut]:
    """List your conversations, the last used first."""
    chats = await operations.list_chats(agent_id or "", limit=limit)
    return [ChatOut.from_row(chat) for chat in chats]


@chats.post("", status_code=201, responses=_error_responses(404))
async def create_chat(chat: NewChat, operations: OperationsDep) -> ChatOut:
    """Begin a conversation with a persona of your own or a demo."""
    return ChatOut.from_row(await operations.create_chat(chat.agent_id))


@chats.get("/{chat_id}", responses=_error_responses(404))
async def read_chat(chat_id: str, operations: OperationsDep) -> ChatOut:
    """Read a conversation without its messages."""
    return ChatOut.from_row(await operations.get_chat(chat_id))


@chats.delete("/{chat_id}", status_code=204, responses=_error_responses(404))
async def delete_chat(chat_id: str, operations: OperationsDep) -> None:
    """Delete a conversation."""
    await operations.delete_chat(chat_id)


@chats.get("/{chat_id}/messages", responses=_error_responses(404))
async def list_messages(
    chat_id: str,
    operations: OperationsDep,
    limit: Annotated[int, Query(ge=1, le=500, description="The largest number of results.")] = 500,
    before: Annotated[str, Query(description="Only messages before the one with this id.")] = "",
) -> list[MessageOut]:
    """List the last messages of a conversation, the oldest first."""
    messages = await operations.list_messages(chat_id, limit=limit, before=before)
    return [MessageOut.from_row(message) for message in messages]


_EXCHANGE_RESPONSE: dict[str, Any] = {
    "model": Exchange,
    "description": "The message and its answer; with stream, the events that the WebSocket sends.",
    "content": {"text/event-stream": {"schema": {"description": "Events."}}},
}


@chats.post(
    "/{chat_id}/messages",
    response_model=None,
    responses={200: _EXCHANGE_RESPONSE, **_error_responses(404, 429, 504, answers=True)},
)
async def send_message(
    chat_id: str, message: MessageRequest, request: Request, lab: LabDep, caller: CallerDep
) -> Response:
    """Send a message to the persona and return its answer.

    A failed answer has the status of its error, and the body also has what was stored.
    """
    chat = await caller.operations(lab).get_chat(chat_id)
    events = stream_answer_events(lab, chat, message, caller)
    if message.stream:
        return EventStreamResponse(_encoded(events), partial(_encoded_error, lab, caller.language))
    error_body, user, answer = await cancel_on_disconnect(request, _collect(events))
    body = error_body | {"user": _message_out(user), "answer": _message_out(answer)}
    if not error_body:
        return JSONResponse(body)
    error = AnswerFailed(answer["metadata"])
    return JSONResponse(body, status_of(error), headers_of(error))


async def _collect(
    events: AsyncGenerator[AnswerEvent, None],
) -> tuple[AnswerEvent, AnswerEvent, AnswerEvent]:
    """Return the error, {} if there is none; the stored message; and the answer."""
    error: AnswerEvent = {}
    by_sender: dict[str, AnswerEvent] = {}
    async with aclosing(events):
        async for event in events:
            if "error" in event:
                error = event
            elif "sender" in event:
                by_sender[event["sender"]] = event
    return error, by_sender["user"], by_sender["ai"]


async def _encoded(events: AsyncGenerator[AnswerEvent, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(events):
        async for event in events:
            yield encode_event(to_json_line(event))


def _encoded_error(lab: Lab, language: Language, error: Exception) -> bytes:
    return encode_event(to_json_line(_error_body(to_lab_error(error), lab, language)))


def _message_out(event: AnswerEvent) -> Any:
    metadata = event.get("metadata", {})
    message = MessageOut(
        id=event["id"],
        content=event["content"],
        sender=event["sender"],
        status=metadata.get("status", "ok"),
        timestamp=event["timestamp"],
        metadata=metadata,
    )
    return message.model_dump(mode="json")


@tokens.get("", responses=_error_responses())
async def list_tokens(operations: OperationsDep) -> list[TokenOut]:
    """List your valid tokens, the newest first."""
    return [TokenOut.from_row(token) for token in await operations.list_tokens()]


@tokens.post("", status_code=201, responses=_error_responses(403))
async def create_token(
    new: NewToken, operations: OperationsDep, caller: CallerDep
) -> TokenWithSecret:
    """Create a token. Only the page can do it, and the secret is shown only now."""
    if caller.by_token:
        raise PageOnly
    token, secret = await operations.create_token(new.name)
    return TokenWithSecret(**TokenOut.from_row(token).model_dump(), token=secret)


@tokens.delete("/{token_id}", status_code=204, responses=_error_responses(404))
async def revoke_token(token_id: str, operations: OperationsDep) -> None:
    """Revoke a token. It is invalid at once."""
    await operations.revoke_token(token_id)


@models.get("", responses=_error_responses())
async def list_models(operations: OperationsDep) -> list[ModelOut]:
    """List the models, the default first."""
    return [ModelOut(**model_data(info, available)) for info, available in operations.list_models()]


def rest_app(lab: Lab) -> FastAPI:
    """Return the app of ``/api/v1``."""
    return create_api_app(
        lab,
        [agents, chats, tokens, models],
        error_body=_error_body,
        max_body=MAX_BODY,
        title="Persona Lab",
        summary="Personas and conversations with them.",
        version="1",
    )


def _error_body(error: PersonaLabError, lab: Lab, language: Language) -> Any:
    return error_response(error, lab.error_handler, language)
