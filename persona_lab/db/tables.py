"""Every noun: the tables, and the frozen values that travel between the parts.

Tables are rows of the store and stay near it. What moves along the path of a message
(:class:`Prompt` → :class:`Chunk` → :class:`Reply`) is frozen. Nothing here does anything.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Column, Index, UniqueConstraint, false, text
from sqlmodel import Field, Relationship, SQLModel

from persona_lab.types import new_id, now


def _json_list() -> Any:
    return Field(default_factory=list, sa_column=Column(JSON, nullable=False))


def _later(value: Any, in_database: Any, **column: Any) -> Any:
    return Field(default=value, sa_column_kwargs={"server_default": in_database, **column})


def _traits(link: type[SQLModel]) -> Any:
    """Rows through ``link`` in its order, loaded with the persona, written by the store only."""
    order = {"order_by": link.position, "viewonly": True, "lazy": "selectin"}  # type: ignore[attr-defined]
    return Relationship(link_model=link, sa_relationship_kwargs=order)


SQLModel.metadata.naming_convention = {
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
    "ix": "ix_%(column_0_label)s",
}  # a migration on SQLite can only change a constraint that has a name


class User(SQLModel, table=True):
    """Who owns rows. ``secret_hash`` is the SHA-256 of the secret that their browser keeps."""

    id: str = Field(default_factory=new_id, primary_key=True)
    secret_hash: str | None = Field(default=None, unique=True, index=True)
    created_at: datetime = Field(default_factory=now)


class ApiToken(SQLModel, table=True):
    """What a program shows to act for ``user_id``. ``token_hash`` is the SHA-256 of the secret,
    which nobody but its owner has; a revoked token keeps its row, so that it is known what it was.
    """

    id: str = Field(default_factory=new_id, primary_key=True)
    user_id: str = Field(foreign_key="user.id", index=True)
    name: str = ""
    token_hash: str = Field(unique=True, index=True)
    created_at: datetime = Field(default_factory=now)
    last_used_at: datetime | None = None
    revoked_at: datetime | None = None


class AgentPersonality(SQLModel, table=True):
    agent_id: str = Field(foreign_key="agent.id", primary_key=True, ondelete="CASCADE")
    personality_id: str = Field(foreign_key="personality.id", primary_key=True)
    position: int = 0


class AgentRole(SQLModel, table=True):
    agent_id: str = Field(foreign_key="agent.id", primary_key=True, ondelete="CASCADE")
    role_id: str = Field(foreign_key="role.id", primary_key=True)
    position: int = 0


class AgentTone(SQLModel, table=True):
    agent_id: str = Field(foreign_key="agent.id", primary_key=True, ondelete="CASCADE")
    tone_id: str = Field(foreign_key="tone.id", primary_key=True)
    position: int = 0


class Personality(SQLModel, table=True):
    """性格特性: フレンドリー, 知的 …"""

    id: str = Field(default_factory=new_id, primary_key=True)
    name: str = Field(unique=True, index=True)


class Role(SQLModel, table=True):
    """役割: カスタマーサポート, 教師 …"""

    id: str = Field(default_factory=new_id, primary_key=True)
    name: str = Field(unique=True, index=True)


class Tone(SQLModel, table=True):
    """口調: 敬語, カジュアル …"""

    id: str = Field(default_factory=new_id, primary_key=True)
    name: str = Field(unique=True, index=True)


class Agent(SQLModel, table=True):
    """A persona. ``owner_id`` None: a demo, everyone's to read and duplicate.

    ``examples`` are exchanges ``{"user": …, "ai": …}``. A deleted persona keeps its row
    (``deleted_at``), so that deleting can be undone and past conversations stay readable.
    """

    __table_args__ = (
        Index("ix_agent_owner_id_updated_at", "owner_id", "updated_at"),
        Index("ix_agent_owner_id_name", "owner_id", "name"),
    )

    id: str = Field(default_factory=new_id, primary_key=True)
    owner_id: str | None = Field(default=None, foreign_key="user.id", index=True)
    seed: str | None = Field(default=None, unique=True)
    """A demo's name in ``data/personas.yaml``."""
    position: int = 0
    """A demo's place in that file."""
    name: str
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
    """What a persona was before a change: undo steps back through these."""

    id: int | None = Field(default=None, primary_key=True)
    agent_id: str = Field(foreign_key="agent.id", index=True, ondelete="CASCADE")
    owner_id: str = Field(foreign_key="user.id", index=True)
    persona: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    created_at: datetime = Field(default_factory=now)


class Chat(SQLModel, table=True):
    """A conversation. ``revision`` counts the changes to it that aren't a message at its end.

    ``summary`` tells what stands up to position ``summary_through``, where a model was asked to.
    Columns that came later have a default in the database: a replica of the version before, which
    doesn't know them, goes on writing during an update.
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
    revision: int = _later(0, text("0"))
    summary: str = _later("", text("''"))
    summary_through: int = _later(-1, text("-1"))


class Message(SQLModel, table=True):
    """One turn. ``position`` orders a chat; ``details`` holds an answer's metadata.

    ``prompt_parts`` says where to find what was sent (:mod:`persona_lab.db.prompt_parts`); the
    store puts it back into ``details`` on reading. None on an answer: the row is older than the
    column, or a replica of that version wrote it; ``details`` holds everything.
    ``superseded``: a regenerated answer that a newer one replaced; kept, no longer sent.
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
    """A text that was sent to a model, once for each user. ``hash`` covers the user's id too."""

    __tablename__ = "prompt"

    hash: str = Field(primary_key=True)
    user_id: str = Field(foreign_key="user.id", ondelete="CASCADE")
    content: str


class ChatPrompt(SQLModel, table=True):
    """That a chat refers to a prompt: nobody reads a prompt but through a chat of theirs.

    A deleted chat takes these rows along; a prompt without any is deleted at the next start.
    """

    chat_id: str = Field(foreign_key="chat.id", primary_key=True, ondelete="CASCADE")
    hash: str = Field(foreign_key="prompt.hash", primary_key=True, index=True)


class Generation(SQLModel, table=True):
    """One generation: what it was, how long it took, what it cost. Times in milliseconds.

    ``cost`` in US dollars; None where the price of the model is unknown. ``user_key``: the call
    was paid for with the user's own provider key. Table and column keep their first names, so
    that a replica of the previous version can go on writing during an upgrade.
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
    cache_hit: bool = _later(False, false())
    user_key: bool = _later(False, false(), name="own", key="user_key")
    created_at: datetime = Field(default_factory=now, index=True)
