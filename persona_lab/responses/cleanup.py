"""Clean an answer: speaker labels, turns of the user, blank lines, open code fences."""

from __future__ import annotations

from persona_lab.db.tables import Agent
from persona_lab.responses.changes import Edit, trim
from persona_lab.responses.code_fences import CodeFenceTracker
from persona_lab.responses.filters import Filter, Step
from persona_lab.responses.speaker_labels import _HEADED, _LED, _MARKED, USER_LABELS, _key, _Labels


class StripSpeakerLabel(Filter):
    """Takes away the persona's own name before its words, however often (``さくら：はい``)."""

    def __init__(self, agent: Agent) -> None:
        self._labels = _Labels([agent.name], {**_HEADED, **_LED})
        self._held = ""
        self._key = ""
        self._labelled = False
        self._through = False

    def feed(self, text: str) -> str:
        if self._through:
            return text
        for position, character in enumerate(text):
            if self._held and not _key(character):
                self._held += character
                continue
            grown = self._grown(character)
            if not self._labels.may_become_one(grown) and self._labels.is_one(self._key):
                self._held, self._key, self._labelled = "", "", True
                grown = self._grown(character)
            if not self._labels.may_become_one(grown):
                self._through = True
                return self._release() + text[position:]
            self._held += character
            self._key = grown
        return ""

    def finish(self) -> str:
        return "" if self._labels.is_one(self._key) else self._release()

    def edits(self, before: str, after: str) -> list[Edit]:
        return [Edit(0, len(before) - len(after), 0)]

    def _grown(self, character: str) -> str:
        return (self._key + _key(character)).lstrip("\n")

    def _release(self) -> str:
        held, self._held, self._key = self._held, "", ""
        return held.lstrip() if self._labelled else held


class StopAtUserTurn(Filter):
    """Ends the answer where a line begins a further turn, the user's or the persona's own.

    Models that continue a transcript write on for both sides. Code is left alone, and so is a first
    line whose label is set off: it explains what a user is, say.
    """

    def __init__(self, agent: Agent) -> None:
        self._labels = _Labels([*USER_LABELS, agent.name], _HEADED)
        self._fences = CodeFenceTracker()
        self._held = ""
        self._key = ""
        self._at_line_start = True
        self._begun = False
        self.consumed: int = 0

    def feed(self, text: str) -> str:
        out = ""
        for character in text:
            if self.ended:
                break
            self.consumed += 1
            if not self._at_line_start:
                out += self._pass(character)
                continue
            self._held += character
            key = _key(character)
            self._key += key
            if not key and not self._fences.open:
                continue
            if self._fences.open or (self._key[:1] in _MARKED and not self._begun):
                out += self._release()
            elif self._labels.is_one(self._key):
                self._held, self.ended = "", True
            elif character == "\n" or not self._labels.may_become_one(self._key):
                out += self._release()
        return out

    def finish(self) -> str:
        if self._labels.is_one(self._key + "\n"):  # its line ends with the answer
            self._held = ""
        held, self._held = self._held, ""
        return held

    def edits(self, before: str, after: str) -> list[Edit]:
        return [Edit(len(after), len(before), 0)]

    def _release(self) -> str:
        held, self._held, self._key = self._held, "", ""
        return self._pass(held)

    def _pass(self, text: str) -> str:
        self._begun |= bool(text.strip())
        self._fences.feed(text)
        self._at_line_start = text.endswith("\n")
        return text


class StripWhitespace(Filter):
    """Takes away white space at both ends."""

    def __init__(self, agent: Agent) -> None:
        self._begun = False
        self._held = ""

    def feed(self, text: str) -> str:
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        text = self._held + text
        kept = text.rstrip()
        self._held = text[len(kept) :]
        return kept

    def edits(self, before: str, after: str) -> list[Edit]:
        start = len(before) - len(before.lstrip())
        edits = [Edit(0, start, 0), Edit(start + len(after), len(before), 0)]
        return [edit for edit in edits if edit.start < edit.end]


class CollapseBlankLines(Filter):
    """Leaves at most one blank line between paragraphs. Code keeps its own."""

    def __init__(self, agent: Agent) -> None:
        self._fences = CodeFenceTracker()
        self._held = ""
        """White space from the first line end on, outside code."""
        self._read = 0
        """Characters before those that are held."""
        self._edits: list[Edit] = []

    def feed(self, text: str) -> str:
        out = ""
        for character in text:
            if self._fences.open:
                self._fences.feed(character)
                if self._fences.open:
                    out += character
                    self._read += 1
                else:  # a closing fence's line end is the first of those to be counted
                    self._held = character
            elif character == "\n" or (self._held and character.isspace()):
                if not self._held:
                    self._fences.feed("\n")
                    if self._fences.open:  # this very line end opened the block
                        out += character
                        self._read += 1
                        continue
                self._held += character
            else:
                out += self.finish() + character
                self._read += 1
                self._fences.feed(character)
        return out

    def finish(self) -> str:
        held, self._held = self._held, ""
        lines = held.split("\n")
        out = "\n" * min(len(lines) - 1, 2) + lines[-1]
        self._fences.feed(lines[-1])
        if out != held:
            self._edits.append(trim(self._read, held, out))
        self._read += len(held)
        return out

    def edits(self, before: str, after: str) -> list[Edit]:
        return self._edits


class CloseCodeFence(Filter):
    """Closes a block of code that the answer left open."""

    def __init__(self, agent: Agent) -> None:
        self._fences = CodeFenceTracker()
        self._last = ""

    def feed(self, text: str) -> str:
        self._fences.feed(text)
        self._last = text[-1:] or self._last
        return text

    def finish(self) -> str:
        self._fences.end_line()
        if not self._fences.open:
            return ""
        return ("" if self._last == "\n" else "\n") + self._fences.open


STEPS = (
    Step("leading_name", StripSpeakerLabel),
    Step("spoken_for_user", StopAtUserTurn),
    Step("strip", StripWhitespace, data=True),
    Step("blank_lines", CollapseBlankLines),
)
"""What every answer goes through first."""
LAST_STEPS = (Step("close_fence", CloseCodeFence),)
"""What closes every answer, after tone and safety."""
