"""Change a request so that a server that refused it takes it.

Servers, models and proxies accept different parameters, and no table knows them all. A server
names the parameter that it refuses. It is left out, renamed or limited, and the request is sent
once more. What was learned is kept for the model and applied to its next requests.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from persona_lab.clients.error_body import ErrorBody

MAX_REPAIRS = 5
"""Maximum number of repairs during one call. Some servers name one parameter at a time."""

_ESSENTIAL = frozenset(
    {"model", "messages", "prompt", "system", "response_format", "output_config"}
)
"""Parts of a request that can't be left out. Without a schema, an answer has another form."""

_LIMITS = ("max_completion_tokens", "max_tokens")
"""The two names of the limit of tokens in OpenAI's protocol."""

_PREFERRED = ("temperature",)
"""The parameter to keep if a server accepts only one of several."""

_REFUSAL = re.compile(
    r"unsupported|not (be )?support|doesn'?t support|does not support|isn'?t supported|unknown|"
    r"unrecogni[sz]ed|unexpected|extra (inputs|fields|field)|not (be )?(permitted|allowed)|"
    r"only the default|cannot (both )?be|can'?t be|only one|only \d|must be|should be|invalid|"
    r"deprecated|too (large|many|big|long|high)|at most|range|less than|greater than|"
    r"maximum|cannot find field|not accept|incompatible|no longer",
    re.IGNORECASE,
)
_ONE_OF = re.compile(r"\bboth\b|only one|either|together|at the same time", re.IGNORECASE)
_INSTEAD = re.compile(r"\buse\W{1,3}(max_\w*tokens)\b", re.IGNORECASE)
_FIXED = re.compile(r"only (?:the )?(?:value )?(?:of )?(\d+(?:\.\d+)?) (?:is|are) ", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.-])\d{1,7}(?![\w.-]*\w)")

_NO_SYSTEM = re.compile(
    r"system\W{0,3} ?(role|message|prompt|instruction)s?\b[^.]{0,60}"
    r"(not|unsupported|isn'?t|doesn'?t|invalid|unknown)|"
    r"(not|doesn'?t|unsupported|unknown|invalid|unexpected)[^.]{0,60}"
    r"(\brole\b[^.]{0,20}system|system\W{0,3} ?(role|message|prompt|instruction))|"
    r"role\W[^.]{0,60}(not|doesn'?t|isn'?t) [^.]{0,40}system|"
    r"developer (instruction|message)s? (is|are) not|"
    r"only user and assistant|roles must alternate|must alternate|"
    r"first (message|turn|content)[^.]{0,40}(must|should|role)[^.]{0,20}user",
    re.IGNORECASE,
)
_NO_BLOCKS = re.compile(r"cache_control|system[^.]{0,60}(valid string|a string|type str)", re.I)


