"""Streams side by side on the compare tab, as far as the page and not just as far as the server.

Mock models speak at a known rate, so what reaches the page can be set beside what was sent.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from bench import Measured
from bench.comparing import choose, compare, open_compare
from bench.served import browser, served

RATE = 100
TOKENS = 300
COLUMNS = 4
ROUNDS = 7
PAIRS = 11
"""Of quick columns: the first words come with a tick of the page, early or late."""
REST = 1500
"""Milliseconds in which what the run before left to do is done, the same on both sides."""
SHARE = 0.95
DELAY = 50
QUICK = f"mock:echo?rate={RATE}&tokens=100"
SLOW = f"mock:echo?rate={RATE}&tokens=100&first=5"


def measure() -> Measured:
    with (
        tempfile.TemporaryDirectory() as folder,
        served(
            "app.py",
            Path(folder),
            LLM_PROVIDER="mock",
            LLM_MODEL="echo",
            REQUESTS_PER_MINUTE="0",
        ) as lab,
        browser() as chromium,
    ):
        page = open_compare(chromium, lab.url)
        choose(page, [f"mock:echo?rate={RATE}&tokens={TOKENS}"] * COLUMNS)
        compare(page, "warm", COLUMNS)
        rates = [
            [column.rate(TOKENS) / RATE for column in compare(page, f"round {number}", COLUMNS)]
            for number in range(ROUNDS)
        ]
        first: dict[str, list[float]] = {QUICK: [], SLOW: []}
        last: dict[str, list[float]] = {QUICK: [], SLOW: []}
        for number in range(PAIRS):
            for beside in (QUICK, SLOW):
                choose(page, [QUICK, beside])
                page.wait_for_timeout(REST)
                quick = compare(page, f"turn {number}", 2)[0]
                first[beside].append(quick.first)
                last[beside].append(quick.last)
    return report([share for columns in rates for share in columns], first, last)


def report(
    shares: list[float], first: dict[str, list[float]], last: dict[str, list[float]]
) -> Measured:
    """The share of the rate in each column, and seconds of a quick column by what is beside it."""
    worst = min(shares)
    tables = [
        f"### {COLUMNS} columns at {RATE} tokens/s each ({ROUNDS} rounds)",
        "",
        "| | median | worst column | goal |",
        "|---|---|---|---|",
        f"| share of the rate that reaches the page | {statistics.median(shares):.3f} "
        f"| {worst:.3f} | ≥ {SHARE} |",
        "",
        f"### A quick column beside one that waits 5 s ({PAIRS} rounds, taking turns)",
        "",
        "| of the quick column | beside a quick one, ms | beside the slow one, ms "
        "| delay, ms | goal |",
        "|---|---|---|---|---|",
        _row("first words", first),
        _row("last words", last),
    ]
    missed = [f"share of the rate {worst:.3f} < {SHARE}"] if worst < SHARE else []
    for name, taken in (("first words", first), ("last words", last)):
        quick, slow = _medians(taken)
        if slow - quick > DELAY:
            missed.append(f"{name} {slow - quick:.1f} ms > {DELAY} ms")
    return Measured("\n".join(tables), missed)


def _medians(taken: dict[str, list[float]]) -> tuple[float, float]:
    """Milliseconds beside a quick column and beside the slow one."""
    return 1000 * statistics.median(taken[QUICK]), 1000 * statistics.median(taken[SLOW])


def _row(name: str, taken: dict[str, list[float]]) -> str:
    quick, slow = _medians(taken)
    return f"| {name} | {quick:.0f} | {slow:.0f} | {slow - quick:+.0f} | ≤ {DELAY} |"
