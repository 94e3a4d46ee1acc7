"""Error responses: the HTTP status, headers and body of each error, the same in every interface.

The body is ``{"error": {"type", "code", "message", …}}``. ``type`` is an
:class:`~persona_lab.errors.ErrorType`, ``code`` names the error, and ``message`` describes it in
the client's language. Some errors have further fields: ``field``, ``limit``, or ``retry_after`` in
seconds.
"""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from persona_lab.clients.error_mapping import map_error
from persona_lab.errors import (
    BadKey,
    BadRequest,
    CircuitOpen,
    ConfigurationError,
    ContextTooLong,
    DiskFull,
    Forbidden,
    InputError,
    InvalidRequest,
    InvalidResponse,
    MessageTooLong,
    MissingKey,
    ModelNotFound,
    ModelTimeout,
    ModelUnavailable,
    NotFound,
    NoVision,
    PageOnly,
    PersonaLabError,
    ProviderError,
    QuotaExceeded,
    RateLimited,
    RateLimitError,
    Refused,
    StorageError,
    TokenQuotaExceeded,
    Unauthorized,
    WrongAddress,
    errors_by_code,
)
from persona_lab.pipeline.fallback import ErrorHandler
from persona_lab.types import Language

log = logging.getLogger(__name__)

STATUS: dict[type[PersonaLabError], int] = {
    Unauthorized: 401,
    Forbidden: 403,
    PageOnly: 403,
    NotFound: 404,
    MessageTooLong: 413,
    InputError: 422,
    ContextTooLong: 422,
    NoVision: 422,
    Refused: 422,
    BadRequest: 422,
    ModelNotFound: 422,
    WrongAddress: 422,
    RateLimitError: 429,
    ModelTimeout: 504,
    ProviderError: 503,
    StorageError: 503,
    PersonaLabError: 500,
}
"""The status of each class of errors. A subclass that is not listed has its parent's status."""

FINAL: tuple[type[PersonaLabError], ...] = (
    MissingKey, BadKey, QuotaExceeded, InvalidResponse, ModelUnavailable,
    TokenQuotaExceeded, DiskFull, ConfigurationError,
)  # fmt: skip
"""Errors that an immediate second attempt can't mend, though their status suggests one.

An empty answer is among them: each attempt costs its tokens.
"""

_PUBLIC_DETAILS = (
    "field", "reason", "limit", "length", "option", "model", "kind", "lifts_at", "problems",
)  # fmt: skip
"""Details of an error that the body includes. The others serve the message, or the log."""


class AnswerFailed(PersonaLabError):
    """The error of an answer that is a fallback text, as far as the answer's metadata has it."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        """Make the error from the metadata of the answer."""
        super().__init__(str(metadata.get("code")))
        self.metadata = metadata


def status_of(error: PersonaLabError) -> int:
    """Return the HTTP status of an error."""
    if error.details.get("status") and isinstance(error, InvalidRequest):
        return int(error.details["status"])
    return next(
        STATUS[ancestor] for ancestor in class_of_error(error).__mro__ if ancestor in STATUS
    )


def class_of_error(error: PersonaLabError) -> type[PersonaLabError]:
    """Return the class of an error; of a failed answer, the class of what failed."""
    if isinstance(error, AnswerFailed):
        return errors_by_code().get(error.metadata["code"], PersonaLabError)
    return type(error)


def is_final(error: PersonaLabError) -> bool:
    """Return whether an immediate second attempt can't succeed."""
    return issubclass(class_of_error(error), FINAL)


def headers_of(error: PersonaLabError) -> dict[str, str]:
    """Return the additional headers of an error response.

    OpenAI's clients repeat a request unless ``x-should-retry`` forbids it.
    """
    if isinstance(error, Unauthorized):
        return {"www-authenticate": "Bearer"}
    headers = {"x-should-retry": "false"} if is_final(error) else {}
    seconds = _retry_after(error)
    return headers if seconds is None else headers | {"retry-after": str(seconds)}


def error_response(error: PersonaLabError, error_handler: ErrorHandler, language: Language) -> Any:
    """Return the body of an error response.

    Args:
        error: The error.
        error_handler: It has the texts of errors.
        language: The language of the message. The message of :class:`AnswerFailed` exists already.
    """
    if isinstance(error, AnswerFailed):
        metadata = error.metadata
        fields = {
            "type": metadata["error_type"],
            "code": metadata["code"],
            "message": metadata["error"],
        }
    else:
        message = error_handler.error_text(error, language)
        fields = {"type": error.type.value, "code": error.code, "message": message}
    fields |= {
        name: error.details[name] for name in _PUBLIC_DETAILS if error.details.get(name) is not None
    }
    seconds = _retry_after(error)
    if seconds is not None:
        fields["retry_after"] = seconds
    return {"error": replace_surrogates(fields)}


def _retry_after(error: PersonaLabError) -> int | None:
    """Return the whole seconds after which a retry makes sense; None if unknown."""
    seconds: Any = None
    if isinstance(error, AnswerFailed):
        seconds = error.metadata.get("seconds")
    elif isinstance(error, RateLimitError | CircuitOpen):
        seconds = error.details.get("seconds")
    elif isinstance(error, RateLimited):
        seconds = error.retry_after
    return None if seconds is None else max(1, math.ceil(seconds))


def to_lab_error(error: Exception) -> PersonaLabError:
    """Return the :class:`~persona_lab.errors.PersonaLabError` for any exception.

    An unexpected exception is logged without its text, which may contain private data.
    """
    if isinstance(error, HTTPException):
        return _from_http_error(error)
    if isinstance(error, RequestValidationError | ValidationError):
        return _from_validation_errors(error.errors())
    mapped = map_error(error)
    if mapped is not error:
        stack = "".join(traceback.format_tb(error.__traceback__))
        log.error("unexpected %s in a request\n%s", type(error).__name__, stack)
    return mapped


def replace_surrogates(value: Any) -> Any:
    """Return ``value`` with "?" for lone surrogates, which UTF-8 can't encode."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {replace_surrogates(key): replace_surrogates(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [replace_surrogates(item) for item in value]
    return value


def _from_http_error(error: HTTPException) -> PersonaLabError:
    reasons = {404: "no_route", 405: "no_method", 413: "too_large"}
    if error.status_code in reasons:
        return InvalidRequest(why=reasons[error.status_code], status=error.status_code)
    return InvalidRequest(why="not_json")  # FastAPI couldn't read the body


def _from_validation_errors(errors: Sequence[Any]) -> PersonaLabError:
    """Return an error whose message names the first problem.

    ``problems`` has the first twenty, without the values that were sent.
    """
    reasons = {
        "json_invalid": "not_json",
        "model_type": "no_object",
        "model_attributes_type": "no_object",
    }
    if errors and errors[0]["type"] in reasons:
        return InvalidRequest(why=reasons[errors[0]["type"]])
    problems = [
        {"field": _field_path(error["loc"]), "problem": str(error["msg"])} for error in errors
    ]
    first = problems[0]["field"] if problems else ""
    return InvalidRequest(why="field_value", field=first, problems=problems[:20])


def _field_path(location: Sequence[Any]) -> str:
    parts = [str(part)[:80] for part in location]
    return ".".join(parts[1:] if parts[:1] == ["body"] and len(parts) > 1 else parts)
