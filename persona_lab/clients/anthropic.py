"""The client for Anthropic's Messages API.

It reads the raw stream of events. The raw stream closes its connection with the generator. It
doesn't store a second copy of the answer, as the streaming helper of the SDK does.
"""

from __future__ import annotations

import base64
import contextlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from persona_lab.clients.base import estimate_tokens
from persona_lab.clients.catalog import ModelInfo
from persona_lab.clients.http import (
    MAX_TOKEN_LENGTH,
    NO_KEY,
    HttpClient,
    check_key,
    http_timeout,
    ignore_errors_after_end,
    translate_errors,
    validated_usage,
    with_deadlines,
)
from persona_lab.clients.provider import Provider
from persona_lab.errors import (
    BadKey,
    InvalidResponse,
    ModelNotFound,
    ModelTimeout,
    Offline,
    Overloaded,
    QuotaExceeded,
    RateLimited,
)
from persona_lab.types import Chunk, Image, Options, Prompt, PromptMessage, Usage
from persona_lab.unicode_text import without_surrogates

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    import httpx2

    from persona_lab.settings import Settings

MAX_TEMPERATURE = 1.0
"""The highest temperature that Anthropic accepts. Other providers accept up to 2."""

_FINISH = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "refusal",
}
"""Our finish reasons by Anthropic's. All others (end_turn, stop_sequence …) map to stop."""

_COUNTS = (
    "input_tokens",
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
    "output_tokens",
)


PROVIDER = Provider(
    name="anthropic",
    label="Anthropic",
    key_setting="anthropic_api_key",
    url_setting="anthropic_base_url",
    default_url="https://api.anthropic.com",
    libraries=("anthropic",),
    error_types={
        "billing_error": QuotaExceeded,
        "authentication_error": BadKey,
        "permission_error": BadKey,
        "not_found_error": ModelNotFound,
        "rate_limit_error": RateLimited,
        "timeout_error": ModelTimeout,
        "overloaded_error": Overloaded,
    },
)


