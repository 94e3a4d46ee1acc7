"""Bytes of tokens as text, and stop strings."""

from __future__ import annotations

import random

import pytest
from support import tiny_gguf as tiny_gguf
from support.llama import (
    submit,
    tokenize,
)

from persona_lab.llama import (
    Engine,
)
from persona_lab.llama.stream_decoder import StreamDecoder


def cut_at_random(data: bytes, dice: random.Random) -> list[bytes]:
    cuts = sorted(dice.randrange(len(data) + 1) for _ in range(dice.randint(0, 8)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


@pytest.mark.parametrize(
    ("said", "stop", "shown"),
    [
        ("はい、🍵です。\n\nユーザー：次", ("\n\n", "ユーザー："), "はい、🍵です。"),
        ("はい、ユー", ("ユーザー：",), "はい、ユー"),
        ("aab", ("ab",), "a"),
        ("one\ntwo", ("\n\n",), "one\ntwo"),
        ("plain", (), "plain"),
    ],
)
def test_stop_strings_and_characters_survive_any_cut(
    said: str, stop: tuple[str, ...], shown: str
) -> None:
    dice = random.Random(1)
    for _ in range(200):
        text = StreamDecoder(stop)
        pieces = [text.feed(part) for part in cut_at_random(said.encode(), dice)]
        pieces.append(text.feed(b"", final=True))
        assert "".join(pieces) == shown
        assert not any("\ufffd" in piece for piece in pieces)
        assert text.stopped == (shown != said)


def test_a_stop_string_ends_the_answer_before_it(engine: Engine) -> None:
    tokens = tokenize(engine, "Where to stop")
    whole = submit(engine, tokens, max_tokens=60)
    whole.wait()
    stop = whole.text[7:10]
    answer = submit(engine, tokens, max_tokens=60, stop=(stop,))
    assert answer.wait().finish == "stop"
    assert answer.text == whole.text[: whole.text.index(stop)]
