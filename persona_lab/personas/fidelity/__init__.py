"""Find where an answer leaves the persona.

Each mark quotes its place in the answer, and names the rule and the persona's field. ``rules.py``
calls the rules. ``answer.py`` divides the answer with the code of the tone step, so that stage
directions and narration aren't taken for speech. A rule with doubt doesn't judge.
"""

from persona_lab.personas.fidelity.mark import (
    Assessment,
    ErrorRate,
    Mark,
    Reason,
    RuleName,
    Unmeasured,
)
from persona_lab.personas.fidelity.rules import RULES, assess, marks

__all__ = [
    "RULES",
    "Assessment",
    "ErrorRate",
    "Mark",
    "Reason",
    "RuleName",
    "Unmeasured",
    "assess",
    "marks",
]
