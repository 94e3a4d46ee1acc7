"""From polite or plain to casual Japanese: the contractions and questions of people who talk."""

from __future__ import annotations

from collections.abc import Sequence

from persona_lab.japanese.plain import QUESTIONS, to_plain
from persona_lab.japanese.words import END, Word, words_of

_SORRY = ("すまない", "申し訳ない")


def to_casual(text: str, *, keep: Sequence[str] = ()) -> str:
    """``text`` as one speaks to friends: 食べていますか？→食べてる？, 静かです→静かだよ.

    Quotations, code, addresses and the names in ``keep`` stay as they are.
    """
    words = words_of(to_plain(text, keep=keep), keep)
    out: list[str] = []
    at = 0
    while at < len(words):
        length, casual = _casual(words, at)
        out.append(casual)
        at += length
    return "".join(out)


def _casual(words: list[Word], at: int) -> tuple[int, str]:
    """(how many words from ``at`` on are said otherwise, how)."""

    def near(by: int) -> Word:
        return words[at + by] if 0 <= at + by < len(words) else END

    word, before, after, third = (near(by) for by in (0, -1, 1, 2))
    here = (word.surface, after.surface)
    if word.kept:
        return 1, word.surface
    for sorry in _SORRY:
        if sorry in ("".join(here), "".join((*here, third.surface))):
            return (2 if sorry == "".join(here) else 3), "ごめん"
    if word.surface in ("て", "で") and word.pos == "助詞-接続助詞":
        if after.lemma in ("いる", "居る") and after.surface[:1] == "い" and not after.kept:
            return 2, word.surface + after.surface[1:]
        if after.lemma in ("しまう", "仕舞う") and after.surface[:2] == "しま":
            return 2, ("ちゃ" if word.surface == "て" else "じゃ") + after.surface[2:]
        if after.lemma in ("くれる", "呉れる") and after.form.startswith("命令形"):
            return 2, word.surface
    if here == ("を", "くれ") and _ends(third):
        return 2, "をちょうだい"
    if word.surface == "で" and after.surface == "は" and third.lemma in ("ない", "無い"):
        return 2, "じゃ"
    if word.surface == "の" and word.pos == "助詞-準体助詞" and after.surface == "だ":
        return 1, "ん"
    if here == ("だろう", "か"):
        return 2, "かな"
    if word.surface == "か" and word.pos == "助詞-終助詞" and after.surface in ("？", "?"):
        return 1, word.surface if before.form.startswith("意志推量形") else ""
    if word.surface == "だ" and word.type == "助動詞-ダ":
        if before.surface in QUESTIONS and after.surface in ("？", "?"):
            return 1, ""
        noun = before.pos.startswith(("名詞", "代名詞", "接尾辞", "形状詞"))
        return 1, "だよ" if noun and _ends(after) else "だ"
    if here == ("けれど", "も"):
        return 2, "けど"
    if word.pos == "助詞-接続助詞" and word.surface in ("が", "けれど", "けれども"):
        return 1, "けど"
    return 1, word.surface


def _ends(word: Word) -> bool:
    return word is END or word.surface[:1] in "。！!\n"
