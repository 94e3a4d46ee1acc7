"""Answers that go on when nobody follows them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from persona_lab.errors import Overloaded
from persona_lab.types import Event
from persona_lab.ui.running_answers import RunningAnswer, RunningAnswers

PAGE, OTHER = ("user", "one"), ("user", "two")


class Source:
    """The events of an answer: each comes when :meth:`let` allows it."""

    def __init__(self, *texts: str, error: Exception | None = None) -> None:
        self.texts = texts
        self.error = error
        self.closed = False
        self._allowed = asyncio.Semaphore(0)

    def let(self, count: int = 1) -> None:
        for _ in range(count):
            self._allowed.release()

    async def events(self) -> AsyncGenerator[Event, None]:
        try:
            for text in self.texts:
                await self._allowed.acquire()
                yield Event("delta", text)
            if self.error:
                raise self.error
        finally:
            self.closed = True


async def followed(answer: RunningAnswer) -> list[str]:
    return [event.content async for event in answer.follow()]


async def test_answer_goes_on_when_its_page_leaves_and_is_replayed() -> None:
    source = Source("a", "b", "c")
    answer = RunningAnswer(source.events(), PAGE)
    stream = answer.follow()
    source.let()
    assert (await anext(stream)).content == "a"
    await stream.aclose()
    assert not source.closed
    source.let(2)
    both = asyncio.gather(followed(answer), followed(answer))
    assert await both == [["a", "b", "c"]] * 2
    assert await followed(answer) == ["a", "b", "c"]
    assert source.closed


async def test_error_reaches_those_who_follow() -> None:
    source = Source("a", error=Overloaded())
    answers = RunningAnswers()
    answer = answers.start("chat", PAGE, source.events())
    source.let()
    with pytest.raises(Overloaded):
        await followed(answer)
    assert answers.get("chat") is None


async def test_stop_ends_the_answer_and_its_followers() -> None:
    source = Source("a", "b")
    answers = RunningAnswers()
    following = asyncio.create_task(followed(answers.start("chat", PAGE, source.events())))
    source.let()
    await asyncio.sleep(0.01)
    await answers.stop("another chat")
    assert answers.get("chat") is not None
    await answers.stop("chat")
    assert await following == ["a"]
    assert source.closed
    assert answers.get("chat") is None


async def test_page_that_opens_a_chat_stops_only_its_own_others() -> None:
    sources = {chat: Source("a") for chat in ("left", "opened", "of another page")}
    answers = RunningAnswers()
    for chat, source in sources.items():
        answers.start(chat, OTHER if "page" in chat else PAGE, source.events())
    await asyncio.sleep(0.01)
    await answers.stop_others(PAGE, "opened")
    assert [chat for chat, source in sources.items() if source.closed] == ["left"]
    waiting = asyncio.create_task(answers.wait(PAGE))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    sources["opened"].let()
    await asyncio.wait_for(waiting, 5)
    await answers.stop_others(OTHER, "")


async def test_answer_ends_when_nobody_follows_it_for_too_long() -> None:
    source = Source("a", "b")
    answer = RunningAnswer(source.events(), PAGE, unwatched_limit=0.05)
    source.let()
    stream = answer.follow()
    await anext(stream)
    await asyncio.sleep(0.1)
    assert not source.closed
    await stream.aclose()
    await asyncio.sleep(0.1)
    assert source.closed
