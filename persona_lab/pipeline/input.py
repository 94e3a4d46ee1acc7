"""What may come in. Text is data everywhere: nothing is escaped here.

SQL takes it through bound parameters and a page escapes what it shows, so all that is removed
are characters that no reader can see and that change how the rest is read.
"""

from __future__ import annotations

import re

from persona_lab.errors import EmptyMessage, InputError, MessageTooLong
from persona_lab.unicode_text import composed, is_blank, storable

_HARMFUL = re.compile(
    "["
    "\u202a-\u202e\u2066-\u2069"  # bidirectional overrides: text that reads otherwise than it is
    "\ufdd0-\ufdef"
    + "".join(map(chr, range(0xFFFE, 0x110000, 0x10000)))  # noncharacters
    + "".join(map(chr, range(0xFFFF, 0x110000, 0x10000)))
    + "]"
)
_TAGS = re.compile("(\U0001f3f4[\U000e0020-\U000e007f]+)|[\U000e0000-\U000e007f]+")
"""Letters that nobody sees and every model reads; flags (🏴󠁧󠁢󠁥󠁮󠁧󠁿) are written with them too."""


SURPLUS = 10
"""How many times too long a text may be before it isn't even cleaned."""


class InputValidator:
    """Cleans a message, or refuses it. ``max_length`` in characters after cleaning."""

    def __init__(self, max_length: int = 2000) -> None:
        self.max_length = max_length

    def clean(self, text: str) -> str:
        """``text`` as it is sent: NFC, line ends as ``\\n``, harmful characters gone.

        Compatibility ideographs stay as typed, for names are written with them (神, U+FA19).
        Raises InputError for what is no text, MessageTooLong.
        """
        if not isinstance(text, str):
            raise InputError(f"a message is text, not {type(text).__name__}")
        if len(text) > SURPLUS * self.max_length:  # cleaning can't make so much of it go
            raise MessageTooLong(length=len(text), limit=self.max_length)
        text = _HARMFUL.sub("", storable(text))
        text = _TAGS.sub(lambda part: part[1] or "", text)
        text = composed(text).strip()
        if len(text) > self.max_length:
            raise MessageTooLong(length=len(text), limit=self.max_length)
        return text

    def validate_message(self, text: str) -> str:
        """The clean message. Raises InputError, EmptyMessage and MessageTooLong."""
        text = self.clean(text)
        if is_blank(text):
            raise EmptyMessage
        return text
