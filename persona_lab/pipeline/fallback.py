"""Prepared answers from ``fallbacks.yaml``, for turns that no provider can answer."""

from __future__ import annotations

import logging
import traceback
from typing import TYPE_CHECKING, Any

from persona_lab.clients.error_mapping import map_error
from persona_lab.db.tables import Agent
from persona_lab.deprecated import former_method
from persona_lab.errors import (
    CircuitOpen,
    ConfigurationError,
    PersonaLabError,
    ProviderError,
    RateLimited,
    RateLimitError,
    errors_by_code,
)
from persona_lab.types import Language, Reply

if TYPE_CHECKING:
    from persona_lab.translations import Translations

log = logging.getLogger("persona_lab.errors")


class _UnknownValue:
    """Fills a placeholder whose value is unknown."""

    def __format__(self, spec: str) -> str:
        return "–"


class ErrorHandler:
    """Turns an error into a text: what happened, and one thing to do.

    Args:
        words: The texts of ``templates/fallbacks.yaml``: one for each error code, and
            ``broken_off`` (the frame after a partial answer).
    """

    def __init__(self, words: Translations) -> None:
        """Check that each error code has a text.

        Raises:
            ConfigurationError: An error code has none.
        """
        self._words = words
        for key in sorted({*errors_by_code(), "broken_off"}):
            if key not in words:
                raise ConfigurationError(f"fallbacks.yaml: {key}: has no words")

    def error_text(self, error: BaseException, language: str) -> str:
        """Return the text for ``error`` without a frame, as a page shows it."""
        mapped = map_error(error)
        details = dict(mapped.details)
        reason = f"reasons.{details.get('why')}"
        if reason in self._words:
            details["reason"] = self._fill_in(reason, language, details)
        return self._fill_in(mapped.code, language, details)

    say = former_method("ErrorHandler", "say", "error_text")

    def _fill_in(self, key: str, language: str, details: dict[str, Any]) -> str:
        values = {
            name: _UnknownValue() if details.get(name) in (None, "") else details[name]
            for name in self._words.placeholders(key)
        }
        return self._words(key, language, **values)

    async def handle(
        self,
        error: BaseException,
        original_message: str,
        agent: Agent | str | None = None,
        *,
        language: Language | None = None,
        begun: bool = False,
    ) -> Reply:
        """Build the prepared answer for ``error``, and log the failure.

        The log has neither the message nor the text of a foreign error, since both may contain
        private data.

        Args:
            error: What failed.
            original_message: The user's message. Only its length is logged.
            agent: The persona that should have answered, or its id.
            language: The language of the text; None for the persona's language.
            begun: Whether a part of the answer was shown already. The text then says so.

        Returns:
            The answer. Its metadata has ``error`` (the text without a frame), ``error_type``,
            ``code`` and ``fallback=True``.
        """
        mapped = map_error(error)
        persona = agent if isinstance(agent, Agent) else None
        text_language = language or (persona.language if persona else "ja")
        text = self.error_text(mapped, text_language)
        content = self._words("broken_off", text_language, words=text) if begun else text
        fields: dict[str, Any] = {
            "event": "answer_failed",
            "code": mapped.code,
            "error": mapped.type.value,
            "error_class": type(error).__name__,
            "agent_id": persona.id if persona else agent,
            "message_length": len(original_message),
        }
        if isinstance(mapped, ProviderError):
            fields |= {"provider": mapped.provider, "model": mapped.model, "status": mapped.status}
        if type(mapped) is PersonaLabError:
            frames = traceback.extract_tb(error.__traceback__)
            fields["trace"] = [f"{at.filename}:{at.lineno} {at.name}" for at in frames]
            log.error("answer failed: %s", type(error).__name__, extra=fields)
        else:
            log.warning("answer failed: %s", mapped.code, extra=fields)
        metadata: dict[str, Any] = {
            "error": text,
            "error_type": mapped.type.value,
            "code": mapped.code,
            "fallback": True,
        }
        if isinstance(mapped, RateLimitError):
            metadata |= {name: mapped.details.get(name) for name in ("seconds", "lifts_at")}
        elif isinstance(mapped, RateLimited):
            metadata["seconds"] = mapped.retry_after
        elif isinstance(mapped, CircuitOpen):
            metadata["seconds"] = mapped.details.get("seconds")
        return Reply(content=content, metadata=metadata)
