"""Choose the exchanges of a chat that are sent with a message.

The context has whole exchanges only, a message with its answer. A model never gets two user
messages in a row. The context is trimmed in steps: its beginning stays the same for several turns,
so that a prefix cache can reuse it.

The cache is read first, then the store. A cached context is used only while the store's
:class:`~persona_lab.db.store.ChatState` is unchanged. A regeneration, an edit, a crash, another
tab, another replica or an unreachable Redis can't bring back an old context. The check costs one
small query instead of one that reads the prompts of ten messages.

A model can summarize the exchanges that are trimmed (``CONTEXT_SUMMARY``). The summary is sent as
an exchange before the others. The row of the chat stores it.
"""

from __future__ import annotations

import asyncio
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from persona_lab.db.redis import RedisLink, SharedCache
from persona_lab.db.store import ChatState, Store
from persona_lab.db.tables import Message
from persona_lab.deprecated import former_method
from persona_lab.types import Language, Prompt, PromptMessage, now

if TYPE_CHECKING:
    from persona_lab.translations import Translations

Entry = dict[str, Any]
"""A message of the context: ``sender`` ("user" or "ai"), ``content``, ``timestamp`` (ISO 8601,
UTC). A stored message has its ``position`` in the chat. An entry of the summary has ``summary``."""

_TRIM_STEP = 4
"""Positions that one step trims: two exchanges."""
_MAX_EXCHANGES = 40
"""Exchanges that one call summarizes. The next call takes the rest."""
_MIN_CUT_LENGTH = 200
"""Characters that stay of a long message when it is cut for a summary."""


@dataclass(frozen=True, slots=True)
class ToSummarize:
    """A prompt for a summary.

    Attributes:
        prompt: The prompt that asks a model for the summary.
        until: The state to pass to :meth:`ContextManager.store_summary` with the summary.
    """

    prompt: Prompt
    until: ChatState


