"""How messages of any order and kind become a conversation of text."""

from __future__ import annotations

import json
from typing import Any

import pytest

from persona_lab.errors import InvalidRequest, MessageTooLong
from persona_lab.pipeline.input import InputValidator
from persona_lab.server.openai_messages import ChatMessage, conversation, drop_attachments
from persona_lab.settings import ROOT
from persona_lab.translations import Translations

WORDS = Translations(ROOT / "templates" / "openai_api.yaml")
HEARD, OPENING, GO_ON = (WORDS(key, "en") for key in ("heard", "opening", "go_on"))
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}

Turns = list[tuple[str, str]]


def split(*messages: dict[str, Any], limit: int | None = None) -> tuple[Turns, str]:
    clean = {} if limit is None else {"clean_question": InputValidator(limit).clean}
    parsed = [ChatMessage.model_validate(message) for message in messages]
    entries, message = conversation(parsed, WORDS, "en", **clean)
    return [(entry["sender"], entry["content"]) for entry in entries], message


@pytest.mark.parametrize(
    ("said", "context", "asked"),
    [
        ([("user", "a")], [], "a"),
        ([("user", "a"), ("user", "b")], [], "a\n\nb"),
        ([("system", "s"), ("user", "a")], [("user", "s"), ("ai", HEARD)], "a"),
        ([("user", "a"), ("system", "s")], [("user", "s"), ("ai", HEARD)], "a"),
        ([("system", "s"), ("system", "t"), ("user", "a"), ("developer", "d"), ("user", "b")],
         [("user", "s\n\nt\n\nd"), ("ai", HEARD)], "a\n\nb"),
        ([("system", "s")], [], "s"),
        ([("system", "s"), ("developer", "d")], [], "s\n\nd"),
        ([("assistant", "g"), ("user", "a")], [("user", OPENING), ("ai", "g")], "a"),
        ([("system", "s"), ("assistant", "g"), ("user", "a")],
         [("user", "s"), ("ai", f"{HEARD}\n\ng")], "a"),
        ([("user", "a"), ("assistant", "b"), ("assistant", "c"), ("user", "d")],
         [("user", "a"), ("ai", "b\n\nc")], "d"),
        ([("user", "a"), ("assistant", "b")], [("user", "a"), ("ai", "b")], GO_ON),
        ([("assistant", "b")], [("user", OPENING), ("ai", "b")], GO_ON),
        ([("system", "s"), ("user", "a"), ("assistant", "b"), ("system", "t")],
         [("user", "s"), ("ai", HEARD), ("user", "a"), ("ai", "b")], "t"),
        ([("user", "a"), ("assistant", ""), ("user", "d")], [], "a\n\nd"),
        ([("user", "a"), ("assistant", "")], [], "a"),
        ([("system", ""), ("user", "")], [], ""),
        ([("user", "a"), ("assistant", "b"), ("user", "")], [("user", "a"), ("ai", "b")], ""),
    ],
)  # fmt: skip
def test_messages_become_whole_exchanges_and_a_question(
    said: Turns, context: Turns, asked: str
) -> None:
    assert split(*({"role": role, "content": text} for role, text in said)) == (context, asked)


@pytest.mark.parametrize(
    "call",
    [
        {"content": None, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}]},
        {"content": "", "function_call": {"name": "f", "arguments": '{"x": 1}'}},
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "result",
    [{"role": "tool", "tool_call_id": "1", "name": "f"}, {"role": "function", "name": "f"}],
)
def test_call_and_result_of_a_tool_become_text(
    call: dict[str, Any], result: dict[str, Any]
) -> None:
    history = [
        {"role": "user", "content": "a"},
        {"role": "assistant", **call},
        result | {"content": [{"type": "text", "text": "42"}]},
    ]
    used = ("ai", '[used the tool f: {"x": 1}]')
    assert split(*history) == ([("user", "a"), used], "[result of the tool f]\n42")
    more = [{"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    result_turn = ("user", "[result of the tool f]\n42")
    assert split(*history, *more) == ([("user", "a"), used, result_turn, ("ai", "b")], "c")


def test_tool_result_without_a_name_takes_that_of_its_call() -> None:
    call = {"id": "7", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
    _, message = split(
        {"role": "user", "content": "a"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "7", "content": "noon"},
    )
    assert message == "[result of the tool clock]\nnoon"


@pytest.mark.parametrize(
    ("part", "text"),
    [
        (PICTURE, "[attached: image]"),
        ({"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
         "[attached: audio]"),
        ({"type": "file", "file": {"file_data": "AA"}}, "[attached: file]"),
        ({"type": "video_url", "video_url": {"url": "x"}}, "[attached: video]"),
        ({"type": "unheard_of", "x": 1}, "[attached: file]"),
        ({"type": "output_text", "text": "t"}, "t"),
        ({"type": "refusal", "refusal": "no"}, "no"),
        ("plain", "plain"),
    ],
)  # fmt: skip
def test_part_of_an_earlier_message_becomes_text(part: object, text: str) -> None:
    context, message = split(
        {"role": "user", "content": [{"type": "text", "text": "see"}, part]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}, "ok"]},
        {"role": "user", "content": "next"},
    )
    assert (context, message) == ([("user", f"see\n{text}"), ("ai", "ok")], "next")


def test_picture_is_refused_when_it_is_in_the_question() -> None:
    for question in (
        [{"role": "user", "content": [PICTURE]}],
        [{"role": "user", "content": [PICTURE]}, {"role": "user", "content": "what is it?"}],
        [{"role": "user", "content": [PICTURE]}, {"role": "system", "content": "s"}],
    ):
        with pytest.raises(InvalidRequest) as wrong:
            split(
                {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, *question
            )
        assert wrong.value.details == {"why": "only_text", "field": "messages"}


def test_picture_of_a_tool_becomes_a_placeholder() -> None:
    _, message = split({"role": "tool", "name": "f", "content": [PICTURE]})
    assert message == "[result of the tool f]\n[attached: image]"


def test_limit_applies_to_each_message_of_the_question() -> None:
    half = {"role": "user", "content": "長" * 1400}
    _, message = split(half, half, limit=2000)
    assert len(message) == 2802
    long = {"role": "user", "content": "長" * 2001}
    with pytest.raises(MessageTooLong):
        split(half, long, limit=2000)
    context, message = split(long, {"role": "assistant", "content": "b"}, half, limit=2000)
    assert (len(context[0][1]), len(message)) == (2001, 1400)
    assert split({"role": "system", "content": "長" * 2001}, limit=2000)[1] == "長" * 2001


def test_attachments_are_dropped_from_a_body() -> None:
    file = "QUJD/+" * 2000
    body = {
        "messages": [
            {"content": [{"image_url": {"url": f"data:image/png;base64,{file}"}}]},
            {"content": [{"input_audio": {"data": file, "format": "wav"}}, {"text": file}]},
            {"content": [{"file": {"file_data": f"data:application/pdf;base64,{file}=="}}]},
            {"content": "data: " + file},
            {"content": 'data:"' + file},
        ]
    }
    kept = json.loads(json.dumps(body))
    kept["messages"][0]["content"][0]["image_url"]["url"] = ""
    kept["messages"][1]["content"][0]["input_audio"]["data"] = ""
    kept["messages"][2]["content"][0]["file"]["file_data"] = ""
    for text in (json.dumps(body), json.dumps(body).replace("/", "\\/")):
        assert json.loads(drop_attachments(text.encode())) == kept
