"""Changed sentences of real role plays that were read one by one, with the reader's verdict.

``tests/data/read_sentences/README.md`` tells how they were drawn and read.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from bench.tone_sentences import rewrite
from persona_lab.responses.tone import Tones
from persona_lab.settings import ROOT

FOLDER = ROOT / "tests" / "data" / "read_sentences"
TONES = {tone.name: tone for tone in Tones(ROOT / "templates" / "tones.yaml").tones}
MOST_LEFT_ALONE = 0.03
"""The share of the good sentences that a later rule may leave as the model gave them."""


def read(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.jsonl")), ids=lambda path: path.stem)
def test_read_sentences_keep_their_verdict(path: Path) -> None:
    lines = read(path)
    left_alone = 0
    for line in lines:
        now = rewrite(TONES[path.stem], line["before"])[0]
        if line["verdict"] == "bad":
            assert now != line["after"], line["before"]
        elif line["verdict"] == "good" and now == line["before"]:
            left_alone += 1
        elif line["verdict"] == "good":
            assert now == line["after"]
    good = sum(line["verdict"] == "good" for line in lines)
    assert left_alone <= MOST_LEFT_ALONE * good


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.jsonl")), ids=lambda path: path.stem)
def test_a_native_would_say_98_of_100_sentences_so(path: Path) -> None:
    lines = read(path)
    assert len({line["before"] for line in lines}) == len(lines) >= 200
    assert {line["verdict"] for line in lines} <= {"good", "bad", "doubt"}
    assert sum(line["verdict"] == "good" for line in lines) >= 0.98 * len(lines)
