"""Analyse Japanese text into morphemes, and conjugate verbs.

SudachiPy analyses, with UniDic's categories. The conjugation tables follow school grammar.
"""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from sudachipy import Dictionary, Tokenizer

Form = Literal["plain", "past", "te", "negative", "negative_past", "volitional", "stem", "if"]
"""行く, 行った, 行って, 行かない, 行かなかった, 行こう, 行き, 行ったら."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_MAX_CACHED_WORDS = 16_384
_MAX_ANALYSIS_LENGTH = 10_000
"""Most characters of one analysis: SudachiPy takes up to 49,149 bytes."""
_UNCHANGED_PARTS = re.compile(
    r"(?P<fence>`{3,}|(?m:^[ \t]*)~{3,}).*?(?:(?P=fence)|\Z)|`[^`\n]+`|https?://[^\s、。」』）)]+|(?<![\w.+-])[\w.+-]+@[\w-]+\.[\w.]+"
    r"|「[^「」]*」|『[^『』]*』|“[^“”]*”|\"[^\"\n]*\""
    r"|（[^（）]*）|\([^()]*\)|(?<!\*)\*[^*\s][^*\n]*\*(?!\*)",
    re.DOTALL,
)
"""Code, addresses, quotations and stage directions, which are never rewritten."""


@dataclass(frozen=True, slots=True)
class Word:
    """A morpheme of a text. ``kept`` words are never changed."""

    surface: str
    lemma: str
    """Its dictionary form."""
    pos: str
    """Part of speech, from the general to the particular: 助詞-終助詞."""
    type: str
    """Type of conjugation: 五段-カ行, 助動詞-マス; * for words without one."""
    form: str
    """Conjugated form: 連用形-一般."""
    kept: bool = False

    def is_verb(self) -> bool:
        """Return whether this is a verb, or an auxiliary like one: れる, ちゃう, かねる."""
        return self.pos.startswith(("動詞", "接尾辞-動詞的")) or (
            self.pos.startswith("助動詞")
            and self.type.startswith(("五段", "下一段", "助動詞-レル"))
        )

    def is_adjective(self) -> bool:
        """Return whether this is an い-adjective, or conjugates like one: ない, たい, らしい."""
        return (
            self.pos.startswith("形容詞") or self.type in _ADJECTIVE_TYPES or "形容詞" in self.type
        )

    def is_spoken(self) -> bool:
        """Return whether this is spoken: not a mark, a space or a symbol."""
        return not self.pos.startswith(("補助記号", "空白", "記号"))

    def is_predicate(self) -> bool:
        """Return whether this can end a sentence, or is a particle after such a word."""
        ends = self.pos.startswith("助動詞") or self.pos == "助詞-終助詞"
        return ends or self.is_verb() or self.is_adjective()


_ADJECTIVE_TYPES = ("助動詞-ナイ", "助動詞-タイ", "助動詞-ラシイ")
NO_WORD = Word("", "", "", "*", "*", kept=True)
"""The word before the first and after the last word."""

_thread_local = threading.local()


@lru_cache(maxsize=1)
def _dictionary() -> Dictionary:
    from sudachipy import Dictionary

    return Dictionary(dict="small")


def _tokenizer() -> Tokenizer:
    """Return this thread's tokenizer: a shared one raises."""
    if not hasattr(_thread_local, "tokenizer"):
        _thread_local.tokenizer = _dictionary().tokenizer()
    tokenizer: Tokenizer = _thread_local.tokenizer
    return tokenizer


@lru_cache(maxsize=_MAX_CACHED_WORDS)
def _word(surface: str, lemma: str, part_of_speech: int, kept: bool) -> Word:
    """Return a word with its grammar, by SudachiPy's number of the part of speech."""
    *parts, type_, form = _dictionary().pos_of(part_of_speech)
    if lemma.endswith("ずる") and surface[len(lemma) - 2 :][:1] == "じ":  # 信じる, not 信ずる
        lemma, type_ = lemma[:-2] + "じる", "上一段-ザ行"
    return Word(surface, lemma, "-".join(part for part in parts if part != "*"), type_, form, kept)


def words_of(text: str, keep: Sequence[str] = ()) -> list[Word]:
    """Return the morphemes of ``text``; their surfaces, joined, are ``text``.

    Words within quotations, code, addresses and the names in ``keep`` are marked as kept.
    """
    kept = bytearray(len(text))
    spoken = [re.compile(re.escape(name)) for name in keep if name]
    for match in itertools.chain.from_iterable(
        p.finditer(text) for p in (_UNCHANGED_PARTS, *spoken)
    ):
        kept[match.start() : match.end()] = b"\1" * len(match[0])
    found: list[Word] = []
    at = 0
    for piece in _split_long_text(text):
        # SudachiPy refuses half a surrogate pair.
        for morpheme in _tokenizer().tokenize(_SURROGATE.sub("?", piece)):
            first, last = at, at + len(morpheme.surface())
            at = last
            found.append(
                _word(
                    text[first:last],
                    morpheme.dictionary_form(),
                    morpheme.part_of_speech_id(),
                    any(kept[first:last]),
                )
            )
    return found