@dataclass(frozen=True, slots=True)
class Repairs:
    """What one model at one server needs in its requests.

    Attributes:
        prefix: What precedes the path of the endpoint.
        left_out: Parameters that are left out.
        renamed: New names of parameters.
        values: The only value of a parameter.
        limits: The highest value of a parameter, or the number of items in a list.
        is_system_in_user: Whether the system text precedes the first user message.
        is_system_plain: Whether the system text is one text without parts.
    """

    prefix: str = ""
    left_out: frozenset[str] = frozenset()
    renamed: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, float] = field(default_factory=dict)
    limits: Mapping[str, int] = field(default_factory=dict)
    is_system_in_user: bool = False
    is_system_plain: bool = False

    def apply(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``body`` with all repairs."""
        repaired = {self.renamed.get(name, name): value for name, value in body.items()}
        for name in self.left_out:
            repaired.pop(name, None)
        if "stream" not in repaired:
            repaired.pop("stream_options", None)
        for name in self.values.keys() & repaired.keys():
            repaired[name] = self.values[name]
        for name in self.limits.keys() & repaired.keys():
            value, limit = repaired[name], self.limits[name]
            repaired[name] = value[:limit] if isinstance(value, list) else min(value, limit)
        if self.is_system_in_user:
            repaired["messages"] = _with_system_in_user(repaired["messages"])
        if self.is_system_plain and isinstance(repaired.get("system"), list):
            repaired["system"] = "\n\n".join(part["text"] for part in repaired["system"])
        return repaired

    def learn(
        self, error: ErrorBody, body: Mapping[str, Any], required: frozenset[str] = frozenset()
    ) -> Repairs | None:
        """Return repairs that answer a refusal too, None if it names nothing to change.

        Args:
            error: What the server says.
            body: The request before the repairs.
            required: Parameters that the protocol requires.
        """
        sent = self.apply(body)
        text = error.text
        if _NO_SYSTEM.search(text) and not self.is_system_in_user and _has_system(sent):
            return replace(self, is_system_in_user=True)
        if _NO_BLOCKS.search(text) and isinstance(sent.get("system"), list):
            return replace(self, is_system_plain=True)
        refused = _refused(error, sent)
        if not refused:
            return None
        learned = self
        for name in refused:
            learned = learned._without(name, text, sent, required)
        return learned if learned != self else None

    def _without(
        self, name: str, text: str, sent: Mapping[str, Any], required: frozenset[str]
    ) -> Repairs:
        """Return repairs for one refused parameter."""
        value = sent[name]
        if (only := _FIXED.search(text)) and name not in self.values and _is_number(value):
            return replace(self, values={**self.values, name: float(only[1])})
        if (limit := _limit(text, value)) is not None:
            return replace(self, limits={**self.limits, name: limit})
        if name in required:
            return self
        if name in _LIMITS and name not in self.renamed.values():
            hint = _INSTEAD.search(text)
            other = hint[1] if hint else _LIMITS[name == _LIMITS[0]]
            return replace(self, renamed={**self.renamed, name: other})
        return replace(self, left_out=self.left_out | {name})


def _refused(error: ErrorBody, sent: Mapping[str, Any]) -> list[str]:
    """Return the parameters that the server refuses."""
    candidates = [name for name in sent if name not in _ESSENTIAL]
    names = [re.split(r"[.\[]", option)[0] for option in error.options]
    named = [name for name in candidates if name in names]
    if not named and _REFUSAL.search(error.text):
        named = [name for name in candidates if re.search(rf"(?<![\w.]){name}(?!\w)", error.text)]
    if len(named) > 1 and _ONE_OF.search(error.text):
        kept = next((name for name in _PREFERRED if name in named), named[0])
        named.remove(kept)
    if "stream" in named and len(named) > 1:
        named.remove("stream")
    return named


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _limit(text: str, value: Any) -> int | None:
    """Return the highest value that the text names, if ``value`` is higher; None if there is none.

    Only whole numbers and lists have one: a limit of tokens, a number of stop strings.
    """
    size = len(value) if isinstance(value, list) else value
    if (
        type(size) is not int
        or size < 2
        or not re.search(
            r"at most|maximum|too (large|many|big|high|long)|range|less than|<=|>|up to|exceed",
            text,
            re.I,
        )
    ):
        return None
    lower = [number for number in map(int, _NUMBER.findall(text)) if 1 < number < size]
    return max(lower, default=None)


# ── system text ───────────────────────────────────────────────────────────────────────────


def _has_system(sent: Mapping[str, Any]) -> bool:
    messages = sent.get("messages")
    return isinstance(messages, list) and any(message["role"] == "system" for message in messages)


def _with_system_in_user(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put the system text ahead of the first user message, and join messages of the same role."""
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    turns = [message for message in messages if message["role"] != "system"]
    if system:
        if turns and turns[0]["role"] == "user":
            first = {**turns[0], "content": _joined(system, turns[0]["content"])}
            turns = [first, *turns[1:]]
        else:
            turns.insert(0, {"role": "user", "content": system})
    joined: list[dict[str, Any]] = []
    for turn in turns:
        if joined and joined[-1]["role"] == turn["role"]:
            joined[-1] = {**turn, "content": _joined(joined[-1]["content"], turn["content"])}
        else:
            joined.append(turn)
    return joined


def _joined(first: Any, second: Any) -> Any:
    """Join the contents of two messages: texts, or lists of parts."""
    if isinstance(first, str) and isinstance(second, str):
        return f"{first}\n\n{second}"
    return [
        part
        for content in (first, second)
        for part in ([{"type": "text", "text": content}] if isinstance(content, str) else content)
    ]
