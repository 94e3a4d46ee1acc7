"""OutputFilter: mask or block the unsafe parts of an answer while it streams.

``templates/guards.yaml`` has the masks, the listed words and the limits of roles. Personal data in
the persona's own fields, such as the number of a support desk, isn't masked.

A stream is checked in units. A unit ends where no masked item can be incomplete:

- usually after a word;
- after the sentence, if it has a number, an address or the beginning of a listed word;
- always after the sentence, for a persona whose role has limits.

So no part of a masked item is ever shown. The result doesn't depend on how a provider splits its
stream.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

from persona_lab.answer_text.code_fences import CodeFenceTracker
from persona_lab.db.tables import Agent
from persona_lab.responses.changes import Edit
from persona_lab.responses.filter_rules import Subject, read_filter_rules
from persona_lab.responses.filters import Filter, Step
from persona_lab.responses.listed_words import SEPARATOR_CHARACTERS, ListedWords, skeleton
from persona_lab.responses.pii import canonical, find_personal, normalized, plain
from persona_lab.unicode_text import comparable


class Moderator(Protocol):
    """Reviews a whole answer before it is shown. With a moderator, answers don't stream."""

    async def review(self, text: str) -> list[str]:
        """Return the names of the categories that ``text`` violates; none if it may be shown.

        Raises:
            ProviderError: The review failed. The answer isn't shown then.
        """
        ...


BlockReason = Literal["words", "limits", "moderation"]
"""Why an answer was blocked. ``blocked.…`` in ``fallbacks.yaml`` has the texts."""

_MAX_UNIT_LENGTH = 600
"""Characters after which a unit ends at the next space in any case."""
_LOOKBEHIND_LENGTH = 40
"""Characters before a unit that are searched for the meaning of a number in it."""
_SENTENCE_ENDS = "。！？!?\n"
_ABBREVIATION = re.compile(
    r"(?:^|[\s\d])(?:St|Ave|Rd|Blvd|Dr|Ln|Ct|Pl|Sq|Pkwy|Hwy|Apt|Ste|No|Mr|Mrs|Ms|D\.C|[A-Z])\.$"
)
_NAME_CHARACTER = re.compile("[\u4e00-\u9fff々〇ァ-ヶー]")
"""Characters of place names. A unit doesn't end between them."""
_SIGNS = frozenset("@＠〒+＋都道府県市区町村郡0123456789０１２３４５６７８９①②③④⑤⑥⑦⑧⑨")
"""All personal data has one of these characters, except a private key."""
_KEY_BEGINS = re.compile(r"-----BEGIN(?: [A-Z0-9]+)*\Z")
_KEY_OPEN = re.compile(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?!.*-----END [A-Z0-9 ]*KEY-----)", re.S)
_MAX_KEY_LENGTH = 8000


class OutputFilter:
    """Masks personal data and listed words, and blocks answers that aren't allowed.

    Args:
        path: The file of the rules, ``guards.yaml``.
        refusal_text: Returns a persona's text for a blocked answer, by :data:`BlockReason`.
        personal_data: Whether personal data is masked.
        words: Whether listed words are masked and blocked.
        limits: Whether the limits of roles apply.
        moderator: Reviews whole answers.
    """

    def __init__(
        self,
        path: Path,
        refusal_text: Callable[[Agent, BlockReason], str],
        *,
        personal_data: bool = True,
        words: bool = True,
        limits: bool = True,
        moderator: Moderator | None = None,
    ) -> None:
        """Load the rules.

        Raises:
            ConfigurationError: The file is invalid. The message names the file and the entry.
        """
        self.rules = read_filter_rules(path)
        self.refusal_text = refusal_text
        self.moderator = moderator
        self.personal_data = personal_data
        self.words = ListedWords()
        if words:
            by_severity: dict[str, list[str]] = {"mask": [], "block": []}
            for each in self.rules.words:
                by_severity[each.severity] += each.words
            self.words = ListedWords(**by_severity)
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
        """Review a whole answer.

        Args:
            text: The answer.
            agent: The persona that answers.

        Returns:
            The text to show, and the names of the categories that the answer violates.

        Raises:
            ProviderError: The review failed.
        """
        flagged = await self.moderator.review(text) if self.moderator and text else []
        return (self.refusal_text(agent, "moderation") if flagged else text), flagged

    def subjects(self, agent: Agent) -> dict[str, Subject]:
        """Return the subjects on which ``agent`` gives no advice, by the limits of its roles."""
        roles = {comparable(role.name) for role in agent.roles}
        return {
            subject: self.rules.subjects[subject]
            for limit in self._limits
            if roles & set(map(comparable, limit.roles))
            for subject in limit.subjects
        }

    def mask_of(self, kind: str, language: str) -> str:
        """Return the text that replaces an item of ``kind``."""
        both = self.rules.masks[kind]
        return both.en if language == "en" else both.ja


