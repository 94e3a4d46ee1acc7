"""Unicode normalization, and characters that show nothing.

NFC composes a letter and its combining marks. Its time grows with the square of the number of marks
on one letter and blocks the process, so marks beyond :data:`MAX_COMBINING_MARKS` are removed first.
"""

from __future__ import annotations

import re
import unicodedata

MAX_COMBINING_MARKS = 30
"""Maximum number of marks on one letter: Unicode's stream-safe format (UAX #15, section 13)."""

_BLANK_LETTERS = "\u115f\u1160\u2800\u3164\uffa0"
_COMPOSABLE = re.compile("[^\uf900-\ufaff\U0002f800-\U0002fa1f]+")
_LONG_MARK_RUN = re.compile(
    "[\u0300-\u036f\u0483-\u07ff\u0816-\u0d4d\u0e38-\u1dff\u20d0-\u20ff\u2cef-\u2dff"
    "\u302a-\u309a\ua66f-\uabed\ufb1e\ufe20-\ufe2f\U000101fd-\U0001e94a]"
    f"{{{MAX_COMBINING_MARKS + 1}}}"
)
"""A long run of characters that may be marks; in some scripts they are letters."""
_JAPANESE = re.compile("[\u3041-\u30ff\u3400-\u9fff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_UNSTORABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def compose_nfc(text: str) -> str:
    """Return ``text`` in NFC.

    Compatibility ideographs stay as typed: names are written with them (神, U+FA19).
    """
    if _LONG_MARK_RUN.search(text):
        text = _limit_marks(text)
    return _COMPOSABLE.sub(lambda part: unicodedata.normalize("NFC", part[0]), text)


def comparable(name: str) -> str:
    """Return ``name`` in the form in which two names are compared: width and case don't count."""
    return unicodedata.normalize("NFKC", name).strip().casefold()


def has_japanese(text: str) -> bool:
    """Return whether ``text`` has a kana or a kanji."""
    return _JAPANESE.search(text) is not None


def is_visible(character: str) -> bool:
    """Return whether ``character`` shows something on its own."""
    return not (character.isspace() or is_invisible(character))


def is_invisible(character: str) -> bool:
    """Return whether ``character`` is invisible and not a space.

    Zero-width spaces and joiners are format characters; marks need a letter; a few letters are
    blank.
    """
    return character in _BLANK_LETTERS or unicodedata.category(character) in ("Cf", "Mn", "Me")


def to_storable(text: str) -> str:
    r"""Return ``text`` as a database can store it.

    Line ends become ``\n``; control characters and halves of surrogate pairs are removed.
    """
    return _UNSTORABLE.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def is_blank(text: str) -> bool:
    """Return whether ``text`` shows nothing."""
    return not any(map(is_visible, text))


def without_surrogates(text: str) -> str:
    """Join the halves of surrogate pairs, and remove single halves, which can't be encoded."""
    if not _SURROGATE.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "ignore")


def ends_in_half_pair(text: str) -> bool:
    """Return whether the last character is the first half of a surrogate pair."""
    return text[-1:] >= "\ud800" and text[-1:] < "\udc00"


def _limit_marks(text: str) -> str:
    characters, marks = [], 0
    for character in text:
        marks = marks + 1 if unicodedata.combining(character) else 0
        if marks <= MAX_COMBINING_MARKS:
            characters.append(character)
    return "".join(characters)
