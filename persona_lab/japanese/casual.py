"""Rewrite polite or plain Japanese as casual speech, with its contractions and questions."""

from __future__ import annotations

from collections.abc import Sequence

from persona_lab.japanese.morphology import (
    END,
    Form,
    Word,
    conjugate,
    in_form_of,
    sentences,
    words_of,
)
from persona_lab.japanese.plain import asks_before, to_plain, verb_of

_BUT = ("が", "けど", "けれど", "けれども")
_SORRY = ("すまない", "申し訳ない")
_FAMILIAR = {
    "なさる": ("する", "サ行変格"),
    "召し上がる": ("食べる", "下一段-バ行"),
    "おっしゃる": ("言う", "五段-ワア行"),
    "仰る": ("言う", "五段-ワア行"),
    "くださる": ("くれる", "下一段-ラ行"),
    "下さる": ("くれる", "下一段-ラ行"),
    "いただく": ("もらう", "五段-ワア行"),
    "いただける": ("もらえる", "下一段-ラ行"),
}
"""Honorific verb → the casual verb, with its conjugation."""
_COME = ("来る", "カ行変格")
_COME_BACK = ("くる", "カ行変格")
_BE = ("いる", "上一段-ア行")
_HERE = ("ここ", "こちら", "こっち", "うち")
_WHERE = {"こちら": "こっち", "そちら": "そっち", "あちら": "あっち", "どちら": "どっち"}
_GO = ("行く", "五段-カ行")
_HUMBLE = {"参る": _GO, "まいる": _GO, "申す": ("言う", "五段-ワア行")}
"""Humble verb → the casual verb, only in polite sentences: 参った has another meaning."""
_WHO = {"どなた": "誰"}
_ANSWERS = {"はい": "うん", "ええ": "うん", "いいえ": "ううん"}
_ADORNED = (
    "元気",
    "名前",
    "時間",
    "仕事",
    "休み",
    "返事",
    "電話",
    "手紙",
    "家族",
    "両親",
    "住まい",
)
"""Nouns that lose their お or ご."""


def to_casual(text: str, *, keep: Sequence[str] = ()) -> str:
    """Rewrite ``text`` as one speaks to friends: 食べていますか？→食べてる？, 静かです→静かだよ.

    Quotations, code, addresses and the names in ``keep`` stay unchanged.
    """
    return "".join(_Casual(sentence, keep).written() for sentence in sentences(text))


