"""The values of one turn: the request, and the state while it runs."""

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
    """The input of one turn.

    Attributes:
        kind: The kind of the generation, such as "chat" or "try".
        user_id: The user whose quota the turn uses.
        agent: The persona that answers.
        message: The validated text of the user's message.
        model: ``provider:name``, or "" for the default model.
        options: Options of the call, by name.
        language: The language of error texts; None for the persona's language.
        context: The exchanges before the message. In a chat it is empty, and the turn reads the
            context from the store.
        chat_id: The chat, or None for a turn without one.
        asked: The stored message of the user, in a chat.
        fresh: Whether the answer replaces another one. A fresh answer bypasses the response cache.
    """

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
    """The state of a running turn. Times are seconds of the service's clock.

    Attributes:
        began: When the turn began.
        info: The model that is called now, or that answered.
        client: The client of that model.
        prompt: The prompt that was sent.
        context: The exchanges in the prompt.
        failed: The errors of the models that failed before their first text.
        told: The metadata of the client's chunks.
        stream: The processing of the answer while it runs.
        text: The processed text so far.
        applied: The names of the response steps that changed the text.
        changes: Which step changed which span of the text.
        blocked: Why the answer was blocked for safety; "" for an answer that wasn't.
        first: When the model's first text arrived.
        shown: When the first processed text was yielded.
        load: Seconds that loading the model took.
        usage: The provider's token count, once it is known.
        finish_reason: Why the model ended, in the provider's word.
        model: The provider's own name of the model.
        status: The status of the answer.
        error: The error that ended the turn.
        excuse: The prepared text that the user gets for ``error``.
        metadata: The metadata of the finished answer.
    """

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
        """Finish the processing, and return the text that it held back.

        A second call returns "".
        """
        if self.stream is None:
            return ""
        rest, self.applied = self.stream.finish()
        self.blocked = self.stream.blocked
        self.changes = self.stream.changes()
        self.stream = None
        self.text += rest
        return rest

    def since_began(self, moment: float | None) -> float | None:
        """Return the milliseconds from the begin to ``moment``, without the model's load time."""
        return None if moment is None else milliseconds(moment - self.began - self.load)

    @property
    def unseen(self) -> bool:
        """Whether the turn was stopped before any text was yielded."""
        return self.status == "stopped" and self.shown is None

    @property
    def content(self) -> str:
        """The answer as it is shown and stored."""
        excuse = self.excuse.content if self.excuse else ""
        return "\n\n".join(filter(None, [self.text, excuse]))

    @property
    def content_changes(self) -> Sequence[Change]:
        """The changes of :attr:`content`, with the text of the error handler as one of them."""
        text, content = self.text, self.content
        if text == content:
            return self.changes
        added = Edit(len(text), len(text), len(content) - len(text))
        return compose(self.changes, [added], text, content, FALLBACK_STEP)

    @property
    def spent(self) -> Usage:
        """The tokens of the turn: the provider's count, or an estimate when there is none.

        An answer that failed before its first text counts as zero. A stopped turn counts its
        prompt, since the model has read it.
        """
        read = self.first is not None or self.status == "stopped"
        if self.usage is not None or not (read and self.client and self.prompt):
            return self.usage or Usage()
        prompt = str(self.prompt)
        try:
            count = self.client.count_tokens
            return Usage(count(prompt), count(self.text), estimated=True)
        except Exception:  # noqa: BLE001 - a failed count must not fail the answer
            return Usage(estimate_tokens(prompt), estimate_tokens(self.text), estimated=True)


def milliseconds(seconds: float) -> float:
    """Convert ``seconds`` to milliseconds, rounded to a tenth."""
    return round(seconds * 1000, 1)
