"""The base of all streaming text filters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from persona_lab.db.tables import Agent
from persona_lab.responses.changes import Edit


class Filter:
    """One step at work on one answer. This one lets everything pass."""

    ended = False
    """True once nothing more will come, whatever is fed."""
    blocked = ""
    """Why the answer was broken off for safety; "" while it wasn't."""
    consumed: int | None = None
    """Characters that were read until ``ended``; None where the filter doesn't count them."""

    @property
    def applied(self) -> tuple[str, ...]:
        """What it did, where the step's name alone doesn't say it."""
        return ()

    def feed(self, text: str) -> str:
        """Finished text so far unseen; "" while it can't be judged yet."""
        return text

    def finish(self) -> str:
        """What is left at the end."""
        return ""

    def edits(self, before: str, after: str) -> list[Edit] | None:
        """What the filter did to the whole text ``before`` to give ``after``, in order.

        It is called after :meth:`finish`, and only when the two differ. None where the filter
        doesn't note its edits: the texts are compared then.
        """
        return None


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a response processor.

    Attributes:
        name: What the metadata of a reply calls it.
        open: Makes the filter for an answer of a persona.
        data: Whether it is for answers that are data (JSON) too, and not for words alone.
        masks: Whether it removes for safety: what it removed isn't kept among the changes.
    """

    name: str
    open: Callable[[Agent], Filter]
    data: bool = False
    masks: bool = False
