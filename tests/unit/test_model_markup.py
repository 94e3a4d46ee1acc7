"""Thoughts of models, and tokens that begin or end a turn."""

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persona_lab.db.tables import Agent
from persona_lab.responses.changes import restore
from persona_lab.responses.model_markup import END_TOKENS, THOUGHTS, StripModelMarkup
from persona_lab.responses.processor import ResponseProcessor

AGENT = Agent(name="さくら")
processor = ResponseProcessor()


def clean(text: str, agent: Agent = AGENT, *, data: bool = False) -> str:
    """Return the finished text. It must be the same for a stream of characters."""
    whole = processor.open_stream(agent, data=data)
    content = whole.feed(text) + whole.finish()[0]
    stream = processor.open_stream(agent, data=data)
    assert "".join(map(stream.feed, text)) + stream.finish()[0] == content
    assert stream.changes() == whole.changes()
    if not whole.ended:
        assert restore(content, whole.changes()) == text
    return content


@pytest.mark.parametrize(("begin", "end"), THOUGHTS.items())
def test_thought_goes_when_it_is_closed(begin: str, end: str) -> None:
    for space in ("\n", " "):
        assert clean(f"{begin}{space}x{space}{end}\n\nさくら：こんにちは！") == "こんにちは！"
        assert clean(f"\n{begin}{space}{end}\nこんにちは！") == "こんにちは！"
    assert clean(f"{begin.upper()}ユーザーは挨拶した。{end.upper()}こんにちは！") == "こんにちは！"
    assert clean(f"{begin}\nユーザーは") == ""


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>\nx\n</think>\n\nさくら：こんにちは！", "こんにちは！"),
        ("さくら：<think>\nx\n</think>\n\nこんにちは！", "こんにちは！"),
        ("【さくら】<think>x</think>さくら：こんにちは！", "こんにちは！"),
        ("<think>はい、挨拶ですね。</think>はい、こんにちは！", "はい、こんにちは！"),
        ("<think>`<think>`を使う</think>\nこんにちは！", "こんにちは！"),
        ("<think>a</think><think>b</think>こんにちは！", "こんにちは！"),
        ("<think>a</think>ユーザーは三人だよ。", "ユーザーは三人だよ。"),
        ("<think>\n```\nx\n</think>\nこんにちは！", "こんにちは！"),
        # without an opening tag
        ("</think>\n\nこんにちは！", "こんにちは！"),
        ("Okay, the user says hello. I should greet.\n</think>\n\nこんにちは！", "こんにちは！"),
        ("ユーザーは挨拶した。返そう。\n</think>\n\nさくら：こんにちは！", "こんにちは！"),
        ("こんにちは！\n</think>\n", "こんにちは！"),
        # later in the answer
        ("こんにちは！\n\n<think>\n次は…\n</think>\n\n元気？", "こんにちは！\n\n元気？"),
        ("こんにちは！<think>次は天気</think>元気？", "こんにちは！元気？"),
        ("こんにちは！\n<think>\n次は天気の話を", "こんにちは！"),
        ("こんにちは！<think>", "こんにちは！"),
        # channels
        (
            "<|channel|>analysis<|message|>The user greets.<|end|><|start|>assistant"
            "<|channel|>final<|message|>こんにちは！<|return|>",
            "こんにちは！",
        ),
        (
            "<|channel|>analysis<|message|>a<|channel|>final<|message|>こんにちは！",
            "こんにちは！",
        ),
        (
            "<|start|>assistant<|channel|>final <|constrain|>json<|message|>こんにちは！",
            "こんにちは！",
        ),
        (
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary<|message|>b"
            "<|end|><|start|>assistant<|channel|>final<|message|>c",
            "c",
        ),
        ("analysisThe user greets.assistantfinalこんにちは！", "こんにちは！"),
        ("<|channel|>analysis<|message|>The user", ""),
        ("analysisThe user greets", ""),
    ],
)
def test_thought_goes_and_the_answer_stays(text: str, answer: str) -> None:
    assert clean(text) == answer


