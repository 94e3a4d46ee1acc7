"""Prefetching: a local model prefills a visitor's open prompt before they send a message."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass

from cachetools import LRUCache

from persona_lab.db.tables import Agent
from persona_lab.errors import PersonaLabError
from persona_lab.ui.session import Visitor
from persona_lab.ui.visitor_keys import Page

STILL = 0.7
"""Seconds without a change on a page before its prefill begins."""


@dataclass(frozen=True)
class _Open:
    agent: Agent
    model: str
    chat_id: str | None


class PromptPrefetcher:
    """Prefills, for each page, the prompt that it showed last, after an idle delay."""

    def __init__(self, *, still: float = STILL) -> None:
        self._still = still
        self._shown: LRUCache[Page, _Open] = LRUCache(1000)
        self._tasks: dict[Page, asyncio.Task[None]] = {}

    def soon(self, agent: Agent, model: str, visitor: Visitor, chat_id: str = "") -> None:
        """Schedule a prefill of the prompt that the visitor's page shows now.

        Call it from a running event loop.

        Args:
            agent: The persona, saved or unsaved.
            model: The model, as provider:name; "" is the default.
            visitor: The visitor, whose page it is.
            chat_id: The open chat; "" for a new one.
        """
        self._shown[visitor.page] = _Open(agent, model, chat_id or None)
        self.again(visitor)

    def again(self, visitor: Visitor) -> None:
        """Schedule the prefill of the page's last prompt again, such as after a model load."""
        shown = self._shown.get(visitor.page)
        if shown is None:
            return
        former = self._tasks.get(visitor.page)
        if former is not None:
            former.cancel()
        task = asyncio.create_task(self._prefill(shown, visitor))
        self._tasks[visitor.page] = task
        task.add_done_callback(lambda _: self._forget(visitor.page, task))

    async def _prefill(self, shown: _Open, visitor: Visitor) -> None:
        await asyncio.sleep(self._still)
        with suppress(PersonaLabError):  # the answer itself will report the error
            await visitor.service.prefill(
                shown.agent, chat_id=shown.chat_id, user_id=visitor.user_id, model=shown.model
            )

    def _forget(self, page: Page, task: asyncio.Task[None]) -> None:
        if self._tasks.get(page) is task:
            del self._tasks[page]
