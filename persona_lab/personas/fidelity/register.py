"""The politeness of each sentence, compared with the persona's."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Literal

from persona_lab.japanese.morphology import Word
from persona_lab.japanese.politeness import politeness_level
from persona_lab.personas.fidelity.answer import Answer, Part
from persona_lab.personas.fidelity.mark import CannotMeasure, Fault
from persona_lab.personas.fidelity.reference import own_lines
from persona_lab.personas.persona import Persona

Register = Literal["polite", "plain"]

MIN_OWN_SENTENCES = 3
"""Sentences of the examples and the greeting that are needed to tell the persona's register."""
MIN_OWN_SHARE = 0.9
"""The share of them that must agree."""
_POLITE_WORDS = ("敬語", "丁寧", "ですます", "です・ます", "polite", "formal")
_PLAIN_WORDS = ("タメ口", "ため口", "くだけた", "砕けた", "常体", "casual")
_POLITE_TYPES = ("助動詞-マス", "助動詞-デス")
_SELF_TALK = ("かな", "かしら", "っけ", "かも", "なあ", "なぁ")
SET_PHRASES = re.compile(
    r"ありがとう(?:ござい|御座い)|おはようござい|おめでとうござい|お(?:疲|つか)れ[様さ]|ご(?:ちそう|馳走)[様さ]"
    r"|(?:すみ|済み)ません|いただきます|お願い(?:します|いた|致)|お邪魔し|失礼(?:し|いた)|いらっしゃ|ごめんなさい"
    r"|お世話に|お待たせ|よろしく|いってきます|申し訳"
)
"""Phrases that plain speakers say in their polite form, too."""
_OLD = (
    "ござる",
    "候",
    "給う",
    "たまう",
    "ぬ",
    "む",
    "なり",
    "べし",
    "き",
    "けり",
    "たり",
    "ず",
    "まい",
)
"""Lemmas of the old language: neither です and ます nor casual."""


def politeness(answer: Answer) -> Iterator[Fault]:
    """Find sentences that are polite where the persona is plain, or plain where it is polite."""
    expected, field = expected_register(answer.persona)
    measured = [(part, register_of(part)) for part in answer.speech]
    if not any(register for _, register in measured):
        raise CannotMeasure(field, "no_speech")
    for part, register in measured:
        if register is None or register == expected:
            continue
        if register == "polite" and SET_PHRASES.search(part.text):
            continue
        if register == "plain" and _may_be_narration(part, answer.persona.name):
            continue
        yield Fault(*part.span, field, expected)


@lru_cache(maxsize=256)
def expected_register(persona: Persona) -> tuple[Register, str]:
    """Return the persona's register, and the field that says it.

    Raises:
        CannotMeasure: The persona doesn't say it, or says both.
    """
    registers = [register_of(part) for line in own_lines(persona) for part in line.speech]
    counted = [register for register in registers if register]
    stated = _stated_register(persona)
    if len(counted) >= MIN_OWN_SENTENCES:
        for register in ("polite", "plain"):
            if counted.count(register) >= MIN_OWN_SHARE * len(counted):
                if stated in (None, register):
                    return register, "examples"
                raise CannotMeasure("tones", "mixed")
        raise CannotMeasure("examples", "mixed")
    if stated:
        return stated, "tones"
    raise CannotMeasure("tones", "not_stated")


def _stated_register(persona: Persona) -> Register | None:
    tones = " ".join(persona.tones).lower()
    polite = any(word in tones for word in _POLITE_WORDS)
    plain = any(word in tones for word in _PLAIN_WORDS)
    if polite == plain:
        return None
    return "polite" if polite else "plain"


def register_of(part: Part) -> Register | None:
    """Return the register of a sentence; None for fragments and what could be either."""
    words = [token.word for token in part.said]
    ends = _without_final_particles(words)
    if not ends:
        return None
    if _is_casual_request(words):
        return "plain"
    if _is_polite_end(ends):
        return None if ends[-1].surface == "でしょ" else "polite"
    if any(word.type in _POLITE_TYPES for word in words):
        return None  # いい所ですね、庭も広いし
    if not _is_plain_end(words, ends, part.text):
        return None
    return "plain" if politeness_level(part.text) == 4 else None  # どうなさったの


def _is_casual_request(words: Sequence[Word]) -> bool:
    """Tell whether a sentence ends like 教えてね or 待ってよ."""
    if len(words) < 3 or words[-1].surface not in ("ね", "よ"):
        return False
    te, verb = words[-2], words[-3]
    return te.surface in ("て", "で") and te.pos == "助詞-接続助詞" and verb.is_verb()


def _without_final_particles(words: Sequence[Word]) -> list[Word]:
    ends = list(words)
    while ends and (
        ends[-1].pos == "助詞-終助詞"
        or ends[-1].pos == "助詞-準体助詞"
        or (
            ends[-1].pos.startswith(("助詞-接続助詞", "助詞-副助詞"))
            and ends[-1].surface in _JOINING
        )
    ):
        ends.pop()
    return ends


_JOINING = ("が", "けど", "けれど", "けれども", "から", "し", "か", "ので")


def _is_polite_end(ends: Sequence[Word]) -> bool:
    if ends[-1].lemma in ("くださる", "下さる"):
        return True
    for word in reversed(ends):
        if word.type in _POLITE_TYPES:
            return True
        if not word.pos.startswith("助動詞") and word.pos != "助詞-終助詞":
            return False
    return False


def _is_plain_end(words: Sequence[Word], ends: Sequence[Word], text: str) -> bool:
    last = ends[-1]
    stripped = text.strip().rstrip("」』）)”* 　♪～〜ー")
    if stripped.endswith(("…", "...", "、", "──", "――", "—", ":", "：", "‥")):
        return False
    said = "".join(word.surface for word in words)
    if said.endswith(_SELF_TALK) or last.lemma in _OLD or last.type.startswith("文語"):
        return False
    if any(word.type.startswith("文語") for word in ends[-3:]):
        return False
    if words[-1].surface == "か" and "？" not in text and "?" not in text:
        return False  # そういうことか
    if last.form.startswith("命令形"):
        return last.surface not in (
            "なさい",
            "ください",
            "給え",
            "たまえ",
            "ごらん",
            "いらっしゃい",
        )
    particles = [word.surface for word in words[len(ends) :]]
    if last.pos.startswith(("形状詞", "副詞")):
        return (
            particles in (["よ"], ["ね"], ["さ"], ["よ", "ね"])
            and last.surface not in _INTERJECTIONS
        )
    if not (last.is_verb() or last.is_adjective() or last.pos.startswith("助動詞")):
        return False
    if last.pos.startswith("接尾辞"):
        return False
    return last.form.startswith(("終止形", "意志推量形")) or (
        last.form.startswith("連体形")
        and particles[:1] != []
        and particles[0] in ("の", "ん", "よ", "わ", "ね", "から", "けど", "し")
    )


_INTERJECTIONS = ("なるほど", "もちろん", "どうぞ", "どう", "さすが", "まあ")


def _may_be_narration(part: Part, name: str) -> bool:
    """Tell whether a plain sentence may be narration instead of speech."""
    text = part.text.strip()
    if name and text.startswith((f"{name}は", f"{name}が")):
        return True
    if part.doubtful and (text.rstrip("。").endswith(("た", "だ")) or (name and name in text)):
        return True
    return bool(_THIRD_PERSON.search(text)) and part.doubtful


_THIRD_PERSON = re.compile("彼女|彼は|彼の|その声|その瞳|その目|表情|微笑|眼差し|頷|見つめ|沈黙")
