"""Rewrite plain Japanese as polite Japanese (常体 → 敬体).

The predicate that ends a sentence, and those before が and けど, are conjugated anew. A predicate
before から, ので or a noun stays: it is plain in polite speech as well.
"""

from __future__ import annotations

from collections.abc import Sequence

from persona_lab.japanese.morphology import NO_WORD, Form, Word, conjugate, words_of
from persona_lab.japanese.plain import HAPPENING, QUESTION_WORDS, has_question_word_before

_SENTENCE_ENDS = "。！？!?…\n"
_BUT_PARTICLES = ("が", "けど", "けれど", "けれども")
_POLITE_WORDS = {
    "ありがとう": "ありがとうございます",
    "有難う": "有難うございます",
    "おはよう": "おはようございます",
    "おめでとう": "おめでとうございます",
    "ごめん": "ごめんなさい",
    "うん": "はい",
    "ううん": "いいえ",
    "よろしく": "よろしくお願いします",
    "おやすみ": "おやすみなさい",
    "だが": "ですが",
    "だけど": "ですけど",
    "だから": "ですから",
    "じゃあ": "では",
}
"""A word that is a sentence or begins one → its polite form."""
_SET_PHRASES = {
    "おやすみ": "おやすみなさい",
    "おやすみなさい": "おやすみなさい",
    "お疲れ": "お疲れ様です",
    "お疲れ様": "お疲れ様です",
    "お疲れさま": "お疲れさまです",
    "ごちそうさま": "ごちそうさまでした",
}
"""A sentence of several words → its polite form."""
_SLURRED_ENDS = {
    "てん": "てる",
    "でん": "でる",
    "ねえ": "ない",
    "ねー": "ない",
    "ねぇ": "ない",
    "ん": "ない",
}
"""A slurred end before の → its standard form: 何してんの, 知らねえの, 知らんの."""
_REQUESTED = frozenset(
    """
    待つ 来る くる 見る みる 見せる 聞く 聴く 聞かせる 教える 手伝う 助ける 座る すわる 入る
    食べる 飲む 読む 書く 貸す かす 取る とる 持つ 開ける あける 閉める 急ぐ いそぐ 頑張る
    がんばる やめる 止める 許す 信じる 任せる まかせる 言う いう 話す 答える 選ぶ 試す 使う
    行く いく 帰る 休む 寝る 起きる 立つ 歩く 走る 止まる 離す 放す 離れる 触る 押す 引く
    投げる 渡す 考える 忘れる 覚える 思い出す 落ち着く つける 付ける 下がる さがる 逃げる
    隠れる 伏せる 送る 届ける 出す 買う 呼ぶ 頼る 頼む 黙る 笑う 泣く 怒る 続ける 始める 直す
    治す 置く おく 回す 切る 消す 捨てる 探す 調べる 見つける する やる くれる
    """.split()  # noqa: SIM905 - easier to read than 80 strings
)
"""Verbs that one asks somebody to do."""
_EMPHATIC_PARTICLES = ("よ", "ね", "な", "なあ", "なぁ", "ぞ", "ぜ", "わ", "さ")
_CONTRACTIONS = {
    "てる": "ている",
    "でる": "でいる",
    "ちゃう": "てしまう",
    "じゃう": "でしまう",
    "とく": "ておく",
    "どく": "でおく",
    "とける": "ておく",
    "どける": "でおく",
    "てく": "ていく",
    "でく": "でいく",
    "とる": "ている",
    "どる": "でいる",
    "ちまう": "てしまう",
    "じまう": "でしまう",
}
_MASU_ENDINGS: dict[Form, str] = {
    "plain": "ます",
    "past": "ました",
    "negative": "ません",
    "negative_past": "ませんでした",
    "volitional": "ましょう",
}
_NEGATED_WITH_N = frozenset(
    """
    しれる 知れる 知る 分かる わかる 判る できる 出来る なる 要る いる おる ある 足りる つまる
    たまる 見える 聞こえる 思い出せる 構う かまう 変わる 済む すむ くれる もらう れる られる
    """.split()  # noqa: SIM905 - easier to read than 30 strings
)
"""Verbs whose ん denies: 知らん. 教えん may mean 教えよう or 教えない."""
_HONORIFIC_ENDINGS = ("なさる", "なはる", "たまう", "給う")
"""Verbs whose command follows a stem: 行きなさい, 進みたまえ."""
_LAUGH_MARKS = ("笑", "泣", "汗", "涙", "草", "w", "ww", "www")
_STEMS_BEFORE_NAI = ("もったい", "勿体", "くだら", "とんでも")
"""Words that form one adjective with ない, which is no negation."""
_POLITE_PARTICLES = {
    "ぜ": "よ",
    "ぞ": "よ",
    "わ": "",
    "わー": "",
    "さ": "",
    "なあ": "ね",
    "なぁ": "ね",
    "なー": "ねー",
    "な": "ね",
    "や": "",
}
"""A final particle → the particle of polite speech."""
_DEMONSTRATIVES = ("こんな", "そんな", "あんな", "どんな")
_DIALECT_PARTICLES = ("で", "ねん", "のう", "べ", "ばい", "たい", "がな", "とも")
"""Final particles after which a plain predicate isn't standard Japanese."""
_DIALECT_TYPES = ("助動詞-ジャ", "助動詞-ヤ", "助動詞-ヘン", "文語")
_MAY = ("よい", "いい", "良い", "よろしい", "宜しい")
"""Adjectives that form a command with が: 行くがよい."""


