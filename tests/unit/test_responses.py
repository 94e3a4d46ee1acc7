import itertools
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from persona_lab.answer_text.speaker_labels import USER_LABELS
from persona_lab.db.tables import Agent
from persona_lab.redaction import MASK, redact
from persona_lab.responses.changes import FALLBACK_STEP, changed_sentences, restore
from persona_lab.responses.cleanup import LAST_STEPS, STEPS
from persona_lab.responses.filters import Filter, Step
from persona_lab.responses.processor import ResponseProcessor
from persona_lab.responses.secret_filter import RedactSecrets
from persona_lab.unicode_text import to_storable

AGENT = Agent(name="さくら")
processor = ResponseProcessor()

PIECES = [
    "さくら", "：", ":", "ユーザー", "ユーザー：", "User:", "\n", "\n\n", "\n\n\n", " ", "　", "\t",
    "```", "```py", "~~~", "````", "**", "【", "】", "##", "こんにちは。", "a", "\r\n", "\r",
    "\x00", "\ud800", "`", "US",
    "**さくら**：", "\nさくら：", "**User:**", "- ", "1. ", "  ", "    ", "\n   ```", "\n```",
    "~~~~", "> ", "*",
    "<think>", "</think>", "<|im_end|>", "<|im_start|>user", "</s>", "[/INST]", "<", "|", "タグ",
    "<|channel|>analysis<|message|>", "<|end|>", "<|start|>assistant", "店員：", "！", "の", "は",
    "Okay, the user", "ユーザーは", "「", "」", "\n- ", "例：",
    "*さくら*", "_", "『さくら』", "【さくら】", "\u200b", "### User", "<|user|>", "Ｕ",
]  # fmt: skip
texts = st.one_of(st.lists(st.sampled_from(PIECES), max_size=25).map("".join), st.text(max_size=60))


def final(text: str, agent: Agent = AGENT) -> str:
    return processor.process(text, agent).content


@given(texts, st.lists(st.integers(0, 200), max_size=12))
@example("さくら：はい\n\n\n\nユーザー：え", [1, 2, 3, 9, 10])
def test_the_final_text_and_the_steps_applied_do_not_depend_on_the_cuts(
    text: str, cuts: list[int]
) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    stream = processor.open_stream(AGENT)
    streamed = "".join(stream.feed(text[a:b]) for a, b in itertools.pairwise(edges))
    rest, applied = stream.finish()
    whole = processor.process(text, AGENT)
    assert (streamed + rest, applied) == (whole.content, whole.applied)


@given(texts)
def test_no_more_than_one_blank_line_stands_outside_code(text: str) -> None:
    blank = 0
    for line in final(text).split("\n"):
        if "```" in line or "~~~" in line:
            return  # what holds within and after code is shown by examples below
        blank = 0 if line.strip() else blank + 1
        assert blank < 2


@given(texts)
def test_nothing_stands_around_the_answer(text: str) -> None:
    assert final(text) == final(text).strip()


def test_an_answer_that_needs_nothing_is_left_alone() -> None:
    text = "はい。\n\n- 一つ\n- 二つ\n\n```py\nx = 1\n\n\n\ny = 2\n```\n\nどうぞ: さくら餅"
    done = processor.process(text, AGENT)
    assert (done.content, done.applied) == (text, ())


@pytest.mark.parametrize(
    "raw",
    ["さくら：こんにちは", "さくら: こんにちは",
     "さくら　：こんにちは", "さくら: さくら: こんにちは", "さくら：\n\nさくら：こんにちは",
     "*さくら*：こんにちは", "__さくら__:こんにちは",
     "## さくら：こんにちは", "### さくら\nこんにちは",
     "『さくら』：こんにちは", "\ufeffさくら：こんにちは", "【さくら】こんにちは",
     "＊さくら＊：こんにちは",
     "\n さくら ：　こんにちは", "**さくら**：こんにちは",
     "**さくら：** こんにちは", "【さくら】：こんにちは", "「さくら」: こんにちは"],
)  # fmt: skip
def test_the_personas_own_name_before_its_words_goes(raw: str) -> None:
    done = processor.process(raw, AGENT)
    assert done.content == "こんにちは"
    assert "leading_name" in done.applied


@pytest.mark.parametrize("raw", ["さくらです：はい", "さくら、来たよ", "さくら", "さく"])
def test_a_name_that_is_part_of_the_words_stays(raw: str) -> None:
    assert final(raw) == raw


def test_a_persona_without_a_name_loses_no_colon() -> None:
    assert final(": はい", Agent(name="")) == ": はい"


