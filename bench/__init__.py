"""Benchmarks: Persona Lab beside a bare Gradio app, both in one run, as Markdown tables.

``make bench`` runs all; ``make bench ARGS="startup memory"`` some. Goals stand beside what was
measured, and one that is missed makes the run fail. Nothing here is a test: times depend on the
machine and on what else it is doing.
"""

from __future__ import annotations

from typing import NamedTuple


class Measured(NamedTuple):
    """Markdown tables, and a few words for each goal that was missed."""

    tables: str
    missed: list[str]
