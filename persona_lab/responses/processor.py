"""ResponseProcessor: a stream of raw text in, a stream of finished text out.

A step opens a filter for each answer. Filters work by the character (or hold back what they
can't judge yet), so that the final text never depends on how a provider cut its stream. What a
filter has given out is never taken back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from persona_lab.db.tables import Agent
from persona_lab.responses.changes import Change, compose, difference, restore
from persona_lab.responses.cleanup import LAST_STEPS, STEPS
from persona_lab.responses.filters import Step
from persona_lab.responses.secret_filter import RedactSecrets
from persona_lab.unicode_text import storable


@dataclass(frozen=True, slots=True)
class Processed:
    """A finished answer.

    Attributes:
        content: The text that is shown.
        applied: The steps that changed the text, in their order.
        raw: The model's own text, see :mod:`persona_lab.responses.changes`.
        changes: Which step changed which span of the content.
    """

    content: str
    applied: tuple[str, ...]
    raw: str
    changes: tuple[Change, ...]


class ReplyStream:
    """One answer on its way through all steps."""

    def __init__(self, steps: Sequence[Step], agent: Agent) -> None:
        self._steps = steps
        self._filters = [step.open(agent) for step in steps]
        self._seen: list[str] = []
        self._given: list[list[str]] = [[] for _ in steps]
        self._texts: list[tuple[str, str]] = []
        """What each step read and gave, once the answer is finished."""
        self._returned = False
        """Whether the text so far ended in \\r: a \\n after it belongs to the same line end."""

    @property
    def ended(self) -> bool:
        """True when no further text can change the answer: the model may stop."""
        return any(each.ended for each in self._filters)

    @property
    def blocked(self) -> str:
        """Why the answer was broken off for safety; "" where it wasn't."""
        return next((each.blocked for each in self._filters if each.blocked), "")

    def feed(self, text: str) -> str:
        """New finished text, to be shown after what came before.

        What could not be stored goes first: no step may judge what is read otherwise later.
        """
        if text:
            half = self._returned and text[0] == "\n"
            self._returned = text[-1] == "\r"
            text = storable(text[half:])
        self._seen.append(text)
        for filter_, given in zip(self._filters, self._given, strict=True):
            text = filter_.feed(text)
            given.append(text)
        return text

    def finish(self) -> tuple[str, tuple[str, ...]]:
        """The last finished text, and the names of the steps that changed something."""
        text = ""
        for filter_, given in zip(self._filters, self._given, strict=True):
            text = filter_.feed(text) + filter_.finish()
            given.append(text)
        applied: list[str] = []
        seen = "".join(self._seen)
        for step, filter_, pieces in zip(self._steps, self._filters, self._given, strict=True):
            before, seen = seen, "".join(pieces)
            if before != seen:
                applied += filter_.applied or (step.name,)
            self._texts.append((before, seen))
        return text, tuple(applied)

    def changes(self) -> tuple[Change, ...]:
        """Which step changed which span of the finished text. Call it after :meth:`finish`.

        Steps that changed nothing cost one comparison.
        """
        found: list[Change] = []
        for step, filter_, (seen, given) in zip(
            self._steps, self._filters, self._texts, strict=True
        ):
            if filter_.ended and filter_.consumed is not None:  # what follows was never read
                seen = seen[: filter_.consumed]
                found = [change for change in found if change.end <= len(seen)]
            if seen == given:
                continue
            edits = filter_.edits(seen, given)
            if edits is None:
                edits = difference(seen, given, masks=step.masks)
            found = compose(found, edits, seen, given, step.name, masks=step.masks)
        return tuple(found)


class ResponseProcessor:
    """Runs ``steps`` over answers, in their order. Without steps given, those that need neither
    words nor rules from a file."""

    def __init__(self, steps: Sequence[Step] | None = None) -> None:
        self.steps = tuple((*STEPS, *LAST_STEPS) if steps is None else steps)

    def open_stream(
        self, agent: Agent, secrets: Sequence[str] = (), *, data: bool = False
    ) -> ReplyStream:
        """``secrets`` are hidden before any other step could cut them in two. ``data``: what is
        told is no words but JSON, say."""
        hiding = Step("hidden_secrets", lambda _: RedactSecrets(secrets), masks=True)
        steps = [step for step in self.steps if step.data or not data]
        return ReplyStream([hiding, *steps], agent)

    def process(self, raw: str, agent: Agent) -> Processed:
        """A whole raw answer, finished: the same text as through a stream."""
        stream = self.open_stream(agent)
        text = stream.feed(raw)
        rest, applied = stream.finish()
        changes = stream.changes()
        return Processed(text + rest, applied, restore(text + rest, changes), changes)
