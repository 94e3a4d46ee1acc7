"""Ask a server how long the context of a model is.

There is no common way. Most servers have the number in their list of models, each under a name of
its own. Servers of local models have it elsewhere: their user chooses it when a model is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote

TIMEOUT_S = 3.0
"""Seconds that a server may take for all questions together."""

OLLAMA_CONTEXT = 4096
"""Context that Ollama loads a model with, unless its user chose another. It cuts longer prompts."""

MIN_CONTEXT, MAX_CONTEXT = 256, 100_000_000
"""Plausible lengths, in tokens."""

_NAMES = (
    "loaded_context_length", "n_ctx", "max_model_len", "context_length", "context_window",
    "max_context_length", "max_context_window_tokens", "context_size", "max_input_tokens",
    "input_token_limit", "inputtokenlimit", "max_sequence_length", "n_ctx_train",
)  # fmt: skip
"""Names of the number in a description of a model, those of the loaded model first."""

Fetch = Callable[[str, str, dict[str, Any] | None], Awaitable[Any]]
"""Sends a request (method, URL, JSON) and returns the parsed answer, None if there is none."""


async def fetch_context(fetch: Fetch, base_url: str, name: str) -> int | None:
    """Return the context of a model at a server with OpenAI's protocol, None if it doesn't say.

    Args:
        fetch: Sends a request.
        base_url: The address of the API, which usually ends in ``/v1``.
        name: The name of the model.
    """
    listed = _entry(await fetch("GET", f"{base_url}/models", None), name)
    root = re.sub(r"/v\d+(beta)?/?$", "", base_url)
    owner = str(listed.get("owned_by", "")).lower()
    if owner in ("llamacpp", "llama.cpp") or "meta" in listed:
        props = await fetch("GET", f"{root}/props", None)
        if (found := find_context(props)) is not None:
            return found
    if (found := find_context(listed)) is not None:
        return found
    described = await fetch("GET", f"{root}/api/v0/models/{quote(name, safe='')}", None)
    if (found := find_context(described)) is not None:  # LM Studio
        return found
    shown = await fetch("POST", f"{root}/api/show", {"model": name})
    if isinstance(shown, dict) and "model_info" in shown:  # Ollama
        chosen = re.search(r"num_ctx\s+(\d+)", str(shown.get("parameters", "")))
        running = _entry(await fetch("GET", f"{root}/api/ps", None), name)
        return (int(chosen[1]) if chosen else None) or find_context(running) or OLLAMA_CONTEXT
    return find_context(await fetch("GET", f"{root}/props", None))


def find_context(described: object, depth: int = 0) -> int | None:
    """Return the length of the context in a description, under any of its names."""
    if depth > 4 or not isinstance(described, dict):
        return None
    fields = {str(name).lower(): value for name, value in described.items()}
    for name in _NAMES:
        value = fields.get(name)
        if isinstance(value, str) and value.isdecimal():
            value = int(value)
        if type(value) is int and MIN_CONTEXT <= value <= MAX_CONTEXT:
            return value
    inner = [find_context(value, depth + 1) for value in fields.values()]
    return next((found for found in inner if found is not None), None)


def _entry(answer: object, name: str) -> dict[str, Any]:
    """Return the entry of a model in a list of models; the only entry if there is one."""
    listed = answer.get("data", answer.get("models")) if isinstance(answer, dict) else answer
    items = listed if isinstance(listed, list) else []
    entries = [entry for entry in items if isinstance(entry, dict)]
    for entry in entries:
        names = {entry.get("id"), entry.get("name"), entry.get("model"), entry.get("root")}
        if name in names or f"models/{name}" in names or f"{name}:latest" in names:
            return entry
    return entries[0] if len(entries) == 1 else {}
