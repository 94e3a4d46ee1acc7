"""Answers that were given once: when they serve again, and when they must not."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from typing import Any

import pytest
from support.backends import RedisServer, wait_for_redis
from support.fakes import ChatUser, ScriptedClient, reply_with

from persona_lab.clients.middleware.response_cache import (
    CachedClient,
    CacheManager,
    normalize_message,
)
from persona_lab.comparison.runner import Contestant
from persona_lab.db.redis import RedisLink
from persona_lab.errors import Offline
from persona_lab.lab import Lab
from persona_lab.types import Chunk, Completion, Options, Prompt, PromptMessage, Usage

MakeLab = Callable[..., Lab]
INFO = ScriptedClient(reply_with()).info
PROMPT = Prompt("あなたはさくらです。", (PromptMessage("user", "やあ"),), message="やあ")
ANSWER = Completion("こんにちは。\n\n元気ですか？", "scripted-1", Usage(9, 9), "stop")


async def pieces(client: Any, prompt: Prompt = PROMPT) -> list[Chunk]:
    return [chunk async for chunk in client.stream(prompt, Options())]


def text(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


# ── the key ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.core
async def test_the_same_question_gets_the_same_answer(shared: RedisLink) -> None:
    cache = CacheManager(shared=shared)
    assert await cache.get_cached_response(INFO, PROMPT, Options()) is None
    await cache.cache_response(INFO, PROMPT, Options(), ANSWER)
    found = await cache.get_cached_response(INFO, PROMPT, Options())
    assert found == replace(ANSWER, usage=Usage())
    assert (cache.hits, cache.misses) == (1, 1)


@pytest.mark.parametrize("message", ["ﾔｱ", " やあ ", "ヤア", "Ａ  b", "A b"])
async def test_width_and_spaces_of_the_message_make_no_difference(message: str) -> None:
    cache = CacheManager()
    for said, answer in (("やあ", "1"), ("ヤア", "2"), ("A b", "3")):
        asked = Prompt("s", (PromptMessage("user", said),), message=said)
        await cache.cache_response(INFO, asked, Options(), replace(ANSWER, content=answer))
    found = await cache.get_cached_response(
        INFO, Prompt("s", (PromptMessage("user", message),), message=message), Options()
    )
    assert found is not None
    expected = {"ﾔｱ": "2", " やあ ": "1", "ヤア": "2", "Ａ  b": "3", "A b": "3"}
    assert found.content == expected[message]


def test_code_keeps_its_spaces_when_messages_are_compared() -> None:
    assert normalize_message("if x:\n    y") != normalize_message("if x:\n  y")


@pytest.mark.parametrize("pair", [("10²は？", "102は？"), ("①", "1"), ("㍑", "リットル")])
def test_letters_that_mean_something_else_are_another_message(pair: tuple[str, str]) -> None:
    assert normalize_message(pair[0]) != normalize_message(pair[1])


OTHERS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], str]] = {
    "another persona": ({"system": "あなたは花です。"}, {}, {}, ""),
    "another talk": ({"turns": (*PROMPT.turns, *PROMPT.turns)}, {}, {}, ""),
    "another message": ({"turns": (PromptMessage("user", "では"),), "message": "では"}, {}, {}, ""),
    "another form": ({"kind": "transcript"}, {}, {}, ""),
    "another stop": ({"stop": ("\n",)}, {}, {}, ""),
    "another temperature": ({}, {"temperature": 0.1}, {}, ""),
    "another length": ({}, {"max_tokens": 5}, {}, ""),
    "another seed": ({}, {"seed": 1}, {}, ""),
    "another model": ({}, {}, {"name": "other"}, ""),
    "another provider": ({}, {}, {"provider": "openai"}, ""),
    "another server": ({}, {}, {}, "http://other/v1"),
}  # fmt: skip


@pytest.mark.parametrize("what", OTHERS)
async def test_what_an_answer_depends_on_is_in_its_key(what: str) -> None:
    prompt, options, info, server = OTHERS[what]
    cache = CacheManager()
    await cache.cache_response(INFO, PROMPT, Options(), ANSWER)
    found = await cache.get_cached_response(
        INFO.model_copy(update=info),
        replace(PROMPT, **prompt),
        replace(Options(), **options),
        server=server,
    )
    assert found is None


async def test_patience_is_not_in_the_key() -> None:
    cache = CacheManager()
    await cache.cache_response(INFO, PROMPT, Options(), ANSWER)
    found = await cache.get_cached_response(INFO, PROMPT, Options(timeout=3))
    assert found is not None
    assert found.content == ANSWER.content


async def test_a_transcript_is_known_again_by_its_message(shared: RedisLink) -> None:
    cache = CacheManager(shared=shared)
    first, again, other = (
        Prompt(f"ユーザー：{said}\nさくら：", (), "transcript", said)
        for said in ("A b", "Ａ b", "c")
    )
    await cache.cache_response(INFO, first, Options(), ANSWER)
    assert await cache.get_cached_response(INFO, again, Options()) is not None
    assert await cache.get_cached_response(INFO, other, Options()) is None


# ── what is kept, and how long ────────────────────────────────────────────────────────────


@pytest.mark.parametrize("finish", ["length", "content_filter", "refusal", ""])
async def test_only_whole_answers_are_kept(finish: str) -> None:
    cache = CacheManager()
    await cache.cache_response(INFO, PROMPT, Options(), replace(ANSWER, finish_reason=finish))
    await cache.cache_response(INFO, PROMPT, Options(), replace(ANSWER, content=" \n"))
    assert await cache.get_cached_response(INFO, PROMPT, Options()) is None


async def test_an_answer_that_fails_or_is_stopped_is_not_kept(shared: RedisLink) -> None:
    cache = CacheManager(shared=shared)
    client = ScriptedClient(reply_with("途中", error=Offline()))
    with pytest.raises(Offline):
        await pieces(CachedClient(client, cache))
    client.script = reply_with("一", "二", "三")
    async with contextlib.aclosing(CachedClient(client, cache).stream(PROMPT, Options())) as chunks:
        async for _ in chunks:
            break
    assert await cache.get_cached_response(INFO, PROMPT, Options()) is None


async def test_an_answer_serves_for_its_time_and_memory_stays_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("persona_lab.clients.middleware.response_cache.MAX_ENTRIES", 3)
    now = 0.0
    cache = CacheManager(60, clock=lambda: now)
    for number in range(5):
        await cache.cache_response(INFO, replace(PROMPT, system=str(number)), Options(), ANSWER)
    kept = [
        await cache.get_cached_response(INFO, replace(PROMPT, system=str(number)), Options())
        for number in range(5)
    ]
    assert [found is not None for found in kept] == [False, False, True, True, True]
    now = 61.0
    assert await cache.get_cached_response(INFO, replace(PROMPT, system="4"), Options()) is None


async def test_redis_is_told_how_long_to_keep_an_answer(redis_server: RedisServer) -> None:
    from redis.asyncio import Redis

    shared = RedisLink(redis_server.url, timeout=10)
    await CacheManager(60, shared=shared).cache_response(INFO, PROMPT, Options(), ANSWER)
    async with Redis.from_url(redis_server.url) as redis:
        [key] = await redis.keys("persona_lab:*")
        assert 0 < await redis.pttl(key) <= 60_000
        assert "やあ" not in key.decode()
    await shared.aclose()


async def test_no_time_means_no_cache() -> None:
    client = ScriptedClient(reply_with("はい。"))
    cached = CachedClient(client, CacheManager(0))
    await pieces(cached)
    await pieces(cached)
    assert len(client.prompts) == 2


# ── the layer ─────────────────────────────────────────────────────────────────────────────


async def test_a_hit_streams_costs_nothing_and_says_so(shared: RedisLink) -> None:
    client = ScriptedClient(reply_with("こんにちは。" * 20, "では。"))
    cached = CachedClient(client, CacheManager(shared=shared))
    first, second = await pieces(cached), await pieces(cached)
    assert text(first) == text(second)
    assert len(client.prompts) == 1
    assert len(second) > 4
    assert second[-1].usage == Usage()
    assert second[-1].metadata == {"cache_hit": True}
    assert (second[-1].model, second[-1].finish_reason) == ("scripted-1", "stop")


# ── in the house ──────────────────────────────────────────────────────────────────────────


def fresh_chat(visitor: ChatUser) -> dict[str, str]:
    chat = visitor.lab.store.create_chat(user_id=visitor.user_id, agent_id=visitor.agent.id)
    return {**visitor.ids, "chat_id": chat.id}


def counted(*answers: str) -> Callable[..., AsyncGenerator[Chunk, None]]:
    """Another answer each time."""
    left = list(answers)

    async def play(prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        yield Chunk(left.pop(0))
        yield Chunk(finish_reason="stop", usage=Usage(10, 5), model="scripted-1")

    return play


async def test_the_same_beginning_of_a_talk_is_answered_from_the_cache(
    make_lab: MakeLab, places: dict[str, str]
) -> None:
    visitor = ChatUser(make_lab(counted("一", "二"), **places))
    ask = visitor.lab.service.generate_response
    first = await ask("やあ", **fresh_chat(visitor))
    second = await ask("やあ", **fresh_chat(visitor))
    assert (first.content, second.content) == ("一", "一")
    assert (first.metadata["cache_hit"], second.metadata["cache_hit"]) == (False, True)
    assert second.metadata["usage"]["total_tokens"] == second.metadata["cost"] == 0
    records = visitor.lab.store.records(user_id=visitor.user_id)
    assert [record.cache_hit for record in records] == [False, True]
    cache = visitor.lab.cache_manager
    assert (cache.hits, cache.misses) == (1, 1)


async def test_an_edited_persona_never_gets_an_old_answer(make_lab: MakeLab) -> None:
    visitor = ChatUser(make_lab(counted("一", "二")))
    ask = visitor.lab.service.generate_response
    await ask("やあ", **fresh_chat(visitor))
    visitor.lab.store.update_agent(
        visitor.agent.id, user_id=visitor.user_id, background="海辺の町で育った。"
    )
    assert (await ask("やあ", **fresh_chat(visitor))).content == "二"


async def test_a_regeneration_passes_the_cache_by(make_lab: MakeLab) -> None:
    visitor = ChatUser(make_lab(counted("一", "二")))
    await visitor.lab.service.generate_response("やあ", **visitor.ids)
    events = visitor.lab.service.regenerate_streaming(visitor.chat.id, visitor.user_id)
    assert [event.content async for event in events][-1] == "二"


async def test_trials_and_columns_are_always_asked_anew(make_lab: MakeLab) -> None:
    visitor = ChatUser(make_lab(counted("一", "二", "三")))
    lab = visitor.lab
    events = lab.service.answer(visitor.agent, "やあ", user_id=visitor.user_id)
    said = [[event.content async for event in events][-1]]
    both = [Contestant("", visitor.agent)] * 2
    async for cells in lab.comparison.run("やあ", both, visitor.user_id):
        last = cells
    said += [cell.text for cell in last]
    assert sorted(said) == ["一", "三", "二"]
    assert lab.cache_manager.hits == 0


async def test_a_stand_ins_answer_is_not_kept_under_anothers_name(make_lab: MakeLab) -> None:
    visitor = ChatUser(
        make_lab(
            llm_provider="mock",
            llm_model="echo?fail=offline",
            llm_fallback="mock:echo",
            llm_retries=0,
        )
    )
    ask = visitor.lab.service.generate_response
    first = await ask("やあ", **fresh_chat(visitor))
    second = await ask("やあ", **fresh_chat(visitor))
    assert "fallback_from" in first.metadata
    assert second.metadata["fallback_from"][0]["code"] == "offline"
    assert second.metadata["cache_hit"] is True
    assert second.metadata["spec"] == "mock:echo"


async def test_steps_that_were_changed_since_apply_to_a_cached_answer(make_lab: MakeLab) -> None:
    visitor = ChatUser(make_lab(reply_with("テスト太郎：はい。")))
    ask = visitor.lab.service.generate_response
    await ask("やあ", **fresh_chat(visitor))
    visitor.lab.response_processor.steps = ()
    second = await ask("やあ", **fresh_chat(visitor))
    assert second.content == "テスト太郎：はい。"
    assert second.metadata["cache_hit"] is True


async def test_the_lab_answers_while_redis_is_away(
    make_lab: MakeLab, redis_server: RedisServer
) -> None:
    visitor = ChatUser(make_lab(counted("一", "二", "三"), redis_url=redis_server.url))
    visitor.lab.shared.probe_interval = 0
    ask = visitor.lab.service.generate_response
    assert (await ask("やあ", **fresh_chat(visitor))).content == "一"
    redis_server.stop()
    assert (await ask("やあ", **fresh_chat(visitor))).content == "二"
    assert (await ask("やあ", **fresh_chat(visitor))).content == "二"
    redis_server.start()
    await wait_for_redis(visitor.lab.shared)
    assert (await ask("やあ", **fresh_chat(visitor))).content == "三"
