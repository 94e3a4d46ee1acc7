"""An answer over HTTP: as server-sent events, or whole. Who goes away stops it.

The reader's pace is the answer's: a piece is asked for when the one before it is on its way, and
so nothing piles up for a slow reader. Who stays and takes nothing for a minute counts as gone. A
line without meaning every 15 seconds keeps proxies from hanging up, also ahead of the first word.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

PATIENCE = 60.0
"""Seconds that a reader may take nothing."""
BEAT = 15.0
"""Seconds between two signs of life."""
_T = TypeVar("_T")
_LINE_ENDS = {ord(mark): f"\\u{ord(mark):04x}" for mark in "\x85\u2028\u2029"}


def as_json(data: Any) -> str:
    """``data`` as JSON in one line.

    U+2028 and its like are escaped, since some readers break lines there. Lone surrogates, which
    UTF-8 can't encode, are replaced.
    """
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).translate(_LINE_ENDS)
    return text.encode("utf-8", "replace").decode()


def sse(data: str) -> bytes:
    """One event."""
    return f"data: {data}\n\n".encode()


class EventStreamResponse(Response):
    """Sends ``events`` as they come.

    What they raise before the first one, and before the first sign of life, leaves this response,
    which then wasn't begun; ``excuse`` makes an event of what is raised in between. What is raised
    later must be one of them. All is closed when the call returns.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[bytes, None], excuse: Callable[[Exception], bytes]
    ) -> None:
        self.events = events
        self.excuse = excuse
        self.status_code = 200
        self.background = None
        # nginx and its like hold an answer back unless they are told not to.
        self.init_headers({"cache-control": "no-cache, no-transform", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all events; stop when the client disconnects."""
        out = _Out(send, {"status": self.status_code, "headers": self.raw_headers})
        sending = asyncio.create_task(self._send_all(out))
        beside = [
            asyncio.create_task(_wait_disconnect(receive)),
            asyncio.create_task(_heartbeat(out)),
        ]
        try:
            await asyncio.wait([sending, *beside], return_when=asyncio.FIRST_COMPLETED)
        finally:
            whole = sending.done()
            for task in (sending, *beside):
                task.cancel()
            await asyncio.gather(sending, *beside, return_exceptions=True)
        if whole:
            sending.result()
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_all(self, out: _Out) -> None:
        async with aclosing(self._excused(out)) as events:
            async for event in events:
                await out.say(event)
                await asyncio.sleep(0)  # an answer that never waits lets others in

    async def _excused(self, out: _Out) -> AsyncGenerator[bytes, None]:
        try:
            async with aclosing(self.events) as events:
                async for event in events:
                    yield event
        except Exception as error:
            if not out.begun:
                raise
            yield self.excuse(error)


class _Out:
    """Sends a body piece by piece, its ``head`` ahead of the first."""

    def __init__(self, send: Send, head: Mapping[str, Any]) -> None:
        self.begun = False
        self._send = send
        self._head = head
        self._turn = asyncio.Lock()

    async def say(self, body: bytes) -> None:
        """Raises TimeoutError where the reader takes nothing."""
        async with asyncio.timeout(PATIENCE), self._turn:
            if not self.begun:
                self.begun = True
                await self._send({"type": "http.response.start", **self._head})
            await self._send({"type": "http.response.body", "body": body, "more_body": True})


async def cancel_on_disconnect(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """The result of ``work``.

    Raises:
        ClientDisconnect: The client disconnected; ``work`` was cancelled.
    """
    doing, gone = asyncio.create_task(work), asyncio.create_task(_wait_disconnect(request.receive))
    try:
        await asyncio.wait([doing, gone], return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise ClientDisconnect
        return doing.result()
    finally:
        for task in (doing, gone):
            task.cancel()
        await asyncio.gather(doing, gone, return_exceptions=True)


async def _wait_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _heartbeat(out: _Out) -> None:
    while True:
        await asyncio.sleep(BEAT)
        await out.say(b": \n\n")
