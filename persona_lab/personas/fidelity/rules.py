"""The rules in the order of their marks, and the call of each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from persona_lab.personas.fidelity.answer import Answer, Message
from persona_lab.personas.fidelity.character import (
    ai_admission,
    author_note,
    instructions,
    speaks_for_user,
)
from persona_lab.personas.fidelity.error_rates import ERROR_RATES
from persona_lab.personas.fidelity.forbidden import forbidden_word
from persona_lab.personas.fidelity.mark import (
    Assessment,
    CannotMeasure,
    Fault,
    Mark,
    RuleName,
    Unmeasured,
)
from persona_lab.personas.fidelity.register import politeness
from persona_lab.personas.fidelity.role_language import role_language, sentence_ending
from persona_lab.personas.fidelity.script import broken_conjugation, foreign_text
from persona_lab.personas.fidelity.self_reference import first_person, second_person
from persona_lab.personas.fidelity.wear import (
    catchphrase_missing,
    catchphrase_worn,
    length,
    repetition,
    repetition_over_turns,
)
from persona_lab.personas.persona import Persona

RULES: dict[RuleName, Callable[[Answer], Iterator[Fault]]] = {
    "politeness": politeness,
    "first_person": first_person,
    "second_person": second_person,
    "role_language": role_language,
    "sentence_ending": sentence_ending,
    "catchphrase_missing": catchphrase_missing,
    "catchphrase_worn": catchphrase_worn,
    "forbidden_word": forbidden_word,
    "ai_admission": ai_admission,
    "instructions": instructions,
    "speaks_for_user": speaks_for_user,
    "author_note": author_note,
    "foreign_text": foreign_text,
    "broken_conjugation": broken_conjugation,
    "length": length,
    "repetition": repetition,
    "repetition_over_turns": repetition_over_turns,
}
"""Each rule yields the faults that it finds, or raises :class:`CannotMeasure`."""
JAPANESE_RULES: frozenset[RuleName] = frozenset(
    [
        "politeness",
        "first_person",
        "second_person",
        "role_language",
        "sentence_ending",
        "foreign_text",
        "broken_conjugation",
    ]
)
"""The rules that know Japanese only."""
MIN_PRECISION = 0.9
"""A rule with a lower measured precision doesn't judge."""


def marks(reply: str, persona: Persona, history: Sequence[Message] = ()) -> list[Mark]:
    """Return the faults of an answer, in the order of the text.

    The rules compare the answer with the persona's fields and example lines. They need neither a
    model nor a network, and the same input always has the same marks. What a rule can't judge has
    no mark; :func:`assess` names these rules.

    Args:
        reply: The answer as the model wrote it.
        persona: The persona that answers.
        history: The messages before the answer, the oldest first.
    """
    return list(assess(reply, persona, history).marks)


def assess(reply: str, persona: Persona, history: Sequence[Message] = ()) -> Assessment:
    """Return the faults of an answer, and the rules that can't judge it.

    Args:
        reply: The answer as the model wrote it.
        persona: The persona that answers.
        history: The messages before the answer, the oldest first.
    """
    answer = Answer(reply, persona, history)
    found: list[Mark] = []
    unmeasured: list[Unmeasured] = []
    for name in RULES:
        try:
            found += apply_rule(name, answer)
        except CannotMeasure as reason:
            unmeasured.append(Unmeasured(name, reason.field, reason.reason))
    found.sort(key=lambda mark: (mark.start, mark.end))
    return Assessment(tuple(found), tuple(unmeasured))


def apply_rule(name: RuleName, answer: Answer, *, even_unreliable: bool = False) -> list[Mark]:
    """Return the marks of one rule.

    Args:
        name: The rule.
        answer: The answer.
        even_unreliable: Whether the rule judges although too many of its marks are wrong.

    Raises:
        CannotMeasure: The rule can't judge this answer.
    """
    rate = ERROR_RATES[name]
    if rate.precision is not None and rate.precision < MIN_PRECISION and not even_unreliable:
        raise CannotMeasure("", "unreliable")
    if name in JAPANESE_RULES and not (answer.persona.language == "ja" and answer.is_japanese):
        raise CannotMeasure("language", "language")
    return [
        Mark(
            fault.start,
            fault.end,
            answer.text[fault.start : fault.end],
            name,
            fault.field,
            fault.expected,
            rate,
        )
        for fault in RULES[name](answer)
    ]
