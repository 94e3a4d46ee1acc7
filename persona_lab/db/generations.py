"""Values that travel between the pipeline and the table of generations."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from persona_lab.db.tables import Generation


class GenerationRow(NamedTuple):
    """The figures of one :class:`TurnRecord`, without what was said.

    ``agent_name`` and ``demo`` are those of a persona that is the user's own (a deleted one too) or
    a demo; None for any other, such as one that was tried and never kept.
    """

    created_at: datetime
    kind: str
    agent_id: str
    agent_name: str | None
    demo: bool
    provider: str
    model: str
    status: str
    error_type: str | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    first_token_ms: float | None
    total_ms: float
    cost: float | None
    cache_hit: bool


class FailedAttempt(NamedTuple):
    """A model that another stood in for: who, the error's code, and how often it was asked."""

    spec: str
    code: str
    attempts: int = 1


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """A generation that is over, for whoever watches: its record, and what that doesn't keep.

    ``spec`` is the model that was asked last; ``code`` that of the error which ended it;
    ``passed_over`` are the models that another stood in for; ``attempts``: how often the last was
    asked. ``message`` and ``answer`` are for eyes that may see them.
    """

    record: Generation
    spec: str
    code: str | None = None
    attempts: int = 1
    failed_attempts: tuple[FailedAttempt, ...] = ()
    message: str = field(default="", repr=False)
    answer: str = field(default="", repr=False)
