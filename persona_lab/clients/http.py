"""The base of clients for remote servers: deadlines, error translation and keys.

This module isn't a provider. It uses HTTP and no SDK.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import copy
import functools
import logging
from abc import abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar, cast
from urllib.parse import urlsplit

from cachetools import LRUCache
from pydantic import SecretStr

from persona_lab.clients.base import LLMClientInterface, estimate_tokens
from persona_lab.clients.catalog import ModelInfo
from persona_lab.clients.error_body import read_error_body
from persona_lab.clients.error_mapping import map_error
from persona_lab.clients.event_stream import ErrorEvent, Event, EventDecoder
from persona_lab.clients.finish_reasons import BROKEN_OFF, UNKNOWN, normalize_finish_reason
from persona_lab.clients.provider import Provider
from persona_lab.clients.request_repairs import MAX_REPAIRS, Repairs
from persona_lab.errors import (
    BadKey,
    BadRequest,
    InvalidResponse,
    Offline,
    Overloaded,
    ProviderError,
    WrongAddress,
)
from persona_lab.settings import Settings
from persona_lab.types import Chunk, Image, Options, Prompt, Usage
from persona_lab.unicode_text import ends_in_half_pair, without_surrogates

if TYPE_CHECKING:
    import httpx2

log = logging.getLogger(__name__)

MAX_REPAIRED_MODELS = 256
"""Maximum number of models of which a client remembers what they need."""

API_PATH = "/v1"
"""The path of the API at most servers. It is tried if the address in the settings has no path."""

LATER_STATUSES = (409, 425, 429, 499, 502, 503, 504, 529)
"""Statuses of a server that may take the same request later."""

MAX_TOKEN_LENGTH = 16
"""Maximum average length of a token, in characters.

