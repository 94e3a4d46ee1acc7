"""Rewrite polite Japanese as plain Japanese (敬体 → 常体): conjugate every predicate anew."""

from __future__ import annotations

from collections.abc import Sequence

from persona_lab.japanese.morphology import NO_WORD, Form, Word, conjugate, conjugate_like, words_of

_HUMBLE = {
    "おる": ("いる", "上一段-ア行"),
    "致す": ("する", "サ行変格"),
    "いたす": ("する", "サ行変格"),
    "頂く": ("もらう", "五段-ワア行"),
    "いただく": ("もらう", "五段-ワア行"),
    "頂ける": ("もらえる", "下一段-ア行"),
    "いただける": ("もらえる", "下一段-ア行"),
    "くださる": ("くれる", "下一段-ラ行"),
    "下さる": ("くれる", "下一段-ラ行"),
    "存じる": ("思う", "五段-ワア行"),
    "存ずる": ("思う", "五段-ワア行"),
    "存じ上げる": ("知る", "五段-ラ行"),
    "かしこまる": ("分かる", "五段-ラ行"),
}
"""Humble or polite verb → the plain verb, with its conjugation."""
_RECEIVED = ("いただく", "頂く", "いただける", "頂ける")
_RECEIVING_VERBS = ("くださる", "下さる", "いただく", "頂く", "いただける", "頂ける")
_GREETINGS = ("ありがとう", "有り難う", "有難う", "おはよう", "お早う", "おめでとう", "お目出度う")
QUESTION_WORDS = (
    *("何", "なに", "なん", "誰", "だれ", "どなた", "どこ", "何処", "いつ", "どれ", "どちら"),
    *("どう", "いくら", "いくつ", "なぜ"),
)
_SENTENCE_BREAKS = frozenset("。！？!?…\n 　")
_CLAUSE_BREAKS = _SENTENCE_BREAKS | {"、", "「", "『", "（"}
_SORRY = ("恐れ入る", "おそれいる", "恐れいる")
_LASTING = ("困る", "考える", "悩む", "急ぐ", "待つ", "望む", "探す", "求める")
"""Verbs whose お〜です means that the act is going on."""
HAPPENING = ("ある", "できる", "出来る", "言える", "いえる", "謂える", "思える")
"""Verbs without a will: their 〜ましょう supposes."""
_THANKS_FOR_WORK = ("お疲れ様", "お疲れさま", "ご苦労様", "ご苦労さま", "ご馳走様", "ごちそうさま")


def to_plain(text: str, *, keep: Sequence[str] = ()) -> str:
    """Rewrite ``text`` in plain form: 行きます→行く, 静かですね→静かだね.

    Quotations, code, addresses and the names in ``keep`` stay unchanged.
    """
    return "".join(_PlainRewriter(words_of(text, keep)).rewrite())


