"""The values of one turn: what is asked, and how far the turn has come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any

from persona_lab.clients.base import estimate_tokens
from persona_lab.db.tables import Agent, Message
from persona_lab.errors import (
    PersonaLabError,
    ProviderError,
)
from persona_lab.responses.changes import (
    FALLBACK_STEP,
    Change,
    Edit,
    compose,
)
from persona_lab.types import Language, Prompt, Reply, Status, Usage

if TYPE_CHECKING:
    from persona_lab.clients.base import LLMClientInterface
    from persona_lab.clients.catalog import ModelInfo
    from persona_lab.pipeline.context import Entry
    from persona_lab.responses.processor import ReplyStream


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """What is asked. In a chat ``context`` is empty: the turn reads it from the store."""

    kind: str
    user_id: str
    agent: Agent
    message: str
    _: KW_ONLY
    model: str
    options: Mapping[str, Any]
    language: Language | None
    context: Sequence[Entry] = ()
    chat_id: str | None = None
    asked: Message | None = None
    fresh: bool = False


@dataclass(slots=True)
class TurnState:
    """How far a turn has come. Times are seconds of the service's clock."""

    began: float
    info: ModelInfo | None = None
    client: LLMClientInterface | None = None
    prompt: Prompt | None = None
    context: Sequence[Entry] = ()
    failed: Sequence[ProviderError] = ()
    told: dict[str, Any] = field(default_factory=dict)
    stream: ReplyStream | None = None
    text: str = ""
    applied: tuple[str, ...] = ()
    changes: Sequence[Change] = ()
    blocked: str = ""
    first: float | None = None
    shown: float | None = None
    load: float = 0
    usage: Usage | None = None
    finish_reason: str | None = None
    model: str = ""
    status: Status = "stopped"
    error: PersonaLabError | None = None
    excuse: Reply | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def finish(self) -> str:
        """Finish the stream, and return the text that it held back; "" at a second call."""
        if self.stream is None:
            return ""
        rest, self.applied = self.stream.finish()
        self.blocked = self.stream.blocked
        self.changes = self.stream.changes()
        self.stream = None
        self.text += rest
        return rest

    def since_began(self, moment: float | None) -> float | None:
        """Milliseconds, without those for loading the model."""
        return None if moment is None else milliseconds(moment - self.began - self.load)

    @property
    def unseen(self) -> bool:
        """Whether it was stopped before a word was shown."""
        return self.status == "stopped" and self.shown is None

    @property
    def content(self) -> str:
        """The answer as it is shown and kept."""
        excuse = self.excuse.content if self.excuse else ""
        return "\n\n".join(filter(None, [self.text, excuse]))

    @property
    def content_changes(self) -> Sequence[Change]:
        """The changes of :attr:`content`: the error handler's words are one of them."""
        text, content = self.text, self.content
        if text == content:
            return self.changes
        added = Edit(len(text), len(text), len(content) - len(text))
        return compose(self.changes, [added], text, content, FALLBACK_STEP)

    @property
    def spent(self) -> Usage:
        """The provider's count, or an estimate where the answer ended before it came.

        One that failed before its first word is counted as nothing; who stopped it had it read.
        """
        read = self.first is not None or self.status == "stopped"
        if self.usage is not None or not (read and self.client and self.prompt):
            return self.usage or Usage()
        prompt = str(self.prompt)
        try:
            count = self.client.count_tokens
            return Usage(count(prompt), count(self.text), estimated=True)
        except Exception:  # noqa: BLE001 - an answer isn't lost for want of a number
            return Usage(estimate_tokens(prompt), estimate_tokens(self.text), estimated=True)


def milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 1)
