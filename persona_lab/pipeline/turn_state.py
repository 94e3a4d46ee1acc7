"""The values of one turn: the request, and the state while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any

from persona_lab.clients.base import estimate_tokens
from persona_lab.db.tables import Agent, Message
from persona_lab.errors import PersonaLabError, ProviderError
from persona_lab.responses.changes import FALLBACK_STEP, Change, Edit, compose
from persona_lab.types import Language, Prompt, Reply, Status, Usage

if TYPE_CHECKING:
    from persona_lab.clients.base import LLMClientInterface
    from persona_lab.clients.catalog import ModelInfo
    from persona_lab.db.chats import ChatState
    from persona_lab.pipeline.context import Entry
    from persona_lab.pipeline.target import Target
    from persona_lab.responses.processor import ReplyStream


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """The input of one turn.

    Attributes:
        kind: The kind of the generation, such as "chat" or "try".
        user_id: The user whose quota the turn uses.
        agent: The persona that answers.
        message: The validated text of the user's message.
        target: The models that may answer, and the options of the call.
        language: The language of error texts; None for the persona's language.
        context: The exchanges before the message. In a chat it is empty, and the turn reads the
            context from the store.
        chat_id: The chat, or None for a turn without one.
        question: The stored message of the user, in a chat.
        chat_state: The state of the chat with that message.
        regenerates: Whether the answer replaces another one. Such an answer bypasses the response
            cache.
        pending: Whether the events have the pending text of the answer.
    """

    kind: str
    user_id: str
    agent: Agent
    message: str
    _: KW_ONLY
    target: Target
    language: Language | None
    context: Sequence[Entry] = ()
    chat_id: str | None = None
    question: Message | None = None
    chat_state: ChatState | None = None
    regenerates: bool = False
    pending: bool = False

    @property
    def bypass_cache(self) -> bool:
        """Whether a cached answer is no use: trials and comparisons show how answers vary."""
        return self.regenerates or self.kind != "chat"


@dataclass(slots=True)
class TurnState:
    """The state of a running turn. Times are seconds of the service's clock.

    Attributes:
        info: The model that is called now, or that answered.
        started_at: When the turn began.
        client: The client of that model.
        prompt: The prompt that was sent.
        context: The exchanges in the prompt.
        failed: The errors of the models that failed before their first text.
        client_metadata: The metadata of the client's chunks.
        stream: The processing of the answer while it runs.
        text: The processed text so far.
        pending: The unfinished text after it.
        raw: The whole text so far as the model wrote it, if pending text is asked for.
        applied: The names of the response steps that changed the text.
        changes: Which step changed which span of the text.
        blocked: Why the answer was blocked for safety; "" for an answer that wasn't.
        first_token_at: When the model's first text arrived.
        first_shown_at: When the first processed text was yielded.
        load_time: Seconds that loading the model took.
        usage: The provider's token count, once it is known.
        finish_reason: Why the model ended, in the provider's word.
        model: The provider's own name of the model.
        status: The status of the answer.
        error: The error that ended the turn.
        fallback_reply: The prepared text that the user gets for ``error``.
        metadata: The metadata of the finished answer.
    """

    info: ModelInfo
    started_at: float
    client: LLMClientInterface | None = None
    prompt: Prompt | None = None
    context: Sequence[Entry] = ()
    failed: list[ProviderError] = field(default_factory=list)
    client_metadata: dict[str, Any] = field(default_factory=dict)
    stream: ReplyStream | None = None
    text: str = ""
    pending: str = ""
    raw: str = ""
    applied: tuple[str, ...] = ()
    changes: Sequence[Change] = ()
    blocked: str = ""
    first_token_at: float | None = None
    first_shown_at: float | None = None
    load_time: float = 0
    usage: Usage | None = None
    finish_reason: str | None = None
    model: str = ""
    status: Status = "stopped"
    error: PersonaLabError | None = None
    fallback_reply: Reply | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def select_model(self, info: ModelInfo) -> None:
        """Forget what the model before said: ``info`` is called now."""
        self.info, self.model, self.client_metadata = info, "", {}
        self.first_token_at = self.usage = self.finish_reason = None

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

    def elapsed(self, moment: float) -> float:
        """Return the seconds from the begin to ``moment``, without the model's load time."""
        return moment - self.started_at - self.load_time

    def elapsed_ms(self, moment: float | None) -> float | None:
        """Return :meth:`elapsed` in milliseconds; None for a moment that never came."""
        return None if moment is None else milliseconds(self.elapsed(moment))

    @property
    def stopped_before_text(self) -> bool:
        """Whether the turn was stopped before any text was yielded."""
        return self.status == "stopped" and self.first_shown_at is None

    @property
    def content(self) -> str:
        """The answer as it is shown and stored."""
        fallback = self.fallback_reply.content if self.fallback_reply else ""
        return "\n\n".join(filter(None, [self.text, fallback]))

    @property
    def content_changes(self) -> Sequence[Change]:
        """The changes of :attr:`content`, with the text of the error handler as one of them."""
        text, content = self.text, self.content
        if text == content:
            return self.changes
        added = Edit(len(text), len(text), len(content) - len(text))
        return compose(self.changes, [added], text, content, FALLBACK_STEP)

    @property
    def usage_or_estimate(self) -> Usage:
        """The tokens of the turn: the provider's count, or an estimate when there is none.

        An answer that failed before its first text counts as zero. A stopped turn counts its
        prompt, since the model has read it.
        """
        was_read = self.first_token_at is not None or self.status == "stopped"
        if self.usage is not None or not (was_read and self.client and self.prompt):
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
