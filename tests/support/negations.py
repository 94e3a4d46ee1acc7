"""Count the negations of a Japanese text. Rewriting must not change their number."""

from __future__ import annotations

import re

from persona_lab.japanese.morphology import Word, words_of

_NO_NEGATION = re.compile(
    r"かも(?:(?:しれ|知れ)(?:ない|ませぬ|ません|ず|ん))?"
    r"|(?:すみ|済み|すま|済ま)(?:ません|ない|ん)|申し?訳(?:ない|あり(?:ません|ませぬ)|ございません)"
    r"|(?:いいえ|ううん|いえ)"
    r"|(?:とんでも|もったい|勿体|くだら|たまら|つまら)(?:ありません|ございません|ません|ない)"
    r"|[んの]?(?:じゃ|では)(?:ない|ありません)(?:です|でしょう|だろう)?(?:かな|か|(?=[？?]))|じゃん|ごめん"
)
"""Expressions with a negative word that negate nothing, or that have a form without one."""


def count_negations(text: str) -> int:
    """Return the number of negative words: ない, ません, ぬ, ず, まい."""
    words = words_of(_NO_NEGATION.sub("", text))
    return sum(map(_is_negation, words))


def _is_negation(word: Word) -> bool:
    if word.kept:
        return False
    adjective = word.lemma in ("ない", "無い") and word.is_adjective()
    return adjective or word.type.startswith(
        ("助動詞-ヌ", "助動詞-ナイ", "助動詞-マイ", "文語助動詞-ズ")
    )
