"""Frozen values that travel between packages: prompts, options, usage, chunks, replies, events."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, get_args

Language = Literal["ja", "en"]
LANGUAGES: tuple[Language, ...] = get_args(Language)
"""Languages of personas, templates and texts; the first is the default."""
Sender = Literal["user", "ai"]
Status = Literal["ok", "streaming", "stopped", "interrupted", "failed"]
"""Of an answer: complete, in progress, stopped by the user, cut off by a crash, a fallback text."""


def new_id() -> str:
    """Return a random id of 32 hexadecimal digits."""
    return uuid.uuid4().hex


def now() -> datetime:
    """Return the present time in UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Image:
    """A picture in a message: at ``url``, or as ``data`` of ``media_type``."""

    url: str = ""
    data: bytes = b""
    media_type: str = "image/png"


@dataclass(frozen=True, slots=True)
class PromptMessage:
    """One message of a prompt, of the user or of the model."""

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
    """Why a prompt reads as it does. ``rule`` counts from 1; 0 means that no rule matched.

    ``reason`` is in the persona's language; ``reasons`` has it in every language of the page.
    ``summary`` stands for the messages that are too old to be sent.
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

    Kind "chat": ``system`` is the persona, and ``turns`` are the conversation, the user's message
    last. ``system`` is stable from turn to turn, so that its computation can be reused.
    Kind "transcript": ``system`` is the whole text, which ends in the persona's name, and ``turns``
    is empty. Models without a chat template continue it until one of ``stop`` appears.
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
        """Return the messages as chat APIs take them, the persona as the system message."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return system + [{"role": turn.role, "content": turn.content} for turn in self.turns]


@dataclass(frozen=True, slots=True)
class Options:
    """How to generate. None leaves an option to the provider.

    The fields up to ``grammar`` shape the answer; those after it don't. All times are in seconds.

    Attributes:
        stop: Texts that end the answer.
        json_schema: A JSON schema that the answer must follow, as JSON; "" for none. The answer is
            data then, and no tone is applied.
        grammar: The same as a grammar in llama.cpp's GBNF, for local models.
        timeout: Time until the first sign of an answer, all tries together.
        connect_timeout: Time until a server accepts the connection.
        idle_timeout: Time between two signs; None takes ``timeout``.
        total_timeout: Time until the end of the answer.
        retries: Further tries while no text has arrived.
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
        """``idle_timeout``, or ``timeout`` where it is not set."""
        return self.timeout if self.idle_timeout is None else self.idle_timeout


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a call; ``estimated`` where the provider returned no count.

    ``prompt_tokens`` includes ``cached_tokens`` (read from the provider's cache) and
    ``written_tokens`` (written to it).
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    estimated: bool = False
    written_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Tokens of prompt and answer together."""
        return self.prompt_tokens + self.completion_tokens

    def as_dict(self) -> dict[str, int]:
        """Return the counts as a reply's metadata has them."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.total_tokens,
            "cached_tokens": self.cached_tokens,
        }


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer. The last has ``finish_reason``, ``usage`` and the model's own name.

    ``finish_reason`` is "stop", "length", "content_filter" or "refusal". ``metadata`` comes from
    middleware and becomes part of the reply's metadata.
    """

    text: str = ""
    finish_reason: str | None = None
    usage: Usage | None = None
    model: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer of a client, unprocessed."""

    content: str
    model: str
    usage: Usage
    finish_reason: str


@dataclass(frozen=True, slots=True)
class Reply:
    """A finished answer.

    Attributes:
        content: The text that is shown.
        metadata: model, usage, processing_applied, raw and changes; on a fallback also error (the
            words shown), error_type and fallback=True.
        message_id: The id of its row; "" where none was stored.
        raw: The model's own text. What was removed for safety is masked in it, see
            :mod:`persona_lab.responses.changes`.
    """

    content: str
    metadata: dict[str, Any] = field(default_factory=dict)
    message_id: str = ""
    raw: str = ""

    @property
    def changes(self) -> list[dict[str, Any]]:
        """Which step changed which span of ``content``.

        Each has ``start``, ``end``, ``was`` (the model's text there) and ``step``. Taken back from
        the last to the first they give ``raw``.
        """
        return list(self.metadata.get("changes", ()))


@dataclass(frozen=True, slots=True)
class Event:
    """A step of a streamed answer: "start", "delta" (new text) or "done" (the whole text).

    Attributes:
        type: The kind of step.
        content: The text.
        metadata: What is known about the answer or its text.
        message_id: The stored message; "" without one.
        pending: In a delta, the unfinished text after ``content`` as the model wrote it. It
            replaces the pending text of the event before, and can be finished differently.
        raw: In a delta with pending text, the whole text so far as the model wrote it.
    """

    type: Literal["start", "delta", "done"]
    content: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    message_id: str = ""
    pending: str = ""
    raw: str = ""