class _Casual:
    """Rewrites one sentence from left to right; ``lowered`` tells whether it was polite."""

    def __init__(self, sentence: str, keep: Sequence[str]) -> None:
        plain = to_plain(sentence, keep=keep)
        self.lowered = plain != sentence
        self.words = words_of(plain, keep)
        self.at = 0
        self.asks = False

    def word(self, offset: int = 0) -> Word:
        at = self.at + offset
        return self.words[at] if 0 <= at < len(self.words) else END

    def written(self) -> str:
        steps = (
            self._answer,
            self._sorry,
            self._contraction,
            self._honorific,
            self._question,
            self._copula,
            self._word,
        )
        out: list[str] = []
        while self.at < len(self.words):
            word = self.word()
            found = None
            if not word.kept:
                found = next((done for step in steps if (done := step())), None)
            length, casual = found or (1, word.surface)
            if self.asks and casual == "。":
                casual = "？"
            out.append(casual)
            self.at += length
        return "".join(out)

    # Each step: (how many words are said otherwise, how), or None.

    def _answer(self) -> tuple[int, str] | None:
        if not self.word(-1).surface.strip(" 　\n"):
            word, after = self.word(), self.word(1)
            if word.surface in _ANSWERS and (after.surface == "、" or _ends(after)):
                return 1, _ANSWERS[word.surface]
            if (word.surface, after.surface) == ("そう", "か") and _pauses(self.word(2)):
                return 2, "そっか"
        return None

    def _sorry(self) -> tuple[int, str] | None:
        for length in (1, 2, 3):
            said = "".join(self.word(by).surface for by in range(length))
            if said in _SORRY:
                return length, "悪い" if self.word(length).surface in _BUT else "ごめん"
            if length == 3 and said in ("おやすみなさい", "お休みなさい"):
                return 3, said[:-3]
            if said == "お待たせ" and [self.word(3).surface, self.word(4).surface] == ["し", "た"]:
                return 5, said
            if length == 2 and said == "ごめんなさい":
                return 2, "ごめん"
        return None

    def _contraction(self) -> tuple[int, str] | None:
        word, after, third = self.word(), self.word(1), self.word(2)
        if word.surface in ("て", "で") and word.pos == "助詞-接続助詞" and not after.kept:
            voiced = word.surface == "で"
            if after.lemma in ("いる", "居る") and after.surface[:1] == "い":
                return 2, word.surface + after.surface[1:]
            if after.lemma == "いらっしゃる" and (form := in_form_of(after, *_BE)) is not None:
                return 2, word.surface + form[1:]
            if after.lemma in ("まいる", "参る") and self.word(-1).lemma in ("行く", "いく"):
                form = in_form_of(after, *_COME_BACK)
                return (2, word.surface + form) if form is not None else None
            if after.lemma in ("しまう", "仕舞う") and after.surface[:2] == "しま":
                return 2, ("じゃ" if voiced else "ちゃ") + after.surface[2:]
            if after.lemma == "おく" and after.surface[:1] == "お":
                return 2, ("ど" if voiced else "と") + after.surface[1:]
            if after.lemma in ("くれる", "呉れる") and after.form.startswith("命令形"):
                return 2, word.surface
        if word.surface == "なけれ" and after.surface == "ば":
            if third.lemma == "なる" and self.word(3).lemma == "ない":
                return 3, "なきゃいけ"
            if third.lemma in ("いける", "行ける") and self.word(3).lemma == "ない":
                return 2, "なきゃ"
        if word.surface in ("て", "で") and after.surface == "は" and third.lemma == "いける":
            return 2, "じゃ" if word.surface == "で" else "ちゃ"
        if (word.surface, after.surface) == ("を", "くれ") and _ends(third):
            return 2, "をちょうだい"
        counted = "助数詞" in self.word(-1).pos or self.word(-1).surface in ("一杯", "一つ", "少し")
        if word.surface == "くれ" and counted and _ends(after):
            return 1, "ちょうだい"
        if word.surface == "で" and after.surface == "は" and third.lemma in ("ない", "無い"):
            return 2, "じゃ"
        if word.pos == "助詞-準体助詞" and word.surface == "の":
            denies = [self.word(by).surface for by in (1, 2, 3)] == ["で", "は", "ない"]
            if after.surface == "だ" or denies:
                return 1, "ん"
        if (word.surface, after.surface) == ("けれど", "も"):
            return 2, "けど"
        if word.pos == "助詞-接続助詞" and word.surface in _BUT:
            return 1, "けど"
        return None

    def _honorific(self) -> tuple[int, str] | None:
        word, before, after = self.word(), self.word(-1), self.word(1)
        if word.pos == "接頭辞" and (read := self._respected()):
            return read
        if word.surface == "で" and after.lemma == "いらっしゃる" and _asks(self.word(2)):
            return 2, ""
        if word.surface == "ご覧" and (read := self._becomes(1, "見る", "上一段-マ行")):
            return read
        knows = word.surface == "ご" and after.surface in ("存じ", "存知")
        if knows and _asks(self.word(2)):
            return 2, "知ってる"
        if word.lemma == "いらっしゃる" and before.surface != "て":
            form = in_form_of(word, *self._been(before))
            return (1, form) if form is not None else None
        if word.lemma in _HUMBLE and self.lowered and before.pos not in ("", "助詞-接続助詞"):
            others = before.surface == "が" and self.word(-2).pos != "代名詞"  # 電車が参ります
            comes = word.lemma != "申す" and (others or before.surface == "から")
            verb = _COME if comes else _HUMBLE[word.lemma]
            if after.surface in ("た", "て", "たら"):
                return 1, conjugate(*verb, "te")[:-1]
            form = in_form_of(word, *verb)
            return (1, form) if form is not None else None
        meal = after.type == "助動詞-マス"  # いただきます, which to_plain leaves
        if word.lemma in _FAMILIAR and not before.is_verb() and not meal:
            form = in_form_of(word, *_FAMILIAR[word.lemma])
            return (1, form) if form is not None else None
        if word.pos == "接頭辞" and word.surface in ("お", "ご") and after.surface in _ADORNED:
            return (1, "") if not after.kept else None
        return None

    def _been(self, before: Word) -> tuple[str, str]:
        """Return the verb that いらっしゃる means here: 来る, 行く or いる."""
        word = self.word()
        been = [self.word(by).surface for by in (1, 2)] == ["た", "こと"]
        if before.surface == "へ" or (been and before.surface in ("に", "は")):
            return _COME if self.word(-2).surface in _HERE else _GO
        here = before.surface in ("に", "で") or not word.form.startswith("連用形")
        return _BE if here else _COME

    def _respected(self) -> tuple[int, str] | None:
        """Rewrite お読みになる as 読む."""
        stem = self.word(1)
        if stem.kept:
            return None
        if stem.surface == "いで":
            return self._becomes(2, *_BE)
        verb = stem if stem.is_verb() else verb_of(stem)
        return self._becomes(2, verb.lemma, verb.type) if verb is not None else None

    def _becomes(self, offset: int, lemma: str, type_: str) -> tuple[int, str] | None:
        """Return the verb in the form of the なる that follows に at ``offset``."""
        ni, become, after = (self.word(offset + by) for by in range(3))
        if (ni.surface, become.lemma) != ("に", "なる") or become.kept:
            return None
        if become.surface == "なっ" and after.surface in ("た", "て"):
            form: Form = "past" if after.surface == "た" else "te"
            return offset + 3, conjugate(lemma, type_, form)
        said = in_form_of(become, lemma, type_)
        return (offset + 2, said) if said is not None else None

    def _question(self) -> tuple[int, str] | None:
        word, before, after = self.word(), self.word(-1), self.word(1)
        if (word.surface, after.surface) == ("だろう", "か"):
            return 2, "かな"
        if word.surface != "か" or word.pos != "助詞-終助詞":
            return None
        self.asks = self.lowered and after.surface == "。"
        if after.surface in ("？", "?") or self.asks:
            return 1, word.surface if before.form.startswith("意志推量形") else ""
        return None

    def _copula(self) -> tuple[int, str] | None:
        word, before, after = self.word(), self.word(-1), self.word(1)
        if word.surface != "だ" or word.type != "助動詞-ダ":
            return None
        if self.lowered and asks_before(self.words, self.at):
            if after.surface == "。":
                self.asks = True
                return 1, ""
            if after.surface in ("？", "?"):
                return 1, ""
            if after.surface == "、" and self.word(2).pos in ("代名詞", "連体詞"):  # 何だ、これは
                self.asks = True
                return 1, ""
        noun = before.pos.startswith(("名詞", "代名詞", "接尾辞", "形状詞", "副詞", "助詞-副助詞"))
        stem = before.pos == "助動詞" and before.lemma.startswith(("そう", "よう", "みたい"))
        return (1, "だよ") if (noun or stem) and self.lowered and _ends(after) else None

    def _word(self) -> tuple[int, str] | None:
        word = self.word()
        after = self.word(1).surface
        if word.surface in _WHERE and after not in ("こそ", "様", "さま"):
            to = (word.surface, after) == ("どちら", "へ")
            return 1, "どこ" if to else _WHERE[word.surface]
        return (1, _WHO[word.surface]) if word.surface in _WHO else None


def _ends(word: Word) -> bool:
    return word is END or word.surface[:1] in "。！!\n"


def _asks(word: Word) -> bool:
    return word.surface in ("か", "？", "?")


def _pauses(word: Word) -> bool:
    return _ends(word) or word.surface == "、"
