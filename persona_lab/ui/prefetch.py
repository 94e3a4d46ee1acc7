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

IDLE_DELAY_S = 0.7
"""Seconds without a change on a page before its prefill begins."""


@dataclass(frozen=True)
class _OpenPrompt:
    agent: Agent
    model: str
    chat_id: str | None


class PromptPrefetcher:
    """Prefills, for each page, the prompt that it showed last, after an idle delay."""

    def __init__(self, *, idle_delay_s: float = IDLE_DELAY_S) -> None:
        self._idle_delay_s = idle_delay_s
        self._open_prompts: LRUCache[Page, _OpenPrompt] = LRUCache(1000)
        self._tasks: dict[Page, asyncio.Task[None]] = {}

    def schedule(self, agent: Agent, model: str, visitor: Visitor, chat_id: str = "") -> None:
        """Schedule a prefill of the prompt that the visitor's page shows now.

        Call it from a running event loop.

        Args:
            agent: The persona, saved or unsaved.
            model: The model, as provider:name; "" is the default.
            visitor: The visitor, whose page it is.
            chat_id: The open chat; "" for a new one.
        """
        self._open_prompts[visitor.page] = _OpenPrompt(agent, model, chat_id or None)
        self.reschedule(visitor)

    def reschedule(self, visitor: Visitor) -> None:
        """Schedule the prefill of the page's last prompt again, such as after a model load."""
        prompt = self._open_prompts.get(visitor.page)
        if prompt is None:
            return
        running = self._tasks.get(visitor.page)
        if running is not None:
            running.cancel()
        task = asyncio.create_task(self._prefill(prompt, visitor))
        self._tasks[visitor.page] = task
        task.add_done_callback(lambda _: self._forget(visitor.page, task))

    async def _prefill(self, prompt: _OpenPrompt, visitor: Visitor) -> None:
        await asyncio.sleep(self._idle_delay_s)
        with suppress(PersonaLabError):  # the answer itself will report the error
            await visitor.service.prefill(
                prompt.agent, chat_id=prompt.chat_id, user_id=visitor.user_id, model=prompt.model
            )

    def _forget(self, page: Page, task: asyncio.Task[None]) -> None:
        if self._tasks.get(page) is task:
            del self._tasks[page]
