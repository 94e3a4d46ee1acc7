"""What finishing an answer costs: ``python -m bench.replies``.

Microseconds for each delta of four characters through all steps, tone and guards included, and
sentences a second of each tone. The goal: at 100 deltas a second, under a twentieth of the time.
"""

from __future__ import annotations

import statistics
import sys
import time

from bench import Measured
from persona_lab.db.tables import Agent, Role, Tone
from persona_lab.japanese.morphology import sentences
from persona_lab.responses.output_filter import OutputFilter
from persona_lab.responses.processor import ResponseProcessor
from persona_lab.responses.steps import ordered_steps
from persona_lab.responses.tone import Tones
from persona_lab.settings import ROOT

ROUNDS = 5
CHARACTERS = 4
"""In a delta."""
GOAL = 500.0
"""Microseconds a delta."""
JAPANESE = (
    "光合成とは、植物が光を使って水と空気から栄養を作る働きです。葉の中の緑色の粒がその仕事をします。"
    "太陽の光が強いほど、よく進むよ。でも、水が足りないと止まってしまう。"
)
ENGLISH = (
    "Photosynthesis is how plants turn light, water and air into food. The green grains in their "
    "leaves do the work. It goes faster in strong light, and stops without water. "
)


def _agent(name: str, language: str, tones: tuple[str, ...] = (), roles: tuple[str, ...] = ()):
    agent = Agent(name=name, language=language)
    agent.tones = [Tone(name=tone) for tone in tones]
    agent.roles = [Role(name=role) for role in roles]
    return agent


def _per_delta(processor: ResponseProcessor, agent: Agent, text: str) -> float:
    """Median microseconds a delta."""
    rounds = []
    for _ in range(ROUNDS):
        stream = processor.open_stream(agent)
        began = time.perf_counter()
        for at in range(0, len(text), CHARACTERS):
            stream.feed(text[at : at + CHARACTERS])
        stream.finish()
        rounds.append((time.perf_counter() - began) / (len(text) / CHARACTERS) * 1e6)
    return statistics.median(rounds)


def measure() -> Measured:
    tones = Tones(ROOT / "templates" / "tones.yaml")
    guards = OutputFilter(ROOT / "templates" / "guards.yaml", lambda agent, reason: reason)
    whole = ResponseProcessor(ordered_steps(guards.step, tones))
    bare = ResponseProcessor()
    rows, missed = [], []
    for label, agent, text in (
        ("English", _agent("Sam", "en", ("Casual",)), ENGLISH * 20),
        ("Japanese, no tone", _agent("はる", "ja"), JAPANESE * 20),
        ("Japanese, 敬語", _agent("さくら", "ja", ("敬語",)), JAPANESE * 20),
        (
            "Japanese, 敬語, a role with limits",
            _agent("みさき", "ja", ("敬語",), ("カスタマーサポート",)),
            JAPANESE * 20,
        ),
    ):
        _per_delta(whole, agent, text[:400])  # opens dictionaries
        cost = _per_delta(whole, agent, text)
        rows.append(
            f"| {label} | {_per_delta(bare, agent, text):.0f} | {cost:.0f} | ≤ {GOAL:.0f} |"
        )
        if cost > GOAL:
            missed.append(f"{label}: {cost:.0f} µs > {GOAL:.0f} µs")
    rates = []
    for tone in tones.tones:
        parts = sentences(JAPANESE) * 100
        began = time.perf_counter()
        for sentence in parts:
            tone.apply(sentence, endings=("にゃ",))
        rates.append(f"| {tone.name} | {len(parts) / (time.perf_counter() - began):,.0f} |")
    return Measured(
        "| a delta of 4 characters | cleaning, µs | with tone and guards, µs | goal |\n"
        "|---|---|---|---|\n" + "\n".join(rows) + "\n\n| tone | sentences a second |\n|---|---|\n"
        + "\n".join(rates),
        missed,
    )  # fmt: skip


if __name__ == "__main__":
    measured = measure()
    print(measured.tables)
    sys.exit(1 if measured.missed else 0)
