"""Requests and responses of ``/v1``, in OpenAI's form."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from persona_lab.clients.options import check_options, refuse_bool
from persona_lab.errors import InvalidRequest
from persona_lab.server.openai_messages import ChatMessage

MIN_TOP_P = 0.001
"""Replaces a ``top_p`` of 0, which OpenAI takes and other providers refuse."""


class StreamOptions(BaseModel):
    """Options of a streamed answer."""

    include_usage: bool | None = False


class JsonSchema(BaseModel):
    """A JSON schema. Without a definition, any object matches it."""

    definition: dict[str, Any] | None = Field(None, alias="schema")


class ResponseFormat(BaseModel):
    """The form of an answer."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None

    def requested_schema(self) -> dict[str, Any] | None:
        """Return the JSON schema that the answer must match, if any.

        Raises:
            InvalidRequest: The type is ``json_schema``, and there is no schema.
        """
        if self.type == "json_schema":
            if self.json_schema is None:
                raise InvalidRequest(why="no_schema", field="response_format")
            return self.json_schema.definition or {"type": "object"}
        return {"type": "object"} if self.type == "json_object" else None


class CompletionRequest(BaseModel):
    """A request for an answer to a conversation."""

    model_config = ConfigDict(extra="ignore")

    model: str = Field(
        description="A persona's name or id; optionally an @ and the model that answers.",
        examples=["さくら", "さくら@mock:echo"],
    )
    messages: list[ChatMessage] = Field(
        min_length=1,
        max_length=2000,
        description="The conversation, in any order of roles.",
        examples=[[{"role": "user", "content": "こんにちは"}]],
    )
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: int | None = Field(1, description="Must be 1: a request has one answer.")
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    response_format: ResponseFormat | None = None

    _no_bool = field_validator(
        "n", "temperature", "top_p", "max_tokens", "max_completion_tokens", "seed", mode="before"
    )(refuse_bool)

    @field_validator("stop")
    @classmethod
    def _no_empty_stop(cls, value: str | list[str] | None) -> str | list[str] | None:
        if value is not None and "" in ([value] if isinstance(value, str) else value):
            raise ValueError("an empty text can't end an answer")
        return value

    def options(self, longest_answer: int) -> dict[str, Any]:
        """Return the sampling options that the request contains.

        Args:
            longest_answer: The most tokens that an answer of the model can have. Clients ask for
                more when they know another model by that name.

        Raises:
            InvalidOption: An option is out of range.
            InvalidRequest: As :meth:`ResponseFormat.requested_schema` does.
        """
        stop = [self.stop] if isinstance(self.stop, str) else self.stop
        max_tokens = (
            self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        )
        options = {
            "temperature": self.temperature,
            "top_p": MIN_TOP_P if self.top_p == 0 else self.top_p,
            "max_tokens": None if max_tokens is None else min(max_tokens, longest_answer),
            "seed": self.seed,
            "stop": tuple(stop) if stop else None,
            "json_schema": self.response_format and self.response_format.requested_schema(),
        }
        return check_options({name: value for name, value in options.items() if value is not None})


class ModelOut(BaseModel):
    """A persona as a model."""

    id: str = Field(description="Its name, or its id if another persona has the name.")
    object: Literal["model"] = "model"
    created: int
    owned_by: str = Field(description="you or demo.")


class ModelList(BaseModel):
    """Personas as models."""

    object: Literal["list"] = "list"
    data: list[ModelOut]


class ErrorDetails(BaseModel):
    """An error."""

    message: str = Field(description="A text for people, Japanese or English by Accept-Language.")
    type: str = Field(description="invalid_request_error, rate_limit_error or server_error.")
    param: str | None = Field(description="The field that caused the error.")
    code: str


class ErrorOut(BaseModel):
    """The body of every error response."""

    error: ErrorDetails
