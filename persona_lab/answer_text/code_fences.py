"""Track Markdown code fences in a stream."""

from __future__ import annotations

import re


class CodeFenceTracker:
    """Tracks whether the current line is inside a fenced code block (CommonMark).

    A block in a list item has the item's indentation and ends with the item. Block quotes (``>``)
    count as ordinary lines, since a block in a quote ends with the quote. Lazy continuation lines
    of list items aren't supported.

    Attributes:
        open: The line that would close the block; "" outside a block.
    """

    _FENCE = re.compile(r"(`{3,}|~{3,})(.*)")
    _ITEM = re.compile(r"(?:[-+*]|\d{1,9}[.)])(?= |$)")
    _INDENTED_CODE_COLUMNS = 4
    """From this column on a line is indented code or continues the line before."""

    def __init__(self) -> None:
        self.open = ""
        self._line = ""
        self._items: list[int] = []
        """The columns at which the text of the list items begins, the outermost item first."""

    def feed(self, text: str) -> None:
        """Read more text. It may end within a line."""
        if "\n" not in text:
            self._line += text
            return
        *lines, rest = text.split("\n")
        for line in lines:
            self._line += line
            self.end_line()
        self._line = rest

    def end_line(self) -> None:
        """End the current line, as a line end or the end of the answer does."""
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
            if column < self._start + self._INDENTED_CODE_COLUMNS and self._closes(text):
                self.open = ""
            return
        while column < self._start + self._INDENTED_CODE_COLUMNS and (
            item := self._ITEM.match(text)
        ):
            text = text[item.end() :]
            blanks = len(text) - len(text.lstrip(" "))
            self._items.append(column + item.end() + (blanks if blanks < 5 and text.strip() else 1))
            column += item.end() + blanks
            text = text.lstrip(" ")
        fence = self._FENCE.match(text)
        # Further backticks in the line make it a code span, not a fence.
        if (
            fence is not None
            and column < self._start + self._INDENTED_CODE_COLUMNS
            and (fence[1][0] == "~" or "`" not in fence[2])
        ):
            self.open = " " * self._start + fence[1]

    @property
    def _start(self) -> int:
        """The column at which the innermost item's text begins."""
        return self._items[-1] if self._items else 0

    def _closes(self, text: str) -> bool:
        """Return whether ``text`` is a closing fence, at least as long as the opening fence."""
        fence = self._FENCE.match(text)
        return (
            fence is not None
            and fence[1].startswith(self.open.lstrip(" "))
            and not fence[2].strip(" ")
        )


class CodeSpanTracker:
    """Tracks whether a place is inside a code span (text between backticks).

    A code span ends with its line at the latest.

    Attributes:
        line: The current line.
    """

    _PARTS = re.compile("`+|[^`]+")

    def __init__(self) -> None:
        self.line = ""
        self._open = 0
        self._run = 0

    def feed(self, text: str) -> None:
        """Read more text."""
        *lines, rest = text.split("\n")
        if lines:
            self.line, self._open, self._run = "", 0, 0
        self.line += rest
        for part in self._PARTS.findall(rest):
            if part[0] == "`":
                self._run += len(part)
            else:
                self._open, self._run = self.open, 0

    @property
    def open(self) -> int:
        """The number of backticks that would close the span; 0 outside a span."""
        if not self._run:
            return self._open
        if not self._open:
            return self._run
        return 0 if self._open == self._run else self._open
