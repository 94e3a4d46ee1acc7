"""Build the metadata of an answer and of the user's message, for events and rows."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from persona_lab.clients.pricing import priced
from persona_lab.db.tables import Agent, Generation, Message
from persona_lab.errors import ProviderError, RateLimitError
from persona_lab.monitor.request_context import request_id
from persona_lab.personas.persona import persona_of
from persona_lab.personas.versions import persona_hash
from persona_lab.pipeline.turn_state import TurnState, milliseconds
from persona_lab.responses.changes import restore
from persona_lab.types import Language, Prompt, Usage

if TYPE_CHECKING:
    from persona_lab.clients.base import LLMClientInterface
    from persona_lab.clients.catalog import ModelInfo

log = logging.getLogger("persona_lab.service")


async def cost_of(info: ModelInfo, usage: Usage, client: LLMClientInterface | None) -> float | None:
    """Return the cost of a call in US dollars; None if the price is unknown."""
    try:
        return await priced(info, usage, server=client.base_url if client else "")
    except Exception as error:  # noqa: BLE001 - a missing price must not fail the answer
        fields = {"event": "price_failed", "model": info.spec, "error_class": type(error).__name__}
        log.warning("no price: %s", info.spec, extra=fields)
        return None


def answer_metadata(agent: Agent, state: TurnState, record: Generation) -> dict[str, Any]:
    """Return the metadata of an answer. Its ``model`` is the provider's own name of the model."""
    usage = state.usage_or_estimate
    # A rate-limited turn sent nothing: don't store its prompt.
    sent = None if isinstance(state.error, RateLimitError) else state.prompt
    changes = state.content_changes
    metadata = {
        "model": state.model or record.model,
        "provider": record.provider,
        "spec": state.info.spec,
        "persona_hash": persona_hash(persona_of(agent)),
        "usage": usage.as_dict(),
        "cached_tokens": usage.cached_tokens,
        "estimated": usage.estimated,
        "processing_applied": list(state.applied),
        "finish_reason": state.finish_reason,
        "first_token_ms": record.first_token_ms,
        "first_shown_ms": state.elapsed_ms(state.first_shown_at),
        "total_ms": record.total_ms,
        "load_ms": milliseconds(state.load_time),
        "cost": record.cost,
        "status": state.status,
        **({"blocked": state.blocked} if state.blocked else {}),
        "prompt": sent.system if sent else "",
        "turns": len(sent.turns) if sent else 0,
        "sent": sent_turns(sent),
        "summary": state.prompt.trace.summary if state.prompt else "",
        "cache_hit": False,
        "attempts": 1,
        "request_id": request_id(),
        **state.client_metadata,
        "raw": restore(state.content, changes),
        "changes": [change.as_dict() for change in changes],
    }
    if isinstance(state.error, ProviderError):
        metadata["attempts"] = state.error.attempts
    if any(error is not state.error for error in state.failed):
        metadata["fallback_from"] = [failed_attempt(error) for error in state.failed]
    return metadata | (state.fallback_reply.metadata if state.fallback_reply is not None else {})


def sent_turns(prompt: Prompt | None) -> list[dict[str, str]]:
    """Return the prompt messages that were sent after the system text, as JSON data."""
    turns = prompt.turns if prompt else ()
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def message_metadata(message: Message | None) -> dict[str, Any]:
    """Return the metadata of the user's stored message."""
    if message is None:
        return {"user_message_id": ""}
    timestamp = message.created_at.isoformat()
    return {"user_message_id": message.id, "content": message.content, "timestamp": timestamp}


def failed_attempt(error: ProviderError) -> dict[str, Any]:
    """Describe a model that produced no text: its name, the error, the number of attempts."""
    return {
        "model": f"{error.provider}:{error.model}",
        "error_type": error.type.value,
        "code": error.code,
        "status": error.status,
        "attempts": error.attempts,
    }


def agent_language(agent: Agent) -> Language:
    """Return the language of ``agent``; Japanese for a value that isn't supported."""
    return "en" if agent.language == "en" else "ja"
