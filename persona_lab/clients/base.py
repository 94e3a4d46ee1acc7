"""The interface that each provider's client implements."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from typing import Any, ClassVar

from persona_lab.clients.catalog import ModelInfo
from persona_lab.clients.provider import Provider
from persona_lab.errors import (
    InvalidResponse,
    NoVision,
    Refused,
)
from persona_lab.settings import Settings
from persona_lab.types import Chunk, Completion, Options, Prompt, Usage
from persona_lab.unicode_text import is_blank


class LLMClientInterface(ABC):
    """A model that answers. ``info`` holds what is known of it."""

    bound: ClassVar[bool] = True
    """Whether it belongs to the event loop that it was first used on, as an SDK's client does."""

    provider: ClassVar[Provider]
    """What it declares of its provider. Wrappers and fakes have none."""

    @property
    def base_url(self) -> str:
        """The server that it asks; "" where there is none to choose."""
        return ""

    def __init__(self, info: ModelInfo, settings: Settings) -> None:
        self.info = info
        self.settings = settings

    @abstractmethod
    def stream(self, prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        """The answer as it comes; the last chunk has finish_reason, usage and model.

        Raises ProviderError: ModelTimeout where one of the options' timeouts ran out, NoVision for
        an image that the model can't read. Closing the generator closes the connection or frees
        the sequence.
        """

    async def generate(self, prompt: Prompt, **options: Any) -> Completion:
        """The whole answer. ``options`` are fields of :class:`Options`.

        Raises ProviderError, InvalidResponse for an empty answer, Refused for a filtered one.
        """
        text: list[str] = []
        last = Chunk(finish_reason="stop")
        async with contextlib.aclosing(self.stream(prompt, Options(**options))) as chunks:
            async for chunk in chunks:
                text.append(chunk.text)
                last = chunk
        completion = Completion(
            content="".join(text),
            model=last.model or self.info.name,
            usage=last.usage or Usage(),
            finish_reason=last.finish_reason or "stop",
        )
        self.validate_response(completion)
        return completion

    def validate_response(self, response: Completion) -> None:
        """Raises Refused when a filter or the model itself refused, InvalidResponse when empty."""
        who: dict[str, Any] = {"provider": self.info.provider, "model": self.info.name}
        if response.finish_reason in ("content_filter", "refusal"):
            raise Refused(**who)
        if is_blank(response.content):
            raise InvalidResponse(**who)

    def check_images(self, prompt: Prompt) -> None:
        """Raises NoVision when the model can't read what the prompt has in it."""
        if not self.info.vision and any(turn.images for turn in prompt.turns):
            raise NoVision(provider=self.info.provider, model=self.info.name)

    def for_model(self, info: ModelInfo) -> LLMClientInterface | None:
        """A client for another of the provider's models that has nothing of its own to close.

        None where each model needs its own client.
        """
        return None

    @property
    def is_loaded(self) -> bool:
        """False while the first call would have to load something that takes time."""
        return True

    @property
    def load_progress(self) -> float:
        """The share of it that is loaded, from 0 to 1."""
        return 1.0

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn here; 0 where only the provider knows."""
        return 0

    def check(self) -> None:  # noqa: B027 - only a provider knows what it would say
        """Whether it can be had, as far as that is known without asking. Raises ProviderError."""

    async def load(self) -> None:  # noqa: B027 - most have nothing to load
        """Load what the first call would wait for. Raises ProviderError when it can't be."""

    async def prefill(self, prompts: Sequence[Prompt]) -> None:  # noqa: B027 - most can't
        """Read what all of ``prompts`` begin with, ahead of need and behind all else.

        Does nothing while the model isn't :attr:`ready`.
        """

    def count_tokens(self, text: str) -> int:
        """Tokens of ``text``; estimated unless the model's own tokenizer is at hand."""
        return estimate_tokens(text)

    async def aclose(self) -> None:  # noqa: B027 - most have nothing to let go of
        """Let go of connections and memory."""


def estimate_tokens(text: str) -> int:
    """CJK ≈ 0.6 and other characters ≈ 0.25 tokens each: between today's large vocabularies."""
    wide = sum(1 for character in text if character > "\u2e7f")
    return round(0.6 * wide + 0.25 * (len(text) - wide))
