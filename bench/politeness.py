"""How well politeness is told, on the part of the KeiCO corpus that nothing was fitted to.

``python -m bench.politeness`` prints it, beside a regular expression over sentence endings;
``python -m bench.politeness fit`` fits the weights again. A quarter of the sentences, chosen by
their SHA-256, is never fitted to. The corpus: Liu & Kobayashi, KeiCO (CC BY 4.0).
"""

from __future__ import annotations

import csv
import hashlib
import re
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt

from persona_lab.japanese import politeness_level
from persona_lab.japanese.morphology import words_of
from persona_lab.japanese.politeness import WEIGHTS, features
from persona_lab.settings import ROOT

CORPUS = ROOT / "tests" / "data" / "keico_dev.csv"
RARE = 10
"""Features seen less often aren't fitted."""
RIDGE = 0.003
_ENDING = re.compile(
    r"(です|ます|ません|でした|ました|でしょう|ましょう|ください|下さい)[かねよわがのけど]*[。．？！?!…・\s]*$"
)

Rows = list[tuple[str, int]]


def read(path: Path = CORPUS) -> tuple[Rows, Rows]:
    """(sentences to fit, sentences held out), each with its level from 1 to 4."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [(row["本文"], int(row["Level"])) for row in csv.DictReader(file)]
    held = [hashlib.sha256(text.encode()).digest()[1] % 4 == 0 for text, _ in rows]
    return (
        [row for row, out in zip(rows, held, strict=True) if not out],
        [row for row, out in zip(rows, held, strict=True) if out],
    )


def scores(rows: Rows, levels: list[int]) -> tuple[float, float]:
    """(share of exact levels, balanced accuracy of polite against plain)."""
    truth, predicted = np.array([level for _, level in rows]), np.array(levels)
    polite, plain = truth < 4, truth == 4
    balanced = ((predicted[polite] < 4).mean() + (predicted[plain] == 4).mean()) / 2
    return float((truth == predicted).mean()), float(balanced)


def fit(rows: Rows, rounds: int = 300) -> tuple[list[str], npt.NDArray[np.float32]]:
    """Softmax regression with a ridge, by Adam: (features, their weights for the four levels)."""
    seen = []
    for text, _ in rows:
        words = [word for word in words_of(text) if not word.kept and word.is_spoken()]
        seen.append(features(words, asks="？" in text or "?" in text) if words else set())
    count = Counter(feature for found in seen for feature in found)
    names = sorted(feature for feature, times in count.items() if times >= RARE)
    place = {name: column for column, name in enumerate(names)}
    inputs = np.zeros((len(rows), len(names)), np.float32)
    for row, found in enumerate(seen):
        inputs[row, [place[feature] for feature in found if feature in place]] = 1
    wanted = np.eye(4, dtype=np.float32)[[level - 1 for _, level in rows]]
    weights = np.zeros((len(names), 4), np.float32)
    mean, square = np.zeros_like(weights), np.zeros_like(weights)
    for step in range(1, rounds + 1):
        raw = inputs @ weights
        predicted = np.exp(raw - raw.max(1, keepdims=True))
        predicted /= predicted.sum(1, keepdims=True)
        slope = inputs.T @ (predicted - wanted) / len(rows) + RIDGE * weights
        mean = 0.9 * mean + 0.1 * slope
        square = 0.99 * square + 0.01 * slope**2
        weights -= 0.05 * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.99**step)) + 1e-8)
    return names, weights


def main() -> int:
    fitted, held = read()
    if sys.argv[1:] == ["fit"]:
        names, weights = fit(fitted)
        with WEIGHTS.open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(["feature", "1", "2", "3", "4"])
            for name, row in zip(names, weights, strict=True):
                rows.writerow([name, *(f"{weight:.2f}" for weight in row)])
        print(f"{len(names)} features fitted to {len(fitted)} sentences")
    print("| | exact level | polite or plain, balanced |\n|---|---|---|")
    for name, part in (("fitted to", fitted), ("held out", held)):
        start = time.perf_counter()
        levels = [int(politeness_level(text)) for text, _ in part]
        rate = len(part) / (time.perf_counter() - start)
        exact, balanced = scores(part, levels)
        regex = scores(part, [3 if _ENDING.search(text) else 4 for text, _ in part])[1]
        print(
            f"| {name} ({len(part)}) | {exact:.3f} | {balanced:.3f} (endings alone: {regex:.3f}) |"
        )
    print(f"{rate:,.0f} sentences a second")
    return 0


if __name__ == "__main__":
    sys.exit(main())
