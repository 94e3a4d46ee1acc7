"""What an error is to a program: its status, and one shape at every door.

``{"error": {"type", "code", "message", …}}``: ``type`` is one of
:class:`~persona_lab.errors.ErrorType`, ``code`` names the error, ``message`` says it in the
caller's language. What else is known of it stands beside these: ``field``, ``limit``,
``retry_after`` in seconds.
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
    BadRequest,
    CircuitOpen,
    ContextTooLong,
    Forbidden,
    InputError,
    InvalidRequest,
    MessageTooLong,
    ModelNotFound,
    ModelTimeout,
    NotFound,
    NoVision,
    PageOnly,
    PersonaLabError,
    ProviderError,
    RateLimited,
    RateLimitError,
    Refused,
    StorageError,
    Unauthorized,
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
    RateLimitError: 429,
    ModelTimeout: 504,
    ProviderError: 503,
    StorageError: 503,
    PersonaLabError: 500,
}
"""An error's status is that of the nearest of these above it in the tree."""

_TOLD = ("field", "reason", "limit", "length", "option", "model", "kind", "lifts_at", "problems")
"""Details that a program is told. Others are for the words, or for the log."""


class AnswerFailed(PersonaLabError):
    """The error behind a stand-in's answer. All that is known of it is the answer's metadata."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        super().__init__(str(metadata.get("code")))
        self.metadata = metadata


def status_of(error: PersonaLabError) -> int:
    """The HTTP status of an error."""
    if isinstance(error, AnswerFailed):
        kind = errors_by_code().get(error.metadata["code"], PersonaLabError)
    elif error.details.get("status") and isinstance(error, InvalidRequest):
        return int(error.details["status"])
    else:
        kind = type(error)
    return next(STATUS[above] for above in kind.__mro__ if above in STATUS)


def headers_of(error: PersonaLabError) -> dict[str, str]:
    """The headers that an error response has in addition."""
    if isinstance(error, Unauthorized):
        return {"www-authenticate": "Bearer"}
    seconds = _retry_after(error)
    return {} if seconds is None else {"retry-after": str(seconds)}


def error_response(error: PersonaLabError, error_handler: ErrorHandler, language: Language) -> Any:
    """The body for ``error``."""
    if isinstance(error, AnswerFailed):
        known = error.metadata
        told = {"type": known["error_type"], "code": known["code"], "message": known["error"]}
    else:
        message = error_handler.error_text(error, language)
        told = {"type": error.type.value, "code": error.code, "message": message}
    told |= {name: error.details[name] for name in _TOLD if error.details.get(name) is not None}
    seconds = _retry_after(error)
    if seconds is not None:
        told["retry_after"] = seconds
    return {"error": sendable(told)}


def _retry_after(error: PersonaLabError) -> int | None:
    """Whole seconds until it may go better; None where nobody knows."""
    seconds: Any = None
    if isinstance(error, AnswerFailed):
        seconds = error.metadata.get("seconds")
    elif isinstance(error, RateLimitError | CircuitOpen):
        seconds = error.details.get("seconds")
    elif isinstance(error, RateLimited):
        seconds = error.retry_after
    return None if seconds is None else max(1, math.ceil(seconds))


def ours(error: Exception) -> PersonaLabError:
    """The project's error for any exception.

    An unexpected exception is logged without its text, which may contain private data.
    """
    if isinstance(error, HTTPException):
        return _of_http(error)
    if isinstance(error, RequestValidationError | ValidationError):
        return _of_validation(error.errors())
    known = map_error(error)
    if known is not error:
        where = "".join(traceback.format_tb(error.__traceback__))
        log.error("unexpected %s at a door\n%s", type(error).__name__, where)
    return known


def sendable(value: Any) -> Any:
    """``value`` without half surrogates, which no JSON takes on its way."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {sendable(key): sendable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [sendable(item) for item in value]
    return value


def _of_http(error: HTTPException) -> PersonaLabError:
    known = {404: "no_route", 405: "no_method", 413: "too_large"}
    if error.status_code in known:
        return InvalidRequest(why=known[error.status_code], status=error.status_code)
    return InvalidRequest(why="not_json")  # a body that can't even be read


def _of_validation(problems: Sequence[Any]) -> PersonaLabError:
    """The first problem gives the words; all are listed, without what was sent."""
    known = {"json_invalid": "not_json", "model_type": "no_object"}
    known["model_attributes_type"] = "no_object"
    if problems and problems[0]["type"] in known:
        return InvalidRequest(why=known[problems[0]["type"]])
    listed = [
        {"field": _place(problem["loc"]), "problem": str(problem["msg"])} for problem in problems
    ]
    first = listed[0]["field"] if listed else ""
    return InvalidRequest(why="field_value", field=first, problems=listed[:20])


def _place(where: Sequence[Any]) -> str:
    parts = [str(part)[:80] for part in where]
    return ".".join(parts[1:] if parts[:1] == ["body"] and len(parts) > 1 else parts)
