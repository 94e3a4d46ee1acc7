"""Track Markdown code fences in a stream."""

from __future__ import annotations

import re


class CodeFenceTracker:
    """Knows whether the line at hand stands inside a fenced block of code (CommonMark).

    A block in a list belongs to its item: it is indented as that is, and ends with it. Quotations
    (``>``) end by themselves, what is fenced in them with them: they are lines as any others.
    Not followed: a line that goes on with an item's words without being indented.
    """

    _FENCE = re.compile(r"(`{3,}|~{3,})(.*)")
    _ITEM = re.compile(r"(?:[-+*]|\d{1,9}[.)])(?= |$)")
    _INDENTED = 4
    """Columns from which on a line is code without a fence, or goes on with what was before."""

    def __init__(self) -> None:
        self.open = ""
        """The line that would close the block; "" outside."""
        self._line = ""
        self._items: list[int] = []
        """At which columns the text of the list's items begins, the outermost first."""

    def feed(self, text: str) -> None:
        if "\n" not in text:
            self._line += text
            return
        *lines, rest = text.split("\n")
        for line in lines:
            self._line += line
            self.end_line()
        self._line = rest

    def end_line(self) -> None:
        line, self._line = self._line.rstrip("\r").expandtabs(4), ""
        text = line.lstrip(" ")
        column = len(line) - len(text)
        if not text:
            return
        while self._items and column < self._items[-1]:
            self._items.pop()
            if len(self.open) - len(self.open.lstrip(" ")) > self._start:
                self.open = ""
        if self.open:
            if column < self._start + self._INDENTED and self._closes(text):
                self.open = ""
            return
        while column < self._start + self._INDENTED and (item := self._ITEM.match(text)):
            text = text[item.end() :]
            blanks = len(text) - len(text.lstrip(" "))
            self._items.append(column + item.end() + (blanks if blanks < 5 and text.strip() else 1))
            column += item.end() + blanks
            text = text.lstrip(" ")
        fence = self._FENCE.match(text)
        # Backticks after the opening ones make it code within a line.
        if (
            fence is not None
            and column < self._start + self._INDENTED
            and (fence[1][0] == "~" or "`" not in fence[2])
        ):
            self.open = " " * self._start + fence[1]

    @property
    def _start(self) -> int:
        """The column at which the innermost item's text begins."""
        return self._items[-1] if self._items else 0

    def _closes(self, text: str) -> bool:
        """Whether it is marks of the same kind alone, as many as the opening ones at least."""
        fence = self._FENCE.match(text)
        return (
            fence is not None
            and fence[1].startswith(self.open.lstrip(" "))
            and not fence[2].strip(" ")
        )
