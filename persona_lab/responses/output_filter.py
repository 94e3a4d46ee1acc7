"""OutputFilter: what an answer may not tell, masked or kept back while it streams.

``templates/guards.yaml`` has the masks, the words and the limits of roles. Personal data that
stands in the persona's own text (the support desk's number) isn't personal and stays.

A stream is judged in units. A unit ends where nothing that could be masked is under way: after
most words at once, after a sentence where a number, an address or the beginning of a listed word
has come, and always after a sentence for a persona whose role has limits. So no half of a masked
item is ever shown, and how a provider cut the stream makes no difference.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, model_validator

from persona_lab.db.tables import Agent
from persona_lab.responses.changes import Edit
from persona_lab.responses.code_fences import CodeFenceTracker
from persona_lab.responses.filters import Filter, Step
from persona_lab.responses.pii import KINDS, canonical, find_personal, normalized, plain
from persona_lab.yaml_config import Location, load


class Moderator(Protocol):
    """Looks at a whole answer before anybody sees it: with one, answers don't stream."""

    async def review(self, text: str) -> list[str]:
        """Names of what is wrong with ``text``; nothing for what may be shown.

        Raises ProviderError when it can't be told: then the answer isn't shown either.
        """
        ...


BlockReason = Literal["words", "limits", "moderation"]
"""Why an answer was kept back: ``blocked.…`` in ``fallbacks.yaml`` has the words for it."""

_Text = Annotated[str, Field(min_length=1)]
_LONGEST = 600
"""Characters after which a unit ends at the next space, whatever is under way."""
_REACH = 40
"""Characters before a unit that may say what a number in it is."""
_ENDS = "。！？!?\n"
_ABBREVIATED = re.compile(
    r"(?:^|[\s\d])(?:St|Ave|Rd|Blvd|Dr|Ln|Ct|Pl|Sq|Pkwy|Hwy|Apt|Ste|No|Mr|Mrs|Ms|D\.C|[A-Z])\.$"
)
_NAMES = re.compile("[\u4e00-\u9fff々〇ァ-ヶー]")
"""Places and the like are written in these: they stay together."""
_SIGNS = frozenset("@＠〒+＋都道府県市区町村郡0123456789０１２３４５６７８９①②③④⑤⑥⑦⑧⑨")
"""Personal data has one of these, as far as it isn't a key, which has no space within."""
_KEY_BEGINS = re.compile(r"-----BEGIN(?: [A-Z0-9]+)*\Z")
_KEY_OPEN = re.compile(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?!.*-----END [A-Z0-9 ]*KEY-----)", re.S)
_LONGEST_KEY = 8000
_BETWEEN = r"[\s・.,*_\-‐ー~/]{1,2}"
"""What may be put between the letters of a word to slip it through."""
_DROPPED = frozenset(" \t\n　・.,*_-‐ー~/")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Both(_Strict):
    ja: _Text
    en: _Text


class _List(_Strict):
    """Words, each in any script, case and spacing."""

    severity: Literal["mask", "block"]
    ja: tuple[_Text, ...] = ()
    en: tuple[_Text, ...] = ()

    @model_validator(mode="after")
    def _has_words(self) -> _List:
        for word in (*self.ja, *self.en):
            if len(canonical(word)) < 2:
                raise ValueError(f"{word}: too short to be looked for")
        if not (self.ja or self.en):
            raise ValueError("has no words")
        return self


class _Subject(_Strict):
    """Each of ``advice`` is words that all stand in one sentence, "a|b" being either."""

    advice: tuple[Annotated[tuple[_Text, ...], Field(min_length=2)], ...]
    unless: tuple[_Text, ...] = ()


class _Limit(_Strict):
    roles: Annotated[tuple[_Text, ...], Field(min_length=1)]
    subjects: Annotated[tuple[_Text, ...], Field(min_length=1)]


