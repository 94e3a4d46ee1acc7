"""The changes of a persona that a page has undone, and can redo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cachetools import LRUCache

from persona_lab.db.tables import Agent
from persona_lab.personas.persona import persona_of
from persona_lab.ui.session import Visitor
from persona_lab.ui.visitor_keys import Page

MAX_HISTORIES = 1000
"""Maximum number of pairs of page and persona that have a history."""


@dataclass(frozen=True)
class UndoStep:
    """An undo: the persona's fields before and after it. Redo restores ``before``."""

    before: dict[str, Any]
    after: dict[str, Any]

    @property
    def changed_fields(self) -> list[str]:
        """The names of the fields that the step changed."""
        return [name for name, value in self.after.items() if self.before[name] != value]


class UndoHistory:
    """The undo steps of each page and persona. The store keeps the revisions themselves."""

    def __init__(self) -> None:
        self._steps: LRUCache[tuple[Page, str], list[UndoStep]] = LRUCache(MAX_HISTORIES)

    def redoable(self, agent: Agent, visitor: Visitor) -> list[UndoStep]:
        """Return the steps that redo can apply to ``agent``, the next one last.

        There are none after another change of the persona.
        """
        steps = self._steps.get((visitor.page, agent.id), [])
        return steps if steps and steps[-1].after == persona_of(agent) else []

    def add(self, before: Agent, after: Agent, visitor: Visitor) -> UndoStep:
        """Record an undo that changed ``before`` into ``after``."""
        step = UndoStep(persona_of(before), persona_of(after))
        self._steps[visitor.page, after.id] = [*self.redoable(before, visitor), step]
        return step

    def pop(self, agent: Agent, visitor: Visitor) -> UndoStep | None:
        """Remove and return the next step that redo can apply to ``agent``."""
        steps = self.redoable(agent, visitor)
        return steps.pop() if steps else None