class ContextManager:
    """Reads, caches, trims and summarizes the context of chats.

    Args:
        store: The store of the chats.
        max_context_length: Messages in a context, at most.
        context_ttl: Seconds that a cached context lives.
        summary_words: The texts of ``templates/summary.yaml``. With None, trimmed exchanges aren't
            summarized.
        shared: Redis, for a cache that replicas share.
        clock: Counts seconds.
    """

    def __init__(
        self,
        store: Store,
        *,
        max_context_length: int = 10,
        context_ttl: float = 3600,
        summary_words: Translations | None = None,
        shared: RedisLink | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._exchanges = max_context_length // 2
        self._windows = SharedCache("context", context_ttl, shared=shared, clock=clock)
        self._summary_words = summary_words

    async def get_context(
        self,
        chat_id: str,
        *,
        user_id: str | None = None,
        before: Message | None = None,
        language: Language | None = None,
        state: ChatState | None = None,
    ) -> list[Entry]:
        """Return the last exchanges of a chat, the newest last.

        Args:
            chat_id: The chat.
            user_id: The owner of the chat. None skips the check of the owner.
            before: The message that is being answered. It is stored already. The context ends
                before it.
            language: The persona's language. With it, the result is the context to send: trimmed
                in steps, with the summary first.
            state: The state of the chat, if the caller has just read it with a check of the owner.

        Raises:
            NotFound: The user has no such chat.
            StorageError: The store can't be read.
        """
        if before is not None and before.position == 0:
            return []
        if state is None:
            state = await asyncio.to_thread(self._store.chat_state, chat_id, user_id=user_id)
        entries: list[Entry] = (await self._window(chat_id, state, before))["entries"]
        if language is None:
            return entries
        full = len(entries) >= 2 * self._exchanges
        return self._summary_entries(state, language) + (
            _trim_to_step(entries) if full else entries
        )

    async def _window(
        self, chat_id: str, state: ChatState, before: Message | None = None
    ) -> dict[str, Any]:
        """Return the last exchanges as plain data, from the cache or the store.

        ``entries`` has the exchanges up to the position ``through``, at the chat's ``revision``.
        ``unstored`` has the exchanges after them that were given as texts.
        """
        through = state.last if before is None else before.position - 1
        cached = await self._windows.get(chat_id)
        if cached is not None and (cached["revision"], cached["through"]) == (
            state.revision,
            through,
        ):
            if before is None:
                return {**cached, "entries": cached["entries"] + cached["unstored"]}
            if not cached["unstored"]:
                return dict(cached)
        exchanges = await asyncio.to_thread(
            self._store.list_exchanges,
            chat_id,
            user_id=None,
            limit=self._exchanges,
            before=None if before is None else before.position,
        )
        window = {
            "revision": state.revision,
            "through": through,
            "entries": [_entry(message) for exchange in exchanges for message in exchange],
            "unstored": [],
        }
        # Don't cache a chat with a running turn: its answer is missing here. Don't overwrite an
        # entry that was cached after the read above.
        if not state.answering and await self._windows.get(chat_id) == cached:
            await self._windows.put(chat_id, window)
        return window

    async def update_context(
        self, chat_id: str, user_message: Message | str, ai_response: Message | str
    ) -> None:
        """Add an exchange that has just ended to the cached context.

        Stored messages save the next read. Texts have no position in the chat: they belong to the
        context until a message is stored.

        Args:
            chat_id: The chat.
            user_message: The user's message, as its row or as a text.
            ai_response: The answer, as its row or as a text.
        """
        if isinstance(user_message, Message) and isinstance(ai_response, Message):
            await self._append_exchange(chat_id, user_message, ai_response)
            return
        state = await asyncio.to_thread(self._store.chat_state, chat_id, user_id=None)
        window = await self._window(chat_id, state)
        exchange = [_entry(user_message, "user"), _entry(ai_response, "ai")]
        if [_sender_and_content(entry) for entry in window["entries"][-2:]] == [
            _sender_and_content(e) for e in exchange
        ]:
            return
        entries = (window["entries"] + exchange)[-2 * self._exchanges :] if self._exchanges else []
        await self._windows.put(chat_id, {**window, "entries": [], "unstored": entries})

    async def _append_exchange(self, chat_id: str, question: Message, answer: Message) -> None:
        window = await self._windows.get(chat_id)
        if window is None:
            return
        follows = window["through"] + 1 == question.position == answer.position - 1
        if not follows or answer.status not in ("ok", "stopped") or not answer.content:
            await self._windows.drop(chat_id)
            return
        entries = [*window["entries"], _entry(question), _entry(answer)]
        entries = entries[max(0, len(entries) - 2 * self._exchanges) :]
        updated = {**window, "through": answer.position, "entries": entries, "unstored": []}
        await self._windows.put(chat_id, updated)

    # ── the summary ──

    @property
    def summarizes(self) -> bool:
        """Whether trimmed exchanges are summarized."""
        return self._summary_words is not None

    def _summary_entries(self, state: ChatState, language: Language) -> list[Entry]:
        if self._summary_words is None or not state.summary:
            return []
        question = self._summary_words("told", language, summary=state.summary)
        answer = self._summary_words("heard", language)
        fields = {"timestamp": "", "summary": state.summary}
        return [
            {"sender": "user", "content": question, **fields},
            {"sender": "ai", "content": answer, **fields},
        ]

    async def to_summarize(
        self,
        chat_id: str,
        *,
        user_id: str,
        language: Language,
        sent_from: int | None = None,
        fits: Callable[[Prompt], bool] = lambda prompt: True,
    ) -> ToSummarize | None:
        """Return a prompt for the oldest exchanges that were trimmed and have no summary yet.

        Each further call, after :meth:`store_summary`, returns the next exchanges.

        Args:
            chat_id: The chat.
            user_id: The owner of the chat.
            language: The language of the prompt.
            sent_from: The position of the first message that was sent to the model. The messages
                before it exceeded the model's context window.
            fits: Returns whether a prompt fits the model. It is called on a thread.

        Returns:
            The prompt; None if there is nothing to summarize, or while a turn is running.

        Raises:
            NotFound: The user has no such chat.
            StorageError: The store can't be read.
        """
        if self._summary_words is None:
            return None
        state = await asyncio.to_thread(self._store.chat_state, chat_id, user_id=user_id)
        context = await self.get_context(chat_id, user_id=user_id, language=language)
        starts = [entry["position"] for entry in context[:3] if "position" in entry][:1]
        starts += [sent_from] if sent_from is not None else []
        trimmed = await asyncio.to_thread(
            self._store.list_exchanges,
            chat_id,
            user_id=user_id,
            limit=_MAX_EXCHANGES,
            before=max(starts, default=None),
            after=state.summary_through,
            first=True,
        )
        if not trimmed or state.answering:
            return None
        make_prompt = functools.partial(
            _summary_prompt, self._summary_words, language, state.summary
        )
        prompt, last = await asyncio.to_thread(_prompt_that_fits, trimmed, make_prompt, fits)
        return ToSummarize(prompt, replace(state, summary_through=last.position))

    async def store_summary(
        self, chat_id: str, *, user_id: str, summary: str, until: ChatState
    ) -> None:
        """Store a model's answer to :meth:`to_summarize`, unless the chat was changed since."""
        await asyncio.to_thread(
            self._store.summarize, chat_id, user_id=user_id, summary=summary, since=until
        )

    keep_summary = former_method("ContextManager", "keep_summary", "store_summary")

    # ── what fits ──

    @staticmethod
    def fit(
        context: Sequence[Entry], limit_tokens: int, count: Callable[[str], int]
    ) -> list[Entry]:
        """Remove the oldest exchanges of ``context`` until it fits, up to the end of a step.

        The summary is removed last.

        Args:
            context: The entries, the oldest first.
            limit_tokens: The number of tokens that fit.
            count: Counts the tokens of a text. It is called once for each entry.

        Returns:
            Copies of the entries that fit.
        """
        summary = [entry for entry in context if "summary" in entry]
        turns = [entry for entry in context if "summary" not in entry]
        summary_tokens = sum(count(entry["content"]) for entry in summary)
        if summary_tokens > limit_tokens:
            summary, summary_tokens = [], 0
        sizes = [count(entry["content"]) for entry in turns]
        total, start = sum(sizes) + summary_tokens, 0
        while total > limit_tokens and start < len(turns):
            total -= sizes[start]
            start += 1
            while start < len(turns) and turns[start]["sender"] != "user":
                total -= sizes[start]
                start += 1
        fitting = turns[start:]
        return [dict(entry) for entry in summary + (_trim_to_step(fitting) if start else fitting)]


def _prompt_that_fits(
    trimmed: list[tuple[Message, Message]],
    make_prompt: Callable[[Sequence[Message], int | None], Prompt],
    fits: Callable[[Prompt], bool],
) -> tuple[Prompt, Message]:
    """Return the prompt for the first exchanges that fit, and the last message in it.

    The messages of a single exchange are cut when they are too long.
    """
    messages = [message for exchange in trimmed for message in exchange]
    length: int | None = None
    while not fits(prompt := make_prompt(messages, length)):
        if len(messages) > 2:
            messages = messages[: len(messages) // 4 * 2]  # whole exchanges
            continue
        length = (length or max(len(message.content) for message in messages)) // 2
        if length < _MIN_CUT_LENGTH:
            break
    return prompt, messages[-1]


def _summary_prompt(
    texts: Translations,
    language: Language,
    previous: str,
    messages: Sequence[Message],
    length: int | None,
) -> Prompt:
    """Return the prompt for a summary of the ``former`` summary and ``messages``.

    Each message is cut to ``length`` characters; None cuts nothing.
    """
    lines = [
        texts(message.sender, language, words=message.content[:length]) for message in messages
    ]
    before = texts("former", language, summary=previous) + "\n\n" if previous else ""
    text = before + "\n".join(lines) + "\n\n" + texts("request", language)
    return Prompt(texts("task", language), (PromptMessage("user", text),), message=text)


def _trim_to_step(entries: list[Entry]) -> list[Entry]:
    """Return ``entries`` from the next step on. Steps are counted from the first message.

    All entries are returned when the trimming would remove more than one step or half of them.
    """
    if not entries or "position" not in entries[0]:
        return entries
    step = math.ceil(entries[0]["position"] / _TRIM_STEP) * _TRIM_STEP
    trimmed = [entry for entry in entries if entry.get("position", step) >= step]
    while trimmed and trimmed[0]["sender"] != "user":
        trimmed = trimmed[1:]
    removed = len(entries) - len(trimmed)
    return trimmed if 2 * len(trimmed) > len(entries) and removed < _TRIM_STEP else entries


def _entry(message: Message | str, sender: str = "") -> Entry:
    if isinstance(message, str):
        return {"sender": sender, "content": message, "timestamp": now().isoformat()}
    return {
        "sender": message.sender,
        "content": message.content,
        "timestamp": message.created_at.isoformat(),
        "position": message.position,
    }


def _sender_and_content(entry: Mapping[str, Any]) -> tuple[str, str]:
    return entry["sender"], entry["content"]
