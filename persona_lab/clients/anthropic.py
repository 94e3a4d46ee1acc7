"""Anthropic's Messages API, as its raw stream of events.

The raw stream closes its connection with the generator and keeps no second copy of the answer,
which the SDK's helper does.
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
    CHARACTERS,
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
from persona_lab.unicode_text import whole

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    import httpx2

    from persona_lab.settings import Settings

HOTTEST = 1.0
"""Anthropic's highest temperature; other providers go to 2."""

_FINISH = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "refusal",
}
"""Theirs → ours; end_turn, stop_sequence and what is new are an ordinary end."""

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
    """One of Anthropic's models. Thinking, where a model thinks, isn't part of the answer."""

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
        import anthropic

        check_key(self.info, self._key)
        self.check_images(prompt)
        who: dict[str, Any] = {"provider": self.info.provider, "model": self.info.name}
        finish, model, text, cut = "", "", "", False
        most, silent = options.max_tokens * CHARACTERS, 0
        counts: dict[str, int] = {}
        opening = self._open(prompt, options)
        ours = translate_errors(self.info, self._key, anthropic.AnthropicError)
        with ours, ignore_errors_after_end(lambda: bool(finish), anthropic.AnthropicError):
            async with contextlib.aclosing(with_deadlines(opening, options)) as events:
                async for event in events:
                    try:
                        piece = _Piece(event)
                    except (AttributeError, TypeError, ValueError, OverflowError) as wrong:
                        raise InvalidResponse(**who) from wrong
                    model = piece.model or model
                    finish = piece.finish or finish
                    counts |= piece.counts
                    if shown := piece.text[: most - len(text)]:
                        text += shown
                        yield Chunk(shown)
                    silent += not piece.text
                    if cut := shown != piece.text or silent > most:
                        finish = "max_tokens"
                        break
        if not finish:
            # A connection that is closed in order looks like an end; only the reason tells.
            raise Offline(**who) if model else InvalidResponse(**who)
        usage = validated_usage(_usage(counts), prompt, text)
        yield Chunk(
            finish_reason=_FINISH.get(finish, "stop"),
            usage=_cut(usage, text) if cut else usage,
            model=model or self.info.name,
        )

    async def aclose(self) -> None:
        await self._sdk.close()

    async def _open(self, prompt: Prompt, options: Options) -> Any:
        """Ask. A transcript goes as one user's message, which the model then continues.

        There is no endpoint for bare text, and newer models refuse an answer begun for them.
        ``max_tokens`` is always sent: the API demands it.
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
            # A turn that was stopped before its first word has none; the API refuses it.
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
        # The API refuses stop strings of white space only.
        stop = [text for text in (*prompt.stop, *options.stop) if text.strip()]
        if stop and "stop" in accepts:
            request["stop_sequences"] = list(dict.fromkeys(stop))
        sampling = {
            "temperature": options.temperature and min(options.temperature, HOTTEST),
            "top_p": options.top_p,
            "top_k": options.top_k,
        }
        body = {name: v for name, v in sampling.items() if v is not None and name in accepts}
        if body:
            # The SDK's methods no longer know them; models that still do read them here.
            request["extra_body"] = body
        return await self._sdk.messages.create(**request)


def _content(turn: PromptMessage) -> Any:
    """Images stand ahead of the words about them, which the API wants not to be empty."""
    if not turn.images:
        return turn.content
    words = [{"type": "text", "text": turn.content}] if turn.content.strip() else []
    return [*({"type": "image", "source": _source(image)} for image in turn.images), *words]


def _source(image: Image) -> dict[str, str]:
    if image.url:
        return {"type": "url", "url": image.url}
    data = base64.b64encode(image.data).decode()
    return {"type": "base64", "media_type": image.media_type, "data": data}


class _Piece:
    """What one event says.

    The SDK checks no shapes: AttributeError, TypeError, ValueError or OverflowError mean a wrong
    one.
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
            self.text = whole(event.delta.text)
        elif event.type == "message_delta":
            self.finish = event.delta.stop_reason or ""
            self.counts = _counts(event.usage)


def _counts(usage: Any) -> dict[str, int]:
    """What ``usage`` tells; totals so far, so that later ones replace earlier ones."""
    told = {name: getattr(usage, name, None) for name in _COUNTS}
    return {name: value for name, value in told.items() if isinstance(value, int)}


def _usage(counts: dict[str, int]) -> Usage:
    """Ours: ``prompt_tokens`` include what the cache held and took in; ``input_tokens`` don't."""
    fresh, read, created, output = (counts.get(name, 0) for name in _COUNTS)
    return Usage(
        prompt_tokens=fresh + read + created,
        completion_tokens=output,
        cached_tokens=read,
        written_tokens=created,
    )


def _cut(usage: Usage, text: str) -> Usage:
    """Of an answer whose end, and with it the count of its tokens, wasn't waited for."""
    return replace(usage, completion_tokens=estimate_tokens(text), estimated=True)


Client = AnthropicClient
