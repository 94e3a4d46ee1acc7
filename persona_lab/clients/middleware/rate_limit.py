"""The rate limit: bound the requests and tokens of each user.

Requests are counted in a sliding window. Tokens are counted in a fixed window, which begins with
the first token and lasts a day. A request reserves tokens when it begins: the estimate of its
prompt, and as much of the longest answer as the quota allows. At the end, the actual usage
replaces the reservation. Concurrent requests therefore can't exceed the quota. The quota never
cuts off an answer that has begun.

Requests to every model count, because each request loads this machine. Tokens count only if they
cost money: those of local models, of the mock and of calls with a visitor's key don't. A cached
answer counts as neither.

A user without a cookie is a new user. A second quota therefore bounds the tokens of all users
together.

Redis stores the counts if it is configured, otherwise memory does. If Redis is unavailable, each
replica counts from 0. Users may then exceed a limit, but they still get answers.
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
from persona_lab.db.redis import KEY_PREFIX, RedisLink
from persona_lab.deprecated import former_method
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
"""Lengths of the two windows, in seconds."""

_Storage = Any  # MemoryStorage or RedisStorage of limits


class TokenBudget(NamedTuple):
    """A quota of tokens in a window.

    Attributes:
        item: The size and the length of the window.
        owner: The user, or "all".
        error: The error when the quota is exceeded.
    """

    item: RateLimitItem
    owner: str
    error: type[TokenQuotaExceeded]


class Reservation(NamedTuple):
    """Tokens that are reserved for a call.

    Attributes:
        tokens: The number of tokens.
        until: The end of each window, in seconds since 1970.
        storage: The type of the storage that counts them.
    """

    tokens: int
    until: tuple[float, ...] = ()
    storage: type[object] | None = None


class RateLimiter:
    """Limits the requests and tokens of users. A limit of 0 disables it.

    The clock can't be replaced: Redis and the library limits use the system clock.

    Args:
        requests: Requests of a user in a window of ``minute``.
        tokens: Tokens of a user in a window of ``day``.
        total: Tokens of all users together in a window of ``day``.
        shared: The link to Redis.
        minute: Length of the window for requests, in seconds.
        day: Length of the window for tokens, in seconds.
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
        """Count a request and reserve tokens.

        If this raises, no tokens are reserved.

        Args:
            user_id: The user.
            estimated_tokens: Estimated tokens of the prompt.
            answer_tokens: Tokens of the longest answer. As many as are left are reserved.
            requests: 1, or 0 if the call doesn't count as a request.

        Returns:
            The reservation, for :meth:`reconcile`.

        Raises:
            RateLimitError: The user made too many requests.
            TokenQuotaExceeded: The estimate exceeds the tokens that are left for the user or for
                all users.
        """
        estimate = max(0, estimated_tokens)
        reservation = Reservation(estimate)

        async def check(storage: _Storage) -> None:
            nonlocal reservation
            reservation = await self._check(storage, user_id, estimate, answer_tokens, requests)

        await self._with_storage(check)
        return reservation

    async def reconcile(self, user_id: str, reservation: Reservation, spent_tokens: int) -> None:
        """Replace the reservation by the actual usage, in the windows that haven't ended.

        Args:
            user_id: The user.
            reservation: The result of :meth:`check_and_update`.
            spent_tokens: The tokens that the call used.
        """
        change = spent_tokens - reservation.tokens

        async def correct(storage: _Storage) -> None:
            if type(storage) is reservation.storage:
                now = time.time()
                budgets = zip(self._token_budgets(user_id), reservation.until, strict=True)
                await self._correct(storage, [b for b, until in budgets if now < until], change)

        if change and reservation.until:
            await self._with_storage(correct)

    settle = former_method("RateLimiter", "settle", "reconcile")

    async def _check(
        self, storage: _Storage, user_id: str, estimate: int, answer: int, requests: int
    ) -> Reservation:
        windows, sliding = _strategies(storage)
        budgets = self._token_budgets(user_id) if estimate else []
        await self._tokens_left(storage, budgets, estimate)
        if requests and self.requests and not await sliding.hit(self._requests(), user_id):
            free_in = await self._seconds_until_free(storage, self._requests(), user_id)
            raise _limit_error(RateLimitError, free_in)
        while True:  # again if a concurrent request took the tokens
            reserved = min(estimate + answer, await self._tokens_left(storage, budgets, estimate))
            for number, budget in enumerate(budgets, 1):
                if not await windows.hit(budget.item, budget.owner, cost=reserved):
                    await self._correct(storage, budgets[:number], -reserved)
                    break
            else:
                keys = [budget.item.key_for(budget.owner) for budget in budgets]
                until = [await storage.get_expiry(key) for key in keys]
                return Reservation(reserved, tuple(until), type(storage))

    async def _tokens_left(
        self, storage: _Storage, budgets: Sequence[TokenBudget], estimate: int
    ) -> int:
        """Return the tokens that are left in the budget with the fewest.

        Raises:
            TokenQuotaExceeded: The estimate exceeds the tokens that are left.
        """
        fewest = estimate if not budgets else sys.maxsize
        for budget in budgets:
            remaining = budget.item.amount - await storage.get(budget.item.key_for(budget.owner))
            if estimate > budget.item.amount:  # it exceeds an empty window too
                raise _limit_error(budget.error, self._day, limit=budget.item.amount)
            if estimate > remaining:
                await self._refuse(_strategies(storage)[0], budget)
            fewest = min(fewest, remaining)
        return fewest

    async def _refuse(self, windows: Any, budget: TokenBudget) -> None:
        stats = await windows.get_window_stats(budget.item, budget.owner)
        raise _limit_error(budget.error, stats.reset_time - time.time(), limit=budget.item.amount)

    async def _correct(
        self, storage: _Storage, budgets: Sequence[TokenBudget], change: int
    ) -> None:
        for budget in budgets:
            await storage.incr(budget.item.key_for(budget.owner), self._day, amount=change)

    async def _seconds_until_free(
        self, storage: _Storage, item: RateLimitItem, user_id: str
    ) -> float:
        """Return the seconds until the sliding window allows another request.

        The window counts the requests of the current minute and a share of those of the previous
        minute. That share shrinks linearly.
        """
        previous, previous_ttl, current, current_ttl = await storage.get_sliding_window(
            item.key_for(user_id), self._minute
        )
        room = self.requests - current  # the share of the previous minute must be smaller
        if previous and room > 0:
            return float(previous_ttl - self._minute * room / previous)
        return float(current_ttl % self._minute)  # until the current minute is the previous one

    def _requests(self) -> RateLimitItem:
        from limits import RateLimitItemPerSecond

        return RateLimitItemPerSecond(self.requests, self._minute, namespace="requests")

    def _token_budgets(self, user_id: str) -> list[TokenBudget]:
        """Return the budgets that apply to a user: the user's and the one of all users."""
        from limits import RateLimitItemPerSecond

        limits = [
            ("tokens", self.tokens, user_id, TokenQuotaExceeded),
            ("total", self.total, "all", GlobalTokenQuotaExceeded),
        ]
        return [
            TokenBudget(RateLimitItemPerSecond(limit, self._day, namespace=name), owner, error)
            for name, limit, owner, error in limits
            if limit
        ]

    async def _with_storage(self, work: Callable[[_Storage], Awaitable[None]]) -> None:
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
                key_prefix=f"{KEY_PREFIX}limit",
                **options,
            )
        return self._in_redis[redis]


