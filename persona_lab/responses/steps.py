"""The order of the steps that finish an answer."""

from __future__ import annotations

from dataclasses import replace

from persona_lab.db.tables import Agent
from persona_lab.responses.cleanup import LAST_STEPS, STEPS
from persona_lab.responses.filters import Filter, Step
from persona_lab.responses.tone import Tones


def ordered_steps(safety: Step, tones: Tones | None = None) -> list[Step]:
    """Return the steps of a :class:`~persona_lab.responses.processor.ResponseProcessor`.

    ``safety`` judges the model's own text before the tone rewrites it. So a persona with a tone
    hides and refuses the same text as one without, and ``raw`` has no masked text. ``safety``
    judges the rewritten text too: a rule of a tone can complete a listed word.

    Args:
        safety: The step of the output filter.
        tones: The tones; None if answers keep their tone.
    """
    if tones is None:
        return [*STEPS, safety, *LAST_STEPS]

    def open_for_tone(agent: Agent) -> Filter:
        return safety.open(agent) if tones.of(agent) is not None else Filter()

    again = replace(safety, open=open_for_tone, data=False, shows_pending=True)
    return [*STEPS, safety, tones.step, again, *LAST_STEPS]
