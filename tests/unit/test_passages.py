"""The parts of an answer: what is speech, and what a tone must leave."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.roleplay import read_answers

from persona_lab.answer_text.passages import Kind, Passage, PassageParser


def passages(text: str, name: str = "") -> list[Passage]:
    """Return the passages of a whole answer of the persona ``name``."""
    parser = PassageParser(name)
    found = [*parser.feed(text), *parser.finish()]
    kind = Kind.NARRATION if parser.narrative else Kind.SPEECH
    return [Passage(kind, passage.text) if passage.doubtful else passage for passage in found]


def kinds(text: str, name: str = "さくら") -> list[tuple[str, str]]:
    """Return the passages with words, without white space around them."""
    found = passages(text, name)
    assert "".join(passage.text for passage in found) == text
    return [
        (passage.kind.value, passage.text.strip())
        for passage in found
        if any(map(str.isalnum, passage.text))
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "（歩き出す）そうだね。行こう。",
            [("direction", "（歩き出す）"), ("speech", "そうだね。"), ("speech", "行こう。")],
        ),
        ("*微笑む* やあ。", [("direction", "*微笑む*"), ("speech", "やあ。")]),
        (
            "うん……（小さく頷く）行く。",
            [("speech", "うん……"), ("direction", "（小さく頷く）"), ("speech", "行く。")],
        ),
        ("（長い\n描写）\nはい。", [("direction", "（長い\n描写）"), ("speech", "はい。")]),
        ("[状態: 空腹]\nやあ。", [("direction", "[状態: 空腹]"), ("speech", "やあ。")]),
        ("**重要**だよ。", [("speech", "**重要**だよ。")]),
        ("2*3=6だ。4*5=20だ。", [("speech", "2*3=6だ。"), ("speech", "4*5=20だ。")]),
    ],
)  # fmt: skip
def test_stage_directions_are_told_from_speech(text: str, expected: list[tuple[str, str]]) -> None:
    assert kinds(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "彼女は静かに頷いた。\n「そうだよ。行こう」\n窓の外を見つめる。",
            [
                ("narration", "彼女は静かに頷いた。"),
                ("speech", "そうだよ。"),
                ("speech", "行こう"),
                ("narration", "窓の外を見つめる。"),
            ],
        ),
        ("さくら「行くよ」", [("narration", "さくら「"), ("speech", "行くよ")]),
        ("ユーザー「行くよ」", [("narration", "ユーザー「"), ("quotation", "行くよ")]),
        (
            "「わかった」と彼女は頷いた。空が晴れる。",
            [("speech", "わかった"), ("narration", "」と彼女は頷いた。空が晴れる。")],
        ),
        ("（頷いて）「行くよ」", [("direction", "（頷いて）"), ("speech", "行くよ")]),
        ("「今日は、いい天気", [("speech", "今日は、いい天気")]),
    ],
)
def test_in_a_novel_the_text_in_brackets_is_the_speech(
    text: str, expected: list[tuple[str, str]]
) -> None:
    assert kinds(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "「光合成」とは、植物が栄養を作る働きだ。",
        "「ありがとう」は英語で何と言う？",
        "「行く。」と『待て。来い。』",
        "彼は「行く」と言った。",
        "「教えていただけますか？」と、優しくお願いしてみてください。",
        "「一緒に行こう」と声をかけてみてください。",
    ],
)
def test_a_quotation_is_part_of_its_sentence(text: str) -> None:
    assert kinds(text) == [("speech", text)]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("- 材料を切る。\n", Kind.LIST),
        ("1. 水を入れる。\n", Kind.LIST),
        ("① 水を入れる。\n", Kind.LIST),
        ("・水を入れる。\n", Kind.LIST),
        ("手順1：水を入れる。\n", Kind.LIST),
        ("# 見出しだ。\n", Kind.BLOCK),
        ("| 列だ。 |\n", Kind.BLOCK),
        ("> 引用だ。\n", Kind.BLOCK),
        ("※作者より：続く。\n", Kind.BLOCK),
        ("OOC: 続けるよ。\n", Kind.BLOCK),
        ("```\nx = 1だ。\n```\n", Kind.BLOCK),
    ],
)
def test_lists_headings_notes_and_code_are_no_speech(text: str, kind: Kind) -> None:
    found = passages(text + "終わりだ。")
    assert {passage.kind for passage in found[:-1]} == {kind}
    assert found[-1].kind is Kind.SPEECH


PIECES = [
    "雨だ。", "彼は頷いた。", "「行く。", "「はい」", "」", "（笑", "）", "*", "\n", "\n\n",
    "さくら", "：", "- 切る", "```", "# だ", "。", "…", " ", "『", "』", "[a]", "1. ",
    "と言った。", "Hi. ",
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=25).map("".join), st.integers(0, 60))
def test_the_passages_are_the_text_however_it_is_cut(text: str, cut: int) -> None:
    whole = passages(text, "さくら")
    assert "".join(passage.text for passage in whole) == text
    parser = PassageParser("さくら")
    found = [*parser.feed(text[:cut]), *parser.feed(text[cut:]), *parser.finish()]
    assert [passage.text for passage in found] == [passage.text for passage in whole]


def test_a_real_answer_is_divided_without_a_loss() -> None:
    answers = read_answers()
    assert len(answers) == 360
    for answer in answers:
        assert "".join(passage.text for passage in passages(answer)) == answer
