"""What watching adds to a message: its lines in the log, its figures, its row.

``python -m bench.watching`` measures it alone. Each part is called with the same outcome again and
again, as the service calls it when an answer is over; lines go to a file on the disk, rows to a
database there. Besides: what following a request costs each piece of an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import TextIO

from bench import Measured
from persona_lab import Settings, open_lab
from persona_lab.db.generations import GenerationResult
from persona_lab.db.tables import Generation
from persona_lab.lab import Lab
from persona_lab.monitor import logs
from persona_lab.monitor.request_context import request, with_request_context
from persona_lab.types import new_id

ROUNDS = 2000
WRITES = 300
PIECES = 20_000
GOAL = 1000.0
"""Microseconds of logging and metrics together, for a message."""


def measure() -> Measured:
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as open_:
        settings = Settings(
            database_url=f"sqlite:///{Path(folder) / 'lab.db'}", llm_provider="mock"
        )
        lab = open_.enter_context(open_lab(settings))
        lines = open_.enter_context((Path(folder) / "log").open("w", encoding="utf-8"))
        with request():
            parts = {
                "line in the log (JSON)": _logging(lines, "json"),
                "line in the log (for a reader)": _logging(lines, "text"),
                "metrics": _each(_told(lab.monitor.metrics.observe)),
                "alerts": _each(_told(lab.monitor.alerts.observe)),
                "row in the database": _each(_recording(lab), WRITES),
            }
    watching = parts["line in the log (JSON)"], parts["metrics"], parts["alerts"]
    together = [sum(each) for each in zip(*watching, strict=True)]
    return report(parts, together, asyncio.run(_following()))


def report(
    parts: dict[str, list[float]], together: list[float], following: tuple[float, float]
) -> Measured:
    """Microseconds of each call; of a bare and of a followed piece."""
    total = statistics.median(together)
    bare, followed_ = following
    tables = [
        f"### Watching a message ({ROUNDS} calls, {WRITES} rows)",
        "",
        "| | median µs | 95 % µs | goal |",
        "|---|---|---|---|",
        *(_row(name, each, "") for name, each in parts.items()),
        _row("JSON line, metrics and alerts together", together, f"≤ {GOAL:.0f}"),
        f"| following a request, for each piece of an answer | {followed_ - bare:.1f} | | |",
    ]
    missed = [f"watching {total:.0f} µs > {GOAL:.0f} µs"] if total > GOAL else []
    return Measured("\n".join(tables), missed)


def _row(name: str, micros: list[float], goal: str) -> str:
    end = statistics.quantiles(micros, n=20)[-1]
    return f"| {name} | {statistics.median(micros):.0f} | {end:.0f} | {goal} |"


def _each(work: Callable[[], object], rounds: int = ROUNDS) -> list[float]:
    took = []
    for _ in range(rounds + 20):
        began = time.perf_counter()
        work()
        took.append((time.perf_counter() - began) * 1e6)
    return took[20:]  # the first imports what it needs


def _outcome() -> GenerationResult:
    record = Generation(
        user_id=new_id(),
        agent_id=new_id(),
        chat_id=new_id(),
        provider="mock",
        model="echo",
        status="ok",
        prompt_tokens=400,
        completion_tokens=60,
        first_token_ms=200,
        total_ms=1500,
        cost=0.0,
    )
    return GenerationResult(record, "mock:echo")


def _told(observe: Callable[[GenerationResult], None]) -> Callable[[], object]:
    outcome = _outcome()
    return lambda: observe(outcome)


def _logging(lines: TextIO, form: str) -> list[float]:
    """The call of the observer that logs."""
    outcome = _outcome()
    logs.configure(Settings(log_format=form, openai_api_key="sk-to-look-for"), stream=lines)
    return _each(lambda: logs.log_turn(outcome, texts=False))


def _recording(lab: Lab) -> Callable[[], object]:
    user = lab.store.create_user().id

    def work() -> None:
        record = _outcome().record
        record.user_id = user
        lab.store.record(record)

    return work


async def _following() -> tuple[float, float]:
    """Microseconds a piece, of a bare stream and of a followed one."""

    async def pieces() -> AsyncGenerator[str, None]:
        for _ in range(PIECES):
            yield ""

    async def took(stream: AsyncGenerator[str, None]) -> float:
        began = time.perf_counter()
        async for _ in stream:
            pass
        return (time.perf_counter() - began) * 1e6 / PIECES

    rounds = [(await took(pieces()), await took(with_request_context(pieces)())) for _ in range(5)]
    return min(bare for bare, _ in rounds), min(with_ for _, with_ in rounds)


if __name__ == "__main__":
    measured = measure()
    print(measured.tables)
    sys.exit(1 if measured.missed else 0)