def _split_long_text(text: str) -> list[str]:
    """Cut ``text`` into lengths that can be analysed, after a line or sentence where possible."""
    pieces = []
    while len(text) > _MAX_ANALYSIS_LENGTH:
        cut = (
            max(text.rfind(mark, 0, _MAX_ANALYSIS_LENGTH) for mark in "\n。！？") + 1
            or _MAX_ANALYSIS_LENGTH
        )
        pieces.append(text[:cut])
        text = text[cut:]
    return [*pieces, text] if text else pieces


def sentences(text: str) -> list[str]:
    """Cut ``text`` after each sentence; the parts, joined, are ``text``.

    A sentence ends with its marks or with its line, but never within a quotation.
    """
    found, start = [], 0
    kept = iter([match.span() for match in _UNCHANGED_PARTS.finditer(text)])
    first, last = next(kept, (len(text), len(text)))
    for match in _SENTENCE_END.finditer(text):
        while last <= match.start() and first < len(text):
            first, last = next(kept, (len(text), len(text)))
        if first <= match.start() < last:
            continue
        found.append(text[start : match.end()])
        start = match.end()
    return [*found, text[start:]] if start < len(text) else found


_SENTENCE_END = re.compile("[。！？!?…]+|\n")


# ── conjugation ───────────────────────────────────────────────────────────────────────────

# Last kana of the dictionary form → the endings of 未然, 連用, 意志 and of て and た.
_GODAN_ENDINGS = {
    "う": ("わ", "い", "おう", "って", "った"),
    "く": ("か", "き", "こう", "いて", "いた"),
    "ぐ": ("が", "ぎ", "ごう", "いで", "いだ"),
    "す": ("さ", "し", "そう", "して", "した"),
    "つ": ("た", "ち", "とう", "って", "った"),
    "ぬ": ("な", "に", "のう", "んで", "んだ"),
    "ぶ": ("ば", "び", "ぼう", "んで", "んだ"),
    "む": ("ま", "み", "もう", "んで", "んだ"),
    "る": ("ら", "り", "ろう", "って", "った"),
}
_HONORIFIC_VERBS = (
    "くださる",
    "下さる",
    "なさる",
    "いらっしゃる",
    "らっしゃる",
    "おっしゃる",
    "仰る",
    "ござる",
)
"""五段 verbs whose stem ends in い: ください, なさい."""


def conjugate(lemma: str, type_: str, form: Form) -> str:
    """Conjugate ``lemma`` (a dictionary form) into ``form``; ``type_`` is as in :class:`Word`."""
    if form == "plain":
        return lemma
    negative, stem, volitional, te, past = _conjugation_bases(lemma, type_)
    return {
        "stem": stem,
        "te": te,
        "past": past,
        "if": past + "ら",
        "volitional": volitional,
        "negative": negative + "ない",
        "negative_past": negative + "なかった",
    }[form]


def conjugate_like(word: Word, lemma: str, type_: str) -> str | None:
    """Conjugate the verb ``lemma`` into the form that the verb ``word`` has.

    Return None for forms that this module doesn't make (imperatives, 仮定形).
    """
    if word.form.startswith(("終止形", "連体形")):
        return lemma
    if word.form.startswith("意志推量形"):
        return conjugate(lemma, type_, "volitional")
    if word.form.startswith("未然形"):
        return conjugate(lemma, type_, "negative")[:-2]
    before_te = word.form == "連用形-イ音便" and word.lemma[-1:] in ("く", "ぐ")
    if before_te or word.form.startswith(("連用形-促音便", "連用形-撥音便")):
        return conjugate(lemma, type_, "te")[:-1]
    return conjugate(lemma, type_, "stem") if word.form.startswith("連用形") else None


def _conjugation_bases(lemma: str, type_: str) -> tuple[str, str, str, str, str]:
    """Return the bases 未然, 連用, 意志推量, て and た."""
    body, last = lemma[:-1], lemma[-1]
    if type_.startswith("サ行変格") and lemma.endswith("する"):
        body = lemma[:-2]
        return tuple(body + end for end in ("し", "し", "しよう", "して", "した"))  # type: ignore[return-value]
    if type_.startswith("カ行変格"):
        if lemma.endswith("くる"):
            body = lemma[:-2]
            return body + "こ", body + "き", body + "こよう", body + "きて", body + "きた"
        return body, body, body + "よう", body + "て", body + "た"
    if not type_.startswith("五段") or last not in _GODAN_ENDINGS:
        return body, body, body + "よう", body + "て", body + "た"
    a, i, o, te, ta = _GODAN_ENDINGS[last]
    if lemma in ("ある", "有る", "在る"):
        return "", body + i, body + o, body + te, body + ta
    if lemma.endswith(("問う", "請う", "乞う")):
        te, ta = lemma[-1] + "て", lemma[-1] + "た"
    if lemma.endswith(("行く", "いく", "ゆく", "逝く")):
        te, ta = "って", "った"
    if lemma.endswith(_HONORIFIC_VERBS):
        i = "い"
    return body + a, body + i, body + o, body + te, body + ta