class _PlainRewriter:
    """Rewrites a text in one pass from left to right.

    Each step rewrites the words at ``at``, appends to ``out`` and returns True, or returns False.
    """

    def __init__(self, words: list[Word]) -> None:
        self.words = words
        self.out: list[str] = []
        self.at = 0

    def word(self, offset: int = 0) -> Word:
        at = self.at + offset
        return self.words[at] if 0 <= at < len(self.words) else NO_WORD

    def rewrite(self) -> list[str]:
        steps = (
            self._rewrite_kudasatte,
            self._rewrite_itadaku,
            self._rewrite_masu,
            self._rewrite_itashikaneru,
            self._rewrite_humble_te_form,
            self._rewrite_request,
            self._rewrite_desu,
            self._rewrite_yoroshii,
        )
        while self.at < len(self.words):
            word = self.word()
            inflected = word.type != "*"
            if word.kept or not inflected or not any(step() for step in steps):
                self.out.append(word.surface)
                self.at += 1
        return self.out

    def _rewrite_kudasatte(self) -> bool:
        """Rewrite 来てくださって and 来てくださり、 as 来てくれて."""
        word, after = self.word(), self.word(1)
        pauses = word.surface[-1:] == "り" and after.surface in ("、", *_GREETINGS)
        if word.lemma not in ("くださる", "下さる"):
            return False
        if not pauses and after.surface not in ("て", "た"):
            return False
        form: Form = "past" if after.surface == "た" else "te"
        if not self._rewrite_prefixed_stem():
            return False
        self.out.append(conjugate("くれる", "下一段-ラ行", form))
        self.at += 1 if pauses else 2
        return True

    def _rewrite_itadaku(self) -> bool:
        """Rewrite ご支持いただき as 支持してもらい, and お待ちいただけれ… as 待ってもらえれ…."""
        word, after = self.word(), self.word(1)
        if word.lemma not in _RECEIVED or word.form.startswith("命令形"):
            return False
        if after.type == "助動詞-マス" or not self._honours():
            return False
        lemma, type_ = _HUMBLE[word.lemma]
        if after.surface in ("て", "た", "たら"):
            said: str | None = conjugate(lemma, type_, "te")[:-1]
        elif word.form.startswith("仮定形"):
            said = "もらえれ" if lemma == "もらえる" else "もらえ"
        else:
            said = conjugate_like(word, lemma, type_)
        if said is None or not self._rewrite_prefixed_stem():
            return False
        self.out.append(said)
        self.at += 1
        return True

    def _honours(self) -> bool:
        """Tell whether the word follows a noun of respect directly: ご支持いただく."""
        return self.word(-2).surface in ("お", "ご", "御") or self.word(-1).surface == "ご覧"

    # ── 〜ます ──

    def _rewrite_masu(self) -> bool:
        verb, masu = self.word(), self.word(1)
        if masu.kept or masu.type != "助動詞-マス" or not verb.is_verb():
            return False
        form, length = self._masu_form(1)
        length += 1
        if form is None:
            return False
        before = self.word(-1)
        alone = before is NO_WORD or before.surface in _SENTENCE_BREAKS
        if verb.lemma in ("いただく", "頂く") and alone and form == "plain":
            return False  # before a meal
        if before.surface == "どう" and verb.lemma in ("いたす", "致す") and form == "te":
            return False  # the answer to thanks
        if self._greets(verb, before, form) or self._wishes(length):
            return False
        if before.lemma == "願う" and form == "plain" and self.word(length).pos.startswith("名詞"):
            return False  # お願いします and a character's own ending
        if verb.lemma in _SORRY and form == "plain":
            if self.word(2).surface not in ("が", "けど", "けれど"):  # 恐れ入りますが
                return False
            self.out.append("すまない")
            self.at += length
            return True
        served = (
            verb.lemma == "いらっしゃる"
            and before.surface == "で"
            and before.pos != "助詞-接続助詞"
            and form == "past"
        )
        if served and self.out[-1:] == ["で"]:  # お疲れ様でいらっしゃいました
            self.out[-1] = "" if self._thanks_for_work(1) else "だった"
        elif verb.lemma in ("ござる", "御座る"):
            asked = (before.surface, self.word(2).surface) == ("で", "か") and form == "plain"
            if asked and self.word(-2).surface in QUESTION_WORDS:  # 何でございますか
                self.out[-1] = "だ"
                self.at += length + 1
                return True
            self._rewrite_gozaru(form)
        elif verb.lemma in (
            "願う",
            "いたす",
            "致す",
            "する",
            "申し上げる",
        ) and self._rewrite_humble_verb(form):
            pass
        else:
            lemma, type_ = _HUMBLE.get(verb.lemma, (verb.lemma, verb.type))
            if verb.surface == "はおり" and before.surface in ("に", "で"):  # は, and おる
                self.out.append("は")
                lemma, type_ = _HUMBLE["おる"]
            asks = verb.lemma == "願える" and "お" in (self.word(-2).surface, self.word(-3).surface)
            if asks and self._rewrite_asked_stem():  # お聞かせ願えますか
                lemma, type_ = "もらえる", "下一段-ア行"
            if verb.lemma in ("存じる", "存ずる") and before.is_adjective():  # 伺いたく存じます
                self.out[-1] = before.lemma + "と"
            elif verb.lemma in ("存じる", "存ずる") and before.surface not in ("と", "に"):
                lemma, type_ = "知る", "五段-ラ行"
            elif verb.lemma == "申し上げる" and "サ変" in before.pos:  # 感謝申し上げます
                lemma, type_ = "する", "サ行変格"
            if verb.lemma in _RECEIVING_VERBS and not self._rewrite_prefixed_stem():
                return False
            self.out.append(_conjugate_masu(lemma, type_, form))
        self.at += length
        if form == "plain" and self.word().surface == "な":  # 分かるな would forbid
            self.out.append("ね")
            self.at += 1
        return True

    def _rewrite_asked_stem(self) -> bool:
        """Rewrite お聞かせ of お聞かせ願える as 聞かせて."""
        for length in (1, 2):
            stem, prefix = self.word(-length), self.word(-length - 1)
            if prefix.surface == "お" and stem.is_verb() and len(self.out) > length:
                said = "".join(self.out[-length:])
                self.out[-length - 1 :] = [_te_of_stem(said, self.word(-1))]
                return True
        return False

    def _greets(self, verb: Word, before: Word, form: Form) -> bool:
        """Tell whether verb and ます are a greeting: はじめまして, ようこそいらっしゃいました."""
        first = verb.lemma in ("はじめる", "始める", "初める") and form == "te"
        if first:
            return verb.surface != "始め" and before.surface not in ("を", "から")
        return verb.lemma == "いらっしゃる" and before.surface in ("ようこそ", "こそ")

    def _wishes(self, offset: int) -> bool:
        """Tell whether よう after ます is a wish: 叶いますように, 実りますよう、祈る."""
        hope, to, after = (self.word(offset + by) for by in range(3))
        if hope.surface != "よう":
            return False
        after = after if to.surface == "に" else to
        return not after.is_spoken() or after is NO_WORD

    def _rewrite_prefixed_stem(self) -> bool:
        """Rewrite お待ちくださ… as 待ってくれ…, and ご連絡いただ… as 連絡してもら….

        Return whether the verb of giving may be rewritten: not after another noun, as in
        お時間いただく.
        """
        stem, prefix = self.word(-1), self.word(-2)
        if stem.surface == "ご覧" and self.out[-1:] == ["ご覧"]:
            self.out[-1] = "見て"
            return True
        if prefix.surface not in ("お", "ご", "御") or stem.kept or len(self.out) < 2:
            return not stem.pos.startswith("名詞")
        verb = stem if stem.is_verb() else verb_of_noun(stem)
        if stem.surface == "越し":
            self.out[-2:] = ["来て"]
        elif verb is not None:
            brings = "きて" if verb.lemma == "持つ" and self.word(-3).surface != "を" else ""
            self.out[-2:] = [conjugate(verb.lemma, verb.type, "te") + brings]
        elif "サ変" in stem.pos:
            self.out[-2:] = [stem.surface + "して"]
        else:
            return not stem.pos.startswith("名詞")
        return True

    def _masu_form(self, offset: int) -> tuple[Form | None, int]:
        """Return the form of ます at ``offset`` with its suffixes, and their number of words."""
        masu, after, third = (self.word(offset + i) for i in range(3))
        if masu.form.startswith("意志推量形") or (
            masu.surface == "ましょ" and after.surface == "う"
        ):
            return "volitional", 1 if masu.surface != "ましょ" else 2
        if masu.surface == "ませ" and after.type == "助動詞-ヌ":
            if third.surface == "でし" and self.word(offset + 3).surface == "た":
                return "negative_past", 4
            if third.surface == "です":
                return "negative", 3
            return "negative", 2
        if masu.surface == "まし":
            if after.surface == "た":
                return (
                    ("past", 3)
                    if third.type == "助動詞-デス" and third.surface == "です"
                    else ("past", 2)
                )
            if after.surface == "たら":
                return "if", 2
            if after.surface == "て":
                return "te", 2
            return None, 0
        if masu.surface == "ませ":  # いらっしゃいませ
            return "stem", 1
        return "plain", 1

    def _rewrite_gozaru(self, form: Form) -> None:
        before = self.word(-1)
        negative = form.startswith("negative")
        past = form in ("past", "negative_past")
        if "".join(self.out[-6:]).endswith(_GREETINGS):
            return
        if before.is_adjective() and before.form.startswith("連用形-ウ音便"):  # 美しゅう
            self.out[-1] = before.lemma
            return
        if before.is_adjective() and before.form == "連用形-一般" and form == "plain":
            self.out[-1] = before.lemma  # 多くございます
            return
        copula = before.surface == "で" or (
            before.surface == "に" and self.word().surface == "ござり"  # 一品にござります
        )
        if copula and not negative and self.out[-1:] == [before.surface]:
            said = "だろう" if form == "volitional" else "だった" if past else "だ"
            self.out[-1] = "" if said == "だ" and self.word(2).surface == "か" else said
            return
        if before.surface == "で" and negative:
            self.out.append("は")
        self.out.append(_conjugate_masu("ある", "五段-ラ行", form))

    def _rewrite_humble_verb(self, form: Form) -> bool:
        """Rewrite お願いします as お願い, and お待ちします as 待つ."""
        verb = self.word()
        stem, prefix = self.word(-1), self.word(-2)
        if verb.lemma == "願う":
            return False
        if stem.lemma == "願う" and prefix.surface in ("お", "御"):
            if (form == "plain" and self.word(2).pos.startswith(("補助記号", "空白"))) or (
                form == "plain" and self.word(2) is NO_WORD
            ):
                if self.word(-3).lemma in ("よろしく", "宜しい", "よろしい"):
                    del self.out[-2:]
                return True
            self.out.append(conjugate("する", "サ行変格", form))
            return True
        if prefix.surface not in ("お", "ご", "御") or len(self.out) < 2 or stem.kept:
            return False
        do = stem if stem.pos.startswith("動詞") else None
        if do is None and prefix.surface == "お" and "サ変" not in stem.pos:
            do = verb_of_noun(stem)
        if do is None and "サ変" in stem.pos and verb.lemma in ("する", "いたす", "致す"):
            self.out[-2:] = [stem.surface + conjugate("する", "サ行変格", form)]  # ご理解しました
            return True
        # お持ちします is 持ってくる or 持つ; one cannot 見舞う from the heart.
        if do is None or do.lemma in ("持つ", "見舞う"):
            return False
        if do.lemma == "察す":
            self.out[-2:] = [conjugate("察する", "サ行変格", form)]
            return True
        self.out[-2:] = [conjugate(do.lemma, do.type, form)]
        return True

    def _rewrite_itashikaneru(self) -> bool:
        """Rewrite お答えいたしかね… as 答えかね…, and 対応いたしかね… as 対応しかね…."""
        do, stem, prefix = self.word(), self.word(-1), self.word(-2)
        if do.lemma not in ("いたす", "致す") or self.word(1).pos != "接尾辞-動詞的":
            return False
        honorific = prefix.surface in ("お", "ご", "御") and len(self.out) > 1
        if honorific:
            del self.out[-2]
        if not (honorific and stem.is_verb()):
            self.out.append("し")
        self.at += 1
        return True

    def _rewrite_yoroshii(self) -> bool:
        """Rewrite よろしければ as よければ, and よろしいです as いい."""
        word, after = self.word(), self.word(1)
        if word.lemma not in ("よろしい", "宜しい"):
            return False
        if word.form.startswith("仮定形"):
            self.out.append("よけれ")
        elif after.type == "助動詞-デス" and word.form.startswith(("終止形", "連体形")):
            self.out.append("いい")
        else:
            return False
        self.at += 1
        return True

    def _rewrite_humble_te_form(self) -> bool:
        """Rewrite お待ちしており… as 待ってい…."""
        do, te = self.word(), self.word(1)
        stem, prefix = self.word(-1), self.word(-2)
        if do.lemma not in ("する", "いたす", "致す", "申し上げる") or te.surface not in (
            "て",
            "た",
        ):
            return False
        honorific = prefix.surface in ("お", "御") and stem.pos.startswith("動詞")
        if te.kept or stem.lemma == "願う" or not honorific or len(self.out) < 2:
            return False
        form: Form = "te" if te.surface == "て" else "past"
        self.out[-2:] = [conjugate(stem.lemma, stem.type, form)]
        self.at += 2
        return True

    # ── 〜てください, お待ちください ──

    def _rewrite_request(self) -> bool:
        word = self.word()
        if word.lemma not in ("くださる", "下さる") or not word.form.startswith("命令形"):
            return False
        before, prefix = self.word(-1), self.word(-2)
        soft = self.word(1).surface == "ね"
        give = "" if soft else "くれ"
        honorific = prefix.surface in ("お", "ご", "御") and len(self.out) > 1
        if before.kept:
            return False
        if [self.word(-back).surface for back in (4, 3, 2, 1)] == ["お", "気", "を", "つけ"]:
            self.out[-4:] = ["気", "を", "つけて" + give]
        elif honorific and before.surface == "越し":
            self.out[-2:] = ["来て" + give]
        elif honorific and before.pos.startswith("動詞"):
            self.out[-2:] = [conjugate(before.lemma, before.type, "te") + give]
        elif before.surface == "ご覧":
            self.out[-1:] = ["見て" + give]
        elif honorific and (verb := verb_of_noun(before)):
            self.out[-2:] = [conjugate(verb.lemma, verb.type, "te") + give]
        elif before.surface[:1] == "お" and (
            verb := verb_of_noun(before, 1)
        ):  # お知らせ is one word
            self.out[-1:] = [conjugate(verb.lemma, verb.type, "te") + give]
        elif honorific and "サ変" in before.pos:
            self.out[-2:] = [before.surface + "して" + give]
        elif before.surface in ("て", "で", "ないで", "を", "も", "は"):
            self.out.append("くれ" if before.surface in ("を", "も", "は") else give)
        elif "助数詞" in before.pos or before.surface in ("一杯", "一つ", "少し", "ちょっと"):
            self.out.append("くれ")
        else:
            return False
        self.at += 1
        if self.word().type == "助動詞-マス":  # くださいませ
            self.at += 1
        return True

    # ── 〜です ──

    def _rewrite_desu(self) -> bool:
        word = self.word()
        if word.type != "助動詞-デス" or word.surface == "す":  # でやんす
            return False
        before, after = self.word(-1), self.word(1)
        stem = before.form.startswith("語幹") or before.form == "連用形-一般"  # お勧めです
        drops = not before.kept and (
            (before.is_adjective() and not stem)
            or (before.is_verb() and not stem)
            or before.type in ("助動詞-タ", "助動詞-ヌ", "助動詞-マス")
        )
        length = 1
        if word.surface != "で" and (verb := self._progressive_verb()):
            te = conjugate(verb.lemma, verb.type, "te")
            past = (word.surface, after.surface) == ("でし", "た")
            self.out[-2:] = [te + ("いた" if past else "いる")]
            drops = True
            if (
                word.surface == "です"
                and after.surface == "か"
                and has_question_word_before(self.words, self.at)
            ):
                self.out.append("？")
                self.at += 3 if self.word(2).surface in ("。", "？", "?") else 2
                return True
        if word.surface in ("でしょ", "でしょう"):
            length = 2 if after.surface == "う" else 1
            if before.surface == "いかが":
                self.out[-1] = "どう"
            self.out.append("だろう" if length == 2 or word.surface == "でしょう" else "だろ")
        elif word.surface == "でし":
            length = 2
            if after.surface == "たら":
                self.out.append("なら")
            elif after.surface == "て":
                self.out.append("て" if drops else "で")
            elif not drops and not self._thanks_for_work():
                self.out.append("だった")
        elif not drops:
            length = self._rewrite_desu_after_noun(before, after)
        self.at += length
        return True

    def _thanks_for_work(self, after: int = 0) -> bool:
        """Tell whether the text, but for its last ``after`` words, ends in お疲れ様."""
        return "".join(self.out[-6 - after : len(self.out) - after]).endswith(_THANKS_FOR_WORK)

    def _progressive_verb(self) -> Word | None:
        """Return the verb of 探し in 何をお探しです, which means 探している; so does お困りです."""
        stem, prefix, object_ = (self.word(-back) for back in (1, 2, 3))
        if prefix.surface not in ("お", "御") or stem.kept or len(self.out) < 2:
            return None
        verb = stem if stem.is_verb() else verb_of_noun(stem)
        if verb is None or verb.lemma == "願う":
            return None
        return verb if object_.surface == "を" or verb.lemma in _LASTING else None

    def _rewrite_desu_after_noun(self, before: Word, after: Word) -> int:
        """Rewrite です after a noun or the like as だ; return the number of words read."""
        ends = self.word(2)
        if self._thanks_for_work():
            return 1
        if after.surface == "か":
            what = (self.word(-2).surface, before.surface) == ("な", "ん")
            if what and (self.word(-3) is NO_WORD or self.word(-3).surface[:1] in _CLAUSE_BREAKS):
                self.out[-2:] = ["何だ"]  # taken for the な and ん of 学生なんですか
                return 2
            if before.surface in ("ん", "の") and before.pos.startswith("助詞"):
                self.out[-1] = "の"
                return 1
            if before.surface == "いかが":
                self.out[-1] = "どう"
            asks = before.surface in (*QUESTION_WORDS, "いかが") or has_question_word_before(
                self.words, self.at
            )
            if asks and not ends.surface.startswith("な"):
                self.out.append("だ")
                return 2
            return 1
        if (after.surface, ends.surface) in (("の", "で"), ("の", "に")) or after.surface in (
            "ので",
            "のに",
        ):
            self.out.append("な")
            return 1
        self.out.append("だ")
        return 1


