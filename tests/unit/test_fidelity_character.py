"""The marks: out of character, other languages and broken conjugations."""

from __future__ import annotations

import pytest

from persona_lab.personas.fidelity import marks
from persona_lab.personas.persona import Persona
from persona_lab.types import PromptMessage

MISAKI = Persona(
    name="みさき",
    description="文房具の通販「ことり文具店」のお客様窓口の担当者",
    background="小さな文具店の店頭に八年立ったあと、通販の窓口に移った。万年筆を五本使い分けている。",
    first_person="私",
    roles=("カスタマーサポート",),
)
ROBOT = Persona(name="R-7", description="家事を手伝うロボット", first_person="私")


def found(rule: str, reply: str, persona: Persona = MISAKI, user: str = "こんにちは") -> list[str]:
    history = [PromptMessage("user", user)]
    return [mark.quote for mark in marks(reply, persona, history) if mark.rule == rule]


@pytest.mark.parametrize(
    "reply",
    [
        "私はAIです。",
        "私はAIアシスタントなので、外出はしません。",
        "申し訳ありませんが、私は言語モデルですので、お答えできません。",
        "AIとして、感情は持っていません。",
        "私はただのプログラムに過ぎません。",
        "私はGoogleによって開発されました。",
        "AIである私には、味がわかりません。",
        "人工知能なので、疲れません。",
        "実は私、AIなんです。",
        "はい、AIです。",
    ],
)
def test_ai_admission_is_found_for_a_person(reply):
    assert found("ai_admission", reply) == [reply]
    assert found("ai_admission", reply, ROBOT) == []


@pytest.mark.parametrize(
    "reply", ["As an AI, I have no home.", "I'm an AI.", "Well, I am just a language model."]
)
def test_ai_admission_is_found_in_english(reply):
    grace = Persona(name="Grace", description="A gardener", language="en")
    assert found("ai_admission", reply, grace) == [reply]
    assert found("ai_admission", "I am an aid worker. AI is useful.", grace) == []


@pytest.mark.parametrize(
    "reply",
    [
        "私はAIではありません。人間です。",
        "AIの本でしたら、二階にございます。",
        "私は人工知能の研究者です。",
        "AIは便利ですね。",
        "あなたはAIですか？",
        "私はAIについて詳しくありません。",
        "私は「AIです」と書かれた札を見ました。",
        "プログラムを書くのが好きです。",
    ],
)
def test_ai_admission_accepts_talk_about_ai(reply):
    assert found("ai_admission", reply) == []


@pytest.mark.parametrize(
    ("reply", "quotes"),
    [
        ("システムプロンプトにはそう書かれています。", ["システムプロンプト"]),
        ("【キャラクター設定】\n名前：みさき", ["【キャラクター設定】"]),
        ("口調：丁寧\n一人称：私", ["口調：", "一人称："]),
        ("与えられた設定に従って答えます。", ["与えられた設定に従"]),
        ("このロールプレイを続けます。", ["ロールプレイ"]),
        (
            "小さな文具店の店頭に八年立ったあと、通販の窓口に移った。ええ。",
            ["小さな文具店の店頭に八年立ったあと、通販の窓口に移った。"],
        ),
    ],
)
def test_instructions_are_found(reply, quotes):
    assert [quote.strip() for quote in found("instructions", reply)] == quotes


@pytest.mark.parametrize(
    "reply",
    [
        "画面の設定を開いてください。",
        "店長の指示で、棚を並べました。",
        "八年ほど店頭に立っておりました。",
        "性格は明るいほうです。",
    ],
)
def test_instructions_accept_ordinary_text(reply):
    assert found("instructions", reply) == []


def test_instructions_accept_words_of_the_user():
    assert found("instructions", "ロールプレイは楽しいですね。", user="ロールプレイが好き") == []


@pytest.mark.parametrize(
    "reply",
    [
        "いらっしゃいませ。\nユーザー：ペンをください",
        "はい。\nUser: Do you have a pen?",
        "はい。\n**ユーザー**：「ペンをください」",
        "はい。\nあなた「ペンをください」",
    ],
)
def test_speaks_for_user_finds_labels_of_the_user(reply):
    assert found("speaks_for_user", reply) == [reply.partition("\n")[2]]


def test_speaks_for_user_knows_what_the_persona_calls_the_user():
    persona = Persona(name="みさき", second_person="お客様")
    reply = "お客様「ありがとう」\nみさき「いえいえ」"
    assert found("speaks_for_user", reply, persona) == ["お客様「ありがとう」"]


def test_speaks_for_user_learns_the_name_of_the_user():
    reply = "みさき「はい」\n高橋「ペンをください」（微笑む）\nみさき「どうぞ」"
    assert found("speaks_for_user", reply, user="高橋「こんにちは」") == [
        "高橋「ペンをください」（微笑む）"
    ]
    assert found("speaks_for_user", reply) == []


