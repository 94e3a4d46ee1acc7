"""A server on a local port that fails exactly as told: plain sockets, nothing in between."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Act:
    """What one request meets.

    ``status`` 0: not even a head comes. ``then``, after ``parts``: the answer's proper end; a
    connection that breaks; silence; or the last part again and again, slowly.
    """

    parts: Sequence[bytes] = ()
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    then: Literal["end", "drop", "hang", "drip"] = "end"


class Faulty:
    """Does its ``acts`` to the requests in turn, the last one to all that follow."""

    PAUSE = 0.005
    """Seconds between two drops of a drip."""

    def __init__(self, *acts: Act) -> None:
        self.acts = acts
        self.requests: list[dict[str, Any]] = []
        self.left = asyncio.Event()
        """Set when a client has closed a connection on which it could still have waited."""
        self._serving: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Faulty:
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
            act = self.acts[min(len(self.requests), len(self.acts) - 1)]
            self.requests.append(json.loads(await reader.readexactly(int(length))))
            await self._do(act, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.left.set()
        finally:
            writer.close()

    async def _do(
        self, act: Act, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if act.status:
            writer.write(f"HTTP/1.1 {act.status} x\r\nconnection: close\r\n".encode())
            headers = {"content-type": "text/event-stream"} | act.headers
            writer.writelines(f"{name}: {value}\r\n".encode() for name, value in headers.items())
            writer.write(b"transfer-encoding: chunked\r\n\r\n")
        for part in act.parts:
            writer.write(_chunk(part))
        await writer.drain()
        match act.then:
            case "end":
                writer.write(b"0\r\n\r\n")
                await writer.drain()
            case "drop":
                writer.transport.abort()
            case "hang":
                await reader.read()
                self.left.set()
            case "drip":
                gone = asyncio.ensure_future(reader.read())
                while not (await asyncio.wait([gone], timeout=self.PAUSE))[0]:
                    writer.write(_chunk(act.parts[-1]))
                self.left.set()


def _chunk(part: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(part), part)


@contextlib.contextmanager
def nobody_listens() -> Iterator[str]:
    """The URL of a port at which every connection is refused."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


@contextlib.contextmanager
def nobody_accepts() -> Iterator[str]:
    """The URL of a port at which connecting takes for ever: its queue is full."""
    with contextlib.ExitStack() as open_:
        listening = open_.enter_context(socket.socket())
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(3):
            waiting = open_.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
