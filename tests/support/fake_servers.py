"""Fake providers: they send the bytes that the real servers send, and the real SDKs read them.

Each fake makes clients for the same cases: an answer, or one of :data:`FAULTS`. They test the
contract of all clients, and code that uses a client.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import httpx2

from persona_lab.clients.anthropic import AnthropicClient
from persona_lab.clients.base import LLMClientInterface
from persona_lab.clients.catalog import ModelInfo
from persona_lab.clients.local import PLAIN_STOP_STRINGS, LocalClient, plain_transcript
from persona_lab.clients.mock import ANSWERS, MockClient
from persona_lab.clients.openai import OpenAIClient
from persona_lab.errors import (
    BadKey,
    InvalidResponse,
    ModelNotFound,
    ModelTimeout,
    Offline,
    Overloaded,
    ProviderError,
    QuotaExceeded,
    RateLimited,
)
from persona_lab.llama import SamplerOptions, open_engine
from persona_lab.settings import Settings
from persona_lab.types import Prompt, PromptMessage, Usage

SECRET = "sk-secret-0123456789"
MESSAGE = "元気？"
PROMPT = Prompt(
    system="あなたはミナです。",
    turns=(
        PromptMessage("user", "やあ"),
        PromptMessage("assistant", "やあ！"),
        PromptMessage("user", MESSAGE),
    ),
    message=MESSAGE,
)
PIECES = ("こんにちは", "、ミナ", "です😊。")
SAMPLER_OPTIONS = SamplerOptions(temperature=0.7, top_k=40, top_p=0.95, min_p=0.05, seed=7)
"""The sampler options of the local client for a request with seed 7 and no other options."""
USAGE = Usage(prompt_tokens=120, completion_tokens=7, cached_tokens=100)

FAULTS: dict[str, type[ProviderError]] = {
    "401": BadKey,
    "403": BadKey,
    "404": ModelNotFound,
    "429": RateLimited,
    "quota": QuotaExceeded,
    "500": Overloaded,
    "529": Overloaded,
    "timeout": ModelTimeout,
    "keep-alive without end": ModelTimeout,
    "connection refused": Offline,
    "drop": Offline,
    "drop that looks like an end": Offline,
    "timeout in mid-stream": ModelTimeout,
    "error event": Overloaded,
    "broken JSON": InvalidResponse,
    "broken UTF-8": InvalidResponse,
    "wrong shape": InvalidResponse,
    "not a stream": InvalidResponse,
}
MID_STREAM = ("drop", "drop that looks like an end", "timeout in mid-stream", "error event")
"""Faults after the first of PIECES."""


class StreamBody(httpx2.AsyncByteStream):
    """The body of a response: parts to send, and errors to raise between them."""

    def __init__(self, parts: Sequence[bytes | Exception], *, then: bytes = b"") -> None:
        self.parts = parts
        self.then = then
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self.parts:
            if isinstance(part, Exception):
                raise part
            yield part
        while self.then:
            await asyncio.sleep(0)
            yield self.then

    async def aclose(self) -> None:
        self.closed = True


class FakeProvider(ABC):
    """Makes clients of one provider, and records their requests (``requests``, ``paths``)."""

    provider: Any
    name = "some-model"

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.body = StreamBody([])

    def info(self, **facts: Any) -> ModelInfo:
        return ModelInfo(**{"provider": self.provider, "name": self.name, **facts})

    @property
    def text(self) -> str:
        """The whole answer to PROMPT."""
        return "".join(PIECES)

    @abstractmethod
    def answering_client(self) -> LLMClientInterface:
        """Return a client whose model answers PROMPT with ``text``."""

    @abstractmethod
    def failing_client(self, fault: str) -> LLMClientInterface:
        """Return a client whose request ends with one of FAULTS."""


class FakeMock(FakeProvider):
    provider = "mock"
    name = "echo"

    @property
    def text(self) -> str:
        return ANSWERS["ja"].format(message=MESSAGE)

    def answering_client(self) -> MockClient:
        return MockClient(self.info(), Settings())

    def failing_client(self, fault: str) -> MockClient:
        after = 1 if fault in MID_STREAM else 0
        name = f"echo?fail={FAULTS[fault].code}&after={after}"
        return MockClient(self.info(name=name), Settings())


class FakeLocal(FakeProvider):
    """llama.cpp with random weights. The same seed always gives the same answer."""

    provider = "local"
    name = "tiny"

    def __init__(self, weights: Path) -> None:
        super().__init__()
        self.weights = weights
        self.settings = Settings(local_context=512, local_threads=1)

    @property
    def text(self) -> str:
        """The answer of the engine without the client."""
        engine = open_engine(self.weights, context=512, threads=1, owner=self)
        tokens = engine.model.tokenize(plain_transcript(PROMPT), bos=True)
        steps: queue.Queue[Any] = queue.Queue()
        engine.submit(
            tokens, steps.put, max_tokens=1000, options=SAMPLER_OPTIONS, stop=PLAIN_STOP_STRINGS
        )
        text = ""
        while (step := steps.get(timeout=30)).finish is None:
            text += step.text
        return text + str(step.text)

    def answering_client(self) -> LocalClient:
        return LocalClient(self.info(source=str(self.weights)), self.settings)

    def failing_client(self, fault: str) -> LLMClientInterface:
        raise AssertionError("the local engine has no server that can fail")


class FakeHttpProvider(FakeProvider):
    """A real SDK over ``httpx2.MockTransport``."""

    client_class: Callable[..., LLMClientInterface]
    key: str
    ping: bytes
    settings: dict[str, Any]

    def __init__(self) -> None:
        super().__init__()
        self.settings = {self.key: SECRET}

    def client(self, reply: httpx2.Response | Exception, **facts: Any) -> LLMClientInterface:
        def handle(request: httpx2.Request) -> httpx2.Response:
            self.requests.append(json.loads(request.content))
            self.paths.append(request.url.path)
            if isinstance(reply, Exception):
                raise reply
            return reply

        return self.client_class(
            self.info(**facts),
            Settings(**self.settings),
            http_client=httpx2.AsyncClient(transport=httpx2.MockTransport(handle)),
        )

    def streaming_client(
        self, parts: Sequence[bytes | Exception], *, then: bytes = b"", **facts: Any
    ) -> LLMClientInterface:
        self.body = StreamBody(parts, then=then)
        headers = {"content-type": "text/event-stream"}
        return self.client(httpx2.Response(200, headers=headers, stream=self.body), **facts)

    def answering_client(self) -> LLMClientInterface:
        return self.streaming_client(self.answer_events())

    def failing_client(self, fault: str) -> LLMClientInterface:
        start = self.answer_events()[: self.events_to_first_text]
        match fault:
            case "401" | "403" | "404" | "429" | "quota" | "500" | "529":
                return self.client(self.error_response(fault))
            case "timeout":
                return self.client(httpx2.ReadTimeout("slow"))
            case "connection refused":
                return self.client(httpx2.ConnectError("refused"))
            case "keep-alive without end":
                return self.streaming_client([], then=self.ping)
            case "drop":
                return self.streaming_client([*start, httpx2.RemoteProtocolError("peer closed")])
            case "drop that looks like an end":
                return self.streaming_client(start)
            case "timeout in mid-stream":
                return self.streaming_client([*start, httpx2.ReadTimeout("slow")])
            case "error event":
                return self.streaming_client([*start, self.error_event()])
            case "broken JSON":
                return self.streaming_client([b'event: message_start\ndata: {"type": \n\n'])
            case "broken UTF-8":
                return self.streaming_client([b'event: message_start\ndata: {"type": "\xff"}\n\n'])
            case "wrong shape":
                return self.streaming_client([self.malformed_event()])
            case "not a stream":
                return self.client(httpx2.Response(200, html="<h1>Welcome</h1>"))
        raise AssertionError(fault)

    events_to_first_text: int

    @abstractmethod
    def answer_events(
        self,
        pieces: Sequence[str] = PIECES,
        *,
        finish: str = "stop",
        usage: Usage | None = USAGE,
    ) -> list[bytes]:
        """Return the events of an answer. ``finish`` is the provider's name for it, or "stop"."""

    @abstractmethod
    def error_response(self, fault: str) -> httpx2.Response: ...

    @abstractmethod
    def error_event(self) -> bytes: ...

    @abstractmethod
    def malformed_event(self) -> bytes: ...


