"""The demo personas and the editor's suggestions, read from ``data/personas.yaml``.

Only reads and checks: the store decides what becomes a row.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from persona_lab.errors import ConfigurationError
from persona_lab.types import Language
from persona_lab.yaml_config import load_yaml, unfold


def _folded(value: object) -> object:
    return unfold(value) if isinstance(value, str) else value


_Text = Annotated[str, Field(min_length=1)]
_Words = list[_Text]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Exchange(_Strict):
    user: _Text
    ai: _Text


class _Persona(_Strict):
    id: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")]
    language: Language
    name: _Text
    description: _Text
    gender: str
    background: Annotated[_Text, BeforeValidator(_folded)]
    first_person: str
    second_person: str
    sentence_endings: _Words
    catchphrases: _Words
    forbidden_words: _Words
    personalities: _Words
    roles: _Words
    tones: _Words
    examples: Annotated[list[_Exchange], Field(min_length=1)]
    greeting: str
    messages: Annotated[list[_Text], Field(min_length=1, alias="try")]


class _Choices(_Strict):
    personalities: _Words
    roles: _Words
    tones: _Words


class _Suggestions(_Strict):
    ja: _Choices
    en: _Choices


def load_demos(path: Path) -> list[dict[str, Any]]:
    """The demo personas, in the file's order: ``id`` and the fields of a persona.

    The form that ``Store.seed_agents`` takes. Raises ConfigurationError naming the file and the
    number of the entry that is wrong.
    """
    return [persona.model_dump(exclude={"messages"}) for persona in _personas(path)]


def load_messages(path: Path) -> dict[str, list[str]]:
    """For each demo's ``id``, messages to begin with. Raises as :func:`load_seeds` does."""
    return {persona.id: persona.messages for persona in _personas(path)}


def _personas(path: Path) -> list[_Persona]:
    entries = _read(path, "personas")
    if not isinstance(entries, list):
        raise ConfigurationError(f"{path.name}: personas: must be a list")
    personas: dict[str, _Persona] = {}
    for number, entry in enumerate(entries, 1):
        try:
            persona = _Persona.model_validate(entry)
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
