"""The client for OpenAI and for compatible servers.

Ollama, vLLM, llama-server and LM Studio are such servers. ``OPENAI_BASE_URL`` selects the server
and includes the path of its API (usually ``/v1``). Chat prompts go to ``/chat/completions``.
Transcripts, which base models continue, go to ``/completions``. Options that only OpenAI supports
are sent to OpenAI only.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from persona_lab.clients.catalog import ModelInfo, bare_name
from persona_lab.clients.event_stream import ErrorEvent, Event, integers, string, text_of
from persona_lab.clients.http import AnswerEvent, HttpClient, data_url, open_sdk
from persona_lab.clients.provider import Provider
from persona_lab.clients.server_facts import TIMEOUT_S, fetch_context
from persona_lab.errors import (
    BadKey,
    ContextTooLong,
    ModelNotFound,
    QuotaExceeded,
    RateLimited,
    Refused,
)
from persona_lab.types import Options, Prompt, PromptMessage, Usage

if TYPE_CHECKING:
    import httpx2
    import openai

    from persona_lab.settings import Settings

_REASONING = re.compile(r"(gpt-[5-9]|o\d)(?![a-z])")
"""Models of OpenAI that refuse ``max_tokens``, wherever they are hosted."""

MAX_STOP_STRINGS = 4
"""Maximum number of stop strings in a request to OpenAI."""


PROVIDER = Provider(
    name="openai",
    label="OpenAI",
    key_setting="openai_api_key",
    url_setting="openai_base_url",
    header_settings={
        "OpenAI-Organization": "openai_org_id",
        "OpenAI-Project": "openai_project_id",
    },
    headers_setting="openai_custom_headers",
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


def open_openai(
    settings: Settings, http_client: httpx2.AsyncClient | None = None, **options: Any
) -> openai.AsyncOpenAI:
    """Create the SDK's client. Its account comes from the settings, not from the environment."""
    import openai

    sdk = open_sdk(openai.AsyncOpenAI, PROVIDER, settings, http_client, **options)
    sdk.organization = sdk.project = None
    return sdk


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
        self._sdk_error = openai.OpenAIError
        self._sdk = open_openai(settings, http_client)

    def request(self, prompt: Prompt, options: Options) -> tuple[str, dict[str, Any]]:
        """Return the path and the body of the request."""
        body: dict[str, Any] = {
            "model": self.info.name,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._sampling(prompt, options),
        }
        if options.json_schema:
            schema = {"name": "answer", "schema": json.loads(options.json_schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        if prompt.kind == "transcript":
            return "/completions", {**body, "prompt": prompt.system}
        if self._is_official and prompt.system:
            # OpenAI routes requests with the same key to the machine with this prefix cache.
            persona = hashlib.sha256(prompt.system.encode()).hexdigest()
            body["prompt_cache_key"] = persona[:32]
        return "/chat/completions", {**body, "messages": _messages(prompt)}

    async def fetch_context(self) -> int | None:
        """Ask the server for the length of the context, in tokens; None if it doesn't say."""
        import httpx2
        import openai

        async def fetch(method: str, url: str, body: dict[str, Any] | None) -> Any:
            send = self._sdk.get if method == "GET" else self._sdk.post
            more = {} if body is None else {"body": body}
            try:
                timeout = {"timeout": TIMEOUT_S}
                answer = await send(url, cast_to=httpx2.Response, options=timeout, **more)
                return answer.json()
            except (openai.OpenAIError, httpx2.HTTPError, ValueError):
                return None

        if self._is_official:
            return None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TIMEOUT_S):
                return await fetch_context(fetch, self._base_url, self.info.name)
        return None

    def read_event(self, event: Event) -> AnswerEvent:
        """Read an event, or a whole completion of a server that doesn't stream."""
        answer = AnswerEvent(model=string(event.get("model")), counts=_counts(event.get("usage")))
        choices = event.get("choices")
        for choice in choices[:1] if isinstance(choices, list) else ():
            if not isinstance(choice, dict):
                continue
            if choice.get("error"):
                raise ErrorEvent(choice)
            answer.finish_reason = string(choice.get("finish_reason"))
            delta = choice.get("delta") or choice.get("message")
            if isinstance(delta, dict):
                answer.text = text_of(delta.get("content"))
                answer.is_refused = bool(delta.get("refusal"))
            else:
                answer.text = text_of(choice.get("text"))
        return answer

    def read_usage(self, counts: dict[str, int]) -> Usage:
        """Return the usage. Counts that the provider didn't send are 0."""
        return Usage(
            prompt_tokens=counts.get("prompt_tokens", 0),
            completion_tokens=counts.get("completion_tokens", 0),
            cached_tokens=counts.get("cached_tokens", 0),
            written_tokens=counts.get("cache_write_tokens", 0),
        )

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
            is_new = self._is_official or _REASONING.match(bare_name(self.info.name))
            sent["max_completion_tokens" if is_new and chat else "max_tokens"] = options.max_tokens
        extra = {"top_k": options.top_k, "min_p": options.min_p}
        body = {name: v for name, v in extra.items() if v is not None and name in accepts}
        if options.repeat_penalty is not None and "repeat_penalty" in accepts:
            # vLLM and OpenRouter read the first name, llama-server the second.
            body |= dict.fromkeys(("repetition_penalty", "repeat_penalty"), options.repeat_penalty)
        return sent | body


def _messages(prompt: Prompt) -> list[dict[str, Any]]:
    system = [{"role": "system", "content": prompt.system}] if prompt.system else []
    return [*system, *({"role": turn.role, "content": _content(turn)} for turn in prompt.turns)]


def _content(turn: PromptMessage) -> Any:
    if not turn.images:
        return turn.content
    urls = [image.url or data_url(image) for image in turn.images]
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [*images, {"type": "text", "text": turn.content}]


def _counts(usage: object) -> dict[str, int]:
    """Return the token counts in ``usage`` and in its details."""
    if not isinstance(usage, dict):
        return {}
    details = usage.get("prompt_tokens_details")
    return integers(details if isinstance(details, dict) else {}) | integers(usage)


Client = OpenAIClient
