"""Validate and clean a user's message.

Nothing is escaped here: SQL uses bound parameters, and the page escapes its output. Only invisible
characters that change the meaning of the visible text are removed.
"""

from __future__ import annotations

import re

from persona_lab.errors import EmptyMessage, InputError, MessageTooLong
from persona_lab.unicode_text import compose_nfc, is_blank, to_storable

_HARMFUL_CHARACTERS = re.compile(
    "["
    "\u202a-\u202e\u2066-\u2069"  # bidirectional overrides reorder the visible text
    "\ufdd0-\ufdef"
    + "".join(map(chr, range(0xFFFE, 0x110000, 0x10000)))  # noncharacters
    + "".join(map(chr, range(0xFFFF, 0x110000, 0x10000)))
    + "]"
)
_TAG_CHARACTERS = re.compile("(\U0001f3f4[\U000e0020-\U000e007f]+)|[\U000e0000-\U000e007f]+")
"""Invisible tag characters, which models read. Flags (🏴󠁧󠁢󠁥󠁮󠁧󠁿) use them too and stay."""

MAX_RAW_FACTOR = 10
"""A text longer than this multiple of the limit is refused before it is cleaned."""


class InputValidator:
    """Cleans a message, or refuses it.

    Args:
        max_length: The limit in characters, after cleaning.
    """

    def __init__(self, max_length: int = 2000) -> None:
        self.max_length = max_length

    def clean(self, text: str) -> str:
        """Return ``text`` as it is sent: NFC, with LF line ends, without harmful characters.

        Compatibility ideographs stay as typed, since names contain them (神, U+FA19).

        Raises:
            InputError: ``text`` isn't a string.
            MessageTooLong: The cleaned text exceeds the limit.
        """
        if not isinstance(text, str):
            raise InputError(f"a message is text, not {type(text).__name__}")
        if len(text) > MAX_RAW_FACTOR * self.max_length:  # cleaning can't remove that much
            raise MessageTooLong(length=len(text), limit=self.max_length)
        text = _HARMFUL_CHARACTERS.sub("", to_storable(text))
        text = _TAG_CHARACTERS.sub(lambda part: part[1] or "", text)
        text = compose_nfc(text).strip()
        if len(text) > self.max_length:
            raise MessageTooLong(length=len(text), limit=self.max_length)
        return text

    def validate_message(self, text: str) -> str:
        """Return the clean message.

        Raises:
            InputError: ``text`` isn't a string.
            EmptyMessage: The message has no visible character.
            MessageTooLong: The cleaned text exceeds the limit.
        """
        text = self.clean(text)
        if is_blank(text):
            raise EmptyMessage
        return text
