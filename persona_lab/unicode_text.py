"""Unicode normalization, and characters that show nothing.

NFC composes a letter and its combining marks. Its time grows with the square of the number of marks
on one letter and blocks the process, so marks beyond :data:`MARKS` are removed first.
"""

from __future__ import annotations

import re
import unicodedata

MARKS = 30
"""Most marks on one letter, as in Unicode's stream-safe text format (UAX #15, section 13)."""

_BLANK_LETTERS = "\u115f\u1160\u2800\u3164\uffa0"
_COMPOSABLE = re.compile("[^\uf900-\ufaff\U0002f800-\U0002fa1f]+")
_PERHAPS_MARKS = re.compile(
    "[\u0300-\u036f\u0483-\u07ff\u0816-\u0d4d\u0e38-\u1dff\u20d0-\u20ff\u2cef-\u2dff"
    f"\u302a-\u309a\ua66f-\uabed\ufb1e\ufe20-\ufe2f\U000101fd-\U0001e94a]{{{MARKS + 1}}}"
)
"""A run of characters that may all be marks; in some scripts they are letters."""
_UNSTORABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def composed(text: str) -> str:
    """Return ``text`` in NFC.

    Compatibility ideographs stay as typed: names are written with them (神, U+FA19).
    """
    if _PERHAPS_MARKS.search(text):
        text = _with_fewer_marks(text)
    return _COMPOSABLE.sub(lambda part: unicodedata.normalize("NFC", part[0]), text)


def is_visible(character: str) -> bool:
    """Tell whether ``character`` shows something on its own."""
    return not (character.isspace() or shows_nothing(character))


def shows_nothing(character: str) -> bool:
    """Tell whether ``character`` is invisible and not a space.

    Zero-width spaces and joiners are format characters; marks need a letter; a few letters are
    blank.
    """
    return character in _BLANK_LETTERS or unicodedata.category(character) in ("Cf", "Mn", "Me")


def storable(text: str) -> str:
    r"""Return ``text`` as a database can store it.

    Line ends become ``\n``; control characters and halves of surrogate pairs are removed.
    """
    return _UNSTORABLE.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def is_blank(text: str) -> bool:
    """Tell whether ``text`` shows nothing."""
    return not any(map(is_visible, text))


def whole(text: str) -> str:
    """Remove halves of surrogate pairs, which can't be encoded."""
    return text if text.isascii() else text.encode("utf-8", "ignore").decode()


def _with_fewer_marks(text: str) -> str:
    kept, marks = [], 0
    for character in text:
        marks = marks + 1 if unicodedata.combining(character) else 0
        if marks <= MARKS:
            kept.append(character)
    return "".join(kept)