@pytest.mark.parametrize("label", [*USER_LABELS, "さくら", "user", "**User**", "### User"])
@pytest.mark.parametrize("colon", [":", "："])
def test_the_answer_ends_where_another_turn_begins(label: str, colon: str) -> None:
    done = processor.process(f"はい。\n\n{label}{colon}次は？\nさくら：ええ", AGENT)
    assert done.content == "はい。"
    assert "spoken_for_user" in done.applied


@pytest.mark.parametrize(
    "label",
    ["Ｕｓｅｒ：", "User　：", "### User\n", "<|user|>", "<|im_start|>user\n", "- User:", "*User*:",
     "* User:", "\u200bUser:", "\u2028User:", "＊＊ユーザー＊＊："],
)  # fmt: skip
def test_no_disguise_lets_the_model_speak_for_the_user(label: str) -> None:
    assert final(f"はい。\n{label}次は？\nさくら：ええ") == "はい。"
    assert final(f"画面に {label}").startswith("画面に")


def test_a_line_that_is_a_name_alone_and_a_first_line_that_explains_one_stay() -> None:
    for text in (
        "はい。\nUser",
        "- User: 使う人\n- 次",
        "*User*: 使う人",
        "はい。\n## ユーザー\n管理",
    ):
        assert final(text) == text


@pytest.mark.parametrize("text", ["a\n", " ", "*", "ユ\n", "#"])
def test_no_beginning_makes_it_slow(text: str) -> None:
    began = time.process_time()
    processor.process("u" + text * 20_000, AGENT)
    assert time.process_time() - began < 3


def test_the_model_can_be_stopped_once_it_speaks_for_the_user() -> None:
    stream = processor.open_stream(AGENT)
    stream.feed("はい。\nユーザー：ありがとう\nさくら")
    assert not stream.ended
    stream.feed("：")
    assert stream.ended


def test_a_label_within_a_line_or_within_code_ends_nothing() -> None:
    text = "画面に ユーザー：と出ます\n```\nUser: root\n```\n終わり"
    assert final(text) == text


def test_text_is_given_out_while_it_comes() -> None:
    stream = processor.open_stream(AGENT)
    assert stream.feed("こんに") == "こんに"
    assert stream.feed("ちは\n") == "ちは"
    assert stream.feed("\n\n\nでは") == "\n\nでは"


@pytest.mark.parametrize(
    ("raw", "closed"),
    [
        ("```py\nx = 1\n", "```py\nx = 1\n```"),
        ("~~~~\nx", "~~~~\nx\n~~~~"),
        ("````\n```\nx", "````\n```\nx\n````"),
        ("```\nx\n```\nはい", "```\nx\n```\nはい"),
        ("``` はい ``` です", "``` はい ``` です"),
        # of the same kind, and as long at least
        ("~~~\n```\nx", "~~~\n```\nx\n~~~"),
        ("```\n~~~\nx", "```\n~~~\nx\n```"),
        ("`````\n````\nx\n``````\nはい", "`````\n````\nx\n``````\nはい"),
        ("```\nx\n``` py\ny", "```\nx\n``` py\ny\n```"),
        ("```\nx\n``` `\ny", "```\nx\n``` `\ny\n```"),
        ("```\nx\n```　\ny", "```\nx\n```　\ny\n```"),
        ("~~~ a`b\nx", "~~~ a`b\nx\n~~~"),
        ("```\r\nx\r\n```\rはい", "```\nx\n```\nはい"),
        # in lists
        ("- 一\n  ```py\n  x", "- 一\n  ```py\n  x\n  ```"),
        ("1. 一\n   ```py\n   x\n   ```\nはい", "1. 一\n   ```py\n   x\n   ```\nはい"),
        ("1. 一\n\n    ```py\n    x", "1. 一\n\n    ```py\n    x\n   ```"),
        ("- 一\n  - 二\n      ~~~~\n      x", "- 一\n  - 二\n      ~~~~\n      x\n    ~~~~"),
        (
            "- 一\n  - 二\n    ```\n    x\n    ```\nはい",
            "- 一\n  - 二\n    ```\n    x\n    ```\nはい",
        ),
        ("- ```py\n  x", "- ```py\n  x\n  ```"),
        ("- 1. ```\n     x", "- 1. ```\n     x\n     ```"),
        ("10. 十\n\t```\n\tx", "10. 十\n\t```\n\tx\n    ```"),
        ("- 一\n\n  ```\n\n  x", "- 一\n\n  ```\n\n  x\n  ```"),
        # its item ends, and the block with it
        ("- 一\n  ```\n  x\n\n終わり", "- 一\n  ```\n  x\n\n終わり"),
        ("- 一\n  ```\n  x\n- 二", "- 一\n  ```\n  x\n- 二"),
        ("- 一\n  ```\n  x\n```", "- 一\n  ```\n  x\n```\n```"),
        ("- 一\n\n終わり\n\n```\nx", "- 一\n\n終わり\n\n```\nx\n```"),
        # indented further it is no fence, and closes none
        ("はい\n    ```\nx", "はい\n    ```\nx"),
        ("```md\n- 一\n    ```py\n    ```", "```md\n- 一\n    ```py\n    ```\n```"),
        ("-     ```\nx", "-     ```\nx"),
        ("**太字**\n```\nx", "**太字**\n```\nx\n```"),
        ("---\n```\nx", "---\n```\nx\n```"),
        ("> ```\n> x", "> ```\n> x"),
    ],
)
def test_an_open_block_of_code_is_closed(raw: str, closed: str) -> None:
    assert final(raw) == closed


