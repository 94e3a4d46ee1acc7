"""Rewrite words by rules over part of speech and dictionary form.

A rule names consecutive words by SudachiPy's analysis, and the text that replaces them::

    {pattern: [{base: だ, form: 終止形}, よ], right: end, replacement: やで}  学生だよ。→ 学生やで。
    {pattern: [{kind: 動詞, form: 終止形}], right: end, replacement: "{1}でござる"}

``python -m persona_lab.japanese 学生だよ。`` prints the analysis of each word. A sentence is
rewritten in one pass from left to right; at each word the first rule that matches is applied.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from persona_lab.japanese.morphology import Form, Word, conjugate
from persona_lab.japanese.polite import count_spoken_words

_Texts = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
]
_FORMS = get_args(Form)
_MAX_CACHED_WORDS = 16384
_CLAUSE_ENDS = frozenset(("、", "が", "けど", "けれど", "けれども", "から", "し"))


class WordPattern(BaseModel):
    """Conditions on a word. All keys must match; of a list, one entry.

    ``kind``, ``type`` and ``form`` match the beginning of SudachiPy's analysis (動詞 matches
    動詞-一般). ``word`` and ``base`` (the dictionary form) match the whole.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    word: _Texts = ()
    base: _Texts = ()
    kind: _Texts = ()
    type: _Texts = ()
    form: _Texts = ()

    @model_validator(mode="before")
    @classmethod
    def _expand_text(cls, value: Any) -> Any:
        return {"word": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _has_conditions(self) -> WordPattern:
        if not any((self.word, self.base, self.kind, self.type, self.form)):
            raise ValueError("has no condition on the word")
        return self

    def matches(self, word: Word) -> bool:
        """Return whether ``word`` matches; a kept word never does."""
        return (
            not word.kept
            and (not self.word or word.surface in self.word)
            and (not self.base or word.lemma in self.base)
            and (not self.kind or word.pos.startswith(self.kind))
            and (not self.type or word.type.startswith(self.type))
            and (not self.form or word.form.startswith(self.form))
        )


class Rule(BaseModel):
    """Replaces the words of ``pattern``, if the words to the ``left`` and ``right`` match too.

    ``left: start`` and ``right: end`` mean the edges of the sentence, without marks and emoji;
    ``right: clause`` also the edge of a clause, before 、, が, けど, から and し.
    In ``replacement``, {1} is the first word of the pattern as it is, {1.base} its dictionary form;
    {1.te}, {1.past}, {1.negative}, {1.negative_past}, {1.stem}, {1.volitional} and {1.if} are the
    verb in that form. The caller fills in other names in braces.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    pattern: Annotated[tuple[WordPattern, ...], Field(min_length=1)]
    left: Literal["start"] | WordPattern | None = Field(default=None, union_mode="left_to_right")
    right: Literal["end", "clause"] | WordPattern | None = Field(
        default=None, union_mode="left_to_right"
    )
    replacement: str

    @model_validator(mode="before")
    @classmethod
    def _expand_edges(cls, value: Any) -> Any:
        if isinstance(value, dict):
            for old, new in (("words", "pattern"), ("becomes", "replacement")):
                if old in value:
                    raise ValueError(f'"{old}" is now "{new}"')
            for side in ("left", "right"):
                if isinstance(value.get(side), str) and value[side] not in (
                    "start",
                    "end",
                    "clause",
                ):
                    value = {**value, side: {"word": value[side]}}
        return value

    @model_validator(mode="after")
    def _placeholders_exist(self) -> Rule:
        for name in self.placeholders:
            number, _, form = name.partition(".")
            if not number.isdigit():
                continue
            if not 1 <= int(number) <= len(self.pattern):
                raise ValueError(
                    f"replacement: {{{name}}}: the pattern has {len(self.pattern)} words"
                )
            if form and form not in ("base", *_FORMS):
                raise ValueError(f"replacement: {{{name}}}: a form is base, {', '.join(_FORMS)}")
        return self

    @cached_property
    def placeholders(self) -> list[str]:
        """The names in braces in ``replacement``."""
        parts = string.Formatter().parse(self.replacement)
        return [name for _, name, _, _ in parts if name is not None]

    def matches(self, words: Sequence[Word], at: int, end: int) -> bool:
        """Return whether the rule applies at ``words[at]``; the sentence's words end at ``end``."""
        stop = at + len(self.pattern)
        if stop > end:
            return False
        for offset, each in enumerate(self.pattern):
            if not each.matches(words[at + offset]):
                return False
        if self.left == "start":
            if any(word.is_spoken() for word in words[:at]):
                return False
        elif isinstance(self.left, WordPattern) and not (at and self.left.matches(words[at - 1])):
            return False
        if self.right == "end":
            return stop == end
        if self.right == "clause":
            return stop == end or words[stop].surface in _CLAUSE_ENDS
        return not isinstance(self.right, WordPattern) or (
            stop < len(words) and self.right.matches(words[stop])
        )

    def render(self, words: Sequence[Word], placeholders: Mapping[str, str]) -> str:
        """Return the text that replaces ``words``."""
        out = ""
        for text, name, _, _ in string.Formatter().parse(self.replacement):
            out += text
            if name is None:
                continue
            number, _, form = name.partition(".")
            if not number.isdigit():
                out += placeholders[name]
                continue
            word = words[int(number) - 1]
            out += _inflect(word, form)
        return out


class Rules:
    """Rules in their order."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = tuple(rules)
        self.at = lru_cache(maxsize=_MAX_CACHED_WORDS)(self._rules_at)
        """Return the rules whose first word a word matches, in their order."""

    def _rules_at(self, word: Word) -> tuple[Rule, ...]:
        return tuple(rule for rule in self._rules if rule.pattern[0].matches(word))


def applies(words: Sequence[Word], rules: Rules) -> bool:
    """Return whether one of ``rules`` matches some of the words of a sentence."""
    return any(
        rule.matches(words, at, len(words))
        for at, word in enumerate(words)
        for rule in rules.at(word)
    )


def rewrite(words: Sequence[Word], rules: Rules, placeholders: Mapping[str, str]) -> str:
    """Apply ``rules`` to the words of a sentence.

    Args:
        words: The words, without gaps.
        rules: The rules of a tone.
        placeholders: The values of the names in braces that aren't numbers.

    Returns:
        The text of the sentence.
    """
    end = count_spoken_words(words)
    out, at = "", 0
    while at < len(words):
        rule = next((rule for rule in rules.at(words[at]) if rule.matches(words, at, end)), None)
        if rule is None:
            out += words[at].surface
            at += 1
        else:
            out += rule.render(words[at : at + len(rule.pattern)], placeholders)
            at += len(rule.pattern)
    return out


def _inflect(word: Word, form: str) -> str:
    if not form:
        return word.surface
    if form == "base":
        return word.lemma
    return conjugate(word.lemma, word.type, form)  # type: ignore[arg-type]
