"""ResponseProcessor: a stream of raw text in, a stream of finished text out.

A step opens a filter for each answer. Filters work by the character (or hold back what they
can't judge yet), so that the final text never depends on how a provider cut its stream. What a
filter has given out is never taken back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from persona_lab.db.tables import Agent
from persona_lab.responses.cleanup import LAST_STEPS, STEPS
from persona_lab.responses.filters import Step
from persona_lab.responses.secret_filter import RedactSecrets
from persona_lab.unicode_text import storable


@dataclass(frozen=True, slots=True)
class Processed:
    """``applied`` names the steps that changed the text, in their order."""

    content: str
    applied: tuple[str, ...]


class ReplyStream:
    """One answer on its way through all steps."""

    def __init__(self, steps: Sequence[Step], agent: Agent) -> None:
        self._names = [step.name for step in steps]
        self._filters = [step.open(agent) for step in steps]
        self._seen: list[list[str]] = [[] for _ in steps]
        self._given: list[list[str]] = [[] for _ in steps]
        self._returned = False
        """Whether the text so far ended in \\r: a \\n after it belongs to the same line end."""

    @property
    def ended(self) -> bool:
        """True when no further text can change the answer: the model may stop."""
        return any(step.ended for step in self._filters)

    @property
    def blocked(self) -> str:
        """Why the answer was broken off for safety; "" where it wasn't."""
        return next((step.blocked for step in self._filters if step.blocked), "")

    def feed(self, text: str) -> str:
        """New finished text, to be shown after what came before.

        What could not be stored goes first: no step may judge what is read otherwise later.
        """
        if text:
            half = self._returned and text[0] == "\n"
            self._returned = text[-1] == "\r"
            text = storable(text[half:])
        for number, step in enumerate(self._filters):
            self._seen[number].append(text)
            text = step.feed(text)
            self._given[number].append(text)
        return text

    def finish(self) -> tuple[str, tuple[str, ...]]:
        """The last finished text, and the names of the steps that changed something."""
        text = ""
        for number, step in enumerate(self._filters):
            self._seen[number].append(text)
            text = step.feed(text) + step.finish()
            self._given[number].append(text)
        applied: list[str] = []
        steps = zip(self._names, self._filters, self._seen, self._given, strict=True)
        for name, step, seen, given in steps:
            if "".join(seen) != "".join(given):
                applied += step.applied or (name,)
        return text, tuple(applied)


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
        hiding = Step("hidden_secrets", lambda _: RedactSecrets(secrets))
        steps = [step for step in self.steps if step.data or not data]
        return ReplyStream([hiding, *steps], agent)

    def process(self, raw: str, agent: Agent) -> Processed:
        """A whole raw answer, finished: the same text as through a stream."""
        stream = self.open_stream(agent)
        text = stream.feed(raw)
        rest, applied = stream.finish()
        return Processed(text + rest, applied)
