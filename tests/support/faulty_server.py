"""A server on a local port that fails as a test asks for, on plain sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class FaultyResponse:
    """The response to one request.

    Attributes:
        parts: Parts of the body.
        status: The status; 0 sends no headers.
        headers: Further headers.
        then: What follows the parts: the end of the body (``end``), a broken connection (``drop``),
            nothing (``hang``), or the last part again and again (``drip``).
    """

    parts: Sequence[bytes] = ()
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    then: Literal["end", "drop", "hang", "drip"] = "end"


class FaultyServer:
    """Sends one of its responses to each request in turn, and the last one to all later ones."""

    PAUSE = 0.005
    """Seconds between two parts of a drip."""

    def __init__(self, *responses: FaultyResponse) -> None:
        self.responses = responses
        self.requests: list[dict[str, Any]] = []
        self.left = asyncio.Event()
        """Set when a client closes a connection whose response isn't complete."""
        self._serving: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> FaultyServer:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = head.partition(b"content-length:")[2].split(maxsplit=1)[0]
            response = self.responses[min(len(self.requests), len(self.responses) - 1)]
            self.requests.append(json.loads(await reader.readexactly(int(length))))
            await self._send(response, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.left.set()
        finally:
            writer.close()

    async def _send(
        self, response: FaultyResponse, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if response.status:
            writer.write(f"HTTP/1.1 {response.status} x\r\nconnection: close\r\n".encode())
            headers = {"content-type": "text/event-stream"} | response.headers
            writer.writelines(f"{name}: {value}\r\n".encode() for name, value in headers.items())
            writer.write(b"transfer-encoding: chunked\r\n\r\n")
        for part in response.parts:
            writer.write(_chunk(part))
        await writer.drain()
        match response.then:
            case "end":
                writer.write(b"0\r\n\r\n")
                await writer.drain()
            case "drop":
                writer.transport.abort()
            case "hang":
                await reader.read()
                self.left.set()
            case "drip":
                disconnect = asyncio.ensure_future(reader.read())
                while not (await asyncio.wait([disconnect], timeout=self.PAUSE))[0]:
                    writer.write(_chunk(response.parts[-1]))
                self.left.set()


def _chunk(part: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(part), part)


@contextlib.contextmanager
def refusing_url() -> Iterator[str]:
    """Yield a URL at which every connection is refused."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@contextlib.contextmanager
def unresponsive_url() -> Iterator[str]:
    """Yield a URL at which connecting never ends, because the queue of the port is full."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
