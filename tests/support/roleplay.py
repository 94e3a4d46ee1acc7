"""Answers from real role plays; ``tests/data/README.md`` has their source."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

PATH = Path(__file__).resolve().parent.parent / "data" / "roleplay_sample.jsonl.gz"


def read_answers() -> list[str]:
    """Return the answers of the sample."""
    with gzip.open(PATH, "rt", encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]
