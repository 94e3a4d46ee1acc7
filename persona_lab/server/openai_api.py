"""``/v1`` in OpenAI's form: any client that speaks it can talk with a persona.

The model's name is a persona's, or its id: one of the caller's, or a demo. The lab's default model
answers, or the one behind an ``@``, with the persona's own prompt, and the conversation is what
``messages`` say; nothing of it is kept but the turn's record (kind "api").

What system and developer messages say goes ahead of the conversation as an exchange of its own,
which the persona takes note of. It isn't put into the persona: its system text stays the one that
the page shows, to the byte.

A failed answer is an error in OpenAI's shape, not a stand-in's words: its clients try again by
themselves. With ``response_format`` an answer is JSON, and no tone is put on it. Fields that a
persona has no use for (tools, logprobs, …) are passed over.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from fastapi import APIRouter, FastAPI, Request, Response
from pydantic import BaseModel, ConfigDict, Field, field_validator
from starlette.responses import JSONResponse

from persona_lab.clients.options import check_options, refuse_bool
from persona_lab.db.tables import Agent
from persona_lab.errors import InvalidRequest, NotFound, PersonaLabError
from persona_lab.lab import Lab
from persona_lab.pipeline.context import Entry
from persona_lab.pipeline.input import InputValidator
from persona_lab.server.app import CallerDep, LabDep, OperationsDep, create_api_app
from persona_lab.server.error_responses import AnswerFailed, error_response, ours, status_of
from persona_lab.server.operations import Operations
from persona_lab.server.sse import EventStreamResponse, as_json, cancel_on_disconnect, sse
from persona_lab.translations import Translations, load_texts
from persona_lab.types import Event, Language, new_id

MAX_BODY = 1024 * 1024
"""Bytes of a request, the whole conversation in it."""

_HARMLESS = InputValidator(MAX_BODY)
"""Cleans what was said before; how long that is, the model's window decides."""


# ── what travels ──────────────────────────────────────────────────────────────────────────


class Part(BaseModel):
    """A part of a message. Only text is read."""

    type: str
    text: str | None = None


class Spoken(BaseModel):
    """A message of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None

    def text(self) -> str:
        """Raises InvalidRequest for what isn't text."""
        if self.content is None or isinstance(self.content, str):
            return _HARMLESS.clean(self.content or "")
        if any(part.type != "text" for part in self.content):
            raise InvalidRequest(why="only_text", field="messages")
        return _HARMLESS.clean("\n".join(part.text or "" for part in self.content))


class StreamOptions(BaseModel):
    """How an answer streams."""

    include_usage: bool | None = False


class Schema(BaseModel):
    """A JSON schema."""

    model_config = ConfigDict(extra="ignore")

    definition: dict[str, Any] = Field(alias="schema")


class Form(BaseModel):
    """What an answer must be."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: Schema | None = None

    def schema_asked(self) -> dict[str, Any] | None:
        """Raises InvalidRequest where it names a schema and has none."""
        if self.type == "json_schema":
            if self.json_schema is None:
                raise InvalidRequest(why="no_schema", field="response_format")
            return self.json_schema.definition
        return {"type": "object"} if self.type == "json_object" else None


class CompletionRequest(BaseModel):
    """A request for an answer."""

    model_config = ConfigDict(extra="ignore")

    model: str = Field(
        description="A persona's name or id; a model other than the default behind an @.",
        examples=["さくら", "さくら@mock:echo"],
    )
    messages: list[Spoken] = Field(
        min_length=1,
        max_length=2000,
        description="The conversation; the last message is the user's.",
        examples=[[{"role": "user", "content": "こんにちは"}]],
    )
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: int | None = Field(1, description="1, for there is one answer at a time.")
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    response_format: Form | None = None

    _no_bool = field_validator(
        "n", "temperature", "top_p", "max_tokens", "max_completion_tokens", "seed", mode="before"
    )(refuse_bool)

    @field_validator("stop")
    @classmethod
    def _no_empty_stop(cls, value: str | list[str] | None) -> str | list[str] | None:
        if value is not None and "" in ([value] if isinstance(value, str) else value):
            raise ValueError("an empty text can't end an answer")
        return value

    def options(self) -> dict[str, Any]:
        """The sampling that was asked for. Raises InvalidOption."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop
        asked = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_tokens
            if self.max_completion_tokens is None
            else self.max_completion_tokens,
            "seed": self.seed,
            "stop": tuple(stop) if stop else None,
            "json_schema": self.response_format and self.response_format.schema_asked(),
        }
        return check_options({name: value for name, value in asked.items() if value is not None})


