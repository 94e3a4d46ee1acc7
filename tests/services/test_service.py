import asyncio
import contextlib
import inspect
import json
import threading
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from support.fakes import ChatUser, ScriptedClient, reply_with
from support.texts import FALLBACKS

from persona_lab.db.tables import Agent, Generation, Message
from persona_lab.db.turns import TurnStart
from persona_lab.errors import (
    BadKey,
    ContextTooLong,
    DiskFull,
    EmptyMessage,
    InputError,
    MessageTooLong,
    ModelTimeout,
    ModelUnavailable,
    NotFound,
    Offline,
    Overloaded,
    PersonaLabError,
    QuotaExceeded,
    RateLimited,
    Refused,
    StorageError,
    TemplateError,
    UnknownModel,
)
from persona_lab.lab import Lab, open_lab
from persona_lab.pipeline.service import LLMService
from persona_lab.redaction import MASK
from persona_lab.responses.changes import restore
from persona_lab.server.answer_events import MessageOut
from persona_lab.settings import Settings
from persona_lab.types import Chunk, Event, Options, Prompt, Usage

ASKED = "商品の返品方法を教えてください"
MakeLab = Callable[..., Lab]


async def collect(events: AsyncGenerator[Event, None]) -> list[Event]:
    return [event async for event in events]


def shown(events: list[Event]) -> str:
    return "".join(event.content for event in events if event.type == "delta")


def records(visitor: ChatUser) -> list[Generation]:
    return visitor.lab.store.records(user_id=visitor.user_id)


def client_of(lab: Lab) -> ScriptedClient:
    client = lab.clients.get()
    assert isinstance(client, ScriptedClient)
    return client


def service_with(lab: Lab, **parts: Any) -> LLMService:
    """The lab's service with other parts in place of its own."""
    own: dict[str, Any] = {
        "store": lab.store,
        "clients": lab.clients,
        "input_validator": lab.input_validator,
        "context_manager": lab.context_manager,
        "prompt_builder": lab.prompt_builder,
        "response_processor": lab.response_processor,
        "error_handler": lab.error_handler,
    }
    return LLMService(**(own | parts))


