"""State that replicas share through Redis, with this process's memory as the fallback.

Everything stored here can be lost without harm: cached answers and contexts, and rate limits.
Without ``REDIS_URL``, or while Redis is down, the memory of the process is used.

A failed operation marks Redis as down, and later operations skip it. A background task then
writes a probe key every few seconds, and marks it as up when that succeeds. A probe writes, because
a Redis that can't write (a replica, a full memory, a full disk) still answers a ping. The log has
one line when Redis goes down and one when it is up again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

from cachetools import TTLCache

if TYPE_CHECKING:
    from redis.asyncio import Redis
from persona_lab.lazy_imports import import_in_thread

log = logging.getLogger("persona_lab.shared")

COMMAND_TIMEOUT_S = 0.5
"""Timeout of a connection and of a command. An operation of several commands has twice that."""
MAX_CONNECTIONS = 32
"""Maximum number of connections per event loop. More are slower than a queue."""
PROBE_INTERVAL_S = 2.0
"""Pause between probes while Redis is down."""
PROBE_TTL_MS = 1000
"""Expiry time of the probe key."""
KEY_PREFIX = "persona_lab:1:"
"""Prefix of all keys. Its number is the version of the format of values: replicas with different
formats don't read each other's values.
"""

_T = TypeVar("_T")


class RedisLink:
    """A connection to Redis that falls back to memory.

    Args:
        url: The address of Redis; None uses memory only.
        probe_interval: Seconds between probes while Redis is down.
        timeout: Timeout of a command in seconds.
        clock: Returns monotonic seconds.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        probe_interval: float = PROBE_INTERVAL_S,
        timeout: float = COMMAND_TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.url = url
        self.probe_interval = probe_interval
        self.is_down = False
        self._timeout = timeout
        self._clock = clock
        self._next_probe_at = 0.0
        self._probe_task: asyncio.Task[None] | None = None
        self._open: WeakKeyDictionary[
            asyncio.AbstractEventLoop, tuple[Redis, asyncio.Semaphore]
        ] = WeakKeyDictionary()

    async def run(
        self, work: Callable[[Redis], Awaitable[_T]], otherwise: Callable[[], Awaitable[_T]]
    ) -> _T:
        """Return the result of ``work`` with Redis, or that of ``otherwise`` without it.

        Args:
            work: An operation on Redis.
            otherwise: The same operation on the process's memory.
        """
        if self.url is None:
            return await otherwise()
        if self.is_down:
            self._start_probe()
            return await otherwise()
        redis, limit = await self._redis()
        async with limit:  # the time in the queue doesn't count as a timeout
            if self.is_down:  # an earlier operation has failed meanwhile
                return await otherwise()
            try:
                async with asyncio.timeout(2 * self._timeout):
                    return await work(redis)
            except _redis_errors() as error:
                self._mark_down(error)
        return await otherwise()

    async def aclose(self) -> None:
        """Close the connections of the running event loop."""
        if self._probe_task is not None and not self._probe_task.done():
            if self._probe_task.get_loop() is asyncio.get_running_loop():
                self._probe_task.cancel()
                await asyncio.wait([self._probe_task])
            self._probe_task = None
        redis, _ = self._open.pop(asyncio.get_running_loop(), (None, None))
        if redis is not None:
            await redis.aclose()

    async def _redis(self) -> tuple[Redis, asyncio.Semaphore]:
        """Return the client of the running event loop, and the semaphore that limits its use."""
        loop = asyncio.get_running_loop()
        if loop not in self._open:
            await import_in_thread("redis.asyncio")
            self._open.setdefault(loop, (self._connect(), asyncio.Semaphore(MAX_CONNECTIONS)))
        return self._open[loop]

    def _connect(self) -> Redis:
        from redis.asyncio import Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
        from redis.exceptions import ConnectionError as Disconnected

        # After a restart of Redis, each pooled connection fails once.
        retry: Any = Retry(NoBackoff(), 1, (Disconnected,))
        redis: Redis = Redis.from_url(
            str(self.url),
            socket_connect_timeout=self._timeout,
            socket_timeout=self._timeout,
            retry=retry,
        )
        return redis

    def _mark_down(self, error: BaseException) -> None:
        self._next_probe_at = self._clock() + self.probe_interval
        if not self.is_down:
            self.is_down = True
            log.warning(
                "Redis is away: going on in this process's memory",
                extra={"event": "redis_away", "error_class": type(error).__name__},
            )

    def _start_probe(self) -> None:
        """Start a probe in the background, unless one is running or it is too early."""
        if self._clock() < self._next_probe_at or (
            self._probe_task and not self._probe_task.done()
        ):
            return
        self._next_probe_at = self._clock() + self.probe_interval
        self._probe_task = asyncio.create_task(self.probe())

    async def probe(self) -> None:
        """Write the probe key, and mark Redis as up if that succeeds."""
        redis, _ = await self._redis()
        try:
            async with asyncio.timeout(2 * self._timeout):
                await redis.set(f"{KEY_PREFIX}probe", 1, px=PROBE_TTL_MS)
        except _redis_errors():
            return
        if self.is_down:
            self.is_down = False
            log.warning("Redis is back", extra={"event": "redis_back"})


def _redis_errors() -> tuple[type[BaseException], ...]:
    from redis.exceptions import RedisError

    return (RedisError, OSError, TimeoutError)


class SharedCache:
    """A cache of JSON values with an expiry time.

    Args:
        name: A part of its keys in Redis.
        ttl: Seconds until a value expires.
        size: Maximum number of values in memory. In Redis, ``maxmemory`` limits them.
        shared: The connection to Redis; None uses memory only.
        clock: Returns monotonic seconds.
    """

    def __init__(
        self,
        name: str,
        ttl: float,
        *,
        size: int = 1024,
        shared: RedisLink | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ttl = ttl
        self._prefix = f"{KEY_PREFIX}{name}:"
        self._shared = shared if shared is not None else RedisLink()
        self._memory: TTLCache[str, Any] = TTLCache(size, ttl, timer=clock)

    async def get(self, key: str) -> Any:
        """Return the value of ``key``; None without one."""

        async def from_redis(redis: Redis) -> Any:
            return await redis.get(self._prefix + key)

        async def from_memory() -> Any:
            return self._memory.get(key)

        found = await self._shared.run(from_redis, from_memory)
        return None if found is None else json.loads(found)

    async def put(self, key: str, value: Any) -> None:
        """Store a value, which JSON can represent, until it expires."""
        text = json.dumps(value, ensure_ascii=False)

        async def to_redis(redis: Redis) -> None:
            await redis.set(self._prefix + key, text, px=max(1, round(self.ttl * 1000)))

        async def to_memory() -> None:
            self._memory[key] = text

        await self._shared.run(to_redis, to_memory)

    async def drop(self, key: str) -> None:
        """Remove the value of ``key``."""
        self._memory.pop(key, None)

        async def in_redis(redis: Redis) -> None:
            await redis.delete(self._prefix + key)

        async def done() -> None:
            pass

        await self._shared.run(in_redis, done)
