"""One answer of the engine while it is generated, and the values that its listener receives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from persona_lab.llama import kv_cache
from persona_lab.llama.sampling import Sampler
from persona_lab.llama.stream_decoder import StreamDecoder

RESERVED_CELLS = 64
"""Cells that must be free for an answer before it starts."""


@dataclass(frozen=True, slots=True)
class Step:
    """A piece of an answer, or its new place in the queue.

    Attributes:
        text: New text.
        queue_position: Its place among the waiting requests, from 1; None once it runs.
        finish: Why the answer ended; only the last step has it. The counts come with it.
        prompt_tokens: Tokens of the prompt.
        cached_tokens: Those of them that were reused from the cache.
        completion_tokens: Tokens of the answer so far.
    """

    text: str = ""
    queue_position: int | None = None
    finish: Literal["stop", "length"] | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


Listener = Callable[[Step | Exception], None]
"""Receives the steps of one answer, or the exception that ended it, which may be of any type.

The worker's thread calls it: hand the value over and return. A listener that raises, for example
because its event loop is closed, cancels its answer."""


class Generation:
    """One requested answer. ``tokens`` are the prompt's and then also the answer's."""

    def __init__(
        self,
        tokens: Sequence[int],
        *,
        max_tokens: int,
        sampler: Sampler,
        text: StreamDecoder,
        listener: Listener,
    ) -> None:
        self.tokens = list(tokens)
        self.prompt_tokens = len(tokens)
        self.cached_tokens: int | None = None
        self.max_tokens = max_tokens
        self.sampler = sampler
        self.text = text
        self.listener = listener
        self.queue_position = 0
        self.cancelled = False

    def cancel(self) -> None:
        """Stop before the next step. Thread-safe; does nothing if the answer is complete."""
        self.cancelled = True

    @property
    def completion_tokens(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - self.prompt_tokens

    def pending_tokens(self, sequence: kv_cache.Sequence) -> list[int]:
        """Return the tokens that ``sequence`` has yet to evaluate: one while text is written."""
        return self.tokens[len(sequence.tokens) :]

    def cells_needed(self, cached: int) -> int:
        """Return the cells that it will soon need if ``cached`` tokens are in the context."""
        coming = min(RESERVED_CELLS, self.max_tokens - self.completion_tokens)
        return len(self.tokens) - cached + coming