def to_polite(text: str, *, keep: Sequence[str] = ()) -> str:
    """Rewrite ``text`` in polite form: 行く→行きます, 静かだった→静かでした, 待って→待ってください.

    Polite sentences, quotations, code, addresses and the names in ``keep`` stay unchanged.
    """
    words = words_of(text, keep)
    out: list[str] = []
    start = 0
    for at, word in enumerate(words):
        if not word.kept and (word.surface[:1] in _SENTENCE_ENDS or "\n" in word.surface):
            if at > start:
                out += _rewrite_sentence(words[start:at], word.surface[:1])
            out.append(word.surface)
            start = at + 1
    return "".join([*out, *_rewrite_sentence(words[start:], "")])


def _rewrite_sentence(words: list[Word], mark: str) -> list[str]:
    """Return a sentence, without its ``mark``, in polite form."""
    end = count_spoken_words(words)
    if not end:
        return [word.surface for word in words]
    question = mark in ("？", "?")
    breaks_off = mark == "…" or _is_dots(words[end:])
    closing = [word.surface for word in words[end:]]
    clauses: list[str] = []
    start = 0
    for at in range(1, end):  # one may end the sentence: そう思うけど。
        but = words[at]
        if but.surface == "、" and _is_inverted(words[start:at], words[at + 1 : at + 2]):
            clauses += [*_Clause(words[start:at]).rewrite(), "、"]
            start = at + 1
        commands = at + 1 < end and words[at + 1].lemma in _MAY  # 行くがよい
        joins = but.surface in _BUT_PARTICLES and but.pos == "助詞-接続助詞" and not commands
        if joins and not but.kept:
            clauses += [
                *_Clause(words[start:at], final=False).rewrite(),
                but.surface,
            ]
            start = at + 1
    last = _Clause(
        words[start:end], question=question, breaks_off=breaks_off, exclaims=mark in ("！", "!")
    )
    final = last.rewrite()
    if last.stays_plain():  # it isn't polite after a polite clause: 著しいですが、運命じゃ
        return [word.surface for word in words]
    return [*clauses, *final, *closing]


def _is_dots(words: Sequence[Word]) -> bool:
    """Tell whether words begin with an ellipsis."""
    return "".join(word.surface for word in words[:3]).startswith(("…", "...", "・・", "‥"))


def _is_inverted(words: Sequence[Word], after: Sequence[Word]) -> bool:
    """Return whether an inverted sentence begins with its predicate, as in いいよ、別に。."""
    at = len(words)
    while (
        at and words[at - 1].pos == "助詞-終助詞" and words[at - 1].surface in _EMPHATIC_PARTICLES
    ):
        at -= 1
    if not 0 < at < len(words) or any(word.surface in ("と", "って") for word in after):
        return False
    last = words[at - 1]
    states = last.is_predicate() and last.form.startswith("終止形")
    return states and not has_question_word_before(words, at)  # 何だよ、それ。


def count_spoken_words(words: Sequence[Word]) -> int:
    """Return the number of words before final marks, emoji, （笑） and the like."""
    end = len(words)
    while end:
        last = words[end - 1]
        if last.pos == "補助記号-括弧閉":
            opens = (at for at in range(end - 1, -1, -1) if words[at].pos == "補助記号-括弧開")
            begun = next(opens, 0)
            if not begun:
                return end - 1 if end == len(words) else end
            if last.surface in "」』":  # 君が言う「力」。
                break
            end = begun
        elif last.pos.startswith(("補助記号", "空白", "記号")) or (
            end > 1 and last.surface in _LAUGH_MARKS and words[end - 2].is_predicate()
        ):
            end -= 1
        else:
            break
    return end


