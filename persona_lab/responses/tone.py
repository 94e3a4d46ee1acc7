"""Rewrite Japanese answers in the tone of the persona.

``templates/tones.yaml`` lists the tones: the names of a persona's tones that choose each of them,
and the rules that rewrite a sentence. Only speech is rewritten, see
:mod:`persona_lab.answer_text.passages`. The unit is the sentence: a stream holds back the
unfinished sentence, and a sentence of which it isn't known yet whether it is narration. A sentence
that is in the tone already stays unchanged. So do names and text that isn't Japanese.

SudachiPy is imported for the first Japanese sentence of a persona with a tone, not before.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from persona_lab.answer_text.passages import SENTENCE_MARKS, Kind, Passage, PassageParser
from persona_lab.db.tables import Agent
from persona_lab.errors import TemplateError
from persona_lab.japanese.rewrite import Rule, Rules, WordPattern
from persona_lab.responses.changes import Edit, trim
from persona_lab.responses.filters import Filter, Step
from persona_lab.unicode_text import comparable, has_japanese
from persona_lab.yaml_config import NonEmptyText, StrictModel, load

_MAX_DOUBTFUL_LENGTH = 400
"""Characters that wait at most until it is known whether they are speech or narration."""
_PLACEHOLDERS = ("ending",)


class Tone(StrictModel):
    """A tone and its rules. ``base`` is applied first; the rules expect sentences in that form."""

    name: NonEmptyText
    words: Annotated[tuple[NonEmptyText, ...], Field(min_length=1)]
    """Names of a persona's tones that choose this tone."""
    base: Literal["polite", "plain", "casual", "as it is"] = "as it is"
    enabled: bool = True
    already_matches: tuple[NonEmptyText, ...] = ()
    """Ends of sentences that are in the tone already."""
    leaves: tuple[Annotated[tuple[WordPattern, ...], Field(min_length=1)], ...] = ()
    """Consecutive words of sentences that stay as they are, for example of a dialect."""
    rules: tuple[Rule, ...] = ()
    examples: dict[NonEmptyText, NonEmptyText] = Field(default_factory=dict)
    """Sentences and their rewritten forms. The tests check the rules with them."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_old_keys(cls, value: Any) -> Any:
        if isinstance(value, dict) and "settled" in value:
            raise ValueError('"settled" is now "already_matches"')
        return value

    @model_validator(mode="after")
    def _does_something(self) -> Tone:
        if self.base == "as it is" and not self.rules:
            raise ValueError("has neither a base nor rules")
        return self

    @model_validator(mode="after")
    def _placeholders_exist(self) -> Tone:
        for number, rule in enumerate(self.rules, 1):
            for name in rule.placeholders:
                if not name.partition(".")[0].isdigit() and name not in _PLACEHOLDERS:
                    raise ValueError(f"rule {number}: replacement: there is no {{{name}}}")
        return self

    @cached_property
    def takes_ending(self) -> bool:
        """Whether a rule uses a sentence ending of the persona."""
        return any("ending" in rule.placeholders for rule in self.rules)

    @cached_property
    def _compiled_rules(self) -> Rules:
        return Rules(self.rules)

    @cached_property
    def _compiled_leaves(self) -> Rules:
        return Rules([Rule(pattern=patterns, replacement="") for patterns in self.leaves])

    def apply(self, sentence: str, *, keep: Sequence[str] = (), endings: Sequence[str] = ()) -> str:
        """Return ``sentence`` in this tone. The rewriting is idempotent.

        If a second pass would change the result again, the rules don't fit the sentence, and it
        stays unchanged.

        Args:
            sentence: A sentence with its punctuation.
            keep: Names and catchphrases that must stay unchanged.
            endings: The persona's sentence endings. The rules use the first.
        """
        if not has_japanese(sentence) or (self.takes_ending and not endings):
            return sentence
        rewritten = self._rewrite_once(sentence, keep, endings)
        if rewritten == sentence or self._rewrite_once(rewritten, keep, endings) == rewritten:
            return rewritten
        return sentence

    def _rewrite_once(self, sentence: str, keep: Sequence[str], endings: Sequence[str]) -> str:
        from persona_lab.japanese import to_casual, to_plain, to_polite
        from persona_lab.japanese.morphology import words_of
        from persona_lab.japanese.rewrite import applies, rewrite

        endings_in_tone = (*self.already_matches, *(endings if self.takes_ending else ()))
        if sentence.rstrip(SENTENCE_MARKS + "」』）) 　\n♪～").endswith(endings_in_tone):
            return sentence
        text = sentence
        if self.base == "polite":
            text = to_polite(sentence, keep=keep)
        elif self.base == "plain":
            text = to_plain(sentence, keep=keep)
        elif self.base == "casual" and to_plain(sentence, keep=keep) != sentence:
            text = to_casual(sentence, keep=keep)
        if not self.rules:
            return text
        words = words_of(text, keep)
        if applies(words, self._compiled_leaves):
            return sentence
        placeholders = {"ending": endings[0] if endings else ""}
        return rewrite(words, self._compiled_rules, placeholders)


class _File(StrictModel):
    tones: tuple[Tone, ...]


class Tones:
    """The tones of ``tones.yaml``, and the choice of one for a persona."""

    def __init__(self, path: Path) -> None:
        """Load the tones.

        Raises:
            TemplateError: The file is invalid. The message names the file, the tone and the rule.
        """
        self.tones = load(path, _File, error_class=TemplateError).tones

    def of(self, agent: Agent) -> Tone | None:
        """Return the tone for the first tone of the persona that has one; None without one.

        Only personas that answer in Japanese have a tone.
        """
        if agent.language != "ja":
            return None
        for agent_tone in agent.tones:
            for tone in self.tones:
                if comparable(agent_tone.name) in map(comparable, tone.words):
                    return tone if tone.enabled else None
        return None

    @property
    def step(self) -> Step:
        """The step of a :class:`~persona_lab.responses.processor.ResponseProcessor`."""

        def opened(agent: Agent) -> Filter:
            tone = self.of(agent)
            return Filter() if tone is None else ToneFilter(tone, agent)

        return Step("tone", opened, shows_pending=True)


class ToneFilter(Filter):
    """Rewrites an answer in ``tone``, sentence by sentence."""

    def __init__(self, tone: Tone, agent: Agent) -> None:
        self._tone = tone
        self._keep = [name for name in (agent.name, *agent.catchphrases) if name.strip()]
        self._endings = [ending for ending in agent.sentence_endings if ending.strip()]
        self._parser = PassageParser(agent.name)
        self._waiting: list[Passage] = []
        """Passages from the first on that is speech or narration: a later line may tell."""
        self._read = 0
        """The number of characters of the released passages."""
        self._edits: list[Edit] = []

    @property
    def applied(self) -> tuple[str, ...]:
        """The name of the tone."""
        return (f"tone:{self._tone.name}",)

    @property
    def pending(self) -> str:
        """The unfinished sentence, and sentences that may be narration."""
        return "".join(passage.text for passage in self._waiting) + self._parser.pending

    def feed(self, text: str) -> str:
        """Read ``text``, and return the text that is finished."""
        return "".join(
            self._take(passage) for character in text for passage in self._parser.feed(character)
        )

    def finish(self) -> str:
        """End the input, and return the last sentences."""
        last = "".join(map(self._take, self._parser.finish()))
        return last + self._release()

    def edits(self, before: str, after: str) -> list[Edit]:
        """Return the edits that turned ``before`` into ``after``."""
        return self._edits

    def _take(self, passage: Passage) -> str:
        """Return the text that ``passage`` finishes.

        A sentence that may be narration waits until the next sign of speech or of narration, if
        the tone would change it.
        """
        narrative = self._parser.narrative
        doubtful = passage.doubtful and not narrative
        if not self._waiting and not (doubtful and self._rewritten(passage) != passage.text):
            return self._write(passage)
        self._waiting.append(passage)
        length = sum(len(waiting.text) for waiting in self._waiting)
        if narrative or (passage.is_said and not doubtful) or length > _MAX_DOUBTFUL_LENGTH:
            return self._release()
        return ""

    def _release(self) -> str:
        waiting, self._waiting = self._waiting, []
        return "".join(map(self._write, waiting))

    def _write(self, passage: Passage) -> str:
        text = passage.text
        start = self._read
        self._read += len(text)
        if passage.kind is not Kind.SPEECH or (passage.doubtful and self._parser.narrative):
            return text
        rewritten = self._rewritten(passage)
        if rewritten != text:
            self._edits.append(trim(start, text, rewritten))
        return rewritten

    def _rewritten(self, passage: Passage) -> str:
        return self._tone.apply(passage.text, keep=self._keep, endings=self._endings)