class _File(_Strict):
    masks: dict[_Text, _Both]
    words: tuple[_List, ...] = ()
    subjects: dict[_Text, _Subject] = Field(default_factory=dict)
    limits: tuple[_Limit, ...] = ()

    @model_validator(mode="after")
    def _is_whole(self) -> _File:
        wanted = {*KINDS, "word"}
        if wrong := sorted(wanted ^ set(self.masks)):
            raise ValueError(f"masks: {wrong[0]} is {'missing' if wrong[0] in wanted else 'none'}")
        for number, limit in enumerate(self.limits, 1):
            for subject in limit.subjects:
                if subject not in self.subjects:
                    raise ValueError(f"limit {number}: there is no subject {subject}")
        return self


def _place(location: Location) -> str:
    return ": ".join(str(part + 1 if isinstance(part, int) else part) for part in location)


class OutputFilter:
    """Masks personal data and words, and keeps back what may not be said at all.

    ``safe_words`` gives what a persona says instead, for each of :data:`Blocked`.
    """

    def __init__(
        self,
        path: Path,
        safe_words: Callable[[Agent, BlockReason], str],
        *,
        personal_data: bool = True,
        words: bool = True,
        limits: bool = True,
        moderator: Moderator | None = None,
    ) -> None:
        """Raises ConfigurationError, one line that names the file and the entry."""
        self.rules = load(path, _File, place=_place)
        self.safe_words = safe_words
        self.moderator = moderator
        self.personal_data = personal_data
        self.words = _WordLists(self.rules.words if words else ())
        self._limits = self.rules.limits if limits else ()

    @property
    def step(self) -> Step:
        """The step of a :class:`~persona_lab.responses.processor.ResponseProcessor`."""
        judges = self.personal_data or self.words.longest or self._limits
        return Step(
            "safety",
            lambda agent: SafetyFilter(self, agent) if judges else Filter(),
            data=True,
            masks=True,
        )

    async def review(self, text: str, agent: Agent) -> tuple[str, list[str]]:
        """What may be shown of a whole answer, and what the moderator found wrong with it.

        Raises ProviderError.
        """
        flagged = await self.moderator.review(text) if self.moderator and text else []
        return (self.safe_words(agent, "moderation") if flagged else text), flagged

    def subjects(self, agent: Agent) -> dict[str, _Subject]:
        """What ``agent`` may not advise on, because of one of its roles."""
        roles = {_fold(role.name) for role in agent.roles}
        return {
            subject: self.rules.subjects[subject]
            for limit in self._limits
            if roles & set(map(_fold, limit.roles))
            for subject in limit.subjects
        }

    def mask_of(self, kind: str, language: str) -> str:
        both = self.rules.masks[kind]
        return both.en if language == "en" else both.ja


class _WordLists:
    """All listed words as two patterns, and the beginnings of words for which one must wait."""

    def __init__(self, lists: Sequence[_List]) -> None:
        self.mask = _either(word for each in lists if each.severity == "mask" for word in _of(each))
        self.block = _either(
            word for each in lists if each.severity == "block" for word in _of(each)
        )
        whole = [_skeleton(word) for each in lists for word in _of(each)]
        self._begun = {word[:length] for word in whole for length in range(1, len(word))}
        self._marks = {begun[-1] for begun in self._begun}
        self.longest = max(map(len, whole), default=0)

    def under_way(self, skeleton: str) -> bool:
        """Whether ``skeleton`` ends in what may become a listed word."""
        if skeleton[-1:] not in self._marks:
            return False
        lengths = range(1, min(self.longest, len(skeleton) + 1))
        return any(skeleton[-length:] in self._begun for length in lengths)


def _of(words: _List) -> tuple[str, ...]:
    return (*words.ja, *words.en)


