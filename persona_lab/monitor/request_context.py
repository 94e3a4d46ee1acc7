"""The id that all log lines of one request share.

The id is in a context variable, so code that logs doesn't need to receive it. An async generator
runs in the caller's context at each ``anext``, which can differ between steps, and two generators
can alternate in one context. So :func:`with_request_context` sets the id before each step and
resets it after it.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

from persona_lab.types import new_id

_P = ParamSpec("_P")
_T = TypeVar("_T")

_CLIENT_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
"""An id that a client may choose: it appears in logs."""


@dataclass(frozen=True, slots=True)
class _Request:
    id: str
    fields: dict[str, Any] = field(default_factory=dict)


_current: ContextVar[_Request | None] = ContextVar("persona_lab_request", default=None)


@contextlib.contextmanager
def request(id: str | None = None) -> Iterator[str]:  # noqa: A002 - callers say request(id=…)
    """Give all log lines inside this context one id, and yield it.

    Don't yield from an async generator inside of it; use :func:`with_request_context` there.

    Args:
        id: The client's id; see :func:`choose_id`.
    """
    chosen = choose_id(id)
    with _as_current(_Request(chosen)):
        yield chosen


def choose_id(client_id: str | None) -> str:
    """Return ``client_id``, if it is 1 to 64 letters, digits and ``_.-``.

    Otherwise return the id of the present request, or else a new one.
    """
    return client_id if client_id and _CLIENT_ID.fullmatch(client_id) else request_id() or new_id()


def request_id() -> str:
    """Return the id of the present request, or "" outside of any."""
    current = _current.get()
    return current.id if current is not None else ""


def bind_fields(**fields: Any) -> None:
    """Add fields to all later log lines of the present turn."""
    current = _current.get()
    if current is not None:
        current.fields.update(fields)


def current_fields() -> Mapping[str, Any]:
    """Return the fields of the present request, for a log line."""
    current = _current.get()
    return {} if current is None else {"request_id": current.id, **current.fields}


def with_request_context(
    stream: Callable[_P, AsyncGenerator[_T, None]],
) -> Callable[_P, AsyncGenerator[_T, None]]:
    """Decorate an async generator so that its log lines have one id: the caller's, or a new one.

    Fields from :func:`bind_fields` stay within the generator, also if a caller runs several.
    """

    @functools.wraps(stream)
    async def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> AsyncGenerator[_T, None]:
        current = _Request(request_id() or new_id())
        steps = stream(*args, **kwargs)
        try:
            while True:
                with _as_current(current):
                    try:
                        step = await anext(steps)
                    except StopAsyncIteration:
                        return
                yield step
        finally:
            with _as_current(current):
                await steps.aclose()

    return wrapped


@contextlib.contextmanager
def _as_current(current: _Request) -> Iterator[None]:
    before = _current.set(current)
    try:
        yield
    finally:
        _current.reset(before)
