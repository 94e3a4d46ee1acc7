"""The tables. Queries are in the other files of this package."""

import json
from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Column, Index, UniqueConstraint, false, text, true
from sqlmodel import Field, Relationship, SQLModel

from persona_lab.deprecated import former_fields
from persona_lab.types import new_id, now


def _json_list() -> Any:
    return Field(default_factory=list, sa_column=Column(JSON, nullable=False))


def _added_field(value: bool | int | str | list[Any], **column: Any) -> Any:
    """Return a column that a migration added: rows from before get ``value``."""
    in_database: Any
    if isinstance(value, bool):
        in_database = true() if value else false()
    elif isinstance(value, int):
        in_database = text(str(value))
    elif isinstance(value, list):
        in_database = text(_quoted(json.dumps(value)))
        stored = Column(JSON, nullable=False, server_default=in_database)
        return Field(default_factory=value.copy, sa_column=stored)
    else:
        in_database = text(_quoted(value))
    return Field(default=value, sa_column_kwargs={"server_default": in_database, **column})


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _traits(link: type[SQLModel]) -> Any:
    """Return a read-only relationship to traits in their order, loaded with the persona."""
    order = {"order_by": link.position, "viewonly": True, "lazy": "selectin"}  # type: ignore[attr-defined]
    return Relationship(link_model=link, sa_relationship_kwargs=order)


SQLModel.metadata.naming_convention = {
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
    "ix": "ix_%(column_0_label)s",
}  # a migration on SQLite can only change a constraint that has a name


class User(SQLModel, table=True):
    """The owner of rows. ``secret_hash`` is the SHA-256 of a secret that the browser keeps."""

    id: str = Field(default_factory=new_id, primary_key=True)
    secret_hash: str | None = Field(default=None, unique=True, index=True)
    created_at: datetime = Field(default_factory=now)


class ApiToken(SQLModel, table=True):
    """A token with which a program acts for a user.

    ``token_hash`` is the SHA-256 of its secret, which is not stored. A revoked token keeps its row.
    """

    id: str = Field(default_factory=new_id, primary_key=True)
    user_id: str = Field(foreign_key="user.id", index=True)
    name: str = ""
    token_hash: str = Field(unique=True, index=True)
    created_at: datetime = Field(default_factory=now)
    last_used_at: datetime | None = None
    revoked_at: datetime | None = None


class AgentPersonality(SQLModel, table=True):
    """A link from a persona to a personality trait."""

    agent_id: str = Field(foreign_key="agent.id", primary_key=True, ondelete="CASCADE")
    personality_id: str = Field(foreign_key="personality.id", primary_key=True)
    position: int = 0


class AgentRole(SQLModel, table=True):
    """A link from a persona to a role."""

    agent_id: str = Field(foreign_key="agent.id", primary_key=True, ondelete="CASCADE")
    role_id: str = Field(foreign_key="role.id", primary_key=True)
    position: int = 0


class AgentTone(SQLModel, table=True):
    """A link from a persona to a tone."""

    agent_id: str = Field(foreign_key="agent.id", primary_key=True, ondelete="CASCADE")
    tone_id: str = Field(foreign_key="tone.id", primary_key=True)
    position: int = 0


class Personality(SQLModel, table=True):
    """A personality trait (性格特性), such as フレンドリー or 知的."""

    id: str = Field(default_factory=new_id, primary_key=True)
    name: str = Field(unique=True, index=True)


class Role(SQLModel, table=True):
    """A role (役割), such as カスタマーサポート or 教師."""

    id: str = Field(default_factory=new_id, primary_key=True)
    name: str = Field(unique=True, index=True)


class Tone(SQLModel, table=True):
    """A tone of speech (口調), such as 敬語 or カジュアル."""

    id: str = Field(default_factory=new_id, primary_key=True)
    name: str = Field(unique=True, index=True)


class Agent(SQLModel, table=True):
    """A persona. A persona without an owner is a demo: every user can read and duplicate it.

    ``examples`` are exchanges ``{"user": …, "ai": …}``. A deleted persona keeps its row, with
    ``deleted_at`` set: it can be restored, and its chats stay readable.
    """

    __table_args__ = (
        Index("ix_agent_owner_id_updated_at", "owner_id", "updated_at"),
        Index("ix_agent_owner_id_name", "owner_id", "name"),
    )

    id: str = Field(default_factory=new_id, primary_key=True)
    owner_id: str | None = Field(default=None, foreign_key="user.id", index=True)
    seed: str | None = Field(default=None, unique=True)
    """The id of a demo in ``data/personas.yaml``."""
    position: int = 0
    """The position of a demo in that file."""
    name: str
    label: str = _added_field("")
    """Tells copies of one name apart in lists. It is never sent to a model."""
    description: str = ""
    gender: str = ""
    background: str = ""
    first_person: str = ""
    second_person: str = ""
    sentence_endings: list[str] = _json_list()
    catchphrases: list[str] = _json_list()
    forbidden_words: list[str] = _json_list()
    examples: list[dict[str, str]] = _json_list()
    greeting: str = ""
    language: str = "ja"
    created_at: datetime = Field(default_factory=now)
    updated_at: datetime = Field(default_factory=now)
    deleted_at: datetime | None = None

    personalities: list[Personality] = _traits(AgentPersonality)
    roles: list[Role] = _traits(AgentRole)
    tones: list[Tone] = _traits(AgentTone)