def _either(words: Iterable[str]) -> re.Pattern[str] | None:
    patterns = []
    for word in sorted(words, key=len, reverse=True):
        skeleton = _skeleton(word)
        letters = [_letter(letter) for letter in skeleton]
        pattern = "".join(letters)
        if skeleton.isascii():  # apart are all letters of a word or none: not those of "let's hit"
            parts = [[re.escape(letter) for letter in _skeleton(part)] for part in word.split()]
            spread = (f"(?:{''.join(part)}|{_BETWEEN.join(part)})" for part in parts)
            pattern = rf"(?<![a-z0-9'’]){f'(?:{_BETWEEN})?'.join(spread)}(?![a-z0-9])"
        elif len(letters) > 2:  # two of "販売・女性" aren't meant
            pattern = f"(?:{_BETWEEN})?".join(letters)
        if all("一" <= letter <= "鿿" for letter in skeleton):  # within a longer word: 販売女性
            pattern = rf"(?<![一-鿿]){pattern}(?![一-鿿])"
        elif all("ぁ" <= letter <= "ー" for letter in skeleton):  # the end of a verb: 行きちがい
            pattern = rf"(?<![一-鿿]){pattern}"
        patterns.append(pattern)
    return re.compile("|".join(patterns), re.IGNORECASE) if patterns else None


def _letter(letter: str) -> str:
    """Hiragana stands for katakana as well."""
    if "ぁ" <= letter <= "ゖ":
        return f"[{letter}{chr(ord(letter) + 0x60)}]"
    return re.escape(letter)


@lru_cache(maxsize=8192)
def _skeleton(text: str) -> str:
    folded = normalized(text)[0].casefold()
    return "".join(map(_hiragana, filter(lambda letter: letter not in _DROPPED, folded)))


def _hiragana(letter: str) -> str:
    return chr(ord(letter) - 0x60) if "ァ" <= letter <= "ヶ" else letter


def _fold(word: str) -> str:
    return unicodedata.normalize("NFKC", word).strip().casefold()


