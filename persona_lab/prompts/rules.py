"""The rules of ``rules.yaml``: which template, labels and wording fit which persona."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from persona_lab.errors import TemplateError
from persona_lab.unicode_text import comparable
from persona_lab.yaml_config import NonEmptyText, StrictModel, load

_Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
_TRAIT_LISTS = ("personalities", "roles", "tones")


class _Localized(StrictModel):
    ja: NonEmptyText
    en: NonEmptyText


class _Condition(StrictModel):
    """Matches if one of its words is in the persona's list of that name."""

    personalities: tuple[NonEmptyText, ...] = ()
    roles: tuple[NonEmptyText, ...] = ()
    tones: tuple[NonEmptyText, ...] = ()

    @model_validator(mode="after")
    def _has_a_list(self) -> _Condition:
        if not any(getattr(self, name) for name in _TRAIT_LISTS):
            raise ValueError("names no personality, role or tone")
        return self

    def match(self, persona: Mapping[str, Sequence[str]]) -> tuple[str, str] | None:
        """Return the list and the persona's word that match, or None."""
        for name in _TRAIT_LISTS:
            words = {comparable(word) for word in getattr(self, name)}
            for word in persona[name]:
                if comparable(word) in words:
                    return name, word
        return None


class _Matcher(StrictModel):
    """Matches if all of its conditions match."""

    when: Annotated[tuple[_Condition, ...], Field(min_length=1)]

    def match(self, persona: Mapping[str, Sequence[str]]) -> list[tuple[str, str]] | None:
        found = [condition.match(persona) for condition in self.when]
        return None if None in found else [pair for pair in found if pair is not None]


class _Rule(_Matcher):
    template: _Name


class _Form(_Matcher):
    prefix: _Name


class _Label(StrictModel):
    """Labels and stop texts of a transcript; ``persona`` is the label without a name."""

    user: NonEmptyText
    persona: NonEmptyText
    stop: tuple[NonEmptyText, ...]


class _Labels(StrictModel):
    ja: _Label
    en: _Label


class _Words(StrictModel):
    personalities: _Localized
    roles: _Localized
    tones: _Localized
    matched: _Localized
    between: _Localized
    default: _Localized
    form: _Localized
    transcript: _Localized


class RuleFile(StrictModel):
    """The content of ``rules.yaml``."""

    rules: tuple[_Rule, ...]
    forms: tuple[_Form, ...] = ()
    transcript: _Labels
    words: _Words


def read_rules(path: Path) -> RuleFile:
    """Return the rules of ``path``.

    Raises:
        TemplateError: One line that names the file and the rule.
    """
    return load(path, RuleFile, error_class=TemplateError)