class AgentRevision(SQLModel, table=True):
    """A persona before a change. Undo goes back through revisions."""

    id: int | None = Field(default=None, primary_key=True)
    agent_id: str = Field(foreign_key="agent.id", index=True, ondelete="CASCADE")
    owner_id: str = Field(foreign_key="user.id", index=True)
    persona: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    created_at: datetime = Field(default_factory=now)


class AgentVersion(SQLModel, table=True):
    """A committed state of a persona. The persona's own row is the draft.

    ``hash`` is that of the persona's fields. ``templates`` has the hashes of the templates that it
    used, by file name; it is empty if they aren't known.
    """

    __table_args__ = (UniqueConstraint("agent_id", "number"),)

    id: str = Field(default_factory=new_id, primary_key=True)
    agent_id: str = Field(foreign_key="agent.id", ondelete="CASCADE")
    owner_id: str = Field(foreign_key="user.id", index=True)
    number: int
    message: str = ""
    persona: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    options: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    templates: dict[str, str] = Field(sa_column=Column(JSON, nullable=False))
    hash: str
    restored_from: int | None = None
    created_at: datetime = Field(default_factory=now)


class Chat(SQLModel, table=True):
    """A conversation. ``revision`` counts changes other than a new message at its end.

    ``summary`` covers the messages up to position ``summary_through``. Columns that were added
    later have a default in the database, because a replica of the previous version still inserts
    rows without them during an upgrade.
    """

    __table_args__ = (
        Index("ix_chat_user_id_updated_at", "user_id", "updated_at"),
        Index("ix_chat_agent_id_user_id_updated_at", "agent_id", "user_id", "updated_at"),
    )

    id: str = Field(default_factory=new_id, primary_key=True)
    user_id: str = Field(foreign_key="user.id", index=True)
    agent_id: str = Field(foreign_key="agent.id", index=True)
    title: str = ""
    created_at: datetime = Field(default_factory=now)
    updated_at: datetime = Field(default_factory=now, index=True)
    deleted_at: datetime | None = None
    revision: int = _added_field(0)
    summary: str = _added_field("")
    summary_through: int = _added_field(-1)


class Message(SQLModel, table=True):
    """A message of a chat. ``position`` orders it; ``details`` holds the metadata of an answer.

    ``prompt_parts`` refers to what was sent (:mod:`persona_lab.db.prompt_parts`); queries put it
    back into ``details``. None on an answer means that an older version wrote the row, with
    everything in ``details``. ``superseded`` marks an answer that was replaced; it is kept but not
    sent again.
    """

    __table_args__ = (
        UniqueConstraint("chat_id", "position"),
        Index(
            "ix_message_streaming",
            "chat_id",
            sqlite_where=text("status = 'streaming'"),
            postgresql_where=text("status = 'streaming'"),
        ),
        Index(
            "ix_message_unconverted",
            "chat_id",
            sqlite_where=text("prompt_parts IS NULL AND sender = 'ai'"),
            postgresql_where=text("prompt_parts IS NULL AND sender = 'ai'"),
        ),
    )

    id: str = Field(default_factory=new_id, primary_key=True)
    chat_id: str = Field(foreign_key="chat.id", ondelete="CASCADE")
    position: int
    sender: str
    content: str = ""
    image_url: str | None = None
    status: str = "ok"
    superseded: bool = False
    details: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    created_at: datetime = Field(default_factory=now)
    prompt_parts: dict[str, Any] | None = Field(
        default=None, sa_column=Column(JSON(none_as_null=True), nullable=True), exclude=True
    )


class StoredPrompt(SQLModel, table=True):
    """A text that was sent to a model, stored once per user. ``hash`` covers the user's id too."""

    __tablename__ = "prompt"

    hash: str = Field(primary_key=True)
    user_id: str = Field(foreign_key="user.id", ondelete="CASCADE")
    content: str


class ChatPrompt(SQLModel, table=True):
    """A reference of a chat to a prompt. A user reads prompts only through their own chats.

    Deleting a chat deletes its references. A prompt without any is deleted at the next start.
    """

    chat_id: str = Field(foreign_key="chat.id", primary_key=True, ondelete="CASCADE")
    hash: str = Field(foreign_key="prompt.hash", primary_key=True, index=True)


@former_fields(own="user_key")
class Generation(SQLModel, table=True):
    """A generation: its model, duration in milliseconds, tokens and cost.

    ``cost`` is in US dollars; None when the price of the model is unknown. ``user_key``: the user's
    own provider key paid for the call. Table and column keep their first names, so that a replica
    of the previous version can insert rows during an upgrade.
    """

    __tablename__ = "turnrecord"

    id: str = Field(default_factory=new_id, primary_key=True)
    user_id: str = Field(foreign_key="user.id", index=True)
    agent_id: str = Field(index=True)
    chat_id: str | None = Field(default=None, index=True)
    kind: str = "chat"
    provider: str
    model: str
    status: str
    error_type: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    first_token_ms: float | None = None
    total_ms: float = 0
    cost: float | None = None
    cache_hit: bool = _added_field(False)
    user_key: bool = _added_field(False, name="own", key="user_key")
    created_at: datetime = Field(default_factory=now, index=True)
