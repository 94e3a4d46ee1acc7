"""Domain values as plain data, ready for JSON. Every interface shares these."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from persona_lab.clients.catalog import ModelInfo
from persona_lab.comparison.runner import Cell, Contestant
from persona_lab.db.tables import Agent, Chat, Message
from persona_lab.insights import Summary, UsageStats
from persona_lab.personas.persona import persona_of
from persona_lab.responses.changes import metadata_with_raw
from persona_lab.types import Prompt


def persona_data(agent: Agent) -> dict[str, Any]:
    """Id, whether it is a demo, and every field that can be edited."""
    return {"id": agent.id, "demo": agent.owner_id is None, **persona_of(agent)}


def prompt_data(prompt: Prompt) -> dict[str, Any]:
    """The prompt and the spans of it that each field, template and rule made."""
    return {
        "prompt": str(prompt),
        "system": prompt.system,
        "turns": [{"role": turn.role, "content": turn.content} for turn in prompt.turns],
        "kind": prompt.kind,
        "stop": list(prompt.stop),
        "template": prompt.trace.template,
        "rule": prompt.trace.rule,
        "reason": prompt.trace.reason,
        "spans": [[span.start, span.end, span.field] for span in prompt.trace.spans],
    }


def chat_data(chat: Chat) -> dict[str, Any]:
    """A conversation without its messages."""
    return {
        "id": chat.id,
        "persona": chat.agent_id,
        "title": chat.title,
        "updated_at": chat.updated_at.isoformat(),
    }


def message_data(message: Message) -> dict[str, Any]:
    """A message as it is stored. An answer's metadata has the model's own text as ``raw``."""
    answer = message.sender == "ai"
    return {
        "id": message.id,
        "sender": message.sender,
        "content": message.content,
        "status": message.status,
        "timestamp": message.created_at.isoformat(),
        "metadata": (
            metadata_with_raw(message.content, message.details) if answer else message.details
        ),
    }


def figures_data(figures: UsageStats) -> dict[str, Any]:
    """Counts, rates, waits in milliseconds, tokens, and cost in US dollars."""
    return {
        "answers": figures.answers,
        "stopped": figures.stopped,
        "errors": figures.errors,
        "error_rate": figures.error_rate,
        "cache_hits": figures.cache_hits,
        "cache_hit_rate": figures.cache_hit_rate,
        "first_token_ms": asdict(figures.first),
        "total_ms": asdict(figures.whole),
        "tokens": {
            "prompt": figures.prompt_tokens,
            "cached": figures.cached_tokens,
            "completion": figures.completion_tokens,
        },
        "cost": figures.cost,
        "unpriced": figures.unpriced,
    }


def model_data(info: ModelInfo, available: bool) -> dict[str, Any]:
    """A model: ``available`` says whether it can be used without a further key."""
    return {
        "model": info.spec,
        "label": info.label or info.name,
        "available": available,
        "context": info.context,
        "languages": list(info.languages),
    }


def cell_data(contestant: Contestant, cell: Cell) -> dict[str, Any]:
    """One column of a comparison at one moment."""
    return {
        "model": contestant.model,
        "persona": contestant.agent.id,
        "text": cell.text,
        "state": cell.state,
        "error": cell.error,
        "metadata": cell.metadata,
    }


def summary_data(summary: Summary) -> dict[str, Any]:
    """Usage statistics: in total, and by persona, model and day."""
    models = [(part.key.partition(":"), part.stats) for part in summary.models]
    return {
        "span": summary.span,
        "zone": summary.zone,
        "since": summary.since.isoformat() if summary.since else None,
        "until": summary.until.isoformat(),
        "total": figures_data(summary.total),
        "kinds": dict(summary.kinds),
        "error_types": dict(summary.error_types),
        "by_persona": [
            {"id": p.key, "name": p.name, "demo": p.demo, **figures_data(p.stats)}
            for p in summary.personas
        ],
        "by_model": [
            {"provider": provider, "model": name, **figures_data(figures)}
            for (provider, _, name), figures in models
        ],
        "by_day": [{"day": p.key, **figures_data(p.stats)} for p in summary.days],
    }
