"""The interface that each provider's client implements."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from typing import Any, ClassVar

from persona_lab.clients.catalog import ModelInfo
from persona_lab.clients.provider import Provider
from persona_lab.deprecated import former_method, former_property, rename_overrides
from persona_lab.errors import (
    InvalidResponse,
    NoVision,
    OnlyThoughts,
    Refused,
)
from persona_lab.settings import Settings
from persona_lab.types import Chunk, Completion, Options, Prompt, Usage
from persona_lab.unicode_text import is_blank

_FORMER_NAMES = {
    "ready": "is_loaded",
    "loaded": "load_progress",
    "warm": "load",
    "read_ahead": "prefill",
}
"""The former names of members that clients override, until 0.2."""


class LLMClientInterface(ABC):
    """The interface of every client. A client calls one model.

    Attributes:
        info: Facts about the model.
        settings: The settings that the client was created with.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        """Accept overrides that have former names."""
        super().__init_subclass__(**options)
        rename_overrides(cls, _FORMER_NAMES)

    bound: ClassVar[bool] = True
    """Whether the client belongs to the event loop of its first use, as an SDK's client does."""

    provider: ClassVar[Provider]
    """The declaration of the provider. Wrappers and fakes have none."""

    @property
    def base_url(self) -> str:
        """The address of the server; "" if the server is fixed or there is none."""
        return ""

    def __init__(self, info: ModelInfo, settings: Settings) -> None:
        self.info = info
        self.settings = settings

    @abstractmethod
    def stream(self, prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        """Stream an answer; the last chunk has finish_reason, usage and model.

        Closing the generator closes the connection or frees the sequence.

        Args:
            prompt: The prompt for this model.
            options: Sampling options, timeouts and retries.

        Yields:
            The chunks of the answer.

        Raises:
            ModelTimeout: A timeout of the options ran out.
            NoVision: The prompt has an image and the model can't read images.
            ProviderError: The call failed for another reason.
        """

    async def generate(self, prompt: Prompt, **options: Any) -> Completion:
        """Return the complete answer.

        Args:
            prompt: The prompt for this model.
            **options: Fields of :class:`Options`.

        Raises:
            InvalidResponse: The answer is empty.
            Refused: A filter or the model refused to answer.
            ProviderError: The call failed for another reason.
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
        """Check that the answer has text and wasn't refused.

        Raises:
            InvalidResponse: The answer is empty.
            OnlyThoughts: The answer is empty, because it reached its limit of tokens.
            Refused: A filter or the model refused to answer.
        """
        context: dict[str, Any] = {"provider": self.info.provider, "model": self.info.name}
        if response.finish_reason in ("content_filter", "refusal"):
            raise Refused(**context)
        if is_blank(response.content):
            cut = response.finish_reason == "length"
            raise OnlyThoughts(**context) if cut else InvalidResponse(**context)

    def check_images(self, prompt: Prompt) -> None:
        """Check that the model can read the images of the prompt.

        Raises:
            NoVision: The prompt has an image and the model can't read images.
        """
        if not self.info.vision and any(turn.images for turn in prompt.turns):
            raise NoVision(provider=self.info.provider, model=self.info.name)

    def for_model(self, info: ModelInfo) -> LLMClientInterface | None:
        """Return a client for another model of the provider that shares this client's resources.

        Only this client must be closed. The result is None if each model needs its own client.
        """
        return None

    @property
    def is_loaded(self) -> bool:
        """Whether a call can start without loading the model first."""
        return True

    @property
    def load_progress(self) -> float:
        """The share of the model that is loaded, from 0 to 1."""
        return 1.0

    @property
    def waiting(self) -> int:
        """The number of requests in the local queue; 0 for a remote provider."""
        return 0

    def check(self) -> None:  # noqa: B027 - optional to override
        """Check that the model is available, without a call to the provider.

        Raises:
            ProviderError: The model isn't available.
        """

    async def load(self) -> None:  # noqa: B027 - optional to override
        """Load the model before the first call.

        Raises:
            ProviderError: The model can't be loaded.
        """

    async def prefill(self, prompts: Sequence[Prompt]) -> None:  # noqa: B027 - optional to override
        """Prefill the common prefix of ``prompts`` in the KV cache, at low priority.

        This does nothing unless the model :attr:`is_loaded`.
        """

    async def fetch_context(self) -> int | None:
        """Ask the server for the length of the context, in tokens; None if it doesn't say."""
        return None

    ready = former_property("LLMClientInterface", "ready", "is_loaded")
    loaded = former_property("LLMClientInterface", "loaded", "load_progress")
    warm = former_method("LLMClientInterface", "warm", "load")
    read_ahead = former_method("LLMClientInterface", "read_ahead", "prefill")

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens in ``text``; an estimate if the tokenizer isn't loaded."""
        return estimate_tokens(text)

    async def aclose(self) -> None:  # noqa: B027 - optional to override
        """Close connections and free memory."""


def estimate_tokens(text: str) -> int:
    """Estimate the number of tokens in ``text`` from its characters.

    A CJK character counts 0.6 tokens and any other character 0.25. These are averages over the
    large vocabularies of current models.
    """
    wide = sum(map("\u2e7f".__lt__, text))
    return round(0.6 * wide + 0.25 * (len(text) - wide))
