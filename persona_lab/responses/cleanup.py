"""Clean an answer: white space, blank lines, open code fences; and the first and last steps."""

from __future__ import annotations

from persona_lab.answer_text.code_fences import CodeFenceTracker
from persona_lab.answer_text.speaker_labels import (
    BRACKET_FRAMES,
    HEADER_FRAMES,
    SpeakerLabels,
    comparison_key,
    continues_sentence,
)
from persona_lab.db.tables import Agent
from persona_lab.responses.changes import Edit, trim
from persona_lab.responses.filters import Filter, Step
from persona_lab.responses.model_markup import StripModelMarkup
from persona_lab.responses.user_turns import StopAtUserTurn


class StripSpeakerLabel(Filter):
    """Removes the persona's name at the start of an answer, once or repeated (``さくら：はい``).

    A name in 【】 without a colon may also be the subject of the sentence (``【さくら】の花``).
    """

    def __init__(self, agent: Agent) -> None:
        self._labels = SpeakerLabels([agent.name], {**HEADER_FRAMES, **BRACKET_FRAMES})
        self._held = ""
        self._key = ""
        self._after: str | None = None
        """The text after a label without a colon, until it is clear that it is a label."""
        self._labelled = False
        self._done = False

    def feed(self, text: str) -> str:
        """Read ``text``, and return the text that is finished."""
        if self._done:
            return text
        for position, character in enumerate(text):
            out = self._read(character)
            if self._done:
                return out + text[position + 1 :]
        return ""

    def finish(self) -> str:
        """End the input, and return the held text unless it is a label."""
        if self._after is not None:
            return self._judge(self._after, ended=True) + ("" if self._done else self.finish())
        return "" if self._labels.is_label(self._key) and self._key[-1] != "】" else self._release()

    def edits(self, before: str, after: str) -> list[Edit]:
        """Return the one edit: the removal of the labels."""
        return [Edit(0, len(before) - len(after), 0)]

    def _read(self, character: str) -> str:
        """Read one character. Return "" until the beginning of the answer is known."""
        if self._after is not None:
            return self._judge(self._after + character)
        if self._held and not comparison_key(character):
            self._held += character
            return ""
        grown = self._key_with(character)
        if not self._labels.may_become_label(grown) and self._labels.is_label(self._key):
            if self._key.endswith("】"):
                return self._judge(character)
            self._held, self._key, self._labelled = "", "", True
            grown = self._key_with(character)
        self._held += character
        if not self._labels.may_become_label(grown):
            return self._release()
        self._key = grown
        return ""

    def _judge(self, after: str, *, ended: bool = False) -> str:
        """Judge whether the held name is a label by the text after it."""
        continued = continues_sentence(after, ended=ended)
        if continued is None:
            self._after = after
            return ""
        self._after = None
        if continued:
            self._held += after
            return self._release()
        self._held, self._key, self._labelled = "", "", True
        out = ""
        for character in after:
            out += character if self._done else self._read(character)
        return out

    def _key_with(self, character: str) -> str:
        return (self._key + comparison_key(character)).lstrip("\n")

    def _release(self) -> str:
        self._done = True
        held, self._held, self._key = self._held, "", ""
        return held.lstrip() if self._labelled else held


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
    Step("model_markup", StripModelMarkup, data=True),
    Step("leading_name", StripSpeakerLabel),
    Step("spoken_for_user", StopAtUserTurn),
    Step("strip", StripWhitespace, data=True),
    Step("blank_lines", CollapseBlankLines),
)
"""The first steps of each answer."""
LAST_STEPS = (Step("close_fence", CloseCodeFence),)
"""The last steps of each answer, after safety and tone."""
