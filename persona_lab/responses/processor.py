"""ResponseProcessor: turn a stream of raw text into a stream of finished text.

A step opens a filter for each answer. Filters read character by character, and hold back text that
they can't judge yet. So the result doesn't depend on how a provider splits its stream. A filter
never takes back its output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from persona_lab.db.tables import Agent
from persona_lab.responses.changes import Change, compose, difference, restore
from persona_lab.responses.cleanup import LAST_STEPS, STEPS
from persona_lab.responses.filters import Step
from persona_lab.responses.secret_filter import RedactSecrets
from persona_lab.unicode_text import to_storable


@dataclass(frozen=True, slots=True)
class Processed:
    """A finished answer.

    Attributes:
        content: The text that is shown.
        applied: The steps that changed the text, in order.
        raw: The model's text. See :mod:`persona_lab.responses.changes`.
        changes: Which step changed which span of the content.
    """

    content: str
    applied: tuple[str, ...]
    raw: str
    changes: tuple[Change, ...]


class ReplyStream:
    """The processing of one answer by all steps.

    Args:
        steps: The steps, in order.
        agent: The persona that answers.
    """

    def __init__(self, steps: Sequence[Step], agent: Agent) -> None:
        self._steps = steps
        self._filters = [step.open(agent) for step in steps]
        self._inputs: list[str] = []
        self._outputs: list[list[str]] = [[] for _ in steps]
        self._judge = max(
            at for at, step in enumerate(steps) if step.masks and not step.shows_pending
        )
        """The step that judges the model's own text for safety."""
        self._texts: list[tuple[str, str]] = []
        """The input and output of each step, after :meth:`finish`."""
        self._returned = False
        """Whether the last text ended in CR: an LF after it belongs to the same line end."""

    @property
    def pending(self) -> str:
        """The unfinished text that may be shown for now. The finished text can differ from it."""
        if self.ended:
            return ""
        return "".join(filter_.pending for filter_ in reversed(self._filters[self._judge :]))

    @property
    def raw(self) -> str:
        """The text so far in the model's own words: before its tone, but judged for safety.

        Labels and the like are removed from it.
        """
        judged = "".join(self._outputs[self._judge])
        return judged if self.ended else judged + self._filters[self._judge].pending

    @property
    def ended(self) -> bool:
        """Whether the answer has ended: further text can't change it, so the model may stop."""
        return any(each.ended for each in self._filters)

    @property
    def blocked(self) -> str:
        """Why the answer was blocked for safety; "" for an answer that isn't."""
        return next((each.blocked for each in self._filters if each.blocked), "")

    def feed(self, text: str) -> str:
        """Read raw text, and return the new finished text, which follows the text before.

        Characters that can't be stored are removed before the first step. So each step judges the
        same text that is stored later.
        """
        if text:
            half = self._returned and text[0] == "\n"
            self._returned = text[-1] == "\r"
            text = to_storable(text[half:])
        self._inputs.append(text)
        for filter_, output in zip(self._filters, self._outputs, strict=True):
            text = filter_.feed(text)
            output.append(text)
        return text

    def finish(self) -> tuple[str, tuple[str, ...]]:
        """Return the rest of the finished text, and the names of the steps that changed any."""
        text = ""
        for filter_, output in zip(self._filters, self._outputs, strict=True):
            text = filter_.feed(text) + filter_.finish()
            output.append(text)
        applied: list[str] = []
        before = "".join(self._inputs)
        for step, filter_, pieces in zip(self._steps, self._filters, self._outputs, strict=True):
            after = "".join(pieces)
            if before != after:
                applied += filter_.applied or (step.name,)
            self._texts.append((before, after))
            before = after
        return text, tuple(applied)

    def changes(self) -> tuple[Change, ...]:
        """Return which step changed which span of the finished text.

        Call it after :meth:`finish`. A step without changes costs one comparison.
        """
        found: list[Change] = []
        for step, filter_, (before, after) in zip(
            self._steps, self._filters, self._texts, strict=True
        ):
            if filter_.ended and filter_.consumed is not None:  # the filter didn't read the rest
                before = before[: filter_.consumed]
                found = [change for change in found if change.end <= len(before)]
            if before == after:
                continue
            edits = filter_.edits(before, after)
            if edits is None:
                edits = difference(before, after, masks=step.masks)
            found = compose(found, edits, before, after, step.name, masks=step.masks)
        return tuple(found)


class ResponseProcessor:
    """Runs steps over answers.

    Args:
        steps: The steps, in order. None stands for the steps that need no file of texts or rules.
    """

    def __init__(self, steps: Sequence[Step] | None = None) -> None:
        self.steps = tuple((*STEPS, *LAST_STEPS) if steps is None else steps)

    def open_stream(
        self, agent: Agent, secrets: Sequence[str] = (), *, data: bool = False
    ) -> ReplyStream:
        """Open the processing of one answer.

        Args:
            agent: The persona that answers.
            secrets: Texts to mask. They are masked first, so that no other step can split them.
            data: Whether the answer is data, such as JSON. Only steps for data run then.
        """
        hiding = Step("hidden_secrets", lambda _: RedactSecrets(secrets), masks=True)
        steps = [step for step in self.steps if step.data or not data]
        return ReplyStream([hiding, *steps], agent)

    def process(self, raw: str, agent: Agent) -> Processed:
        """Process a whole raw answer. The result is the same as for a stream."""
        stream = self.open_stream(agent)
        text = stream.feed(raw)
        rest, applied = stream.finish()
        changes = stream.changes()
        return Processed(text + rest, applied, restore(text + rest, changes), changes)
