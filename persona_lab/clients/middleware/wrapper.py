"""The base of client middleware: a client that wraps another client."""

from __future__ import annotations

import copy
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from persona_lab.clients.base import LLMClientInterface
from persona_lab.clients.catalog import ModelInfo
from persona_lab.errors import ProviderError
from persona_lab.types import Completion, Prompt

log = logging.getLogger("persona_lab.layers")

Sleep = Callable[[float], Awaitable[None]]


def log_provider_event(
    level: int, event: str, info: ModelInfo, error: ProviderError, **more: Any
) -> None:
    """Log an error of a provider, without its message and details, which may be private.

    Args:
        level: The level of the log record.
        event: The name of the event.
        info: The model.
        error: The error.
        **more: Further fields of the record.
    """
    about = {"event": event, "error": error.type.value, "code": error.code, "status": error.status}
    log.log(level, "%s: %s", event, info.spec, extra={"model": info.spec, **about, **more})


class ClientWrapper(LLMClientInterface):
    """A client that delegates every call to the client that it wraps.

    Args:
        client: The wrapped client.
    """

    def __init__(self, client: LLMClientInterface) -> None:
        super().__init__(client.info, client.settings)
        self.client = client

    def for_model(self, info: ModelInfo) -> Self | None:
        """Wrap the wrapped client's client for another model; None if it has none."""
        inner = self.client.for_model(info)
        if inner is None:
            return None
        other = copy.copy(self)
        other.client, other.info = inner, info
        return other

    @property
    def base_url(self) -> str:
        """The address of the server."""
        return self.client.base_url

    @property
    def is_loaded(self) -> bool:
        """Whether a call can start without loading the model first."""
        return self.client.is_loaded

    @property
    def load_progress(self) -> float:
        """The share of the model that is loaded, from 0 to 1."""
        return self.client.load_progress

    @property
    def waiting(self) -> int:
        """The number of requests in the local queue."""
        return self.client.waiting

    def check(self) -> None:
        """Check that the model is available, without a call to the provider."""
        self.client.check()

    async def load(self) -> None:
        """Load the model before the first call."""
        await self.client.load()

    async def prefill(self, prompts: Sequence[Prompt]) -> None:
        """Prefill the common prefix of ``prompts``."""
        await self.client.prefill(prompts)

    async def fetch_context(self) -> int | None:
        """Ask the server for the length of the context, in tokens; None if it doesn't say."""
        return await self.client.fetch_context()

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens in ``text``."""
        return self.client.count_tokens(text)

    def validate_response(self, response: Completion) -> None:
        """Check that the answer has text and wasn't refused."""
        self.client.validate_response(response)

    async def aclose(self) -> None:
        """Close the wrapped client."""
        await self.client.aclose()


@dataclass(frozen=True, slots=True)
class CallContext:
    """Facts of one call.

    Attributes:
        user_id: The user who makes the call.
        bypass_cache: Whether to call the model even if the cache has an answer.
        user_key: Whether the call uses the user's API key.
        is_fallback: Whether this is a fallback model for the same message. It doesn't count as
            another request.
    """

    user_id: str
    bypass_cache: bool = False
    user_key: bool = False
    is_fallback: bool = False


Wrap = Callable[[LLMClientInterface, CallContext], LLMClientInterface]
