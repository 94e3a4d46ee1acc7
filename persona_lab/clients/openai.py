"""The client for OpenAI and for compatible servers.

Ollama, vLLM, llama-server and LM Studio are such servers. ``OPENAI_BASE_URL`` selects the server
and includes the path of its API (usually ``/v1``). Chat prompts go to ``/chat/completions``.
Transcripts, which base models continue, go to ``/completions``. Options that only OpenAI supports
are sent to OpenAI only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from persona_lab.clients.catalog import ModelInfo
from persona_lab.clients.http import (
    MAX_TOKEN_LENGTH,
    NO_KEY,
    HttpClient,
    check_key,
    data_url,
    http_timeout,
    ignore_errors_after_end,
    translate_errors,
    validated_usage,
    with_deadlines,
)
from persona_lab.clients.provider import Provider
from persona_lab.errors import (
    BadKey,
    ContextTooLong,
    InvalidResponse,
    ModelNotFound,
    Offline,
    QuotaExceeded,
    RateLimited,
    Refused,
)
from persona_lab.types import Chunk, Options, Prompt, PromptMessage, Usage
from persona_lab.unicode_text import without_surrogates

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    import httpx2

    from persona_lab.settings import Settings

MAX_STOP_STRINGS = 4
"""Maximum number of stop strings in a request to OpenAI."""

_FINISH = {"length": "length", "content_filter": "content_filter"}
"""Our finish reasons by OpenAI's. All other reasons (stop, eos, tool_calls …) map to stop."""


PROVIDER = Provider(
    name="openai",
    label="OpenAI",
    key_setting="openai_api_key",
    url_setting="openai_base_url",
    default_url="https://api.openai.com/v1",
    libraries=("openai",),
    error_types={
        "insufficient_quota": QuotaExceeded,
        "billing_hard_limit_reached": QuotaExceeded,
        "billing_not_active": QuotaExceeded,
        "contract_spend_limit_reached": QuotaExceeded,
        "enforced_spend_limit_reached": QuotaExceeded,
        "linked_organization_spend_limit_reached": QuotaExceeded,
        "context_length_exceeded": ContextTooLong,
        "exceed_context_size_error": ContextTooLong,  # llama-server
        "content_filter": Refused,
        "content_policy_violation": Refused,
        "invalid_api_key": BadKey,
        "model_not_found": ModelNotFound,
        "rate_limit_exceeded": RateLimited,
    },
)