def _strategies(
    storage: _Storage,
) -> tuple[FixedWindowRateLimiter, SlidingWindowCounterRateLimiter]:
    from limits.aio.strategies import FixedWindowRateLimiter, SlidingWindowCounterRateLimiter

    return FixedWindowRateLimiter(storage), SlidingWindowCounterRateLimiter(storage)


def _limit_error(kind: type[RateLimitError], seconds: float, **details: Any) -> RateLimitError:
    """Create an error that states when the limit ends.

    It gives the local time, and the time from now in seconds and in minutes, rounded up.
    """
    seconds = max(1, math.ceil(seconds))
    ends_at = datetime.fromtimestamp(math.ceil(time.time() + seconds), UTC)
    local_time = ends_at.astimezone()
    return kind(
        seconds=seconds,
        minutes=math.ceil(seconds / 60),
        until=f"{local_time:%H:%M:%S}" if seconds <= MINUTE else f"{local_time:%m/%d %H:%M}",
        zone=local_time.tzname() or "",
        lifts_at=ends_at.isoformat(),
        **details,
    )


class RateLimitedClient(ClientWrapper):
    """A client that counts each call against the quota of the caller.

    Args:
        client: The wrapped client.
        limiter: The rate limiter.
        context: The user and the kind of the call.
    """

    def __init__(
        self, client: LLMClientInterface, limiter: RateLimiter, context: CallContext
    ) -> None:
        super().__init__(client)
        self._limiter = limiter
        self._user_id = context.user_id
        self._requests = 0 if context.is_fallback else 1
        self._counted = not (self.info.free or context.user_key)

    async def stream(self, prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        """Stream an answer. See :meth:`LLMClientInterface.stream`.

        Raises:
            RateLimitError: A limit is exceeded. The model isn't called.
        """
        estimate = estimate_tokens(str(prompt)) if self._counted else 0
        reservation = await self._limiter.check_and_update(
            self._user_id, estimate, options.max_tokens, requests=self._requests
        )
        text, usage, stopped = "", None, False
        try:
            async with contextlib.aclosing(self.client.stream(prompt, options)) as chunks:
                async for chunk in chunks:
                    text += chunk.text
                    usage = chunk.usage or usage
                    yield chunk
        except (asyncio.CancelledError, GeneratorExit):
            stopped = True
            raise
        finally:
            if self._counted:
                # The provider charges for the prompt and the text so far if the user stops.
                estimated = estimate + estimate_tokens(text) if text or stopped else 0
                used = usage.total_tokens if usage is not None else estimated
                await self._limiter.reconcile(self._user_id, reservation, used)
