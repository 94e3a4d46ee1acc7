"""Streams at a pace that a page can follow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

from persona_lab.models import Event

TICK = 0.05
"""Seconds between two redraws: faster only makes browsers fall behind."""
HEARTBEAT = 1.0
"""Seconds after which silence is passed on too: a closed page is noticed only when one yields."""


async def paced(events: AsyncGenerator[Event, None]) -> AsyncGenerator[list[Event], None]:
    """What came since the last tick, in order; an empty list as heartbeat.

    Closing it closes ``events``. Their errors come out where they happened.
    """
    queue: asyncio.Queue[Event | None] = asyncio.Queue()

    async def pump() -> None:
        try:
            async with aclosing(events):
                async for event in events:
                    queue.put_nowait(event)
        finally:
            queue.put_nowait(None)

    task = asyncio.create_task(pump())
    try:
        while True:
            try:
                batch = [await asyncio.wait_for(queue.get(), HEARTBEAT)]
            except TimeoutError:
                yield []
                continue
            if batch[0] is not None and batch[0].type == "delta":
                await asyncio.sleep(TICK)
            while not queue.empty():
                batch.append(queue.get_nowait())
            news = [event for event in batch if event is not None]
            if news:
                yield news
            if None in batch:
                await task
                return
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
