"""Count the tokens of a prompt."""

from __future__ import annotations

from collections.abc import Callable

from persona_lab.types import Prompt

TURN_MARKUP_TOKENS = 8
"""Tokens that a chat template adds to each prompt message, at most."""


def prompt_tokens(prompt: Prompt, count: Callable[[str], int]) -> int:
    """Return the tokens of ``prompt`` with the markup of its turns, by the counter ``count``."""
    turns = sum(count(turn.content) + TURN_MARKUP_TOKENS for turn in prompt.turns)
    return count(prompt.system) + TURN_MARKUP_TOKENS + turns
