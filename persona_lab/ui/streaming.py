"""Pace streams to what a browser can draw, and describe what a stream waits for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

from persona_lab.errors import PersonaLabError
from persona_lab.types import Event
from persona_lab.ui.session import Visitor

REDRAW_INTERVAL_S = 0.05
"""Seconds between two redraws. Browsers fall behind a shorter interval."""
MAX_SMOOTH_STREAMS = 16
"""Streams that one process redraws at every interval. With more streams, each is redrawn less
often, so that no stream waits for the redraws of the others."""
HEARTBEAT_S = 1.0
"""Seconds without an event before an empty batch. A closed page is detected only at a yield."""


_running: set[asyncio.Task[None]] = set()


async def waiting_text(model: str, visitor: Visitor) -> str:
    """Describe what an answer of ``model`` waits for before its first token.

    Args:
        model: The model, as provider:name; "" is the default.
        visitor: The visitor, whose language and service are used.

    Returns:
        A text such as the position in the queue or the progress of loading.
    """
    with suppress(PersonaLabError):  # the answer itself will report the error
        clients = visitor.service.clients
        if clients.info(model).is_local:
            client = await clients.open(model)
            if client.waiting:
                return visitor.translate("waiting.queue", count=client.waiting)
            if client.is_loaded:
                return visitor.translate("waiting.reading")
            return visitor.translate("waiting.loading", percent=round(100 * client.load_progress))
    return visitor.translate("waiting.answer")


async def batch_events(events: AsyncGenerator[Event, None]) -> AsyncGenerator[list[Event], None]:
    """Group events into batches, one per tick. The first text comes without a delay.

    Closing this generator closes ``events``. An error of ``events`` is raised after the batches
    that came before it.

    Args:
        events: The events of one answer.

    Yields:
        The events since the last batch, in order; an empty list as a heartbeat.
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
    _running.add(task)
    started = False
    try:
        while True:
            try:
                batch = [await asyncio.wait_for(queue.get(), HEARTBEAT_S)]
            except TimeoutError:
                yield []
                continue
            if batch[0] is not None and batch[0].type == "delta":
                if started:
                    await asyncio.sleep(
                        REDRAW_INTERVAL_S * max(1, len(_running) / MAX_SMOOTH_STREAMS)
                    )
                started = True
            while not queue.empty():
                batch.append(queue.get_nowait())
            received = [event for event in batch if event is not None]
            if received:
                yield received
            if None in batch:
                await task
                return
    finally:
        _running.discard(task)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
