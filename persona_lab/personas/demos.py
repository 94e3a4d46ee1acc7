"""Read the demo personas and the editor's suggestions from ``data/personas.yaml``.

This module only reads and checks. The store decides what becomes a row.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model, model_validator

from persona_lab.personas.persona import PERSONA_FIELDS, TRAITS, PersonaField
from persona_lab.types import LANGUAGES
from persona_lab.yaml_config import NonEmptyText, dotted_place, load, unfold


def _folded(value: object) -> object:
    return unfold(value) if isinstance(value, str) else value


_Lines = list[NonEmptyText]
_Base = TypeVar("_Base", bound=BaseModel)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Exchange(_Strict):
    user: NonEmptyText
    ai: NonEmptyText


def _definition(field: PersonaField) -> tuple[Any, Any]:
    """Return the type of ``field`` in the file, and its default (``...`` if it must be there)."""
    filled = field.demo in ("filled", "folded")
    type_: Any
    empty: Any
    match field.kind:
        case "choice":
            type_, empty = Literal[field.values], field.values[0]
        case "list" | "traits":
            type_, empty = _Lines, []
        case "examples":
            type_, empty = list[_Exchange], []
        case _:
            type_, empty = str, ""
    if filled:
        type_ = Annotated[type_, Field(min_length=1)]
    if field.demo == "folded":
        type_ = Annotated[type_, BeforeValidator(_folded)]
    return type_, empty if field.demo == "optional" else ...


def _with_fields(definitions: dict[str, Any]) -> Callable[[type[_Base]], type[_Base]]:
    """Return a class decorator that adds the fields of ``definitions`` to a model."""
    return lambda model: create_model(model.__name__, __base__=model, **definitions)


@_with_fields({field.name: _definition(field) for field in PERSONA_FIELDS.values()})
class _Demo(_Strict):
    """A persona, its id, and messages to begin with."""

    id: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")]
    messages: Annotated[list[NonEmptyText], Field(min_length=1, alias="try")]


@_with_fields(dict.fromkeys(TRAITS, (_Lines, ...)))
class _Choices(_Strict):
    """Names that the editor suggests."""


@_with_fields(dict.fromkeys(LANGUAGES, (_Choices, ...)))
class _Suggestions(_Strict):
    """Names that the editor suggests, by language."""


class _File(_Strict):
    personas: list[_Demo]
    choices: _Suggestions

    @model_validator(mode="after")
    def _check_ids(self) -> _File:
        ids: set[str] = set()
        for number, demo in enumerate(self.personas, 1):
            if demo.id in ids:
                raise ValueError(f"persona {number}: id: another persona has {demo.id!r}")
            ids.add(demo.id)
        return self


def load_demos(path: Path) -> list[dict[str, Any]]:
    """Return the demo personas in the file's order, as ``Store.seed_agents`` takes them.

    Each has ``id`` and the fields of a persona.

    Raises:
        ConfigurationError: One line that names the file and the number of the wrong entry.
    """
    return [demo.model_dump(exclude={"messages"}) for demo in _load(path).personas]


def load_messages(path: Path) -> dict[str, list[str]]:
    """Return messages to begin with, by the ``id`` of the demo.

    Raises:
        ConfigurationError: As :func:`load_demos`.
    """
    return {demo.id: demo.messages for demo in _load(path).personas}


def load_choices(path: Path) -> dict[str, dict[str, list[str]]]:
    """Return the words that the editor suggests, by language and field.

    Raises:
        ConfigurationError: One line that names the file and the wrong place in it.
    """
    return _load(path).choices.model_dump()


def _load(path: Path) -> _File:
    return load(path, _File, place=dotted_place)
