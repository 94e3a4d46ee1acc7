"""The base of all streaming text filters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from persona_lab.db.tables import Agent


class Filter:
    """One step at work on one answer. This one lets everything pass."""

    ended = False
    """True once nothing more will come, whatever is fed."""
    blocked = ""
    """Why the answer was broken off for safety; "" while it wasn't."""

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


@dataclass(frozen=True, slots=True)
class Step:
    """``name`` is what the metadata of a reply calls it; ``data``: it is for answers that are
    data (JSON), too, and not for words alone."""

    name: str
    open: Callable[[Agent], Filter]
    data: bool = False
