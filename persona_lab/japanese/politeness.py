"""Measure the politeness of Japanese text on the four levels of the KeiCO corpus.

Grammar decides first: です and ます are never plain, いらっしゃる is more polite than they are, and
a sentence without any polite word is plain. A linear model over the words that carry
politeness (auxiliaries, honorific verbs, prefixes, pronouns, final particles) and the end of the
sentence decides the rest. Its weights are in ``politeness.csv``, and ``python -m bench.politeness
fit`` fits them.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Literal

from persona_lab.japanese.morphology import Word, words_of
from persona_lab.japanese.plain import verb_of_noun

Level = Literal[1, 2, 3, 4]
WEIGHTS = Path(__file__).with_name("politeness.csv")
LEVELS: tuple[Level, ...] = (1, 2, 3, 4)

_POLITENESS_POS = (
    "助動詞",
    "接頭辞",
    "代名詞",
    "接尾辞",
    "感動詞",
    "動詞",
    "形容詞",
    "副詞",
    "助詞-終助詞",
)
_POLITE_TYPES = ("助動詞-マス", "助動詞-デス")
_HONORIFIC = frozenset(
    [
        "くださる",
        "下さる",
        "ござる",
        "御座る",
        "なさる",
        "いらっしゃる",
        "おっしゃる",
        "仰る",
        "いただく",
        "頂く",
        "いただける",
        "頂ける",
        "致す",
        "いたす",
        "おる",
        "申す",
        "申し上げる",
        "参る",
        "伺う",
        "存じる",
        "存ずる",
        "召し上がる",
        "召す",
        "拝見",
        "拝借",
        "差し上げる",
        "ご覧",
        "いかが",
        "よろしい",
        "宜しい",
        "ごめん",
        "ありがとう",
        "れる",
        "られる",
    ]
)


_RESPECTFUL = frozenset(["いらっしゃる", "おっしゃる", "仰る", "なさる", "召し上がる", "ござる"])
"""Verbs that honour the subject: more polite than です and ます."""


_HUMBLE = frozenset(["伺う", "拝見", "拝借", "参る", "申す", "申し上げる", "かしこまる", "存じる"])
"""Words that humble the speaker: more polite than です and ます, too."""
_EVERYDAY_HONORIFICS = frozenset(["ありがとう", "ごめん", "いかが", "れる", "られる"])
"""Honorific words that are used to people of every rank."""


def politeness_level(text: str) -> Level:
    """Return the level of ``text``: 1 most respectful, 2 honorific, 3 です and ます, 4 plain.

    Quotations, code and addresses don't count. A text without words is plain.
    """
    words = [word for word in words_of(text) if not word.kept and word.is_spoken()]
    if not words:
        return 4
    marked = any(word.type in _POLITE_TYPES for word in words)
    if _is_command(words) or (not marked and not _may_be_polite(words)):
        return 4
    weights = _load_weights()
    scores = [0.0] * len(LEVELS)
    for feature in features(words, asks="？" in text or "?" in text):
        for level, weight in enumerate(weights.get(feature, ())):
            scores[level] += weight
    if any(word.lemma in _RESPECTFUL for word in words) or _has_respectful_naru(words):
        scores[2:] = [float("-inf")] * 2
    elif marked and not _has_honorific(words):
        return 3
    elif marked and {word.lemma for word in words} & _HUMBLE:
        scores[2:] = [float("-inf")] * 2
    elif marked or _is_invitation(words):
        scores[3] = float("-inf")
    return LEVELS[scores.index(max(scores))]


def is_polite(text: str) -> bool:
    """Return whether ``text`` is polite: every level but the plain one."""
    return politeness_level(text) < 4


def features(words: Sequence[Word], *, asks: bool) -> set[str]:
    """Return the model's features: polite words, honorific prefixes, and the sentence's end."""
    found = {"bias", "asks"} if asks else {"bias"}
    found |= {
        f"word {word.lemma}"
        for before, word in pairwise([words[0], *words])
        if word.pos.startswith(_POLITENESS_POS) and before.surface != "ば"  # 〜なければならない
    }
    found |= {
        f"prefix {word.surface} {after.pos.split('-')[0]}"
        for word, after in pairwise(words)
        if word.pos.startswith("接頭辞")
    }
    found |= {f"end {' '.join(word.lemma for word in words[-n:])}" for n in (1, 2, 3)}
    found.add(f"end form {words[-1].type} {words[-1].form}")
    return found


def _may_be_polite(words: Sequence[Word]) -> bool:
    """Return whether there is an honorific word or affix, or no predicate at the end."""
    last = words[-1]
    ends = last.form.startswith(("終止形", "連体形", "意志推量形")) or last.pos == "助詞-終助詞"
    return not ends or any(
        word.lemma in _HONORIFIC or word.pos.startswith(("接頭辞", "接尾辞")) for word in words
    )


def _is_command(words: Sequence[Word]) -> bool:
    """Return whether the sentence is a command like 立ちなさい, which is not polite."""
    before, last = words[-2:] if len(words) > 1 else (words[0], words[0])
    honours = len(words) > 2 and words[-3].pos.startswith("接頭辞")
    return last.surface == "なさい" and before.is_verb() and not honours


def _has_honorific(words: Sequence[Word]) -> bool:
    """Return whether a word besides です and ます honours or humbles somebody.

    The お of お茶 doesn't; that of お待ちする, お電話する and お客様 does.
    """
    if any(word.lemma in (_HONORIFIC | _HUMBLE) - _EVERYDAY_HONORIFICS for word in words):
        return True
    for before, after, third in zip(words, words[1:], [*words[2:], words[-1]], strict=False):
        if after.lemma in ("様", "さま", "方"):
            return True
        if before.pos.startswith("接頭辞") and before.surface in ("お", "ご", "御"):
            does = "サ変" in after.pos and third.lemma in ("する", "できる", "出来る", "願う")
            if after.is_verb() or does or third.lemma in ("する", "です", "願う", "様", "さま"):
                return True
    return False


def _has_respectful_naru(words: Sequence[Word]) -> bool:
    """Return whether there is a form like お読みになる or ご覧になる."""
    for stem, ni, become in zip(words, words[1:], words[2:], strict=False):
        if (ni.surface, become.lemma) == ("に", "なる") and stem.surface == "ご覧":
            return True
    for prefix, stem, ni, become in zip(words, words[1:], words[2:], words[3:], strict=False):
        honorific = prefix.pos.startswith("接頭辞") and prefix.surface in ("お", "ご", "御")
        if honorific and (ni.surface, become.lemma) == ("に", "なる"):
            return stem.is_verb() or verb_of_noun(stem) is not None
    return False


def _is_invitation(words: Sequence[Word]) -> bool:
    """Return whether the text is an invitation without a verb, like こちらへどうぞ."""
    return words[-1].lemma == "どうぞ" and any(
        word.lemma in ("こちら", "そちら", "あちら") or word.pos.startswith("接頭辞")
        for word in words
    )


@lru_cache(maxsize=1)
def _load_weights() -> dict[str, tuple[float, ...]]:
    with WEIGHTS.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        next(rows)
        return {feature: tuple(map(float, weights)) for feature, *weights in rows}
