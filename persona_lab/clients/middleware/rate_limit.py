"""RateLimiter: how much users may ask for, so that one can't use up what is there for all.

Requests are counted in a sliding window, tokens in a window that begins with the first of them and
lasts a day. A request that begins sets its estimate aside at once, with as much of the longest
answer as is left, and settles it with what was really spent, so that many at a time can't
overshoot. An answer that began within the quota is never cut off by it.

Every model's requests count, for they all keep this machine busy. Tokens count where they cost
money: those of a local model and of the mock don't, or a designer's own laptop would fall silent
after some hundred messages a day; nor do those that a visitor's own key pays for. An answer from
the cache is none of either.

Who comes without their cookie is another user: what all users together may spend in a day has a
limit of its own.

Counts are kept in Redis where there is one, else here. While Redis is away each replica counts for
itself from nothing: a limit may then be passed, which is better than nobody being answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from persona_lab.clients.base import estimate_tokens
from persona_lab.clients.middleware.wrapper import CallContext, ClientWrapper
from persona_lab.db.redis import PREFIX, RedisLink
from persona_lab.errors import GlobalTokenQuotaExceeded, RateLimitError, TokenQuotaExceeded
from persona_lab.lazy_imports import import_in_thread
from persona_lab.types import Chunk, Options, Prompt

if TYPE_CHECKING:
    from limits import RateLimitItem
    from limits.aio.storage import MemoryStorage, RedisStorage
    from limits.aio.strategies import FixedWindowRateLimiter, SlidingWindowCounterRateLimiter
    from redis.asyncio import Redis

    from persona_lab.clients.base import LLMClientInterface

MINUTE, DAY = 60, 24 * 60 * 60
"""Seconds of the two windows."""

_Storage = Any  # limits' memory or its Redis


class TokenBudget(NamedTuple):
    """A window of tokens: whose it is, and the error when they are spent."""

    item: RateLimitItem
    whose: str
    spent: type[TokenQuotaExceeded]


class Reservation(NamedTuple):
    """Tokens that were set aside: in windows that last ``until`` then (seconds since 1970), kept in
    a storage of that kind."""

    tokens: int
    until: tuple[float, ...] = ()
    storage: type[object] | None = None


class RateLimiter:
    """``requests`` a ``minute`` and ``tokens`` a ``day`` for each user, and ``total`` tokens a day
    for all together; 0 sets no limit.

    The lengths of the two windows are in seconds. Time is the machine's: Redis and the library
    that counts keep their own.
    """

    def __init__(
        self,
        requests: int = 60,
        tokens: int = 100_000,
        *,
        total: int = 0,
        shared: RedisLink | None = None,
        minute: int = MINUTE,
        day: int = DAY,
    ) -> None:
        self.requests = requests
        self.tokens = tokens
        self.total = total
        self._minute = minute
        self._day = day
        self._shared = shared if shared is not None else RedisLink()
        self._memory: MemoryStorage | None = None
        self._in_redis: WeakKeyDictionary[Redis, RedisStorage] = WeakKeyDictionary()

    async def check_and_update(
        self, user_id: str, estimated_tokens: int, answer_tokens: int = 0, *, requests: int = 1
    ) -> Reservation:
        """Count ``requests`` of the user's, one or none, and set tokens aside: the estimated ones,
        and for the answer as many of ``answer_tokens`` as are left. Returns what was set aside.

        Raises RateLimitError when there were too many requests, TokensSpent when the estimate
        doesn't fit what is left of the day: the user's, or everybody's. No tokens are set aside
        then.
        """
        estimate = max(0, estimated_tokens)
        aside = Reservation(estimate)

        async def check(storage: _Storage) -> None:
            nonlocal aside
            aside = await self._check(storage, user_id, estimate, answer_tokens, requests)

        await self._with(check)
        return aside

    async def reconcile(self, user_id: str, aside: Reservation, spent_tokens: int) -> None:
        """Put what was really spent in the place of what was set aside, where that still counts."""
        change = spent_tokens - aside.tokens

        async def correct(storage: _Storage) -> None:
            if type(storage) is aside.storage:
                now = time.time()
                purses = zip(self._token_budgets(user_id), aside.until, strict=True)
                await self._correct(storage, [p for p, until in purses if now < until], change)

        if change and aside.until:
            await self._with(correct)

    async def _check(
        self, storage: _Storage, user_id: str, estimate: int, answer: int, requests: int
    ) -> Reservation:
        windows, sliding = _strategies(storage)
        purses = self._token_budgets(user_id) if estimate else []
        await self._left(storage, purses, estimate)
        if requests and self.requests and not await sliding.hit(self._requests(), user_id):
            free_in = await self._free_in(storage, self._requests(), user_id)
            raise _lifted(RateLimitError, free_in)
        while True:  # once more where others were quicker
            aside = min(estimate + answer, await self._left(storage, purses, estimate))
            for number, purse in enumerate(purses, 1):
                if not await windows.hit(purse.item, purse.whose, cost=aside):
                    await self._correct(storage, purses[:number], -aside)
                    break
            else:
                keys = [purse.item.key_for(purse.whose) for purse in purses]
                until = [await storage.get_expiry(key) for key in keys]
                return Reservation(aside, tuple(until), type(storage))

    async def _left(self, storage: _Storage, purses: Sequence[TokenBudget], estimate: int) -> int:
        """Tokens that are left in the emptiest. Raises TokensSpent where the estimate won't fit."""
        emptiest = estimate if not purses else sys.maxsize
        for purse in purses:
            left = purse.item.amount - await storage.get(purse.item.key_for(purse.whose))
            if estimate > purse.item.amount:  # it won't fit in a moment either
                raise _lifted(purse.spent, self._day, limit=purse.item.amount)
            if estimate > left:
                await self._refuse(_strategies(storage)[0], purse)
            emptiest = min(emptiest, left)
        return emptiest

    async def _refuse(self, windows: Any, purse: TokenBudget) -> None:
        stats = await windows.get_window_stats(purse.item, purse.whose)
        raise _lifted(purse.spent, stats.reset_time - time.time(), limit=purse.item.amount)

    async def _correct(self, storage: _Storage, purses: Sequence[TokenBudget], change: int) -> None:
        for purse in purses:
            await storage.incr(purse.item.key_for(purse.whose), self._day, amount=change)

    async def _free_in(self, storage: _Storage, item: RateLimitItem, user_id: str) -> float:
        """Seconds until the window takes one more request.

        The window counts what is in the present minute and the share of the last one that it
        still reaches over; that share shrinks evenly.
        """
        before, before_left, current, current_left = await storage.get_sliding_window(
            item.key_for(user_id), self._minute
        )
        room = self.requests - current  # what the last one's share must be less than
        if before and room > 0:
            return float(before_left - self._minute * room / before)
        return float(current_left % self._minute)  # until the present minute is the last one

    def _requests(self) -> RateLimitItem:
        from limits import RateLimitItemPerSecond

        return RateLimitItemPerSecond(self.requests, self._minute, namespace="requests")

    def _token_budgets(self, user_id: str) -> list[TokenBudget]:
        """What tokens are taken from: the user's, and everybody's."""
        from limits import RateLimitItemPerSecond

        limits = [
            ("tokens", self.tokens, user_id, TokenQuotaExceeded),
            ("total", self.total, "all", GlobalTokenQuotaExceeded),
        ]
        return [
            TokenBudget(RateLimitItemPerSecond(limit, self._day, namespace=name), whose, spent)
            for name, limit, whose, spent in limits
            if limit
        ]

    async def _with(self, work: Callable[[_Storage], Awaitable[None]]) -> None:
        if not (self.requests or self.tokens or self.total):
            return
        await import_in_thread("limits", "limits.aio.storage", "limits.aio.strategies")

        async def in_redis(redis: Redis) -> None:
            await work(self._redis(redis))

        async def in_memory() -> None:
            from limits.aio.storage import MemoryStorage

            self._memory = self._memory or MemoryStorage()
            await work(self._memory)

        await self._shared.run(in_redis, in_memory)

    def _redis(self, redis: Redis) -> RedisStorage:
        if redis not in self._in_redis:
            from limits.aio.storage import RedisStorage

            options: dict[str, Any] = {"connection_pool": redis.connection_pool}
            self._in_redis[redis] = RedisStorage(
                "async+redis://",
                implementation="redispy",
                key_prefix=f"{PREFIX}limit",
                **options,
            )
        return self._in_redis[redis]


