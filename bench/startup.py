"""From the start of the process to the page being served, beside a bare Gradio app.

The two take turns, so that whatever else the machine does weighs on both alike. The first
round compiles modules and fills the disk cache and isn't counted.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from bench.served import served

ROUNDS = 7
GOAL = 1.3


def measure() -> str:
    bare: list[float] = []
    lab: list[float] = []
    first: list[float] = []
    with tempfile.TemporaryDirectory() as kept:
        for _ in range(1 + ROUNDS):
            bare.append(_start("bench.bare_app", Path(kept)))
            lab.append(_start("app.py", Path(kept)))
            with tempfile.TemporaryDirectory() as empty:
                first.append(_start("app.py", Path(empty)))
    rows = [
        _row("bare Gradio app with four tabs", bare[1:], bare[1:], ""),
        _row("Persona Lab", lab[1:], bare[1:], f"≤ {GOAL}"),
        _row("Persona Lab, creating its database", first[1:], bare[1:], ""),
    ]
    return "\n".join(
        [
            f"### Start to page served ({ROUNDS} rounds, taking turns)",
            "",
            "| | median s | fastest s | ratio of medians | goal |",
            "|---|---|---|---|---|",
            *rows,
        ]
    )


def _start(program: str, folder: Path) -> float:
    with served(program, folder) as page:
        return page.seconds


def _row(name: str, seconds: list[float], beside: list[float], goal: str) -> str:
    median = statistics.median(seconds)
    ratio = median / statistics.median(beside)
    return f"| {name} | {median:.2f} | {min(seconds):.2f} | {ratio:.2f} | {goal} |"
