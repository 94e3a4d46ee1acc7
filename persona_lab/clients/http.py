"""What the clients of remote servers share: the bound on waiting, foreign errors, keys.

Not a provider. It knows HTTP and no SDK; :mod:`openai <persona_lab.clients.openai>` and
:mod:`anthropic <persona_lab.clients.anthropic>` know theirs.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import copy
import functools
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Protocol, Self, TypeVar

from pydantic import SecretStr

from persona_lab.clients.base import LLMClientInterface, estimate_tokens
from persona_lab.clients.catalog import ModelInfo
from persona_lab.clients.error_mapping import map_error
from persona_lab.errors import BadKey, ProviderError
from persona_lab.settings import Settings
from persona_lab.types import Image, Options, Prompt, Usage

if TYPE_CHECKING:
    import httpx2

CHARACTERS = 16
"""Characters that a token can have on average at most. It bounds an answer, and the events
without words in it, where a server doesn't keep to ``max_tokens``."""

MOST_TOKENS = 10_000_000
"""More than any model reads or writes for one answer."""

NO_KEY = "none"
"""Sent to servers that ask for no key: the SDKs refuse to send nothing."""


@functools.cache
def _transport_errors() -> tuple[type[Exception], ...]:
    """Return what the SDKs let through unwrapped: dropped streams, TLS, malformed JSON."""
    import anyio
    import httpx2

    return (
        httpx2.HTTPError,
        httpx2.StreamError,
        httpx2.InvalidURL,
        anyio.EndOfStream,
        OSError,
        ValueError,
    )


T_co = TypeVar("T_co", covariant=True)


class EventStream(Protocol[T_co]):
    """What both SDKs return for a stream of server-sent events."""

    async def __anext__(self) -> T_co: ...
    def __aiter__(self) -> AsyncIterator[T_co]: ...
    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, *exception: object) -> None: ...


class HttpClient(LLMClientInterface):
    """One model of many that are reached through the same connections."""

    def __init__(self, info: ModelInfo, settings: Settings) -> None:
        """Take the key and the server from the settings that the provider declares."""
        super().__init__(info, settings)
        self._key = plain_key(self.provider.api_key(settings))
        self._base_url = self.provider.base_url(settings)

    @property
    def base_url(self) -> str:
        return self._base_url

    def for_model(self, info: ModelInfo) -> Self:
        twin = copy.copy(self)
        twin.info = info
        return twin


def validated_usage(told: Usage | None, prompt: Prompt, text: str) -> Usage:
    """What the provider counted, or an estimate where that can't be: quotas and costs go by it."""
    if told is None or not all(0 <= count <= MOST_TOKENS for count in told.as_dict().values()):
        return Usage(estimate_tokens(str(prompt)), estimate_tokens(text), estimated=True)
    return told


def http_timeout(options: Options) -> httpx2.Timeout:
    """Return the socket's timeouts. :func:`with_deadlines` bounds the wait for each event."""
    import httpx2

    longest = max(options.timeout, options.idle)
    return httpx2.Timeout(longest, connect=min(options.timeout, options.connect_timeout))


async def with_deadlines(
    opening: Awaitable[EventStream[T_co]], options: Options
) -> AsyncGenerator[T_co, None]:
    """The events of a stream, each within the options' timeouts.

    Connecting counts towards the first. A socket's read timeout alone doesn't bound the wait: a
    server may send keep-alive lines for minutes, and the SDKs swallow them. What the reader
    takes for an event doesn't count. Closing this generator closes the connection. Raises
    TimeoutError.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + options.total_timeout
    deadline = min(loop.time() + options.timeout, end)
    async with asyncio.timeout_at(deadline):
        stream = await opening
    async with stream:
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    event = await anext(stream)
            except StopAsyncIteration:
                return
            given = loop.time()
            yield event
            end += loop.time() - given  # a slow reader isn't the model's silence
            deadline = min(loop.time() + options.idle, end)


@contextlib.contextmanager
def ignore_errors_after_end(over: Callable[[], bool], *foreign: type[Exception]) -> Iterator[None]:
    """Ignore provider errors once the answer is complete, that is when ``over()`` is true.

    They come from reading the usage event or from closing the connection. ``foreign`` are the SDK's
    errors, as in :func:`translate_errors`.
    """
    try:
        yield
    except _transport_errors() + foreign + (ProviderError,):
        if not over():
            raise


@contextlib.contextmanager
def translate_errors(info: ModelInfo, key: str, *foreign: type[Exception]) -> Iterator[None]:
    """Raise our errors for those of the connection and of the SDK (``foreign``).

    Some servers repeat the key that they refuse, and h11 prints a header that it can't send. A
    cause that contains the key is dropped, because a traceback would write it to the log.
    """
    try:
        yield
    except _transport_errors() + foreign as error:
        ours = map_error(error, provider=info.provider, model=info.name)
        raise ours from (None if _tells(error, key) else error)


def plain_key(secret: SecretStr | None) -> str:
    """The key without the blanks and line ends that pasting adds; "" when there is none."""
    return secret.get_secret_value().strip() if secret is not None else ""


def check_key(info: ModelInfo, key: str) -> None:
    """Raises BadKey for a key that no header can hold, before a library prints it in an error."""
    if not (key.isascii() and key.isprintable()):
        raise BadKey(provider=info.provider, model=info.name)


def data_url(image: Image) -> str:
    """The image itself in the form of an address."""
    return f"data:{image.media_type};base64,{base64.b64encode(image.data).decode()}"


def _tells(error: BaseException | None, key: str) -> bool:
    while key and error is not None:
        if key in str(error) or key in repr(error):
            return True
        error = error.__cause__ or error.__context__
    return False
