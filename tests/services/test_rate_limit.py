"""Quotas of one user: what counts, what doesn't, and the word about when it is over."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable
from datetime import datetime
from typing import Any

import pytest
from support.backends import RedisServer, wait_for_redis
from support.fakes import ChatUser, ScriptedClient, reply_with
from support.texts import FALLBACKS

from persona_lab.clients.base import estimate_tokens
from persona_lab.clients.middleware.rate_limit import RateLimitedClient, RateLimiter, Reservation
from persona_lab.clients.middleware.wrapper import CallContext
from persona_lab.db.redis import RedisLink
from persona_lab.errors import (
    ErrorType,
    GlobalTokenQuotaExceeded,
    Offline,
    RateLimitError,
    TokenQuotaExceeded,
)
from persona_lab.lab import Lab
from persona_lab.settings import Settings
from persona_lab.types import Chunk, Options, Prompt

MakeLab = Callable[..., Lab]
PROMPT = Prompt("あなたはさくらです。", message="やあ")
ESTIMATE = estimate_tokens(str(PROMPT))


async def allowed(limiter: RateLimiter, times: int, tokens: int = 0, user: str = "u") -> int:
    """How many of ``times`` requests at once are let through."""
    asked = [limiter.check_and_update(user, tokens) for _ in range(times)]
    ended = await asyncio.gather(*asked, return_exceptions=True)
    refused = [error for error in ended if not isinstance(error, Reservation)]
    assert all(isinstance(error, RateLimitError) for error in refused), refused
    return len(ended) - len(refused)


async def until_allowed(limiter: RateLimiter, tokens: int = 0) -> None:
    async with asyncio.timeout(10):
        while not await allowed(limiter, 1, tokens):  # noqa: ASYNC110 - time rings no bell
            await asyncio.sleep(0.01)


def remote(play: Any) -> ScriptedClient:
    """A model whose tokens cost money."""
    client = ScriptedClient(play)
    client.info = client.info.model_copy(update={"provider": "openai"})
    return client


# ── requests ──────────────────────────────────────────────────────────────────────────────


def test_the_defaults_are_those_of_the_specification() -> None:
    assert (Settings().requests_per_minute, Settings().tokens_per_day) == (60, 100_000)


@pytest.mark.core
async def test_callers_at_once_cannot_pass_the_limit_together(shared: RedisLink) -> None:
    limiter = RateLimiter(60, 0, shared=shared, minute=600)
    assert await allowed(limiter, 200) == 60
    assert await allowed(limiter, 5) == 0


async def test_two_replicas_count_together(redis_server: RedisServer) -> None:
    links = [RedisLink(redis_server.url, timeout=10) for _ in range(2)]
    replicas = [RateLimiter(60, 100, shared=link, minute=600) for link in links]
    through = await asyncio.gather(*(allowed(replica, 50, 1) for replica in replicas))
    assert sum(through) == 60
    assert await allowed(replicas[0], 1, 41, "other") == 1
    with pytest.raises(TokenQuotaExceeded):
        await replicas[1].check_and_update("other", 60)
    for link in links:
        await link.aclose()


async def test_every_user_has_a_quota_of_their_own(shared: RedisLink) -> None:
    limiter = RateLimiter(2, 10, shared=shared, minute=600)
    assert await allowed(limiter, 5, 1) == 2
    assert await allowed(limiter, 1, 10, "another") == 1


async def test_zero_sets_no_limit(shared: RedisLink) -> None:
    assert await allowed(RateLimiter(0, 0, shared=shared), 300, 10**9) == 300
    assert await allowed(RateLimiter(0, 50, shared=shared), 300, 1) == 50
    assert await allowed(RateLimiter(50, 0, shared=shared, minute=600), 300, 10**9) == 50


async def test_refusal_has_the_exact_time_of_its_end(shared: RedisLink) -> None:
    limiter = RateLimiter(4, 0, shared=shared, minute=2)
    for _ in range(2):  # the second time the last minute reaches over
        while await allowed(limiter, 1):
            pass
        with pytest.raises(RateLimitError) as refused:
            await limiter.check_and_update("u", 0)
        told = refused.value.details
        began, lifts = time.time(), datetime.fromisoformat(told["lifts_at"]).timestamp()
        await until_allowed(limiter)
        assert time.time() <= lifts + 0.2
        assert 1 <= told["seconds"] <= 3
        assert time.time() - began > told["seconds"] - 1.5


def test_concurrent_first_requests_of_a_process_are_allowed() -> None:
    code = (
        "import asyncio\n"
        "from persona_lab.clients.middleware.rate_limit import RateLimiter\n"
        "async def main():\n"
        "    limiter = RateLimiter(60, 1000)\n"
        "    await asyncio.gather(*(limiter.check_and_update('u', 1) for _ in range(32)))\n"
        "asyncio.run(main())\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ── tokens ────────────────────────────────────────────────────────────────────────────────


async def test_what_is_set_aside_counts_until_it_is_settled(shared: RedisLink) -> None:
    limiter = RateLimiter(0, 100, shared=shared)
    aside = await limiter.check_and_update("u", 60)
    with pytest.raises(TokenQuotaExceeded):
        await limiter.check_and_update("u", 41)
    await limiter.reconcile("u", aside, 10)
    aside = await limiter.check_and_update("u", 90)
    with pytest.raises(TokenQuotaExceeded):
        await limiter.check_and_update("u", 1)
    await limiter.reconcile("u", aside, 190)
    with pytest.raises(TokenQuotaExceeded):
        await limiter.check_and_update("u", 1)
    await limiter.check_and_update("u", 0)


async def test_the_longest_answer_is_set_aside_as_far_as_there_is_room(shared: RedisLink) -> None:
    limiter = RateLimiter(0, 100, shared=shared)
    first = await limiter.check_and_update("u", 10, 50)
    second = await limiter.check_and_update("u", 10, 50)
    assert (first.tokens, second.tokens) == (60, 40)
    with pytest.raises(TokenQuotaExceeded):
        await limiter.check_and_update("u", 1, 50)
    await limiter.reconcile("u", first, 20)
    assert (await limiter.check_and_update("u", 10, 20)).tokens == 30
    assert (await RateLimiter(0, 0, shared=shared).check_and_update("u", 10, 50)).tokens == 10


async def test_answers_at_once_cannot_overspend_the_day_together(shared: RedisLink) -> None:
    limiter = RateLimiter(0, 1000, shared=shared)
    asked = [limiter.check_and_update("u", 30, 200) for _ in range(20)]
    ended = await asyncio.gather(*asked, return_exceptions=True)
    aside = [each.tokens for each in ended if isinstance(each, Reservation)]
    assert sum(aside) <= 1000
    assert sum(aside) > 1000 - 30
    assert len(aside) < len(ended)


async def test_all_users_together_have_a_day_of_their_own(shared: RedisLink) -> None:
    limiter = RateLimiter(0, 60, total=100, shared=shared)
    aside = await limiter.check_and_update("one", 60)
    with pytest.raises(GlobalTokenQuotaExceeded) as refused:
        await limiter.check_and_update("two", 41)
    assert refused.value.details["limit"] == 100
    await limiter.check_and_update("two", 40)
    await limiter.reconcile("one", aside, 10)
    await limiter.check_and_update("three", 50)
    with pytest.raises(GlobalTokenQuotaExceeded):
        await limiter.check_and_update("four", 1)


async def test_user_quota_is_not_charged_when_the_global_quota_refuses(shared: RedisLink) -> None:
    limiter = RateLimiter(3, 100, total=120, shared=shared, minute=600)
    await limiter.check_and_update("one", 100)
    assert await allowed(limiter, 5, 21, "two") == 0
    assert await allowed(limiter, 3, 6, "two") == 3


async def test_concurrent_new_users_cannot_exceed_the_global_quota(shared: RedisLink) -> None:
    limiter = RateLimiter(0, 50, total=100, shared=shared)
    through = await asyncio.gather(*(allowed(limiter, 1, 7, f"u{n}") for n in range(50)))
    assert sum(through) == 14


@pytest.mark.core
async def test_callers_at_once_cannot_spend_more_than_there_is(shared: RedisLink) -> None:
    assert await allowed(RateLimiter(0, 100, shared=shared), 50, 7) == 14


async def test_what_was_refused_costs_nothing(shared: RedisLink) -> None:
    limiter = RateLimiter(3, 100, shared=shared, minute=600)
    assert await allowed(limiter, 5, 101) == 0
    assert await allowed(limiter, 3, 33) == 3


async def test_token_day_ends_at_the_reported_time(shared: RedisLink) -> None:
    limiter = RateLimiter(0, 100, shared=shared, day=1)
    await limiter.check_and_update("u", 100)
    with pytest.raises(TokenQuotaExceeded) as refused:
        await limiter.check_and_update("u", 1)
    lifts = datetime.fromisoformat(refused.value.details["lifts_at"]).timestamp()
    await until_allowed(limiter, 50)
    assert time.time() <= lifts + 0.2


async def test_reconcile_changes_nothing_when_the_day_has_ended(
    shared: RedisLink,
) -> None:
    limiter = RateLimiter(0, 100, shared=shared, day=1)
    aside = await limiter.check_and_update("u", 50)
    await asyncio.sleep(max(0.0, max(aside.until) - time.time()) + 0.1)
    await limiter.check_and_update("u", 80)
    for spent in (0, 90):
        await limiter.reconcile("u", aside, spent)
    with pytest.raises(TokenQuotaExceeded):
        await limiter.check_and_update("u", 21)
    await limiter.check_and_update("u", 20)


async def test_what_was_set_aside_in_memory_is_not_settled_in_redis(
    redis_server: RedisServer,
) -> None:
    link = RedisLink(redis_server.url, probe_interval=0, timeout=10)
    limiter = RateLimiter(0, 100, shared=link)
    redis_server.stop()
    in_memory = await limiter.check_and_update("u", 50)
    redis_server.start()
    await wait_for_redis(link)
    await limiter.check_and_update("u", 60)
    await limiter.reconcile("u", in_memory, 0)
    with pytest.raises(TokenQuotaExceeded):
        await limiter.check_and_update("u", 41)
    await link.aclose()


# ── the layer ─────────────────────────────────────────────────────────────────────────────


async def spend(client: ScriptedClient, limiter: RateLimiter, most: int = 99) -> str:
    said = ""
    answer = RateLimitedClient(client, limiter, CallContext("u")).stream(PROMPT, Options())
    async with contextlib.aclosing(answer) as chunks:
        async for chunk in chunks:
            said += chunk.text
            most -= 1
            if not most:
                break
    return said


async def left(limiter: RateLimiter) -> int:
    """Tokens that are left of the day."""
    low, high = 0, limiter.tokens
    while low < high:
        middle = (low + high + 1) // 2
        try:
            aside = await limiter.check_and_update("u", middle)
        except TokenQuotaExceeded:
            high = middle - 1
        else:
            await limiter.reconcile("u", aside, 0)
            low = middle
    return low


async def test_an_answer_costs_what_the_provider_counted() -> None:
    limiter = RateLimiter(0, 1000)
    await spend(remote(reply_with("は", "い")), limiter)
    assert await left(limiter) == 1000 - 14


async def test_an_answer_that_is_stopped_costs_what_came_of_it() -> None:
    limiter = RateLimiter(0, 1000)
    said = await spend(remote(reply_with("長い話が", "続きます")), limiter, most=1)
    assert await left(limiter) == 1000 - ESTIMATE - estimate_tokens(said)


async def test_prompt_tokens_count_when_reader_leaves_before_text() -> None:
    asked = asyncio.Event()

    async def play(prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        asked.set()
        await asyncio.sleep(60)
        yield Chunk("は")

    limiter = RateLimiter(0, 1000)
    waiting = asyncio.create_task(spend(remote(play), limiter))
    await asyncio.wait_for(asked.wait(), 10)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await left(limiter) == 1000 - ESTIMATE


async def test_prompt_above_the_daily_quota_gets_no_short_wait() -> None:
    with pytest.raises(TokenQuotaExceeded) as wrong:
        await RateLimiter(0, 100).check_and_update("u", 101)
    assert wrong.value.details["seconds"] > 3600


async def test_an_answer_that_never_began_costs_no_tokens() -> None:
    limiter = RateLimiter(0, 1000)
    with pytest.raises(Offline):
        await spend(remote(reply_with(error=Offline())), limiter)
    assert await left(limiter) == 1000


async def test_free_models_count_requests_but_no_tokens() -> None:
    limiter = RateLimiter(2, 1, minute=600)
    client = ScriptedClient(reply_with("はい。"))
    await spend(client, limiter)
    await spend(client, limiter)
    with pytest.raises(RateLimitError):
        await spend(client, limiter)
    assert len(client.prompts) == 2


async def test_a_free_model_answers_whose_tokens_are_spent() -> None:
    limiter = RateLimiter(0, 20, total=20)
    await limiter.reconcile("u", await limiter.check_and_update("u", 20), 30)
    with pytest.raises(TokenQuotaExceeded):
        await spend(remote(reply_with("はい。")), limiter)
    assert await spend(ScriptedClient(reply_with("はい。")), limiter) == "はい。"


# ── in the house ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("language", ["ja", "en"])
async def test_refusal_names_its_end_and_keeps_the_message(
    make_lab: MakeLab, places: dict[str, str], language: str
) -> None:
    visitor = ChatUser(
        make_lab(reply_with("はい。"), requests_per_minute=1, **places), language=language
    )
    ask = visitor.lab.service.generate_response
    await ask("一", **visitor.ids)
    refused = await ask("二", **visitor.ids)
    assert refused.metadata["code"] == "too_many_requests"
    assert refused.metadata["error_type"] == ErrorType.RATE_LIMIT.value
    first_words = FALLBACKS("too_many_requests", language, seconds="|", until="|", zone="|")
    assert refused.content.startswith(first_words.partition("|")[0])
    assert 1 <= refused.metadata["seconds"] <= 60
    assert datetime.fromisoformat(refused.metadata["lifts_at"]).tzinfo is not None
    assert visitor.thread()[2][:2] == ("user", "二")
    assert len(visitor.lab.clients.get().prompts) == 1  # type: ignore[attr-defined]


async def test_the_words_about_a_spent_day_name_the_quota(make_lab: MakeLab) -> None:
    play = reply_with("はい。")
    lab = make_lab(client=remote(play), tokens_per_day=100)
    visitor = ChatUser(lab)
    reply = await lab.service.generate_response("長い" * 100, **visitor.ids)
    assert reply.metadata["code"] == "tokens_spent"
    assert "100トークン" in reply.content
    assert "ローカルモデル" in reply.content


async def test_new_visitor_is_refused_when_global_quota_is_used_up(
    make_lab: MakeLab,
) -> None:
    play = reply_with("はい。")
    lab = make_lab(client=remote(play), tokens_per_day_total=500)
    await lab.rate_limiter.check_and_update("somebody before", 499)
    reply = await lab.service.generate_response("やあ", **ChatUser(lab).ids)
    assert reply.metadata["code"] == "house_spent"
    assert "500トークン" in reply.content


async def test_fallback_costs_no_further_request(make_lab: MakeLab) -> None:
    lab = make_lab(requests_per_minute=1, llm_fallback="mock:echo", llm_retries=0)
    reply = await lab.service.generate_response(
        "やあ", **ChatUser(lab).ids, model="mock:echo?fail=bad_key"
    )
    assert reply.metadata["spec"] == "mock:echo"
    assert reply.metadata["fallback_from"][0]["code"] == "bad_key"


async def test_cached_answers_spend_no_quota(make_lab: MakeLab) -> None:
    visitor = ChatUser(make_lab(reply_with("はい。"), requests_per_minute=1))
    for _ in range(5):
        chat = visitor.lab.store.create_chat(user_id=visitor.user_id, agent_id=visitor.agent.id)
        reply = await visitor.lab.service.generate_response(
            "やあ", **{**visitor.ids, "chat_id": chat.id}
        )
        assert reply.content == "はい。"


async def test_limits_use_memory_while_redis_is_down(
    redis_server: RedisServer,
) -> None:
    link = RedisLink(redis_server.url, probe_interval=0, timeout=10)
    limiter = RateLimiter(3, 0, shared=link, minute=600)
    assert await allowed(limiter, 2) == 2
    redis_server.stop()
    assert await allowed(limiter, 9) == 3
    redis_server.start()
    await wait_for_redis(link)
    assert await allowed(limiter, 9) == 3
    assert await allowed(RateLimiter(3, 0, shared=link, minute=600), 1) == 0
    await link.aclose()
