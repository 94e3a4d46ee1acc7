"""Every noun: the tables, and the frozen values that travel between the parts.

Tables are rows of the store and stay near it. What moves along the path of a message
(:class:`Prompt` → :class:`Chunk` → :class:`Reply`) is frozen. Nothing here does anything.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from sqlalchemy import JSON, Column, Index, UniqueConstraint, false, text
from sqlmodel import Field, Relationship, SQLModel

Language = Literal["ja", "en"]
Sender = Literal["user", "ai"]
Status = Literal["ok", "streaming", "stopped", "interrupted", "failed"]
"""Of an answer: whole, on its way, stopped by the user, cut off by a crash, a stand-in's words."""


def new_id() -> str:
    return uuid.uuid4().hex


def now() -> datetime:
    return datetime.now(UTC)


def _json_list() -> Any:
    return Field(default_factory=list, sa_column=Column(JSON, nullable=False))


def _later(value: Any, in_database: Any) -> Any:
    return Field(default=value, sa_column_kwargs={"server_default": in_database})


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


# ── tables ────────────────────────────────────────────────────────────────────────────────


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
    """One turn. ``position`` orders a chat; ``details`` holds an answer's metadata and its prompt.

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


class TurnRecord(SQLModel, table=True):
    """One generation: what it was, how long it took, what it cost. Times in milliseconds.

    ``cost`` in US dollars; None where the price of the model is unknown. ``own``: it was the
    user's own account that was asked.
    """

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
    own: bool = _later(False, false())
    created_at: datetime = Field(default_factory=now, index=True)


class PastTurn(NamedTuple):
    """The figures of one :class:`TurnRecord`, without what was said.

    ``agent_name`` and ``demo`` are those of a persona that is the user's own (a deleted one too) or
    a demo; None for any other, such as one that was tried and never kept.
    """

    created_at: datetime
    kind: str
    agent_id: str
    agent_name: str | None
    demo: bool
    provider: str
    model: str
    status: str
    error_type: str | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    first_token_ms: float | None
    total_ms: float
    cost: float | None
    cache_hit: bool


# ── values that travel ────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Image:
    """A picture in a message: at ``url``, or as ``data`` of ``media_type``."""

    url: str = ""
    data: bytes = b""
    media_type: str = "image/png"


@dataclass(frozen=True, slots=True)
class Turn:
    role: Literal["user", "assistant"]
    content: str
    images: tuple[Image, ...] = ()


@dataclass(frozen=True, slots=True)
class Span:
    """``system[start:end]`` came from the persona's field ``field`` (offsets in characters)."""

    start: int
    end: int
    field: str


@dataclass(frozen=True, slots=True)
class Trace:
    """Why a prompt reads as it does. ``rule`` counts from 1; 0 is the default's.

    ``reason`` is in the persona's language, ``reasons`` has it in each that a page can have.
    ``summary`` stands for the turns that are too old to be sent.
    """

    template: str
    rule: int
    reason: str
    spans: tuple[Span, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict, hash=False)
    summary: str = ""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is sent to a model, to the byte.

    kind "chat": ``system`` is the persona and ``turns`` the conversation, the last the user's.
    kind "transcript": ``system`` is the whole text, ending in the persona's name, and ``turns``
    is empty; models without a chat template continue it until one of ``stop`` appears.
    ``system`` of a chat is stable from turn to turn, so that its computation can be reused.
    """

    system: str
    turns: tuple[Turn, ...] = ()
    kind: Literal["chat", "transcript"] = "chat"
    message: str = ""
    stop: tuple[str, ...] = ()
    trace: Trace = Trace("", 0, "")

    def __str__(self) -> str:
        return "\n\n".join([self.system, *(turn.content for turn in self.turns)])

    def __contains__(self, text: str) -> bool:
        return text in str(self)

    def messages(self) -> list[dict[str, str]]:
        """The form that chat APIs take, the persona as the system's message."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return system + [{"role": turn.role, "content": turn.content} for turn in self.turns]


@dataclass(frozen=True, slots=True)
class Options:
    """How to generate. None leaves it to the provider.

    ``json_schema`` (a schema, as JSON) and ``grammar`` (llama.cpp's GBNF, for local models) say
    what the answer must be; it is data then, and no tone is put on it. "": anything.
    What follows ``stop`` is patience and doesn't shape the answer. Seconds: ``timeout`` until the
    first sign of an answer, all tries together; ``connect_timeout`` until a server takes the
    connection; ``idle_timeout`` between two signs (None: as ``timeout``); ``total_timeout`` until
    the end. ``retries``: further tries while no word has come.
    """

    temperature: float | None = 0.7
    max_tokens: int = 1000
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    json_schema: str = ""
    grammar: str = ""
    timeout: float = 30.0
    connect_timeout: float = 10.0
    idle_timeout: float | None = None
    total_timeout: float = 600.0
    retries: int = 2

    @property
    def idle(self) -> float:
        """``idle_timeout``, whichever way it was said."""
        return self.timeout if self.idle_timeout is None else self.idle_timeout


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens; ``estimated`` where nobody counted.

    ``prompt_tokens`` includes ``cached_tokens``, which the provider had read before, and
    ``written_tokens``, which it put in its cache for the next time.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    estimated: bool = False
    written_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def as_dict(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.total_tokens,
            "cached_tokens": self.cached_tokens,
        }


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer. The last has ``finish_reason``, ``usage`` and the model's own name.

    ``finish_reason``: "stop", "length", "content_filter" or "refusal". ``metadata``: what a layer
    tells of the answer; it ends up in the reply's.
    """

    text: str = ""
    finish_reason: str | None = None
    usage: Usage | None = None
    model: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole raw answer of a client."""

    content: str
    model: str
    usage: Usage
    finish_reason: str


@dataclass(frozen=True, slots=True)
class Reply:
    """A finished answer. ``metadata``: model, usage, processing_applied; on a fallback also
    error (the words shown), error_type and fallback=True."""

    content: str
    metadata: dict[str, Any] = field(default_factory=dict)
    message_id: str = ""


class PassedOver(NamedTuple):
    """A model that another stood in for: who, the error's code, and how often it was asked."""

    spec: str
    code: str
    attempts: int = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """A generation that is over, for whoever watches: its record, and what that doesn't keep.

    ``spec`` is the model that was asked last; ``code`` that of the error which ended it;
    ``passed_over`` are the models that another stood in for; ``attempts``: how often the last was
    asked. ``message`` and ``answer`` are for eyes that may see them.
    """

    record: TurnRecord
    spec: str
    code: str | None = None
    attempts: int = 1
    passed_over: tuple[PassedOver, ...] = ()
    message: str = field(default="", repr=False)
    answer: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Event:
    """A step of a streamed answer: "start", "delta" (new text) or "done" (the whole text)."""

    type: Literal["start", "delta", "done"]
    content: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    message_id: str = ""
