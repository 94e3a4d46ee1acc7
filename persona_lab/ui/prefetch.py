"""Reading ahead: what a visitor has open is read by a local model before they send a message."""

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
"""Seconds without a change that are a moment's rest."""


@dataclass(frozen=True)
class _Open:
    agent: Agent
    model: str
    chat_id: str | None


class PromptPrefetcher:
    """Reads for each page what it showed last, once it has been still for a moment."""

    def __init__(self, *, still: float = STILL) -> None:
        self._still = still
        self._shown: LRUCache[Page, _Open] = LRUCache(1000)
        self._reading: dict[Page, asyncio.Task[None]] = {}

    def soon(self, agent: Agent, model: str, visitor: Visitor, chat_id: str = "") -> None:
        """The page shows ``agent`` now, as it is or isn't saved. Call it from a running loop."""
        self._shown[visitor.page] = _Open(agent, model, chat_id or None)
        self.again(visitor)

    def again(self, visitor: Visitor) -> None:
        """What the page showed last may be read now: its model was loaded, say."""
        shown = self._shown.get(visitor.page)
        if shown is None:
            return
        former = self._reading.get(visitor.page)
        if former is not None:
            former.cancel()
        task = asyncio.create_task(self._read(shown, visitor))
        self._reading[visitor.page] = task
        task.add_done_callback(lambda _: self._over(visitor.page, task))

    async def _read(self, shown: _Open, visitor: Visitor) -> None:
        await asyncio.sleep(self._still)
        with suppress(PersonaLabError):  # an answer would say what is wrong
            await visitor.service.prefill(
                shown.agent, chat_id=shown.chat_id, user_id=visitor.user_id, model=shown.model
            )

    def _over(self, page: Page, task: asyncio.Task[None]) -> None:
        if self._reading.get(page) is task:
            del self._reading[page]
