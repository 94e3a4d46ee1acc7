"""End an answer where the model continues the conversation in the user's name.

Models that continue a transcript write turns of both sides. But lists, configurations and plays
have lines that look like such a turn (``ユーザー：見るだけ``, ``User: deploy``). So a line counts
as a turn only if all of this holds:

- Text of the answer stands before it, and that text doesn't introduce an example or a list. An
  answer that is only one line of the user is a turn, too.
- The line begins with a label. It isn't code, a list item, a quotation or part of a table.
- More of the conversation follows: a turn of the persona, or of the user once more. At the end of
  the answer the user's words are enough if no other line has a label.

The text from the label on is held back until this is decided, for at most :data:`MAX_HELD_LENGTH`
characters. In doubt the text stays.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from persona_lab.answer_text.code_fences import CodeFenceTracker
from persona_lab.answer_text.speaker_labels import (
    ASSISTANT_LABELS,
    HEADER_FRAMES,
    LIST_FRAMES,
    USER_LABELS,
    SpeakerLabels,
    comparison_key,
    continues_sentence,
)
from persona_lab.db.tables import Agent
from persona_lab.responses.changes import Edit
from persona_lab.responses.filters import Filter

MAX_HELD_LENGTH = 600
"""Most characters that are held back after a label."""
MAX_HELD_LINES = 4
"""Most lines of text that the turn of a user has after its first line."""

Kind = Literal["", "text", "label", "own", "item", "code"]

_ITEM = re.compile(r"\s*(?:[-+*•‣◦・]|\d{1,3}[.)．、])\s|\s*[|>・]")
"""The begin of a list item, a table row or a quotation."""
_HEADING = re.compile(r"\s{0,3}#{1,6}\s")
_INDENTED = re.compile(r"(?: {2}| *\t)")
_OTHER_LABEL = re.compile(
    r"[\s*_#【\[「『]*"
    r"(?=[^:：]*[^\W\d_])[^\s:：。、！？!?「」『』*_]{1,16}(?: [^\s:：。、！？!?「」『』*_]{1,16})?"
    r"[*_】\]」』]*\s*[:：](?!//)"
)
"""A label of any name at the begin of a line."""
_SETTING = re.compile(
    r"[\w./@:+$%~-]+[;,]?|[\"'].*[\"'][;,]?|[{\[(<&*!|$%].*|.*[{;,]", re.ASCII | re.DOTALL
)
"""The value of a setting: one word, a quoted text or code."""
_INTRODUCTION = re.compile(
    r"[:：]\s*$|以下|下記|次の(?:よう|とお|通|会話|対話|例|[一二三四五六七八九0-9])|^\s*(?:例え|たとえ)ば.{0,20}$"
    r"|例(?:です|だ[よね。]|を|は|】|」|）|\)|[。\s*]*$)|サンプル|テンプレ|フォーマット|台本|脚本|スクリプト"
    r"|(?:会話|対話|セリフ|台詞|やりとり|やり取り|シーン|場面)(?:文|例|案|ログ)?"
    r"(?:は|です|だ[よね。]|を(?:書|作|示|考|お見せ|紹介)|[。\s*]*$)"
    r"|こんな(?:感じ|ふう|風|会話|やり)|(?:書いて|作って|演じて|再現して)み|書きま|作りま"
    r"|\b(?:examples?|sample|script|dialogues?|transcript|below|follow(?:s|ing)|template"
    r"|here(?:'s|’s| is| are))\b",
    re.IGNORECASE,
)
"""Text that introduces an example, a play or a form."""
_LIST_INTRODUCTION = re.compile(
    r"(?:設定|役割|権限|手順|流れ|一覧|関係|種類|分担|項目|内容|情報|構成|内訳)"
    r"(?:は|です|だ[よね。]|を(?:書|作|示|まと|整理|紹介)|[。\s*]*$)|分かれ|分け|まとめ"
    r"|\b(?:roles?|settings?|config(?:uration)?|permissions?|steps?)\b",
    re.IGNORECASE,
)
"""Text that may introduce settings or a list of persons."""
_SENTENCE = re.compile(r"(?<=[。！？!?])[」』）)]*(?=.)|(?<=[.]) ")
"""A place between two sentences."""
_SPEECH = ("「", "『", "（", "(", "“")
"""First characters of a line of a play: its speech or a stage direction."""
_AROUND_LABEL = "*_#【】[]「」『』:"
_NARRATION = re.compile(r"\s*(?:[（(].*[）)]|\*[^*].*\*|[-―—=*_~・…\s]*)\s*")
"""A stage direction, or a line without words."""


@dataclass(slots=True)
class _Before:
    """What the answer has before the current line.

    Attributes:
        kind: The kind of the last line with text.
        line: That line.
        blank: Whether blank lines follow it.
        begun: Whether the answer has words.
        spoke: Whether the answer has words besides stage directions.
        scripted: Whether the answer has lines of other speakers, or settings.
        own_in_script: Whether the persona is one of these speakers.
        quoted: Number of quotations that are open in the paragraph.
    """

    kind: Kind = ""
    line: str = ""
    blank: bool = False
    begun: bool = False
    spoke: bool = False
    scripted: bool = False
    own_in_script: bool = False
    quoted: int = 0


@dataclass(slots=True)
class _Candidate:
    """A line that may be the begin of a turn.

    Attributes:
        user: Whether it is the user's turn, and not the persona's.
        label: The comparison key of the label.
        heading: Whether the label is a heading without a colon.
        listed: Whether the line before may introduce a list.
        line: The rest of the current line.
        key: The comparison key of the current line.
        words: The words after the label in its line.
        lines: Number of the lines that ended, including the label's.
        texts: Number of the lines with text after the label's.
    """

    user: bool
    label: str
    heading: bool
    listed: bool
    line: str = ""
    key: str = ""
    words: str = ""
    lines: int = 0
    texts: int = 0


class StopAtUserTurn(Filter):
    """Ends the answer at a line that begins another turn, of the user or the persona."""

    def __init__(self, agent: Agent) -> None:
        own = [agent.name, *ASSISTANT_LABELS]
        self._user = SpeakerLabels(USER_LABELS, {**LIST_FRAMES, **HEADER_FRAMES})
        self._own = SpeakerLabels([agent.name], {**LIST_FRAMES, **HEADER_FRAMES})
        self._user_turn = SpeakerLabels(USER_LABELS, HEADER_FRAMES)
        self._own_turn = SpeakerLabels(own, HEADER_FRAMES)
        self._fences = CodeFenceTracker()
        self._before = _Before()
        self._line = ""
        """The part of the current line that was returned."""
        self._held = ""
        self._key = ""
        self._candidate: _Candidate | None = None
        self._at_line_start = True
        self.consumed: int = 0

    def feed(self, text: str) -> str:
        """Read ``text``, and return the text that is finished."""
        out = ""
        for character in text:
            if self.ended:
                break
            self.consumed += 1
            out += self._read(character)
        return out

    def finish(self) -> str:
        """End the input, and return the rest of the text."""
        if self.ended or not self._held:
            return ""
        if self._candidate is None:
            key = self._key + "\n"  # the end of the answer ends the line
            turn = self._user_turn.is_label(key) or self._own_turn.is_label(key)
            if turn and self._candidate_of(key) is not None:
                self._held = ""
        elif self._ends_the_answer(self._candidate):
            self._held = ""
        held, self._held = self._held, ""
        return held

    def edits(self, before: str, after: str) -> list[Edit]:
        """Return the one edit: the removal of the text after the answer."""
        return [Edit(len(after), len(before), 0)]

    def _read(self, character: str) -> str:
        if self._candidate is not None:
            self._held += character
            return self._read_candidate(self._candidate, character)
        if not self._at_line_start:
            return self._pass(character)
        self._held += character
        key = comparison_key(character)
        self._key += key
        if self._fences.open:
            return self._release()
        if not key:
            return ""
        if self._user.is_label(self._key) or self._own.is_label(self._key):
            self._candidate = self._candidate_of(self._key)
            return "" if self._candidate else self._release()
        if character == "\n" or not (
            self._user.may_become_label(self._key) or self._own.may_become_label(self._key)
        ):
            return self._release()
        return ""

    def _candidate_of(self, key: str) -> _Candidate | None:
        """Return the candidate of the held line, whose label is ``key``; None if it isn't one."""
        before = self._before
        user = self._user.is_label(key)
        item = _ITEM.match(self._held) is not None
        if (
            not (user or before.spoke)
            or not (before.begun or key[0].isalpha())
            or before.quoted
            or before.own_in_script
            or _INDENTED.match(self._held)
            or _INTRODUCTION.search(_last_sentence(before.line))
            or (before.kind in ("label", "item") and item)
            or (before.kind == "label" and not before.blank)
            or (not user and (item or before.scripted or before.kind != "text"))
        ):
            return None
        heading = key.endswith("\n")
        listed = _LIST_INTRODUCTION.search(_last_sentence(before.line)) is not None
        return _Candidate(user, key, heading, listed, lines=int(heading))

    def _read_candidate(self, candidate: _Candidate, character: str) -> str:
        """Read one more character of a possible turn, and decide as soon as possible."""
        if character == "\n" and candidate.lines == 0:
            candidate.words, candidate.line, candidate.lines = candidate.line, "", 1
            spoken = not candidate.user and candidate.words.lstrip()[:1] in _SPEECH
            return self._release() if spoken else ""
        candidate.line += character
        if candidate.lines == 0:
            return self._release() if len(self._held) > MAX_HELD_LENGTH else ""
        candidate.key += comparison_key(character)
        if self._follows(candidate):
            if not self._before.begun:
                return self._release()
            self._held, self.ended = "", True
            return ""
        if character == "\n":
            line, candidate.line, candidate.key = candidate.line, "", ""
            candidate.lines += 1
            if not self._may_follow(candidate, line):
                return self._release()
        elif not candidate.user and candidate.key and not self._may_label(candidate.key):
            return self._release()
        return self._release() if len(self._held) > MAX_HELD_LENGTH else ""

    def _may_label(self, key: str) -> bool:
        return self._user_turn.may_become_label(key) or self._own_turn.may_become_label(key)

    def _follows(self, candidate: _Candidate) -> bool:
        """Return whether the current line is a turn that follows the candidate."""
        if not candidate.key or _INDENTED.match(candidate.line) or _ITEM.match(candidate.line):
            return False
        if self._own.is_label(candidate.key):
            return True
        if self._own_turn.is_label(candidate.key):
            return not candidate.listed
        return (
            candidate.user
            and candidate.key == candidate.label
            and not _SETTING.fullmatch(candidate.words.strip())
        )

    def _may_follow(self, candidate: _Candidate, line: str) -> bool:
        """Return whether the candidate can still be a turn after the complete ``line``."""
        if not line.strip():
            return True
        candidate.texts += 1
        return (
            candidate.user
            and candidate.texts <= MAX_HELD_LINES
            and not _OTHER_LABEL.match(line)
            and not _HEADING.match(line)
            and not line.lstrip().startswith(("```", "~~~"))
            and not (candidate.texts == 1 and not candidate.words.strip() and _starts_block(line))
            and not (_ITEM.match(self._held) and _ITEM.match(line))
        )

    def _ends_the_answer(self, candidate: _Candidate) -> bool:
        """Return whether the answer ends with the candidate's turn. It is its last line."""
        words = (candidate.words if candidate.lines else candidate.line).strip()
        if candidate.texts or (candidate.lines and candidate.line.strip()):
            return False
        before = self._before
        if _ITEM.match(self._held) or not (
            before.kind in ("", "text", "own") or (before.kind in ("item", "code") and before.blank)
        ):
            return False
        if not words.strip("*_ "):
            return True
        return (
            candidate.user
            and not candidate.heading
            and not candidate.listed
            and not before.scripted
            and candidate.label[0].isalpha()
            and not _SETTING.fullmatch(words)
            and not continues_sentence(words, ended=True)
        )

    def _release(self) -> str:
        """Return the held line, and read the lines after it once more."""
        held, self._held, self._key, self._candidate = self._held, "", "", None
        line, newline, rest = held.partition("\n")
        out = [self._pass(line + newline)]
        out += map(self._read, rest)
        return "".join(out)

    def _pass(self, text: str) -> str:
        self._line += text
        self._fences.feed(text)
        self._at_line_start = text.endswith("\n")
        if self._at_line_start:
            line, self._line = self._line, ""
            self._note(line)
        return text

    def _note(self, line: str) -> None:
        """Remember what the complete ``line`` tells about the lines after it."""
        before = self._before
        if not line.strip():
            before.blank, before.quoted = True, 0
            return
        label = _OTHER_LABEL.match(line)
        name = "".join(map(comparison_key, label[0])).strip(_AROUND_LABEL) if label else ""
        if self._fences.open or line.lstrip().startswith(("```", "~~~")):
            before.kind = "code"
        elif _ITEM.match(line):
            before.kind = "item"
        elif label and self._own_turn.is_label(f"{name}:"):
            before.own_in_script |= before.scripted
            before.kind = "own"
        elif label:
            before.scripted |= before.kind == "label" or self._user_turn.is_label(f"{name}:")
            before.kind = "label"
        else:
            before.kind = "text"
        before.begun = before.begun or any(map(str.isalnum, line))
        before.spoke = before.spoke or not _NARRATION.fullmatch(line)
        before.line, before.blank = line, False
        opened = sum(map(line.count, "「『“")) - sum(map(line.count, "」』”"))
        before.quoted = max(0, before.quoted + opened)


def _starts_block(line: str) -> bool:
    """Return whether ``line`` begins the value of a setting, such as a nested list."""
    return bool(_INDENTED.match(line) or _ITEM.match(line))


def _last_sentence(line: str) -> str:
    """Return the last sentence of ``line``."""
    return _SENTENCE.split(line.strip())[-1]
