"""A provider on loopback that speaks OpenAI's protocol.

``python -m bench.provider PORT FIRST TOKENS RATE``: its answer begins after FIRST seconds and has
TOKENS tokens, RATE of them a second.
"""

from __future__ import annotations

import asyncio
import json
import sys

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\n%s\r\n"
USAGE = {"prompt_tokens": 300, "completion_tokens": 32, "total_tokens": 332}


class Provider:
    def __init__(self, first: float, tokens: int, rate: float) -> None:
        self.first, self.rate = first, rate
        self.words = [
            "光合成",
            "とは、",
            "植物",
            "が",
            "光",
            "で",
            "栄養",
            "を",
            "作る",
            "働き",
            "です。",
        ]
        self.words = (self.words * (tokens // len(self.words) + 1))[:tokens]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.partition(b"content-length:")[2].split(maxsplit=1)[0])
                request = json.loads(await reader.readexactly(length))
                await (self.stream if request.get("stream") else self.whole)(writer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def stream(self, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        writer.write(HEAD % (b"text/event-stream", b"transfer-encoding: chunked\r\n"))
        for number, word in enumerate(self.words):
            await self._until(began + self.first + number / self.rate)
            self._event(writer, [{"index": 0, "delta": {"content": word}, "finish_reason": None}])
        self._event(writer, [{"index": 0, "delta": {}, "finish_reason": "stop"}])
        self._event(writer, [], USAGE)
        writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")

    async def whole(self, writer: asyncio.StreamWriter) -> None:
        began = asyncio.get_running_loop().time()
        await self._until(began + self.first + (len(self.words) - 1) / self.rate)
        message = {"role": "assistant", "content": "".join(self.words)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        body = json.dumps({**_common("chat.completion"), "choices": [choice], "usage": USAGE})
        data = body.encode()
        writer.write(HEAD % (b"application/json", b"content-length: %d\r\n" % len(data)) + data)

    @staticmethod
    async def _until(moment: float) -> None:
        left = moment - asyncio.get_running_loop().time()
        if left > 0:
            await asyncio.sleep(left)

    @staticmethod
    def _event(
        writer: asyncio.StreamWriter,
        choices: list[dict[str, object]],
        usage: dict[str, int] | None = None,
    ) -> None:
        event = {**_common("chat.completion.chunk"), "choices": choices, "usage": usage}
        data = f"data: {json.dumps(event)}\n\n".encode()
        writer.write(b"%x\r\n%s\r\n" % (len(data), data))


def _common(kind: str) -> dict[str, object]:
    return {"id": "bench", "object": kind, "created": 0, "model": "bench-model"}


async def main(port: int, first: float, tokens: int, rate: float) -> None:
    provider = Provider(first, tokens, rate)
    server = await asyncio.start_server(provider.serve, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    _, port, first, tokens, rate = sys.argv
    asyncio.run(main(int(port), float(first), int(tokens), float(rate)))