@pytest.mark.parametrize(
    "text",
    [
        "<think>タグとは、思考を囲む印だよ。",
        "<think>は思考の始まりだよ。",
        "<think>と</think>で囲むよ。",
        "<think>…</think>で囲まれた部分が思考だよ。",
        "<think></think>タグは空でもいいよ。",
        "<think> is a tag for thoughts.",
        "<think> tags hold thoughts.",
        "`<think>x</think>`と書くよ。",
        "```\n<think>\nx\n</think>\n答え\n```",
        "はい。\n```xml\n<think>x</think>\n```\nどうぞ。",
        "はい、「<think>」だよ。",
        "書き方はこう：\n<think>\nx\n</think>\n答え",
        "思考は<think>と</think>の間に書くよ。",
        "閉じるのは</think>だよ。",
        "思考タグはこれ。\n<think>\nx\n</think>",
        "ユーザーは三人だよ。\n\n- 一人目",
        "The user is you!",
        "analysis of the data",
        "用户",
        "a < b、c > d だよ。",
        "<3 だいすき",
        "(<|°_°|>)",
        "[笑] こんにちは",
        "<thinker>だよ",
        "I think so.",
        "<b>太字</b>だよ",
        "[TH",
        "<thi",
    ],
)
def test_text_stays_when_it_only_talks_about_thoughts(text: str) -> None:
    assert clean(text) == text


@pytest.mark.parametrize(
    "token",
    [
        *END_TOKENS,
        "<|im_end|>",
        "<|eot_id|>",
        "<|end|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|return|>",
        "<｜end▁of▁sentence｜>",
        "<|END_OF_TURN_TOKEN|>",
        "<|eom_id|>",
        "<|EOT|>",
        "<|user|>",
    ],
)
def test_end_token_goes_when_the_answer_ends(token: str) -> None:
    assert clean(f"こんにちは！{token}") == "こんにちは！"
    assert clean(f"こんにちは！{token}\n") == "こんにちは！"
    assert clean(f"こんにちは\n{token} \n\n") == "こんにちは"
    assert clean(f"- 一つ\n- 二つ{token}") == "- 一つ\n- 二つ"
    assert clean(f"こんにちは！{token}{token}") == "こんにちは！"
    assert clean(f"こんにちは！{token}\nユーザー\nありがとう") == "こんにちは！"
    assert clean(f"こんにちは！{token}<|im_start|>user\nありがとう") == "こんにちは！"
    assert clean(f'{{"a": 1}}{token}', data=True) == '{"a": 1}'


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<|im_start|>assistant\nこんにちは！<|im_end|>", "こんにちは！"),
        ("<|im_start|>assistant\n<think>\nx\n</think>\n\nさくら：こんにちは！", "こんにちは！"),
        ("<|im_start|>さくら\nこんにちは！", "こんにちは！"),
        ("<start_of_turn>model\nこんにちは！<end_of_turn>", "こんにちは！"),
        ("<|start_header_id|>assistant<|end_header_id|>\n\nこんにちは！<|eot_id|>", "こんにちは！"),
        ("<|assistant|>\nこんにちは！<|end|>", "こんにちは！"),
        ("[/INST] こんにちは！</s>", "こんにちは！"),
        ("こんにちは！<|im_end|>\n<|im_start|>user\nありがとう<|im_end|>", "こんにちは！"),
        ("こんにちは！\n<start_of_turn>user\nありがとう", "こんにちは！"),
        ("こんにちは！<start_of_turn>user\nありがとう", "こんにちは！"),
        ("こんにちは！<end_of_turn>\n<start_of_turn>model\nまた", "こんにちは！"),
        ("こんにちは！<|im_start|>assistant", "こんにちは！"),
        ("こんにちは！<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nや", "こんにちは！"),
        ("こんにちは！\n[INST] 次は？ [/INST] ええ", "こんにちは！"),
        ("こんにちは！<|im_en", "こんにちは！"),
        ("ハッシュタグもつけてね！<|im_end|>", "ハッシュタグもつけてね！"),
        ("```\nx\n```\nどうぞ。<|im_end|>", "```\nx\n```\nどうぞ。"),
    ],
)
def test_turn_tokens_go(text: str, answer: str) -> None:
    assert clean(text) == answer


