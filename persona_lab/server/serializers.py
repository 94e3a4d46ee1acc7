"""Domain values as JSON-ready data, the same for every interface."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from persona_lab.clients.catalog import ModelInfo
from persona_lab.comparison.runner import Cell, Contestant
from persona_lab.db.tables import Agent, AgentVersion, Chat, Message
from persona_lab.insights import Summary, UsageStats
from persona_lab.personas.diff import diff_text
from persona_lab.personas.persona import persona_of
from persona_lab.personas.versions import VersionDiff, VersionInfo
from persona_lab.responses.changes import metadata_with_raw
from persona_lab.types import Prompt


def persona_data(agent: Agent) -> dict[str, Any]:
    """Return the id, whether it is a demo, and all editable fields of a persona."""
    return {"id": agent.id, "demo": agent.owner_id is None, **persona_of(agent)}


def version_data(version: VersionInfo | AgentVersion) -> dict[str, Any]:
    """Return a version without its content."""
    return {
        "number": version.number,
        "message": version.message,
        "created_at": version.created_at.isoformat(),
        "restored_from": version.restored_from,
    }


def diff_data(diff: VersionDiff) -> dict[str, Any]:
    """Return the fields and the parts of the prompt that differ between two versions."""
    return {
        "changes": [
            {"field": change.field, "before": change.before, "after": change.after}
            for change in diff.changes
        ],
        "prompt": [{"kind": part.kind, "text": part.text} for part in diff_text(*diff.prompts)],
    }


def prompt_data(prompt: Prompt) -> dict[str, Any]:
    """Return a prompt with its trace: the template, the rule and the span of each field."""
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
    """Return a conversation without its messages."""
    return {
        "id": chat.id,
        "persona": chat.agent_id,
        "title": chat.title,
        "updated_at": chat.updated_at.isoformat(),
    }


def message_data(message: Message) -> dict[str, Any]:
    """Return a stored message. The metadata of an answer has the model's own text as ``raw``."""
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


def stats_data(stats: UsageStats) -> dict[str, Any]:
    """Return counts, rates, latencies in milliseconds, tokens, and cost in US dollars."""
    return {
        "answers": stats.answers,
        "stopped": stats.stopped,
        "errors": stats.errors,
        "error_rate": stats.error_rate,
        "cache_hits": stats.cache_hits,
        "cache_hit_rate": stats.cache_hit_rate,
        "first_token_ms": asdict(stats.first),
        "total_ms": asdict(stats.whole),
        "tokens": {
            "prompt": stats.prompt_tokens,
            "cached": stats.cached_tokens,
            "completion": stats.completion_tokens,
        },
        "cost": stats.cost,
        "unpriced": stats.unpriced,
    }


def model_data(info: ModelInfo, available: bool) -> dict[str, Any]:
    """Return a model. ``available`` means that it is usable without another key."""
    return {
        "model": info.spec,
        "label": info.label or info.name,
        "available": available,
        "context": info.context,
        "languages": list(info.languages),
    }


def cell_data(contestant: Contestant, cell: Cell) -> dict[str, Any]:
    """Return one column of a comparison at one moment."""
    return {
        "model": contestant.model,
        "persona": contestant.agent.id,
        "text": cell.text,
        "state": cell.state,
        "error": cell.error,
        "metadata": cell.metadata,
    }


def summary_data(summary: Summary) -> dict[str, Any]:
    """Return usage statistics: total, and by persona, model and day."""
    models = [(group.key.partition(":"), group.stats) for group in summary.models]
    return {
        "span": summary.span,
        "zone": summary.zone,
        "since": summary.since.isoformat() if summary.since else None,
        "until": summary.until.isoformat(),
        "total": stats_data(summary.total),
        "kinds": dict(summary.kinds),
        "error_types": dict(summary.error_types),
        "by_persona": [
            {"id": p.key, "name": p.name, "demo": p.demo, **stats_data(p.stats)}
            for p in summary.personas
        ],
        "by_model": [
            {"provider": provider, "model": name, **stats_data(stats)}
            for (provider, _, name), stats in models
        ],
        "by_day": [{"day": p.key, **stats_data(p.stats)} for p in summary.days],
    }