def test_blank_lines_within_code_of_a_list_stay() -> None:
    text = "- 一\n\n  ```\n  x\n\n\n\n  y\n  ```\n\nはい"
    assert final(text) == text


@given(texts)
def test_a_finished_answer_has_nothing_left_to_close(text: str) -> None:
    closing = ResponseProcessor(steps=LAST_STEPS)
    closed = closing.process(text, AGENT).content
    assert closing.process(closed, AGENT).content == closed


def test_blank_lines_after_code_are_counted_from_its_end() -> None:
    assert final("```\nx\n```\n\n\n\nはい") == "```\nx\n```\n\nはい"


def test_what_cannot_be_stored_goes_before_any_step() -> None:
    stream = processor.open_stream(AGENT, [KEY])
    told = stream.feed("a\x00b\x1b\x85c\ud800d\te\r") + stream.feed(f"\nf{KEY[:9]}\x00{KEY[9:]}")
    assert told + stream.finish()[0] == f"abcd\te\nf{MASK}"


def test_steps_can_be_chosen() -> None:
    assert ResponseProcessor(steps=[]).process("  a  ", AGENT).content == "  a  "


# ── secrets ───────────────────────────────────────────────────────────────────────────────

KEY = "sk-0123456789abcdef"


@given(
    st.lists(st.sampled_from([KEY, KEY[:5], KEY[:12], "s", "sk-", "はい", "\n"])).map("".join),
    st.lists(st.integers(0, 200), max_size=12),
)
@example(f"鍵は{KEY}です", [4, 9])
def test_a_secret_is_hidden_wherever_the_stream_is_cut(text: str, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    streams = [processor.open_stream(AGENT, [KEY]) for _ in range(2)]
    pieces = [streams[0].feed(text[a:b]) for a, b in itertools.pairwise(edges)]
    streamed = "".join([*pieces, streams[0].finish()[0]])
    assert streamed == streams[1].feed(text) + streams[1].finish()[0]
    assert KEY not in streamed


def test_a_large_chunk_is_searched_for_secrets_in_the_time_of_its_length() -> None:
    began = time.process_time()
    stream = RedactSecrets([KEY])
    assert stream.feed("a" * 50_000 + " ") == "a" * 50_000 + " "
    assert time.process_time() - began < 1


def test_most_of_a_secret_at_the_end_is_hidden_and_the_rest_stays() -> None:
    stream = processor.open_stream(AGENT, [KEY])
    assert stream.feed(f"sk です。{KEY}、{KEY[:16]}") == "sk です。••••••、"
    assert stream.finish() == ("••••••", ("hidden_secrets",))


@pytest.mark.parametrize("known", [1, 8, 12])
def test_whoever_tries_letters_learns_nothing_of_a_secret(known: int) -> None:
    """The right next letter and a wrong one are treated alike, in mid-stream and at the end."""
    seen = []
    for guess in (KEY[: known + 1], KEY[:known] + "~"):
        stream = processor.open_stream(AGENT, [KEY])
        pieces = [len(stream.feed(letter)) for letter in f"言う {guess}"]
        text, applied = stream.finish()
        seen.append((pieces, len(text), applied))
    assert seen[0] == seen[1]


def test_a_word_that_a_server_takes_for_a_key_stays_a_word() -> None:
    assert redact("none of ollama", ["none", "ollama", ""]) == "none of ollama"
    assert "SECRET" not in redact("KEY-SECRET-1 key-Secret-1", ["key-secret-1"]).upper()


# ── raw and changes ──


class _Shout(Filter):
    """A step that doesn't note its edits."""

    def feed(self, text: str) -> str:
        return text.upper().replace("US", "")


@given(texts, st.lists(st.integers(0, 200), max_size=12))
@example("さくら：はい\n\n\n\nユーザー：え", [1, 2, 3, 9, 10])
def test_changes_give_the_raw_text_for_every_cut(text: str, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    stream = processor.open_stream(AGENT)
    streamed = ""
    for a, b in itertools.pairwise(edges):
        streamed += stream.feed(text[a:b])
        if stream.ended:
            break
    streamed += stream.finish()[0]
    whole = processor.process(text, AGENT)
    assert stream.changes() == whole.changes
    assert restore(streamed, stream.changes()) == whole.raw
    if not stream.ended:
        assert whole.raw == to_storable(text)
    assert to_storable(text).startswith(whole.raw)


@given(st.text("aUSb\n ", max_size=40))
def test_changes_are_compared_when_a_step_notes_none(text: str) -> None:
    shouting = ResponseProcessor([Step("shout", lambda _: _Shout()), *STEPS, *LAST_STEPS])
    processed = shouting.process(text, AGENT)
    assert restore(processed.content, processed.changes) == processed.raw == text


@given(st.text("aUSb\n ", max_size=40))
def test_changes_keep_nothing_that_a_masking_step_removed(text: str) -> None:
    hiding = ResponseProcessor([Step("hide", lambda _: _Shout(), masks=True)])
    changes = hiding.process(text, AGENT).changes
    assert all(change.was == MASK and change.step == "hide" for change in changes)
    assert bool(changes) == (text != text.upper().replace("US", ""))


def test_changes_name_the_step_and_the_span() -> None:
    processed = processor.process("さくら：はい。\n\n\n\n```\ncode\nユーザー：", AGENT)
    assert [change.as_dict() for change in processed.changes] == [
        {"start": 0, "end": 0, "was": "さくら：", "step": "leading_name"},
        {"start": 5, "end": 5, "was": "\n\n", "step": "blank_lines"},
        {"start": 19, "end": 23, "was": "", "step": "close_fence"},
    ]


def test_changes_are_empty_when_nothing_changed() -> None:
    processed = processor.process("はい。", AGENT)
    assert (processed.changes, processed.raw) == ((), "はい。")


@pytest.mark.parametrize(
    ("text", "raw"),
    [
        (f"a {KEY} b {KEY.upper()} c", f"a {MASK} b {MASK} c"),
        (f"a {KEY[:-2]}", f"a {MASK}"),
        (f"さくら： {KEY}\n\n\n\nx", f"さくら： {MASK}\n\n\n\nx"),
        (f"{MASK} and {KEY}", f"{MASK} and {MASK}"),
    ],
)
def test_changes_mask_a_secret(text: str, raw: str) -> None:
    stream = processor.open_stream(AGENT, [KEY])
    content = "".join(map(stream.feed, text)) + stream.finish()[0]
    changes = stream.changes()
    assert restore(content, changes) == raw
    assert "hidden_secrets" in [change.step for change in changes]
    assert not any(KEY[:6].lower() in change.was.lower() for change in changes)


def test_changes_of_a_long_text_are_quick() -> None:
    text = "さくら：" + "あ\n\n\n\n" * 20_000
    stream = processor.open_stream(AGENT)
    stream.feed(text)
    stream.finish()
    began = time.process_time()
    assert len(stream.changes()) == 20_001
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    ("content", "changes", "expected"),
    [
        ("はい。雨です。傘だ。", [(4, 6, "だ")], [(3, 7, "雨だ。")]),
        ("思いますけど、行きます。", [(1, 4, "う"), (8, 11, "く")], [(0, 12, "思うけど、行く。")]),
        ("雨です。傘です。", [(1, 3, "だ"), (5, 7, "だ")], [(0, 4, "雨だ。"), (4, 8, "傘だ。")]),
        ("雨です！？", [(1, 3, "だ")], [(0, 5, "雨だ！？")]),
        ("はい。", [(0, 0, "さくら：")], [(0, 3, "さくら：はい。")]),
        ("雨です", [(1, 3, "だ")], [(0, 3, "雨だ")]),
        ("雨です。", [(0, 0, " \n")], []),
    ],
)
def test_changed_sentences_are_whole_sentences(
    content: str, changes: list[tuple[int, int, str]], expected: list[tuple[int, int, str]]
) -> None:
    stored = [dict(zip(("start", "end", "was"), change, strict=True)) for change in changes]
    found = changed_sentences(content, [change | {"step": "tone"} for change in stored])
    assert [tuple(sentence) for sentence in found] == expected


def test_text_that_was_added_to_an_answer_is_no_changed_sentence() -> None:
    change = {"start": 3, "end": 9, "was": "", "step": FALLBACK_STEP}
    assert changed_sentences("雨だ。すみません。", [change]) == []
