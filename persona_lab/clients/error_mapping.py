"""Map the errors of provider SDKs to the errors of Persona Lab."""

from __future__ import annotations

import functools
import json
import math
import sys
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from persona_lab.clients.error_body import (
    ErrorBody,
    classify_name,
    classify_text,
    is_wrong_address,
    read_error_body,
)
from persona_lab.clients.event_stream import ErrorEvent, EventTooLong
from persona_lab.clients.registry import list_providers
from persona_lab.db.error_mapping import map_storage_error
from persona_lab.errors import (
    BadKey,
    BadRequest,
    ContextTooLong,
    InvalidResponse,
    ModelNotFound,
    ModelTimeout,
    Offline,
    OptionRefused,
    Overloaded,
    PersonaLabError,
    ProviderError,
    QuotaExceeded,
    RateLimited,
    WrongAddress,
)

if TYPE_CHECKING:
    from types import ModuleType


def map_error(error: BaseException, *, provider: str = "", model: str = "") -> PersonaLabError:
    """Map a foreign error to an error of Persona Lab.

    SDKs are looked up among the loaded modules. An error of an SDK can't exist before its import,
    and an import here would delay the start by a second.

    Args:
        error: Any error. A :class:`PersonaLabError` is returned unchanged.
        provider: Name of the provider, "" if the error has none.
        model: Name of the model at the provider.

    Returns:
        The mapped error.
    """
    if isinstance(error, PersonaLabError):
        return error
    context: dict[str, Any] = {"provider": provider, "model": model}
    if isinstance(error, ErrorEvent):
        return _map_described(error, None, context)
    if (sdk := _sdk_of(error)) is not None:
        return _map_sdk_error(sdk, error, context)
    for name in ("httpx2", "httpx"):
        http = sys.modules.get(name)
        if http is None:
            continue
        if isinstance(error, http.TimeoutException):
            return ModelTimeout(**context)
        if isinstance(error, http.TransportError):
            return Offline(**context)
        if isinstance(error, http.DecodingError):
            return InvalidResponse(**context)
        if isinstance(error, http.HTTPError):
            return ProviderError(**context)
    if isinstance(error, TimeoutError):
        return ModelTimeout(**context)
    if isinstance(error, ConnectionError) or _is(error, "ssl.SSLError", "anyio.EndOfStream"):
        return Offline(**context)
    if provider and isinstance(error, json.JSONDecodeError | UnicodeDecodeError | EventTooLong):
        return InvalidResponse(**context)  # the SDKs don't wrap these errors
    if (storage := map_storage_error(error)) is not None:
        return storage
    return PersonaLabError(type(error).__name__)


def _is(error: BaseException, *names: str) -> bool:
    """Return whether ``error`` is an instance of one of the classes ``module.Class``.

    Modules that aren't loaded are ignored.
    """
    for module, _, name in (whole.rpartition(".") for whole in names):
        kind = getattr(sys.modules.get(module), name, None)
        if kind is not None and isinstance(error, kind):
            return True
    return False


def _sdk_of(error: BaseException) -> ModuleType | None:
    """Return the SDK that defines ``error``, if it has the classes in ``_SDK_ERRORS``."""
    for kind in type(error).__mro__:
        sdk = sys.modules.get(kind.__module__.partition(".")[0])
        if sdk is not None and all(
            isinstance(getattr(sdk, name, None), type) for name in _SDK_ERRORS
        ):
            return sdk
    return None


_SDK_ERRORS = (
    "APIStatusError",
    "APITimeoutError",
    "APIConnectionError",
    "APIResponseValidationError",
)


def _map_sdk_error(sdk: ModuleType, error: Any, context: dict[str, Any]) -> ProviderError:
    """Map an error of a generated SDK. The SDKs of OpenAI and Anthropic share one error tree."""
    if isinstance(error, sdk.APITimeoutError):
        return ModelTimeout(**context)
    if isinstance(error, sdk.APIConnectionError):
        return Offline(**context)
    if isinstance(error, sdk.APIResponseValidationError):
        return InvalidResponse(**context)
    status = int(error.status_code) if isinstance(error, sdk.APIStatusError) else None
    return _map_described(error, status, context)


def _map_described(error: Any, status: int | None, context: dict[str, Any]) -> ProviderError:
    """Map an error by the server's description in its ``body`` and by the status, if any."""
    body = read_error_body(getattr(error, "body", None))
    if status is None or status < 400:  # an error event in a stream that began with status 200
        status = body.status
    kind = _classify(body, status)
    option = next((name for name in body.options if name in _OPTION_NAMES), "")
    if kind is BadRequest and option:
        return OptionRefused(**context, status=status, option=option)
    return kind(**context, status=status, retry_after=_retry_after(error))


def _classify(body: ErrorBody, status: int | None) -> type[ProviderError]:
    """Return the class of an error: by names, then by words, then by the status."""
    if is_wrong_address(body, status):
        return WrongAddress
    types = _error_types()
    kind = next((types[name] for name in body.names if name in types), None)
    kind = kind or classify_name(body) or classify_text(body, status)
    if kind is not None:
        return kind
    if status == 403 and body.text and not body.is_json:
        return ProviderError  # a firewall or a proxy refuses, before the provider reads the key
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if status is not None and status >= 400:
        return Overloaded if status >= 500 else BadRequest
    return Overloaded if _SERVER_FAULTS.intersection(body.names) else ProviderError


@functools.cache
def _error_types() -> dict[str, type[ProviderError]]:
    """Return the error names of all providers. A proxy may pass on names of another provider."""
    found: dict[str, type[ProviderError]] = {}
    for provider in list_providers():
        found |= provider.error_types
    return found


_SERVER_FAULTS = frozenset({"server_error", "api_error"})
"""Names that count only without a status. They are too broad: Ollama calls a 429 api_error."""

_BY_STATUS: dict[int, type[ProviderError]] = {
    401: BadKey,
    402: QuotaExceeded,
    403: BadKey,
    404: ModelNotFound,
    408: ModelTimeout,
    409: Overloaded,
    413: ContextTooLong,
    425: Overloaded,
    429: RateLimited,
    498: BadKey,
    499: Overloaded,
    504: ModelTimeout,
    529: Overloaded,
}


_OPTION_NAMES = frozenset(
    {
        "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "repeat_penalty", "seed",
        "stop", "stop_sequences", "max_tokens", "max_completion_tokens", "response_format",
    }
)  # fmt: skip
"""The options of a request, as the providers name them."""


def _retry_after(error: Any) -> float | None:
    """Return the delay that the provider requests, in seconds; None if it requests none.

    The headers give it in milliseconds, in seconds or as a date. A date is compared with the
    ``Date`` header of the response, because the two clocks may differ.
    """
    headers = getattr(getattr(error, "response", None), "headers", {})
    seconds = _number(headers.get("retry-after-ms"), 1000)
    if seconds is None:
        seconds = _number(headers.get("retry-after"))
    if seconds is None and (then := _date(headers.get("retry-after"))):
        since = _date(headers.get("date")) or datetime.now(UTC)
        seconds = max(0.0, (then - since).total_seconds())
    return seconds


def _number(header: str | None, unit: float = 1) -> float | None:
    """Parse a non-negative number and divide it by ``unit``; None if it isn't one."""
    try:
        number = float(header or math.nan) / unit
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _date(header: str | None) -> datetime | None:
    """Parse the date in an HTTP header; None if it isn't valid."""
    try:
        moment = parsedate_to_datetime(header or "")
    except (ValueError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
