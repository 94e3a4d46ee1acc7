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

import logging
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


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
    """``option`` names one of :class:`~persona_lab.types.Options`, or none at all; ``why`` names
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


class TokenQuotaExceeded(RateLimitError):
    """``limit`` in tokens a day; ``minutes`` until it is over."""

    code = "tokens_spent"


class GlobalTokenQuotaExceeded(TokenQuotaExceeded):
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


def errors_by_code(
    root: type[PersonaLabError] = PersonaLabError,
) -> dict[str, type[PersonaLabError]]:
    """Every error from ``root`` on by its code; where a child has its parent's, the parent."""
    found: dict[str, type[PersonaLabError]] = {}
    for child in root.__subclasses__():
        found |= errors_by_code(child)
    return found | {root.code: root}
