"""The bodies of ``/api/v1``: what a request may hold, and what a response has."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from persona_lab.db.tables import Agent, AgentVersion, ApiToken, Chat
from persona_lab.personas.versions import MESSAGE_LENGTH
from persona_lab.server.answer_events import MessageIn, MessageOut
from persona_lab.server.persona_schema import request_fields, response_fields
from persona_lab.server.serializers import persona_data, version_data
from persona_lab.types import Language


class ErrorDetails(BaseModel):
    """An error. Some errors have further fields: field, limit, retry_after."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="The kind of error, such as invalid_input or rate_limit.")
    code: str = Field(description="The error, such as not_found.")
    message: str = Field(description="A text for people, Japanese or English by Accept-Language.")


class ErrorOut(BaseModel):
    """The body of every error response."""

    error: ErrorDetails


@request_fields
class PersonaFields(BaseModel):
    """Fields of a persona. Fields that are left out stay unchanged."""

    model_config = ConfigDict(extra="forbid")

    def given(self) -> dict[str, Any]:
        """Return the fields that the request contains."""
        return self.model_dump(exclude_unset=True)


class NewPersona(PersonaFields):
    """A persona to create."""

    name: str = Field(description="At most 100 characters.", examples=["さくら"])
    language: Language = "ja"


@response_fields
class _AgentFields(BaseModel):
    id: str
    demo: bool


class AgentOut(_AgentFields):
    """A persona of your own, or a demo, which everybody can read and talk with."""

    created_at: datetime
    updated_at: datetime

    @classmethod
    def from_row(cls, agent: Agent) -> AgentOut:
        """Return the persona of a row."""
        return cls(**persona_data(agent), created_at=agent.created_at, updated_at=agent.updated_at)


class NewVersion(BaseModel):
    """A version to commit."""

    model_config = ConfigDict(extra="forbid")

    message: str = Field("", description=f"At most {MESSAGE_LENGTH} characters.")


class VersionOut(BaseModel):
    """A version of a persona."""

    number: int = Field(description="Counts from 1 for each persona.")
    message: str
    created_at: datetime
    restored_from: int | None = Field(description="The version that it restores.")


class VersionWithPersona(VersionOut):
    """A version with the fields of the persona."""

    persona: dict[str, Any]

    @classmethod
    def from_row(cls, version: AgentVersion) -> VersionWithPersona:
        """Return the version of a row."""
        return cls(**version_data(version), persona=version.persona)


class FieldChangeOut(BaseModel):
    """A field of the persona that differs."""

    field: str
    before: Any
    after: Any


class TextPartOut(BaseModel):
    """A part of a text."""

    kind: Literal["same", "added", "removed"]
    text: str


class DiffOut(BaseModel):
    """The difference between two versions of a persona."""

    changes: list[FieldChangeOut]
    prompt: list[TextPartOut] = Field(description="Both prompts, part by part.")


class NewChat(BaseModel):
    """A conversation to create."""

    model_config = ConfigDict(extra="forbid")

    agent_id: str = Field(description="The persona to talk with.")


class ChatOut(BaseModel):
    """A conversation. ``/ws/{id}`` is its WebSocket."""

    id: str
    agent_id: str
    title: str = Field(description="Its first words; empty before the first message.")
    created_at: datetime
    updated_at: datetime

    @classmethod
    def from_row(cls, chat: Chat) -> ChatOut:
        """Return the conversation of a row."""
        return cls.model_validate(chat, from_attributes=True)


class MessageRequest(MessageIn):
    """A message to the persona, and how the answer is returned."""

    model_config = ConfigDict(extra="forbid")

    stream: bool = Field(
        default=False, description="Whether to stream the answer as server-sent events."
    )


class Exchange(BaseModel):
    """A message and its answer."""

    user: MessageOut
    answer: MessageOut


class FailedExchange(ErrorOut):
    """A failed answer. The message is stored nevertheless, with a fallback text as its answer."""

    fallback: bool
    user: MessageOut
    answer: MessageOut


class NewToken(BaseModel):
    """A token to create."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field("", description="Distinguishes tokens; at most 100 characters.")


class TokenOut(BaseModel):
    """A valid token. Its secret was shown once, when it was created."""

    id: str
    name: str
    created_at: datetime
    last_used_at: datetime | None = Field(description="To the minute; null before the first use.")

    @classmethod
    def from_row(cls, token: ApiToken) -> TokenOut:
        """Return the token of a row."""
        return cls.model_validate(token, from_attributes=True)


class TokenWithSecret(TokenOut):
    """A new token with its secret, which can't be read again."""

    token: str = Field(description="The value for `Authorization: Bearer`; it begins with pl_.")


class ModelOut(BaseModel):
    """A model."""

    model: str = Field(description="The model, as provider:name.")
    label: str
    available: bool = Field(description="Whether the settings have its provider's key or address.")
    context: int = Field(description="Size of the context window in tokens.")
    languages: list[str]
