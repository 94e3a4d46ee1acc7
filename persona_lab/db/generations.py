"""Generations: the values that the pipeline reports, and the queries of their table."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import or_
from sqlalchemy import select as columns
from sqlmodel import SQLModel, col, func, select

from persona_lab.db.base import StoreBase
from persona_lab.db.tables import Agent, Generation
from persona_lab.deprecated import former_fields


class GenerationRow(NamedTuple):
    """The numbers of one :class:`~persona_lab.db.tables.Generation`, with the name of its persona.

    ``agent_name`` and ``demo`` describe a persona of the user (also a deleted one) or a demo. For
    any other persona, such as a draft that was never saved, ``agent_name`` is None.
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
    """A model that failed and was replaced by a fallback.

    Attributes:
        spec: The model, as "provider:model".
        code: The code of its error.
        attempts: Number of calls, with retries.
    """

    spec: str
    code: str
    attempts: int = 1


@former_fields(passed_over="failed_attempts")
@dataclass(frozen=True, slots=True)
class GenerationResult:
    """A finished generation for observers: its row, and what the row doesn't store.

    Attributes:
        record: The row.
        spec: The model that was called last.
        code: The code of the error that ended the generation; None without one.
        attempts: Number of calls to the last model.
        failed_attempts: The models that failed before it.
        message: The user's message, for observers that may see texts.
        answer: The answer, for observers that may see texts.
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
        """Store a generation. Its ``user_id`` says whose it is."""
        with self._write() as session:
            session.add(turn)

    def records(self, *, user_id: str, since: datetime | None = None) -> list[Generation]:
        """Return the user's generations, oldest first.

        Args:
            user_id: The user.
            since: Only generations from this time on.
        """
        query = select(Generation).where(Generation.user_id == user_id)
        if since is not None:
            query = query.where(Generation.created_at >= since)
        with self._read() as session:
            return list(
                session.exec(query.order_by(col(Generation.created_at), col(Generation.id)))
            )

    def total_cost(self, since: datetime) -> float:
        """Return the cost in US dollars of all generations since a time, for all users.

        Calls with a user's own provider key, and models without a known price, are not counted.
        """
        total = select(func.sum(Generation.cost)).where(
            Generation.created_at >= since, col(Generation.user_key).is_(False)
        )
        with self._read() as session:
            return float(session.exec(total).one() or 0.0)

    def list_generation_rows(
        self, *, user_id: str, since: datetime | None = None
    ) -> list[GenerationRow]:
        """Return the numbers of the user's generations, oldest first.

        It selects columns and builds no table objects: half the time of :meth:`records`.

        Args:
            user_id: The user.
            since: Only generations from this time on.
        """
        turn: Any = SQLModel.metadata.tables["turnrecord"].c
        replaced: dict[str, Any] = {"agent_name": col(Agent.name), "demo": _is_demo()}
        readable = or_(col(Agent.owner_id) == user_id, col(Agent.owner_id).is_(None))
        query = (
            columns(*[replaced[n] if n in replaced else turn[n] for n in GenerationRow._fields])
            .outerjoin_from(Generation, Agent, (col(Agent.id) == turn.agent_id) & readable)
            .where(turn.user_id == user_id)
            .order_by(turn.created_at, turn.id)
        )
        if since is not None:
            query = query.where(turn.created_at >= since)
        with self._read() as session:
            return [GenerationRow(*row) for row in session.connection().execute(query).all()]


def _is_demo() -> Any:
    return col(Agent.id).is_not(None) & col(Agent.owner_id).is_(None)
