"""Turns that a model writes for the user, and lines that only look like such turns."""

import pytest

from persona_lab.db.tables import Agent
from persona_lab.responses.processor import ResponseProcessor
from persona_lab.responses.user_turns import MAX_HELD_LENGTH

AGENT = Agent(name="さくら")
processor = ResponseProcessor()


def clean(text: str) -> str:
    """Return the finished text. It must be the same for a stream of characters."""
    whole = processor.process(text, AGENT).content
    stream = processor.open_stream(AGENT)
    assert "".join(map(stream.feed, text)) + stream.finish()[0] == whole
    return whole


@pytest.mark.parametrize(
    "text",
    [
        # lists
        "- 管理者：すべて\n- ユーザー：見るだけ\n- ゲスト：ログインだけ",
        "三つあるよ。\n\n- 管理者：すべて\n- ユーザー：見るだけ\n- ゲスト：なし\n\nわかった？",
        "権限は三つあるよ。\n- ユーザー：見るだけ\n- 管理者：すべて",
        "* **管理者：** すべて\n* **ユーザー：** 見るだけ\n* **ゲスト：** なし",
        "1. 管理者：すべて\n2. ユーザー：見るだけ\n3. ゲスト：なし",
        "・管理者：すべて\n・ユーザー：見るだけ\n・ゲスト：なし",
        "三つあるよ。\n管理者：すべて\nユーザー：見るだけ\nゲスト：なし",
        "三つあるよ。\nユーザー：見るだけ\n管理者：すべて\nゲスト：なし",
        "二つあるよ。\n\n管理者：すべて\n\nユーザー：見るだけ",
        "**管理者：** すべて\n**ユーザー：** 見るだけ\n**ゲスト：** なし",
        "使う人は次のとおりです。\n\nユーザー：見るだけの人",
        "使う人：\nユーザー：見るだけの人",
        "### 管理者\nすべて\n\n### ユーザー\n見るだけ\n\n### ゲスト\nなし",
        "役割は二つです。\n\n### User\n見るだけ。\n\n### Admin\nすべて。",
        "| 名前 | 権限 |\n|---|---|\n| ユーザー： | 見るだけ |\n| さくら： | 話す |",
        "- さくら：春の花\n- うめ：冬の花",
        "役割をまとめます。\nユーザー：質問する\nAI：答える\n管理者：見守る",
        # settings
        "User: deploy\nPort: 22",
        "接続の設定だよ。\n\nHost: web\nUser: deploy\nPort: 22",
        "接続の設定だよ。\n\nUser: deploy",
        "設定はこう。\nuser: deploy\nshell: /bin/bash\n\n以上！",
        "[server]\nuser: deploy\nport: 22",
        "services:\n  web:\n    user: deploy\n    image: nginx\n  User: root",
        'docker-composeだとこうかな。\nuser: "1000:1000"',
        "user:\n  name: taro\n  role: admin",
        "こう書くよ。\nuser:\n  name: taro\nuser:\n  name: jiro",
        "はい。\n```yaml\nname: app\nUser: deploy\nさくら: x\n```\n以上だよ。",
        "configに書くよ。\n\n```\nHost web\n  User: deploy\n```\n\nUser: のあとが名前。",
        "こうだよ。\n\n    User: deploy\n    Port: 22",
        # plays and examples
        "ユーザー：すみません\n店員：はい、なんでしょう\nユーザー：これをください\n店員：百円です",
        "いいよ、書いてみるね。\n\nユーザー：すみません\n店員：はい\nユーザー：これをください",
        "はい、どうぞ！\n\nユーザー：すみません\n店員：はい\n（店を見回す）\nユーザー：これをください",
        "会話の例だよ。\n\nユーザー：こんにちは\nさくら：こんにちは！\nユーザー：元気？\nさくら：うん！",
        "ユーザー：こんにちは\nさくら：こんにちは！\nユーザー：元気？",
        "例：\nUser: Hello\nAssistant: Hi!\nUser: Bye",
        "Here is a sample dialogue.\n\nUser: Hello\nSakura: Hi!\nUser: Bye",
        "どうぞ。\n\nさくら：これください\n店員：はい\nさくら：ありがとう",
        "> ユーザー：こんにちは\n> さくら：こんにちは！\n\nという会話だね。",
        "「こう言うんだ。\nユーザー：こんにちは\nさくら：こんにちは」",
        # the persona's name before its speech in a narration
        "（振り返る）\n\nさくら：「ありがとう」\n\n（笑う）\n\nさくら：「また来てね」",
        "さくら（振り返る）\n\nさくら：「ありがとう」\n\nさくら：「また来てね」",
        "（微笑む）\nさくら：こんにちは！\nさくら：元気？",
        "はい。\nさくら：こう見えて、強いんだよ。",
        "はい。\nさくら：春の花\nうめ：冬の花",
    ],
)
def test_text_stays_when_a_line_only_looks_like_a_turn(text: str) -> None:
    assert clean(text) == text


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("さくら：こんにちは！\nユーザー：ありがとう\nさくら：どういたしまして", "こんにちは！"),
        ("こんにちは！\nユーザー：ありがとう", "こんにちは！"),
        ("こんにちは！\n\nユーザー：", "こんにちは！"),
        ("ユーザー：やあ", ""),
        ("Hello!\nUser: How are you?\nAssistant: Fine.", "Hello!"),
        ("Hello!\n\nHuman: How are you?", "Hello!"),
        ("Hello!\nUser: hi\nさくら：hi", "Hello!"),
        ("はい。\nユーザー：\nありがとう\nさくら：ええ", "はい。"),
        ("はい。\nユーザー：ありがとう\nまた来ます\n\nさくら：ええ", "はい。"),
        ("はい。\nユーザー：ありがとう\nどういたしまして！\nユーザー：またね", "はい。"),
        ("はい。\n**ユーザー：** ありがとう\n**さくら：** ええ", "はい。"),
        ("はい。\n### User\nありがとう\n### Assistant\nええ", "はい。"),
        (
            "（笑う）\nさくら：こんにちは！\nユーザー：ありがとう\nさくら：うん",
            "（笑う）\nさくら：こんにちは！",
        ),
        (
            "三つ。\n- 管理者：全部\n- ユーザー：見るだけ\n\nユーザー：ありがとう\nさくら：うん",
            "三つ。\n- 管理者：全部\n- ユーザー：見るだけ",
        ),
        (
            "三つだよ。\n- 管理者：全部\n- ユーザー：見るだけ\n\nユーザー：ありがとう",
            "三つだよ。\n- 管理者：全部\n- ユーザー：見るだけ",
        ),
        (
            "どうぞ。\n```\nUser: deploy\n```\nユーザー：ありがとう\nさくら：うん",
            "どうぞ。\n```\nUser: deploy\n```",
        ),
        ("設定は自由だよ！\nユーザー：ありがとう\nさくら：うん", "設定は自由だよ！"),
        (
            "例えば、以下の花かな。春が待ち遠しいね！\nユーザー：うん\nさくら：ね",
            "例えば、以下の花かな。春が待ち遠しいね！",
        ),
    ],
)
def test_answer_ends_when_the_conversation_goes_on(text: str, answer: str) -> None:
    assert clean(text) == answer