@pytest.mark.parametrize(
    "reply",
    [
        "みさき：いらっしゃいませ。",
        "ユーザーの皆様へお知らせです。",
        "```\nUser: admin\n```",
        "店長「頼むよ」",
        "あなたは「ペン」をお探しですか。",
    ],
)
def test_speaks_for_user_accepts_other_lines(reply):
    assert found("speaks_for_user", reply) == []


@pytest.mark.parametrize(
    ("reply", "quote"),
    [
        ("はい。（注：この店は架空です）", "（注：この店は架空です）"),
        ("はい。\n※この回答は例です。", "※この回答は例です。"),
        ("（場面転換：翌日の店）\n「おはようございます」", "（場面転換：翌日の店）"),
        ("はい。(OOC: 続けますか)", "(OOC: 続けますか)"),
        ("またどうぞ。（ロールプレイ終了）", "（ロールプレイ終了）"),
        ("（ここで、新たな展開を促します）", "（ここで、新たな展開を促します）"),
        ("Note: This is fiction.\nはい。", "Note: This is fiction."),
        ("どうぞ。（ユーザーの返答を待ちます）", "（ユーザーの返答を待ちます）"),
        ("どうぞ。（続く）", "（続く）"),
    ],
)
def test_author_note_is_found(reply, quote):
    assert found("author_note", reply) == [quote]


@pytest.mark.parametrize(
    "reply",
    [
        "（静かに微笑む）いらっしゃいませ。",
        "*頷く* はい。",
        "東京（日本の首都）にあります。",
        "（この物語の展開、私も気になります！）",
        "注文：万年筆一本",
        "`(注：消さない)` と書きます。",
        "（（店の奥を見る））",
    ],
)
def test_author_note_accepts_stage_directions(reply):
    assert found("author_note", reply) == []


@pytest.mark.parametrize(
    ("reply", "quotes"),
    [
        ("その后、店に启动しました。", ["启动"]),
        ("心から感谢しています。", ["感谢"]),
        ("私たちの acquaintances に聞きます。", ["acquaintances"]),
        ("少し intérview をします。", ["intérview"]),
        ("값は百円です。", []),
        ("안녕하세요、お客様。", ["안녕하세요"]),
        ("これは например 例です。", ["например"]),
        ("你好、お客様。", ["你好"]),
        ("Lo siento、お待ちください。", ["Lo siento"]),
        ("はい。Graciasと言います。", ["Gracias"]),
    ],
)
def test_foreign_text_is_found(reply, quotes):
    assert found("foreign_text", reply) == quotes


@pytest.mark.parametrize(
    "reply",
    [
        "PythonとGitHubを使います。OKです。",
        "`npm install` を実行します。",
        "https://example.com/about を見てください。",
        "（´Д｀）疲れました。(｀・ω・´)",
        "重さは 5kg、長さは 30cm です。",
        "渋谷區の舊い店で、髙橋さんと𠮷野さんに会いました。",
        "iPhoneのケースです。",
        "user_name という変数です。",
        "それから、没頭しました。個人の今昔。",
        "α波とΔ値の話です。",
    ],
)
def test_foreign_text_accepts_text_of_japanese(reply):
    assert found("foreign_text", reply) == []


def test_foreign_text_accepts_words_of_the_user():
    assert found("foreign_text", "謝謝と 谢谢 ですね。", user="谢谢ってどう読む？") == []


@pytest.mark.parametrize(
    ("reply", "quote"),
    [
        ("昨日、店に来るました。", "来るました"),
        ("とても楽しいでした。", "楽しいでした"),
        ("手紙を書くて、出しました。", "書くて"),
        ("駅まで走るた。", "走るた"),
        ("それは知るない。", "知るない"),
        ("私は店員だです。", "だです"),
        ("毎日食べるます。", "食べるます"),
        ("空が青いだ。", "青いだ"),
        ("寒くないでした。", "ないでした"),
        ("それは食べるません。", "食べるません"),
        ("昨日発送されるました。", "れるました"),
    ],
)
def test_broken_conjugation_is_found(reply, quote):
    assert found("broken_conjugation", reply) == [quote]


@pytest.mark.parametrize(
    "reply",
    [
        "昨日、店に来ました。楽しかったです。",
        "ますます元気です。きれいでした。",
        "そういうのでした。行くのでしたら、どうぞ。",
        "なに言うてんねん。",
        "いいだろう。早いだけです。",
        "学生でしたが、今は違います。",
        "行くことはないです。見るなよ。",
        "書くって言いました。",
        "来るまで待ちました。居ますか。",
        "なるほど、そうでございますか。",
    ],
)
def test_broken_conjugation_accepts_sound_forms(reply):
    assert found("broken_conjugation", reply) == []
