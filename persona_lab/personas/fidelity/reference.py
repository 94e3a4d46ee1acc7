"""The persona's own lines, with which answers are compared."""

from __future__ import annotations

from functools import lru_cache

from persona_lab.personas.fidelity.answer import Answer
from persona_lab.personas.persona import Persona


@lru_cache(maxsize=256)
def own_lines(persona: Persona) -> tuple[Answer, ...]:
    """Return the answers of the examples, and the greeting, each analysed as an answer."""
    lines = [*(example.ai for example in persona.examples), persona.greeting]
    return tuple(Answer(line, persona) for line in lines if line.strip())


def profile(persona: Persona) -> str:
    """Return the texts that say who the persona is."""
    return "\n".join(
        [
            persona.name,
            persona.description,
            persona.background,
            *persona.roles,
            *persona.personalities,
            *persona.tones,
        ]
    )
