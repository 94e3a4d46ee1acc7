"""Redis that goes away and comes back, and work that goes on meanwhile."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator

import pytest
from support.backends import RedisServer, free_port, wait_for_redis

from persona_lab.db.redis import COMMAND_TIMEOUT_S, RedisLink, SharedCache


@pytest.fixture
async def link(redis_server: RedisServer) -> AsyncIterator[RedisLink]:
    opened = RedisLink(redis_server.url, probe_interval=0)
    yield opened
    await opened.aclose()


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.__dict__["event"] for record in caplog.records if "event" in record.__dict__]


async def probes_to_end() -> None:
    """Wait for the tasks in the background, which are probes."""
    probes = asyncio.all_tasks() - {asyncio.current_task()}
    if probes:
        await asyncio.wait(probes)


async def test_two_replicas_see_each_others_values(redis_server: RedisServer) -> None:
    one, two = RedisLink(redis_server.url), RedisLink(redis_server.url)
    await SharedCache("x", 60, shared=one).put("k", {"答え": [1]})
    assert await SharedCache("x", 60, shared=two).get("k") == {"答え": [1]}
    assert await SharedCache("another", 60, shared=two).get("k") is None
    await one.aclose()
    await two.aclose()


@pytest.mark.parametrize("how", ["stop", "pause"])
async def test_link_uses_memory_when_redis_is_down_and_recovers(
    redis_server: RedisServer, link: RedisLink, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "persona_lab.shared")
    keep = SharedCache("x", 60, shared=link)
    await keep.put("before", 1)
    getattr(redis_server, how)()
    for number in range(20):
        await keep.put(f"k{number}", number)
        assert await keep.get(f"k{number}") == number
    assert link.is_down
    assert lines(caplog) == ["redis_away"]
    redis_server.start()
    await wait_for_redis(link)
    assert lines(caplog) == ["redis_away", "redis_back"]
    await keep.put("after", 2)
    assert await SharedCache("x", 60, shared=link).get("after") == 2


@pytest.mark.parametrize(
    ("refuse", "accept"),
    [
        ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0"),
        ("CONFIG SET min-replicas-to-write 1", "CONFIG SET min-replicas-to-write 0"),
        ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE"),
    ],
)
async def test_link_is_down_while_redis_refuses_writes(
    redis_server: RedisServer,
    link: RedisLink,
    refuse: str,
    accept: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "persona_lab.shared")
    keep = SharedCache("x", 60, shared=link)
    assert redis_server.send(refuse) == b"+OK\r\n"
    try:
        for number in range(10):
            await keep.put(f"k{number}", number)
            assert await keep.get(f"k{number}") == number
            await probes_to_end()
        assert lines(caplog) == ["redis_away"]
    finally:
        assert redis_server.send(accept) == b"+OK\r\n"
    await wait_for_redis(link)
    await keep.put("after", 2)
    assert lines(caplog) == ["redis_away", "redis_back"]
    assert await SharedCache("x", 60, shared=link).get("after") == 2


async def test_only_the_first_call_waits_when_redis_hangs(
    redis_server: RedisServer, link: RedisLink
) -> None:
    keep = SharedCache("x", 60, shared=link)
    await keep.put("k", 1)
    redis_server.pause()
    waited = []
    for _ in range(5):
        began = time.monotonic()
        await asyncio.gather(*(keep.get("k") for _ in range(8)))
        waited.append(time.monotonic() - began)
    assert waited[0] < 2 * COMMAND_TIMEOUT_S + 0.5
    assert max(waited[1:]) < COMMAND_TIMEOUT_S / 2
    redis_server.resume()


async def test_link_probes_once_per_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    link = RedisLink(f"redis://127.0.0.1:{free_port()}", probe_interval=5, clock=lambda: now)
    looks = 0
    see = link.probe

    async def counted() -> None:
        nonlocal looks
        looks += 1
        await see()

    monkeypatch.setattr(link, "probe", counted)
    keep = SharedCache("x", 60, shared=link)
    await asyncio.gather(*(keep.get("k") for _ in range(50)))
    assert looks == 0
    for now in (4.9, 5.0, 9.9, 10.1):  # noqa: B007 - the clock reads it
        await asyncio.gather(*(keep.get("k") for _ in range(50)))
        await probes_to_end()
    assert looks == 2
    await link.aclose()


async def test_link_stays_up_when_redis_restarts_between_calls(
    redis_server: RedisServer, link: RedisLink
) -> None:
    keep = SharedCache("x", 60, shared=link)
    await keep.put("k", 1)
    redis_server.stop()
    redis_server.start()
    assert await keep.get("k") is None
    assert not link.is_down


async def test_without_an_address_nothing_is_loaded_for_redis() -> None:
    import subprocess
    import sys

    code = (
        "import asyncio, sys\n"
        "from persona_lab.db.redis import SharedCache\n"
        "from persona_lab.clients.middleware.rate_limit import RateLimiter\n"
        "keep = SharedCache('x', 60)\n"
        "asyncio.run(keep.put('k', 1))\n"
        "assert asyncio.run(keep.get('k')) == 1\n"
        "sys.exit('redis' in sys.modules or 'limits' in sys.modules)\n"
    )
    ended = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code])
    assert ended.returncode == 0


def test_connections_of_one_loop_are_not_used_on_another(redis_server: RedisServer) -> None:
    link = RedisLink(redis_server.url)
    keep = SharedCache("x", 60, shared=link)

    async def use(value: int) -> object:
        await keep.put("k", value)
        try:
            return await keep.get("k")
        finally:
            await link.aclose()

    assert [asyncio.run(use(number)) for number in range(3)] == [0, 1, 2]
    assert not link.is_down
