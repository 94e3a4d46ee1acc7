"""Which request a line of the log belongs to: one id through all of its lines.

It is kept in a context variable, so that whoever logs (a layer, the store's thread, an error's
handler) need not be handed it. A turn is an async generator, and such a one runs in the context of
whoever asks for its next event: that may be another one each time, and two turns may take turns in
one. So :func:`followed` puts the id in place for each step anew and takes it away after it.
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

_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
"""What an id from outside may be: it ends up in logs."""


@dataclass(frozen=True, slots=True)
class _Request:
    id: str
    about: dict[str, Any] = field(default_factory=dict)


_now: ContextVar[_Request | None] = ContextVar("persona_lab_request", default=None)


@contextlib.contextmanager
def request(id: str | None = None) -> Iterator[str]:  # noqa: A002 - callers say request(id=…)
    """All lines written inside carry this id, which it gives.

    ``id``: the caller's, of up to 64 letters, digits and ``_.-``; where there is none, or another
    than that, the one that holds already, or else a new one. Don't yield from inside of it:
    what is around an async generator's steps is :func:`followed`'s.
    """
    given = id if id is not None and _ID.fullmatch(id) else request_id() or new_id()
    with _within(_Request(given)):
        yield given


def request_id() -> str:
    """The id of the request that is being answered here; "" outside of any."""
    here = _now.get()
    return here.id if here is not None else ""


def bind_fields(**about: Any) -> None:
    """Further fields for all lines of this turn from now on."""
    here = _now.get()
    if here is not None:
        here.about.update(about)


def current_fields() -> Mapping[str, Any]:
    """What every line written here says of its request."""
    here = _now.get()
    return {} if here is None else {"request_id": here.id, **here.about}


def with_request_context(
    stream: Callable[_P, AsyncGenerator[_T, None]],
) -> Callable[_P, AsyncGenerator[_T, None]]:
    """A turn whose lines carry one id: its caller's, or its own. What it :func:`tell`\\s stays
    its own, also where several turns have one caller."""

    @functools.wraps(stream)
    async def following(*args: _P.args, **kwargs: _P.kwargs) -> AsyncGenerator[_T, None]:
        here = _Request(request_id() or new_id())
        steps = stream(*args, **kwargs)
        try:
            while True:
                with _within(here):
                    try:
                        step = await anext(steps)
                    except StopAsyncIteration:
                        return
                yield step
        finally:
            with _within(here):
                await steps.aclose()

    return following


@contextlib.contextmanager
def _within(here: _Request) -> Iterator[None]:
    before = _now.set(here)
    try:
        yield
    finally:
        _now.reset(before)
