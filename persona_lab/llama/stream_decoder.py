"""From the bytes of tokens to text that can be shown at once.

A token may end inside a character (emoji, rare kanji) and a stop string may begin in one token
and end in another. What could still turn into either is held back until it is decided.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable


class StreamDecoder:
    """Feed it bytes, show what it returns. ``stopped`` once a stop string has come."""

    def __init__(self, stop: Iterable[str] = ()) -> None:
        self.stopped = False
        self._stop = tuple(s for s in stop if s)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._pending = ""

    def feed(self, data: bytes, *, final: bool = False) -> str:
        """Text that no later byte can take back. ``final``: nothing follows."""
        if self.stopped:
            return ""
        # What no longer comes whole at the end is half a character: nobody can read it.
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
        """Length of the longest end of ``text`` that a stop string begins with."""
        longest = max((len(s) - 1 for s in self._stop), default=0)
        for length in range(min(longest, len(text)), 0, -1):
            if any(s.startswith(text[-length:]) for s in self._stop):
                return length
        return 0
