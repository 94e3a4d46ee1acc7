"""What can go wrong, and what is said about it.

::

    PersonaLabError
    ├── ConfigurationError      the deployment is wrong; stops the start with one line
    │   └── TemplateError       a template, rule or word file is wrong, named by file and number
    ├── InputError              what was typed or chosen can't be used; nothing was lost
    │   ├── EmptyMessage · MessageTooLong · InvalidPersona · UnknownModel · InvalidOption
    │   └── InvalidRequest      a program's request hasn't the form that its door takes
    ├── Unauthorized            nobody knows who calls
    ├── Forbidden               another's, where a door has to say so
    ├── NotFound                no such row for this user (another's row is as good as none)
    ├── RateLimitError          the user's own quota in this house; a provider's is RateLimited
    │   ├── TokensSpent
    │   │   └── HouseSpent      what all users together may spend
    │   └── TooManyAtOnce
    ├── StorageError            the database didn't take it
    │   └── DiskFull
    └── ProviderError           a model gave no usable answer
        ├── MissingKey · BadKey · QuotaExceeded · RateLimited · BadRequest
        ├── ModelTimeout · Offline · Overloaded · ModelNotFound · ModelUnavailable
        ├── ContextTooLong · NoVision · InvalidResponse · Refused
        └── CircuitOpen         nobody was asked: the model failed too often just now

Errors of an SDK, of HTTP and of the database become ours in :func:`from_foreign`, by type
first and status second, never by their text. The rest of the house knows this tree only.
Every error has a ``code``: its words stand under that name in ``templates/fallbacks.yaml``.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import sqlite3
import sys
import traceback
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from persona_lab.models import Agent, Language, Reply

if TYPE_CHECKING:
    from types import ModuleType

    from persona_lab.words import Words

log = logging.getLogger("persona_lab.errors")


class ErrorType(StrEnum):
    """The classes that the log, the metadata of a reply and the metrics tell apart."""

    API_ERROR = "api_error"
    TIMEOUT = "timeout"
    RATE_LIMIT = "rate_limit"
    INVALID_RESPONSE = "invalid_response"
    SYSTEM_ERROR = "system_error"
    BAD_KEY = "bad_key"
    QUOTA = "quota"
    REFUSED = "refused"
    TOO_LONG = "too_long"
    OFFLINE = "offline"
    INVALID_INPUT = "invalid_input"


class PersonaLabError(Exception):
    """The root. ``details`` fill the blanks of the words for ``code``."""

    code = "system_error"
    type = ErrorType.SYSTEM_ERROR

    def __init__(self, message: str = "", **details: Any) -> None:
        super().__init__(message or self.code)
        self.details: dict[str, Any] = details


class ConfigurationError(PersonaLabError):
    code = "configuration"


class TemplateError(ConfigurationError):
    code = "template"


class InputError(PersonaLabError):
    code = "invalid_input"
    type = ErrorType.INVALID_INPUT


class EmptyMessage(InputError):
    code = "empty_message"


class MessageTooLong(InputError):
    """``length`` and ``limit`` in characters."""

    code = "message_too_long"


class InvalidPersona(InputError):
    """``field`` names the field, ``reason`` what is wrong with it."""

    code = "invalid_persona"


class UnknownModel(InputError):
    """``model`` is what was asked for."""

    code = "unknown_model"


class InvalidOption(InputError):
    """``option`` names one of :class:`~persona_lab.models.Options`, or none at all; ``why`` names
    the words for it under ``reasons.``."""

    code = "invalid_option"


class InvalidRequest(InputError):
    """``why`` names the words for it under ``reasons.``; ``field`` is the part that is meant."""

    code = "invalid_request"


class Unauthorized(PersonaLabError):
    """A program without a token, or with one that leads to nobody."""

    code = "unauthorized"
    type = ErrorType.INVALID_INPUT


class PageOnly(PersonaLabError):
    """What a program can't do with its token: who found one mustn't make themselves another."""

    code = "page_only"
    type = ErrorType.INVALID_INPUT


class Forbidden(PersonaLabError):
    """A row of another's, where the specification tells it from one that isn't there."""

    code = "forbidden"
    type = ErrorType.INVALID_INPUT


class NotFound(PersonaLabError):
    """``kind`` is "agent", "chat", "message" or "token"."""

    code = "not_found"
    type = ErrorType.INVALID_INPUT


class RateLimitError(PersonaLabError):
    """``seconds`` until it is over; ``until`` is that moment on a clock of ``zone``, ``lifts_at``
    the same in ISO 8601."""

    code = "too_many_requests"
    type = ErrorType.RATE_LIMIT


class TokensSpent(RateLimitError):
    """``limit`` in tokens a day; ``minutes`` until it is over."""

    code = "tokens_spent"


class HouseSpent(TokensSpent):
    """The same of all users together."""

    code = "house_spent"


class TooManyAtOnce(RateLimitError):
    """``limit`` messages wait for their answers already."""

    code = "busy"


class StorageError(PersonaLabError):
    code = "storage"


class DiskFull(StorageError):
    code = "disk_full"


class ProviderError(PersonaLabError):
    """``provider`` and ``model`` say who failed; ``status`` is the HTTP status, if one came.

    ``retry_after``: seconds that the provider asks to be left alone; ``attempts``: how often it
    was asked.
    """

    code = "api_error"
    type = ErrorType.API_ERROR

    def __init__(
        self,
        message: str = "",
        *,
        provider: str = "",
        model: str = "",
        status: int | None = None,
        retry_after: float | None = None,
        **details: Any,
    ) -> None:
        super().__init__(message, provider=provider, model=model, status=status, **details)
        self.provider = provider
        self.model = model
        self.status = status
        self.retry_after = retry_after
        self.attempts = 1


class MissingKey(ProviderError):
    """``variable`` is the environment variable that would hold the key."""

    code = "missing_key"
    type = ErrorType.BAD_KEY


class BadKey(ProviderError):
    code = "bad_key"
    type = ErrorType.BAD_KEY


class QuotaExceeded(ProviderError):
    code = "quota"
    type = ErrorType.QUOTA


class RateLimited(ProviderError):
    code = "rate_limit"
    type = ErrorType.RATE_LIMIT


class BadRequest(ProviderError):
    code = "bad_request"


class Overloaded(ProviderError):
    code = "overloaded"


class ModelTimeout(ProviderError):
    code = "timeout"
    type = ErrorType.TIMEOUT


class Offline(ProviderError):
    code = "offline"
    type = ErrorType.OFFLINE


class ModelNotFound(ProviderError):
    code = "model_not_found"


class ModelUnavailable(ProviderError):
    """A local model can't be used. ``reason`` says why in English, for logs and the terminal;
    ``why`` names the words for it, ``reasons.`` and that name, which further details fill."""

    code = "model_unavailable"
    type = ErrorType.SYSTEM_ERROR


class ContextTooLong(ProviderError):
    """``tokens`` were asked for, ``limit`` fit."""

    code = "context_too_long"
    type = ErrorType.TOO_LONG


class NoVision(ProviderError):
    """The message has an image and the model takes none."""

    code = "no_vision"


class InvalidResponse(ProviderError):
    code = "invalid_response"
    type = ErrorType.INVALID_RESPONSE


class Refused(ProviderError):
    code = "refused"
    type = ErrorType.REFUSED


class CircuitOpen(ProviderError):
    """``seconds`` until somebody is let through to see whether the model is back."""

    code = "circuit_open"


def from_foreign(error: BaseException, *, provider: str = "", model: str = "") -> PersonaLabError:
    """Our error for somebody else's. Ours come back unchanged.

    SDKs and libraries are looked up among the modules already loaded: an error of theirs can't
    exist without them, and importing them here would cost a second at start.
    """
    if isinstance(error, PersonaLabError):
        return error
    who: dict[str, Any] = {"provider": provider, "model": model}
    if (sdk := _sdk_of(error)) is not None:
        return _from_sdk(sdk, error, who)
    for name in ("httpx2", "httpx"):
        http = sys.modules.get(name)
        if http is None:
            continue
        if isinstance(error, http.TimeoutException):
            return ModelTimeout(**who)
        if isinstance(error, http.TransportError):
            return Offline(**who)
        if isinstance(error, http.DecodingError):
            return InvalidResponse(**who)
        if isinstance(error, http.HTTPError):
            return ProviderError(**who)
    if isinstance(error, TimeoutError):
        return ModelTimeout(**who)
    if isinstance(error, ConnectionError) or _is(error, "ssl.SSLError", "anyio.EndOfStream"):
        return Offline(**who)
    if provider and isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        return InvalidResponse(**who)  # the SDKs let through what isn't JSON, or isn't UTF-8
    if _disk_full(error):
        return DiskFull()
    alchemy = sys.modules.get("sqlalchemy.exc")
    if isinstance(error, sqlite3.Error) or (
        alchemy is not None and isinstance(error, alchemy.SQLAlchemyError)
    ):
        return StorageError()
    return PersonaLabError(type(error).__name__)


def _is(error: BaseException, *names: str) -> bool:
    """Whether ``error`` is one of ``module.Class``, of modules that are loaded."""
    for module, _, name in (whole.rpartition(".") for whole in names):
        kind = getattr(sys.modules.get(module), name, None)
        if kind is not None and isinstance(error, kind):
            return True
    return False


def _sdk_of(error: BaseException) -> ModuleType | None:
    """The SDK that ``error`` comes from, if it has the tree that :func:`_from_sdk` reads."""
    for kind in type(error).__mro__:
        sdk = sys.modules.get(kind.__module__.partition(".")[0])
        if sdk is not None and all(isinstance(getattr(sdk, name, None), type) for name in _TREE):
            return sdk
    return None


_TREE = ("APIStatusError", "APITimeoutError", "APIConnectionError", "APIResponseValidationError")


def _from_sdk(sdk: ModuleType, error: Any, who: dict[str, Any]) -> ProviderError:
    """SDKs that are generated alike, openai's and anthropic's among them, share one error tree."""
    if isinstance(error, sdk.APITimeoutError):
        return ModelTimeout(**who)
    if isinstance(error, sdk.APIConnectionError):
        return Offline(**who)
    if isinstance(error, sdk.APIResponseValidationError):
        return InvalidResponse(**who)
    names, code = _names(error)
    status = int(error.status_code) if isinstance(error, sdk.APIStatusError) else None
    if status is None or status < 400:  # an event in a stream that had begun well
        status = code
    wrong = next((_BY_TYPE[name] for name in names if name in _BY_TYPE), None)
    if wrong is None and status is not None:
        wrong = _BY_STATUS.get(status)
        if wrong is None and status >= 400:
            wrong = Overloaded if status >= 500 else BadRequest
    if wrong is None:
        wrong = Overloaded if _SERVERS_FAULT.intersection(names) else ProviderError
    return wrong(**who, status=status, retry_after=_retry_after(error))


_BY_TYPE: dict[str, type[ProviderError]] = {
    "insufficient_quota": QuotaExceeded,
    "billing_error": QuotaExceeded,
    "billing_hard_limit_reached": QuotaExceeded,
    "billing_not_active": QuotaExceeded,
    "contract_spend_limit_reached": QuotaExceeded,
    "enforced_spend_limit_reached": QuotaExceeded,
    "linked_organization_spend_limit_reached": QuotaExceeded,
    "context_length_exceeded": ContextTooLong,
    "exceed_context_size_error": ContextTooLong,  # llama-server
    "content_filter": Refused,
    "content_policy_violation": Refused,
    "authentication_error": BadKey,
    "permission_error": BadKey,
    "invalid_api_key": BadKey,
    "not_found_error": ModelNotFound,
    "model_not_found": ModelNotFound,
    "rate_limit_error": RateLimited,
    "rate_limit_exceeded": RateLimited,
    "timeout_error": ModelTimeout,
    "overloaded_error": Overloaded,
}
_SERVERS_FAULT = frozenset({"server_error", "api_error"})
"""Names too broad to overrule a status (Ollama calls a 429 api_error); for events without one."""

_BY_STATUS: dict[int, type[ProviderError]] = {
    401: BadKey,
    402: QuotaExceeded,
    403: BadKey,
    404: ModelNotFound,
    408: ModelTimeout,
    413: ContextTooLong,
    429: RateLimited,
    504: ModelTimeout,
    529: Overloaded,
}


def _names(error: Any) -> tuple[list[str], int | None]:
    """The provider's machine-readable names for the error, the narrowest first, and a status.

    The status is the one that OpenRouter and llama-server write into the body: their only one
    where an answer had begun with 200.
    """
    body = getattr(error, "body", None)
    inner = body.get("error", body) if isinstance(body, dict) else {}
    inner = inner if isinstance(inner, dict) else {}
    details = inner.get("details")
    narrow = details.get("error_code") if isinstance(details, dict) else None
    code = inner.get("code")
    names = [name for name in (narrow, code, inner.get("type")) if isinstance(name, str)]
    return names, code if isinstance(code, int) else None


def _retry_after(error: Any) -> float | None:
    """Seconds that the provider asks for, as a number of them, of milliseconds or as a date: that
    is read by the provider's own clock, where it tells the time."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    seconds = _number(headers.get("retry-after-ms"), 1000)
    if seconds is None:
        seconds = _number(headers.get("retry-after"))
    if seconds is None and (then := _date(headers.get("retry-after"))):
        since = _date(headers.get("date")) or datetime.now(UTC)
        seconds = max(0.0, (then - since).total_seconds())
    return seconds


