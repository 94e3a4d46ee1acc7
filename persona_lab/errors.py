"""The errors of Persona Lab.

::

    PersonaLabError
    ├── ConfigurationError      the deployment is wrong; stops the start with one line
    │   └── TemplateError       a template, rule or text file is wrong, named by file and number
    ├── InputError              what a user typed or chose can't be used; nothing was lost
    │   ├── EmptyMessage · MessageTooLong · InvalidPersona · NothingToCommit
    │   ├── UnknownModel · InvalidOption
    │   ├── InvalidRequest      a program's request doesn't have the form that its route takes
    │   └── CardError           a file is no character card, or a damaged or too large one
    ├── Unauthorized            the caller is unknown
    ├── PageOnly                a program may not do this with its token
    ├── Forbidden               the row belongs to another user, where a route must say so
    ├── NotFound                no such row for this user (another user's row counts as none)
    ├── RateLimitError          the user's own limit at this server; a provider's is RateLimited
    │   ├── TokenQuotaExceeded
    │   │   └── GlobalTokenQuotaExceeded
    │   └── TooManyAtOnce
    ├── StorageError            the database didn't take it
    │   └── DiskFull
    └── ProviderError           a model gave no usable answer
        ├── MissingKey · BadKey · QuotaExceeded · RateLimited · BadRequest
        ├── ModelTimeout · Offline · Overloaded · ModelNotFound · ModelUnavailable
        ├── WrongAddress        the server has no such path
        ├── ContextTooLong · NoVision · InvalidResponse · Refused
        ├── OptionRefused       a BadRequest that names the option
        ├── OnlyThoughts        an InvalidResponse: the model thought and didn't answer
        └── CircuitOpen         no call was made: the model failed too often just now

Errors of an SDK, of HTTP and of the database are mapped to these in
``persona_lab/clients/error_mapping.py`` and ``persona_lab/db/error_mapping.py``: by type, by the
names that a server gives, by its words, and by the status. Every error has a ``code``;
``templates/fallbacks.yaml`` has the text for each code.
"""

from __future__ import annotations

import logging
from enum import StrEnum
from typing import Any

log = logging.getLogger("persona_lab.errors")


class ErrorType(StrEnum):
    """The classes of errors in the log, in metrics, and in a reply's metadata."""

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
    """The root. ``details`` fill the placeholders of the text for ``code``."""

    code = "system_error"
    type = ErrorType.SYSTEM_ERROR

    def __init__(self, message: str = "", **details: Any) -> None:
        super().__init__(message or self.code)
        self.details: dict[str, Any] = details


class ConfigurationError(PersonaLabError):
    """The deployment is wrong. The message is one line, shown at the start."""

    code = "configuration"


class TemplateError(ConfigurationError):
    """A template, rule or text file is wrong. The message names the file and the place."""

    code = "template"


class InputError(PersonaLabError):
    """The user's input can't be used. Nothing was lost."""

    code = "invalid_input"
    type = ErrorType.INVALID_INPUT


class EmptyMessage(InputError):
    """The message shows nothing."""

    code = "empty_message"


class MessageTooLong(InputError):
    """The message is too long; ``length`` and ``limit`` in characters."""

    code = "message_too_long"


class InvalidPersona(InputError):
    """A field of a persona is invalid: ``field`` is its name, ``reason`` the fault."""

    code = "invalid_persona"


class NothingToCommit(InputError):
    """The persona equals its newest version; ``number`` is that version's."""

    code = "nothing_to_commit"


class UnknownModel(InputError):
    """No such model; ``model`` is the requested name."""

    code = "unknown_model"


class InvalidOption(InputError):
    """An option is unknown, or its value is invalid.

    ``option`` names it; ``why`` is the key of the reason's text under ``reasons.``.
    """

    code = "invalid_option"


class InvalidRequest(InputError):
    """A request has the wrong form.

    ``field`` is the part; ``why`` is the key of the reason's text under ``reasons.``.
    """

    code = "invalid_request"


class CardError(InputError):
    """A file can't be read as a character card, or a card can't be written in a format.

    ``why`` is the key of the reason's text under ``reasons.``; ``limit`` and ``part`` fill it.
    """

    code = "card"

    def __init__(self, why: str, **details: Any) -> None:
        super().__init__(why, why=why, **details)


class Unauthorized(PersonaLabError):
    """The program has no token, or one that belongs to no user."""

    code = "unauthorized"
    type = ErrorType.INVALID_INPUT


class PageOnly(PersonaLabError):
    """Only the page may do this: a program must not make a further token with its token."""

    code = "page_only"
    type = ErrorType.INVALID_INPUT