def _strategies(
    storage: _Storage,
) -> tuple[FixedWindowRateLimiter, SlidingWindowCounterRateLimiter]:
    from limits.aio.strategies import FixedWindowRateLimiter, SlidingWindowCounterRateLimiter

    return FixedWindowRateLimiter(storage), SlidingWindowCounterRateLimiter(storage)


def _lifted(kind: type[RateLimitError], seconds: float, **details: Any) -> RateLimitError:
    """The error with the moment when it is over: on the clock of the machine's time zone, and in
    whole seconds and minutes from now, rounded up."""
    seconds = max(1, math.ceil(seconds))
    lifts = datetime.fromtimestamp(math.ceil(time.time() + seconds), UTC)
    here = lifts.astimezone()
    return kind(
        seconds=seconds,
        minutes=math.ceil(seconds / 60),
        until=f"{here:%H:%M:%S}" if seconds <= MINUTE else f"{here:%m/%d %H:%M}",
        zone=here.tzname() or "",
        lifts_at=lifts.isoformat(),
        **details,
    )


class RateLimitedClient(ClientWrapper):
    """A client whose answers are counted against the quota of who asks."""

    def __init__(
        self, client: LLMClientInterface, limiter: RateLimiter, asking: CallContext
    ) -> None:
        super().__init__(client)
        self._limiter = limiter
        self._user_id = asking.user_id
        self._requests = 0 if asking.is_fallback else 1
        self._counted = not (self.info.free or asking.user_key)

    async def stream(self, prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        """Raises RateLimitError too, before anybody is asked."""
        estimate = estimate_tokens(str(prompt)) if self._counted else 0
        aside = await self._limiter.check_and_update(
            self._user_id, estimate, options.max_tokens, requests=self._requests
        )
        text, usage, left = "", None, False
        try:
            async with contextlib.aclosing(self.client.stream(prompt, options)) as chunks:
                async for chunk in chunks:
                    text += chunk.text
                    usage = chunk.usage or usage
                    yield chunk
        except (asyncio.CancelledError, GeneratorExit):
            left = True
            raise
        finally:
            if self._counted:
                # Who stops an answer has had it read and begun, and the provider is paid for that.
                begun = estimate + estimate_tokens(text) if text or left else 0
                spent = usage.total_tokens if usage is not None else begun
                await self._limiter.reconcile(self._user_id, aside, spent)
