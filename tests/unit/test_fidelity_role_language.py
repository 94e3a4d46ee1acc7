"""The marks: role language and sentence endings, against the persona's lines."""

from __future__ import annotations

import pytest

from persona_lab.personas.fidelity import assess, marks
from persona_lab.personas.persona import Example, Persona


def _persona(*lines: str, **fields) -> Persona:
    return Persona(name="葵", examples=tuple(Example("やあ", line) for line in lines), **fields)


PLAIN = _persona("今日はよく晴れているね。", "本なら二階にあるよ。", "一緒に見に行こうか。")
POLITE = _persona(
    "今日はよく晴れています。", "本なら二階にあります。", "一緒に見に行きましょうか。"
)
OSAKA = _persona("今日はよう晴れてるやん。", "本やったら二階にあるで。", "一緒に見に行こか、なあ。")
OLD = _persona(
    "今日はよく晴れておるのう。", "本なら二階にあるのじゃ。", "わしも若い頃は走ったものじゃ。"
)
SAMURAI = _persona("拙者も参るでござる。", "かたじけない、恩に着る。", "本は二階でござる。")
LADY = _persona("今日はよく晴れていますわ。", "本なら二階にありますのよ。", "ごきげんよう、皆様。")
CAT = _persona("今日はいい天気だにゃ。", "本は二階にあるにゃ。", "お腹がすいたにゃん。")
ROBO = _persona(
    "今日は晴れているロボ。", "本は二階にあるロボ。", "一緒に行くロボ！", sentence_endings=("ロボ",)
)


def found(rule: str, reply: str, persona: Persona) -> list[str]:
    return [mark.quote for mark in marks(reply, persona) if mark.rule == rule]


@pytest.mark.parametrize(
    ("persona", "sentence"),
    [
        (PLAIN, "それはあかんで。"),
        (PLAIN, "そんなん知らんやん。"),
        (PLAIN, "わしにも分からんのじゃ。"),
        (PLAIN, "よく来てくれたのう。"),
        (POLITE, "拙者が参るでござる。"),
        (POLITE, "それは素敵ですわ。"),
        (POLITE, "私もそう思いますのよ。"),
        (PLAIN, "私もそう思うわ。"),
        (PLAIN, "明日は晴れるかしら。"),
        (PLAIN, "今すぐ行くぜ！"),
        (POLITE, "そんなこと知らねえよ。"),
        (PLAIN, "お魚が好きだにゃ。"),
        (OSAKA, "私はそう思いますわ。"),
    ],
)
def test_role_language_finds_another_variety(persona, sentence):
    if persona is OSAKA:  # わ is of both
        assert found("role_language", sentence, persona) == []
    else:
        assert found("role_language", sentence, persona) == [sentence]


@pytest.mark.parametrize(
    ("persona", "reply"),
    [
        (PLAIN, "それじゃあ、また明日ね。私じゃないよ。"),
        (PLAIN, "さあ、急いで！無理しないで。こちらへどうぞ。"),
        (POLITE, "二階に本棚があります。ご案内いたします。"),
        (POLITE, "それはでんわです。"),
        (OSAKA, "ほんまにええ天気やで。"),
        (OLD, "わしもそう思うのじゃ。走るぞ。"),
        (SAMURAI, "承知つかまつった。参るぞ。"),
        (LADY, "素敵ですわね。そうかしら。"),
        (CAT, "眠いにゃ。"),
        (PLAIN, "「あかんで」と父が言っていたよ。"),
    ],
)
def test_role_language_accepts_what_is_no_fault(persona, reply):
    assert found("role_language", reply, persona) == []


@pytest.mark.parametrize("persona", [OSAKA, OLD, SAMURAI, CAT])
def test_role_language_finds_answers_without_it(persona):
    reply = "今日はとても晴れている。本は二階の棚にある。それから一緒に行こう。"
    assert found("role_language", reply, persona) == ["今日はとても晴れている。"]


def test_role_language_is_read_from_tones_when_lines_are_few():
    polite = Persona(name="空", tones=("敬語",))
    assert found("role_language", "拙者が参るでござる。", polite) == ["拙者が参るでござる。"]
    assert found("role_language", "私もそう思うわ。", polite) == []
    osaka = Persona(name="空", tones=("関西弁",))
    reply = "今日はとても晴れている。本は二階の棚にある。それから一緒に行こう。"
    assert found("role_language", reply, osaka) == ["今日はとても晴れている。"]
    assert found("role_language", reply + "ほんまやで。", osaka) == []


def test_role_language_abstains_without_lines_and_tones():
    unmeasured = assess("それはあかんで。", Persona(name="空")).unmeasured
    assert ("role_language", "too_few_examples") in [(u.rule, u.reason) for u in unmeasured]


def test_sentence_ending_finds_answers_without_it():
    reply = "今日はとても晴れている。本は二階の棚にある。それから一緒に行こう。"
    assert found("sentence_ending", reply, ROBO) == ["今日はとても晴れている。"]
    assert found("sentence_ending", reply.replace("ある。", "あるロボ。"), ROBO) == []


def test_sentence_ending_abstains_for_common_endings():
    persona = Persona(name="空", sentence_endings=("です", "ますね"))
    unmeasured = assess("行くよ。そうだ。二階に本がある。", persona).unmeasured
    assert ("sentence_ending", "not_stated") in [(u.rule, u.reason) for u in unmeasured]
