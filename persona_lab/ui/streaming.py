"""Streams at a pace that a page can follow, and what to say until they begin."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

from persona_lab.errors import PersonaLabError
from persona_lab.types import Event
from persona_lab.ui.session import Visitor

TICK = 0.05
"""Seconds between two redraws: faster only makes browsers fall behind."""
SMOOTH = 16
"""Streams that one process draws at that pace; with more of them each is drawn less often, so that
none waits for the others' redraws."""
HEARTBEAT = 1.0
"""Seconds after which silence is passed on too: a closed page is noticed only when one yields."""


_live: set[asyncio.Task[None]] = set()


async def waits_for(model: str, visitor: Visitor) -> str:
    """What an answer of ``model`` that hasn't begun waits for, as far as is known."""
    with suppress(PersonaLabError):  # the answer will say what is wrong
        clients = visitor.service.clients
        if clients.info(model).provider == "local":
            client = await clients.open(model)
            if client.waiting:
                return visitor.translate("waiting.queue", count=client.waiting)
            if client.is_loaded:
                return visitor.translate("waiting.reading")
            return visitor.translate("waiting.loading", percent=round(100 * client.load_progress))
    return visitor.translate("waiting.answer")


async def paced(events: AsyncGenerator[Event, None]) -> AsyncGenerator[list[Event], None]:
    """What came since the last tick, in order; an empty list as heartbeat.

    The first words come at once. Closing it closes ``events``. Their errors come out where they
    happened.
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
    _live.add(task)
    begun = False
    try:
        while True:
            try:
                batch = [await asyncio.wait_for(queue.get(), HEARTBEAT)]
            except TimeoutError:
                yield []
                continue
            if batch[0] is not None and batch[0].type == "delta":
                if begun:
                    await asyncio.sleep(TICK * max(1, len(_live) / SMOOTH))
                begun = True
            while not queue.empty():
                batch.append(queue.get_nowait())
            news = [event for event in batch if event is not None]
            if news:
                yield news
            if None in batch:
                await task
                return
    finally:
        _live.discard(task)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