class SafetyFilter(Filter):
    """One answer of ``agent``, unit by unit."""

    def __init__(self, rules: OutputFilter, agent: Agent) -> None:
        self._rules = rules
        self._agent = agent
        self._subjects = rules.subjects(agent)
        self._own: str | None = None
        self._fences = CodeFenceTracker()
        self._applied: list[str] = []
        self._held = ""
        self._skeleton = ""
        self._signs = False
        self._worded = False
        """Whether a listed word may stand in what is held."""
        self._before = ""
        self._given = ""
        """The last characters that were given out."""
        self._read = 0
        """Characters before those that are held."""
        self._edits: list[Edit] = []

    @property
    def applied(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._applied))

    def feed(self, text: str) -> str:
        out = ""
        for character in text:
            if self.ended:
                break
            self._held += character
            self._signs = self._signs or character in _SIGNS
            if character not in _DROPPED:
                skeleton = self._skeleton + _skeleton(character)
                self._skeleton = skeleton[-self._rules.words.longest - 1 :]
            if self._is_unit(character):
                out += self._release()
        return out

    def finish(self) -> str:
        return "" if self.ended or not self._held else self._release(finished=True)

    def edits(self, before: str, after: str) -> list[Edit]:
        if not self.ended:
            return self._edits
        grown = sum(edit.length - (edit.end - edit.start) for edit in self._edits)
        refused = Edit(self._read, len(before), len(after) - self._read - grown)
        return [*self._edits, refused]

    def _is_unit(self, character: str) -> bool:
        if not plain(character):  # it parts nothing
            return len(self._held) >= _LONGEST
        latin = character.isascii() or "！" <= character <= "～"
        if latin and not character.isspace() and character not in _ENDS:
            self._worded = True
            return len(self._held) >= _LONGEST_KEY
        if "-----BEGIN" in self._held and _KEY_OPEN.search(self._held):
            return len(self._held) >= _LONGEST_KEY
        if character.isspace() and _KEY_BEGINS.search(self._held[:-1]):
            return False
        long = len(self._held) >= _LONGEST
        if self._rules.words.under_way(self._skeleton):
            self._worded = True
            if not long:
                return False
        if _NAMES.match(character):  # 東京 may be going to be 東京都
            return long
        if character in _ENDS:
            return True
        if long or not (self._signs or self._subjects):
            return True
        stopped = character.isspace() and self._held[-2:-1] == "."
        return stopped and not _ABBREVIATED.search(self._held[-7:-1])

    def _release(self, *, finished: bool = False) -> str:
        unit, self._held = self._held, ""
        signs, self._signs = self._signs, False
        worded, self._worded = self._worded, False
        refused = self._refused(unit, worded)
        if refused:
            self.ended, self.blocked = True, refused[0]
            self._applied.append(f"block:{refused[1]}")
            return self._farewell() + self._rules.safe_words(self._agent, refused[0])
        out = self._masked(unit, signs, worded)
        self._read += len(unit)
        self._before = (self._before + unit)[-_REACH:]
        self._given = (self._given + out)[-2:]
        self._fences.feed(unit)
        return out

    def _farewell(self) -> str:
        """What brings the answer so far to an end: an open block of code, a blank line."""
        if not self._given:
            return ""
        self._fences.end_line()
        lines = len(self._given) - len(self._given.rstrip("\n"))
        if self._fences.open:
            return ("" if lines else "\n") + self._fences.open + "\n\n"
        return "\n\n"[lines:]

    def _refused(self, unit: str, worded: bool) -> tuple[BlockReason, str] | None:
        words = self._rules.words
        if worded and words.block and words.block.search(normalized(unit)[0]):
            return "words", "words"
        if self._subjects:
            sentence = normalized(unit)[0].casefold()
            for name, subject in self._subjects.items():
                if any(word.casefold() in sentence for word in subject.unless):
                    continue
                for words_together in subject.advice:
                    if all(
                        any(_says(sentence, either) for either in word.split("|"))
                        for word in words_together
                    ):
                        return "limits", name
        return None

    def _masked(self, unit: str, signs: bool, worded: bool) -> str:
        found: list[tuple[int, int, str]] = []
        if self._rules.personal_data and (signs or _may_hold_key(unit)):
            text = self._before + unit
            shift = len(self._before)
            for data in find_personal(text, shift):
                if canonical(text[data.start : data.end]) not in self._persona():
                    found.append((data.start - shift, data.end - shift, data.kind))
        if worded and self._rules.words.mask is not None:
            normal, places = normalized(unit)
            for match in self._rules.words.mask.finditer(normal):
                start, end = match.span()
                if places is not None:
                    start, end = places[start], places[end - 1] + 1
                if not any(start < last and first < end for first, last, _ in found):
                    found.append((start, end, "word"))
        found.sort()
        for start, end, kind in found:
            mask = self._rules.mask_of(kind, self._agent.language)
            self._edits.append(Edit(self._read + start, self._read + end, len(mask)))
        for start, end, kind in reversed(found):
            self._applied.append(f"mask:{kind}")
            unit = unit[:start] + self._rules.mask_of(kind, self._agent.language) + unit[end:]
        return unit

    def _persona(self) -> str:
        """What the persona's own text says: no secret."""
        if self._own is None:
            agent = self._agent
            own = [agent.name, agent.description, agent.background, agent.greeting]
            own += [*agent.catchphrases, *agent.sentence_endings]
            own += [text for example in agent.examples for text in example.values()]
            self._own = "\n".join(map(canonical, own))
        return self._own


@functools.lru_cache(maxsize=1024)
def _spoken(word: str) -> re.Pattern[str]:
    """``word`` in a sentence; one of Latin letters as a whole word: "sue" isn't in "issue"."""
    text = word.casefold()
    before = "(?<![a-z])" if text[0].isascii() and text[0].isalpha() else ""
    after = "(?![a-z])" if text[-1].isascii() and text[-1].isalpha() else ""
    return re.compile(before + re.escape(text) + after)


def _says(sentence: str, word: str) -> bool:
    return _spoken(word).search(sentence) is not None


def _may_hold_key(unit: str) -> bool:
    """Keys have a digit, which is one of the signs, but for those of many lines."""
    return "-----BEGIN" in unit
