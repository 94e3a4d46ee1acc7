"""Several columns at a server that has one place."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any, Literal

import pytest
from support.clients import collect_chunks
from support.fake_servers import PROMPT, FakeOpenAI

from persona_lab.clients.catalog import Catalog, ModelInfo
from persona_lab.clients.middleware.server_queue import ServerQueue
from persona_lab.clients.middleware.stack import ClientStack
from persona_lab.clients.openai import OpenAIClient
from persona_lab.clients.pool import ClientPool
from persona_lab.errors import ModelTimeout, Overloaded
from persona_lab.settings import ROOT, Settings
from persona_lab.types import Options

COLUMNS = 8
FAKE = FakeOpenAI()
ANSWER = FAKE.answer_events()


class OnePlaceServer:
    """A server that computes one answer at a time.

    ``mode`` says what becomes of a further request: it is refused, it waits without a sign, or it
    breaks off the answer in progress, as ``llama_cpp.server`` does.
    """

    def __init__(self, mode: Literal["503", "429", "silent", "interrupt"], seconds: float) -> None:
        self.mode = mode
        self.seconds = seconds
        self.requests = 0
        self.most = 0
        self._running = 0
        self._place = asyncio.Lock()
        self._newest: object = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> OnePlaceServer:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._respond(reader, writer)
        finally:
            writer.close()

    async def _respond(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = head.partition(b"content-length:")[2].split(maxsplit=1)[0]
        await reader.readexactly(int(length))
        self.requests += 1
        own = self._newest = object()
        with contextlib.suppress(ConnectionError):
            if self.mode in ("503", "429") and self._place.locked():
                body = json.dumps({"error": {"message": "no slot"}}).encode()
                writer.write(b"HTTP/1.1 %s x\r\nconnection: close\r\n" % self.mode.encode())
                writer.write(b"content-length: %d\r\n\r\n%s" % (len(body), body))
                await writer.drain()
            else:
                leaves = asyncio.ensure_future(reader.read())
                answering = asyncio.ensure_future(self._answer(writer, own))
                try:
                    await asyncio.wait([leaves, answering], return_when="FIRST_COMPLETED")
                finally:
                    for each in (leaves, answering):
                        each.cancel()
                    await asyncio.gather(leaves, answering, return_exceptions=True)

    async def _answer(self, writer: asyncio.StreamWriter, own: object) -> None:
        async with self._place:
            self._running += 1
            self.most = max(self.most, self._running)
            try:
                writer.write(b"HTTP/1.1 200 x\r\ncontent-type: text/event-stream\r\n")
                writer.write(b"connection: close\r\n\r\n")
                for event in ANSWER:
                    await asyncio.sleep(self.seconds / len(ANSWER))
                    if self.mode == "interrupt" and self._newest is not own:
                        writer.write(b"data: [DONE]\n\n")
                        break
                    writer.write(event)
                    await writer.drain()
                await writer.drain()
            finally:
                self._running -= 1


async def ask(
    server: OnePlaceServer, columns: int = COLUMNS, pause: float = 0, **options: Any
) -> list[str | BaseException]:
    """Ask in several columns at once; return the texts and errors."""
    settings = Settings(openai_base_url=server.url, llm_retries=0)
    stack = ClientStack(settings, clock=asyncio.get_running_loop().time, sleep=asyncio.sleep)
    first = stack.wrap_shared(OpenAIClient(ModelInfo(provider="openai", name="m0"), settings))

    async def column(number: int) -> str:
        await asyncio.sleep(number * pause)
        client = first.for_model(ModelInfo(provider="openai", name=f"m{number}"))
        assert client is not None
        given = Options(**{"timeout": 5, "retries": 0, **options})
        return "".join(chunk.text for chunk in await collect_chunks(client, PROMPT, given))

    asked = [column(number) for number in range(columns)]
    found = await asyncio.gather(*asked, return_exceptions=True)
    await first.aclose()
    return list(found)


@pytest.mark.parametrize("mode", ["503", "429"])
async def test_columns_wait_when_a_server_refuses_further_requests(mode: Any) -> None:
    async with OnePlaceServer(mode, 0.1) as server:
        assert await ask(server) == [FAKE.text] * COLUMNS
        assert server.most == 1


async def test_columns_wait_when_a_server_keeps_further_requests_waiting() -> None:
    async with OnePlaceServer("silent", 0.2) as server:
        assert await ask(server, timeout=0.5) == [FAKE.text] * COLUMNS


async def test_columns_wait_when_a_further_request_breaks_off_an_answer() -> None:
    async with OnePlaceServer("interrupt", 0.1) as server:
        assert await ask(server) == [FAKE.text] * COLUMNS


async def test_waiting_columns_end_with_their_total_time() -> None:
    async with OnePlaceServer("503", 0.6) as server:
        found = await ask(server, 3, total_timeout=1.0)
        assert found.count(FAKE.text) == 1
        assert all(isinstance(each, str | Overloaded | ModelTimeout) for each in found)


async def test_dead_server_fails_at_once_for_all_columns() -> None:
    async with OnePlaceServer("silent", 60) as server:
        loop = asyncio.get_running_loop()
        began = loop.time()
        found = await ask(server, timeout=0.3)
        assert [type(each) for each in found] == [ModelTimeout] * COLUMNS
        assert loop.time() - began < 3


async def test_cancelled_column_gives_its_place_to_the_next() -> None:
    queue = ServerQueue(lambda: 0.0)
    queue.limit(1, can_grow=False)
    await queue.enter(1)
    second, third = (asyncio.ensure_future(queue.enter(9)) for _ in range(2))
    await asyncio.sleep(0)
    second.cancel()
    queue.leave()
    await third
    assert (queue.running, second.cancelled()) == (1, True)


async def test_limit_is_forgotten_after_a_while() -> None:
    now = 0.0
    queue = ServerQueue(lambda: now)
    queue.limit(1, can_grow=False)
    await queue.enter(1)
    with pytest.raises(TimeoutError):
        await queue.enter(0.01)
    now = 601.0
    await queue.enter(1)
    assert queue.running == 2


def patience(spec: str, **settings: Any) -> float:
    """The seconds that a model may be silent before its first event."""
    given = Settings(**settings)
    pool = ClientPool(given, Catalog(ROOT / "data" / "models.yaml"))
    options = pool.options(pool.info(spec))
    assert options.idle == options.timeout or given.llm_idle_timeout
    return options.timeout


@pytest.mark.parametrize(
    ("spec", "seconds"),
    [
        ("openai:gpt-5-mini", 300),
        ("openai:openai/o3", 300),
        ("openai:a-model-that-nobody-knows", 300),
        ("anthropic:claude-opus-5-5", 300),
        ("openai:gpt-4.1-mini", 30),
        ("anthropic:claude-3-5-haiku-latest", 30),
        ("mock:echo", 30),
    ],
)
def test_models_that_may_think_have_more_time(spec: str, seconds: float) -> None:
    assert patience(spec) == seconds


@pytest.mark.parametrize(
    ("settings", "spec", "seconds"),
    [
        ({"llm_timeout": 5}, "openai:a-model-that-nobody-knows", 5),
        ({"llm_timeout": 5}, "openai:gpt-5-mini", 5),
        ({"llm_timeout": 5, "llm_thinking_timeout": 60}, "openai:gpt-5-mini", 60),
        ({"llm_timeout": 900}, "openai:gpt-5-mini", 900),
        ({"llm_thinking_timeout": 60}, "openai:gpt-5-mini", 60),
        ({"llm_timeout": 5}, "openai:gpt-4.1-mini", 5),
    ],
)
def test_settings_give_models_their_time(
    settings: dict[str, Any], spec: str, seconds: float
) -> None:
    assert patience(spec, **settings) == seconds
