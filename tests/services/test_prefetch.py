"""Reading ahead: what a page shows is read before a message comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from support.fakes import ChatUser as Owner
from support.fakes import ScriptedClient, reply_with

from persona_lab.db.tables import Agent
from persona_lab.errors import NotFound
from persona_lab.lab import Lab, open_lab
from persona_lab.llama.kv_cache import common_prefix_length
from persona_lab.settings import Settings
from persona_lab.types import Prompt
from persona_lab.ui.prefetch import PromptPrefetcher
from persona_lab.ui.session import Visitor


class Reader(ScriptedClient):
    """Remembers what it was let read ahead."""

    def __init__(self) -> None:
        super().__init__(reply_with("はい。"))
        self.read: list[Sequence[Prompt]] = []

    async def prefill(self, prompts: Sequence[Prompt]) -> None:
        self.read.append(prompts)


@pytest.fixture
async def reader() -> Reader:
    return Reader()


@pytest.fixture
async def lab(reader: Reader) -> AsyncIterator[Lab]:
    async with open_lab(
        Settings(database_url="sqlite://", llm_provider="mock"), client=reader
    ) as lab:
        yield lab


async def test_persona_and_conversation_are_read_and_no_message(lab: Lab, reader: Reader) -> None:
    owner = Owner(lab)
    await lab.service.generate_response(
        message="一つめ", agent_id=owner.agent.id, chat_id=owner.chat.id, user_id=owner.user_id
    )
    await lab.service.prefill(owner.agent, chat_id=owner.chat.id, user_id=owner.user_id)
    ((one, other),) = reader.read
    assert "テスト太郎" in one.system
    assert "一つめ" in str(one)
    assert [turn.role for turn in one.turns] == [turn.role for turn in other.turns]
    assert common_prefix_length(list(one.turns), list(other.turns)) == len(one.turns) - 1  # type: ignore[arg-type]
    assert not set(one.turns[-1].content) & set(other.turns[-1].content)


async def test_the_conversation_of_another_is_not_read(lab: Lab, reader: Reader) -> None:
    owner, stranger = Owner(lab), Owner(lab)
    with pytest.raises(NotFound):
        await lab.service.prefill(owner.agent, chat_id=owner.chat.id, user_id=stranger.user_id)
    assert reader.read == []


class Service:
    def __init__(self, wrong: Exception | None = None) -> None:
        self.read: list[tuple[str, str, str | None]] = []
        self.wrong = wrong
        self.done = asyncio.Event()

    async def prefill(self, agent: Agent, *, chat_id: str | None, **_: Any) -> None:
        self.read.append((agent.name, _["model"], chat_id))
        self.done.set()
        if self.wrong:
            raise self.wrong


def page(service: Service) -> tuple[PromptPrefetcher, Visitor]:
    visitor = cast("Visitor", SimpleNamespace(page=("u", "page"), user_id="u", service=service))
    return PromptPrefetcher(idle_delay_s=0), visitor


async def test_only_what_a_page_showed_last_is_read() -> None:
    service = Service()
    ahead, visitor = page(service)
    for name in ("あ", "い", "う"):
        ahead.schedule(Agent(name=name), "local:x", visitor, "chat")
    await service.done.wait()
    assert service.read == [("う", "local:x", "chat")]


async def test_what_is_shown_can_be_read_again_once_its_model_is_loaded() -> None:
    service = Service(wrong=NotFound(kind="agent"))  # and whatever fails troubles nobody
    ahead, visitor = page(service)
    ahead.reschedule(visitor)  # nothing shown: nothing read
    ahead.schedule(Agent(name="あ"), "local:x", visitor)
    await service.done.wait()
    service.done.clear()
    ahead.reschedule(visitor)
    await service.done.wait()
    assert service.read == [("あ", "local:x", None)] * 2
