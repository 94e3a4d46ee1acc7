"""Load YAML files strictly: a fault is one line that names the file and the place.

:func:`load` validates a file against a pydantic model. :func:`read_yaml` returns the plain content
of a file whose keys are free, such as translations.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from persona_lab.errors import ConfigurationError

Location = tuple[int | str, ...]
"""Where a fault is: keys, and positions in lists from 0."""

_Model = TypeVar("_Model", bound=BaseModel)
_FOLD = re.compile(r"(?<=[\u2e80-\uffef]) (?=[\u2e80-\uffef])")
# The compiled reader, where there is one, is ten times as fast.
_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


_REASONS = {
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), "must be a mapping"),
    **dict.fromkeys(("tuple_type", "list_type"), "must be a list"),
}
"""Texts for faults that pydantic describes by the names of classes."""


NonEmptyText = Annotated[str, Field(min_length=1)]


class StrictModel(BaseModel):
    """A part of a file: unknown keys are refused, and what is read cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class _Loader(_SafeLoader):  # type: ignore[misc]
    """Refuse equal keys, of which YAML silently takes the last, and keys that aren't text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise _WrongKeyError(f"{key}: a key must be a word (put quotes around it)")
            if key in seen:
                raise _WrongKeyError(f"{key}: stands here twice")
            seen.add(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


class _WrongKeyError(Exception):
    pass


def numbered_place(location: Location) -> str:
    """Return ``location`` as ``tone 2: rule 3: words``, counted from 1."""
    place = ""
    for part in location:
        if isinstance(part, int):
            place = f"{_singular(place)} {part + 1}"
        else:
            place = f"{place}: {part}" if place else part
    return place


def dotted_place(location: Location) -> str:
    """Return ``location`` as ``persona 2: examples.1.ai``, counted from 1."""
    at = 2 if len(location) > 1 and isinstance(location[1], int) else 1
    rest = ".".join(str(part + 1 if isinstance(part, int) else part) for part in location[at:])
    return ": ".join(part for part in (numbered_place(location[:at]), rest) if part)


def load(
    path: Path,
    model: type[_Model],
    *,
    error_class: type[ConfigurationError] = ConfigurationError,
    place: Callable[[Location], str] = numbered_place,
) -> _Model:
    """Return the content of a YAML file as ``model``.

    Args:
        path: The file.
        model: What the file must hold. It should forbid unknown keys, as :class:`StrictModel`.
        error_class: The class of the errors that are raised.
        place: Writes where in the file a fault is.

    Raises:
        ConfigurationError: As ``error_class``, in one line: file, place and fault.
    """
    content = read_yaml(path, error_class=error_class)
    try:
        return model.model_validate(content)
    except ValidationError as invalid:
        fault = invalid.errors(include_url=False)[0]
        location: Location = fault["loc"]
        reason = _REASONS.get(fault["type"], fault["msg"].removeprefix("Value error, "))
        if not location and fault["type"] in _REASONS:
            reason = f"must be a mapping with {', '.join(model.model_fields)}"
        where = place(location)
        line = ": ".join(part for part in (path.name, where, reason) if part)
        raise error_class(line, file=path.name, where=where) from None


def read_yaml(path: Path, *, error_class: type[ConfigurationError] = ConfigurationError) -> Any:
    """Return the plain values of a YAML file.

    Raises:
        ConfigurationError: As ``error_class``, in one line: file, and line or key.
    """
    try:
        with path.open(encoding="utf-8") as file:
            return yaml.load(file, _Loader)  # noqa: S506 - a subclass of the safe loader
    except _WrongKeyError as error:
        raise error_class(f"{path.name}: {error}", file=path.name) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None)
        line = ": ".join(part for part in (path.name, where, problem or "isn't YAML") if part)
        raise error_class(line, file=path.name, where=where) from error
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8"
        raise error_class(f"{path.name}: can't be read: {why}", file=path.name) from error


def unfold(text: str) -> str:
    """Return ``text`` without the spaces that folded YAML lines put between Japanese letters."""
    return _FOLD.sub("", text)


def _singular(place: str) -> str:
    return f"{place[:-3]}y" if place.endswith("ies") else place.removesuffix("s")