def _count_doubt(particles: Sequence[str]) -> int:
    """Return the number of particles at the start that express doubt: かな, かしら."""
    if list(particles[:2]) == ["か", "な"]:
        return 2
    return 1 if particles and particles[0] in ("かな", "かしら") else 0


class _Clause:
    """A clause: ``words[:predicate_end]`` up to the end of its predicate, then particles."""

    def __init__(
        self,
        words: list[Word],
        *,
        final: bool = True,
        question: bool = False,
        breaks_off: bool = False,
        exclaims: bool = False,
    ) -> None:
        self.words = words
        self.final = final
        self.question = question
        self.breaks_off = breaks_off
        self.exclaims = exclaims
        self.is_unchanged = False
        """Whether the predicate stays as it is."""
        self.predicate_end = len(words)
        while self.predicate_end and (
            words[self.predicate_end - 1].pos == "助詞-終助詞"
            or (self.predicate_end > 1 and words[self.predicate_end - 1].pos == "助詞-準体助詞")
        ):
            self.predicate_end -= 1

    def word(self, back: int = 1) -> Word:
        """Return the word at ``back`` words before the predicate's end."""
        return self.words[self.predicate_end - back] if 0 < back <= self.predicate_end else NO_WORD

    def stays_plain(self) -> bool:
        """Tell whether the rewritten clause still ends in a plain predicate."""
        last = self.word()
        states = last.is_predicate() and last.form.startswith(("終止形", "連体形", "命令形"))
        polite = last.type in ("助動詞-マス", "助動詞-デス") or self._is_polite_past()
        return self.is_unchanged and states and not polite

    def rewrite(self) -> list[str]:
        surfaces = [word.surface for word in self.words]
        if "".join(surfaces) in _SET_PHRASES and not self.words[0].kept:
            return [_SET_PHRASES["".join(surfaces)]]
        if surfaces[:1] == ["すま"] and surfaces[2:3] == ["、"] and not self.words[0].kept:
            surfaces[:2] = ["すみ", "ません"]  # すまない, すまん
        if surfaces[-2:] in (["また", "な"], ["また", "ね"]) and not self.words[-2].kept:
            surfaces[-1:] = []
        parting = surfaces[:2] == ["じゃあ", "ね"]
        if not parting and surfaces and surfaces[0] in _POLITE_WORDS and not self.words[0].kept:
            whole = _POLITE_WORDS[surfaces[0]]
            if len(surfaces) == 1 or self.predicate_end == 1:
                return [whole]
            begins = self.words[0].pos.startswith(("感動詞", "接続詞"))
            if (begins and self.words[1].lemma != "ござる") or surfaces[1] == "、":
                surfaces[0] = whole
        if not self.predicate_end or self.word().kept:
            return surfaces
        found = self._rewrite_predicate()
        if found is None:
            self.is_unchanged = True
            return surfaces
        length, polite, tail = found
        return [*surfaces[: self.predicate_end - length], polite, *tail]

    def _rewrite_predicate(self) -> tuple[int, str, list[str]] | None:
        """Return the number of words to replace, the new text, and the particles after it.

        None leaves the clause unchanged.
        """
        last = self.word()
        tail = self._particles()
        if self.final and last.surface in ("よろしく", "ごめん", "ありがとう"):
            return 1, _POLITE_WORDS[last.surface], []
        if self.final and last.surface == "めでとう":
            return 0, "ございます", []
        asked = tail[:1] in (["の"], ["ん"])
        slurred = last.surface in _SLURRED_ENDS and self.word(2).surface != "ませ"
        if asked and slurred and self.word(2).is_predicate():
            _, polite, tail = self._rewrite_explanation(tail)
            return 1, _SLURRED_ENDS[last.surface] + polite, tail
        if last.type in ("助動詞-マス", "助動詞-デス") or self._is_polite_past():
            return None
        if self._is_dialect() or self._wonders():
            return None
        if self.final and last.surface in ("ちょうだい", "頂戴"):
            return 1, "ください", [mark for mark in tail if mark == "ね"]
        if self.final and last.surface == "も" and self.word(2).surface == "か":  # 雨かも
            return 0, "しれません", [mark for mark in tail if mark in ("ね", "よ")]
        if tail[:1] == ["じゃん"]:
            return 0, "じゃないですか", []
        if tail[:1] == ["よう"]:  # taken for a particle before ね
            return 0, "ようです", tail[1:]
        if asked:
            return self._rewrite_explanation(tail)
        if doubt := _count_doubt(tail):
            if last.form.startswith("意志推量形"):  # 何を話そうかな
                found = self._rewrite_ending()
                return (found[0], found[1] + "か", tail[doubt:]) if found else None
            return 0, "でしょうか", tail[doubt:]
        if tail[:1] == ["な"] and last.is_verb() and last.form.startswith(("終止", "連体")):
            return self._forbidden(last)
        found = self._rewrite_ending()
        if found is None:
            return None
        length, polite = found
        if polite.endswith(("ください", "ましょう")):
            tail = [mark for mark in tail if mark in ("ね", "か")]
        tail = [_POLITE_PARTICLES.get(mark, mark) for mark in tail]
        if (
            self.question
            and not {"か", "っけ"} & set(tail)
            and tail != ["よ", "ね"]
            and not polite.endswith(("ください", "でしょう", "か"))
        ):
            tail = ["か", *[mark for mark in tail if mark == "ね"]]
        return length, polite, tail

    def _is_dialect(self) -> bool:
        """Tell whether the predicate isn't standard Japanese: しとるで, ええねん."""
        last, before = self.word(), self.word(2)
        return (
            bool({*_DIALECT_PARTICLES} & {*self._particles()})
            or last.type.startswith(_DIALECT_TYPES)
            or last.lemma == "ええ"
            or (before.surface == "や" and last.lemma in ("ない", "無い"))
            or (before.surface == "んか" and last.is_adjective())
        )

    def _wonders(self) -> bool:
        """Tell whether a か doesn't ask the listener: 何か…, どうしたものか。, 敵か、味方か…."""
        tail = self._particles()
        if "か" not in tail or self.question or _count_doubt(tail) or _count_doubt(tail[1:]):
            return False
        if self.word().form.startswith("意志推量形"):  # 何を着ていこうか。
            return False
        if self.breaks_off or self.word().surface in (*QUESTION_WORDS, "べき"):
            return True
        asked = tail[:1] in (["の"], ["ん"])
        chooses = {"どの", "どんな"} & {word.surface for word in self.words}
        return not asked and (
            bool(chooses) or has_question_word_before(self.words, self.predicate_end)
        )

    def _particles(self) -> list[str]:
        """Return the particles after the predicate, without the い of かい and だい."""
        return [word.surface for word in self.words[self.predicate_end :] if word.surface != "い"]

    def _is_polite_past(self) -> bool:
        return self.word().type in ("助動詞-タ", "助動詞-ヌ") and self.word(2).type in (
            "助動詞-マス",
            "助動詞-デス",
        )

    def _rewrite_explanation(self, tail: list[str]) -> tuple[int, str, list[str]]:
        """Rewrite 行くの？ as 行くんですか？, and 行くのかな as 行くんでしょうか."""
        if doubt := _count_doubt(tail[1:]):
            return 0, "んでしょうか", tail[1 + doubt :]
        if "か" in tail and has_question_word_before(self.words, self.predicate_end):
            return 0, "んですか" if self.question else "のでしょうか", []  # 何を意味するのか。
        rest = [mark for mark in tail[1:] if mark in ("よ", "ね", "か")]
        if self.question and "か" not in rest:
            rest = ["か", *rest]
        return 0, "んです", rest

    def _rewrite_ending(self) -> tuple[int, str] | None:
        """Return the predicate's number of words, and its polite form."""
        last, before, third = (self.word(back) for back in (1, 2, 3))
        if last.form.startswith("仮定形"):  # 行かなきゃ, 行ったら
            return None
        if last.type == "助動詞-タ":
            return self._rewrite_past(before, third)
        if last.is_verb():
            return self._rewrite_verb(last, before)
        if last.lemma in ("ない", "無い") and last.is_adjective():
            states = last.form.startswith(("終止", "連体"))  # not ご心配なく
            return self._rewrite_negative("negative", 1) if states else None
        if last.type == "助動詞-ヌ" and last.surface == "ん" and before.surface != "いか":
            denies = before.is_verb() and before.lemma in _NEGATED_WITH_N
            return (2, _masu_form(before, "negative")) if denies else None  # 知らん
        if last.is_adjective() and last.lemma in _SLURRED_ENDS:
            if before.is_adjective():  # うまくねえ
                return 1, "ないです"
            return self._rewrite_negative("negative", 1)
        if last.is_adjective():
            commands = last.lemma in _MAY and before.surface == "が" and third.is_verb()
            states = last.form.startswith(("終止", "連体")) and not commands
            return (1, last.surface + "です") if states else None
        if last.type == "助動詞-ダ":
            if last.form.startswith("意志推量形"):
                return 1, "でしょう"
            if last.surface == "な" and before.is_verb():
                forbidden = self._forbidden(before)
                return (2, forbidden[1]) if forbidden else None
            recalls = self._particles()[:1] == ["っけ"]
            return (1, "でした" if recalls else "です") if last.surface == "だ" else None
        if last.surface in ("て", "で") and last.pos == "助詞-接続助詞" and self.final:
            te = before.form.startswith("連用形") or before.type == "助動詞-ナイ"
            if not te or "さ" in self._particles():  # 待ってるで, なんて言ってさ
                return None
            if third.surface in ("どう", "こう", "そう", "ああ"):  # どうして？
                return (0, "です") if self.question else None
            if not self._is_request():
                return None
            if _is_contraction(before):  # 待ってて
                return 2, conjugate(*_expand_contraction(before), "te") + "ください"
            return 1, last.surface + "ください"
        if last.surface == "よう" and before.is_verb() and before.form.startswith("連用形"):
            return 2, _masu_form(before, "volitional")  # 考えよう, taken for two words
        if self.breaks_off and not self._particles():  # 確か…
            return None
        if last.surface in _DEMONSTRATIVES:
            return None
        if last.pos.startswith("形状詞"):
            return 1, last.surface + "です"
        noun = last.pos.startswith(("名詞", "代名詞", "接尾辞")) or last.surface in ("そう", "どう")
        state = "形状詞可能" in last.pos and before.pos == "副詞"  # もう無理。
        if self._calls_somebody() or self._ends_in_character(last, before):
            return None
        if noun and self.final and (self.question or self._particles() or state):
            return 1, last.surface + "です"
        return None

    @staticmethod
    def _ends_in_character(last: Word, before: Word) -> bool:
        """Tell whether a noun is a character's own ending: 思うロボ？, かもロボね."""
        follows = before.surface == "も" or (before.is_predicate() and before.surface != "な")
        return follows and len(last.surface) <= 3 and all("ァ" <= c <= "ー" for c in last.surface)

    def _forbidden(self, verb: Word) -> tuple[int, str, list[str]] | None:
        """Rewrite 行くな！ as 行かないでください！.

        な after a verb is more often a feeling (よく見えるな。), so only an exclamation with a verb
        that one asks for counts.
        """
        if not self.exclaims or not self.final or not self._may_request(verb):
            return None
        return 1, conjugate(verb.lemma, verb.type, "negative") + "でください", []

    def _may_request(self, verb: Word) -> bool:
        subject = {"が", "は"} & {word.surface for word in self.words[: self.predicate_end]}
        return verb.lemma in _REQUESTED and not subject

    def _calls_somebody(self) -> bool:
        """Tell whether the clause ends by calling somebody: 大丈夫かい、山田君？."""
        surfaces = [word.surface for word in self.words[: self.predicate_end]]
        comma = len(surfaces) - 1 - surfaces[::-1].index("、") if "、" in surfaces else 0
        if comma > 0 and self.words[comma - 1].is_predicate():
            return True
        calls = self._particles() == ["よ"] and "形状詞" not in self.word().pos
        return calls and not {"は", "が", "も", "って"} & set(surfaces)

    def _is_request(self) -> bool:
        """Tell whether a final て asks the listener to do something: 待って, 待ってて, 見てて.

        Only verbs that are asked for count, without a subject and without dots after them:
        落としてしまって… and 心を込めて ask for nothing.
        """
        before, earlier = self.word(2), self.word(3)
        if self.breaks_off or self.question:
            return False
        if before.type == "助動詞-ナイ":  # 行かないで
            return self.word().surface == "で" and earlier.lemma in _REQUESTED
        verb = before
        if _is_contraction(verb) or verb.lemma in ("いる", "おく", "みる", "くる", "いく"):
            back = 3
            while self.word(back).surface in ("て", "で"):
                back += 1
            verb = self.word(back)
        return self._may_request(verb)

    def _rewrite_past(self, before: Word, third: Word) -> tuple[int, str] | None:
        if before.lemma == "じゃう" and not third.is_verb():  # 印象的じゃった
            return 2, "でした"
        if before.is_verb():
            return 2, _masu_form(before, "past")
        if before.lemma in ("ない", "無い"):
            return self._rewrite_negative("negative_past", 2)
        if before.is_adjective():
            return 1, self.word().surface + "です"
        return (2, "でした") if before.type == "助動詞-ダ" else None

    def _rewrite_negative(self, form: Form, length: int) -> tuple[int, str] | None:
        """Rewrite a final ない of ``length`` words: 行かない, 高くない, 静かじゃない."""
        verb, earlier = self.word(length + 1), self.word(length + 2)
        if verb.surface in _STEMS_BEFORE_NAI:
            return 0, "です"
        if verb.is_verb() and verb.form.startswith("未然形"):
            return length + 1, _masu_form(verb, form)
        if verb.surface in ("て", "で") and verb.pos == "助詞-接続助詞" and earlier.is_verb():
            return length, _masu_form(_IRU, form)  # 読んでない
        if verb.surface == "じゃ":
            asks = earlier.is_adjective() or earlier.pos == "助詞-準体助詞"
            if asks and form == "negative":  # いいじゃない, 行くんじゃない？
                asked = self.question and "か" not in self._particles()
                return length, "ないですか" if asked else "ないです"
            return length + 1, "じゃ" + _masu_form(_ARU, form)
        return length, _masu_form(_ARU, form)

    def _rewrite_verb(self, last: Word, before: Word) -> tuple[int, str] | None:
        if last.form.startswith("意志推量形"):
            return self._rewrite_volitional(last, before)
        if last.surface.endswith("ん"):  # 生み出せんぞ: a negation, or 生み出せる
            return None
        if last.lemma in ("うる", "得る") and before.is_verb():  # 起こりうる
            return None
        if last.form.startswith("命令形"):
            if last.lemma in ("くれる", "呉れる"):
                if before.surface == "と":  # 見とくれ
                    return None
                return (2 if before.pos == "接頭辞" else 1), "ください"
            if last.lemma in _HONORIFIC_ENDINGS:
                if before.is_verb() and self.word(3).pos != "接頭辞":  # not お帰りなさい
                    return 2, conjugate(before.lemma, before.type, "te") + "ください"
                return None
            if last.lemma in _NOT_COMMANDED:
                return None
            verb = _IRU if last.lemma == "おる" else last
            return 1, conjugate(*_expand_contraction(verb), "te") + "ください"
        if last.form.startswith(("終止形", "連体形")):
            return 1, _masu_form(last, "plain")
        return None

    def _rewrite_volitional(self, last: Word, before: Word) -> tuple[int, str]:
        """Rewrite 行こう as 行きましょう, but a supposition as でしょう: できよう, 開かれよう."""
        subject = {"が", "は", "も"} & {word.surface for word in self.words[: self.predicate_end]}
        if last.lemma == "ある" and before.surface == "で" and before.type == "助動詞-ダ":
            return 2, "でしょう"  # 学生であろう
        comes_about = last.lemma == "なる" and before.surface == "と"
        passive = last.lemma in ("れる", "られる") and bool(subject)
        if last.lemma in HAPPENING or comes_about or passive:
            return 1, last.lemma + "でしょう"
        return 1, _masu_form(last, "volitional")


_NOT_COMMANDED = ("くださる", "下さる", "いらっしゃる", "いたす", "致す", "参る", "れる", "られる")
"""Verbs whose command is no plain one, or belongs to another time: 行かれよ."""
_ARU = Word("ある", "ある", "動詞", "五段-ラ行", "終止形")
_IRU = Word("いる", "いる", "動詞", "上一段-ア行", "終止形")


def _masu_form(verb: Word, form: Form) -> str:
    return conjugate(*_expand_contraction(verb), "stem") + _MASU_ENDINGS[form]


def _is_contraction(verb: Word) -> bool:
    return verb.pos.startswith("助動詞") and verb.lemma in _CONTRACTIONS


def _expand_contraction(verb: Word) -> tuple[str, str]:
    """Return dictionary form and conjugation without contraction: てる is ている."""
    if not _is_contraction(verb):
        return verb.lemma, verb.type
    lemma = _CONTRACTIONS[verb.lemma]
    return lemma, "上一段" if lemma.endswith("いる") else "五段"
