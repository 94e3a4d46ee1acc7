"""From the start of the process to the page being served, beside a bare Gradio app.

The two take turns, so that whatever else the machine does weighs on both alike. The first
round compiles modules and fills the disk cache and isn't counted.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from bench import Measured
from bench.served import served

ROUNDS = 7
GOAL = 1.3


def measure() -> Measured:
    bare: list[float] = []
    lab: list[float] = []
    first: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(1 + ROUNDS):
            bare.append(_start("bench.bare_app", Path(folder)))
            lab.append(_start("app.py", Path(folder)))
            with tempfile.TemporaryDirectory() as empty:
                first.append(_start("app.py", Path(empty)))
    return report(bare[1:], lab[1:], first[1:])


def report(bare: list[float], lab: list[float], first: list[float]) -> Measured:
    """Seconds of each start: the bare app's, the lab's, the lab's with no database yet."""
    rows = [
        _row("bare Gradio app with four tabs", bare, bare, ""),
        _row("Persona Lab", lab, bare, f"≤ {GOAL}"),
        _row("Persona Lab, creating its database", first, bare, ""),
    ]
    tables = [
        f"### Start to page served ({ROUNDS} rounds, taking turns)",
        "",
        "| | median s | fastest s | ratio of medians | goal |",
        "|---|---|---|---|---|",
        *rows,
    ]
    ratio = statistics.median(lab) / statistics.median(bare)
    missed = [f"start {ratio:.3f} > {GOAL}"] if ratio > GOAL else []
    return Measured("\n".join(tables), missed)


def _start(program: str, folder: Path) -> float:
    with served(program, folder) as page:
        return page.seconds


def _row(name: str, seconds: list[float], beside: list[float], goal: str) -> str:
    median = statistics.median(seconds)
    ratio = median / statistics.median(beside)
    return f"| {name} | {median:.2f} | {min(seconds):.2f} | {ratio:.2f} | {goal} |"
