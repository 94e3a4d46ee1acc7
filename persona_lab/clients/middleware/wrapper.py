"""The base of all client middleware: a client around a client."""

from __future__ import annotations

import copy
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from persona_lab.clients.base import LLMClientInterface
from persona_lab.clients.catalog import ModelInfo
from persona_lab.errors import (
    ProviderError,
)
from persona_lab.types import Completion, Prompt

if TYPE_CHECKING:
    pass


log = logging.getLogger("persona_lab.layers")

Sleep = Callable[[float], Awaitable[None]]


def log_provider_event(
    level: int, event: str, info: ModelInfo, error: ProviderError, **more: Any
) -> None:
    """An error's own words and details may hold what nobody else should read."""
    about = {"event": event, "error": error.type.value, "code": error.code, "status": error.status}
    log.log(level, "%s: %s", event, info.spec, extra={"model": info.spec, **about, **more})


class ClientWrapper(LLMClientInterface):
    """A client with the face of the one that it stands around."""

    def __init__(self, client: LLMClientInterface) -> None:
        super().__init__(client.info, client.settings)
        self.client = client

    def for_model(self, info: ModelInfo) -> Self | None:
        inner = self.client.for_model(info)
        if inner is None:
            return None
        twin = copy.copy(self)
        twin.client, twin.info = inner, info
        return twin

    @property
    def base_url(self) -> str:
        return self.client.base_url

    @property
    def is_loaded(self) -> bool:
        return self.client.is_loaded

    @property
    def load_progress(self) -> float:
        return self.client.load_progress

    @property
    def waiting(self) -> int:
        return self.client.waiting

    def check(self) -> None:
        self.client.check()

    async def load(self) -> None:
        await self.client.load()

    async def prefill(self, prompts: Sequence[Prompt]) -> None:
        await self.client.prefill(prompts)

    def count_tokens(self, text: str) -> int:
        return self.client.count_tokens(text)

    def validate_response(self, response: Completion) -> None:
        self.client.validate_response(response)

    async def aclose(self) -> None:
        await self.client.aclose()


@dataclass(frozen=True, slots=True)
class CallContext:
    """Facts of one call.

    Attributes:
        user_id: Whose call it is.
        bypass_cache: Whether the user wants another answer than the cached one.
        user_key: Whether the user's own key pays for it.
        is_fallback: Whether it is a second model for the same message, which doesn't count as
            another request.
    """

    user_id: str
    bypass_cache: bool = False
    user_key: bool = False
    is_fallback: bool = False


Wrap = Callable[[LLMClientInterface, CallContext], LLMClientInterface]