class Forbidden(PersonaLabError):
    """The row belongs to another user, where the specification distinguishes that from no row."""

    code = "forbidden"
    type = ErrorType.INVALID_INPUT


class NotFound(PersonaLabError):
    """No such row for this user; ``kind`` is "agent", "version", "chat", "message" or "token"."""

    code = "not_found"
    type = ErrorType.INVALID_INPUT


class RateLimitError(PersonaLabError):
    """The user's limit of requests is reached.

    ``seconds`` until it lifts; ``until`` is that time of day in ``zone``, ``lifts_at`` the same in
    ISO 8601.
    """

    code = "too_many_requests"
    type = ErrorType.RATE_LIMIT


class TokenQuotaExceeded(RateLimitError):
    """The user's quota is used up: ``limit`` in tokens a day, ``minutes`` until it lifts."""

    code = "tokens_spent"


class GlobalTokenQuotaExceeded(TokenQuotaExceeded):
    """The quota of all users together is used up."""

    code = "house_spent"


class TooManyAtOnce(RateLimitError):
    """``limit`` messages already wait for their answers."""

    code = "busy"


class StorageError(PersonaLabError):
    """The database didn't take a read or a write."""

    code = "storage"


class DiskFull(StorageError):
    """The disk of the database is full."""

    code = "disk_full"


class ProviderError(PersonaLabError):
    """A model gave no usable answer.

    Attributes:
        provider: The provider that failed.
        model: Its model.
        status: The HTTP status, if there was a response.
        retry_after: Seconds that the provider asks to wait.
        attempts: Number of calls.
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
    """There is no key; ``variable`` is the environment variable for it."""

    code = "missing_key"
    type = ErrorType.BAD_KEY


class BadKey(ProviderError):
    """The provider refused the key."""

    code = "bad_key"
    type = ErrorType.BAD_KEY


class QuotaExceeded(ProviderError):
    """The account's quota at the provider is used up."""

    code = "quota"
    type = ErrorType.QUOTA


class RateLimited(ProviderError):
    """The provider's rate limit is reached."""

    code = "rate_limit"
    type = ErrorType.RATE_LIMIT


class BadRequest(ProviderError):
    """The provider refused the request's form."""

    code = "bad_request"


class OptionRefused(BadRequest):
    """The model doesn't accept the value of ``option``, or the option at all."""

    code = "option_refused"


class Overloaded(ProviderError):
    """The provider has no capacity now."""

    code = "overloaded"


class ModelTimeout(ProviderError):
    """The model was silent for too long."""

    code = "timeout"
    type = ErrorType.TIMEOUT


class Offline(ProviderError):
    """The provider's server can't be reached."""

    code = "offline"
    type = ErrorType.OFFLINE


class ModelNotFound(ProviderError):
    """The provider doesn't have the model."""

    code = "model_not_found"


class WrongAddress(ProviderError):
    """The server answers, but it has no such path: its address in the settings is wrong."""

    code = "wrong_address"


class ModelUnavailable(ProviderError):
    """A local model can't be used.

    ``reason`` is the reason in English, for logs and the terminal. ``why`` is the key of its text
    under ``reasons.``; further details fill its placeholders.
    """

    code = "model_unavailable"
    type = ErrorType.SYSTEM_ERROR


class ContextTooLong(ProviderError):
    """The prompt has ``tokens``, and ``limit`` fit."""

    code = "context_too_long"
    type = ErrorType.TOO_LONG


class NoVision(ProviderError):
    """The message has an image, and the model takes none."""

    code = "no_vision"


class InvalidResponse(ProviderError):
    """The provider's response is empty or malformed."""

    code = "invalid_response"
    type = ErrorType.INVALID_RESPONSE


class OnlyThoughts(InvalidResponse):
    """The answer has no words, because the model only thought or reached its limit of tokens."""

    code = "only_thoughts"


class Refused(ProviderError):
    """The model refused to answer."""

    code = "refused"
    type = ErrorType.REFUSED


class CircuitOpen(ProviderError):
    """No call was made; ``seconds`` until the next probe of the model."""

    code = "circuit_open"


def errors_by_code(
    root: type[PersonaLabError] = PersonaLabError,
) -> dict[str, type[PersonaLabError]]:
    """Return ``root`` and its subclasses by code; a shared code means the parent."""
    found: dict[str, type[PersonaLabError]] = {}
    for child in root.__subclasses__():
        found |= errors_by_code(child)
    return found | {root.code: root}
