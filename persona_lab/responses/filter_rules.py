"""The rules of ``guards.yaml``: masks, listed words, and the limits of roles."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from persona_lab.responses.pii import KINDS, canonical
from persona_lab.yaml_config import Location, NonEmptyText, StrictModel, load


class Mask(StrictModel):
    """The text that replaces an item, in both languages."""

    ja: NonEmptyText
    en: NonEmptyText


class WordList(StrictModel):
    """Words to mask or to block. They match in any case and spacing, in hiragana and katakana."""

    severity: Literal["mask", "block"]
    ja: tuple[NonEmptyText, ...] = ()
    en: tuple[NonEmptyText, ...] = ()

    @property
    def words(self) -> tuple[str, ...]:
        """The words of both languages."""
        return (*self.ja, *self.en)

    @model_validator(mode="after")
    def _words_are_valid(self) -> WordList:
        for word in self.words:
            if len(canonical(word)) < 2:
                raise ValueError(f"{word}: too short to be looked for")
        if not self.words:
            raise ValueError("has no words")
        return self


class Subject(StrictModel):
    """A subject on which a role gives no advice.

    Each entry of ``advice`` is a group of words that occur in one sentence; "a|b" stands for a or
    b. A sentence with a word of ``unless`` is allowed.
    """

    advice: tuple[Annotated[tuple[NonEmptyText, ...], Field(min_length=2)], ...]
    unless: tuple[NonEmptyText, ...] = ()

    def applies_to(self, sentence: str) -> bool:
        """Return whether ``sentence``, normalized and casefolded, gives such advice."""
        allowed, advice = self._patterns
        if allowed is not None and allowed.search(sentence):
            return False
        return any(all(word.search(sentence) for word in group) for group in advice)

    @cached_property
    def _patterns(self) -> tuple[re.Pattern[str] | None, list[list[re.Pattern[str]]]]:
        """The pattern of ``unless``, None without any, and one for each word of ``advice``."""
        allowed = "|".join(re.escape(word.casefold()) for word in self.unless)
        return re.compile(allowed) if allowed else None, [
            [re.compile("|".join(map(_word_pattern, word.split("|")))) for word in group]
            for group in self.advice
        ]


def _word_pattern(word: str) -> str:
    """Return the pattern of ``word``. Latin words match as a whole: "sue" isn't in "issue"."""
    text = word.casefold()
    before = "(?<![a-z])" if text[0].isascii() and text[0].isalpha() else ""
    after = "(?![a-z])" if text[-1].isascii() and text[-1].isalpha() else ""
    return before + re.escape(text) + after


class RoleLimit(StrictModel):
    """Subjects on which some roles give no advice."""

    roles: Annotated[tuple[NonEmptyText, ...], Field(min_length=1)]
    subjects: Annotated[tuple[NonEmptyText, ...], Field(min_length=1)]


class FilterRules(StrictModel):
    """The content of ``guards.yaml``."""

    masks: dict[NonEmptyText, Mask]
    words: tuple[WordList, ...] = ()
    subjects: dict[NonEmptyText, Subject] = Field(default_factory=dict)
    limits: tuple[RoleLimit, ...] = ()

    @model_validator(mode="after")
    def _references_exist(self) -> FilterRules:
        wanted = {*KINDS, "word"}
        if wrong := sorted(wanted ^ set(self.masks)):
            raise ValueError(f"masks: {wrong[0]} is {'missing' if wrong[0] in wanted else 'none'}")
        for number, limit in enumerate(self.limits, 1):
            for subject in limit.subjects:
                if subject not in self.subjects:
                    raise ValueError(f"limit {number}: there is no subject {subject}")
        return self


def read_filter_rules(path: Path) -> FilterRules:
    """Return the rules of ``path``.

    Raises:
        ConfigurationError: The file is invalid. The message names the file and the entry.
    """
    return load(path, FilterRules, place=_describe_location)


def _describe_location(location: Location) -> str:
    return ": ".join(str(part + 1 if isinstance(part, int) else part) for part in location)
