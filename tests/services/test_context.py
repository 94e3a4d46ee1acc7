"""What of a conversation is sent along, and when the cache may say it: all in one process, and with
PostgreSQL and Redis."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pytest
from support.backends import RedisServer
from support.fakes import ChatUser

from persona_lab.db.redis import RedisLink
from persona_lab.db.store import Store
from persona_lab.db.tables import Message
from persona_lab.errors import NotFound, Offline
from persona_lab.lab import Lab
from persona_lab.pipeline.context import ContextManager
from persona_lab.settings import ROOT
from persona_lab.translations import Translations
from persona_lab.types import Chunk, Options, Prompt, Sender, Status, Usage


@pytest.fixture
def store(places: dict[str, str]) -> Iterator[Store]:
    opened = Store(places["database_url"])
    yield opened
    opened.close()


@pytest.fixture
async def shared(places: dict[str, str]) -> AsyncIterator[RedisLink]:
    opened = RedisLink(places.get("redis_url"), timeout=10)
    yield opened
    await opened.aclose()
    assert not opened.is_down


@dataclass
class Talk:
    """A conversation that tests add to, past the context manager."""

    store: Store
    shared: RedisLink
    user: str
    chat: str

    def say(self, content: str) -> Message:
        return self._add("user", content, "ok")

    def answer(self, content: str, status: Status = "ok") -> Message:
        return self._add("ai", content, status)

    def exchange(self, asked: str, answered: str, status: Status = "ok") -> None:
        self.say(asked)
        self.answer(answered, status)

    def _add(self, sender: Sender, content: str, status: Status) -> Message:
        return self.store.add_message(
            self.chat, user_id=self.user, sender=sender, content=content, status=status
        )


@pytest.fixture
def talk(store: Store, shared: RedisLink) -> Talk:
    user = store.create_user().id
    agent = store.create_agent(user_id=user, name="さくら")
    return Talk(store, shared, user, store.create_chat(user_id=user, agent_id=agent.id).id)


class CountingStore(Store):
    """Counts how often the conversation is read."""

    reads = 0

    def list_exchanges(self, *args: object, **options: object) -> list[tuple[Message, Message]]:
        self.reads += 1
        return super().list_exchanges(*args, **options)  # type: ignore[arg-type]


@pytest.fixture
def counting(talk: Talk) -> CountingStore:
    store = talk.store
    store.__class__ = CountingStore
    assert isinstance(store, CountingStore)
    return store


class Clock:
    moment = 0.0

    def __call__(self) -> float:
        return self.moment


def words(context: list[dict[str, str]]) -> list[str]:
    return [entry["content"] for entry in context]


async def test_entries_are_newest_last_with_sender_and_timestamp(talk: Talk) -> None:
    talk.exchange("一", "二")
    asked, answered = await ContextManager(talk.store, shared=talk.shared).get_context(talk.chat)
    assert (asked["sender"], asked["content"]) == ("user", "一")
    assert (answered["sender"], answered["content"]) == ("ai", "二")
    moment = datetime.fromisoformat(asked["timestamp"])
    assert moment.tzinfo is not None
    assert moment == talk.store.messages(talk.chat, user_id=talk.user)[0].created_at


async def test_a_conversation_nobody_has_begun_has_no_context(talk: Talk) -> None:
    context = ContextManager(talk.store, shared=talk.shared)
    assert await context.get_context(talk.chat) == []
    talk.answer("ようこそ")
    assert await context.get_context(talk.chat, before=talk.say("はじめまして")) == []


@pytest.mark.parametrize(("length", "kept"), [(0, 0), (1, 0), (2, 2), (5, 4), (10, 10), (99, 16)])
async def test_the_last_whole_exchanges_within_the_length_are_kept(
    talk: Talk, length: int, kept: int
) -> None:
    for number in range(8):
        talk.exchange(f"u{number}", f"a{number}")
    context = ContextManager(talk.store, shared=talk.shared, max_context_length=length)
    every = [f"{who}{number}" for number in range(8) for who in "ua"]
    assert words(await context.get_context(talk.chat)) == every[16 - kept :]


async def test_only_answers_that_somebody_read_are_sent_and_never_half_an_exchange(
    talk: Talk,
) -> None:
    talk.exchange("u0", "whole")
    talk.exchange("u1", "すみません", "failed")
    talk.exchange("u2", "stopped", "stopped")
    talk.exchange("u3", "途中", "streaming")
    talk.exchange("u4", "interrupted", "interrupted")
    talk.exchange("u5", "", "stopped")
    talk.say("u6")
    talk.exchange("u7", "last")
    talk.say("u8")
    sent = words(await ContextManager(talk.store, shared=talk.shared).get_context(talk.chat))
    assert sent == ["u0", "whole", "u2", "stopped", "u4", "interrupted", "u7", "last"]


async def test_many_failures_in_a_row_do_not_hide_what_came_before(talk: Talk) -> None:
    talk.exchange("u", "a")
    for _ in range(30):
        talk.exchange("again", "すみません", "failed")
    assert words(await ContextManager(talk.store, shared=talk.shared).get_context(talk.chat)) == [
        "u",
        "a",
    ]


async def test_the_message_being_answered_is_not_its_own_past(talk: Talk) -> None:
    context = ContextManager(talk.store, shared=talk.shared)
    for number in range(3):
        asked = talk.say(f"u{number}")
        past = words(await context.get_context(talk.chat, user_id=talk.user, before=asked))
        assert past == [f"{who}{n}" for n in range(number) for who in "ua"]
        await context.update_context(talk.chat, asked, talk.answer(f"a{number}"))


@pytest.mark.parametrize("as_text", [False, True])
async def test_answering_again_sees_neither_the_message_nor_its_former_answer(
    talk: Talk, as_text: bool
) -> None:
    context = ContextManager(talk.store, shared=talk.shared)
    for number in range(2):
        asked = talk.say(f"u{number}")
        await context.get_context(talk.chat, before=asked)
        answered = talk.answer(f"a{number}")
        given = (asked.content, answered.content) if as_text else (asked, answered)
        await context.update_context(talk.chat, *given)
    again = talk.store.begin_regeneration(talk.chat, user_id=talk.user).question
    assert words(await context.get_context(talk.chat, before=again)) == ["u0", "a0"]
    await context.update_context(talk.chat, again, talk.answer("better"))
    then = words(await context.get_context(talk.chat, before=talk.say("u2")))
    assert then == ["u0", "a0", "u1", "better"]


async def test_a_conversation_that_goes_on_is_read_from_the_store_once(
    talk: Talk, counting: CountingStore
) -> None:
    context = ContextManager(counting, shared=talk.shared, max_context_length=4)
    for number in range(6):
        asked = talk.say(f"u{number}")
        past = await context.get_context(talk.chat, user_id=talk.user, before=asked)
        assert len(past) == min(4, 2 * number)
        await context.update_context(talk.chat, asked, talk.answer(f"a{number}"))
    assert words(await context.get_context(talk.chat)) == ["u4", "a4", "u5", "a5"]
    assert counting.reads == 1


async def test_what_another_process_added_is_seen(talk: Talk) -> None:
    here = ContextManager(talk.store, shared=talk.shared)
    asked = talk.say("u0")
    await here.get_context(talk.chat, before=asked)
    await here.update_context(talk.chat, asked, talk.answer("a0"))
    talk.exchange("elsewhere", "there")
    past = words(await here.get_context(talk.chat, before=talk.say("u1")))
    assert past == ["u0", "a0", "elsewhere", "there"]


async def test_a_failed_answer_is_not_taken_in(talk: Talk) -> None:
    context = ContextManager(talk.store, shared=talk.shared)
    asked = talk.say("u0")
    await context.get_context(talk.chat, before=asked)
    await context.update_context(talk.chat, asked, talk.answer("すみません", "failed"))
    assert await context.get_context(talk.chat) == []
    assert await context.get_context(talk.chat, before=talk.say("u1")) == []


async def test_texts_are_taken_in_without_being_stored(talk: Talk) -> None:
    talk.exchange("u0", "a0")
    context = ContextManager(talk.store, shared=talk.shared, max_context_length=4)
    await context.update_context(talk.chat, "u1", "a1")
    assert words(await context.get_context(talk.chat)) == ["u0", "a0", "u1", "a1"]
    await context.update_context(talk.chat, "u2", "a2")
    assert words(await context.get_context(talk.chat)) == ["u1", "a1", "u2", "a2"]


async def test_texts_that_are_stored_already_are_not_taken_in_twice(talk: Talk) -> None:
    context = ContextManager(talk.store, shared=talk.shared)
    talk.exchange("u0", "a0")
    await context.update_context(talk.chat, "u0", "a0")
    assert words(await context.get_context(talk.chat)) == ["u0", "a0"]


async def test_the_cache_is_forgotten_after_its_time() -> None:
    store = CountingStore("sqlite://")
    user = store.create_user().id
    agent = store.create_agent(user_id=user, name="さくら")
    chat = store.create_chat(user_id=user, agent_id=agent.id).id
    clock = Clock()
    context = ContextManager(store, context_ttl=60, clock=clock)
    for moment, reads in ((0.0, 1), (59.0, 1), (61.0, 2)):
        clock.moment = moment
        await context.get_context(chat)
        assert store.reads == reads
    store.close()


async def test_redis_is_told_how_long_to_keep_a_context(redis_server: RedisServer) -> None:
    from redis.asyncio import Redis

    store, shared = Store("sqlite://"), RedisLink(redis_server.url, timeout=10)
    user = store.create_user().id
    agent = store.create_agent(user_id=user, name="さくら")
    chat = store.create_chat(user_id=user, agent_id=agent.id).id
    await ContextManager(store, context_ttl=60, shared=shared).get_context(chat)
    async with Redis.from_url(redis_server.url) as redis:
        [key] = await redis.keys("persona_lab:*")
        assert 0 < await redis.pttl(key) <= 60_000
    await shared.aclose()
    store.close()


@pytest.fixture
async def replicas(talk: Talk) -> AsyncIterator[tuple[ContextManager, ContextManager]]:
    """Two replicas over the same stores."""
    shared = RedisLink(talk.shared.url, timeout=10)
    yield tuple(ContextManager(talk.store, shared=link) for link in (talk.shared, shared))
    await shared.aclose()


@pytest.mark.parametrize("what", ["edit", "regenerate", "restore", "crash"])
async def test_a_change_of_what_was_said_reaches_every_replica_at_once(
    talk: Talk, replicas: tuple[ContextManager, ContextManager], what: str
) -> None:
    talk.say("u0")
    answer = talk.answer("a0", "streaming" if what == "crash" else "ok")
    if what == "restore":
        talk.store.begin_regeneration(talk.chat, user_id=talk.user)
    asked = talk.say("u1")
    before = [words(await each.get_context(talk.chat, before=asked)) for each in replicas]
    assert before == [[] if what in ("crash", "restore") else ["u0", "a0"]] * 2
    if what == "edit":
        talk.store.update_message(answer.id, user_id=talk.user, content="a0, 直した")
    elif what == "regenerate":
        talk.answer("a1")
        talk.store.begin_regeneration(talk.chat, user_id=talk.user)
    elif what == "restore":
        asked_first = talk.store.messages(talk.chat, user_id=talk.user)[0]
        talk.store.restore_answer(asked_first.id, user_id=talk.user)
    else:
        talk.store.mark_interrupted()
    expected = ["u0", "a0, 直した"] if what == "edit" else ["u0", "a0"]
    for each in replicas:
        assert words(await each.get_context(talk.chat, before=asked)) == expected


async def test_an_answer_that_is_still_on_its_way_elsewhere_is_not_missed(
    talk: Talk, replicas: tuple[ContextManager, ContextManager]
) -> None:
    here, there = replicas
    talk.say("u0")
    growing = talk.answer("a", "streaming")
    asked = talk.say("u1")
    assert await here.get_context(talk.chat, before=asked) == []
    talk.store.update_message(growing.id, user_id=talk.user, content="a0", status="ok")
    await here.update_context(talk.chat, asked, talk.answer("a1"))
    for each in (here, there):
        context = await each.get_context(talk.chat, before=talk.say("u2"))
        assert words(context) == ["u0", "a0", "u1", "a1"]


async def test_what_another_tab_said_between_a_question_and_its_answer_is_not_passed_over(
    talk: Talk,
) -> None:
    here = ContextManager(talk.store, shared=talk.shared)
    asked = talk.say("u0")
    await here.get_context(talk.chat, before=asked)
    talk.exchange("other tab", "its answer")
    await here.update_context(talk.chat, asked, talk.answer("a0"))
    cached = await here.get_context(talk.chat, before=talk.say("u1"))
    found = talk.store.list_exchanges(talk.chat, user_id=talk.user, limit=5)
    assert words(cached) == [message.content for pair in found for message in pair]


async def test_the_first_exchanges_and_the_last_are_the_same_pairs(talk: Talk) -> None:
    talk.answer("nobody asked")
    talk.exchange("u0", "a0")
    talk.say("never answered")
    talk.exchange("u1", "not the last word")
    talk.answer("a1")
    talk.exchange("u2", "failed", "failed")
    talk.exchange("u3", "a3")
    talk.say("not yet answered")
    either = [
        [
            (asked.content, answer.content)
            for asked, answer in talk.store.list_exchanges(
                talk.chat, user_id=talk.user, limit=limit, first=first
            )
        ]
        for first, limit in [(True, 9), (False, 9), (True, 2), (False, 2), (True, 0)]
    ]
    pairs = [("u0", "a0"), ("u1", "a1"), ("u3", "a3")]
    assert either == [pairs, pairs, pairs[:2], pairs[1:], []]


# ── trimmed in steps ──────────────────────────────────────────────────────────────────────


async def test_what_is_sent_begins_alike_for_two_turns_and_is_never_longer_than_asked(
    talk: Talk,
) -> None:
    context = ContextManager(talk.store, shared=talk.shared)
    begins = []
    for number in range(14):
        sent = await context.get_context(talk.chat, before=talk.say(f"u{number}"), language="ja")
        assert len(sent) == 2 * number if number <= 5 else 8 <= len(sent) <= 10
        assert words(sent)[-2:] == ([f"u{number - 1}", f"a{number - 1}"] if number else [])
        begins.append(sent[0]["content"] if sent else None)
        talk.answer(f"a{number}")
    assert begins[1:] == ["u0"] * 5 + ["u2"] * 2 + ["u4"] * 2 + ["u6"] * 2 + ["u8"] * 2


def test_what_does_not_fit_goes_up_to_where_a_step_ends() -> None:
    context = [
        {"sender": who, "content": f"{who[0]}{n}", "timestamp": "", "position": 2 * n + at}
        for n in range(10)
        for at, who in enumerate(("user", "ai"))
    ]
    begins = [words(ContextManager.fit(context, limit, len))[0] for limit in range(24, 41, 4)]
    assert begins == ["u4", "u4", "u2", "u2", "u0"]


# ── the summary ───────────────────────────────────────────────────────────────────────────


@pytest.fixture
def summarizing(talk: Talk) -> ContextManager:
    say = Translations(ROOT / "templates" / "summary.yaml")
    return ContextManager(talk.store, max_context_length=4, summary_words=say, shared=talk.shared)


async def test_what_fell_out_is_to_be_summed_up_once(
    talk: Talk, summarizing: ContextManager
) -> None:
    for number in range(2):
        talk.exchange(f"u{number}", f"a{number}")
    how = {"user_id": talk.user, "language": "ja"}
    assert await summarizing.to_summarize(talk.chat, **how) is None
    for number in range(2, 4):
        talk.exchange(f"u{number}", f"a{number}")
    wanted = await summarizing.to_summarize(talk.chat, **how)
    assert wanted is not None
    text = wanted.prompt.message
    assert all(said in text for said in ("ユーザー：u0", "相手：a0", "u1", "a1"))
    assert "u2" not in text
    await summarizing.store_summary(
        talk.chat, user_id=talk.user, summary="四人で旅に出た。", until=wanted.until
    )
    assert await summarizing.to_summarize(talk.chat, **how) is None
    sent = await summarizing.get_context(talk.chat, language="ja")
    assert "四人で旅に出た。" in sent[0]["content"]
    assert [entry["sender"] for entry in sent] == ["user", "ai"] * 3
    assert words(sent)[2:] == ["u2", "a2", "u3", "a3"]
    talk.exchange("u4", "a4")
    talk.exchange("u5", "a5")
    again = await summarizing.to_summarize(talk.chat, **how)
    assert again is not None
    assert "四人で旅に出た。" in again.prompt.message
    assert "u2" in again.prompt.message
    assert "u1" not in again.prompt.message


async def summed_up(talk: Talk, summarizing: ContextManager, **how: Any) -> list[str]:
    """The texts that a model is asked to sum up, one after the other; its summaries are numbers."""
    texts: list[str] = []
    where = {"user_id": talk.user, "language": "ja"}
    while (wanted := await summarizing.to_summarize(talk.chat, **where, **how)) is not None:
        texts.append(wanted.prompt.message)
        await summarizing.store_summary(
            talk.chat, user_id=talk.user, summary=f"S{len(texts)}", until=wanted.until
        )
        assert len(texts) < 100
    return texts


def told(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"ユーザー：u(\d+)", text)]


async def test_where_more_fell_out_than_goes_into_one_summary_none_of_it_is_lost(
    talk: Talk, summarizing: ContextManager
) -> None:
    for number in range(95):
        talk.exchange(f"u{number}", f"a{number}", "failed" if number == 50 else "ok")
    texts = await summed_up(talk, summarizing)
    assert [number for text in texts for number in told(text)] == [
        number for number in range(93) if number != 50
    ]
    assert [len(told(text)) for text in texts] == [40, 40, 12]
    assert ["S1" in texts[1], "S2" in texts[2]] == [True, True]


async def test_a_portion_is_no_longer_than_the_model_can_read(
    talk: Talk, summarizing: ContextManager
) -> None:
    for number in range(12):
        talk.exchange(f"u{number}", "長" * (9000 if number == 5 else 300))
    texts = await summed_up(talk, summarizing, fits=lambda prompt: len(str(prompt)) < 3000)
    assert [number for text in texts for number in told(text)] == list(range(10))
    assert max(map(len, texts)) < 3000
    assert len(texts) < 10


async def test_a_summary_of_what_was_changed_meanwhile_is_not_kept(
    talk: Talk, summarizing: ContextManager
) -> None:
    for number in range(4):
        talk.exchange(f"u{number}", f"a{number}")
    wanted = await summarizing.to_summarize(talk.chat, user_id=talk.user, language="en")
    assert wanted is not None
    first = talk.store.messages(talk.chat, user_id=talk.user)[0]
    talk.store.update_message(first.id, user_id=talk.user, content="something else")
    await summarizing.store_summary(talk.chat, user_id=talk.user, summary="old", until=wanted.until)
    assert words(await summarizing.get_context(talk.chat, language="en"))[0] == "u2"


@pytest.mark.core
async def test_a_long_talk_is_summed_up_by_its_model_and_the_summary_is_sent_and_shown(
    make_lab: Callable[..., Lab], places: dict[str, str]
) -> None:
    async def play(prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        asked_for = "記録係" in prompt.system
        yield Chunk("旅の話をした。" if asked_for else f"はい{len(prompt.turns)}")
        yield Chunk(finish_reason="stop", usage=Usage(7, 3), model="m")

    lab = make_lab(play, max_context_length=4, context_summary=True, **places)
    visitor = ChatUser(lab)
    for number in range(5):
        reply = await lab.service.generate_response(f"質問{number}", **visitor.ids)
        await lab.service.summarizer.wait()
    assert reply.metadata["summary"] == "旅の話をした。"
    assert reply.metadata["turns"] == 2 + 4 + 1
    preview = await lab.service.preview(
        visitor.agent, "次", chat_id=visitor.chat.id, user_id=visitor.user_id
    )
    assert preview.trace.summary == "旅の話をした。"
    assert "旅の話をした。" in preview.turns[0].content
    kinds = [record.kind for record in lab.store.records(user_id=visitor.user_id)]
    assert kinds.count("summary") == 3
    assert [sender for sender, _, _ in visitor.thread()] == ["user", "ai"] * 5


async def test_a_turn_has_a_few_portions_summed_up_and_the_next_ones_the_rest(
    make_lab: Callable[..., Lab],
) -> None:
    async def play(prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        yield Chunk("まとめ。" if "記録係" in prompt.system else "はい。")
        yield Chunk(finish_reason="stop", usage=Usage(7, 3), model="m")

    lab = make_lab(play, max_context_length=4, context_summary=True, context=100_000)
    visitor = ChatUser(lab)
    for number in range(150):
        for sender in ("user", "ai"):
            lab.store.add_message(
                visitor.chat.id, user_id=visitor.user_id, sender=sender, content=f"{number}"
            )
    made = []
    for _ in range(3):
        await lab.service.generate_response("やあ", **visitor.ids)
        await lab.service.summarizer.wait()
        kinds = [record.kind for record in lab.store.records(user_id=visitor.user_id)]
        made.append(kinds.count("summary"))
    assert made[0] == 3
    assert made[1] in (4, 5)
    mark = lab.store.chat_state(visitor.chat.id, user_id=visitor.user_id)
    assert mark.summary_through >= 2 * 149


@pytest.mark.parametrize(
    ("said", "summary"),
    [("<think>\n記録しよう。\n</think>\n旅の話をした。", "旅の話をした。"), ("<think>\n記録", "")],
)
async def test_summary_has_no_thoughts(
    make_lab: Callable[..., Lab], said: str, summary: str
) -> None:
    async def play(prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        yield Chunk(said if "記録係" in prompt.system else "はい。")
        yield Chunk(finish_reason="stop", usage=Usage(7, 3), model="m")

    lab = make_lab(play, max_context_length=2, context_summary=True)
    visitor = ChatUser(lab)
    for number in range(3):
        reply = await lab.service.generate_response(f"質問{number}", **visitor.ids)
        await lab.service.summarizer.wait()
    assert reply.metadata["summary"] == summary


async def test_a_summary_that_fails_costs_the_talk_nothing(
    make_lab: Callable[..., Lab], caplog: pytest.LogCaptureFixture
) -> None:
    async def play(prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        if "記録係" in prompt.system:
            raise Offline()
        yield Chunk("はい。")
        yield Chunk(finish_reason="stop", usage=Usage(7, 3), model="m")

    lab = make_lab(play, max_context_length=2, context_summary=True)
    visitor = ChatUser(lab)
    for number in range(3):
        reply = await lab.service.generate_response(f"質問{number}", **visitor.ids)
        await lab.service.summarizer.wait()
    assert reply.content == "はい。"
    assert reply.metadata["summary"] == ""
    assert "no summary: offline" in caplog.text


def test_the_summary_goes_last_when_little_fits() -> None:
    context = [
        {"sender": "user", "content": "sum", "timestamp": "", "summary": "sum"},
        {"sender": "ai", "content": "yes", "timestamp": "", "summary": "sum"},
        {"sender": "user", "content": "u0", "timestamp": ""},
        {"sender": "ai", "content": "a0", "timestamp": ""},
    ]
    kept = [words(ContextManager.fit(context, limit, len)) for limit in (10, 9, 5, 3)]
    assert kept == [["sum", "yes", "u0", "a0"], ["sum", "yes"], ["u0", "a0"], []]


async def test_a_read_that_was_overtaken_by_an_answer_is_not_kept(
    talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ContextManager(talk.store, shared=talk.shared)
    read = talk.store.list_exchanges
    slow = asyncio.Event()
    loop = asyncio.get_running_loop()

    def exchanges(*args: object, **options: object) -> object:
        found = read(*args, **options)  # type: ignore[arg-type]
        asyncio.run_coroutine_threadsafe(slow.wait(), loop).result()
        return found

    with monkeypatch.context() as patched:
        patched.setattr(talk.store, "list_exchanges", exchanges)
        overtaken = asyncio.create_task(context.get_context(talk.chat))
        await asyncio.sleep(0)
    await context.update_context(talk.chat, "u0", "a0")
    slow.set()
    await overtaken
    assert words(await context.get_context(talk.chat)) == ["u0", "a0"]


async def test_another_users_conversation_is_not_found_cached_or_not(talk: Talk) -> None:
    context = ContextManager(talk.store, shared=talk.shared)
    talk.exchange("秘密", "はい")
    stranger = talk.store.create_user().id
    for _ in range(2):
        with pytest.raises(NotFound):
            await context.get_context(talk.chat, user_id=stranger)
        assert len(await context.get_context(talk.chat, user_id=talk.user)) == 2
        assert len(await context.get_context(talk.chat)) == 2


async def test_changing_what_came_back_changes_nothing_here(talk: Talk) -> None:
    talk.exchange("u0", "a0")
    context = ContextManager(talk.store, shared=talk.shared)
    for _ in range(3):
        got = await context.get_context(talk.chat)
        assert words(got) == ["u0", "a0"]
        got[0]["content"] = "changed"
        got.clear()


@pytest.mark.parametrize(
    ("limit", "kept"),
    [(1000, "u0 a0 u1 a1 u2 a2"), (12, "u0 a0 u1 a1 u2 a2"), (11, "u1 a1 u2 a2"), (7, "u2 a2")],
)
def test_the_oldest_whole_exchanges_go_until_the_rest_fits(limit: int, kept: str) -> None:
    context = [
        {"sender": who, "content": f"{who[0]}{number}", "timestamp": ""}
        for number in range(3)
        for who in ("user", "ai")
    ]
    assert words(ContextManager.fit(context, limit, len)) == kept.split()


def test_nothing_is_left_when_not_even_the_last_exchange_fits() -> None:
    context = [
        {"sender": "user", "content": "short", "timestamp": ""},
        {"sender": "ai", "content": "much longer", "timestamp": ""},
    ]
    assert ContextManager.fit(context, 10, len) == []
    assert ContextManager.fit([], 0, len) == []


def test_each_text_is_counted_once() -> None:
    counted: list[str] = []

    def count(text: str) -> int:
        counted.append(text)
        return 1

    context = [{"sender": "user", "content": str(n), "timestamp": ""} for n in range(9)]
    assert len(ContextManager.fit(context, 3, count)) == 3
    assert counted == [str(n) for n in range(9)]