class SafetyFilter(Filter):
    """Filters one answer of ``agent``, unit by unit.

    Args:
        rules: The filter with the rules.
        agent: The persona that answers.
    """

    def __init__(self, rules: OutputFilter, agent: Agent) -> None:
        self._rules = rules
        self._agent = agent
        self._subjects = rules.subjects(agent)
        self._subject_words = {
            word.casefold()
            for subject in self._subjects.values()
            for advice in subject.advice
            for word in advice[0].split("|")
        }
        self._persona_text: str | None = None
        self._fences = CodeFenceTracker()
        self._applied: list[str] = []
        self._held = ""
        self._letters = ""
        """The skeleton of the last characters, as long as the longest listed word."""
        self._has_sign = False
        """Whether the held text has a character that personal data has."""
        self._may_have_words = False
        """Whether the held text may have a listed word."""
        self._before = ""
        self._last_output = ""
        """The last characters of the output."""
        self._read = 0
        """The number of characters before the held text."""
        self._edits: list[Edit] = []

    @property
    def applied(self) -> tuple[str, ...]:
        """The names of the masks, and of the reason of a block."""
        return tuple(dict.fromkeys(self._applied))

    @property
    def pending(self) -> str:
        """The part of the unfinished sentence that no rule can apply to.

        A persona whose role has limits is judged by whole sentences. Until then its sentence may be
        shown up to the first word of such a subject, unless it has a sign of personal data or a
        listed word. Without limits, the held text is a few characters only.
        """
        words = self._rules.words
        if self.ended or self._has_sign or not self._subjects:
            return ""
        if words.ends_unfinished(self._letters) or "-----BEGIN" in self._held:
            return ""
        text = normalized(self._held)[0]
        listed = (words.mask, words.block)
        if any(each and each.search(text) for each in listed):
            return ""
        text = text.casefold()
        if len(text) != len(self._held):  # the positions differ
            return ""
        text = _UNFINISHED_WORD.sub("", text)
        end = min((_find_begun(text, word) for word in self._subject_words), default=len(text))
        return self._held[:end]

    def feed(self, text: str) -> str:
        """Read ``text``, and return the text that is finished."""
        out = ""
        for character in text:
            if self.ended:
                break
            self._held += character
            self._has_sign = self._has_sign or character in _SIGNS
            if character not in SEPARATOR_CHARACTERS:
                letters = self._letters + skeleton(character)
                self._letters = letters[-self._rules.words.longest - 1 :]
            if self._is_unit(character):
                out += self._release()
        return out

    def finish(self) -> str:
        """End the input, and return the rest of the text."""
        return "" if self.ended or not self._held else self._release(finished=True)

    def edits(self, before: str, after: str) -> list[Edit]:
        """Return the edits that turned ``before`` into ``after``."""
        if not self.ended:
            return self._edits
        grown = sum(edit.length - (edit.end - edit.start) for edit in self._edits)
        refused = Edit(self._read, len(before), len(after) - self._read - grown)
        return [*self._edits, refused]

    def _is_unit(self, character: str) -> bool:
        if not plain(character):  # an invisible character ends no unit
            return len(self._held) >= _MAX_UNIT_LENGTH
        latin = character.isascii() or "！" <= character <= "～"
        if latin and not character.isspace() and character not in _SENTENCE_ENDS:
            self._may_have_words = True
            return len(self._held) >= _MAX_KEY_LENGTH
        if "-----BEGIN" in self._held and _KEY_OPEN.search(self._held):
            return len(self._held) >= _MAX_KEY_LENGTH
        if character.isspace() and _KEY_BEGINS.search(self._held[:-1]):
            return False
        long = len(self._held) >= _MAX_UNIT_LENGTH
        if self._rules.words.ends_unfinished(self._letters):
            self._may_have_words = True
            if not long:
                return False
        if _NAME_CHARACTER.match(character):  # 東京 may become 東京都
            return long
        if character in _SENTENCE_ENDS:
            return True
        if long or not (self._has_sign or self._subjects):
            return True
        stopped = character.isspace() and self._held[-2:-1] == "."
        return stopped and not _ABBREVIATION.search(self._held[-7:-1])

    def _release(self, *, finished: bool = False) -> str:
        unit, self._held = self._held, ""
        has_sign, self._has_sign = self._has_sign, False
        may_have_words, self._may_have_words = self._may_have_words, False
        refused = self._refused(unit, may_have_words)
        if refused:
            self.ended, self.blocked = True, refused[0]
            self._applied.append(f"block:{refused[1]}")
            return self._closing_text() + self._rules.refusal_text(self._agent, refused[0])
        out = self._masked(unit, has_sign, may_have_words)
        self._read += len(unit)
        self._before = (self._before + unit)[-_LOOKBEHIND_LENGTH:]
        self._last_output = (self._last_output + out)[-2:]
        self._fences.feed(unit)
        return out

    def _closing_text(self) -> str:
        """Return the text that ends the answer so far: a closing code fence and a blank line."""
        if not self._last_output:
            return ""
        self._fences.end_line()
        lines = len(self._last_output) - len(self._last_output.rstrip("\n"))
        if self._fences.open:
            return ("" if lines else "\n") + self._fences.open + "\n\n"
        return "\n\n"[lines:]

    def _refused(self, unit: str, may_have_words: bool) -> tuple[BlockReason, str] | None:
        words = self._rules.words
        if may_have_words and words.block and words.block.search(normalized(unit)[0]):
            return "words", "words"
        if self._subjects:
            sentence = normalized(unit)[0].casefold()
            for name, subject in self._subjects.items():
                if subject.applies_to(sentence):
                    return "limits", name
        return None

    def _masked(self, unit: str, has_sign: bool, may_have_words: bool) -> str:
        found: list[tuple[int, int, str]] = []
        if self._rules.personal_data and (has_sign or _may_hold_key(unit, may_have_words)):
            text = self._before + unit
            shift = len(self._before)
            for data in find_personal(text, shift):
                if canonical(text[data.start : data.end]) not in self._canonical_persona():
                    found.append((data.start - shift, data.end - shift, data.kind))
        if may_have_words and self._rules.words.mask is not None:
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

    def _canonical_persona(self) -> str:
        """Return the persona's own texts in canonical form. Data in them isn't masked."""
        if self._persona_text is None:
            agent = self._agent
            own = [agent.name, agent.description, agent.background, agent.greeting]
            own += [*agent.catchphrases, *agent.sentence_endings]
            own += [text for example in agent.examples for text in example.values()]
            self._persona_text = "\n".join(map(canonical, own))
        return self._persona_text


def _find_begun(text: str, word: str) -> int:
    """Return where ``word`` is in ``text``, or begins at its end; the length without it."""
    found = text.find(word)
    if found >= 0:
        return found
    lengths = range(min(len(word) - 1, len(text)), 0, -1)
    return len(text) - next((length for length in lengths if text.endswith(word[:length])), 0)


_UNFINISHED_WORD = re.compile(r"[a-zA-Z0-9_'-]+$")


def _may_hold_key(unit: str, has_latin: bool) -> bool:
    """Return whether ``unit`` may have a key without a digit. A digit is a sign already."""
    return "-----BEGIN" in unit or (has_latin and "hf_" in normalized(unit)[0])