def _te_of_stem(said: str, last: Word) -> str:
    """Return the て form of a verb's stem ``said`` that ends with the word ``last``."""
    return said[: -len(last.surface)] + conjugate(last.lemma, last.type, "te")


def _conjugate_masu(lemma: str, type_: str, form: Form) -> str:
    """Conjugate a verb like its 〜ます. 言えましょう supposes, it isn't a proposal."""
    if form == "volitional" and lemma in (*HAPPENING, "れる", "られる"):
        return lemma + "だろう"
    return conjugate(lemma, type_, form)


def has_question_word_before(words: Sequence[Word], at: int) -> bool:
    """Return whether a question word is before ``words[at]`` in its clause.

    誰の車 has one; 誰か and 誰も are none.
    """
    for back in range(at - 1, -1, -1):
        word, after = words[back], [each.surface for each in words[back + 1 : back + 3]]
        if word.kept or word.surface[:1] in _SENTENCE_BREAKS or word.surface == "、":
            return False
        if word.surface in QUESTION_WORDS:
            return after != ["で", "も"] and after[:1] not in (["か"], ["も"], ["でも"], ["って"])
    return False


_DICTIONARY_ENDINGS = dict(zip("いきぎしちにびみり", "うくぐすつぬぶむる", strict=True))


def verb_of_noun(noun: Word, after: int = 0) -> Word | None:
    """Return the verb whose stem is a noun like 知らせ or 話し, from its letter ``after`` on."""
    stem = noun.surface[after:]
    if not noun.pos.startswith("名詞") or not stem:
        return None
    for lemma in (stem + "る", stem[:-1] + _DICTIONARY_ENDINGS.get(stem[-1], "")):
        words = words_of(lemma)
        if len(words) == 1 and words[0].pos.startswith("動詞"):
            verb = words[0]
            if conjugate(verb.lemma, verb.type, "stem") == stem:
                return verb
    return None
