"""The marks: their form, and the rules about first person, address and words never used."""

from __future__ import annotations

import time

import pytest

from persona_lab.personas.fidelity import RULES, assess, marks
from persona_lab.personas.persona import Example, Persona
from persona_lab.types import PromptMessage

WATASHI = Persona(name="みさき", first_person="私", second_person="お客様")
BOKU = Persona(name="レン", first_person="僕", second_person="あなた")
CAT = Persona(name="三毛之助", first_person="吾輩", second_person="おぬし")
LONG = "昨日は図書館へ行きました。そこで私は古い地図を見つけて、お客様のことを思い出しました。" * 12


def found(rule: str, reply: str, persona: Persona, history: tuple[PromptMessage, ...] = ()):
    return [mark.quote for mark in marks(reply, persona, history) if mark.rule == rule]


def reasons(rule: str, reply: str, persona: Persona) -> list[str]:
    return [each.reason for each in assess(reply, persona).unmeasured if each.rule == rule]


def test_mark_quotes_its_span():
    reply = "はい。俺が調べておきます。"
    (mark,) = [mark for mark in marks(reply, WATASHI) if mark.rule == "first_person"]
    assert reply[mark.start : mark.end] == mark.quote == "俺"
    assert (mark.field, mark.expected) == ("first_person", "私")
    assert mark.error_rate.judged >= mark.error_rate.wrong


def test_marks_are_the_same_each_time():
    reply = "俺は知らん。お前が調べろ。"
    assert marks(reply, WATASHI) == marks(reply, WATASHI)


@pytest.mark.parametrize(
    "reply", ["", " \n", "…", "「", "（", "```", "\ud800", "😀" * 50, "a" * 9000]
)
def test_marks_accept_any_text(reply):
    for mark in marks(reply, BOKU):
        assert reply[mark.start : mark.end] == mark.quote


def test_marks_take_messages_and_mappings():
    history = [PromptMessage("user", "やあ"), {"role": "assistant", "content": "こんにちは。"}]
    assert marks("こんにちは。", BOKU, history) == []


def test_assess_accounts_for_every_rule_of_an_empty_persona():
    unmeasured = {each.rule for each in assess("こんにちは。", Persona(name="空")).unmeasured}
    assert {"first_person", "second_person", "forbidden_word"} <= unmeasured
    assert unmeasured <= set(RULES)


def test_marks_are_fast_enough():
    marks(LONG, WATASHI)
    rounds = []
    for _ in range(5):
        began = time.perf_counter()
        marks(LONG[:500], WATASHI)
        rounds.append(time.perf_counter() - began)
    assert min(rounds) < 0.1  # 10 ms on a free core; tests share theirs


@pytest.mark.parametrize(
    ("persona", "reply", "quotes"),
    [
        (WATASHI, "俺に任せてください。", ["俺"]),
        (WATASHI, "僕が調べます。俺も手伝います。", ["僕", "俺"]),
        (WATASHI, "オレたちで調べます。", ["オレ"]),
        (WATASHI, "わしが調べますぞ。", ["わし"]),
        (BOKU, "私は学生です。", ["私"]),
        (CAT, "僕は猫である。", ["僕"]),
        (BOKU, "（レンは頷く）「俺が行きます」", ["俺"]),
    ],
)
def test_first_person_finds_another_pronoun(persona, reply, quotes):
    assert found("first_person", reply, persona) == quotes


@pytest.mark.parametrize(
    ("persona", "reply"),
    [
        (WATASHI, "わたしが調べます。私どもの店です。"),
        (WATASHI, "「俺様」という本があります。"),
        (WATASHI, "（俺は誰だ、と男は言った）私は黙っていました。"),
        (WATASHI, "我々の店では、自分で選べます。"),
        (WATASHI, "私立の学校です。そのうち届きます。うちの店にもあります。"),
        (BOKU, "ボクが行くよ。ぼくもだ。私たちの町だ。"),
        (BOKU, "公僕という言葉があります。"),
        (CAT, "我輩は猫である。"),
        (BOKU, "高橋「俺がやる」\nレン「僕もやります」"),
    ],
)
def test_first_person_accepts_what_is_no_fault(persona, reply):
    assert found("first_person", reply, persona) == []


def test_first_person_is_read_from_examples_when_the_field_is_empty():
    lines = tuple(Example("やあ", line) for line in ("俺は元気だ。", "俺に聞け。", "よう。"))
    persona = Persona(name="健", examples=lines)
    assert found("first_person", "僕は元気だ。", persona) == ["僕"]
    assert found("first_person", "オレは元気だ。", persona) == []
    assert reasons("first_person", "僕は元気だ。", Persona(name="健")) == ["not_stated"]


@pytest.mark.parametrize(
    ("persona", "reply", "quotes"),
    [
        (WATASHI, "お前の荷物は届きましたか。", ["お前"]),
        (WATASHI, "あなたの荷物です。", ["あなた"]),
        (BOKU, "君ならできます。", ["君"]),
        (BOKU, "貴様に何がわかる。", ["貴様"]),
        (CAT, "あなたは人間だな。", ["あなた"]),
    ],
)
def test_second_person_finds_another_address(persona, reply, quotes):
    assert found("second_person", reply, persona) == quotes


@pytest.mark.parametrize(
    ("persona", "reply"),
    [
        (WATASHI, "お客様のお荷物です。佐藤君が運びます。"),
        (BOKU, "あなた方の町です。貴方ならできます。"),
        (BOKU, "暴君の話です。君主と臣下がいました。"),
        (BOKU, "「お前は誰だ」と書いてあります。"),
        (CAT, "お主、なかなかやるな。"),
    ],
)
def test_second_person_accepts_what_is_no_fault(persona, reply):
    assert found("second_person", reply, persona) == []


def test_second_person_abstains_for_a_name():
    assert reasons("second_person", "君は元気か。", Persona(name="鈴", second_person="ミラ")) == [
        "not_stated"
    ]


@pytest.mark.parametrize(
    ("words", "reply", "quotes"),
    [
        (("諦める",), "もう諦めました。諦めよう。", ["諦め", "諦めよう"]),
        (("できません",), "それはできませんでした。", ["できません"]),
        (("バカ",), "ばかなことを。", ["ばか"]),
        (("つまらない",), "つまらなかったね。", ["つまらなかっ"]),
        (("絶対",), "絶対に大丈夫。", ["絶対"]),
        (("死ね",), "死ね！", ["死ね"]),
        (("面倒くさい",), "面倒くさくなった。", ["面倒くさく"]),
        (("勉強する",), "毎日勉強している。", ["勉強し"]),
    ],
)
def test_forbidden_word_finds_inflected_forms(words, reply, quotes):
    assert found("forbidden_word", reply, Persona(name="空", forbidden_words=words)) == quotes


@pytest.mark.parametrize(
    ("words", "reply"),
    [
        (("死ね",), "人は死んでも忘れられない。"),
        (("できません",), "できますよ。"),
        (("バカ",), "バカンスに行きます。"),
        (("うそ",), "こうそうビルです。"),
        (("まずい",), "まず、行きましょう。"),
    ],
)
def test_forbidden_word_accepts_other_words(words, reply):
    assert found("forbidden_word", reply, Persona(name="空", forbidden_words=words)) == []
