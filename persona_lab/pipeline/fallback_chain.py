"""Ask the clients of a fallback chain in order until one answers."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TYPE_CHECKING, TypeGuard

from persona_lab.clients.catalog import ModelInfo
from persona_lab.clients.error_mapping import map_error
from persona_lab.errors import (
    ProviderError,
    Refused,
)
from persona_lab.types import Chunk
from persona_lab.unicode_text import is_blank

if TYPE_CHECKING:
    pass
from persona_lab.clients.middleware.wrapper import log_provider_event


def can_fall_back(error: Exception) -> TypeGuard[ProviderError]:
    """Whether another model may be asked instead.

    Whatever is wrong with one provider: not with us, nor with what the user asked for. What one
    model refuses isn't carried to the next until some small one answers it.
    """
    return isinstance(error, ProviderError) and not isinstance(error, Refused)


class Fallback:
    """The first of ``models`` that gives a word. Good for one answer.

    ``ask`` streams a model's answer to a prompt that is made for that model, and raises what is
    wrong with an answer that has no word, or what was wrong with the one before where there is no
    time for another. ``failed`` are the errors of those that were passed over.
    """

    def __init__(
        self, models: Sequence[ModelInfo], ask: Callable[[ModelInfo], AsyncGenerator[Chunk, None]]
    ) -> None:
        self._models = models
        self._ask = ask
        self.failed: list[ProviderError] = []

    async def stream(self) -> AsyncGenerator[Chunk, None]:
        """Raises the first model's error when none gave a word."""
        for info in self._models:
            begun, held = False, []
            try:
                async with contextlib.aclosing(self._ask(info)) as chunks:
                    async for chunk in chunks:
                        held.append(chunk)
                        begun = begun or not is_blank(chunk.text)
                        while begun and held:
                            yield held.pop(0)
            except Exception as error:
                ours = map_error(error, provider=info.provider, model=info.name)
                if any(ours is former for former in self.failed):  # there is no time for this one
                    break
                if begun or not can_fall_back(ours):
                    raise
                self.failed.append(ours)
                log_provider_event(logging.WARNING, "passed_over", info, ours)
            else:
                for chunk in held:
                    yield chunk
                return
        raise self.failed[0]
