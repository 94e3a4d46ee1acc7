"""Read the demo personas and the editor's suggestions from ``data/personas.yaml``.

This module only reads and checks. The store decides what becomes a row.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model

from persona_lab.errors import ConfigurationError
from persona_lab.personas.persona import LANGUAGES, PERSONA_FIELDS, TRAITS, PersonaField
from persona_lab.yaml_config import load_yaml, unfold


def _folded(value: object) -> object:
    return unfold(value) if isinstance(value, str) else value


_Text = Annotated[str, Field(min_length=1)]
_Lines = list[_Text]
_Base = TypeVar("_Base", bound=BaseModel)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Exchange(_Strict):
    user: _Text
    ai: _Text


class _DemoKeys(_Strict):
    """What an entry holds beside the fields of a persona."""

    id: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")]
    messages: Annotated[list[_Text], Field(min_length=1, alias="try")]


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


def _model(name: str, base: type[_Base], definitions: dict[str, Any]) -> type[_Base]:
    return create_model(name, __base__=base, **definitions)


_Demo = _model(
    "_Demo", _DemoKeys, {field.name: _definition(field) for field in PERSONA_FIELDS.values()}
)
_Choices = _model("_Choices", _Strict, dict.fromkeys(TRAITS, (_Lines, ...)))
_Suggestions = _model("_Suggestions", _Strict, dict.fromkeys(LANGUAGES, (_Choices, ...)))


def load_demos(path: Path) -> list[dict[str, Any]]:
    """The demo personas, in the file's order: ``id`` and the fields of a persona.

    The form that ``Store.seed_agents`` takes. Raises ConfigurationError naming the file and the
    number of the entry that is wrong.
    """
    return [persona.model_dump(exclude={"messages"}) for persona in _personas(path)]


def load_messages(path: Path) -> dict[str, list[str]]:
    """For each demo's ``id``, messages to begin with. Raises as :func:`load_seeds` does."""
    return {persona.id: persona.messages for persona in _personas(path)}


def _personas(path: Path) -> list[_DemoKeys]:
    entries = _read(path, "personas")
    if not isinstance(entries, list):
        raise ConfigurationError(f"{path.name}: personas: must be a list")
    personas: dict[str, _DemoKeys] = {}
    for number, entry in enumerate(entries, 1):
        try:
            persona = _Demo.model_validate(entry)
        except ValidationError as wrong:
            raise _fault(f"{path.name}: persona {number}", wrong) from None
        if persona.id in personas:
            raise ConfigurationError(
                f"{path.name}: persona {number}: id: another persona has {persona.id!r}"
            )
        personas[persona.id] = persona
    return list(personas.values())


def load_choices(path: Path) -> dict[str, dict[str, list[str]]]:
    """The words that the editor offers: language → personalities, roles, tones.

    Raises ConfigurationError naming the file and the place in it that is wrong.
    """
    try:
        return _Suggestions.model_validate(_read(path, "choices")).model_dump()
    except ValidationError as wrong:
        raise _fault(f"{path.name}: choices", wrong) from None


def _read(path: Path, key: str) -> Any:
    content = load_yaml(path)
    if not isinstance(content, dict) or key not in content:
        raise ConfigurationError(f"{path.name}: there is no {key!r}")
    unknown = set(content) - {"personas", "choices"}
    if unknown:
        raise ConfigurationError(f"{path.name}: unknown key {min(map(str, unknown))!r}")
    return content[key]


def _fault(where: str, wrong: ValidationError) -> ConfigurationError:
    fault = wrong.errors(include_url=False)[0]
    place = ".".join(str(part + 1 if isinstance(part, int) else part) for part in fault["loc"])
    return ConfigurationError(": ".join(part for part in (where, place, fault["msg"]) if part))
