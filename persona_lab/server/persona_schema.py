"""The fields of a persona in the REST schema, made from ``PERSONA_FIELDS``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, create_model

from persona_lab.personas.persona import PERSONA_FIELDS, PersonaField

_Model = TypeVar("_Model", bound=BaseModel)


class Example(BaseModel):
    """An exchange that shows how the persona speaks."""

    model_config = ConfigDict(extra="forbid")

    user: str
    ai: str


def request_fields(model: type[_Model]) -> type[_Model]:
    """Class decorator: add all fields of a persona. None is required, and none can be null."""
    return _with_fields(model, lambda field: (_input_type(field), _details(field)))


def response_fields(model: type[_Model]) -> type[_Model]:
    """Class decorator: add all fields of a persona as required fields."""
    return _with_fields(model, lambda field: (_output_type(field), ...))


def _with_fields(
    model: type[_Model], definition: Callable[[PersonaField], tuple[Any, Any]]
) -> type[_Model]:
    definitions: dict[str, Any] = {
        field.name: definition(field) for field in PERSONA_FIELDS.values()
    }
    extended = create_model(
        model.__name__,
        __base__=model,
        __doc__=model.__doc__,
        __module__=model.__module__,
        **definitions,
    )
    extended.__qualname__ = model.__qualname__
    return extended


def _input_type(field: PersonaField) -> Any:
    return Literal[field.values] if field.kind == "choice" else _output_type(field)


def _output_type(field: PersonaField) -> Any:
    if field.kind == "examples":
        return list[Example]
    return list[str] if field.is_list else str


def _details(field: PersonaField) -> Any:
    examples = None if field.example is None else [field.example]
    return Field(
        default=None,
        description=field.description,
        examples=examples,
        json_schema_extra=lambda schema: schema.pop("default", None),
    )
