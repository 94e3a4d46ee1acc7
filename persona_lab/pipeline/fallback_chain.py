"""Call the models of a fallback chain in order until one answers."""

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
    """Return whether the next model of the chain may be called after ``error``.

    The chain continues after a failure of one provider. It stops at our own errors, at invalid
    input and at a refusal: a refused message must not go from model to model until one accepts it.
    """
    return isinstance(error, ProviderError) and not isinstance(error, Refused)


class Fallback:
    """Streams the answer of the first model that produces text. Serves one answer.

    Args:
        models: The models of the chain, in order.
        ask: Streams one model's answer to a prompt that is built for that model. It raises an
            error for an answer without text. When no time is left for this model, it raises the
            error of the model before.

    Attributes:
        failed: The errors of the models that failed before their first text.
    """

    def __init__(
        self, models: Sequence[ModelInfo], ask: Callable[[ModelInfo], AsyncGenerator[Chunk, None]]
    ) -> None:
        self._models = models
        self._ask = ask
        self.failed: list[ProviderError] = []

    async def stream(self) -> AsyncGenerator[Chunk, None]:
        """Yield the chunks of the first model that answers.

        Chunks without visible text are held back until text arrives.

        Raises:
            ProviderError: No model produced text. It is the error of the first model.
        """
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
                if any(ours is former for former in self.failed):  # no time is left for this model
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
