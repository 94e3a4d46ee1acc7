"""What of a conversation is sent along: the exchanges before the message being answered.

Only whole exchanges count, a question with its answer: a model never sees two questions in a row,
nor half of one. Cache first, the store behind it. The cache is only ever a shortcut: it knows up to
which position of the conversation it has looked, so that with ``before`` it is used only when
nothing else has happened since, here, in another tab or in another process.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cachetools import TTLCache

from persona_lab.models import Message, now
from persona_lab.store import Store

Entry = dict[str, str]
"""``sender`` ("user" or "ai"), ``content`` and ``timestamp`` (ISO 8601, UTC)."""


@dataclass(frozen=True, slots=True)
class _Window:
    """The end of a conversation. ``through``: every message up to this position was looked at;
    None where that isn't known. ``user_id``: whose it is, once that was asked."""

    entries: tuple[Entry, ...]
    through: int | None
    user_id: str | None


class ContextManager:
    """``max_context_length`` counts messages, ``context_ttl`` seconds on ``clock``."""

    def __init__(
        self,
        store: Store,
        *,
        max_context_length: int = 10,
        context_ttl: float = 3600,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._exchanges = max_context_length // 2
        self._windows: TTLCache[str, _Window] = TTLCache(1024, context_ttl, timer=clock)
        self._lock = threading.Lock()

    async def get_context(
        self, chat_id: str, *, user_id: str | None = None, before: Message | None = None
    ) -> list[Entry]:
        """The last exchanges, the newest last; with ``before``, those ahead of that message.

        Pass the message that is being answered as ``before``: it is stored already and isn't its
        own past, nor is the answer that is being replaced. ``user_id`` None doesn't ask whose the
        conversation is. Raises NotFound, StorageError.
        """
        with self._lock:
            window = self._windows.get(chat_id)
        if window is not None and _serves(window, user_id, before):
            return [dict(entry) for entry in window.entries]
        found = await asyncio.to_thread(
            self._store.exchanges,
            chat_id,
            user_id=user_id,
            limit=self._exchanges,
            before=None if before is None else before.position,
        )
        entries = tuple(_entry(message) for exchange in found for message in exchange)
        through = None if before is None else before.position - 1
        with self._lock:
            if self._windows.get(chat_id) is window:  # else an answer came in meanwhile
                self._windows[chat_id] = _Window(entries, through, user_id)
        return [dict(entry) for entry in entries]

    async def update_context(
        self, chat_id: str, user_message: Message | str, ai_response: Message | str
    ) -> None:
        """Take in an exchange that has just ended.

        Given as the stored messages, it lets the next read do without the store. Given as texts it
        can't be placed in the conversation: a read without ``before`` sees it, one with it asks
        the store.
        """
        if isinstance(user_message, Message) and isinstance(ai_response, Message):
            self._take_in(chat_id, user_message, ai_response)
            return
        entries = await self.get_context(chat_id)
        exchange = [_entry(user_message, "user"), _entry(ai_response, "ai")]
        if [_words(entry) for entry in entries[-2:]] != [_words(entry) for entry in exchange]:
            entries += exchange
        with self._lock:
            former = self._windows.get(chat_id)
            owner = None if former is None else former.user_id
            self._windows[chat_id] = _Window(self._trimmed(entries), None, owner)

    def _take_in(self, chat_id: str, asked: Message, answer: Message) -> None:
        with self._lock:
            window = self._windows.get(chat_id)
            if window is None:
                return
            follows = window.through is not None and asked.position == window.through + 1
            if not follows or answer.status not in ("ok", "stopped") or not answer.content:
                del self._windows[chat_id]
                return
            entries = self._trimmed([*window.entries, _entry(asked), _entry(answer)])
            self._windows[chat_id] = _Window(entries, answer.position, window.user_id)

    def _trimmed(self, entries: Sequence[Entry]) -> tuple[Entry, ...]:
        return tuple(entries[max(0, len(entries) - 2 * self._exchanges) :])

    def forget(self, chat_id: str) -> None:
        """Read this conversation from the store the next time."""
        with self._lock:
            self._windows.pop(chat_id, None)

    @staticmethod
    def fit(
        context: Sequence[Entry], limit_tokens: int, count: Callable[[str], int]
    ) -> list[Entry]:
        """``context`` without its oldest exchanges, as many as must go for it to fit.

        ``count`` gives the tokens of a text; each is counted once.
        """
        sizes = [count(entry["content"]) for entry in context]
        total, start = sum(sizes), 0
        while total > limit_tokens and start < len(context):
            total -= sizes[start]
            start += 1
            while start < len(context) and context[start]["sender"] != "user":
                total -= sizes[start]
                start += 1
        return [dict(entry) for entry in context[start:]]


def _serves(window: _Window, user_id: str | None, before: Message | None) -> bool:
    if user_id is not None and window.user_id != user_id:
        return False
    return before is None or window.through == before.position - 1


def _entry(message: Message | str, sender: str = "") -> Entry:
    if isinstance(message, str):
        return {"sender": sender, "content": message, "timestamp": now().isoformat()}
    timestamp = message.created_at.isoformat()
    return {"sender": message.sender, "content": message.content, "timestamp": timestamp}


def _words(entry: Entry) -> tuple[str, str]:
    return entry["sender"], entry["content"]