@pytest.fixture
def home(places: dict[str, str]) -> dict[str, str]:
    return places


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Gate:
    """A model that says a piece each time it is let through."""

    def __init__(self, *pieces: str) -> None:
        self.pieces = pieces
        self.waiting = asyncio.Event()
        self.open = asyncio.Semaphore(0)
        self.closed = False

    async def play(self, prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        try:
            for piece in self.pieces:
                self.waiting.set()
                await self.open.acquire()
                yield Chunk(piece)
            yield Chunk(finish_reason="stop", usage=Usage(5, 5), model="gate")
        finally:
            self.closed = True


async def stored(visitor: ChatUser, count: int) -> list[tuple[str, str, str]]:
    """The thread, once it has ``count`` messages: answers are written beside the stream."""
    async with asyncio.timeout(10):
        while len(thread := visitor.thread()) < count:  # noqa: ASYNC110 - a row rings no bell
            await asyncio.sleep(0)
    return thread


async def written() -> None:
    """Until no write is on its way beside the test."""
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(others)


# ── the answer ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", ["generate_response", "generate_streaming"])
def test_the_methods_take_what_the_specification_says(method: str) -> None:
    parameters = inspect.signature(getattr(LLMService, method)).parameters
    assert list(parameters)[1:5] == ["message", "agent_id", "chat_id", "user_id"]


@pytest.mark.core
async def test_a_response_has_the_answer_and_the_metadata_of_the_specification(
    make_lab: MakeLab,
) -> None:
    visitor = ChatUser(make_lab(reply_with("はい、", "どうぞ。\n\n\n\n", "では")))
    reply = await visitor.lab.service.generate_response(message=ASKED, **visitor.ids)
    assert reply.content == "はい、どうぞ。\n\nでは"
    assert reply.metadata["model"] == "scripted-1"
    assert reply.metadata["usage"] == {
        "prompt_tokens": 12,
        "completion_tokens": 3,
        "total_tokens": 15,
        "cached_tokens": 0,
    }
    assert reply.metadata["processing_applied"] == ["blank_lines"]
    assert reply.metadata["finish_reason"] == "stop"
    assert not {"error", "error_type", "fallback"} & reply.metadata.keys()


async def test_a_stream_is_start_then_the_pieces_then_the_whole(make_lab: MakeLab) -> None:
    visitor = ChatUser(make_lab(reply_with("はい、", "どうぞ。")))
    events = await collect(visitor.lab.service.generate_streaming(message=ASKED, **visitor.ids))
    assert [event.type for event in events] == ["start", "delta", "delta", "done"]
    assert shown(events) == events[-1].content == "はい、どうぞ。"
    rows = visitor.lab.store.messages(visitor.chat.id, user_id=visitor.user_id)
    assert events[0].metadata["user_message_id"] == rows[0].id
    assert events[-1].message_id == rows[1].id


async def test_the_mock_answers_through_the_whole_house(lab: Lab) -> None:
    visitor = ChatUser(lab)
    reply = await lab.service.generate_response(message=ASKED, **visitor.ids)
    assert ASKED in reply.content
    assert reply.metadata["provider"] == "mock"
    assert reply.metadata["cost"] == 0


async def test_question_and_answer_are_stored_with_what_was_sent(make_lab: MakeLab) -> None:
    visitor = ChatUser(make_lab(reply_with("はい。")))
    await visitor.lab.service.generate_response(message=f"  {ASKED}\r\n", **visitor.ids)
    assert visitor.thread() == [("user", ASKED, "ok"), ("ai", "はい。", "ok")]
    answer = visitor.lab.store.messages(visitor.chat.id, user_id=visitor.user_id)[1]
    assert "テスト太郎" in answer.details["prompt"]
    json.dumps(answer.details)


async def test_a_turn_leaves_one_record_with_its_numbers(make_lab: MakeLab) -> None:
    visitor = ChatUser(make_lab(reply_with("は", "い")))
    await visitor.lab.service.generate_response(message=ASKED, **visitor.ids)
    [record] = records(visitor)
    assert (record.status, record.kind, record.chat_id) == ("ok", "chat", visitor.chat.id)
    assert (record.prompt_tokens, record.completion_tokens) == (12, 2)
    assert record.error_type is None


async def test_the_model_is_stopped_once_it_speaks_for_the_user(make_lab: MakeLab) -> None:
    pulled = []

    async def play(prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        for piece in ("はい。", "\nユーザー：次は？", "\nテスト太郎：", "もっと"):
            pulled.append(piece)
            yield Chunk(piece)

    visitor = ChatUser(make_lab(play))
    reply = await visitor.lab.service.generate_response(message=ASKED, **visitor.ids)
    assert reply.content == "はい。"
    assert pulled == ["はい。", "\nユーザー：次は？", "\nテスト太郎："]
    assert reply.metadata["estimated"]
    assert reply.metadata["usage"]["completion_tokens"] > 0


async def test_reply_keeps_the_raw_text_and_its_changes(make_lab: MakeLab) -> None:
    visitor = ChatUser(make_lab(reply_with("テスト太郎", "：はい。\n\n\n", "\nどうぞ。")))
    reply = await visitor.lab.service.generate_response(message=ASKED, **visitor.ids)
    assert reply.raw == reply.metadata["raw"] == "テスト太郎：はい。\n\n\n\nどうぞ。"
    assert [each["step"] for each in reply.changes] == ["leading_name", "blank_lines"]
    assert restore(reply.content, reply.changes) == reply.raw
    row = visitor.lab.store.get_message(reply.message_id, user_id=visitor.user_id)
    assert (row.details["changes"], "raw" in row.details) == (reply.changes, False)
    assert MessageOut.from_row(row).metadata["raw"] == reply.raw


async def test_raw_takes_no_room_when_nothing_changed(make_lab: MakeLab) -> None:
    visitor = ChatUser(make_lab(reply_with("はい。")))
    reply = await visitor.lab.service.generate_response(message=ASKED, **visitor.ids)
    row = visitor.lab.store.get_message(reply.message_id, user_id=visitor.user_id)
    assert not {"raw", "changes"} & set(row.details)
    read = MessageOut.from_row(row).metadata
    assert (read["raw"], read["changes"]) == (reply.raw, reply.changes) == ("はい。", [])


@pytest.mark.parametrize("said", [(), ("テスト太郎：半分",)])
async def test_raw_leaves_out_the_words_of_a_fallback(
    make_lab: MakeLab, said: tuple[str, ...]
) -> None:
    visitor = ChatUser(
        make_lab(reply_with(*said, error=Offline(provider="mock", model="scripted")))
    )
    reply = await visitor.lab.service.generate_response(message=ASKED, **visitor.ids)
    assert reply.metadata["fallback"]
    assert reply.raw == "".join(said)
    assert restore(reply.content, reply.changes) == reply.raw
    assert reply.changes[-1]["step"] == "fallback"


async def test_raw_of_a_cached_answer_is_the_models_own(make_lab: MakeLab) -> None:
    lab = make_lab(reply_with("テスト太郎：はい。"), cache_ttl=60)
    visitor = ChatUser(lab)
    replies = []
    for _ in range(2):
        chat = lab.store.create_chat(user_id=visitor.user_id, agent_id=visitor.agent.id)
        where = visitor.ids | {"chat_id": chat.id}
        replies.append(await lab.service.generate_response(message=ASKED, **where))
    assert [reply.metadata["cache_hit"] for reply in replies] == [False, True]
    assert [reply.raw for reply in replies] == ["テスト太郎：はい。"] * 2


def raws(visitor: ChatUser, **how: Any) -> list[str]:
    rows = visitor.lab.store.messages(visitor.chat.id, user_id=visitor.user_id, **how)
    read = [MessageOut.from_row(row) for row in rows if row.sender == "ai"]
    for each in read:
        assert restore(each.content, each.metadata["changes"]) == each.metadata["raw"]
    return [each.metadata["raw"] for each in read]


async def test_raw_of_each_answer_survives_a_regeneration(make_lab: MakeLab) -> None:
    answers = iter(
        [
            reply_with("テスト太郎：一。"),
            reply_with("テスト太郎：二。"),
            reply_with(error=Offline()),
        ]
    )

    def play(prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        return next(answers)(prompt, options)

    visitor = ChatUser(make_lab(play))
    service = visitor.lab.service
    await service.generate_response(message=ASKED, **visitor.ids)
    await collect(service.regenerate_streaming(visitor.chat.id, visitor.user_id))
    assert raws(visitor, superseded=True) == ["テスト太郎：一。", "テスト太郎：二。"]
    await collect(service.regenerate_streaming(visitor.chat.id, visitor.user_id))
    assert visitor.thread()[-1] == ("ai", "二。", "ok")  # restored: no other model answered
    assert raws(visitor) == ["テスト太郎：二。"]


async def test_raw_survives_when_a_chat_moves_to_the_copy_of_a_demo(make_lab: MakeLab) -> None:
    visitor = ChatUser(make_lab(reply_with("テスト太郎：はい。")))
    store = visitor.lab.store
    demo = store.create_agent(user_id=None, name="テスト太郎")
    visitor.chat = store.create_chat(user_id=visitor.user_id, agent_id=demo.id)
    where = visitor.ids | {"agent_id": demo.id}
    await visitor.lab.service.generate_response(message=ASKED, **where)
    copy = store.update_agent(demo.id, user_id=visitor.user_id, description="写し")
    assert store.get_chat(visitor.chat.id, user_id=visitor.user_id).agent_id == copy.id
    where["agent_id"] = copy.id
    await visitor.lab.service.generate_response(message="次", **where)
    assert raws(visitor) == ["テスト太郎：はい。"] * 2


async def test_raw_of_a_stopped_answer_is_what_has_come(make_lab: MakeLab) -> None:
    visitor = ChatUser(make_lab(reply_with("テスト太郎：はい。", "どうぞ。")))
    events = visitor.lab.service.generate_streaming(message=ASKED, **visitor.ids)
    async for event in events:
        if event.type == "delta":
            break
    await events.aclose()
    row = visitor.lab.store.messages(visitor.chat.id, user_id=visitor.user_id)[1]
    assert row.status == "stopped"
    assert MessageOut.from_row(row).metadata["raw"] == "テスト太郎：はい。"


async def test_raw_masks_personal_data_and_what_is_moderated(make_lab: MakeLab) -> None:
    visitor = ChatUser(make_lab(reply_with("電話は090-1234-5678だよ。"), mask_personal_data=True))
    reply = await visitor.lab.service.generate_response(message=ASKED, **visitor.ids)
    assert reply.raw == f"電話は{MASK}だよ。"

    class Strict:
        async def review(self, text: str) -> list[str]:
            return ["violence"]

    assert visitor.lab.service.output_filter is not None
    visitor.lab.service.output_filter.moderator = Strict()
    reply = await visitor.lab.service.generate_response(message=ASKED, **visitor.ids)
    assert (reply.metadata["blocked"], reply.raw) == ("moderation", MASK)
    assert [each["step"] for each in reply.changes] == ["moderation"]


async def test_times_are_counted_from_the_start_without_the_loading_of_a_model(
    make_lab: MakeLab,
) -> None:
    clock = Clock()

    async def play(prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        clock.now += 0.25
        yield Chunk("はい")
        clock.now += 0.5
        yield Chunk(finish_reason="stop", usage=Usage(1, 1))

    class Cold(ScriptedClient):
        is_loaded = False

        async def load(self) -> None:
            clock.now += 4

    lab = make_lab(client=Cold(play), clock=clock)
    visitor = ChatUser(lab)
    reply = await lab.service.generate_response(message=ASKED, **visitor.ids)
    assert (reply.metadata["load_ms"], reply.metadata["first_token_ms"]) == (4000, 250)
    assert reply.metadata["total_ms"] == 750


@pytest.mark.parametrize(
    ("provider", "prices", "cost"),
    [("openai", (1, 2), 40e-6), ("openai", (None, 2), None), ("local", (None, None), 0.0)],
)
async def test_cost_is_known_or_none(
    make_lab: MakeLab, provider: str, prices: tuple[float | None, ...], cost: float | None
) -> None:
    async def play(prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        yield Chunk("はい")
        yield Chunk(finish_reason="stop", usage=Usage(10, 15, cached_tokens=4), model="m")

    lab = make_lab(play, openai_api_key="key-for-tests")
    client = client_of(lab)
    client.info = client.info.model_copy(
        update={"provider": provider, "input_price": prices[0], "output_price": prices[1]}
    )
    visitor = ChatUser(lab)
    reply = await lab.service.generate_response(message=ASKED, **visitor.ids)
    assert reply.metadata["cost"] == (None if cost is None else pytest.approx(cost))
    assert reply.metadata["cached_tokens"] == 4
    assert records(visitor)[0].cost == reply.metadata["cost"]


# ── context ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.core
async def test_the_conversation_so_far_is_sent_along_and_the_message_once(
    make_lab: MakeLab,
) -> None:
    visitor = ChatUser(make_lab(reply_with("はい。")))
    for message in ("一つめ", "二つめ", "三つめ"):
        await visitor.lab.service.generate_response(message=message, **visitor.ids)
    last = client_of(visitor.lab).prompts[-1]
    said = [turn.content for turn in last.turns]
    assert said == ["一つめ", "はい。", "二つめ", "はい。", "三つめ"]


async def test_the_oldest_of_a_long_conversation_gives_way_to_the_window(
    make_lab: MakeLab,
) -> None:
    visitor = ChatUser(make_lab(reply_with("は" * 300), context=1600))
    for number in range(5):
        await visitor.lab.service.generate_response(
            message=f"質問{number}" + "。" * 100, **visitor.ids, max_tokens=400
        )
    last = client_of(visitor.lab).prompts[-1]
    assert client_of(visitor.lab).count_tokens(str(last)) <= 1200
    assert 1 < len(last.turns) < 9
    assert last.turns[0].role == "user"
    assert last.message.startswith("質問4")


async def test_a_failed_answer_is_not_sent_as_context(make_lab: MakeLab) -> None:
    answers = iter([reply_with("半分", error=Offline()), reply_with("はい。")])

    def play(prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        return next(answers)(prompt, options)

    visitor = ChatUser(make_lab(play))
    await visitor.lab.service.generate_response(message="一つめ", **visitor.ids)
    await visitor.lab.service.generate_response(message="二つめ", **visitor.ids)
    sent = str(client_of(visitor.lab).prompts[-1])
    assert "半分" not in sent


async def test_the_preview_is_what_is_sent_to_the_byte(make_lab: MakeLab) -> None:
    visitor = ChatUser(make_lab(reply_with("は" * 300), context=1600))
    for number in range(4):
        message = f" 質問{number}" + "。" * 100
        preview = await visitor.lab.service.preview(
            visitor.agent, message, chat_id=visitor.chat.id, user_id=visitor.user_id
        )
        await visitor.lab.service.generate_response(message=message, **visitor.ids)
        assert client_of(visitor.lab).prompts[-1] == preview


async def test_a_preview_takes_an_unsaved_persona_and_no_message(lab: Lab) -> None:
    prompt = await lab.service.preview(Agent(name="テスト太郎"), "")
    assert "テスト太郎" in prompt
    assert prompt.turns == ()


async def test_a_preview_needs_no_key(lab: Lab) -> None:
    prompt = await lab.service.preview(Agent(name="テスト太郎"), "やあ", model="openai:gpt-5-mini")
    assert "テスト太郎" in prompt


async def test_a_preview_of_somebody_elses_chat_is_refused(lab: Lab) -> None:
    mine, other = ChatUser(lab), ChatUser(lab)
    with pytest.raises(NotFound):
        await lab.service.preview(mine.agent, "やあ", chat_id=other.chat.id, user_id=mine.user_id)


# ── failure: nothing typed is lost ────────────────────────────────────────────────────────


class _Broken:
    """Stands for a part whose every method fails."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __getattr__(self, name: str) -> Any:
        raise self._error


@pytest.mark.parametrize("part", ["context_manager", "prompt_builder", "response_processor"])
@pytest.mark.parametrize("error", [StorageError(), TemplateError("rule 3"), ZeroDivisionError()])
async def test_a_part_that_fails_costs_the_answer_and_not_the_message(
    make_lab: MakeLab, part: str, error: Exception
) -> None:
    visitor = ChatUser(make_lab(reply_with("はい。")))
    service = service_with(visitor.lab, **{part: _Broken(error)})
    reply = await service.generate_response(message=ASKED, **visitor.ids)
    assert reply.metadata["fallback"] is True
    assert visitor.thread() == [("user", ASKED, "ok"), ("ai", reply.content, "failed")]
    assert [record.status for record in records(visitor)] == ["failed"]
    await service.aclose()


PROVIDER_ERRORS = [
    (BadKey(), "bad_key"),
    (QuotaExceeded(), "quota"),
    (RateLimited(), "rate_limit"),
    (ModelTimeout(), "timeout"),
    (Offline(), "offline"),
    (Overloaded(), "api_error"),
    (ContextTooLong(), "too_long"),
    (Refused(), "refused"),
    (TimeoutError(), "timeout"),
    (ConnectionResetError(), "offline"),
    (RuntimeError("sk-secret"), "system_error"),
]


@pytest.mark.parametrize(("error", "kind"), PROVIDER_ERRORS)
async def test_a_model_that_fails_before_its_first_word_is_excused(
    make_lab: MakeLab, error: Exception, kind: str
) -> None:
    visitor = ChatUser(make_lab(reply_with(error=error)))
    events = await collect(visitor.lab.service.generate_streaming(message=ASKED, **visitor.ids))
    done = events[-1]
    assert (done.metadata["error_type"], done.metadata["fallback"]) == (kind, True)
    assert done.metadata["error"] == done.content
    assert shown(events) == done.content
    assert visitor.thread() == [("user", ASKED, "ok"), ("ai", done.content, "failed")]
    [record] = records(visitor)
    assert (record.status, record.error_type) == ("failed", kind)
    assert record.completion_tokens == 0


@pytest.mark.parametrize(("error", "kind"), PROVIDER_ERRORS)
async def test_what_has_come_stays_and_the_excuse_follows_it(
    make_lab: MakeLab, error: Exception, kind: str
) -> None:
    visitor = ChatUser(make_lab(reply_with("はい、", "それは", error=error)))
    events = await collect(visitor.lab.service.generate_streaming(message=ASKED, **visitor.ids))
    done = events[-1]
    before, _, excuse = done.content.partition("\n\n")
    assert before == "はい、それは"
    assert done.metadata["error"] in excuse
    assert (done.metadata["error_type"], done.metadata["fallback"]) == (kind, True)
    assert shown(events) == done.content
    assert visitor.thread() == [("user", ASKED, "ok"), ("ai", done.content, "failed")]
    assert "sk-secret" not in json.dumps(done.metadata, ensure_ascii=False) + done.content


@pytest.mark.parametrize("pieces", [(), ("", " \n"), ("ユーザー：やあ",), ("テスト太郎：",)])
async def test_an_answer_without_a_word_is_an_invalid_response(
    make_lab: MakeLab, pieces: tuple[str, ...]
) -> None:
    visitor = ChatUser(make_lab(reply_with(*pieces)))
    reply = await visitor.lab.service.generate_response(message=ASKED, **visitor.ids)
    assert reply.metadata["error_type"] == "invalid_response"


@pytest.mark.parametrize(
    ("pieces", "finish"),
    [
        ((), "length"),
        (("<think>\nまず、", "挨拶を"), "length"),
        (("<think>\nx\n</think>\n\n",), "length"),
        (("<think>\nx\n</think>",), "stop"),
    ],
)
async def test_answer_spent_on_thinking_says_so(
    make_lab: MakeLab, pieces: tuple[str, ...], finish: str
) -> None:
    visitor = ChatUser(make_lab(reply_with(*pieces, finish=finish)))
    reply = await visitor.lab.service.generate_response(message=ASKED, **visitor.ids)
    assert reply.metadata["code"] == "only_thoughts"
    assert reply.metadata["error_type"] == "invalid_response"
    assert reply.content == FALLBACKS("only_thoughts", "ja")
    assert "think>" not in reply.content


async def test_thought_is_no_part_of_the_answer(make_lab: MakeLab) -> None:
    visitor = ChatUser(
        make_lab(reply_with("<think>\nx", "</think>\nテスト太郎：", "はい。<|im_end|>"))
    )
    reply = await visitor.lab.service.generate_response(message=ASKED, **visitor.ids)
    assert reply.content == "はい。"
    assert visitor.thread() == [("user", ASKED, "ok"), ("ai", "はい。", "ok")]


async def test_a_content_filter_is_a_refusal(make_lab: MakeLab) -> None:
    visitor = ChatUser(make_lab(reply_with("それは", finish="content_filter")))
    reply = await visitor.lab.service.generate_response(message=ASKED, **visitor.ids)
    assert reply.metadata["error_type"] == "refused"
    assert reply.content.startswith("それは\n\n")


async def test_a_missing_key_names_its_variable_in_the_language_asked_for(lab: Lab) -> None:
    visitor = ChatUser(lab)
    reply = await lab.service.generate_response(
        message=ASKED, **visitor.ids, model="openai:gpt-5-mini", language="en"
    )
    assert reply.metadata["error_type"] == "bad_key"
    assert reply.content == FALLBACKS("missing_key", "en", variable="OPENAI_API_KEY")


async def test_an_english_persona_is_excused_in_english(make_lab: MakeLab) -> None:
    visitor = ChatUser(make_lab(reply_with(error=Offline())), "Taro", "en")
    reply = await visitor.lab.service.generate_response(message="Hello", **visitor.ids)
    assert reply.content == FALLBACKS("offline", "en")


async def test_an_unknown_model_is_raised_before_anything_is_kept(lab: Lab) -> None:
    visitor = ChatUser(lab)
    with pytest.raises(UnknownModel):
        await lab.service.generate_response(message=ASKED, **visitor.ids, model="nobody:x")
    assert visitor.thread() == []
    assert [record.status for record in records(visitor)] == []


async def test_a_persona_deleted_in_another_tab_is_raised_before_anything_is_kept(
    lab: Lab,
) -> None:
    visitor = ChatUser(lab)
    lab.store.delete_agent(visitor.agent.id, user_id=visitor.user_id)
    for _ in range(2):  # or each try would add a question without an answer
        with pytest.raises(NotFound):
            await lab.service.generate_response(message=ASKED, **visitor.ids)
    assert visitor.thread() == []


@pytest.mark.parametrize("broken", ["price", "count"])
async def test_an_answer_is_not_lost_for_want_of_a_number(
    make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    async def play(prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        yield Chunk("はい。")
        yield Chunk(finish_reason="stop")  # nobody counted

    def fails(*_: object, **__: object) -> Any:
        raise KeyError

    visitor = ChatUser(make_lab(play))
    if broken == "price":
        monkeypatch.setattr("persona_lab.pipeline.turn_metadata.priced", fails)
    else:
        monkeypatch.setattr(visitor.lab.clients.get(), "count_tokens", fails)
    reply = await visitor.lab.service.generate_response(message=ASKED, **visitor.ids)
    assert reply.content == "はい。"
    assert visitor.thread()[-1] == ("ai", "はい。", "ok")
    [record] = records(visitor)
    assert record.completion_tokens > 0


async def test_a_providers_own_name_of_a_model_does_not_split_its_figures(
    make_lab: MakeLab,
) -> None:
    lab = make_lab(reply_with("はい。"))
    visitor = ChatUser(lab)
    reply = await lab.service.generate_response(message=ASKED, **visitor.ids)
    lab.clients.get().script = reply_with(error=Offline())  # type: ignore[attr-defined]
    await lab.service.generate_response(message="もう一度", **visitor.ids)
    assert reply.metadata["model"] == "scripted-1"
    assert {record.model for record in records(visitor)} == {"scripted"}


@pytest.mark.parametrize(
    ("message", "refusal"), [("あ" * 100_000, MessageTooLong), (" \n", EmptyMessage)]
)
async def test_a_message_that_is_refused_is_not_stored(
    lab: Lab, message: str, refusal: type[InputError]
) -> None:
    visitor = ChatUser(lab)
    with pytest.raises(refusal):
        await lab.service.generate_response(message=message, **visitor.ids)
    assert visitor.thread() == []
    assert records(visitor) == []


@pytest.mark.parametrize("method", ["generate_response", "generate_streaming"])
async def test_a_persona_that_is_not_the_chats_is_refused_and_nothing_is_kept(
    lab: Lab, method: str
) -> None:
    visitor = ChatUser(lab)
    another = lab.store.create_agent(user_id=visitor.user_id, name="別人")
    for agent_id in (another.id, "no-such-persona", ""):
        call = getattr(lab.service, method)(ASKED, agent_id, visitor.chat.id, visitor.user_id)
        with pytest.raises(NotFound) as refused:
            await (collect(call) if method == "generate_streaming" else call)
        assert refused.value.details == {"kind": "agent"}
    assert visitor.thread() == []
    assert records(visitor) == []


@pytest.mark.parametrize("message", [None, 5, ["a"]])
async def test_a_message_that_is_no_text_is_refused(lab: Lab, message: Any) -> None:
    visitor = ChatUser(lab)
    with pytest.raises(InputError):
        await lab.service.generate_response(message=message, **visitor.ids)
    assert visitor.thread() == []


async def test_nobody_writes_into_somebody_elses_chat(lab: Lab) -> None:
    mine, other = ChatUser(lab), ChatUser(lab)
    with pytest.raises(NotFound):
        await lab.service.generate_response(ASKED, mine.agent.id, other.chat.id, mine.user_id)
    assert other.thread() == []


# ── a full disk, at each write ────────────────────────────────────────────────────────────


class FullStore:
    """The lab's store, out of space for the writes of ``full``; ``writes`` tells all of them."""

    def __init__(self, lab: Lab, *full: str) -> None:
        self._lab = lab
        self.full = full
        self.writes: list[str] = []

    def _write(self, name: str, method: str, *args: Any, **fields: Any) -> Any:
        self.writes.append(name)
        if name in self.full:
            raise DiskFull
        return getattr(self._lab.store, method)(*args, **fields)

    def begin_turn(self, *args: Any, **fields: Any) -> TurnStart:
        start: TurnStart = self._write("question", "begin_turn", *args, **fields)
        return start

    def add_message(self, *args: Any, **fields: Any) -> Message:
        message: Message = self._write("answer", "add_message", *args, **fields)
        return message

    def update_message(self, *args: Any, **fields: Any) -> Message:
        message: Message = self._write("answer", "update_message", *args, **fields)
        return message

    def finish_turn(self, *args: Any, **fields: Any) -> Message:
        message: Message = self._write("answer", "finish_turn", *args, **fields)
        return message

    def record(self, turn: Generation) -> None:
        self._write("record", "record", turn)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lab.store, name)


async def test_a_disk_that_is_full_for_the_message_is_raised_before_anything_starts(
    make_lab: MakeLab,
) -> None:
    visitor = ChatUser(make_lab(reply_with("はい。")))
    service = service_with(visitor.lab, store=FullStore(visitor.lab, "question"))
    with pytest.raises(DiskFull):
        await service.generate_response(message=ASKED, **visitor.ids)
    assert client_of(visitor.lab).prompts == []


async def test_a_disk_that_is_full_for_the_answer_shows_it_whole_and_says_so(
    make_lab: MakeLab,
) -> None:
    visitor = ChatUser(make_lab(reply_with("はい、", "どうぞ。")))
    store = FullStore(visitor.lab, "answer")
    service = service_with(visitor.lab, store=store)
    reply = await service.generate_response(message=ASKED, **visitor.ids)
    assert reply.content == "はい、どうぞ。"
    assert reply.metadata["error"] == FALLBACKS("disk_full", "ja")
    assert "fallback" not in reply.metadata
    assert visitor.thread() == [("user", ASKED, "ok")]
    assert records(visitor) == []
    store.full = ()
    await service.aclose()
    assert visitor.thread() == [("user", ASKED, "ok"), ("ai", "はい、どうぞ。", "ok")]
    assert [record.status for record in records(visitor)] == ["ok"]


async def until_kept(visitor: ChatUser) -> tuple[str, str, str]:
    async with asyncio.timeout(10):
        while len(thread := visitor.thread()) < 2:  # noqa: ASYNC110 - a row rings no bell
            await asyncio.sleep(0.001)
    return thread[-1]


async def test_an_answer_that_the_store_did_not_take_is_kept_by_itself_once_it_does(
    make_lab: MakeLab, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "persona_lab.service")
    visitor = ChatUser(make_lab(reply_with("はい、", "どうぞ。")))
    store = FullStore(visitor.lab, "answer")
    service = service_with(visitor.lab, store=store, retry_pause=0.001)
    await service.generate_response(message=ASKED, **visitor.ids)
    tries = store.writes.count("answer")
    async with asyncio.timeout(10):
        while store.writes.count("answer") < tries + 3:  # noqa: ASYNC110 - nor does a try
            await asyncio.sleep(0.001)
    assert visitor.thread() == [("user", ASKED, "ok")]
    store.full = ()
    assert await until_kept(visitor) == ("ai", "はい、どうぞ。", "ok")
    await written()
    assert [r.__dict__.get("event") for r in caplog.records].count("answer_kept") == 1
    assert len(visitor.thread()) == 2
    tries = len(store.writes)
    await service.aclose()
    assert len(store.writes) == tries


async def test_pauses_between_tries_grow_up_to_a_bound(
    make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    visitor = ChatUser(make_lab(reply_with("はい。")))
    service = service_with(visitor.lab, store=FullStore(visitor.lab, "answer"))
    slept, sleep, enough = [], asyncio.sleep, asyncio.Event()

    async def at_once(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 9:
            enough.set()
            await asyncio.Event().wait()
        await sleep(0)

    monkeypatch.setattr("persona_lab.pipeline.write_retry.asyncio.sleep", at_once)
    await service.generate_response(message=ASKED, **visitor.ids)
    await asyncio.wait_for(enough.wait(), 10)
    assert slept == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    await service.aclose()


async def test_an_answer_that_waits_is_kept_before_the_next_turn_or_at_the_end(
    make_lab: MakeLab,
) -> None:
    visitor = ChatUser(make_lab(reply_with("はい。")))
    store = FullStore(visitor.lab, "answer")
    service = service_with(visitor.lab, store=store)
    await service.generate_response(message=ASKED, **visitor.ids)
    with pytest.raises(DiskFull):
        await service.generate_response(message="次", **visitor.ids)
    store.full = ()
    await service.generate_response(message="次", **visitor.ids)
    assert [content for _, content, _ in visitor.thread()] == [ASKED, "はい。", "次", "はい。"]
    store.full = ("answer",)
    await service.generate_response(message="終", **visitor.ids)
    store.full = ()
    await service.aclose()
    assert [content for _, content, _ in visitor.thread()][-2:] == ["終", "はい。"]


async def test_no_more_answers_wait_than_memory_has_room_for(
    make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("persona_lab.pipeline.write_retry.MAX_WAITING", 2)
    lab = make_lab(reply_with("はい。"))
    visitors = [ChatUser(lab) for _ in range(3)]
    store = FullStore(lab, "answer")
    service = service_with(lab, store=store)
    for visitor in visitors:
        await service.generate_response(message=ASKED, **visitor.ids)
    [lost] = [r.__dict__ for r in caplog.records if r.__dict__.get("event") == "answer_lost"]
    assert lost["chat_id"] == visitors[0].chat.id
    store.full = ()
    await service.aclose()
    assert [len(visitor.thread()) for visitor in visitors] == [1, 2, 2]


async def test_a_disk_that_is_full_for_the_record_shows_the_answer_and_says_so(
    make_lab: MakeLab,
) -> None:
    visitor = ChatUser(make_lab(reply_with("はい。")))
    service = service_with(visitor.lab, store=FullStore(visitor.lab, "record"))
    *_, done = await collect(service.answer(visitor.agent, ASKED, user_id=visitor.user_id))
    assert (done.content, done.metadata["code"]) == ("はい。", "disk_full")
    assert "fallback" not in done.metadata
    await service.aclose()


async def test_an_answer_to_a_chat_that_is_gone_leaves_its_record(make_lab: MakeLab) -> None:
    gate = Gate("はい。")
    visitor = ChatUser(make_lab(gate.play))
    events = visitor.lab.service.generate_streaming(message=ASKED, **visitor.ids)
    await anext(events)
    gate.open.release()
    await anext(events)
    await written()
    with visitor.lab.store.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM chat")  # and its messages with it
    *_, done = await collect(events)
    assert (done.content, done.metadata["code"]) == ("はい。", "not_found")
    assert [record.status for record in records(visitor)] == ["ok"]


async def test_a_database_that_is_really_full_says_disk_full(make_lab: MakeLab) -> None:
    lab = make_lab(database_url="sqlite://")
    visitor = ChatUser(lab)
    with lab.store.engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
    with pytest.raises(DiskFull):
        for _ in range(100):
            await lab.service.generate_response(message="あ" * 2000, **visitor.ids)


# ── stop ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.core
async def test_closing_the_stream_keeps_the_half_answer_and_closes_the_model(
    make_lab: MakeLab,
) -> None:
    gate = Gate("はい、", "それは", "長い")
    visitor = ChatUser(make_lab(gate.play))
    events = visitor.lab.service.generate_streaming(message=ASKED, **visitor.ids)
    assert (await anext(events)).type == "start"
    for _ in range(2):
        gate.open.release()
        await anext(events)
    await events.aclose()
    assert visitor.thread() == [("user", ASKED, "ok"), ("ai", "はい、それは", "stopped")]
    assert gate.closed
    [record] = records(visitor)
    assert (record.status, record.completion_tokens > 0) == ("stopped", True)


@pytest.mark.parametrize("times", [1, 3])
async def test_cancelling_the_task_keeps_the_half_answer(make_lab: MakeLab, times: int) -> None:
    gate = Gate("はい、", "それは")
    visitor = ChatUser(make_lab(gate.play))
    task = asyncio.create_task(visitor.lab.service.generate_response(message=ASKED, **visitor.ids))
    gate.open.release()
    await stored(visitor, 2)
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert visitor.thread() == [("user", ASKED, "ok"), ("ai", "はい、", "stopped")]
    assert [record.status for record in records(visitor)] == ["stopped"]
    assert gate.closed


async def test_a_half_answer_is_kept_with_what_was_held_back_and_its_code_closed(
    make_lab: MakeLab,
) -> None:
    gate = Gate("```\nx\n", "User", "more")
    visitor = ChatUser(make_lab(gate.play))
    task = asyncio.create_task(visitor.lab.service.generate_response(message=ASKED, **visitor.ids))
    gate.open.release()
    await stored(visitor, 2)
    gate.waiting.clear()
    gate.open.release()
    await gate.waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert visitor.thread()[1] == ("ai", "```\nx\nUser\n```", "stopped")


async def test_stopping_before_the_first_word_leaves_the_message_alone(make_lab: MakeLab) -> None:
    gate = Gate("はい")
    visitor = ChatUser(make_lab(gate.play))
    task = asyncio.create_task(visitor.lab.service.generate_response(message=ASKED, **visitor.ids))
    await gate.waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert visitor.thread() == [("user", ASKED, "ok")]
    assert [record.status for record in records(visitor)] == ["stopped"]


async def test_a_stopped_answer_is_context_for_the_next(make_lab: MakeLab) -> None:
    gate = Gate("半分、", "残り")
    visitor = ChatUser(make_lab(gate.play))
    events = visitor.lab.service.generate_streaming(message="一つめ", **visitor.ids)
    gate.open.release()
    await anext(events)
    await anext(events)
    await events.aclose()
    gate.open.release()
    gate.open.release()
    await visitor.lab.service.generate_response(message="二つめ", **visitor.ids)
    said = [turn.content for turn in client_of(visitor.lab).prompts[-1].turns]
    assert said == ["一つめ", "半分、", "二つめ"]


async def test_a_growing_answer_is_written_while_it_grows(make_lab: MakeLab) -> None:
    gate = Gate(*"一二三四五")
    visitor = ChatUser(make_lab(gate.play))
    service = service_with(visitor.lab, store=FullStore(visitor.lab), save_every=0.001)
    events = service.generate_streaming(message=ASKED, **visitor.ids)
    await anext(events)
    text = ""
    for piece in gate.pieces:
        gate.open.release()
        text += (await anext(events)).content
        assert text.endswith(piece)
        async with asyncio.timeout(10):  # no later piece is needed for the write
            while visitor.thread()[1:] != [("ai", text, "streaming")]:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
    await collect(events)
    assert visitor.thread()[1] == ("ai", "一二三四五", "ok")


async def test_an_answer_that_ends_soon_is_written_once(make_lab: MakeLab) -> None:
    gate = Gate(*"一二三四五")
    visitor = ChatUser(make_lab(gate.play))
    store = FullStore(visitor.lab)
    service = service_with(visitor.lab, store=store, save_every=60)
    for _ in gate.pieces:
        gate.open.release()
    await service.generate_response(message=ASKED, **visitor.ids)
    assert store.writes == ["question", "answer"]
    assert len(records(visitor)) == 1


async def test_a_growing_answer_is_written_again_after_a_failed_write(
    make_lab: MakeLab, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate(*"一二三")
    visitor = ChatUser(make_lab(gate.play))
    store = FullStore(visitor.lab, "answer")
    service = service_with(visitor.lab, store=store, save_every=0.001)
    events = service.generate_streaming(message=ASKED, **visitor.ids)
    await anext(events)
    gate.open.release()
    await anext(events)
    async with asyncio.timeout(10):
        while "growing answer" not in caplog.text:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    store.full = ()
    gate.open.release()
    await anext(events)
    await stored(visitor, 2)
    assert visitor.thread()[1] == ("ai", "一二", "streaming")
    await events.aclose()
    assert visitor.thread()[1] == ("ai", "一二", "stopped")


@pytest.mark.core
async def test_a_crash_keeps_the_half_answer_and_marks_it(
    make_lab: MakeLab, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'lab.db'}"
    gate = Gate("はい、", "それは")
    visitor = ChatUser(make_lab(gate.play, database_url=url))
    events = visitor.lab.service.generate_streaming(message=ASKED, **visitor.ids)
    await anext(events)
    gate.open.release()
    await anext(events)
    await stored(visitor, 2)
    visitor.lab = make_lab(database_url=url)  # as after a crash: the first never came to its end
    assert visitor.thread() == [("user", ASKED, "ok"), ("ai", "はい、", "interrupted")]
    await events.aclose()


@pytest.mark.parametrize("leaving", ["closed", "forgotten"])
@pytest.mark.parametrize("again", [False, True])
async def test_a_stream_that_nobody_reads_any_more_stops_the_model_and_keeps_the_half(
    make_lab: MakeLab, leaving: str, again: bool
) -> None:
    gate = Gate("はい、", "それは", "長い")
    visitor = ChatUser(make_lab(gate.play))
    service = visitor.lab.service
    events: AsyncGenerator[Event, None] | None
    if again:
        visitor.lab.store.add_message(
            visitor.chat.id, user_id=visitor.user_id, sender="user", content=ASKED
        )
        events = service.regenerate_streaming(visitor.chat.id, visitor.user_id)
    else:
        events = service.generate_streaming(message=ASKED, **visitor.ids)
    await anext(events)
    for _ in range(2):
        gate.open.release()
        await anext(events)
    if leaving == "closed":
        await events.aclose()
    events = None
    await asyncio.sleep(0)  # the loop closes a generator that nobody holds
    await written()
    assert gate.closed
    assert visitor.thread() == [("user", ASKED, "ok"), ("ai", "はい、それは", "stopped")]
    assert [record.status for record in records(visitor)] == ["stopped"]


async def test_a_stream_closed_at_its_start_leaves_the_message_and_lets_the_next_go_on(
    make_lab: MakeLab,
) -> None:
    visitor = ChatUser(make_lab(reply_with("はい。")))
    events = visitor.lab.service.generate_streaming(message=ASKED, **visitor.ids)
    await anext(events)
    await events.aclose()
    assert visitor.thread() == [("user", ASKED, "ok")]
    assert [record.status for record in records(visitor)] == ["stopped"]
    await visitor.lab.service.generate_response(message="次", **visitor.ids)
    assert [content for _, content, _ in visitor.thread()] == [ASKED, "次", "はい。"]


# ── one turn at a time ────────────────────────────────────────────────────────────────────


async def echo(prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
    for piece in ("答え", prompt.message):
        await asyncio.sleep(0)
        yield Chunk(piece)
    yield Chunk(finish_reason="stop", usage=Usage(1, 1))


@pytest.mark.core
async def test_messages_sent_at_once_are_answered_one_after_another(make_lab: MakeLab) -> None:
    visitor = ChatUser(make_lab(echo))
    sent = [f"質問{number}" for number in range(5)]
    await asyncio.gather(
        *(visitor.lab.service.generate_response(message=m, **visitor.ids) for m in sent)
    )
    said = [content for _, content, _ in visitor.thread()]
    assert sorted(said[::2]) == sent
    assert said[1::2] == [f"答え{question}" for question in said[::2]]
    last = client_of(visitor.lab).prompts[-1]
    assert [turn.content for turn in last.turns] == said[:-1]


async def test_an_answer_again_that_is_stopped_unseen_leaves_the_one_that_stood(
    make_lab: MakeLab,
) -> None:
    visitor = ChatUser(make_lab(reply_with("一つ目です。"), tone_adjustment=True))
    service = visitor.lab.service
    await service.generate_response(message=ASKED, **visitor.ids)
    there = asyncio.Event()

    async def play(prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        yield Chunk("二つ目の、まだ途中の")
        there.set()
        await asyncio.sleep(60)

    client_of(visitor.lab).script = play
    again = asyncio.create_task(
        collect(service.regenerate_streaming(visitor.chat.id, visitor.user_id))
    )
    await asyncio.wait_for(there.wait(), 10)
    again.cancel()
    with pytest.raises(asyncio.CancelledError):
        await again
    assert visitor.thread() == [("user", ASKED, "ok"), ("ai", "一つ目です。", "ok")]


async def test_an_answer_that_shows_nothing_is_none(make_lab: MakeLab) -> None:
    lab = make_lab(reply_with("\u200b", "\u3164"))
    visitor = ChatUser(lab)
    for _ in range(2):
        reply = await lab.service.generate_response(message=ASKED, **visitor.ids)
        assert reply.metadata["code"] == "invalid_response"
        assert not reply.metadata["cache_hit"]


async def test_where_no_time_is_left_the_next_model_is_not_passed_over(make_lab: MakeLab) -> None:
    models = "mock:echo?first=9,mock:echo"
    lab = make_lab(llm_fallback=models, llm_retries=0, llm_total_timeout=0.3)
    visitor = ChatUser(lab)
    reply = await lab.service.generate_response(
        message=ASKED, **visitor.ids, model="mock:echo?fail=bad_key"
    )
    assert reply.metadata["code"] == "bad_key"
    passed = [each["model"] for each in reply.metadata["fallback_from"]]
    assert passed == ["mock:echo?fail=bad_key", "mock:echo?first=9"]


class ObservedLock(asyncio.Lock):
    """The lock of a chat's turn. ``waited`` is set as soon as a second turn waits for it."""

    def __init__(self, service: LLMService, chat_id: str) -> None:
        super().__init__()
        self.waited = asyncio.Event()
        service.chat_turns.locks[chat_id] = self

    async def acquire(self) -> Literal[True]:
        if self.locked():
            self.waited.set()
        return await super().acquire()


async def test_answering_again_waits_for_the_answer_under_way(make_lab: MakeLab) -> None:
    visitor = ChatUser(make_lab(echo))
    service = visitor.lab.service
    lock = ObservedLock(service, visitor.chat.id)
    await service.generate_response(message="一つめ", **visitor.ids)
    sending = service.generate_streaming(message="二つめ", **visitor.ids)
    await anext(sending)
    again = asyncio.create_task(
        collect(service.regenerate_streaming(visitor.chat.id, visitor.user_id))
    )
    await asyncio.wait_for(lock.waited.wait(), 10)
    assert not again.done()
    await collect(sending)
    await again
    rows = visitor.lab.store.messages(visitor.chat.id, user_id=visitor.user_id, superseded=True)
    assert [(row.content, row.superseded) for row in rows] == [
        ("一つめ", False),
        ("答え一つめ", False),
        ("二つめ", False),
        ("答え二つめ", True),
        ("答え二つめ", False),
    ]


async def test_another_chat_does_not_wait_and_no_turn_is_remembered(make_lab: MakeLab) -> None:
    visitor = ChatUser(make_lab(echo))
    service = visitor.lab.service
    other = visitor.lab.store.create_chat(user_id=visitor.user_id, agent_id=visitor.agent.id)
    held = service.generate_streaming(message="一つめ", **visitor.ids)
    await anext(held)
    where = visitor.ids | {"chat_id": other.id}
    assert (await service.generate_response(message="別", **where)).content == "答え別"
    await held.aclose()
    assert len(service.chat_turns.locks) == 0


async def test_a_stream_that_was_read_as_far_as_its_end_holds_nobody_up(make_lab: MakeLab) -> None:
    visitor = ChatUser(make_lab(echo))
    service = visitor.lab.service
    events = service.generate_streaming(message="一つめ", **visitor.ids)
    while (await anext(events)).type != "done":
        pass
    async with asyncio.timeout(5):
        reply = await service.generate_response(message="二つめ", **visitor.ids)
    assert reply.content == "答え二つめ"
    await events.aclose()


async def test_a_message_that_waits_is_answered_by_the_copy_of_its_demo(
    make_lab: MakeLab,
) -> None:
    visitor = ChatUser(make_lab(echo))
    store, service = visitor.lab.store, visitor.lab.service
    demo = store.create_agent(user_id=None, name="見本")
    visitor.chat = store.create_chat(user_id=visitor.user_id, agent_id=demo.id)
    where = visitor.ids | {"agent_id": demo.id}
    lock = ObservedLock(service, visitor.chat.id)
    held = service.generate_streaming(message="一つめ", **where)
    await anext(held)
    waiting = asyncio.create_task(service.generate_response(message="二つめ", **where))
    await asyncio.wait_for(lock.waited.wait(), 10)
    store.update_agent(demo.id, user_id=visitor.user_id, name="わたしの写し")
    await collect(held)
    assert (await waiting).content == "答え二つめ"
    assert "わたしの写し" in client_of(visitor.lab).prompts[-1]


async def test_a_message_that_waits_can_be_taken_back_and_is_not_kept(make_lab: MakeLab) -> None:
    visitor = ChatUser(make_lab(echo))
    service = visitor.lab.service
    lock = ObservedLock(service, visitor.chat.id)
    held = service.generate_streaming(message="一つめ", **visitor.ids)
    await anext(held)
    waiting = asyncio.create_task(service.generate_response(message="二つめ", **visitor.ids))
    await asyncio.wait_for(lock.waited.wait(), 10)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await collect(held)
    assert [content for _, content, _ in visitor.thread()] == ["一つめ", "答え一つめ"]
    del lock
    assert len(service.chat_turns.locks) == 0


async def test_a_stranger_is_refused_at_once_where_a_turn_is_under_way(make_lab: MakeLab) -> None:
    lab = make_lab(echo)
    mine, other = ChatUser(lab), ChatUser(lab)
    held = lab.service.generate_streaming(message=ASKED, **mine.ids)
    await anext(held)
    with pytest.raises(NotFound):
        await lab.service.generate_response(ASKED, other.agent.id, mine.chat.id, other.user_id)
    with pytest.raises(NotFound):
        await collect(lab.service.regenerate_streaming(mine.chat.id, other.user_id))
    await held.aclose()


# ── keys ──────────────────────────────────────────────────────────────────────────────────

KEYS = {"openai_api_key": "sk-openai-0123456789", "anthropic_api_key": "sk-ant-0123456789"}


async def test_a_key_that_a_provider_repeats_reaches_no_page_no_row_and_no_log(
    make_lab: MakeLab, caplog: pytest.LogCaptureFixture
) -> None:
    key, other = KEYS.values()

    async def play(prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        for piece in ("鍵は", key[:7], key[7:], "と", other, "です。"):
            yield Chunk(piece)
        yield Chunk(finish_reason="stop", usage=Usage(1, 1), model=f"m {key}")

    visitor = ChatUser(make_lab(play, **KEYS))
    with caplog.at_level("DEBUG"):
        events = await collect(visitor.lab.service.generate_streaming(message=ASKED, **visitor.ids))
    assert events[-1].content == shown(events) == "鍵は••••••と••••••です。"
    assert events[-1].metadata["processing_applied"] == ["hidden_secrets"]
    rows = visitor.lab.store.messages(visitor.chat.id, user_id=visitor.user_id)
    logged = [str(vars(record)) for record in caplog.records]
    kept = str([events, [row.model_dump() for row in rows], records(visitor), logged])
    assert not any(secret in kept for secret in KEYS.values())


@pytest.mark.parametrize("pieces", [(), ("はい、",)])
async def test_a_key_in_an_error_is_hidden_in_what_is_said_kept_and_logged(
    make_lab: MakeLab, caplog: pytest.LogCaptureFixture, pieces: tuple[str, ...]
) -> None:
    key = KEYS["openai_api_key"]
    for error in (
        ModelUnavailable(model="m", reason=f"refused {key}"),
        RuntimeError(f"Bearer {key}"),
        BadKey(f"Incorrect API key provided: {key}"),
    ):
        visitor = ChatUser(make_lab(reply_with(*pieces, error=error), **KEYS))
        with caplog.at_level("DEBUG"):
            events = await collect(
                visitor.lab.service.generate_streaming(message=ASKED, **visitor.ids)
            )
        rows = visitor.lab.store.messages(visitor.chat.id, user_id=visitor.user_id)
        logged = [str(vars(record)) for record in caplog.records]
        kept = str([events, [row.model_dump() for row in rows], records(visitor), logged])
        assert key not in kept, error


# ── regenerate ────────────────────────────────────────────────────────────────────────────


@pytest.mark.core
async def test_regenerating_replaces_the_answer_and_asks_the_same(make_lab: MakeLab) -> None:
    answers = iter([reply_with("一。"), reply_with("二。"), reply_with("三。")])

    def play(prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        return next(answers)(prompt, options)

    visitor = ChatUser(make_lab(play))
    service = visitor.lab.service
    await service.generate_response(message="前の話", **visitor.ids)
    await service.generate_response(message=ASKED, **visitor.ids)
    events = await collect(service.regenerate_streaming(visitor.chat.id, visitor.user_id))
    assert events[-1].content == "三。"
    assert [content for _, content, _ in visitor.thread()] == ["前の話", "一。", ASKED, "三。"]
    _, first, again = client_of(visitor.lab).prompts
    assert first == again
    kept = visitor.lab.store.messages(visitor.chat.id, user_id=visitor.user_id, superseded=True)
    assert "二。" in [message.content for message in kept]


async def test_regenerating_answers_a_message_that_never_was_answered(make_lab: MakeLab) -> None:
    answers = iter([reply_with(error=Offline()), reply_with("はい。")])

    def play(prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        return next(answers)(prompt, options)

    visitor = ChatUser(make_lab(play))
    await visitor.lab.service.generate_response(message=ASKED, **visitor.ids)
    await collect(visitor.lab.service.regenerate_streaming(visitor.chat.id, visitor.user_id))
    assert visitor.thread() == [("user", ASKED, "ok"), ("ai", "はい。", "ok")]


async def test_regenerating_with_an_unknown_model_leaves_the_answer(lab: Lab) -> None:
    visitor = ChatUser(lab)
    await lab.service.generate_response(message=ASKED, **visitor.ids)
    before = visitor.thread()
    with pytest.raises(UnknownModel):
        await collect(
            lab.service.regenerate_streaming(visitor.chat.id, visitor.user_id, model="nobody:x")
        )
    assert visitor.thread() == before


@pytest.mark.parametrize("broken", [Offline(), None])
async def test_an_answer_that_nothing_replaces_stands_again(
    make_lab: MakeLab, broken: Exception | None
) -> None:
    silent = asyncio.Event()

    async def wait(prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        await silent.wait()
        yield Chunk("遅い")

    plays = iter([reply_with("はい。"), reply_with(error=broken) if broken else wait])

    def play(prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        return next(plays)(prompt, options)

    visitor = ChatUser(make_lab(play))
    await visitor.lab.service.generate_response(message=ASKED, **visitor.ids)
    before = visitor.thread()
    again = visitor.lab.service.regenerate_streaming(visitor.chat.id, visitor.user_id)
    if broken:
        *_, done = await collect(again)
        assert done.metadata["error_type"] == "offline"
    else:  # stopped before its first word
        assert (await anext(again)).type == "start"
        await again.aclose()
    assert visitor.thread() == before


async def test_what_stands_again_is_in_the_preview_too(lab: Lab) -> None:
    visitor = ChatUser(lab)
    await lab.service.generate_response(message=ASKED, **visitor.ids)
    lab.store.delete_agent(visitor.agent.id, user_id=visitor.user_id)
    with pytest.raises(NotFound):
        await collect(lab.service.regenerate_streaming(visitor.chat.id, visitor.user_id))
    preview = await lab.service.preview(
        visitor.agent, "", chat_id=visitor.chat.id, user_id=visitor.user_id
    )
    assert [turn.role for turn in preview.turns] == ["user", "assistant"]


async def test_an_empty_chat_has_nothing_to_regenerate(lab: Lab) -> None:
    visitor = ChatUser(lab)
    with pytest.raises(NotFound):
        await collect(lab.service.regenerate_streaming(visitor.chat.id, visitor.user_id))


# ── without a chat, and side by side ──────────────────────────────────────────────────────


async def test_a_try_with_an_unsaved_persona_keeps_no_message_and_one_record(
    make_lab: MakeLab,
) -> None:
    visitor = ChatUser(make_lab(reply_with("はい。")))
    events = await collect(
        visitor.lab.service.answer(
            Agent(name="下書き"),
            ASKED,
            user_id=visitor.user_id,
            context=[{"sender": "user", "content": "前"}, {"sender": "ai", "content": "の"}],
        )
    )
    assert events[-1].content == "はい。"
    assert visitor.thread() == []
    assert [(record.kind, record.chat_id) for record in records(visitor)] == [("try", None)]
    assert [turn.content for turn in client_of(visitor.lab).prompts[0].turns] == ["前", "の", ASKED]


@pytest.mark.core
async def test_two_users_at_once_see_nothing_of_each_other(make_lab: MakeLab) -> None:
    turnstile = asyncio.Barrier(2)

    async def play(prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        for _ in range(5):
            await turnstile.wait()  # both are in the middle of their answers, always
            yield Chunk(prompt.message)
        yield Chunk(finish_reason="stop", usage=Usage(1, 1))

    lab = make_lab(play)
    one, two = ChatUser(lab, "はな"), ChatUser(lab, "たろう")
    for _ in range(2):
        await asyncio.gather(
            lab.service.generate_response(message="赤", **one.ids),
            lab.service.generate_response(message="青", **two.ids),
        )
    assert [content for _, content, _ in one.thread()] == ["赤", "赤" * 5] * 2
    assert [content for _, content, _ in two.thread()] == ["青", "青" * 5] * 2
    for prompt in client_of(lab).prompts:
        mine, other = ("はな", "たろう") if prompt.message == "赤" else ("たろう", "はな")
        assert mine in prompt
        assert other not in prompt
    assert len(records(one)) == len(records(two)) == 2


async def test_stopping_one_user_leaves_the_other_alone(make_lab: MakeLab) -> None:
    gates = {"赤": Gate("一", "二"), "青": Gate("三", "四")}

    def play(prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        return gates[prompt.message].play(prompt, options)

    lab = make_lab(play)
    one, two = ChatUser(lab, "はな"), ChatUser(lab, "たろう")
    stopped = asyncio.create_task(lab.service.generate_response(message="赤", **one.ids))
    whole = asyncio.create_task(lab.service.generate_response(message="青", **two.ids))
    await asyncio.gather(*(gate.waiting.wait() for gate in gates.values()))
    stopped.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await stopped
    gates["青"].open.release()
    gates["青"].open.release()
    assert (await whole).content == "三四"


async def test_an_error_of_ours_outside_the_tree_of_the_path_never_reaches_the_caller(
    make_lab: MakeLab,
) -> None:
    visitor = ChatUser(make_lab(reply_with(error=PersonaLabError("odd"))))
    reply = await visitor.lab.service.generate_response(message=ASKED, **visitor.ids)
    assert reply.metadata["error_type"] == "system_error"


async def test_a_preview_refuses_too_long_a_message_as_sending_it_does(lab: Lab) -> None:
    visitor = ChatUser(lab)
    with pytest.raises(MessageTooLong):
        await lab.service.preview(visitor.agent, "長" * 2001)


async def test_leaving_as_the_loop_ends_keeps_one_half_answer(tmp_path: Path) -> None:
    """A write that was begun when its task is cancelled is made, and the next one is told of it."""
    url = f"sqlite:///{tmp_path / 'lab.db'}"

    async def leave() -> tuple[Lab, dict[str, str]]:
        lab = open_lab(Settings(database_url=url, llm_provider="mock", tone_adjustment=False))
        lab.service.save_every = 0
        visitor, add = ChatUser(lab), lab.store.add_message

        def slowly(*given: Any, **named: Any) -> Message:
            time.sleep(0.1)
            return add(*given, **named)

        lab.store.add_message = slowly  # type: ignore[method-assign]
        model = "mock:echo?rate=200&tokens=100"
        async for event in lab.service.generate_streaming(ASKED, **visitor.ids, model=model):
            if event.type == "delta":
                break
        return lab, visitor.ids

    lab, where = await asyncio.to_thread(asyncio.run, leave())
    rows = lab.store.messages(where["chat_id"], user_id=where["user_id"])
    assert [row.sender for row in rows] == ["user", "ai"]
    lab.store.close()


async def test_stopping_another_answer_before_it_begins_leaves_the_first(lab: Lab) -> None:
    visitor = ChatUser(lab)
    await lab.service.generate_response(ASKED, **visitor.ids)
    before, begin = visitor.thread(), lab.store.begin_regeneration
    there = threading.Event()

    def slowly(*given: Any, **named: Any) -> TurnStart:
        there.set()
        time.sleep(0.1)
        return begin(*given, **named)

    lab.store.begin_regeneration = slowly  # type: ignore[method-assign]

    async def again() -> None:
        async for _ in lab.service.regenerate_streaming(visitor.chat.id, visitor.user_id):
            pass

    task = asyncio.create_task(again())
    await asyncio.to_thread(there.wait, 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert visitor.thread() == before