class FakeOpenAI(FakeHttpProvider):
    provider = "openai"
    client_class = OpenAIClient
    key = "openai_api_key"
    ping = b": keep-alive\n\n"
    events_to_first_text = 2

    def event(self, **fields: Any) -> bytes:
        chunk = {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "some-model-2026-11-01",
            "choices": [],
            **fields,
        }
        return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n".encode()

    def delta(self, finish: str | None = None, **delta: Any) -> bytes:
        return self.event(choices=[{"index": 0, "delta": delta, "finish_reason": finish}])

    def usage_event(self, usage: Usage) -> bytes:
        return self.event(
            usage={
                "prompt_tokens": usage.prompt_tokens,
                "completion_tokens": usage.completion_tokens,
                "total_tokens": usage.total_tokens,
                "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
            }
        )

    def answer_events(
        self,
        pieces: Sequence[str] = PIECES,
        *,
        finish: str = "stop",
        usage: Usage | None = USAGE,
    ) -> list[bytes]:
        return [
            self.delta(role="assistant", content=""),
            *(self.delta(content=piece) for piece in pieces),
            self.delta(finish),
            *([self.usage_event(usage)] if usage else []),
            b"data: [DONE]\n\n",
        ]

    def error_response(self, fault: str) -> httpx2.Response:
        code = {
            "401": "invalid_api_key",
            "404": "model_not_found",
            "429": "rate_limit_exceeded",
            "quota": "insufficient_quota",
            "context too long": "context_length_exceeded",
        }.get(fault)
        kind = {"quota": "insufficient_quota", "500": "server_error"}.get(
            fault, "invalid_request_error"
        )
        message = f"Incorrect API key provided: {SECRET}" if fault == "401" else "no"
        status = {"quota": 429, "context too long": 400}.get(fault) or int(fault)
        return httpx2.Response(
            status,
            headers={"retry-after": "7"} if fault == "429" else {},
            json={"error": {"message": message, "type": kind, "param": None, "code": code}},
        )

    def error_event(self) -> bytes:
        return b'data: {"error": {"message": "busy", "type": "server_error", "code": null}}\n\n'

    def malformed_event(self) -> bytes:
        return self.event(choices=[{"index": 0, "delta": {"content": 5}}])


