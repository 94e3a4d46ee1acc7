"""The reasons for which a model ends its answer, in the words of all providers.

Servers and proxies pass on the words of other providers, so one table serves all clients.
"""

from __future__ import annotations

BROKEN_OFF = "error"
"""The provider broke the answer off."""

UNKNOWN = "unknown"
"""The answer has an end, but the server didn't say why it ended."""

MAX_REASON_LENGTH = 40
"""Maximum length of a reason that the table doesn't have."""

_REASONS = {
    "stop": (
        "stop", "stopped", "eos", "eos_token", "end_turn", "stop_sequence", "end", "complete",
        "completed", "done", "finish", "finished", "normal", "tool_calls", "tool_call", "tool_use",
        "function_call",
    ),
    "length": (
        "length", "max_tokens", "max_token", "max_length", "max_output_tokens",
        "max_completion_tokens", "model_length", "model_context_window_exceeded",
        "context_length_exceeded", "context_window_exceeded", "context_length", "token_limit",
        "limit", "incomplete", "pause_turn",
    ),
    "content_filter": (
        "content_filter", "content_filtered", "filtered", "sensitive", "safety", "recitation",
        "blocklist", "prohibited_content", "spii", "language", "image_safety", "moderation",
        "guardrail_intervened", "guardrail", "content_policy_violation", "blocked",
    ),
    "refusal": ("refusal", "refused"),
    BROKEN_OFF: (
        "error", "network_error", "server_error", "internal_error", "api_error", "abort",
        "aborted", "cancel", "cancelled", "canceled", "failed", "failure", "fail", "timeout",
        "insufficient_system_resource", "overloaded", "unavailable", "malformed_response",
        "interrupted",
    ),
}  # fmt: skip

_BY_WORD = {word: reason for reason, words in _REASONS.items() for word in words}


def normalize_finish_reason(reason: object) -> str:
    """Return our name of a provider's finish reason.

    Args:
        reason: The reason, as the provider sent it.

    Returns:
        "stop", "length", "content_filter", "refusal" or :data:`BROKEN_OFF`; "" if ``reason`` says
        nothing. A reason that isn't known is returned in lower case.
    """
    word = reason.strip().lower().replace("-", "_") if isinstance(reason, str) else ""
    word = word.removeprefix("finish_reason_")
    if word in ("", "null", "none", "finish_reason_unspecified", "unspecified"):
        return ""
    return _BY_WORD.get(word, word[:MAX_REASON_LENGTH])
