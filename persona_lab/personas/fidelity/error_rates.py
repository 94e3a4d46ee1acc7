"""The error rates of the rules, from ``error_rates.csv``.

``python -m bench.fidelity publish`` writes the file from the verdicts in ``tests/data/fidelity``.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import get_args

from persona_lab.personas.fidelity.mark import ErrorRate, RuleName

PATH = Path(__file__).with_name("error_rates.csv")
COLUMNS = ("rule", "judged", "wrong", "seeded", "found")


def _read() -> dict[RuleName, ErrorRate]:
    with PATH.open(encoding="utf-8", newline="") as file:
        rows = {
            row["rule"]: ErrorRate(*(int(row[column]) for column in COLUMNS[1:]))
            for row in csv.DictReader(file)
        }
    return {name: rows[name] for name in get_args(RuleName)}


ERROR_RATES = _read()
"""The error rate of each rule."""
