"""What of a conversation is sent along, and when the cache may say it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

import pytest

from persona_lab.context import ContextManager
from persona_lab.errors import NotFound
from persona_lab.models import Message, Sender, Status
from persona_lab.store import Store


@pytest.fixture
def store() -> Iterator[Store]:
    opened = Store("sqlite://")
    yield opened
    opened.close()


@dataclass
class Talk:
    """A conversation that tests add to, past the context manager."""

    store: Store
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
def talk(store: Store) -> Talk:
    user = store.create_user().id
    agent = store.create_agent(user_id=user, name="さくら")
    return Talk(store, user, store.create_chat(user_id=user, agent_id=agent.id).id)


class CountingStore(Store):
    """Counts how often the conversation is read."""

    reads = 0

    def exchanges(self, *args: object, **options: object) -> list[tuple[Message, Message]]:
        self.reads += 1
        return super().exchanges(*args, **options)  # type: ignore[arg-type]


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
    asked, answered = await ContextManager(talk.store).get_context(talk.chat)
    assert (asked["sender"], asked["content"]) == ("user", "一")
    assert (answered["sender"], answered["content"]) == ("ai", "二")
    moment = datetime.fromisoformat(asked["timestamp"])
    assert moment.tzinfo is not None
    assert moment == talk.store.messages(talk.chat, user_id=talk.user)[0].created_at


async def test_a_conversation_nobody_has_begun_has_no_context(talk: Talk) -> None:
    context = ContextManager(talk.store)
    assert await context.get_context(talk.chat) == []
    talk.answer("ようこそ")
    assert await context.get_context(talk.chat, before=talk.say("はじめまして")) == []


@pytest.mark.parametrize(("length", "kept"), [(0, 0), (1, 0), (2, 2), (5, 4), (10, 10), (99, 16)])
async def test_the_last_whole_exchanges_within_the_length_are_kept(
    talk: Talk, length: int, kept: int
) -> None:
    for number in range(8):
        talk.exchange(f"u{number}", f"a{number}")
    context = ContextManager(talk.store, max_context_length=length)
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
    sent = words(await ContextManager(talk.store).get_context(talk.chat))
    assert sent == ["u0", "whole", "u2", "stopped", "u4", "interrupted", "u7", "last"]


async def test_many_failures_in_a_row_do_not_hide_what_came_before(talk: Talk) -> None:
    talk.exchange("u", "a")
    for _ in range(30):
        talk.exchange("again", "すみません", "failed")
    assert words(await ContextManager(talk.store).get_context(talk.chat)) == ["u", "a"]


async def test_the_message_being_answered_is_not_its_own_past(talk: Talk) -> None:
    context = ContextManager(talk.store)
    for number in range(3):
        asked = talk.say(f"u{number}")
        past = words(await context.get_context(talk.chat, user_id=talk.user, before=asked))
        assert past == [f"{who}{n}" for n in range(number) for who in "ua"]
        await context.update_context(talk.chat, asked, talk.answer(f"a{number}"))


@pytest.mark.parametrize("as_text", [False, True])
async def test_answering_again_sees_neither_the_message_nor_its_former_answer(
    talk: Talk, as_text: bool
) -> None:
    context = ContextManager(talk.store)
    for number in range(2):
        asked = talk.say(f"u{number}")
        await context.get_context(talk.chat, before=asked)
        answered = talk.answer(f"a{number}")
        given = (asked.content, answered.content) if as_text else (asked, answered)
        await context.update_context(talk.chat, *given)
    again = talk.store.supersede_answer(talk.chat, user_id=talk.user)
    assert words(await context.get_context(talk.chat, before=again)) == ["u0", "a0"]
    await context.update_context(talk.chat, again, talk.answer("better"))
    then = words(await context.get_context(talk.chat, before=talk.say("u2")))
    assert then == ["u0", "a0", "u1", "better"]


async def test_a_conversation_that_goes_on_is_read_from_the_store_once(
    talk: Talk, counting: CountingStore
) -> None:
    context = ContextManager(counting, max_context_length=4)
    for number in range(6):
        asked = talk.say(f"u{number}")
        past = await context.get_context(talk.chat, user_id=talk.user, before=asked)
        assert len(past) == min(4, 2 * number)
        await context.update_context(talk.chat, asked, talk.answer(f"a{number}"))
    assert words(await context.get_context(talk.chat)) == ["u4", "a4", "u5", "a5"]
    assert counting.reads == 1


async def test_what_another_process_added_is_seen(talk: Talk) -> None:
    here = ContextManager(talk.store)
    asked = talk.say("u0")
    await here.get_context(talk.chat, before=asked)
    await here.update_context(talk.chat, asked, talk.answer("a0"))
    talk.exchange("elsewhere", "there")
    past = words(await here.get_context(talk.chat, before=talk.say("u1")))
    assert past == ["u0", "a0", "elsewhere", "there"]


async def test_a_failed_answer_is_not_taken_in(talk: Talk) -> None:
    context = ContextManager(talk.store)
    asked = talk.say("u0")
    await context.get_context(talk.chat, before=asked)
    await context.update_context(talk.chat, asked, talk.answer("すみません", "failed"))
    assert await context.get_context(talk.chat) == []
    assert await context.get_context(talk.chat, before=talk.say("u1")) == []


async def test_texts_are_taken_in_without_being_stored(talk: Talk) -> None:
    talk.exchange("u0", "a0")
    context = ContextManager(talk.store, max_context_length=4)
    await context.update_context(talk.chat, "u1", "a1")
    assert words(await context.get_context(talk.chat)) == ["u0", "a0", "u1", "a1"]
    await context.update_context(talk.chat, "u2", "a2")
    assert words(await context.get_context(talk.chat)) == ["u1", "a1", "u2", "a2"]


async def test_texts_that_are_stored_already_are_not_taken_in_twice(talk: Talk) -> None:
    context = ContextManager(talk.store)
    talk.exchange("u0", "a0")
    await context.update_context(talk.chat, "u0", "a0")
    assert words(await context.get_context(talk.chat)) == ["u0", "a0"]


async def test_the_cache_is_forgotten_after_its_time_or_when_told(
    talk: Talk, counting: CountingStore
) -> None:
    clock = Clock()
    context = ContextManager(counting, context_ttl=60, clock=clock)
    for moment, reads in ((0.0, 1), (59.0, 1), (61.0, 2)):
        clock.moment = moment
        await context.get_context(talk.chat)
        assert counting.reads == reads
    context.forget(talk.chat)
    await context.get_context(talk.chat)
    assert counting.reads == 3


async def test_a_read_that_was_overtaken_by_an_answer_is_not_kept(
    talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ContextManager(talk.store)
    read = talk.store.exchanges
    slow = asyncio.Event()
    loop = asyncio.get_running_loop()

    def exchanges(*args: object, **options: object) -> object:
        found = read(*args, **options)  # type: ignore[arg-type]
        asyncio.run_coroutine_threadsafe(slow.wait(), loop).result()
        return found

    with monkeypatch.context() as patched:
        patched.setattr(talk.store, "exchanges", exchanges)
        overtaken = asyncio.create_task(context.get_context(talk.chat))
        await asyncio.sleep(0)
    await context.update_context(talk.chat, "u0", "a0")
    slow.set()
    await overtaken
    assert words(await context.get_context(talk.chat)) == ["u0", "a0"]


async def test_another_users_conversation_is_not_found_cached_or_not(talk: Talk) -> None:
    context = ContextManager(talk.store)
    talk.exchange("秘密", "はい")
    stranger = talk.store.create_user().id
    for _ in range(2):
        with pytest.raises(NotFound):
            await context.get_context(talk.chat, user_id=stranger)
        assert len(await context.get_context(talk.chat, user_id=talk.user)) == 2
        assert len(await context.get_context(talk.chat)) == 2


async def test_changing_what_came_back_changes_nothing_here(talk: Talk) -> None:
    talk.exchange("u0", "a0")
    context = ContextManager(talk.store)
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
