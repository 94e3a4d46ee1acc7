"""Frozen values that travel between packages: prompts, options, usage, chunks, replies, events."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

Language = Literal["ja", "en"]
Sender = Literal["user", "ai"]
Status = Literal["ok", "streaming", "stopped", "interrupted", "failed"]
"""Of an answer: whole, on its way, stopped by the user, cut off by a crash, a stand-in's words."""


def new_id() -> str:
    return uuid.uuid4().hex


def now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Image:
    """A picture in a message: at ``url``, or as ``data`` of ``media_type``."""

    url: str = ""
    data: bytes = b""
    media_type: str = "image/png"


@dataclass(frozen=True, slots=True)
class PromptMessage:
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
    turns: tuple[PromptMessage, ...] = ()
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


@dataclass(frozen=True, slots=True)
class Event:
    """A step of a streamed answer: "start", "delta" (new text) or "done" (the whole text)."""

    type: Literal["start", "delta", "done"]
    content: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    message_id: str = ""
