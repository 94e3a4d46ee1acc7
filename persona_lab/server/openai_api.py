"""``/v1``, an OpenAI-compatible API: any client of OpenAI can talk with a persona.

The model is a persona of the caller or a demo, by name or id. The lab's default model answers, or
the one after an ``@``. The conversation is what ``messages`` has. Only the record of the generation
is stored (kind "api").

``openai_messages.py`` turns the messages into a conversation. System messages don't change the
persona's system prompt, which stays the one that the page shows.

A failed answer is an error in OpenAI's form, not a fallback text, because clients retry by
themselves. An error that another attempt can't mend has a 4xx status, so that they don't.

With ``response_format`` the answer is JSON, and its tone isn't adjusted. Fields that a persona
doesn't use (tools, logprobs, …) are ignored.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from starlette.responses import JSONResponse

from persona_lab.db.tables import Agent
from persona_lab.errors import (
    InvalidRequest,
    NotFound,
    PersonaLabError,
    ProviderError,
    UnknownModel,
)
from persona_lab.lab import Lab
from persona_lab.server.app import Attachments, CallerDep, LabDep, OperationsDep, create_api_app
from persona_lab.server.error_responses import (
    AnswerFailed,
    class_of_error,
    error_response,
    is_final,
    status_of,
    to_lab_error,
)
from persona_lab.server.openai_messages import (
    MAX_ATTACHMENTS,
    MAX_CONVERSATION,
    conversation,
    drop_attachments,
    long_text,
)
from persona_lab.server.openai_schemas import (
    CompletionRequest,
    ErrorOut,
    ModelList,
    ModelOut,
)
from persona_lab.server.operations import Operations
from persona_lab.server.sse import (
    EventStreamResponse,
    cancel_on_disconnect,
    encode_event,
    to_json_line,
)
from persona_lab.translations import load_texts
from persona_lab.types import Event, Language, new_id

# ── routes ────────────────────────────────────────────────────────────────────────────────────

_ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorOut, "description": description}
    for status, description in {
        400: "The request is invalid, or the model refused it.",
        401: "The caller is unknown.",
        404: "The caller has no such persona.",
        413: "The body or the message is too long.",
        424: "The model failed, and another attempt would fail too.",
        429: "A rate limit or quota of the caller is used up; see Retry-After.",
        500: "Unexpected error.",
        503: "The database or the model is unavailable.",
        504: "The model didn't answer in time.",
    }.items()
}
_COMPLETION_RESPONSE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer; with stream, its chunks as server-sent events.",
        "content": {"text/event-stream": {"schema": {"description": "Events."}}},
    }
}

router = APIRouter(responses=_ERROR_RESPONSES)


@router.get("/models")
async def list_models(operations: OperationsDep) -> ModelList:
    """List your personas, the last changed first, then the demos."""
    agents = await operations.list_personas()
    names: set[str] = set()
    models = []
    for agent in agents:  # the order in which find_persona looks up a name
        models.append(_model_out(agent, agent.id if agent.name in names else agent.name))
        names.add(agent.name)
    return ModelList(data=models)


@router.get("/models/{model:path}")
async def read_model(model: str, operations: OperationsDep) -> ModelOut:
    """Read a persona by its name or id."""
    return _model_out((await _persona_and_model(operations, model))[0], model)


@router.post("/chat/completions", response_model=None, responses=_COMPLETION_RESPONSE)
async def complete(
    body: CompletionRequest, request: Request, lab: LabDep, caller: CallerDep
) -> Response:
    """Return the persona's answer to a conversation."""
    if body.n not in (None, 1):
        raise InvalidRequest(why="one_answer", field="n")
    operations = caller.operations(lab)
    agent, model = await _persona_and_model(operations, body.model)
    context, message = conversation(
        body.messages, request.app.state.texts, agent.language, lab.input_validator.clean
    )
    options = body.options(operations.longest_answer(model))
    events = operations.answer(
        agent, message, model=model, context=context, kind="api", validator=long_text, **options
    )
    completion = _Completion(body.model, "chatcmpl-" + new_id(), int(time.time()))
    if body.stream:
        with_usage = bool(body.stream_options and body.stream_options.include_usage)
        return EventStreamResponse(
            _encoded_chunks(events, completion, with_usage=with_usage),
            partial(_encoded_error, lab, caller.language),
        )
    return JSONResponse(completion.whole(await cancel_on_disconnect(request, _final_event(events))))


async def _final_event(events: AsyncGenerator[Event, None]) -> Event:
    """Return the last event of an answer.

    Raises:
        AnswerFailed: The answer is a fallback text.
    """
    async with aclosing(events):
        async for event in events:
            if event.type == "done":
                if event.metadata.get("fallback"):
                    raise AnswerFailed(event.metadata)
                return event
    raise AssertionError("a stream ends with done or an error")