Together with ``max_tokens`` it bounds the length of an answer and the number of events without
text, in case the server ignores ``max_tokens``.
"""

MAX_USAGE_TOKENS = 10_000_000
"""Highest plausible token count in the usage of one answer."""

MAX_WAIT_FOR_USAGE = 1.0
"""Seconds after the finish reason in which the server may send the usage."""

MAX_WAIT_AFTER_END = 0.2
"""Seconds after the mark of the end in which the server may end the response."""

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
        ErrorEvent,
    )


@dataclass(slots=True)
class AnswerEvent:
    """What one event of a provider says about the answer.

    Attributes:
        text: The next part of the answer.
        finish_reason: Why the answer ends, in the provider's word; "" if it doesn't end.
        is_refused: Whether the model refuses to answer.
        is_last: Whether the event marks the end of the answer.
        model: The model's name.
        counts: Token counts by the provider's names. They are totals: later ones replace earlier
            ones.
    """

    text: str = ""
    finish_reason: str = ""
    is_refused: bool = False
    is_last: bool = False
    model: str = ""
    counts: dict[str, int] = field(default_factory=dict)


class HttpClient(LLMClientInterface):
    """A client for one model. The clients of one provider share their connections.

    A subclass says what is sent and how an event is read. The SDK sends the request and maps
    refusals to its errors. The events are read here and not by the SDK, which stops at the first
    event that it doesn't expect, and takes twice the time.
    """

    required: ClassVar[frozenset[str]] = frozenset()
    """Parameters that the protocol requires."""

    _sdk: Any
    _sdk_error: type[Exception]
    """The base class of the SDK's errors."""

    def __init__(self, info: ModelInfo, settings: Settings) -> None:
        """Read the key and the server from the settings that the provider declares.

        Args:
            info: Facts about the model.
            settings: The settings.
        """
        super().__init__(info, settings)
        self._key = plain_key(self.provider.api_key(settings))
        self._base_url = self.provider.base_url(settings)
        self._repairs: LRUCache[str, Repairs] = LRUCache(MAX_REPAIRED_MODELS)
        """What each model at this server needs. All clients of these connections share it."""

    @property
    def base_url(self) -> str:
        """The address of the server."""
        return self._base_url

    @abstractmethod
    def request(self, prompt: Prompt, options: Options) -> tuple[str, dict[str, Any]]:
        """Return the path and the body of the request."""

    @abstractmethod
    def read_event(self, event: Event) -> AnswerEvent:
        """Read an event. Fields of an unexpected type are passed over.

        Raises:
            ErrorEvent: The event is an error.
        """

    @abstractmethod
    def read_usage(self, counts: dict[str, int]) -> Usage:
        """Return the usage. Counts that the provider didn't send are 0."""

    async def stream(self, prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        """Stream an answer. See :meth:`LLMClientInterface.stream`.

        If the server refuses a part of the request by its name, the request is sent again without
        that part.
        """
        check_key(self.info, self._key)
        self.check_images(prompt)
        path, body = self.request(prompt, options)
        for attempt in range(MAX_REPAIRS + 1):
            repairs, has_text = self._repairs.get(self.info.name, Repairs()), False
            sending = self._post(repairs.prefix + path, repairs.apply(body), options)
            try:
                async with contextlib.aclosing(self._read(sending, prompt, options)) as chunks:
                    async for chunk in chunks:
                        has_text = has_text or bool(chunk.text)
                        yield chunk
                return
            except ProviderError as error:
                is_last = has_text or attempt == MAX_REPAIRS
                learned = None if is_last else self._learn(repairs, error, path, body)
                if learned is None:
                    raise
                self._repairs[self.info.name] = learned

    async def _read(
        self, opening: Awaitable[httpx2.Response], prompt: Prompt, options: Options
    ) -> AsyncGenerator[Chunk, None]:
        """Send one request and stream its answer."""
        answer, text, half, is_cut, empty_events = AnswerEvent(), "", "", False, 0
        max_characters = options.max_tokens * MAX_TOKEN_LENGTH
        decoder = EventDecoder()

        def is_complete() -> bool:
            return bool(answer.finish_reason) or decoder.is_ended or answer.is_last

        with (
            translate_errors(self.info, self._key, self._sdk_error),
            ignore_errors_after_end(is_complete, self._sdk_error),
        ):
            pieces = with_deadlines(opening, options, decoder, is_complete)
            async with contextlib.aclosing(pieces) as events:
                async for event in events:
                    read = self.read_event(event)
                    answer.model = read.model or answer.model
                    answer.finish_reason = read.finish_reason or answer.finish_reason
                    answer.is_refused = answer.is_refused or read.is_refused
                    answer.is_last = answer.is_last or read.is_last
                    answer.counts |= read.counts
                    new = half + read.text
                    half = new[-1] if ends_in_half_pair(new) else ""
                    new = without_surrogates(new[: len(new) - len(half)])
                    if shown := new[: max_characters - len(text)]:
                        text += shown
                        yield Chunk(shown)
                    empty_events += not read.text
                    if is_cut := shown != new or empty_events > max_characters:
                        answer.finish_reason = "length"
                        break
        reason = self._finish_reason(answer, bool(text), is_complete())
        usage = self.read_usage(answer.counts)
        if is_cut:  # the provider counts at the end
            usage = replace(usage, completion_tokens=0)
        yield Chunk(
            finish_reason=reason,
            usage=complete_usage(usage, prompt, text),
            model=answer.model or self.info.name,
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._sdk.close()

    def for_model(self, info: ModelInfo) -> Self:
        """Return a client for another model that shares this client's connections."""
        other = copy.copy(self)
        other.info = info
        return other

    def _learn(
        self, repairs: Repairs, error: ProviderError, path: str, body: dict[str, Any]
    ) -> Repairs | None:
        """Return the repairs that a refusal asks for, None if it is another error."""
        if isinstance(error, WrongAddress):
            self._repairs.pop(self.info.name, None)
            has_path = path.startswith(API_PATH) or urlsplit(self._base_url).path.strip("/")
            learned = None if repairs.prefix or has_path else replace(repairs, prefix=API_PATH)
        else:
            is_later = error.status is None or error.status in LATER_STATUSES
            is_refusal = isinstance(error, BadRequest) or type(error) is ProviderError
            if not is_refusal and not (isinstance(error, Overloaded) and not is_later):
                return None
            said = read_error_body(getattr(error.__cause__, "body", None))
            learned = repairs.learn(said, body, self.required)
        if learned is not None:
            more = {"event": "request_repaired", "model": self.info.spec, "status": error.status}
            log.info("a request is changed for %s", self.info.spec, extra=more)
        return learned

    async def _post(self, path: str, body: dict[str, Any], options: Options) -> httpx2.Response:
        import httpx2

        response: httpx2.Response = await self._sdk.post(
            path,
            cast_to=httpx2.Response,
            body=body,
            stream=True,
            options={"timeout": http_timeout(options)},
        )
        return response

    def _finish_reason(self, answer: AnswerEvent, has_text: bool, is_complete: bool) -> str:
        """Return our finish reason for a whole answer.

        Raises:
            InvalidResponse: The server sent no text.
            Offline: The connection was closed before the end of the answer.
            Overloaded: The provider broke the answer off.
        """
        context: dict[str, Any] = {"provider": self.info.provider, "model": self.info.name}
        reason = normalize_finish_reason(answer.finish_reason)
        if answer.is_refused:
            return "refusal"
        if reason == BROKEN_OFF:
            raise Overloaded(**context)
        if reason:
            return reason
        if is_complete and has_text:
            return UNKNOWN
        # A closed connection looks like the end of the answer. Only a reason or a mark is proof.
        raise Offline(**context) if has_text else InvalidResponse(**context)


SDK_T = TypeVar("SDK_T")


def open_sdk(
    kind: Callable[..., SDK_T],
    provider: Provider,
    settings: Settings,
    http_client: httpx2.AsyncClient | None = None,
    **options: Any,
) -> SDK_T:
    """Create the client of an SDK with an explicit value for everything that it would look up.

    The SDKs read proxies, keys, the account and further headers from the environment. These are
    the operator's, and a request may have a visitor's key.

    Args:
        kind: The class of the SDK's client.
        provider: The declaration of the provider.
        settings: The settings.
        http_client: Replaces the HTTP client.
        **options: Further arguments of ``kind``.
    """
    import httpx2

    url = provider.base_url(settings)
    if http_client is None:
        http_client = httpx2.AsyncClient(
            follow_redirects=True,
            limits=httpx2.Limits(max_connections=1000, max_keepalive_connections=100),
            **settings.proxies.client_options(url),
        )
    sdk: Any = kind(
        api_key=plain_key(provider.api_key(settings)) or NO_KEY,
        base_url=url,
        default_query=provider.query(settings),
        http_client=http_client,
        **{"max_retries": 0, **options},
    )
    # An argument would be added to the headers of the environment.
    sdk._custom_headers = provider.headers(settings)
    return cast("SDK_T", sdk)


def complete_usage(usage: Usage, prompt: Prompt, text: str) -> Usage:
    """Return a usage that quotas and costs can rely on.

    Args:
        usage: The token counts of the provider. 0 means that it sent none.
        prompt: The prompt.
        text: The text of the answer.

    Returns:
        ``usage``, in which an estimate replaces each count that is missing or not plausible.
    """
    sent, received = usage.prompt_tokens, usage.completion_tokens
    if not 0 < sent <= MAX_USAGE_TOKENS:
        usage = replace(usage, prompt_tokens=estimate_tokens(str(prompt)), estimated=True)
    if not 0 < received <= MAX_USAGE_TOKENS and (text or received):
        usage = replace(usage, completion_tokens=estimate_tokens(text), estimated=True)
    cached, written = usage.cached_tokens, usage.written_tokens
    if cached < 0 or written < 0 or cached + written > usage.prompt_tokens:
        usage = replace(usage, cached_tokens=0, written_tokens=0)
    return usage


def http_timeout(options: Options) -> httpx2.Timeout:
    """Return the timeouts of the socket. :func:`with_deadlines` bounds the wait for an event."""
    import httpx2

    longest = max(options.timeout, options.idle)
    return httpx2.Timeout(longest, connect=min(options.timeout, options.connect_timeout))


async def with_deadlines(
    opening: Awaitable[httpx2.Response],
    options: Options,
    decoder: EventDecoder,
    is_complete: Callable[[], bool],
) -> AsyncGenerator[Event, None]:
    """Iterate over the events of a response, each within the timeouts of the options.

    The wait for the first event includes the connection. A socket's read timeout doesn't bound
    the wait: a server may send keep-alive lines for minutes, which aren't events. The time that
    the reader needs for an event doesn't count. A complete answer waits only briefly for the end
    of the response, which has the usage and lets the connection be used again. Closing this
    generator closes the response.

    Args:
        opening: The request, which returns the response.
        options: The timeouts, in seconds.
        decoder: Decodes the body.
        is_complete: Returns whether the answer is complete.

    Yields:
        The events.

    Raises:
        ErrorEvent: The server sent an error.
        TimeoutError: A timeout ran out.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + options.total_timeout
    deadline = min(loop.time() + options.timeout, end)
    async with asyncio.timeout_at(deadline):
        response = await opening
    is_whole = False
    async with contextlib.aclosing(response), contextlib.aclosing(response.aiter_bytes()) as body:
        while not is_whole:
            try:
                async with asyncio.timeout_at(deadline):
                    piece = await anext(body)
            except StopAsyncIteration:
                is_whole = True
            for event in decoder.finish() if is_whole else decoder.feed(piece):
                given = loop.time()
                yield event
                end += loop.time() - given  # the reader's time doesn't count
                deadline = min(loop.time() + options.idle, end)
            if is_complete():
                wait = MAX_WAIT_AFTER_END if decoder.is_ended else MAX_WAIT_FOR_USAGE
                deadline = min(deadline, loop.time() + wait)


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
