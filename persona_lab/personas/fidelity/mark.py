"""The values of the marks: a mark, a rule, its error rate, and what can't be measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RuleName = Literal[
    "politeness",
    "first_person",
    "second_person",
    "role_language",
    "sentence_ending",
    "catchphrase_missing",
    "catchphrase_worn",
    "forbidden_word",
    "ai_admission",
    "instructions",
    "speaks_for_user",
    "author_note",
    "foreign_text",
    "broken_conjugation",
    "length",
    "repetition",
    "repetition_over_turns",
]
"""What a mark finds fault with. ``docs/fidelity.md`` explains each rule."""

Reason = Literal["not_stated", "mixed", "too_few_examples", "no_speech", "language", "unreliable"]
"""Why a rule can't judge an answer.

``not_stated``: the persona doesn't say what is right. ``mixed``: its fields or examples contradict
each other. ``too_few_examples``: too few lines or answers to compare with. ``no_speech``: the
answer has no sentence that the rule can judge. ``language``: the rule knows Japanese only.
``unreliable``: too many of the rule's marks are wrong.
"""


@dataclass(frozen=True, slots=True)
class ErrorRate:
    """How often a rule is wrong, measured on answers of models.

    Attributes:
        judged: The marks that were read.
        wrong: Those of them that are no fault.
        seeded: The faults that were put into answers.
        found: Those of them that got a mark.
    """

    judged: int
    wrong: int
    seeded: int
    found: int

    @property
    def precision(self) -> float | None:
        """The share of marks that are right; None if no mark was read."""
        return 1 - self.wrong / self.judged if self.judged else None

    @property
    def recall(self) -> float | None:
        """The share of seeded faults that were found; None if none was seeded."""
        return self.found / self.seeded if self.seeded else None


@dataclass(frozen=True, slots=True)
class Mark:
    """A fault in an answer.

    Attributes:
        start: The offset of the quoted text in the answer, in characters.
        end: The offset after the quoted text.
        quote: The quoted text: ``reply[start:end]``.
        rule: The rule that found the fault.
        field: The persona's field that the text was compared with.
        expected: What the persona's field asks for, such as ``私`` or ``polite``; "" if it asks
            for nothing in particular.
        error_rate: How often the rule is wrong.
    """

    start: int
    end: int
    quote: str
    rule: RuleName
    field: str
    expected: str
    error_rate: ErrorRate


@dataclass(frozen=True, slots=True)
class Unmeasured:
    """A rule that can't judge an answer, and why."""

    rule: RuleName
    field: str
    reason: Reason


@dataclass(frozen=True, slots=True)
class Assessment:
    """What the rules found in an answer, and which of them can't judge it."""

    marks: tuple[Mark, ...]
    unmeasured: tuple[Unmeasured, ...]


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault as a rule reports it, before its error rate is known."""

    start: int
    end: int
    field: str
    expected: str = ""


@dataclass(frozen=True, slots=True)
class CannotMeasure(Exception):
    """A rule can't judge this answer.

    Attributes:
        field: The persona's field that the rule compares with.
        reason: Why it can't.
    """

    field: str
    reason: Reason
