"""Budget the tokens of a model's context window: count a prompt, and build one that fits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from persona_lab.db.tables import Agent
from persona_lab.pipeline.context import ContextManager, Entry
from persona_lab.types import Prompt

if TYPE_CHECKING:
    from persona_lab.clients.catalog import ModelInfo
    from persona_lab.prompts.builder import PromptBuilder

TURN_MARKUP_TOKENS = 8
"""Tokens that a chat template adds to each prompt message, at most."""


SHORT_CONTEXT_CHARACTERS = 2000
"""Characters of a turn that fit into the context of any model."""


def is_long(agent: Agent, message: str, context: Sequence[Entry]) -> bool:
    """Return whether a turn may be too long for a small context."""
    persona = len(agent.model_dump_json())
    turns = sum(len(entry["content"]) for entry in context)
    return persona + len(message) + turns > SHORT_CONTEXT_CHARACTERS


def prompt_tokens(prompt: Prompt, count: Callable[[str], int]) -> int:
    """Return the tokens of ``prompt`` with the markup of its turns, by the counter ``count``."""
    turns = sum(count(turn.content) + TURN_MARKUP_TOKENS for turn in prompt.turns)
    return count(prompt.system) + TURN_MARKUP_TOKENS + turns


async def build_fitting_prompt(
    builder: PromptBuilder,
    agent: Agent,
    message: str,
    context: Sequence[Entry],
    *,
    info: ModelInfo,
    max_tokens: int,
    count: Callable[[str], int],
) -> tuple[Prompt, Sequence[Entry]]:
    """Build the prompt with the part of ``context`` that fits, and return both.

    The model's context window must hold the prompt and the answer.

    Args:
        builder: Builds the prompt.
        agent: The persona.
        message: The user's message.
        context: The exchanges before the message.
        info: The model.
        max_tokens: The limit of the answer.
        count: Counts the tokens of a text. It may take long: it is called on a thread.
    """
    prompt = await builder.build(agent, message, context, info=info)
    room = info.context - min(max_tokens, info.context // 2)
    # A token has at least one byte, so the byte count is an upper bound.
    if (
        context
        and prompt_tokens(prompt, lambda text: len(text.encode("utf-8", "replace"))) > room
        and await asyncio.to_thread(prompt_tokens, prompt, count) > room
    ):
        bare = await builder.build(agent, message, (), info=info)
        context = await asyncio.to_thread(
            lambda: ContextManager.fit(
                context,
                room - prompt_tokens(bare, count),
                lambda text: count(text) + TURN_MARKUP_TOKENS,
            )
        )
        prompt = await builder.build(agent, message, context, info=info)
    summary = context[0].get("summary", "") if context else ""
    if summary:
        prompt = replace(prompt, trace=replace(prompt.trace, summary=summary))
    return prompt, context
