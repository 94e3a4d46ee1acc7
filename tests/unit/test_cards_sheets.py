"""Pasted sheets: what goes where."""

from __future__ import annotations

from typing import Any

import pytest

from persona_lab.errors import CardError
from persona_lab.personas.cards import Plan, map_card, read_card, read_sheet, write_sheet
from persona_lab.personas.demos import load_demos
from persona_lab.personas.persona import Example, Persona
from persona_lab.settings import ROOT

MINA = Persona(
    name="ミナ",
    personalities=("明るい", "おせっかい"),
    first_person="あたし",
    catchphrases=("まかせて！",),
    background="年齢：17歳",
    examples=(Example("おはよう", "おはよう！\n今日も焼きたてだよ"),),
)
NOVA = Persona(
    name="Nova",
    personalities=("brave", "curious"),
    roles=("Captain",),
    background="Age: 30",
    language="en",
)
SHEETS = {
    "labels": (
        "名前：ミナ\n性格：明るい、おせっかい\n一人称: あたし\n年齢：17歳\n口ぐせ：「まかせて！」\n"
        "会話例：\nユーザー：おはよう\nミナ：おはよう！\n今日も焼きたてだよ",
        MINA,
    ),
    "headings": (
        "【名前】ミナ\n【性格】\n・明るい\n・おせっかい\n【一人称】あたし\n【年齢】17歳\n"
        "【口癖】まかせて！\n【会話例】\n> おはよう\nおはよう！\n今日も焼きたてだよ",
        MINA,
    ),
    "marks": (
        "■名前＝ミナ\n◆性格：明るい／おせっかい\n・一人称　：　あたし\n● 年齢：17歳\n"
        "1. 口ぐせ：まかせて！\n"
        "★会話例\nあなた：おはよう\nミナ：おはよう！\n今日も焼きたてだよ",
        MINA,
    ),
    "markdown": (
        "# Sheet\n## Name\nNova\n## Personality\n- brave\n- curious\n## Role\nCaptain\n## Age\n30",
        NOVA,
    ),
    "bold": (
        "- **Name**: Nova\n- **Personality:** brave, curious\n**Role:** Captain\nAge: 30",
        NOVA,
    ),
    "table": (
        "| Name | Nova |\n|---|---|\n| Personality | brave, curious |\n| Role | Captain |\n"
        "| Age | 30 |",
        NOVA,
    ),
    "w++": (
        '[Character("Nova")\n{\nPersonality("brave" + "curious")\nOccupation("Captain")\n'
        'Age("30")\n}]',
        NOVA,
    ),
    "one line": ("Name: Nova, Age: 30, Personality: brave, curious; Role: Captain", NOVA),
    "brackets": (
        '[Character: "Nova"; Role: Captain]\nPersonality: (brave; curious)\nAge: 30',
        NOVA,
    ),
    "w++ without a head": (
        '{\nName("Nova")\nPersonality("brave" + "curious")\nRole("Captain")\nAge("30")\n}',
        NOVA,
    ),
    "w++ on a line": (
        '[Character("Nova"){Personality("brave"+"curious")Job(“Captain”)Age("30")}]',
        NOVA,
    ),
}


@pytest.mark.parametrize(("text", "persona"), SHEETS.values(), ids=SHEETS)
def test_sheet_becomes_a_persona(text: str, persona: Persona) -> None:
    assert read_sheet(text).persona == persona
    assert read_sheet(text.replace("\n", "\r\n")).persona == persona


@pytest.mark.parametrize(("text", "persona"), SHEETS.values(), ids=SHEETS)
def test_sheet_in_a_file_is_the_same(text: str, persona: Persona) -> None:
    card = read_card(text.encode())
    assert map_card(card).persona == persona
    assert card.original == text.encode()


def test_rows_say_what_goes_where() -> None:
    rows = {row.source: row.target for row in read_sheet(SHEETS["labels"][0]).rows}
    assert rows == {
        "名前": "name",
        "性格": "personalities",
        "一人称": "first_person",
        "年齢": "background",
        "口ぐせ": "catchphrases",
        "会話例": "examples",
    }


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("ただの文章。港で働く。", "background", "ただの文章。港で働く。"),
        ("名前：ソラ\n背景：朝\n毎朝4:00に起きる。", "background", "朝\n毎朝4:00に起きる。"),
        ("Name: A\nLink: x\nhttps://example.com/a", "background", "Link: x\nhttps://example.com/a"),
        ("名前：リン\nセリフ：\n「うるさい」\n「…別に」", "examples",
         (Example("", "うるさい"), Example("", "…別に"))),
        ("Name: A\nGreeting: Hi!\nNote: be nice", "greeting", "Hi!\nNote: be nice"),
        ("名前：A\n話す言語：英語", "language", "en"),
        ("名前：カナ　性格：明るい　年齢：20歳", "background", "年齢：20歳"),
        ("Name: A\n禁止事項：\n- 敬語", "background", "禁止事項：\n- 敬語"),
        ("名前：A\n口調：一人称は「わたし」、語尾は「だよ」", "tones",
         ("一人称は「わたし」", "語尾は「だよ」")),
        ("Name: El\nGreeting: Hi, {{user}}! I'm {{char}}.", "greeting", "Hi, you! I'm El."),
        ("Name: El\nExamples:\n{{user}}: a\n{{char}}: b\n<START>\n{{user}}: c\n{{char}}: {{char}}",
         "examples", (Example("a", "b"), Example("c", "El"))),
        ("Name: A\n性別：女性", "gender", "女性"),
        ("名前\nハル\n性格\nのんびり", "name", "ハル"),
        ("名前：A\n性格：朝は弱い。夜は強い。", "personalities", ("朝は弱い。夜は強い。",)),
    ],
)  # fmt: skip
def test_sheet_field(text: str, field: str, value: Any) -> None:
    assert getattr(read_sheet(text).persona, field) == value


@pytest.mark.parametrize("text", [text for text, _ in SHEETS.values()])
def test_no_word_of_a_sheet_is_lost(text: str) -> None:
    plan = read_sheet(text + "\n\nAnd a last line, far away.")
    assert "And a last line, far away." in str(plan.persona.to_dict())


def test_pasted_card_is_read_as_a_card() -> None:
    plan = read_sheet(' {"name": "Bo", "first_mes": "Arr, {{user}}!"}')
    assert isinstance(plan, Plan)
    assert (plan.persona.name, plan.persona.greeting) == ("Bo", "Arr, you!")


@pytest.mark.parametrize("text", ["", " \n", "あ" * 200_001])
def test_wrong_sheet_gets_a_clear_error(text: str) -> None:
    with pytest.raises(CardError):
        read_sheet(text)


@pytest.mark.parametrize("demo", load_demos(ROOT / "data" / "personas.yaml"), ids=lambda d: d["id"])
def test_written_sheet_is_read_again(demo: dict[str, Any]) -> None:
    persona = Persona.validate({name: value for name, value in demo.items() if name != "id"})
    assert read_sheet(write_sheet(persona)).persona == persona
