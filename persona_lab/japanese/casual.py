"""Rewrite polite or plain Japanese as casual speech, with its contractions and questions."""

from __future__ import annotations

import re
from collections.abc import Sequence

from persona_lab.japanese.morphology import (
    NO_WORD,
    Form,
    Word,
    conjugate,
    conjugate_like,
    sentences,
    words_of,
)
from persona_lab.japanese.plain import has_question_word_before, to_plain, verb_of_noun

_BUT_PARTICLES = ("が", "けど", "けれど", "けれども")
_APOLOGIES = ("すまない", "申し訳ない")
_SET_PHRASE_STARTS = frozenset("す申おご大誠ま")
_CASUAL_VERBS = {
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
_POLITE_QUESTION = re.compile("(?:です|ます|ました|でした)か")
_COME = ("来る", "カ行変格")
_COME_BACK = ("くる", "カ行変格")
_BE = ("いる", "上一段-ア行")
_HERE = ("ここ", "こちら", "こっち", "うち")
_CASUAL_DIRECTIONS = {
    "こちら": "こっち",
    "そちら": "そっち",
    "あちら": "あっち",
    "どちら": "どっち",
}
_GO = ("行く", "五段-カ行")
_APPROACHING = ("伝わる", "見える", "聞こえる", "浮かぶ", "湧く", "近づく", "迫る", "届く", "出る")
"""Verbs whose 〜てまいる means 〜てくる."""
_GO_ON = ("いく", "五段-カ行")
_HUMBLE = {"参る": _GO, "まいる": _GO, "申す": ("言う", "五段-ワア行")}
"""Humble verb → the casual verb, only in polite sentences: 参った has another meaning."""
_CASUAL_PRONOUNS = {"どなた": "誰"}
_CASUAL_ANSWERS = {"はい": "うん", "ええ": "うん", "いいえ": "ううん"}
_NOUNS_WITH_PREFIX = (
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
    "心配",
    "意見",
    "質問",
    "提案",
    "指示",
    "協力",
    "理解",
    "説明",
    "相談",
    "連絡",
    "報告",
    "指摘",
    "希望",
    "用件",
    "言葉",
    "気持ち",
)
"""Nouns that lose their お or ご."""


def to_casual(text: str, *, keep: Sequence[str] = ()) -> str:
    """Rewrite ``text`` as casual speech: 食べていますか？→食べてる？, 静かです→静かだよ.

    Quotations, code, addresses and the names in ``keep`` stay unchanged.
    """
    return "".join(_CasualRewriter(sentence, keep).rewrite() for sentence in sentences(text))


class _CasualRewriter:
    """Rewrites one sentence from left to right.

    Attributes:
        was_polite: Whether the sentence was polite.
        asked_politely: Whether it had a polite question: ですか, ますか.
        words: Its words in plain form.
        at: The number of words that are done.
        is_question: Whether the final mark becomes a question mark.
    """

    def __init__(self, sentence: str, keep: Sequence[str]) -> None:
        plain = to_plain(sentence, keep=keep)
        self.was_polite = plain != sentence
        self.asked_politely = bool(_POLITE_QUESTION.search(sentence))
        self.words = words_of(plain, keep)
        self.at = 0
        self.is_question = False

    def word(self, offset: int = 0) -> Word:
        at = self.at + offset
        return self.words[at] if 0 <= at < len(self.words) else NO_WORD

    def rewrite(self) -> str:
        steps = (
            self._rewrite_answer,
            self._rewrite_set_phrase,
            self._rewrite_contraction,
            self._rewrite_honorific,
            self._rewrite_question,
            self._rewrite_copula,
            self._rewrite_word,
        )
        out: list[str] = []
        while self.at < len(self.words):
            word = self.word()
            found = None
            if not word.kept:
                found = next((done for step in steps if (done := step())), None)
            length, casual = found or (1, word.surface)
            if self.is_question and casual == "。":
                casual = "？"
            out.append(casual)
            self.at += length
        return "".join(out)

    # Each step returns the number of words to replace and their new text, or None.

    def _rewrite_answer(self) -> tuple[int, str] | None:
        if not self.word(-1).surface.strip(" 　\n"):
            word, after = self.word(), self.word(1)
            if word.surface in _CASUAL_ANSWERS and (after.surface == "、" or _ends_sentence(after)):
                return 1, _CASUAL_ANSWERS[word.surface]
            if (word.surface, after.surface) == ("そう", "か") and _ends_clause(self.word(2)):
                return 2, "そっか"
        return None

    def _rewrite_set_phrase(self) -> tuple[int, str] | None:
        if self.word().surface[:1] not in _SET_PHRASE_STARTS:
            return None
        for length in (1, 2, 3):
            text = "".join(self.word(by).surface for by in range(length))
            if text in _APOLOGIES and self._apologizes(self.word(length)):
                return length, "悪い" if self.word(length).surface in _BUT_PARTICLES else "ごめん"
            if length == 3 and text in ("おやすみなさい", "お休みなさい"):
                return 3, text[:-3]
            if text == "お待たせ" and [self.word(3).surface, self.word(4).surface] == ["し", "た"]:
                return 5, text
            if length == 2 and text == "ごめんなさい":
                return 2, "ごめん"
        for length, much in ((1, "大変"), (2, "誠に"), (2, "まことに")):
            following = [self.word(by).surface for by in range(length + 2)]
            apologizes = "".join(following[length:]) in _APOLOGIES
            thanked = following[length].startswith("ありがた") or length == 2
            if "".join(following[:length]) == much and (apologizes or thanked):
                return length, "本当に"
        return None

    @staticmethod
    def _apologizes(after: Word) -> bool:
        """Tell from the word after 申し訳ない whether it apologizes: not 申し訳ないと思う."""
        particle = after.pos == "助詞-終助詞" or after.surface in _BUT_PARTICLES
        return after is NO_WORD or particle or not after.is_spoken()

    def _rewrite_contraction(self) -> tuple[int, str] | None:
        word, after, third = self.word(), self.word(1), self.word(2)
        if word.surface in ("て", "で") and word.pos == "助詞-接続助詞" and not after.kept:
            voiced = word.surface == "で"
            if after.lemma in ("いる", "居る") and after.surface[:1] == "い":
                return 2, word.surface + after.surface[1:]
            if after.lemma == "いらっしゃる" and (form := conjugate_like(after, *_BE)) is not None:
                return 2, word.surface + form[1:]
            if after.lemma in ("まいる", "参る"):
                back = self.word(-1).lemma in ("行く", "いく")
                if not (back or self.was_polite):
                    return None
                came = (
                    back
                    or third.surface in ("た", "て")  # 暖かくなってまいりました
                    or self.word(-1).lemma in _APPROACHING
                )
                form = conjugate_like(after, *(_COME_BACK if came else _GO_ON))
                return (2, word.surface + form) if form is not None else None
            if after.lemma in ("しまう", "仕舞う") and after.surface[:2] == "しま":
                if (after.surface, third.surface) == ("しまい", "、"):
                    return 2, ("じゃ" if voiced else "ちゃ") + "って"
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
        if (word.surface, after.surface) == ("を", "くれ") and _ends_sentence(third):
            return 2, "をちょうだい"
        counted = "助数詞" in self.word(-1).pos or self.word(-1).surface in ("一杯", "一つ", "少し")
        if word.surface == "くれ" and counted and _ends_sentence(after):
            return 1, "ちょうだい"
        if word.surface == "で" and after.surface == "は" and third.lemma in ("ない", "無い"):
            return 2, "じゃ"
        if word.pos == "助詞-準体助詞" and word.surface == "の":
            denies = [self.word(by).surface for by in (1, 2, 3)] == ["で", "は", "ない"]
            supposes = after.surface == "だろう" and third.surface != "か"
            if after.surface == "だ" or supposes or denies:
                return 1, "ん"
        if word.surface in ("て", "で") and (after.surface, third.surface) == ("くれ", "、"):
            return (2, word.surface) if self.was_polite and not after.kept else None
        if (word.surface, after.surface) == ("けれど", "も"):
            return 2, "けど"
        but = word.pos == "助詞-接続助詞" and word.surface in _BUT_PARTICLES
        if but and not self.word(-1).form.startswith("未然形"):  # 湿さ, taken for 湿す
            return 1, "けど"
        return None

    def _rewrite_honorific(self) -> tuple[int, str] | None:
        word, before, after = self.word(), self.word(-1), self.word(1)
        if word.pos == "接頭辞" and (read := self._rewrite_respectful_form()):
            return read
        if (
            word.surface == "で"
            and after.lemma == "いらっしゃる"
            and _is_question_mark(self.word(2))
        ):
            return 2, ""
        if word.surface == "ご覧" and (read := self._rewrite_naru(1, "見る", "上一段-マ行")):
            return read
        knows = word.surface == "ご" and after.surface in ("存じ", "存知")
        if knows and _is_question_mark(self.word(2)):
            return 2, "知ってる"
        if word.lemma == "いらっしゃる" and before.surface != "て":
            form = conjugate_like(word, *self._meaning_of_irassharu(before))
            return (1, form) if form is not None else None
        if word.lemma == "存じる" and after.lemma == "上げる" and self.was_polite:
            te = self.word(2).surface in ("て", "た", "たら")
            known = "知っ" if te else conjugate_like(after, "知る", "五段-ラ行")
            return (2, known) if known is not None else None
        said = before.surface in ("に", "も", "と", "を", "は", "ば")
        if word.lemma == "申し上げる" and self.was_polite and ("サ変" in before.pos or said):
            verb = ("言う", "五段-ワア行") if said else ("する", "サ行変格")
            te = after.surface in ("た", "て", "たら")
            form = conjugate(*verb, "te")[:-1] if te else conjugate_like(word, *verb)
            return (1, form) if form is not None else None
        if word.lemma in _HUMBLE and self.was_polite and before.pos not in ("", "助詞-接続助詞"):
            others = before.surface == "が" and self.word(-2).pos != "代名詞"  # 電車が参ります
            comes = word.lemma != "申す" and (others or before.surface in ("から", "より"))
            verb = _COME if comes else _HUMBLE[word.lemma]
            if after.surface in ("た", "て", "たら"):
                return 1, conjugate(*verb, "te")[:-1]
            form = conjugate_like(word, *verb)
            return (1, form) if form is not None else None
        meal = after.type == "助動詞-マス"  # いただきます, which to_plain leaves
        given = word.lemma in ("くださる", "下さる", "いただく", "いただける")
        if given and before.pos.startswith("名詞"):  # お時間いただく
            return None
        if word.lemma in _CASUAL_VERBS and not before.is_verb() and not meal:
            if word.lemma == "なさる" and after.type == "助動詞-ヌ":  # なさらず
                return 1, "せ"
            form = conjugate_like(word, *_CASUAL_VERBS[word.lemma])
            return (1, form) if form is not None else None
        if (
            word.pos == "接頭辞"
            and word.surface in ("お", "ご")
            and after.surface in _NOUNS_WITH_PREFIX
        ):
            return (1, "") if not after.kept else None
        return None

    def _meaning_of_irassharu(self, before: Word) -> tuple[str, str]:
        """Return the verb that いらっしゃる means here: 来る, 行く or いる."""
        word = self.word()
        been = [self.word(by).surface for by in (1, 2)] == ["た", "こと"]
        if before.surface == "へ" or (been and before.surface in ("に", "は")):
            return _COME if self.word(-2).surface in _HERE else _GO
        here = before.surface in ("に", "で") or not word.form.startswith("連用形")
        return _BE if here else _COME

    def _rewrite_respectful_form(self) -> tuple[int, str] | None:
        """Rewrite お読みになる as 読む."""
        stem = self.word(1)
        if stem.kept:
            return None
        if stem.surface == "いで":
            return self._rewrite_naru(2, *_BE)
        verb = stem if stem.is_verb() else verb_of_noun(stem)
        if verb is None:
            return None
        honours = (self.word(2).surface, self.word(3).lemma) == ("さ", "れる")
        if honours and self.word().surface == "お":  # お話しされる
            te = self.word(4).surface in ("た", "て", "たら")
            form = (
                conjugate(verb.lemma, verb.type, "te")[:-1]
                if te
                else conjugate_like(self.word(3), verb.lemma, verb.type)
            )
            return (4, form) if form is not None and (not te or form[-1:] != "ん") else None
        return self._rewrite_naru(2, verb.lemma, verb.type)

    def _rewrite_naru(self, offset: int, lemma: str, type_: str) -> tuple[int, str] | None:
        """Return the verb in the form of the なる that follows に at ``offset``."""
        ni, become, after = (self.word(offset + by) for by in range(3))
        if (ni.surface, become.lemma) != ("に", "なる") or become.kept:
            return None
        if become.surface == "なっ" and after.surface in ("た", "て"):
            form: Form = "past" if after.surface == "た" else "te"
            return offset + 3, conjugate(lemma, type_, form)
        text = conjugate_like(become, lemma, type_)
        return (offset + 2, text) if text is not None else None

    def _rewrite_question(self) -> tuple[int, str] | None:
        word, before, after = self.word(), self.word(-1), self.word(1)
        if (word.surface, after.surface) == ("だろう", "か"):
            return 2, "だろう" if before.surface == "ん" else "かな"  # どうするんだろう
        if word.surface != "か" or word.pos not in ("助詞-終助詞", "助詞-副助詞"):
            return None
        if self.asked_politely and after.surface[:1] in ("、", "…", "."):
            ended = after.surface != "、" and before.is_predicate()
            if before.surface == "の" or ended:  # どうしたんですか、先生
                return 1, ""
            if self._calls_after_comma():  # 困っていますか、先生？
                return 1, "の" if before.is_verb() else ""
        if word.pos == "助詞-副助詞":
            return None
        self.is_question = self.was_polite and after.surface == "。"
        if after.surface in ("？", "?") or self.is_question:
            return 1, word.surface if before.form.startswith("意志推量形") else ""
        return None

    def _calls_after_comma(self) -> bool:
        """Tell whether the sentence asks somebody whom it calls: 何ですか、田中さん？."""
        rest = self.words[self.at + 2 :]
        named = [word for word in rest if word.is_spoken()]
        asks = any(word.surface in ("？", "?") for word in rest)
        return asks and all(word.pos.startswith(("名詞", "接尾辞", "接頭辞")) for word in named)

    def _rewrite_copula(self) -> tuple[int, str] | None:
        word, before, after = self.word(), self.word(-1), self.word(1)
        if word.surface != "だ" or word.type != "助動詞-ダ":
            return None
        if self.asked_politely and has_question_word_before(self.words, self.at):
            if after.surface == "。":
                self.is_question = True
                return 1, ""
            if after.surface in ("？", "?"):
                return 1, ""
            if after.surface == "、" and self.word(2).pos in ("代名詞", "連体詞"):  # 何だ、これは
                self.is_question = True
                return 1, ""
            if after.surface == "、" and self._calls_after_comma():
                return 1, ""
        noun = before.pos.startswith(("名詞", "代名詞", "接尾辞", "形状詞", "副詞", "助詞-副助詞"))
        stem = before.pos == "助動詞" and before.lemma.startswith(("そう", "よう", "みたい"))
        return (1, "だよ") if (noun or stem) and self.was_polite and _ends_sentence(after) else None

    def _rewrite_word(self) -> tuple[int, str] | None:
        word = self.word()
        after = self.word(1).surface
        if word.surface == "だろ" and after != "う" and self.was_polite:
            return 1, "でしょ"
        particle = self.word(1).pos.startswith(("助詞", "助動詞")) or not self.word(1).is_spoken()
        if word.surface in _CASUAL_DIRECTIONS and particle and after != "こそ":
            to = (word.surface, after) == ("どちら", "へ")
            return 1, "どこ" if to else _CASUAL_DIRECTIONS[word.surface]
        return (1, _CASUAL_PRONOUNS[word.surface]) if word.surface in _CASUAL_PRONOUNS else None


def _ends_sentence(word: Word) -> bool:
    return word is NO_WORD or word.surface[:1] in "。！!\n"


def _is_question_mark(word: Word) -> bool:
    return word.surface in ("か", "？", "?")


def _ends_clause(word: Word) -> bool:
    return _ends_sentence(word) or word.surface == "、"
