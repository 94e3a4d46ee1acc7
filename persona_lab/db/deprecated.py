"""Former names of the store's methods, with a DeprecationWarning, until 0.2."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any


def former_name(old: str, new: str) -> Callable[..., Any]:
    """Return a method that warns of its former name ``old`` and calls the method ``new``."""

    def call(self: object, *args: Any, **given: Any) -> Any:
        warnings.warn(
            f"Store.{old} is called {new} now; {old} goes with the next release",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(self, new)(*args, **given)

    call.__name__ = old
    call.__doc__ = f"Deprecated: call ``{new}``."
    return call


class FormerNames:
    """Former names that the store inherits."""

    exchanges = former_name("exchanges", "list_exchanges")
    mark = former_name("mark", "chat_state")
    spent = former_name("spent", "total_cost")
    past_turns = former_name("past_turns", "list_generation_rows")