class OpenAIClient(HttpClient):
    """A model that has an OpenAI-compatible API.

    The text of a refusal is dropped, because it comes from the provider and not from the persona.
    The answer ends with finish_reason "refusal", and the application shows its own message.

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
        import openai

        super().__init__(info, settings)
        host = urlsplit(self._base_url).hostname or ""
        self._is_official = host == "openai.com" or host.endswith(".openai.com")
        self._sdk = openai.AsyncOpenAI(
            api_key=self._key or NO_KEY,
            base_url=self._base_url,
            max_retries=0,
            http_client=http_client,
        )

    async def stream(self, prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        """Stream an answer. See :meth:`LLMClientInterface.stream`."""
        import openai

        check_key(self.info, self._key)
        self.check_images(prompt)
        context: dict[str, Any] = {"provider": self.info.provider, "model": self.info.name}
        finish, refused, usage, model, text = "", False, None, "", ""
        max_characters, empty_events = options.max_tokens * MAX_TOKEN_LENGTH, 0
        opening = self._open(prompt, options)
        translation = translate_errors(self.info, self._key, openai.OpenAIError)
        with translation, ignore_errors_after_end(lambda: bool(finish), openai.OpenAIError):
            async with contextlib.aclosing(with_deadlines(opening, options)) as events:
                async for event in events:
                    try:
                        parsed = _Event(event)
                    except (AttributeError, TypeError, ValueError, OverflowError) as wrong:
                        raise InvalidResponse(**context) from wrong
                    model = parsed.model or model
                    usage = parsed.usage or usage
                    finish = parsed.finish or finish
                    refused = refused or parsed.refused
                    if shown := parsed.text[: max_characters - len(text)]:
                        text += shown
                        yield Chunk(shown)
                    empty_events += not parsed.text
                    if shown != parsed.text or empty_events > max_characters:
                        finish = "length"
                        break
        if not finish:
            # A closed connection looks like the end of the answer. Only a finish reason is proof.
            raise Offline(**context) if model or text else InvalidResponse(**context)
        yield Chunk(
            finish_reason="refusal" if refused else _FINISH.get(finish, "stop"),
            usage=validated_usage(usage, prompt, text),
            model=model or self.info.name,
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._sdk.close()

    async def _open(self, prompt: Prompt, options: Options) -> Any:
        """Send the request and return the stream of events."""
        request: dict[str, Any] = {
            "model": self.info.name,
            "stream": True,
            "stream_options": {"include_usage": True},
            "timeout": http_timeout(options),
            **self._sampling(prompt, options),
        }
        if options.json_schema:
            schema = {"name": "answer", "schema": json.loads(options.json_schema)}
            request["response_format"] = {"type": "json_schema", "json_schema": schema}
        if prompt.kind == "transcript":
            return await self._sdk.completions.create(prompt=prompt.system, **request)
        if self._is_official and prompt.system:
            # OpenAI routes requests with the same key to the machine with this prefix cache.
            persona = hashlib.sha256(prompt.system.encode()).hexdigest()
            request["prompt_cache_key"] = persona[:32]
        request["messages"] = _messages(prompt)
        return await self._sdk.chat.completions.create(**request)

    def _sampling(self, prompt: Prompt, options: Options) -> dict[str, Any]:
        """Return the set options that the model accepts, by their names in the API."""
        accepts = self.info.accepts
        stop = list(dict.fromkeys(text for text in (*prompt.stop, *options.stop) if text))
        chat = prompt.kind == "chat"
        fields: dict[str, Any] = {
            "temperature": options.temperature,
            "top_p": options.top_p,
            "seed": options.seed,
            "stop": (stop[:MAX_STOP_STRINGS] if self._is_official else stop) or None,
        }
        sent = {name: v for name, v in fields.items() if v is not None and name in accepts}
        if "max_tokens" in accepts:
            sent["max_completion_tokens" if self._is_official and chat else "max_tokens"] = (
                options.max_tokens
            )
        extra = {"top_k": options.top_k, "min_p": options.min_p}
        body = {name: v for name, v in extra.items() if v is not None and name in accepts}
        if options.repeat_penalty is not None and "repeat_penalty" in accepts:
            # vLLM and OpenRouter read the first name, llama-server the second.
            body |= dict.fromkeys(("repetition_penalty", "repeat_penalty"), options.repeat_penalty)
        return {**sent, "extra_body": body} if body else sent


def _messages(prompt: Prompt) -> list[dict[str, Any]]:
    system = [{"role": "system", "content": prompt.system}] if prompt.system else []
    return [*system, *({"role": turn.role, "content": _content(turn)} for turn in prompt.turns)]


def _content(turn: PromptMessage) -> Any:
    if not turn.images:
        return turn.content
    urls = [image.url or data_url(image) for image in turn.images]
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [*images, {"type": "text", "text": turn.content}]


class _Event:
    """The parsed fields of one event.

    The SDK doesn't validate responses. AttributeError, TypeError, ValueError or OverflowError mean
    that the event isn't valid.
    """

    __slots__ = ("finish", "model", "refused", "text", "usage")

    def __init__(self, event: Any) -> None:
        self.model = _string(event.model)
        self.usage = _usage(event.usage)
        self.text, self.finish, self.refused = "", "", False
        for choice in event.choices or ():
            self.finish = _string(choice.finish_reason)
            delta = getattr(choice, "delta", None)
            if delta is None:
                self.text += _string(getattr(choice, "text", None))
            else:
                self.text += _string(delta.content)
                self.refused = bool(delta.refusal)


def _string(value: object) -> str:
    if value is None or isinstance(value, str):
        return without_surrogates(value or "")
    raise TypeError(type(value).__name__)


def _usage(counted: Any) -> Usage | None:
    """Parse the token counts; None if they are missing or not valid. Then they are estimated."""
    try:
        details = counted.prompt_tokens_details
        return Usage(
            prompt_tokens=int(counted.prompt_tokens),
            completion_tokens=int(counted.completion_tokens),
            cached_tokens=int((details and details.cached_tokens) or 0),
            written_tokens=int((details and details.cache_write_tokens) or 0),
        )
    except (AttributeError, TypeError, ValueError, OverflowError):
        return None


Client = OpenAIClient