class ModelOut(BaseModel):
    """A persona, as a model."""

    id: str = Field(description="Its name, or its id where another has the name.")
    object: Literal["model"] = "model"
    created: int
    owned_by: str = Field(description="you, or demo.")


class ModelList(BaseModel):
    """Personas, as models."""

    object: Literal["list"] = "list"
    data: list[ModelOut]


class ErrorDetails(BaseModel):
    """What went wrong."""

    message: str = Field(description="In words, Japanese or English by Accept-Language.")
    type: str = Field(description="invalid_request_error, rate_limit_error or server_error.")
    param: str | None = Field(description="The field that is meant.")
    code: str


class ErrorOut(BaseModel):
    """An error in OpenAI's shape."""

    error: ErrorDetails


# ── the conversation ──────────────────────────────────────────────────────────────────────


def conversation(
    messages: Sequence[Spoken], words: Translations, language: str
) -> tuple[list[Entry], str]:
    """What was said before, as whole exchanges, and the message to be answered.

    Messages of one side in a row become one. Raises InvalidRequest when the last isn't the
    user's, or one isn't text.
    """
    told = [(message.role, message.text()) for message in messages]
    if told[-1][0] != "user":
        raise InvalidRequest(why="not_ending", field="messages")
    context: list[Entry] = []

    def say(sender: str, text: str) -> None:
        if context and context[-1]["sender"] == sender:
            context[-1]["content"] += "\n\n" + text
        elif text:
            context.append({"sender": sender, "content": text, "timestamp": ""})

    rules = [text for role, text in told if role in ("system", "developer") and text]
    if rules:
        say("user", "\n\n".join(rules))
        say("ai", words("heard", language))
    for role, text in told:
        if role == "assistant" and text:
            if not context:
                say("user", words("opening", language))
            say("ai", text)
        elif role == "user":
            say("user", text)
    asked = context.pop()["content"] if context and context[-1]["sender"] == "user" else ""
    return context, asked


# ── what can be done ──────────────────────────────────────────────────────────────────────

_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorOut, "description": description}
    for status, description in {
        400: "It can't be used as it is.",
        401: "Nobody knows who calls.",
        404: "The caller has no such persona.",
        413: "It is too long.",
        429: "The caller's quota is used up; Retry-After says until when.",
        500: "Something unexpected went wrong.",
        503: "The database or the model can't be had.",
        504: "The model didn't answer in time.",
    }.items()
}
_STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer; with stream, its chunks as server-sent events.",
        "content": {"text/event-stream": {"schema": {"description": "Events."}}},
    }
}

door = APIRouter(responses=_REFUSALS)


@door.get("/models")
async def list_models(operations: OperationsDep) -> ModelList:
    """Your personas, the last changed first, then the demos."""
    agents = await operations.list_personas()
    seen: set[str] = set()
    listed = []
    for agent in agents:  # in the order in which a name is looked up
        listed.append(_model(agent, agent.id if agent.name in seen else agent.name))
        seen.add(agent.name)
    return ModelList(data=listed)


@door.get("/models/{model:path}")
async def read_model(model: str, operations: OperationsDep) -> ModelOut:
    """One of them, by its name or its id."""
    return _model(await operations.find_persona(model), model)


@door.post("/chat/completions", response_model=None, responses=_STREAMED)
async def complete(
    asked: CompletionRequest, request: Request, lab: LabDep, caller: CallerDep
) -> Response:
    """The persona's answer to a conversation."""
    if asked.n not in (None, 1):
        raise InvalidRequest(why="one_answer", field="n")
    operations = caller.operations(lab)
    agent, model = await _persona_and_model(operations, asked.model)
    words: Translations = request.app.state.words
    context, message = conversation(asked.messages, words, agent.language)
    events = operations.answer(
        agent, message, model=model, context=context, kind="api", **asked.options()
    )
    answer = _Answer(asked.model, "chatcmpl-" + new_id(), int(time.time()))
    if asked.stream:
        usage = bool(asked.stream_options and asked.stream_options.include_usage)
        excuse = partial(_excuse, lab, caller.language)
        return EventStreamResponse(_chunks(events, answer, usage=usage), excuse)
    return JSONResponse(answer.whole(await cancel_on_disconnect(request, _last(events))))


