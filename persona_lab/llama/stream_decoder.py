"""Decode the bytes of tokens to text that can be shown at once.

A token may end inside a character (emoji, rare kanji), and a stop string may extend over several
tokens. Text that could still become part of either is held back until that is decided.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable


class StreamDecoder:
    """An incremental decoder. ``stopped`` is true once a stop string was found."""

    def __init__(self, stop: Iterable[str] = ()) -> None:
        self.stopped = False
        self._stop = tuple(s for s in stop if s)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._pending = ""

    def feed(self, data: bytes, *, final: bool = False) -> str:
        """Add bytes; return the text that later bytes can't change.

        Args:
            data: The bytes of a token.
            final: Whether no more bytes follow.
        """
        if self.stopped:
            return ""
        # An incomplete character at the end is dropped: it can't be shown.
        text = self._pending + self._decoder.decode(data)
        found = [at for s in self._stop if (at := text.find(s)) >= 0]
        if found:
            self.stopped = True
            self._pending = ""
            return text[: min(found)]
        keep = 0 if final else self._stop_prefix_length(text)
        self._pending = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _stop_prefix_length(self, text: str) -> int:
        """Return the length of the longest end of ``text`` that begins a stop string."""
        longest = max((len(s) - 1 for s in self._stop), default=0)
        for length in range(min(longest, len(text)), 0, -1):
            if any(s.startswith(text[-length:]) for s in self._stop):
                return length
        return 0
