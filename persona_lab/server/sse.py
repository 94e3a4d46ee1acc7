"""Server-sent events, and cancellation when the client disconnects.

An event is generated only after the one before it was sent, so nothing is buffered for a slow
client. A client that accepts no data for :data:`SEND_TIMEOUT_S` counts as disconnected. A comment
line every :data:`HEARTBEAT_S` keeps proxies from closing the connection, also before the first
event.
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

SEND_TIMEOUT_S = 60.0
"""Seconds that a client may accept no data."""
HEARTBEAT_S = 15.0
"""Seconds between two comment lines."""
_T = TypeVar("_T")
_LINE_ENDS = {ord(char): f"\\u{ord(char):04x}" for char in "\x85\u2028\u2029"}


def to_json_line(data: Any) -> str:
    """Return ``data`` as JSON in one line.

    U+0085, U+2028 and U+2029 are escaped, since some clients break lines there. Lone surrogates,
    which UTF-8 can't encode, become "?".
    """
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).translate(_LINE_ENDS)
    return text.encode("utf-8", "replace").decode()


def encode_event(data: str) -> bytes:
    """Return one event whose data is a line of text."""
    return f"data: {data}\n\n".encode()


class EventStreamResponse(Response):
    """Send events as they are generated.

    An error before the first byte of the response is raised, so it can still become an error
    status. A later error becomes a last event. The generator is closed when the call returns.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[bytes, None], error_event: Callable[[Exception], bytes]
    ) -> None:
        """Make the response.

        Args:
            events: Encoded events.
            error_event: Returns the encoded event of an error.
        """
        self._events = events
        self._error_event = error_event
        self.status_code = 200
        self.background = None
        # Without this header nginx buffers the response.
        self.init_headers({"cache-control": "no-cache, no-transform", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all events; stop when the client disconnects."""
        writer = _BodyWriter(send, {"status": self.status_code, "headers": self.raw_headers})
        sending = asyncio.create_task(self._send_all(writer))
        others = [
            asyncio.create_task(_wait_disconnect(receive)),
            asyncio.create_task(_send_heartbeats(writer)),
        ]
        try:
            await asyncio.wait([sending, *others], return_when=asyncio.FIRST_COMPLETED)
        finally:
            complete = sending.done()
            for task in (sending, *others):
                task.cancel()
            await asyncio.gather(sending, *others, return_exceptions=True)
        if complete:
            sending.result()
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_all(self, writer: _BodyWriter) -> None:
        async with aclosing(self._with_error_event(writer)) as events:
            async for event in events:
                await writer.write(event)
                await asyncio.sleep(0)  # lets other tasks run if no event has to be awaited

    async def _with_error_event(self, writer: _BodyWriter) -> AsyncGenerator[bytes, None]:
        try:
            async with aclosing(self._events) as events:
                async for event in events:
                    yield event
        except Exception as error:
            if not writer.started:
                raise
            yield self._error_event(error)


class _BodyWriter:
    """Sends a body in parts, and the start of the response before the first one."""

    def __init__(self, send: Send, start: Mapping[str, Any]) -> None:
        self.started = False
        self._send = send
        self._start = start
        self._lock = asyncio.Lock()

    async def write(self, body: bytes) -> None:
        """Send a part of the body.

        Raises:
            TimeoutError: The client accepted no data for :data:`SEND_TIMEOUT_S`.
        """
        async with asyncio.timeout(SEND_TIMEOUT_S), self._lock:
            if not self.started:
                self.started = True
                await self._send({"type": "http.response.start", **self._start})
            await self._send({"type": "http.response.body", "body": body, "more_body": True})


async def cancel_on_disconnect(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """Return the result of ``work``; cancel it when the client disconnects.

    Raises:
        ClientDisconnect: The client disconnected; ``work`` was cancelled.
    """
    working = asyncio.create_task(work)
    disconnect = asyncio.create_task(_wait_disconnect(request.receive))
    try:
        await asyncio.wait([working, disconnect], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, disconnect):
            task.cancel()
        await asyncio.gather(working, disconnect, return_exceptions=True)


async def _wait_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_heartbeats(writer: _BodyWriter) -> None:
    while True:
        await asyncio.sleep(HEARTBEAT_S)
        await writer.write(b": \n\n")