@pytest.mark.parametrize(
    "text",
    [
        "`<|im_end|>`は終了トークンです",
        "「`<|im_end|>`は終了トークンです」",
        "<|im_end|>は終わりの印だよ。",
        "終わりの印は<|im_end|>です。",
        "終わりの印は「<|im_end|>」",
        "終了トークンは<|im_end|>",
        "特殊なトークンがあるよ。\n<|im_start|>user\nこんにちは<|im_end|>",
        "```\nこんにちは<|im_end|>\n```",
        "```\n<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n```\nこう書くよ。",
        "- <|im_end|>\n- <|im_start|>",
        "| 印 | 意味 |\n|---|---|\n| <|im_end|> | 終わり |",
        "終わり：<|im_end|>\n始まり：<|im_start|>",
        "<s>百円</s>",
        "特価<s>百円</s>",
        "特価<s>百円</s>\n八十円",
        "<s>百円</s>八十円だよ",
        "The <|im_end|> token ends a turn.",
        "<|im_start|>は始まりの印だよ。",
        "`</s>`",
        "    <|im_end|>\nだよ",
    ],
)
def test_text_stays_when_it_only_talks_about_tokens(text: str) -> None:
    assert clean(text) == text.strip()


def test_json_keeps_thoughts_in_its_texts() -> None:
    text = '{"a": "はい！<think>x</think>"}'
    assert clean(text, data=True) == text
    assert clean(f"<think>\nx\n</think>\n{text}", data=True) == text


def test_text_is_returned_at_once_when_nothing_is_markup() -> None:
    stream = processor.open_stream(AGENT)
    assert [
        stream.feed(text) for text in ("<think>\nx\n</think>\n", "こん", "にちは", "！<", "3")
    ] == ["", "こん", "にちは", "！", "<3"]


def test_stream_ends_when_an_end_token_ends_the_line() -> None:
    stream = processor.open_stream(AGENT)
    stream.feed("こんにちは！<|im_end|>")
    assert not stream.ended
    stream.feed("\n")
    assert stream.ended


PIECES = [
    "<think>",
    "</think>",
    "[THINK]",
    "[/THINK]",
    "\n",
    "x",
    "こんにちは！",
    "さくら：",
    "タグ",
    "は",
    "<|im_end|>",
    "<|im_start|>",
    "user",
    "assistant",
    "<|channel|>",
    "analysis",
    "final",
    "<|message|>",
    "<|end|>",
    "<|start|>",
    "</s>",
    "<s>",
    "[INST]",
    "[/INST]",
    "`",
    "```",
    "- ",
    " ",
    "：",
    "<",
    "|",
    "Okay, the user",
    "ユーザーは",
    "<start_of_turn>",
    "model",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "{",
    "assistantfinal",
    "T",
    "ß",
    "İ",
    "トークン",
]


@given(
    st.lists(st.sampled_from(PIECES), max_size=20).map("".join),
    st.lists(st.integers(0, 200), max_size=12),
)
def test_markup_does_not_depend_on_the_cuts(text: str, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    streams = [StripModelMarkup(AGENT) for _ in range(2)]
    pieces = [streams[0].feed(text[a:b]) for a, b in itertools.pairwise(edges)]
    streamed = "".join([*pieces, streams[0].finish()])
    whole = streams[1].feed(text) + streams[1].finish()
    assert streamed == whole
    read = text[: streams[1].consumed]
    edits = streams[1].edits(read, whole)
    kept = "".join(
        read[a:b]
        for a, b in itertools.pairwise([0, *(at for e in edits for at in e[:2]), len(read)])
    )
    removed = "".join(read[edit.start : edit.end] for edit in edits)
    assert len(whole) + len(removed) == len(read) == len(kept)
    position, rebuilt = 0, ""
    for edit in edits:
        rebuilt += read[position : edit.start]
        position = edit.end
    assert rebuilt + read[position:] == whole


@pytest.mark.parametrize(
    "text", ["<", "<|a", "<think>", "`<", "[", "\n<think>", "</s>x", "u\n<|im_start|>"]
)
def test_markup_takes_linear_time(text: str) -> None:
    began = time.process_time()
    processor.process("u" + text * 4_000, AGENT)
    assert time.process_time() - began < 3