def test_text_comes_at_once_when_a_label_is_refuted() -> None:
    stream = processor.open_stream(AGENT)
    assert stream.feed("三つあるよ。\nユーザー：見るだけ\n") == "三つあるよ。"
    assert stream.feed("ゲスト：なし\n") == "\nユーザー：見るだけ\nゲスト：なし"


def test_held_text_is_bounded() -> None:
    stream = processor.open_stream(AGENT)
    assert stream.feed("はい。\nユーザー：" + "長" * (MAX_HELD_LENGTH - 5)) == "はい。"
    assert len(stream.feed("長")) > MAX_HELD_LENGTH


@pytest.mark.parametrize(
    "text",
    [
        "【さくら】の開花予想",
        "【さくら】は春の花です。",
        "【さくら】はいつ咲くかな",
        "【さくら】とは、春の花だよ。",
        "【さくら】と【うめ】を比べるね。",
        "【さくら】って何？",
        "【さくら】さんは先生です。",
        "【さくら】",
        "【さくら】が咲いた！",
        "【さくら】を見に行こう",
        "【さくら】に似た花",
        "【さくら】、それは春。",
        "【さくら】・【うめ】",
        "【さくら】です！",
        "【さくら】だよ。",
        "【さくら】から届いたよ",
        "【さくら】も咲くよ。",
        "「さくら」は春の花です。",
        "**さくら**は春の花です。",
        "さくらの開花予想",
        "『さくら』の歌",
        "*さくら*が咲いた",
        "これは「さくら：春」だよ。",
        "さくら餅：春のお菓子",
        "[さくら](https://a.example/)",
        "【さくら】 の開花予想",
        "桜（さくら：春の花）だよ。",
    ],
)
def test_name_stays_when_the_sentence_goes_on(text: str) -> None:
    assert clean(text) == text


@pytest.mark.parametrize(
    "words",
    [
        "はい、元気です",
        "はーい",
        "はじめまして",
        "のんびりしよう",
        "では、始めます",
        "でも、いいよ",
        "とても元気です",
        "もちろん！",
        "にゃあ",
        "がんばって",
        "やあ",
        "やった！",
        "こんにちは",
        "（笑って）こんにちは",
        "「こんにちは」",
        "かしこまりました",
        "ときどきね",
        "\nこんにちは",
        "はい",
    ],
)
def test_name_in_brackets_goes_when_words_follow(words: str) -> None:
    assert clean(f"【さくら】{words}") == words.strip()
