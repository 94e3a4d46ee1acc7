"""What of a conversation is sent along: the exchanges before the message being answered.

Only whole exchanges count, a question with its answer: a model never sees two questions in a row,
nor half of one. For sending they are trimmed in steps, so that the beginning stays the same for
several turns and its computation can be reused by whoever keeps it.

The cache is read first, then the store. A cached context is used only while the store's
:class:`~persona_lab.db.store.ChatState` is unchanged. A regeneration, an edit, a crash, another
tab, another replica or an unreachable Redis can't bring back an old context. The check costs one
small query instead of one that reads the prompts of ten messages.

What falls out at the beginning can live on in a summary that a model makes (``CONTEXT_SUMMARY``).
It goes ahead of the conversation as an exchange of its own, and stands with it in the database.
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
from persona_lab.types import Language, Prompt, PromptMessage, now

if TYPE_CHECKING:
    from persona_lab.translations import Translations

Entry = dict[str, Any]
"""``sender`` ("user" or "ai"), ``content`` and ``timestamp`` (ISO 8601, UTC); ``position`` in the
conversation, where it has one; ``summary`` where it is none of the conversation's messages."""

_STEP = 4
"""Positions that are trimmed at once: two exchanges."""
_MOST = 40
"""Exchanges that go into a summary at a time; where more fell out, the next time takes them."""
_SHORTEST = 200
"""Characters to which a message that is too long for a summary is cut at most."""


@dataclass(frozen=True, slots=True)
class ToSummarize:
    """``text`` is to be put in short; :meth:`ContextManager.keep_summary` takes it back."""

    prompt: Prompt
    until: ChatState


