"""The moderator that calls OpenAI's moderation endpoint, or a compatible server.

It implements :class:`persona_lab.responses.output_filter.Moderator`.

It uses the key and the address of the OpenAI client. The endpoint is free at OpenAI and adds one
round trip to each answer. The SDK retries a failed call within ``LLM_TIMEOUT``.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from persona_lab.clients.catalog import ModelInfo
from persona_lab.clients.http import check_key, http_timeout, plain_key, translate_errors
from persona_lab.clients.openai import PROVIDER, open_openai
from persona_lab.errors import InvalidResponse
from persona_lab.types import Options

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx2

    from persona_lab.settings import Settings


class OpenAIModerator:
    """Checks each answer with ``MODERATION_MODEL``. It keeps no connection between calls."""

    def __init__(
        self,
        settings: Callable[[], Settings],
        *,
        http_client: httpx2.AsyncClient | None = None,
    ) -> None:
        """Create the moderator.

        Args:
            settings: Returns the current settings, because a key may change.
            http_client: Replaces the HTTP client of the SDK.
        """
        self._settings = settings
        self._info = ModelInfo(provider=PROVIDER.name, name=settings().moderation_model)
        self._http_client = http_client

    async def review(self, text: str) -> list[str]:
        """Return the categories that are flagged in ``text``.

        Raises:
            ProviderError: The call failed.
        """
        import openai

        settings = self._settings()
        key, patience = plain_key(PROVIDER.api_key(settings)), settings.llm_timeout
        check_key(self._info, key)
        with translate_errors(self._info, key, openai.OpenAIError):
            sdk = open_openai(
                settings,
                self._http_client,
                max_retries=settings.llm_retries,
                timeout=http_timeout(Options(timeout=patience)),
            )
            try:
                async with asyncio.timeout(patience):
                    answer = await sdk.moderations.create(model=self._info.name, input=text)
                found = answer.results[0]
                names = found.categories.model_dump(by_alias=True)
                flagged = bool(found.flagged)
            except (AttributeError, TypeError, IndexError) as error:
                raise InvalidResponse(
                    provider=self._info.provider, model=self._info.name
                ) from error
            finally:
                if self._http_client is None:
                    await sdk.close()
        return [name for name, is_so in names.items() if is_so] or ["flagged"] if flagged else []