async def _encoded_chunks(
    events: AsyncGenerator[Event, None], completion: _Completion, *, with_usage: bool
) -> AsyncGenerator[bytes, None]:
    """Yield an answer as server-sent events.

    Raises:
        AnswerFailed: The answer is a fallback text. Before the first event, the response can still
            get an error status.
    """
    started = False
    async with aclosing(events):
        async for event in events:
            if event.type == "delta" and "fallback" not in event.metadata:
                if not started:
                    first = completion.chunk({"role": "assistant", "content": ""})
                    yield _encoded_chunk(first, with_usage)
                    started = True
                yield _encoded_chunk(completion.chunk({"content": event.content}), with_usage)
            elif event.type == "done":
                if event.metadata.get("fallback"):
                    raise AnswerFailed(event.metadata)
                last = completion.chunk({}, finish_reason(event.metadata))
                yield _encoded_chunk(last, with_usage)
                if with_usage:
                    usage = {"choices": [], "usage": usage_data(event.metadata)}
                    yield encode_event(to_json_line(completion.chunk({}) | usage))
    yield _DONE


def _encoded_error(lab: Lab, language: Language, error: Exception) -> bytes:
    body = _error_body(to_lab_error(error), lab, language)
    return encode_event(to_json_line(body)) + _DONE


_DONE = encode_event("[DONE]")


def _encoded_chunk(chunk: dict[str, Any], with_usage: bool) -> bytes:
    return encode_event(to_json_line(chunk | {"usage": None} if with_usage else chunk))


@dataclass(frozen=True, slots=True)
class _Completion:
    """What all parts of an answer have in common."""

    model: str
    id: str
    created: int

    def whole(self, event: Event) -> dict[str, Any]:
        message = {"role": "assistant", "content": event.content, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None}
        choice["finish_reason"] = finish_reason(event.metadata)
        return self._object("chat.completion", choice) | {"usage": usage_data(event.metadata)}

    def chunk(self, delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return self._object("chat.completion.chunk", choice)

    def _object(self, kind: str, choice: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": [choice],
        }


def finish_reason(metadata: Mapping[str, Any]) -> str:
    """Return why an answer ended, in OpenAI's terms: "stop", "length" or "content_filter"."""
    if metadata.get("blocked"):
        return "content_filter"
    return "length" if metadata["finish_reason"] == "length" else "stop"


def usage_data(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the usage of an answer in OpenAI's form."""
    usage = dict(metadata["usage"])
    cached = usage.pop("cached_tokens")
    return usage | {"prompt_tokens_details": {"cached_tokens": cached}}


async def _persona_and_model(operations: Operations, name: str) -> tuple[Agent, str]:
    """Return the persona, and the model that answers ("" means the default).

    Raises:
        NotFound: The user has no such persona.
        UnknownModel: No such model is listed.
    """
    try:
        return await operations.find_persona(name), ""
    except NotFound:
        at_signs = [index for index, char in enumerate(name) if char == "@"]
        if not at_signs:
            raise
    # A persona's name and a model's name may both contain "@". The longest name of a persona wins.
    wrong: PersonaLabError = NotFound(kind="agent")
    for index in reversed(at_signs):
        persona, model = name[:index], name[index + 1 :]
        if not (persona and model):
            continue
        try:
            agent = await operations.find_persona(persona)
            return agent, operations.service.clients.info(model).spec
        except (NotFound, UnknownModel) as error:
            wrong = error
    raise wrong


def _model_out(agent: Agent, name: str) -> ModelOut:
    owner = "demo" if agent.owner_id is None else "you"
    return ModelOut(id=name, created=int(agent.created_at.timestamp()), owned_by=owner)


_OPENAI_CODES = {
    "unauthorized": "invalid_api_key",
    "not_found": "model_not_found",
    "context_too_long": "context_length_exceeded",
    "too_many_requests": "rate_limit_exceeded",
    "tokens_spent": "insufficient_quota",
    "house_spent": "insufficient_quota",
}
"""A code of Persona Lab → the code that OpenAI's clients know."""


def _status_of_error(error: PersonaLabError) -> int:
    """Return the status of an error. Clients of OpenAI repeat requests that failed with 5xx."""
    status = status_of(error)
    if status == 422:
        return 400
    return 424 if issubclass(class_of_error(error), ProviderError) and is_final(error) else status


def _error_body(error: PersonaLabError, lab: Lab, language: Language) -> Any:
    fields = error_response(error, lab.error_handler, language)["error"]
    status = status_of(error)  # a failure of the model is the server's, also as 424
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {
        "error": {
            "message": fields["message"],
            "type": "rate_limit_error" if status == 429 else kind,
            "param": fields.get("field") or fields.get("option"),
            "code": _OPENAI_CODES.get(fields["code"], fields["code"]),
        }
    }


def completions_app(lab: Lab) -> FastAPI:
    """Return the app of ``/v1``.

    Raises:
        ConfigurationError: ``templates/openai_api.yaml`` is invalid.
    """
    app = create_api_app(
        lab,
        [router],
        error_body=_error_body,
        status_of_error=_status_of_error,
        max_body=MAX_CONVERSATION,
        attachments=Attachments(drop_attachments, MAX_ATTACHMENTS),
        title="Persona Lab, OpenAI-compatible",
        version="1",
    )
    app.state.texts = load_texts(lab.settings.templates_dir, "openai_api.yaml")
    return app
