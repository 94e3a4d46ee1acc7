"""The client for Anthropic's Messages API."""

from __future__ import annotations

import base64
import json
import re
from typing import TYPE_CHECKING, Any

from persona_lab.clients.catalog import ModelInfo, bare_name
from persona_lab.clients.event_stream import Event, integers, string, text_of
from persona_lab.clients.http import AnswerEvent, HttpClient, open_sdk
from persona_lab.clients.provider import Provider
from persona_lab.errors import (
    BadKey,
    ModelNotFound,
    ModelTimeout,
    Overloaded,
    QuotaExceeded,
    RateLimited,
)
from persona_lab.types import Image, Options, Prompt, PromptMessage, Usage

if TYPE_CHECKING:
    import httpx2

    from persona_lab.settings import Settings

_TAKES_BOTH = re.compile(r"claude-(3|2|instant)|(?!claude)")
"""Models that take ``temperature`` and ``top_p`` together. Claude 4 takes one of them."""

MAX_TEMPERATURE = 1.0
"""The highest temperature that Anthropic accepts. Other providers accept up to 2."""


PROVIDER = Provider(
    name="anthropic",
    label="Anthropic",
    key_setting="anthropic_api_key",
    url_setting="anthropic_base_url",
    headers_setting="anthropic_custom_headers",
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
    required = frozenset({"max_tokens"})

    def __init__(
        self,
        info: ModelInfo,
        settings: Settings,
        *,
        http_client: httpx2.AsyncClient | None = None,
    ) -> None:
        import anthropic

        super().__init__(info, settings)
        self._sdk_error = anthropic.AnthropicError
        self._sdk = open_sdk(anthropic.AsyncAnthropic, PROVIDER, settings, http_client)

    def request(self, prompt: Prompt, options: Options) -> tuple[str, dict[str, Any]]:
        """Return the path and the body of the request.

        A transcript is sent as one user message, which the model continues. The API has no
        endpoint for plain text, and newer models refuse a prefilled answer. The API requires
        ``max_tokens``.
        """
        accepts, model = self.info.accepts, self.info.name
        body: dict[str, Any] = {
            "model": model,
            "max_tokens": options.max_tokens,
            "stream": True,
        }
        if prompt.kind == "transcript":
            body["messages"] = [{"role": "user", "content": prompt.system}]
        else:
            # The API refuses an empty message, such as a turn stopped before its first token.
            body["messages"] = [
                {"role": turn.role, "content": _content(turn)}
                for turn in prompt.turns
                if turn.content.strip() or turn.images
            ]
            if prompt.system:
                body["system"] = [
                    {
                        "type": "text",
                        "text": prompt.system,
                        "cache_control": {"type": "ephemeral"},
                    }
                ]
        if options.json_schema:
            schema = json.loads(options.json_schema)
            body["output_config"] = {"format": {"type": "json_schema", "schema": schema}}
        # The API refuses stop strings that are only white space.
        stop = [text for text in (*prompt.stop, *options.stop) if text.strip()]
        if stop and "stop" in accepts:
            body["stop_sequences"] = list(dict.fromkeys(stop))
        sampling = {
            "temperature": options.temperature and min(options.temperature, MAX_TEMPERATURE),
            "top_p": options.top_p,
            "top_k": options.top_k,
        }
        body |= {name: v for name, v in sampling.items() if v is not None and name in accepts}
        if "temperature" in body and "top_p" in body and not _TAKES_BOTH.match(bare_name(model)):
            del body["top_p"]
        return "/v1/messages", body

    def read_event(self, event: Event) -> AnswerEvent:
        """Read an event, or a whole message of a server that doesn't stream."""
        kind = event.get("type")
        if kind == "message_start":
            message = _object(event.get("message"))
            counts = integers(_object(message.get("usage")))
            counts.pop("output_tokens", None)  # the answer has only begun
            return AnswerEvent(model=string(message.get("model")), counts=counts)
        if kind == "content_block_start":
            return AnswerEvent(text_of([event.get("content_block")]))
        if kind == "content_block_delta":
            return AnswerEvent(text_of([event.get("delta")]))
        if kind == "message_delta":
            reason = string(_object(event.get("delta")).get("stop_reason"))
            return AnswerEvent(finish_reason=reason, counts=integers(_object(event.get("usage"))))
        if kind in ("message_stop", "message"):
            return AnswerEvent(
                text_of(event.get("content")),
                finish_reason=string(event.get("stop_reason")),
                is_last=True,
                model=string(event.get("model")),
                counts=integers(_object(event.get("usage"))),
            )
        return AnswerEvent()

    def read_usage(self, counts: dict[str, int]) -> Usage:
        """Return the usage. Our ``prompt_tokens`` include cached tokens; ``input_tokens`` don't."""
        read = counts.get("cache_read_input_tokens", 0)
        created = counts.get("cache_creation_input_tokens", 0)
        return Usage(
            prompt_tokens=counts.get("input_tokens", 0) + read + created,
            completion_tokens=counts.get("output_tokens", 0),
            cached_tokens=read,
            written_tokens=created,
        )


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


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


Client = AnthropicClient
