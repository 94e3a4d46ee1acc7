"""Read the description of an error in a response's body, whatever its shape.

Providers send an object, a list, text, HTML, or JSON inside the text of another error. All names,
numbers and messages are collected from wherever they stand. The messages only serve to tell kinds
of errors apart. They may contain keys and prompts, so nothing else uses them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from persona_lab.errors import (
    BadKey,
    ContextTooLong,
    ModelNotFound,
    Overloaded,
    ProviderError,
    QuotaExceeded,
    RateLimited,
    Refused,
)

MAX_DEPTH = 8
"""Maximum nesting of a description."""

MAX_TEXT_LENGTH = 20_000
"""Maximum number of characters of messages that are searched."""

_NAME_KEYS = ("error_code", "reason", "code", "type", "__type", "status", "error")
"""Keys of machine-readable names, the most specific first."""

_TEXT_KEYS = frozenset(
    {"message", "msg", "detail", "error", "error_message", "errormessage", "title", "raw",
     "description", "reason", "reasons", "error_msg"}
)  # fmt: skip
_OPTION_KEYS = ("param", "loc", "parameter", "field")
_STATUS_KEYS = frozenset({"code", "status", "status_code", "statuscode"})
_MARKUP = re.compile(r"<(style|script)\b.*?</\1\s*>|<[^>]{0,1000}>", re.IGNORECASE | re.DOTALL)
_HTML = re.compile(r"\s*<(!doctype|html|head|body|h1|center)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """What a body says.

    Attributes:
        names: Machine-readable names, the most specific first.
        status: The status in the body, None if it has none.
        options: The parameters that the server names in fields of their own.
        text: All messages.
        is_json: Whether the body is JSON. Servers of models answer in JSON, others in HTML or text.
    """

    names: tuple[str, ...] = ()
    status: int | None = None
    options: tuple[str, ...] = ()
    text: str = ""
    is_json: bool = True


def read_error_body(body: object) -> ErrorBody:
    """Collect what ``body`` says about an error.

    Args:
        body: Parsed JSON, or text.
    """
    named: list[tuple[int, str]] = []
    texts: list[str] = []
    statuses: list[int] = []
    options: list[str] = []
    parsed = _parse(body) if isinstance(body, str) else body
    for key, value in _fields(parsed, 0):
        if isinstance(value, bool):
            continue
        if key in _STATUS_KEYS and (status := _status(value)) is not None:
            statuses.append(status)
        elif isinstance(value, str):
            if key in _NAME_KEYS and re.fullmatch(r"[\w.:/#-]{1,80}", value):
                named.append((_NAME_KEYS.index(key), value))
            if key in _TEXT_KEYS or not key:
                texts.append(value)
            if key in _OPTION_KEYS:
                options.append(value)
    text = "\n".join(texts)[:MAX_TEXT_LENGTH]
    if _HTML.match(text):
        text = _MARKUP.sub(" ", text)
    return ErrorBody(
        names=tuple(name for _, name in sorted(named, key=lambda each: each[0])),
        status=statuses[0] if statuses else None,
        options=tuple(options),
        text=text,
        is_json=not isinstance(parsed, str),
    )


def _fields(value: object, depth: int, key: str = "") -> Iterator[tuple[str, object]]:
    """Iterate over the leaves of ``value`` with their keys. JSON inside text is parsed."""
    if depth > MAX_DEPTH:
        return
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _fields(inner, depth + 1, str(name).lower())
    elif isinstance(value, list):
        if key == "loc":  # the place of a value that pydantic refuses: its last name
            yield key, next((part for part in reversed(value) if isinstance(part, str)), "")
            return
        for inner in value[:50] if key not in _OPTION_KEYS else ():
            yield from _fields(inner, depth + 1, key)
    elif isinstance(value, str) and not isinstance(inner := _parse(value), str):
        yield from _fields(inner, depth + 1, key)
    else:
        yield key, value


def _parse(text: str) -> Any:
    """Parse text that is, or ends with, a JSON object or list; otherwise return it."""
    for start in (match.start() for match in re.finditer(r"[{\[]", text[:300])):
        try:
            found = json.loads(text[start:])
        except (ValueError, RecursionError):
            continue
        if isinstance(found, list) and not any(isinstance(item, dict) for item in found):
            continue  # a range of numbers, for example
        before = text[:start].strip()
        return [before, found] if before else found
    return text


def _status(value: object) -> int | None:
    text = str(value) if isinstance(value, int | str) else ""
    return int(text) if re.fullmatch(r"[45]\d\d", text) else None


# ── kinds of errors ───────────────────────────────────────────────────────────────────────

_NAMES: dict[type[ProviderError], str] = {
    BadKey: "invalid_api_key api_key_invalid api_key_expired incorrect_api_key invalid_api_token "
    "invalid_token token_expired unauthenticated unauthorized authentication authentication_failed "
    "invalid_authentication access_token_invalid permission_denied invalid_iam_token auth",
    QuotaExceeded: "insufficient_quota insufficient_balance insufficient_credits payment_required "
    "insufficient_user_quota exceeded_current_quota credit_balance_too_low arrearage billing "
    "account_overdue out_of_credits spend_limit_reached",
    RateLimited: "rate_limit rate_limited rate_limit_exceeded too_many_requests throttling "
    "resource_exhausted throttling_exception throttled model_rate_limit concurrency_limit_exceeded",
    ContextTooLong: "context_length_exceeded context_window_exceeded string_above_max_length "
    "prompt_too_long request_too_large exceed_context_size context_too_long max_tokens_exceeded",
    Refused: "content_filter content_policy_violation content_policy moderation_blocked "
    "data_inspection_failed responsible_ai_policy_violation content_moderation content_blocked "
    "moderation prohibited_content safety",
    ModelNotFound: "model_not_found no_such_model model_not_available model_not_exist "
    "invalid_model model_not_supported deployment_not_found unknown_model",
    Overloaded: "overloaded engine_overloaded server_overloaded service_unavailable unavailable "
    "model_overloaded capacity server_busy loading_model queue_full",
}


def _plain(name: str) -> str:
    """Return a name as all spellings share it: ``RateLimitError`` is ``rate_limit_error``."""
    plain = re.sub(r"[^a-z0-9]", "", name.rpartition("#")[2].lower())
    return plain.removesuffix("error").removesuffix("exception")


_BY_NAME = {_plain(name): kind for kind, names in _NAMES.items() for name in names.split()}

_PHRASES: dict[type[ProviderError], tuple[str, ...]] = {
    Refused: (
        r"requires? moderation",
        r"(was|been|is|were) flagged|flagged (by|as|for)",
        r"content[ _-]?filter|content (management )?policy",
        r"safety (system|polic|guideline|filter)",
        r"inappropriate content|sensitive (content|words)",
        r"violat\w+ [^.]{0,60}(polic|guideline|terms)",
        r"敏感|不当な(内容|コンテンツ)",
    ),
    ContextTooLong: (
        r"(maximum|max|model'?s?|supported|available|exceeds?\w* (the )?)\W{1,3}context",
        r"context (length|window|size|limit)[^.]{0,40}(exceed|too|limit|is\b|of only)",
        r"exceed\w*[^.]{0,40}context",
        r"(prompt|input|request|message)s?[^.]{0,20} (is |are )?too (long|large)",
        r"too many (input )?tokens|input length[^.]{0,60}exceed|reduce the length",
        r"maximum (input|prompt|model) (length|tokens)|range of input length",
        r"(input|prompt)[^.]{0,40}(longer|larger|greater) than",
        r"(?<![_\w])tokens? [^.]{0,40}exceeds? [^.]{0,40}(limit|maximum)",
        r"(?<![_\w])tokens?\W[^.]{0,40}must be <=",
        r"上下文",
    ),
    QuotaExceeded: (
        r"credit balance|insufficient[ _](balance|credit|fund|quota)",
        r"exceeded your current quota|spend(ing)? limit",
        r"(requires?|add|buy|purchase|out of|no|not enough|more) (more )?credits",
        r"payment (is )?required|(check|update) your (plan|billing)",
        r"billing (hard limit|is not active|account)",
        r"account [^.]{0,40}(overdue|arrear|suspended)",
        r"余额|欠费|残高",
    ),
    BadKey: (
        r"(api|access|secret|subscription)[ _-]?(key|token)[^.]{0,40}"
        r"(not valid|invalid|incorrect|expired|missing|required|not found|not provided|revoked|"
        r"disabled|unknown|wrong)",
        r"(invalid|incorrect|malformed|missing|wrong|unknown|expired|bad|no|revoked)[^.]{0,20}"
        r"(api[ _-]?key|x-api-key|bearer token|auth(entication|orization)? "
        r"(token|credential|header)|credential|access token)",
        r"provide[^.]{0,40}api[ _-]?key",
        r"unauthenticated|unauthorized|authentication (failed|error|required)",
        r"令牌|鉴权|认证",
    ),
    ModelNotFound: (
        r"\bmodels?\b[^.]{0,120}(not found|not exist|doesn'?t exist|not a valid model|"
        r"is not available|unavailable|no longer|deprecated|decommissioned|retired|not loaded|"
        r"not been found)",
        r"(no such|unknown|invalid|unsupported|no) model\b|not a valid model|try pulling it",
        r"no (allowed )?(providers|endpoints|deployments?) (are |is )?(available|found)",
        r"could not load model|deployment [^.]{0,60}not exist|模型不存在",
        r"\bmodel\b[^.]{0,60}(not|isn'?t) supported (when|for|by|in|via)",
    ),
    RateLimited: (
        r"rate[ _-]?limit|too many (requests|concurrent|connections)",
        r"requests per (second|minute|day)|concurren\w+ [^.]{0,20}limit|throttl",
        r"速率|频率",
    ),
    Overloaded: (
        r"overloaded|at (full )?capacity|temporarily unavailable|queue is full",
        r"no (available|free|idle)? ?(slot|worker|server|instance)s?\b",
        r"(server|service|model|engine|system|worker)s? (is|are) (currently |too )?busy",
        r"loading model|model is (still |currently )?loading",
        r"负载|繁忙",
    ),
}
"""Words of each class of errors, in the order in which they are looked for."""

_BY_PHRASE = tuple(
    (kind, re.compile("|".join(phrases), re.IGNORECASE)) for kind, phrases in _PHRASES.items()
)

_WRONG_PATH = re.compile(
    r"^\s*(\d{3}[ :]*)?((page|file) )?not found\W*$|404 page not found|cannot (post|get) /|"
    r"(url|path|route|endpoint|resource|page)\b[^.]{0,80}"
    r"(not (be )?found|not exist|doesn'?t exist|unknown|not match|invalid)|"
    r"(invalid|unknown|unexpected|unsupported|no matching|no|unrecognized) (request )?"
    r"(url|path|route|endpoint)\b|method not allowed",
    re.IGNORECASE,
)
_ABOUT_MODEL = re.compile(r"\bmodels?\b|deployment|ollama pull", re.IGNORECASE)

_ADDRESS_STATUSES = frozenset({404, 405, 410, 501})
"""Statuses of a path that the server doesn't have."""


def classify_name(body: ErrorBody) -> type[ProviderError] | None:
    """Return the class of errors that a machine-readable name means, None if none is known."""
    return next((_BY_NAME[name] for name in map(_plain, body.names) if name in _BY_NAME), None)


def classify_text(body: ErrorBody, status: int | None) -> type[ProviderError] | None:
    """Return the class of errors that the messages describe, None if they describe none."""
    found = next((kind for kind, phrase in _BY_PHRASE if phrase.search(body.text)), None)
    if found is Overloaded and status in (400, 401, 403, 404, 422):
        return None
    if found is Refused and status is not None and status not in (400, 403, 422, 451):
        return None
    return found


def is_wrong_address(body: ErrorBody, status: int | None) -> bool:
    """Return whether the server doesn't have the path of the request, as if it were another kind.

    A server of models says which model it doesn't have. Others say that there is no such page.
    """
    if status not in (*_ADDRESS_STATUSES, None) or _ABOUT_MODEL.search(body.text):
        return False
    if status == 405:
        return True
    is_page = status is not None and bool(body.text) and not body.is_json
    return is_page or bool(_WRONG_PATH.search(body.text))
