"""Former names of public methods and fields, each with a DeprecationWarning, until 0.2.

0.2 deletes this module, and the lines that use it.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

_Class = TypeVar("_Class", bound=type)


def warn_of_former_name(old: str, new: str, *, stacklevel: int = 2) -> None:
    """Warn the caller of the caller that ``old`` is called ``new`` now."""
    warnings.warn(
        f"{old} is called {new} now; the former name goes with 0.2",
        DeprecationWarning,
        stacklevel=stacklevel + 1,
    )


def former_method(owner: str, old: str, new: str) -> Callable[..., Any]:
    """Return a method of the class ``owner`` that warns, and calls the method ``new``."""

    def call(self: object, *args: Any, **options: Any) -> Any:
        warn_of_former_name(f"{owner}.{old}", new)
        return getattr(self, new)(*args, **options)

    call.__name__ = old
    call.__doc__ = f"Deprecated: call ``{new}``."
    return call


def former_property(owner: str, old: str, new: str) -> property:
    """Return a property of the class ``owner`` that warns, and has the value of ``new``."""

    def read(self: object) -> Any:
        warn_of_former_name(f"{owner}.{old}", new)
        return getattr(self, new)

    def write(self: object, value: Any) -> None:
        warn_of_former_name(f"{owner}.{old}", new)
        setattr(self, new, value)

    return property(read, write, doc=f"Deprecated: use ``{new}``.")


def former_fields(**names: str) -> Callable[[_Class], _Class]:
    """Return a class decorator: former names of fields work as arguments and as attributes.

    Args:
        **names: The former names of fields, and their present names.
    """

    def decorate(class_: _Class) -> _Class:
        begin = class_.__init__  # type: ignore[misc]

        @functools.wraps(begin)
        def initialize(self: object, *args: Any, **options: Any) -> None:
            for old in names.keys() & options.keys():
                warn_of_former_name(f"{class_.__name__}.{old}", names[old])
                options[names[old]] = options.pop(old)
            begin(self, *args, **options)

        class_.__init__ = initialize  # type: ignore[misc]
        for old, new in names.items():
            setattr(class_, old, former_property(class_.__name__, old, new))
        return class_

    return decorate


def rename_overrides(class_: type, names: Mapping[str, str]) -> None:
    """Make the overrides of a subclass that have former names override the present names.

    Args:
        class_: The new subclass.
        names: The former names of members, and their present names.
    """
    for old, new in names.items():
        if old in vars(class_) and new not in vars(class_):
            # above: this function, __init_subclass__, ABCMeta, and the class statement
            warn_of_former_name(f"{class_.__name__}.{old}", new, stacklevel=4)
            setattr(class_, new, vars(class_)[old])
