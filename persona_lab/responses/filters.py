"""The base of all streaming text filters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from persona_lab.db.tables import Agent
from persona_lab.responses.changes import Edit


class Filter:
    """One step of one answer. The base class changes nothing.

    Attributes:
        ended: Whether the answer has ended: further input produces no output.
        blocked: Why the answer was blocked for safety; "" for an answer that isn't.
        consumed: Characters that were read until ``ended``; None for a filter without the count.
    """

    ended = False
    blocked = ""
    consumed: int | None = None

    @property
    def applied(self) -> tuple[str, ...]:
        """What the filter did, if the name of the step isn't precise enough."""
        return ()

    @property
    def pending(self) -> str:
        """The text that the filter read and holds back."""
        return ""

    def feed(self, text: str) -> str:
        """Read ``text``, and return the text that is finished; "" while nothing is."""
        return text

    def finish(self) -> str:
        """End the input, and return the rest of the text."""
        return ""

    def edits(self, before: str, after: str) -> list[Edit] | None:
        """Return the edits that the filter made, in order.

        It is called after :meth:`finish`, and only if the two texts differ.

        Args:
            before: The whole text that the filter read.
            after: The whole text that the filter returned.

        Returns:
            The edits. None if the filter doesn't record them: the texts are compared then.
        """
        return None


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a response processor.

    Attributes:
        name: The name of the step in the metadata of a reply.
        open: Creates the filter for an answer of a persona.
        data: Whether the step also applies to answers that are data, such as JSON.
        masks: Whether the step removes text for safety. The removed text isn't stored.
        shows_pending: Whether the text that the step holds back may be shown before it is
            finished: a safety step has judged it.
    """

    name: str
    open: Callable[[Agent], Filter]
    data: bool = False
    masks: bool = False
    shows_pending: bool = False
