"""The unfinished text of an answer: who gets it, and what becomes of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from support.fakes import NO_PROCESSING, ChatUser, reply_with
from support.http_server import serve_api
from websockets.asyncio.client import connect

from persona_lab.lab import Lab
from persona_lab.types import Event

MakeLab = Callable[..., Lab]
FILTERS = dict.fromkeys(NO_PROCESSING, True) | {"role_limits": False}
PIECES = ("明日は", "雨だ。", "傘を", "買うよ。")


async def deltas(visitor: ChatUser, **options: Any) -> list[Event]:
    stream = visitor.lab.service.generate_streaming(message="傘は？", **visitor.ids, **options)
    return [event async for event in stream if event.type == "delta"]


async def test_a_program_that_does_not_ask_gets_finished_text_only(make_lab: MakeLab) -> None:
    events = await deltas(ChatUser(make_lab(reply_with(*PIECES), **FILTERS)))
    assert [(event.content, event.pending) for event in events] == [
        ("明日は雨です。", ""),
        ("傘を買いますよ。", ""),
    ]


async def test_the_unfinished_sentence_comes_as_the_model_writes_it(make_lab: MakeLab) -> None:
    visitor = ChatUser(make_lab(reply_with(*PIECES), **FILTERS))
    events = await deltas(visitor, pending=True)
    assert [(event.content, event.pending) for event in events] == [
        ("", "明日は"),
        ("", "明日は雨だ。"),
        ("明日は雨です。", "傘を"),
        ("", "傘を買うよ。"),
        ("傘を買いますよ。", ""),
    ]
    assert visitor.thread()[-1][1] == "明日は雨です。傘を買いますよ。"


async def test_what_a_filter_has_not_judged_is_never_pending(make_lab: MakeLab) -> None:
    secret = ("電話は", "0", "90-1234", "-5678", "だ。殺", "す", "ぞ。")
    visitor = ChatUser(make_lab(reply_with(*secret), **FILTERS))
    seen = "".join(event.pending + event.content for event in await deltas(visitor, pending=True))
    assert "電話は" in seen
    assert not any(hidden in seen for hidden in ("0", "1234", "5678", "殺す"))


async def test_a_regenerated_answer_and_a_trial_have_pending_text_too(make_lab: MakeLab) -> None:
    visitor = ChatUser(make_lab(reply_with(*PIECES), **FILTERS))
    await deltas(visitor)
    service, where = visitor.lab.service, visitor.ids
    again = service.regenerate_streaming(where["chat_id"], where["user_id"], pending=True)
    trial = service.answer(visitor.agent, "傘は？", user_id=where["user_id"], pending=True)
    for stream in (again, trial):
        assert "傘を買うよ。" in [event.pending async for event in stream]


async def test_a_web_socket_asks_for_it_by_message(make_lab: MakeLab) -> None:
    lab = make_lab(reply_with(*PIECES), **FILTERS)
    with serve_api(lab) as server:
        program = server.create_user()
        await asyncio.to_thread(
            lab.store.update_agent, program.agent.id, user_id=program.user_id, tones=["敬語"]
        )
        url = server.socket_url(program.chat.id)
        async with connect(url, additional_headers=program.headers) as socket, asyncio.timeout(20):
            for asks in (True, False):
                await socket.send(json.dumps({"content": "傘は？", "pending": asks}))
                chunks = []
                while not (step := json.loads(await socket.recv())).get("complete"):
                    if step.get("type") == "stream_chunk":
                        chunks.append((step["content"], step.get("pending")))
                if asks:
                    assert chunks[0] == ("", "明日は")
                else:
                    assert {pending for _, pending in chunks} == {None}
                assert "".join(content for content, _ in chunks) == "明日は雨です。傘を買いますよ。"


@pytest.mark.parametrize(
    ("pieces", "shown"),
    [
        (("散歩は、", "いい", "ですよ"), "散歩は、いいですよ"),
        (("（微笑む）", "やあ"), "（微笑む）やあ"),
        (("その薬", "は毎日", "飲んでも", "大丈夫", "です。"), "その"),
        (("熱が", "あるなら、", "インフルエンザ", "でしょう。"), ""),
    ],
)
async def test_a_limited_role_shows_a_sentence_up_to_a_word_of_its_subjects(
    make_lab: MakeLab, pieces: tuple[str, ...], shown: str
) -> None:
    visitor = ChatUser(make_lab(reply_with(*pieces), **FILTERS | {"role_limits": True}))
    events = await deltas(visitor, pending=True)
    assert max((event.pending for event in events[:-1]), key=len, default="") == shown
