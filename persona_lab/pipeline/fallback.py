"""Answers for when no provider can give one: prepared texts from ``fallbacks.yaml``."""

from __future__ import annotations

import logging
import traceback
from typing import TYPE_CHECKING, Any

from persona_lab.db.tables import Agent
from persona_lab.types import Language, Reply

if TYPE_CHECKING:
    from persona_lab.translations import Translations
from persona_lab.clients.error_mapping import map_error
from persona_lab.errors import (
    CircuitOpen,
    ConfigurationError,
    PersonaLabError,
    ProviderError,
    RateLimited,
    RateLimitError,
    errors_by_code,
)

log = logging.getLogger("persona_lab.errors")


class _Unknown:
    """Fills a blank whose detail nobody knew."""

    def __format__(self, spec: str) -> str:
        return "–"


class ErrorHandler:
    """Turns an error into words: what happened, what was kept, what to do next.

    ``words`` are those of ``templates/fallbacks.yaml``: one text for each code, ``persona``
    (the frame when a persona says it) and ``broken_off`` (the frame after half an answer).
    """

    def __init__(self, words: Translations) -> None:
        """Raises ConfigurationError for a code without words."""
        self._words = words
        for key in sorted({*errors_by_code(), "persona", "broken_off"}):
            if key not in words:
                raise ConfigurationError(f"fallbacks.yaml: {key}: has no words")

    def error_text(self, error: BaseException, language: str) -> str:
        """The plain words for ``error``, without a persona: for a page."""
        ours = map_error(error)
        details = dict(ours.details)
        reason = f"reasons.{details.get('why')}"
        if reason in self._words:
            details["reason"] = self._filled(reason, language, details)
        return self._filled(ours.code, language, details)

    def _filled(self, key: str, language: str, details: dict[str, Any]) -> str:
        blanks = {
            name: _Unknown() if details.get(name) in (None, "") else details[name]
            for name in self._words.blanks(key)
        }
        return self._words(key, language, **blanks)

    async def handle(
        self,
        error: BaseException,
        original_message: str,
        agent: Agent | str | None = None,
        *,
        language: Language | None = None,
        begun: bool = False,
    ) -> Reply:
        """The stand-in's answer to ``original_message``, and a line in the log.

        ``agent``: who would have answered, or its id. ``begun``: half an answer stands already,
        so no one introduces themselves again. The metadata has error (the plain words),
        error_type, code and fallback=True. Neither the message nor a foreign error's text
        is logged: either may hold what nobody else should read.
        """
        ours = map_error(error)
        persona = agent if isinstance(agent, Agent) else None
        chosen = language or (persona.language if persona else "ja")
        plain = self.error_text(ours, chosen)
        if begun:
            content = self._words("broken_off", chosen, words=plain)
        elif persona and persona.name:
            content = self._words("persona", chosen, name=persona.name, words=plain)
        else:
            content = plain
        fields: dict[str, Any] = {
            "event": "answer_failed",
            "code": ours.code,
            "error": ours.type.value,
            "error_class": type(error).__name__,
            "agent_id": persona.id if persona else agent,
            "message_length": len(original_message),
        }
        if isinstance(ours, ProviderError):
            fields |= {"provider": ours.provider, "model": ours.model, "status": ours.status}
        if type(ours) is PersonaLabError:
            frames = traceback.extract_tb(error.__traceback__)
            fields["trace"] = [f"{at.filename}:{at.lineno} {at.name}" for at in frames]
            log.error("answer failed: %s", type(error).__name__, extra=fields)
        else:
            log.warning("answer failed: %s", ours.code, extra=fields)
        metadata: dict[str, Any] = {
            "error": plain,
            "error_type": ours.type.value,
            "code": ours.code,
            "fallback": True,
        }
        if isinstance(ours, RateLimitError):
            metadata |= {name: ours.details.get(name) for name in ("seconds", "lifts_at")}
        elif isinstance(ours, RateLimited):
            metadata["seconds"] = ours.retry_after
        elif isinstance(ours, CircuitOpen):
            metadata["seconds"] = ours.details.get("seconds")
        return Reply(content=content, metadata=metadata)
