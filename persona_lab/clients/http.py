"""The base of clients for remote servers: deadlines, error translation and keys.

This module isn't a provider. It uses HTTP and no SDK.
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

MAX_TOKEN_LENGTH = 16
"""Maximum average length of a token, in characters.

Together with ``max_tokens`` it bounds the length of an answer and the number of events without
text, in case the server ignores ``max_tokens``.
"""

MAX_USAGE_TOKENS = 10_000_000
"""Highest plausible token count in the usage of one answer."""

NO_KEY = "none"
"""The key for servers that need none. The SDKs require a key."""


@functools.cache
def _transport_errors() -> tuple[type[Exception], ...]:
    """Return the error types that the SDKs don't wrap: broken streams, TLS, malformed JSON."""
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
    """A stream of server-sent events, as both SDKs return it."""

    async def __anext__(self) -> T_co: ...
    def __aiter__(self) -> AsyncIterator[T_co]: ...
    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, *exception: object) -> None: ...


class HttpClient(LLMClientInterface):
    """A client for one model. The clients of one provider share their connections."""

    def __init__(self, info: ModelInfo, settings: Settings) -> None:
        """Read the key and the server from the settings that the provider declares.

        Args:
            info: Facts about the model.
            settings: The settings.
        """
        super().__init__(info, settings)
        self._key = plain_key(self.provider.api_key(settings))
        self._base_url = self.provider.base_url(settings)

    @property
    def base_url(self) -> str:
        """The address of the server."""
        return self._base_url

    def for_model(self, info: ModelInfo) -> Self:
        """Return a client for another model that shares this client's connections."""
        other = copy.copy(self)
        other.info = info
        return other


def validated_usage(usage: Usage | None, prompt: Prompt, text: str) -> Usage:
    """Return a usage that quotas and costs can rely on.

    Args:
        usage: The token counts of the provider, None if it sent none.
        prompt: The prompt.
        text: The text of the answer.

    Returns:
        ``usage`` if its counts are plausible, otherwise an estimate.
    """
    if usage is None or not all(
        0 <= count <= MAX_USAGE_TOKENS for count in usage.as_dict().values()
    ):
        return Usage(estimate_tokens(str(prompt)), estimate_tokens(text), estimated=True)
    return usage


def http_timeout(options: Options) -> httpx2.Timeout:
    """Return the timeouts of the socket. :func:`with_deadlines` bounds the wait for an event."""
    import httpx2

    longest = max(options.timeout, options.idle)
    return httpx2.Timeout(longest, connect=min(options.timeout, options.connect_timeout))


async def with_deadlines(
    opening: Awaitable[EventStream[T_co]], options: Options
) -> AsyncGenerator[T_co, None]:
    """Iterate over the events of a stream, each within the timeouts of the options.

    The wait for the first event includes the connection. A socket's read timeout doesn't bound
    the wait: a server may send keep-alive lines for minutes, and the SDKs skip them. The time
    that the reader needs for an event doesn't count. Closing this generator closes the
    connection.

    Args:
        opening: The request, which returns the stream.
        options: The timeouts, in seconds.

    Yields:
        The events.

    Raises:
        TimeoutError: A timeout ran out.
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
            end += loop.time() - given  # the reader's time doesn't count
            deadline = min(loop.time() + options.idle, end)


@contextlib.contextmanager
def ignore_errors_after_end(
    is_complete: Callable[[], bool], *foreign: type[Exception]
) -> Iterator[None]:
    """Ignore provider errors that are raised after the answer is complete.

    The causes are reading the usage event and closing the connection.

    Args:
        is_complete: Returns whether the answer is complete.
        *foreign: The error types of the SDK.
    """
    try:
        yield
    except _transport_errors() + foreign + (ProviderError,):
        if not is_complete():
            raise


@contextlib.contextmanager
def translate_errors(info: ModelInfo, key: str, *foreign: type[Exception]) -> Iterator[None]:
    """Translate errors of the connection and of the SDK to errors of Persona Lab.

    Some servers repeat a refused key, and h11 prints a header that it can't send. A cause that
    contains the key is dropped, because a traceback would write the key to the log.

    Args:
        info: The model that is called.
        key: The API key, "" if there is none.
        *foreign: The error types of the SDK.

    Raises:
        PersonaLabError: The translated error.
    """
    try:
        yield
    except _transport_errors() + foreign as error:
        ours = map_error(error, provider=info.provider, model=info.name)
        raise ours from (None if _reveals_key(error, key) else error)


def plain_key(secret: SecretStr | None) -> str:
    """Return the key without surrounding white space, which pasting may add; "" if it is None."""
    return secret.get_secret_value().strip() if secret is not None else ""


def check_key(info: ModelInfo, key: str) -> None:
    """Check that a header can contain the key, before a library prints it in an error.

    Raises:
        BadKey: The key has characters that a header can't contain.
    """
    if not (key.isascii() and key.isprintable()):
        raise BadKey(provider=info.provider, model=info.name)


def data_url(image: Image) -> str:
    """Return the image as a ``data:`` URL."""
    return f"data:{image.media_type};base64,{base64.b64encode(image.data).decode()}"


def _reveals_key(error: BaseException | None, key: str) -> bool:
    """Return whether ``error`` or one of its causes contains the key."""
    while key and error is not None:
        if key in str(error) or key in repr(error):
            return True
        error = error.__cause__ or error.__context__
    return False