class ContextManager:
    """``max_context_length`` counts messages, ``context_ttl`` seconds.

    With ``summary_words`` (those of ``templates/summary.yaml``) what falls out is summarised.
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
    ) -> list[Entry]:
        """The last exchanges, the newest last; with ``before``, those ahead of that message.

        Pass the message that is being answered as ``before``: it is stored already and isn't its
        own past, nor is the answer that is being replaced. ``user_id`` None doesn't ask whose the
        conversation is. With ``language``, the persona's, it is what is to be sent: trimmed in
        steps, the summary ahead of it. Raises NotFound, StorageError.
        """
        if before is not None and before.position == 0:
            return []
        mark = await asyncio.to_thread(self._store.chat_state, chat_id, user_id=user_id)
        entries: list[Entry] = (await self._window(chat_id, mark, before))["entries"]
        if language is None:
            return entries
        full = len(entries) >= 2 * self._exchanges
        return self._summary(mark, language) + (_steady(entries) if full else entries)

    async def _window(
        self, chat_id: str, mark: ChatState, before: Message | None = None
    ) -> dict[str, Any]:
        """The end of the conversation as plain data: ``entries``, all messages looked at
        ``through`` that position, ``unstored`` texts told at its end, and the ``revision``."""
        through = mark.last if before is None else before.position - 1
        kept = await self._windows.get(chat_id)
        if kept is not None and (kept["revision"], kept["through"]) == (mark.revision, through):
            if before is None:
                return {**kept, "entries": kept["entries"] + kept["unstored"]}
            if not kept["unstored"]:
                return dict(kept)
        found = await asyncio.to_thread(
            self._store.list_exchanges,
            chat_id,
            user_id=None,
            limit=self._exchanges,
            before=None if before is None else before.position,
        )
        window = {
            "revision": mark.revision,
            "through": through,
            "entries": [_entry(message) for exchange in found for message in exchange],
            "unstored": [],
        }
        # What is still being answered elsewhere will belong to it; and who told of texts in the
        # meantime knows more.
        if not mark.answering and await self._windows.get(chat_id) == kept:
            await self._windows.put(chat_id, window)
        return window

    async def update_context(
        self, chat_id: str, user_message: Message | str, ai_response: Message | str
    ) -> None:
        """Take in an exchange that has just ended.

        Given as the stored messages, it spares the next reader the reading. Given as texts it
        can't be placed in the conversation: it counts until something is stored.
        """
        if isinstance(user_message, Message) and isinstance(ai_response, Message):
            await self._take_in(chat_id, user_message, ai_response)
            return
        mark = await asyncio.to_thread(self._store.chat_state, chat_id, user_id=None)
        window = await self._window(chat_id, mark)
        exchange = [_entry(user_message, "user"), _entry(ai_response, "ai")]
        if [_words(entry) for entry in window["entries"][-2:]] == [_words(e) for e in exchange]:
            return
        told = (window["entries"] + exchange)[-2 * self._exchanges :] if self._exchanges else []
        await self._windows.put(chat_id, {**window, "entries": [], "unstored": told})

    async def _take_in(self, chat_id: str, asked: Message, answer: Message) -> None:
        window = await self._windows.get(chat_id)
        if window is None:
            return
        follows = window["through"] + 1 == asked.position == answer.position - 1
        if not follows or answer.status not in ("ok", "stopped") or not answer.content:
            await self._windows.drop(chat_id)
            return
        entries = [*window["entries"], _entry(asked), _entry(answer)]
        entries = entries[max(0, len(entries) - 2 * self._exchanges) :]
        taken = {**window, "through": answer.position, "entries": entries, "unstored": []}
        await self._windows.put(chat_id, taken)

    # ── the summary ──

    @property
    def summarizes(self) -> bool:
        return self._summary_words is not None

    def _summary(self, mark: ChatState, language: Language) -> list[Entry]:
        if self._summary_words is None or not mark.summary:
            return []
        told = self._summary_words("told", language, summary=mark.summary)
        heard = self._summary_words("heard", language)
        about = {"timestamp": "", "summary": mark.summary}
        return [
            {"sender": "user", "content": told, **about},
            {"sender": "ai", "content": heard, **about},
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
        """The oldest of what fell out and stands in no summary yet, as a prompt that asks for one;
        None where there is nothing. Asked again it gives what comes next.

        ``sent_from``: the position from which on the model was sent the conversation last; what its
        window had no room for fell out too. ``fits``: whether the model can read a prompt; it is
        asked in a thread. Raises NotFound, StorageError.
        """
        if self._summary_words is None:
            return None
        mark = await asyncio.to_thread(self._store.chat_state, chat_id, user_id=user_id)
        context = await self.get_context(chat_id, user_id=user_id, language=language)
        begins = [entry["position"] for entry in context[:3] if "position" in entry][:1]
        begins += [sent_from] if sent_from is not None else []
        fallen = await asyncio.to_thread(
            self._store.list_exchanges,
            chat_id,
            user_id=user_id,
            limit=_MOST,
            before=max(begins, default=None),
            after=mark.summary_through,
            first=True,
        )
        if not fallen or mark.answering:
            return None
        ask = functools.partial(_asking, self._summary_words, language, mark.summary)
        prompt, last = await asyncio.to_thread(_portion, fallen, ask, fits)
        return ToSummarize(prompt, replace(mark, summary_through=last.position))

    async def keep_summary(
        self, chat_id: str, *, user_id: str, summary: str, until: ChatState
    ) -> None:
        """Keep what a model made of :meth:`to_summarize`, unless the conversation was changed."""
        await asyncio.to_thread(
            self._store.summarize, chat_id, user_id=user_id, summary=summary, since=until
        )

    # ── what fits ──

    @staticmethod
    def fit(
        context: Sequence[Entry], limit_tokens: int, count: Callable[[str], int]
    ) -> list[Entry]:
        """``context`` without its oldest exchanges, as many as must go for it to fit, and up to
        where a step ends. The summary goes last of all.

        ``count`` gives the tokens of a text; each is counted once.
        """
        summary = [entry for entry in context if "summary" in entry]
        turns = [entry for entry in context if "summary" not in entry]
        kept = sum(count(entry["content"]) for entry in summary)
        if kept > limit_tokens:
            summary, kept = [], 0
        sizes = [count(entry["content"]) for entry in turns]
        total, start = sum(sizes) + kept, 0
        while total > limit_tokens and start < len(turns):
            total -= sizes[start]
            start += 1
            while start < len(turns) and turns[start]["sender"] != "user":
                total -= sizes[start]
                start += 1
        fitting = turns[start:]
        return [dict(entry) for entry in summary + (_steady(fitting) if start else fitting)]


def _portion(
    fallen: list[tuple[Message, Message]],
    ask: Callable[[Sequence[Message], int | None], Prompt],
    fits: Callable[[Prompt], bool],
) -> tuple[Prompt, Message]:
    """The prompt for as many of the first as fit, and the last message in it. Of an exchange that
    is too long alone, the beginnings."""
    messages = [message for exchange in fallen for message in exchange]
    length: int | None = None
    while not fits(prompt := ask(messages, length)):
        if len(messages) > 2:
            messages = messages[: len(messages) // 4 * 2]  # whole exchanges
            continue
        length = (length or max(len(message.content) for message in messages)) // 2
        if length < _SHORTEST:
            break
    return prompt, messages[-1]


def _asking(
    say: Translations,
    language: Language,
    former: str,
    messages: Sequence[Message],
    length: int | None,
) -> Prompt:
    """The prompt that asks to sum up ``messages``, each no longer than ``length``, and what the
    ``former`` summary tells."""
    lines = [say(message.sender, language, words=message.content[:length]) for message in messages]
    begin = say("former", language, summary=former) + "\n\n" if former else ""
    text = begin + "\n".join(lines) + "\n\n" + say("request", language)
    return Prompt(say("task", language), (PromptMessage("user", text),), message=text)


def _steady(entries: list[Entry]) -> list[Entry]:
    """``entries`` from the next step on, counted from the beginning of the conversation; all of
    them where that would take more than a step."""
    if not entries or "position" not in entries[0]:
        return entries
    step = math.ceil(entries[0]["position"] / _STEP) * _STEP
    kept = [entry for entry in entries if entry.get("position", step) >= step]
    while kept and kept[0]["sender"] != "user":
        kept = kept[1:]
    return kept if 2 * len(kept) > len(entries) and len(entries) - len(kept) < _STEP else entries


def _entry(message: Message | str, sender: str = "") -> Entry:
    if isinstance(message, str):
        return {"sender": sender, "content": message, "timestamp": now().isoformat()}
    return {
        "sender": message.sender,
        "content": message.content,
        "timestamp": message.created_at.isoformat(),
        "position": message.position,
    }


def _words(entry: Mapping[str, Any]) -> tuple[str, str]:
    return entry["sender"], entry["content"]