def _number(said: str | None, unit: float = 1) -> float | None:
    try:
        number = float(said or math.nan) / unit
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _date(said: str | None) -> datetime | None:
    """The moment that an HTTP header names."""
    try:
        moment = parsedate_to_datetime(said or "")
    except (ValueError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _disk_full(error: BaseException) -> bool:
    """SQLite's FULL and the operating system's ENOSPC, also where SQLAlchemy has wrapped them."""
    origin = getattr(error, "orig", None) or error
    if isinstance(origin, OSError):
        return origin.errno in (errno.ENOSPC, errno.EDQUOT)
    if getattr(origin, "sqlstate", None) == "53100":  # PostgreSQL's disk_full
        return True
    return getattr(origin, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL


def by_code(root: type[PersonaLabError] = PersonaLabError) -> dict[str, type[PersonaLabError]]:
    """Every error from ``root`` on by its code; where a child has its parent's, the parent."""
    found: dict[str, type[PersonaLabError]] = {}
    for child in root.__subclasses__():
        found |= by_code(child)
    return found | {root.code: root}


class _Unknown:
    """Fills a blank whose detail nobody knew."""

    def __format__(self, spec: str) -> str:
        return "–"


class ErrorHandler:
    """Turns an error into words: what happened, what was kept, what to do next.

    ``words`` are those of ``templates/fallbacks.yaml``: one text for each code, ``persona``
    (the frame when a persona says it) and ``broken_off`` (the frame after half an answer).
    """

    def __init__(self, words: Words) -> None:
        """Raises ConfigurationError for a code without words."""
        self._words = words
        for key in sorted({*by_code(), "persona", "broken_off"}):
            if key not in words:
                raise ConfigurationError(f"fallbacks.yaml: {key}: has no words")

    def say(self, error: BaseException, language: str) -> str:
        """The plain words for ``error``, without a persona: for a page."""
        ours = from_foreign(error)
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
        ours = from_foreign(error)
        persona = agent if isinstance(agent, Agent) else None
        chosen = language or (persona.language if persona else "ja")
        plain = self.say(ours, chosen)
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
