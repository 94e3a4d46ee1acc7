"""Patterns of listed words that also match disguised spellings (``Ｆ u.c k``).

Words are compared by their *skeleton*: their letters without case, separators and invisible
characters, with katakana as hiragana.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from persona_lab.responses.pii import normalized

_SEPARATORS = r"[\s・.,*_\-‐ー~/]{1,2}"
"""Characters that are found between the letters of a word to evade the filter."""
SEPARATOR_CHARACTERS = frozenset(" \t\n　・.,*_-‐ー~/")


class ListedWords:
    """All listed words as two patterns.

    Args:
        mask: The words to mask.
        block: The words that block an answer.

    Attributes:
        mask: Matches a word to mask; None without any.
        block: Matches a word that blocks the answer; None without any.
        longest: The length of the longest word's skeleton.
    """

    def __init__(self, mask: Sequence[str] = (), block: Sequence[str] = ()) -> None:
        self.mask = _any_word_pattern(mask)
        self.block = _any_word_pattern(block)
        skeletons = [skeleton(word) for word in (*mask, *block)]
        self._beginnings = {word[:length] for word in skeletons for length in range(1, len(word))}
        self._last_letters = {beginning[-1] for beginning in self._beginnings}
        self.longest = max(map(len, skeletons), default=0)

    def ends_unfinished(self, letters: str) -> bool:
        """Return whether ``letters``, a skeleton, end with the beginning of a listed word."""
        if letters[-1:] not in self._last_letters:
            return False
        lengths = range(1, min(self.longest, len(letters) + 1))
        return any(letters[-length:] in self._beginnings for length in lengths)


def _any_word_pattern(words: Iterable[str]) -> re.Pattern[str] | None:
    """Return the pattern of any of ``words``, the longest first; None without words."""
    patterns = []
    for word in sorted(words, key=len, reverse=True):
        letters = skeleton(word)
        letter_patterns = [_letter_pattern(letter) for letter in letters]
        pattern = "".join(letter_patterns)
        if letters.isascii():  # separators between all letters or none: "let's hit" is no match
            parts = [[re.escape(letter) for letter in skeleton(part)] for part in word.split()]
            spread = (f"(?:{''.join(part)}|{_SEPARATORS.join(part)})" for part in parts)
            pattern = rf"(?<![a-z0-9'’]){f'(?:{_SEPARATORS})?'.join(spread)}(?![a-z0-9])"
        elif len(letters) > 2:  # with two letters, "販売・女性" would match
            pattern = f"(?:{_SEPARATORS})?".join(letter_patterns)
        if all("一" <= letter <= "鿿" for letter in letters):  # part of a longer word: 販売女性
            pattern = rf"(?<![一-鿿]){pattern}(?![一-鿿])"
        elif all("ぁ" <= letter <= "ー" for letter in letters):  # end of a verb: 行きちがい
            pattern = rf"(?<![一-鿿]){pattern}"
        patterns.append(pattern)
    return re.compile("|".join(patterns), re.IGNORECASE) if patterns else None


def _letter_pattern(letter: str) -> str:
    """Return the pattern of a letter. Hiragana matches katakana too."""
    if "ぁ" <= letter <= "ゖ":
        return f"[{letter}{chr(ord(letter) + 0x60)}]"
    return re.escape(letter)


@lru_cache(maxsize=8192)
def skeleton(text: str) -> str:
    """Return the letters of ``text`` for comparison: no case, no separators, in hiragana."""
    folded = normalized(text)[0].casefold()
    return "".join(
        map(_hiragana, filter(lambda letter: letter not in SEPARATOR_CHARACTERS, folded))
    )


def _hiragana(letter: str) -> str:
    return chr(ord(letter) - 0x60) if "ァ" <= letter <= "ヶ" else letter
