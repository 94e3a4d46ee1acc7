"""The marks: politeness of each sentence against the persona's."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from persona_lab.personas.fidelity import assess, marks
from persona_lab.personas.fidelity.answer import parts_of
from persona_lab.personas.fidelity.register import register_of
from persona_lab.personas.persona import Example, Persona

DATA = Path(__file__).parents[1] / "data"


def _persona(*lines: str, **fields) -> Persona:
    return Persona(name="葵", examples=tuple(Example("やあ", line) for line in lines), **fields)


POLITE = _persona("こんにちは。今日は晴れですね。", "本をお探しですか。二階にあります。")
PLAIN = _persona("よう。今日は晴れだね。", "本を探してるの？二階にあるよ。")
MIXED = _persona("今日は晴れですね。行くよ。", "二階にあります。探してみるか？早く行こう。")


def found(reply: str, persona: Persona) -> list[str]:
    return [mark.quote for mark in marks(reply, persona) if mark.rule == "politeness"]


@pytest.mark.parametrize(
    ("persona", "reply", "quotes"),
    [
        (POLITE, "かしこまりました。すぐ行くよ。", ["すぐ行くよ。"]),
        (POLITE, "それは違うと思う。", ["それは違うと思う。"]),
        (POLITE, "大丈夫だ。任せろ。", ["大丈夫だ。", "任せろ。"]),
        (POLITE, "この本は面白いよ！", ["この本は面白いよ！"]),
        (POLITE, "何を探してるの？", ["何を探してるの？"]),
        (POLITE, "番号を教えてね。", ["番号を教えてね。"]),
        (PLAIN, "いいね。明日行きます。", ["明日行きます。"]),
        (PLAIN, "それは本ですか？", ["それは本ですか？"]),
        (PLAIN, "（葵は笑う）「知りませんでした」", ["知りませんでした"]),
        (PLAIN, "ゆっくり休んでくださいね。", ["ゆっくり休んでくださいね。"]),
    ],
)
def test_politeness_finds_the_other_register(persona, reply, quotes):
    assert found(reply, persona) == quotes


@pytest.mark.parametrize(
    ("persona", "reply"),
    [
        (POLITE, "はい。なるほど。二階の本棚ですね。"),
        (POLITE, "（静かに微笑む）どうぞ、こちらへ。"),
        (POLITE, "「行くぞ」と書かれた本があります。"),
        (POLITE, "彼女は静かに頷いた。「二階にあります」"),
        (POLITE, "- 机を拭く\n- 本を並べる\n\n以上です。"),
        (POLITE, "どうしようかな。晴れるといいのですが…"),
        (POLITE, "いい所ですね、庭も広いし。"),
        (POLITE, "```\nこれは本だ。\n```\nこれが例です。"),
        (PLAIN, "ありがとうございます！本当に嬉しいよ。"),
        (PLAIN, "お疲れさまです。もう帰る？"),
        (PLAIN, "すみません、の一言が言えないんだ。"),
        (PLAIN, "二階だよ。"),
    ],
)
def test_politeness_accepts_what_is_no_fault(persona, reply):
    assert found(reply, persona) == []


@pytest.mark.parametrize(
    ("persona", "reason"),
    [
        (Persona(name="空"), "not_stated"),
        (MIXED, "mixed"),
        (_persona("今日は晴れだね。", "二階にあるよ。", "行こう。", tones=("敬語",)), "mixed"),
        (Persona(name="空", language="en"), "language"),
    ],
)
def test_politeness_abstains_when_the_persona_is_unclear(persona, reason):
    unmeasured = assess("行くよ。二階です。", persona).unmeasured
    assert [each.reason for each in unmeasured if each.rule == "politeness"] == [reason]


def test_politeness_is_read_from_tones_when_examples_are_few():
    assert found("行くよ。", Persona(name="空", tones=("丁寧",))) == ["行くよ。"]
    assert found("行きます。", Persona(name="空", tones=("タメ口",))) == ["行きます。"]


def test_register_agrees_with_keico():
    counts: Counter[tuple[str, str | None]] = Counter()
    with (DATA / "keico_dev.csv").open(encoding="utf-8") as file:
        for row in list(csv.DictReader(file))[::4]:
            parts = list(parts_of(row["本文"], ""))
            if len(parts) == 1:
                label = "plain" if row["Level"] == "4" else "polite"
                counts[label, register_of(parts[0])] += 1
    for register, other in (("polite", "plain"), ("plain", "polite")):
        right, wrong = counts[register, register], counts[other, register]
        assert right / (right + wrong) >= 0.93, counts
        assert right / sum(n for (label, _), n in counts.items() if label == register) >= 0.6
