"""Statistics of an engine."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What an engine does and has done, at one moment.

    Attributes:
        name: The model's name.
        cells: Cells of the context, one for each token.
        cells_used: Those in use.
        live: Answers that are being generated.
        waiting: Requests in the queue.
        prompt_tokens: Tokens of all prompts.
        reused_tokens: Those of them that were reused from the cache.
        written_tokens: Tokens of all answers.
        paced_tokens: Those of them that were written within ``seconds``. The first token of an
            answer comes with the end of its prompt and doesn't count.
        seconds: Time in which at least one answer was written.
    """

    name: str
    cells: int
    cells_used: int
    live: int
    waiting: int
    prompt_tokens: int = 0
    reused_tokens: int = 0
    written_tokens: int = 0
    paced_tokens: int = 0
    seconds: float = 0.0

    @property
    def reuse_ratio(self) -> float:
        """Share of the prompts' tokens that were reused; 0 before the first prompt."""
        return self.reused_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of all answers together, while any was being written."""
        return self.paced_tokens / self.seconds if self.seconds else 0.0

    def __add__(self, other: EngineStats) -> EngineStats:
        sums = {
            field.name: getattr(self, field.name) + getattr(other, field.name)
            for field in fields(self)
            if field.name != "name"
        }
        return EngineStats(self.name, **sums)
