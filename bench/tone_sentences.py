"""``python -m bench.tone_sentences TONE N SEED CONVERSATIONS``: sentences to read one by one.

Draws N different sentences that a tone changes in the answers of CONVERSATIONS and prints them as
JSON lines without verdicts; ``tests/data/read_sentences`` keeps the lines that were read.
CONVERSATIONS is a gzip of JSON lines with ``id``, ``model`` and ``turns``, which alternate between
the user and the character.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from persona_lab.db.tables import Agent
from persona_lab.responses.changes import Edit
from persona_lab.responses.tone import Tone, ToneFilter, Tones
from persona_lab.settings import ROOT

ENDING = "にゃ"
"""The sentence ending of the persona that is drawn for."""
_MARKS = "。！？\n"


def rewrite(tone: Tone, text: str) -> tuple[str, list[Edit]]:
    """Return ``text`` in ``tone`` and the edits, for a persona without a name."""
    agent = Agent(name="", language="ja", catchphrases=[], sentence_endings=[ENDING])
    step = ToneFilter(tone, agent)
    after = step.feed(text) + step.finish()
    return after, step.edits(text, after)


def reread(tone: Tone, answer: str, edits: list[Edit], edit: Edit) -> tuple[str, str] | None:
    """Return the sentence of an edit, as the model gave it and in ``tone``.

    A sentence that is read otherwise without the text around it comes with its line, or else
    with the whole answer.
    """
    after = rewrite(tone, answer)[0]
    for marks in (_MARKS, "\n", ""):
        start = max((answer.rfind(mark, 0, edit.start) for mark in marks), default=-1) + 1
        ends = [at + 1 for mark in marks if (at := answer.find(mark, edit.end)) >= 0]
        before = answer[start : min(ends, default=len(answer))]
        expected = after[_moved(edits, start) : _moved(edits, start + len(before))]
        if rewrite(tone, before)[0] == expected:
            return before.strip(), expected.strip()
    return None


def _moved(edits: list[Edit], place: int) -> int:
    """Return where ``place`` of the answer is in the text with the edits."""
    return place + sum(edit.length - (edit.end - edit.start) for edit in edits if edit.end <= place)


def draw(tone: Tone, number: int, seed: int, conversations: Path) -> Iterator[dict[str, Any]]:
    """Return ``number`` different changed sentences without verdicts."""
    found: list[tuple[dict[str, Any], int, list[Edit], Edit]] = []
    with gzip.open(conversations, "rt", encoding="utf-8") as file:
        for conversation in map(json.loads, file):
            for turn, answer in enumerate(conversation["turns"][1::2]):
                edits = rewrite(tone, answer)[1]
                found += [(conversation, turn, edits, edit) for edit in edits]
    print(f"{tone.name}: {len(found)} changed sentences", file=sys.stderr)
    random.Random(seed).shuffle(found)
    seen: set[str] = set()
    for conversation, turn, edits, edit in found:
        if len(seen) == number:
            break
        pair = reread(tone, conversation["turns"][1::2][turn], edits, edit)
        if pair is None or pair[0] in seen:
            continue
        seen.add(pair[0])
        yield {
            "id": conversation["id"],
            "model": conversation["model"],
            "turn": turn,
            "before": pair[0],
            "after": pair[1],
            "verdict": "",
        }


def main() -> int:
    """Print a sample."""
    parser = argparse.ArgumentParser(description="Draw sentences that a tone changes")
    parser.add_argument("tone")
    parser.add_argument("number", type=int)
    parser.add_argument("seed", type=int)
    parser.add_argument("conversations", type=Path)
    arguments = parser.parse_args()
    tones = Tones(ROOT / "templates" / "tones.yaml").tones
    tone = next((tone for tone in tones if tone.name == arguments.tone), None)
    if tone is None:
        parser.error(f"{arguments.tone}: there is {', '.join(tone.name for tone in tones)}")
    for line in draw(tone, arguments.number, arguments.seed, arguments.conversations):
        print(json.dumps(line, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
