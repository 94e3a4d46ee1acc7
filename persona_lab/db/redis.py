"""What replicas share: Redis, where ``REDIS_URL`` names one, with this process's memory behind it.

Whatever is kept here can be lost without harm: cached answers and contexts, counted quotas. So
while Redis is away the work goes on in memory. It is said once, one line when it goes and one when
it is back. A caller waits for it twice its ``patience`` at most, and only while it is taken to be
well: later callers don't wait at all, and a single write, beside them, looks every few seconds
whether it is back. One that only reads (a replica, a full memory, a disk that fails) is away too:
it would answer a ping, and refuse the next value.
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

PATIENCE = 0.5
"""Seconds for a connection, and for an answer; an errand of several gets twice as long."""
CONNECTIONS = 32
"""As many as one loop uses at a time: more would be slower than to wait in line."""
LOOK_EVERY = 2.0
"""Seconds between two looks at a Redis that is away."""
LOOK_KEPT = 1000
"""Milliseconds that what a look has written stays."""
PREFIX = "persona_lab:1:"
"""Before every key: a Redis may serve others too. The number changes with the form of the values,
so that replicas of two versions don't read each other's."""

_T = TypeVar("_T")


class RedisLink:
    """The way to Redis. ``clock`` counts seconds."""

    def __init__(
        self,
        url: str | None = None,
        *,
        look_every: float = LOOK_EVERY,
        patience: float = PATIENCE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.url = url
        self.probe_interval = look_every
        self.is_down = False
        self._patience = patience
        self._clock = clock
        self._look_at = 0.0
        self._looking: asyncio.Task[None] | None = None
        self._open: WeakKeyDictionary[
            asyncio.AbstractEventLoop, tuple[Redis, asyncio.Semaphore]
        ] = WeakKeyDictionary()

    async def run(
        self, work: Callable[[Redis], Awaitable[_T]], otherwise: Callable[[], Awaitable[_T]]
    ) -> _T:
        """What ``work`` gives with Redis; what ``otherwise`` gives where there is none to ask."""
        if self.url is None:
            return await otherwise()
        if self.is_down:
            self._start_probe()
            return await otherwise()
        redis, line = await self._redis()
        async with line:  # waiting for one's turn is no fault of Redis
            if self.is_down:  # for those before have found out
                return await otherwise()
            try:
                async with asyncio.timeout(2 * self._patience):
                    return await work(redis)
            except _faults() as error:
                self._mark_down(error)
        return await otherwise()

    async def aclose(self) -> None:
        """Let go of the connections of this loop; those of others went with theirs."""
        if self._looking is not None and not self._looking.done():
            if self._looking.get_loop() is asyncio.get_running_loop():
                self._looking.cancel()
                await asyncio.wait([self._looking])
            self._looking = None
        redis, _ = self._open.pop(asyncio.get_running_loop(), (None, None))
        if redis is not None:
            await redis.aclose()

    async def _redis(self) -> tuple[Redis, asyncio.Semaphore]:
        """The client of this loop, and the line of those who want to use it."""
        loop = asyncio.get_running_loop()
        if loop not in self._open:
            await import_in_thread("redis.asyncio")
            self._open.setdefault(loop, (self._connect(), asyncio.Semaphore(CONNECTIONS)))
        return self._open[loop]

    def _connect(self) -> Redis:
        from redis.asyncio import Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
        from redis.exceptions import ConnectionError as Disconnected

        # A connection that was open when Redis was started anew is found broken once.
        again: Any = Retry(NoBackoff(), 1, (Disconnected,))
        redis: Redis = Redis.from_url(
            str(self.url),
            socket_connect_timeout=self._patience,
            socket_timeout=self._patience,
            retry=again,
        )
        return redis

    def _mark_down(self, error: BaseException) -> None:
        self._look_at = self._clock() + self.probe_interval
        if not self.is_down:
            self.is_down = True
            log.warning(
                "Redis is away: going on in this process's memory",
                extra={"event": "redis_away", "error_class": type(error).__name__},
            )

    def _start_probe(self) -> None:
        """See whether Redis is back, one look at a time, and nobody waiting for it."""
        if self._clock() < self._look_at or (self._looking and not self._looking.done()):
            return
        self._look_at = self._clock() + self.probe_interval
        self._looking = asyncio.create_task(self._probe())

    async def _probe(self) -> None:
        redis, _ = await self._redis()
        try:
            async with asyncio.timeout(2 * self._patience):
                await redis.set(f"{PREFIX}look", 1, px=LOOK_KEPT)
        except _faults():
            return
        if self.is_down:
            self.is_down = False
            log.warning("Redis is back", extra={"event": "redis_back"})


def _faults() -> tuple[type[BaseException], ...]:
    from redis.exceptions import RedisError

    return (RedisError, OSError, TimeoutError)


class SharedCache:
    """A cache of plain values by their keys, for ``ttl`` seconds, of at most ``size`` in memory.

    In Redis the values are JSON, and the number of them is Redis's to bound (``maxmemory``).
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
        self._prefix = f"{PREFIX}{name}:"
        self._shared = shared if shared is not None else RedisLink()
        self._memory: TTLCache[str, Any] = TTLCache(size, ttl, timer=clock)

    async def get(self, key: str) -> Any:
        """The value; None where there is none."""

        async def from_redis(redis: Redis) -> Any:
            return await redis.get(self._prefix + key)

        async def from_memory() -> Any:
            return self._memory.get(key)

        found = await self._shared.run(from_redis, from_memory)
        return None if found is None else json.loads(found)

    async def put(self, key: str, value: Any) -> None:
        text = json.dumps(value, ensure_ascii=False)

        async def to_redis(redis: Redis) -> None:
            await redis.set(self._prefix + key, text, px=max(1, round(self.ttl * 1000)))

        async def to_memory() -> None:
            self._memory[key] = text

        await self._shared.run(to_redis, to_memory)

    async def drop(self, key: str) -> None:
        self._memory.pop(key, None)

        async def in_redis(redis: Redis) -> None:
            await redis.delete(self._prefix + key)

        async def done() -> None:
            pass

        await self._shared.run(in_redis, done)
