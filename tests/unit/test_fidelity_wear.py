"""The marks: catch-phrases, length and repetition."""

from __future__ import annotations

import pytest

from persona_lab.personas.fidelity import assess, marks
from persona_lab.personas.persona import Example, Persona
from persona_lab.types import PromptMessage

LINES = (
    "いい質問ですね。光は散らばります。",
    "いい質問ですね。海の塩は岩から来ます。",
    "お茶にします。",
)
SAKURA = Persona(
    name="さくら",
    catchphrases=("いい質問ですね",),
    examples=tuple(Example("なぜ？", line) for line in LINES),
)
QUIET = Persona(
    name="さくら",
    catchphrases=("いい質問ですね",),
    examples=tuple(Example("なぜ？", line) for line in ("はい。", "光です。", "海です。")),
)


def history(*answers: str) -> list[PromptMessage]:
    return [
        message
        for answer in answers
        for message in (PromptMessage("user", "なぜですか"), PromptMessage("assistant", answer))
    ]


def found(rule: str, reply: str, persona: Persona, *answers: str) -> list[str]:
    return [mark.quote for mark in marks(reply, persona, history(*answers)) if mark.rule == rule]


def test_catchphrase_missing_is_found_in_the_sixth_answer():
    reply = "波は風から生まれます。"
    assert found("catchphrase_missing", reply, SAKURA, *["風です。"] * 5) == [reply]
    assert found("catchphrase_missing", reply, SAKURA, *["風です。"] * 4) == []
    assert found("catchphrase_missing", reply, SAKURA, "いい質問ですね", *["風です。"] * 4) == []
    assert found("catchphrase_missing", reply, QUIET, *["風です。"] * 9) == []


def test_catchphrase_worn_is_found_twice_in_an_answer_and_in_a_row():
    twice = "いい質問ですね。光です。いい質問ですね。"
    assert found("catchphrase_worn", twice, QUIET) == ["いい質問ですね"]
    said = "いい質問ですね。光です。"
    assert found("catchphrase_worn", said, QUIET, said, said) == ["いい質問ですね"]
    assert found("catchphrase_worn", said, QUIET, said, "光です。") == []
    assert found("catchphrase_worn", said, QUIET) == []


def test_catchphrase_with_an_inflected_end_counts():
    persona = Persona(
        name="空",
        catchphrases=("興味深い",),
        examples=tuple(Example("", "それは興味深いですね。") for _ in range(3)),
    )
    assert found("catchphrase_missing", "実に興味深く思います。", persona, *["はい。"] * 9) == []


def test_length_is_found_far_from_the_examples():
    long = "光は空気の粒に当たって散らばります。それで空が青く見えます。" * 8
    assert found("length", long, SAKURA) == [long[19:]]
    assert found("length", long[:150], SAKURA) == []
    lines = tuple(Example("", "光は空気の粒に当たって散らばります。" * 5) for _ in range(3))
    assert found("length", "はい。", Persona(name="空", examples=lines)) == ["はい。"]


@pytest.mark.parametrize("reply", ["- 光\n" * 90, "```\n" + "x = 1\n" * 90 + "```"])
def test_length_abstains_for_lists_and_code(reply):
    unmeasured = assess(reply, SAKURA).unmeasured
    assert "length" in [each.rule for each in unmeasured]


def test_repetition_finds_a_sentence_said_again():
    sentence = "私はあなたを助けることができます。"
    assert found("repetition", f"{sentence}ええ。{sentence}", SAKURA) == [sentence]
    assert found("repetition", f"{sentence}ええ。", SAKURA) == []
    assert found("repetition", "はい。はい。そうです。そうです。", SAKURA) == []


def test_repetition_finds_a_loop():
    assert found("repetition", "光が" * 6 + "見えます。", SAKURA) == ["光が" * 6]
    assert found("repetition", "はははは、ららら。", SAKURA) == []


def test_repetition_over_turns_finds_a_copied_sentence():
    copied = "海の塩は、雨が岩を少しずつ溶かして運んだものです。"
    assert found("repetition_over_turns", f"ええ。{copied}", SAKURA, copied, "はい。") == [copied]
    assert found("repetition_over_turns", f"ええ。{copied}", SAKURA, "はい。") == []
    assert (
        found("repetition_over_turns", "ありがとうございます。", SAKURA, "ありがとうございます。")
        == []
    )