class AnthropicClient(HttpClient):
    """A model of Anthropic. Thinking isn't part of the answer.

    Args:
        info: Facts about the model.
        settings: The settings.
        http_client: Replaces the HTTP client of the SDK.
    """

    provider = PROVIDER

    def __init__(
        self,
        info: ModelInfo,
        settings: Settings,
        *,
        http_client: httpx2.AsyncClient | None = None,
    ) -> None:
        import anthropic

        super().__init__(info, settings)
        self._sdk = anthropic.AsyncAnthropic(
            api_key=self._key or NO_KEY,
            base_url=self._base_url,
            max_retries=0,
            http_client=http_client,
        )

    async def stream(self, prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        """Stream an answer. See :meth:`LLMClientInterface.stream`."""
        import anthropic

        check_key(self.info, self._key)
        self.check_images(prompt)
        context: dict[str, Any] = {"provider": self.info.provider, "model": self.info.name}
        finish, model, text, cut = "", "", "", False
        max_characters, empty_events = options.max_tokens * MAX_TOKEN_LENGTH, 0
        counts: dict[str, int] = {}
        opening = self._open(prompt, options)
        translation = translate_errors(self.info, self._key, anthropic.AnthropicError)
        with translation, ignore_errors_after_end(lambda: bool(finish), anthropic.AnthropicError):
            async with contextlib.aclosing(with_deadlines(opening, options)) as events:
                async for event in events:
                    try:
                        parsed = _Event(event)
                    except (AttributeError, TypeError, ValueError, OverflowError) as wrong:
                        raise InvalidResponse(**context) from wrong
                    model = parsed.model or model
                    finish = parsed.finish or finish
                    counts |= parsed.counts
                    if shown := parsed.text[: max_characters - len(text)]:
                        text += shown
                        yield Chunk(shown)
                    empty_events += not parsed.text
                    if cut := shown != parsed.text or empty_events > max_characters:
                        finish = "max_tokens"
                        break
        if not finish:
            # A closed connection looks like the end of the answer. Only a stop reason is proof.
            raise Offline(**context) if model else InvalidResponse(**context)
        usage = validated_usage(_usage(counts), prompt, text)
        yield Chunk(
            finish_reason=_FINISH.get(finish, "stop"),
            usage=_with_estimated_answer(usage, text) if cut else usage,
            model=model or self.info.name,
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._sdk.close()

    async def _open(self, prompt: Prompt, options: Options) -> Any:
        """Send the request and return the stream of events.

        A transcript is sent as one user message, which the model continues. The API has no
        endpoint for plain text, and newer models refuse a prefilled answer. The API requires
        ``max_tokens``.
        """
        accepts = self.info.accepts
        request: dict[str, Any] = {
            "model": self.info.name,
            "max_tokens": options.max_tokens,
            "stream": True,
            "timeout": http_timeout(options),
        }
        if prompt.kind == "transcript":
            request["messages"] = [{"role": "user", "content": prompt.system}]
        else:
            # The API refuses an empty message, such as a turn stopped before its first token.
            request["messages"] = [
                {"role": turn.role, "content": _content(turn)}
                for turn in prompt.turns
                if turn.content.strip() or turn.images
            ]
            if prompt.system:
                request["system"] = [
                    {
                        "type": "text",
                        "text": prompt.system,
                        "cache_control": {"type": "ephemeral"},
                    }
                ]
        if options.json_schema:
            schema = json.loads(options.json_schema)
            request["output_config"] = {"format": {"type": "json_schema", "schema": schema}}
        # The API refuses stop strings that are only white space.
        stop = [text for text in (*prompt.stop, *options.stop) if text.strip()]
        if stop and "stop" in accepts:
            request["stop_sequences"] = list(dict.fromkeys(stop))
        sampling = {
            "temperature": options.temperature and min(options.temperature, MAX_TEMPERATURE),
            "top_p": options.top_p,
            "top_k": options.top_k,
        }
        body = {name: v for name, v in sampling.items() if v is not None and name in accepts}
        if body:
            # The SDK has no arguments for these options, but some models accept them.
            request["extra_body"] = body
        return await self._sdk.messages.create(**request)


def _content(turn: PromptMessage) -> Any:
    """Return the content blocks of a message: images first, then the text unless it is empty."""
    if not turn.images:
        return turn.content
    text = [{"type": "text", "text": turn.content}] if turn.content.strip() else []
    return [*({"type": "image", "source": _source(image)} for image in turn.images), *text]


def _source(image: Image) -> dict[str, str]:
    if image.url:
        return {"type": "url", "url": image.url}
    data = base64.b64encode(image.data).decode()
    return {"type": "base64", "media_type": image.media_type, "data": data}


class _Event:
    """The parsed fields of one event.

    The SDK doesn't validate responses. AttributeError, TypeError, ValueError or OverflowError mean
    that the event isn't valid.
    """

    __slots__ = ("counts", "finish", "model", "text")

    def __init__(self, event: Any) -> None:
        self.text, self.finish, self.model = "", "", ""
        self.counts: dict[str, int] = {}
        if event.type == "message_start":
            self.model = event.message.model or ""
            self.counts = _counts(event.message.usage)
        elif event.type == "content_block_delta" and event.delta.type == "text_delta":
            if not isinstance(event.delta.text, str):
                raise TypeError(type(event.delta.text).__name__)
            self.text = without_surrogates(event.delta.text)
        elif event.type == "message_delta":
            self.finish = event.delta.stop_reason or ""
            self.counts = _counts(event.usage)


def _counts(usage: Any) -> dict[str, int]:
    """Return the token counts in ``usage``. They are totals, so later ones replace earlier ones."""
    counts = {name: getattr(usage, name, None) for name in _COUNTS}
    return {name: value for name, value in counts.items() if isinstance(value, int)}


def _usage(counts: dict[str, int]) -> Usage:
    """Convert the counts. Our ``prompt_tokens`` include cached tokens; ``input_tokens`` don't."""
    fresh, read, created, output = (counts.get(name, 0) for name in _COUNTS)
    return Usage(
        prompt_tokens=fresh + read + created,
        completion_tokens=output,
        cached_tokens=read,
        written_tokens=created,
    )


def _with_estimated_answer(usage: Usage, text: str) -> Usage:
    """Estimate the tokens of an answer that was cut before the provider sent its count."""
    return replace(usage, completion_tokens=estimate_tokens(text), estimated=True)


Client = AnthropicClient