class FakeAnthropic(FakeHttpProvider):
    provider = "anthropic"
    client_class = AnthropicClient
    key = "anthropic_api_key"
    ping = b'event: ping\ndata: {"type": "ping"}\n\n'
    events_to_first_text = 3

    def event(self, kind: str, **fields: Any) -> bytes:
        data = json.dumps({"type": kind, **fields}, ensure_ascii=False)
        return f"event: {kind}\ndata: {data}\n\n".encode()

    def answer_events(
        self,
        pieces: Sequence[str] = PIECES,
        *,
        finish: str = "stop",
        usage: Usage | None = USAGE,
    ) -> list[bytes]:
        usage = usage or Usage()
        created = min(5, usage.prompt_tokens - usage.cached_tokens)
        message = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "content": [],
            "model": "some-model-2026-11-01",
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {
                "input_tokens": usage.prompt_tokens - usage.cached_tokens - created,
                "cache_read_input_tokens": usage.cached_tokens,
                "cache_creation_input_tokens": created,
                "output_tokens": 1,
            },
        }
        block = {"type": "text", "text": ""}
        end = {"stop_reason": "end_turn" if finish == "stop" else finish, "stop_sequence": None}
        return [
            self.event("message_start", message=message),
            self.event("content_block_start", index=0, content_block=block),
            *(
                self.event("content_block_delta", index=0, delta={"type": "text_delta", "text": p})
                for p in pieces
            ),
            self.event("content_block_stop", index=0),
            self.event(
                "message_delta", delta=end, usage={"output_tokens": usage.completion_tokens}
            ),
            self.event("message_stop"),
        ]

    def error_response(self, fault: str) -> httpx2.Response:
        kind = {
            "401": "authentication_error",
            "403": "permission_error",
            "404": "not_found_error",
            "429": "rate_limit_error",
            "quota": "billing_error",
            "500": "api_error",
            "529": "overloaded_error",
            "context too long": "request_too_large",
        }.get(fault, "invalid_request_error" if fault == "400" else "api_error")
        message = f"invalid x-api-key {SECRET}" if fault == "401" else "no"
        status = {"quota": 402, "context too long": 413}.get(fault) or int(fault)
        return httpx2.Response(
            status,
            headers={"retry-after": "7"} if fault == "429" else {},
            json={"type": "error", "error": {"type": kind, "message": message}},
        )

    def error_event(self) -> bytes:
        return self.event("error", error={"type": "overloaded_error", "message": "Overloaded"})

    def malformed_event(self) -> bytes:
        return self.event("content_block_delta", index=0, delta={"type": "text_delta", "text": 5})


FAKE_PROVIDERS: dict[str, type[FakeProvider]] = {
    "openai": FakeOpenAI,
    "anthropic": FakeAnthropic,
    "mock": FakeMock,
}


class HangingServer:
    """A real server on a local port: it sends ``events`` and waits until the client disconnects."""

    def __init__(self, events: Sequence[bytes]) -> None:
        self.events = events
        self.left = asyncio.Event()

    async def __aenter__(self) -> HangingServer:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = head.partition(b"content-length:")[2].split(maxsplit=1)[0]
        await reader.readexactly(int(length))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n")
        writer.write(b"transfer-encoding: chunked\r\n\r\n")
        for event in self.events:
            writer.write(b"%x\r\n%s\r\n" % (len(event), event))
        await writer.drain()
        with contextlib.suppress(ConnectionResetError):  # the client left bytes unread
            await reader.read()
        self.left.set()
        writer.close()
