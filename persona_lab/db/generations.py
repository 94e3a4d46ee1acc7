"""The record of each generation: values that travel with it, and its queries."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import or_
from sqlalchemy import select as columns
from sqlmodel import SQLModel, col, func, select

from persona_lab.db.base import StoreBase
from persona_lab.db.tables import Agent, Generation


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


class GenerationQueries(StoreBase):
    """Queries of generations."""

    def record(self, turn: Generation) -> None:
        """Keep ``turn``, which says whose it is."""
        with self._write() as session:
            session.add(turn)

    def records(self, *, user_id: str, since: datetime | None = None) -> list[Generation]:
        """The user's generations, oldest first."""
        turns = select(Generation).where(Generation.user_id == user_id)
        if since is not None:
            turns = turns.where(Generation.created_at >= since)
        with self._read() as session:
            return list(
                session.exec(turns.order_by(col(Generation.created_at), col(Generation.id)))
            )

    def total_cost(self, since: datetime) -> float:
        """US dollars that all users' generations cost the house, as far as prices are known."""
        total = select(func.sum(Generation.cost)).where(
            Generation.created_at >= since, col(Generation.user_key).is_(False)
        )
        with self._read() as session:
            return float(session.exec(total).one() or 0.0)

    def list_generation_rows(
        self, *, user_id: str, since: datetime | None = None
    ) -> list[GenerationRow]:
        """The figures of the user's generations, oldest first.

        Columns alone, and no rows of the mapper's: it takes half the time of :meth:`records`.
        """
        turn: Any = SQLModel.metadata.tables["turnrecord"].c
        known: dict[str, Any] = {"agent_name": col(Agent.name), "demo": _is_demo()}
        readable = or_(col(Agent.owner_id) == user_id, col(Agent.owner_id).is_(None))
        wanted = (
            columns(*[known[n] if n in known else turn[n] for n in GenerationRow._fields])
            .outerjoin_from(Generation, Agent, (col(Agent.id) == turn.agent_id) & readable)
            .where(turn.user_id == user_id)
            .order_by(turn.created_at, turn.id)
        )
        if since is not None:
            wanted = wanted.where(turn.created_at >= since)
        with self._read() as session:
            return [GenerationRow(*row) for row in session.connection().execute(wanted).all()]


def _is_demo() -> Any:
    return col(Agent.id).is_not(None) & col(Agent.owner_id).is_(None)
