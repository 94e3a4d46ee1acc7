"""Clean an answer: speaker labels, turns of the user, white space, open code fences."""

from __future__ import annotations

from persona_lab.db.tables import Agent
from persona_lab.responses.changes import Edit, trim
from persona_lab.responses.code_fences import CodeFenceTracker
from persona_lab.responses.filters import Filter, Step
from persona_lab.responses.speaker_labels import (
    BRACKET_FRAMES,
    HEADER_FRAMES,
    MARKUP_CHARACTERS,
    USER_LABELS,
    SpeakerLabels,
    comparison_key,
)


class StripSpeakerLabel(Filter):
    """Removes the persona's name at the start of an answer, once or repeated (``さくら：はい``)."""

    def __init__(self, agent: Agent) -> None:
        self._labels = SpeakerLabels([agent.name], {**HEADER_FRAMES, **BRACKET_FRAMES})
        self._held = ""
        self._key = ""
        self._labelled = False
        self._done = False

    def feed(self, text: str) -> str:
        """Read ``text``, and return the text that is finished."""
        if self._done:
            return text
        for position, character in enumerate(text):
            if self._held and not comparison_key(character):
                self._held += character
                continue
            grown = self._key_with(character)
            if not self._labels.may_become_label(grown) and self._labels.is_label(self._key):
                self._held, self._key, self._labelled = "", "", True
                grown = self._key_with(character)
            if not self._labels.may_become_label(grown):
                self._done = True
                return self._release() + text[position:]
            self._held += character
            self._key = grown
        return ""

    def finish(self) -> str:
        """End the input, and return the held text unless it is a label."""
        return "" if self._labels.is_label(self._key) else self._release()

    def edits(self, before: str, after: str) -> list[Edit]:
        """Return the one edit: the removal of the labels."""
        return [Edit(0, len(before) - len(after), 0)]

    def _key_with(self, character: str) -> str:
        return (self._key + comparison_key(character)).lstrip("\n")

    def _release(self) -> str:
        held, self._held, self._key = self._held, "", ""
        return held.lstrip() if self._labelled else held


class StopAtUserTurn(Filter):
    """Ends the answer at a line that begins another turn, of the user or the persona.

    Models that continue a transcript write turns of both sides. Code isn't searched. A first line
    with a marked-up label stays: it may be a heading, for example of a text about users.
    """

    def __init__(self, agent: Agent) -> None:
        self._labels = SpeakerLabels([*USER_LABELS, agent.name], HEADER_FRAMES)
        self._fences = CodeFenceTracker()
        self._held = ""
        self._key = ""
        self._at_line_start = True
        self._begun = False
        self.consumed: int = 0

    def feed(self, text: str) -> str:
        """Read ``text``, and return the text that is finished."""
        out = ""
        for character in text:
            if self.ended:
                break
            self.consumed += 1
            if not self._at_line_start:
                out += self._pass(character)
                continue
            self._held += character
            key = comparison_key(character)
            self._key += key
            if not key and not self._fences.open:
                continue
            if self._fences.open or (self._key[:1] in MARKUP_CHARACTERS and not self._begun):
                out += self._release()
            elif self._labels.is_label(self._key):
                self._held, self.ended = "", True
            elif character == "\n" or not self._labels.may_become_label(self._key):
                out += self._release()
        return out

    def finish(self) -> str:
        """End the input, and return the rest of the text."""
        if self._labels.is_label(self._key + "\n"):  # the end of the answer ends the line
            self._held = ""
        held, self._held = self._held, ""
        return held

    def edits(self, before: str, after: str) -> list[Edit]:
        """Return the one edit: the removal of the text after the answer."""
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
    """Removes white space at both ends."""

    def __init__(self, agent: Agent) -> None:
        self._begun = False
        self._held = ""

    def feed(self, text: str) -> str:
        """Read ``text``, and return the text that is finished."""
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        text = self._held + text
        kept = text.rstrip()
        self._held = text[len(kept) :]
        return kept

    def edits(self, before: str, after: str) -> list[Edit]:
        """Return the removals at both ends."""
        start = len(before) - len(before.lstrip())
        edits = [Edit(0, start, 0), Edit(start + len(after), len(before), 0)]
        return [edit for edit in edits if edit.start < edit.end]


class CollapseBlankLines(Filter):
    """Reduces several blank lines between paragraphs to one. Code stays as it is."""

    def __init__(self, agent: Agent) -> None:
        self._fences = CodeFenceTracker()
        self._held = ""
        """White space from the first line end on, outside code."""
        self._read = 0
        """The number of characters before the held text."""
        self._edits: list[Edit] = []

    def feed(self, text: str) -> str:
        """Read ``text``, and return the text that is finished."""
        out = ""
        for character in text:
            if self._fences.open:
                self._fences.feed(character)
                if self._fences.open:
                    out += character
                    self._read += 1
                else:  # the line end of a closing fence is the first one to count
                    self._held = character
            elif character == "\n" or (self._held and character.isspace()):
                if not self._held:
                    self._fences.feed("\n")
                    if self._fences.open:  # this line end opened the block
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
        """End the input, and return the rest of the text."""
        held, self._held = self._held, ""
        lines = held.split("\n")
        out = "\n" * min(len(lines) - 1, 2) + lines[-1]
        self._fences.feed(lines[-1])
        if out != held:
            self._edits.append(trim(self._read, held, out))
        self._read += len(held)
        return out

    def edits(self, before: str, after: str) -> list[Edit]:
        """Return the edits that turned ``before`` into ``after``."""
        return self._edits


class CloseCodeFence(Filter):
    """Closes a code block that the answer left open."""

    def __init__(self, agent: Agent) -> None:
        self._fences = CodeFenceTracker()
        self._last = ""

    def feed(self, text: str) -> str:
        """Read ``text``, and return the text that is finished."""
        self._fences.feed(text)
        self._last = text[-1:] or self._last
        return text

    def finish(self) -> str:
        """Return the closing fence of an open block."""
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
"""The first steps of each answer."""
LAST_STEPS = (Step("close_fence", CloseCodeFence),)
"""The last steps of each answer, after safety and tone."""