async def _last(events: AsyncGenerator[Event, None]) -> Event:
    async with aclosing(events):
        async for event in events:
            if event.type == "done":
                if event.metadata.get("fallback"):
                    raise AnswerFailed(event.metadata)
                return event
    raise AssertionError("a stream ends with done or an error")


async def _chunks(
    events: AsyncGenerator[Event, None], answer: _Answer, *, usage: bool
) -> AsyncGenerator[bytes, None]:
    """The answer as server-sent events.

    A failed answer raises AnswerFailed: before the first event the response can still get an
    error status.
    """
    begun = False
    async with aclosing(events):
        async for event in events:
            if event.type == "delta" and "fallback" not in event.metadata:
                if not begun:
                    yield _piece(answer.chunk({"role": "assistant", "content": ""}), usage)
                    begun = True
                yield _piece(answer.chunk({"content": event.content}), usage)
            elif event.type == "done":
                if event.metadata.get("fallback"):
                    raise AnswerFailed(event.metadata)
                yield _piece(answer.chunk({}, finish_reason(event.metadata)), usage)
                if usage:
                    last = answer.chunk({}) | {"choices": []}
                    yield sse(as_json(last | {"usage": tokens(event.metadata)}))
    yield _DONE


def _excuse(lab: Lab, language: Language, error: Exception) -> bytes:
    return sse(as_json(_shape(ours(error), lab, language))) + _DONE


_DONE = sse("[DONE]")


def _piece(chunk: dict[str, Any], usage: bool) -> bytes:
    return sse(as_json(chunk | {"usage": None} if usage else chunk))


@dataclass(frozen=True, slots=True)
class _Answer:
    """What is the same in all parts of an answer."""

    model: str
    id: str
    created: int

    def whole(self, event: Event) -> dict[str, Any]:
        message = {"role": "assistant", "content": event.content, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None}
        choice["finish_reason"] = finish_reason(event.metadata)
        return self._of("chat.completion", choice) | {"usage": tokens(event.metadata)}

    def chunk(self, delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return self._of("chat.completion.chunk", choice)

    def _of(self, kind: str, choice: dict[str, Any]) -> dict[str, Any]:
        about = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return about | {"choices": [choice]}


def finish_reason(metadata: Mapping[str, Any]) -> str:
    """Why the answer ended, in OpenAI's words: "stop", "length" or "content_filter"."""
    if metadata.get("blocked"):
        return "content_filter"
    return "length" if metadata["finish_reason"] == "length" else "stop"


def tokens(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The usage in OpenAI's form."""
    counted = dict(metadata["usage"])
    cached = counted.pop("cached_tokens")
    return counted | {"prompt_tokens_details": {"cached_tokens": cached}}


async def _persona_and_model(operations: Operations, name: str) -> tuple[Agent, str]:
    """The persona and the model that answers, "" for the default.

    Raises:
        NotFound: The user has no such persona.
        UnknownModel: No such model is listed.
    """
    try:
        return await operations.find_persona(name), ""
    except NotFound:
        persona, _, model = name.rpartition("@")
        if not (persona and model):
            raise
    agent = await operations.find_persona(persona)
    return agent, operations.service.clients.info(model).spec


def _model(agent: Agent, name: str) -> ModelOut:
    whose = "demo" if agent.owner_id is None else "you"
    return ModelOut(id=name, created=int(agent.created_at.timestamp()), owned_by=whose)


_CODES = {
    "unauthorized": "invalid_api_key",
    "not_found": "model_not_found",
    "context_too_long": "context_length_exceeded",
    "too_many_requests": "rate_limit_exceeded",
    "tokens_spent": "insufficient_quota",
    "house_spent": "insufficient_quota",
}
"""Ours → what OpenAI's clients know it by."""


def _shape(error: PersonaLabError, lab: Lab, language: Language) -> Any:
    told = error_response(error, lab.error_handler, language)["error"]
    status = status_of(error)
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {
        "error": {
            "message": told["message"],
            "type": "rate_limit_error" if status == 429 else kind,
            "param": told.get("field") or told.get("option"),
            "code": _CODES.get(told["code"], told["code"]),
        }
    }


def completions_app(lab: Lab) -> FastAPI:
    """The app behind ``/v1``. Raises ConfigurationError for ``templates/doors.yaml``."""
    app = create_api_app(
        lab,
        [door],
        shape=_shape,
        statuses={422: 400},
        max_body=MAX_BODY,
        title="Persona Lab in OpenAI's form",
        version="1",
    )
    app.state.words = load_texts(lab.settings.templates_dir, "doors.yaml")
    return app
