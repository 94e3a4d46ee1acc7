"""Map the errors of provider SDKs to the errors of Persona Lab, by type and status."""

from __future__ import annotations

import functools
import json
import math
import sys
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

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
    Overloaded,
    PersonaLabError,
    ProviderError,
    QuotaExceeded,
    RateLimited,
)

if TYPE_CHECKING:
    from types import ModuleType


def map_error(error: BaseException, *, provider: str = "", model: str = "") -> PersonaLabError:
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
    if (storage := map_storage_error(error)) is not None:
        return storage
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
    types = _error_types()
    wrong = next((types[name] for name in names if name in types), None)
    if wrong is None and status is not None:
        wrong = _BY_STATUS.get(status)
        if wrong is None and status >= 400:
            wrong = Overloaded if status >= 500 else BadRequest
    if wrong is None:
        wrong = Overloaded if _SERVERS_FAULT.intersection(names) else ProviderError
    return wrong(**who, status=status, retry_after=_retry_after(error))


@functools.cache
def _error_types() -> dict[str, type[ProviderError]]:
    """Return the names that any provider declares: proxies pass on one another's."""
    found: dict[str, type[ProviderError]] = {}
    for provider in list_providers():
        found |= provider.error_types
    return found


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
