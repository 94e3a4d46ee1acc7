"""Role language: varieties of Japanese that belong to a kind of character."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from persona_lab.japanese.morphology import NO_WORD, Word
from persona_lab.personas.fidelity.answer import Answer, Part
from persona_lab.personas.fidelity.mark import CannotMeasure, Fault
from persona_lab.personas.fidelity.reference import own_lines, profile
from persona_lab.personas.persona import Persona

_END = r"[。！？!?…～〜ー♪」』）)\s]*$"
VARIETIES: dict[str, re.Pattern[str]] = {
    "関西": re.compile(
        r"(?:や(?:で|ん|ねん|ろ|な|わ|けど|から)|(?:る|た|い|ん|て)ねん|へん(?:で|わ|ねん|な|か|やん)?"
        r"|(?:る|た|い|ん)やん|(?:(?<!ま)る|た|う|ええ)で|あかん(?:で|わ|やん)?|してや|しとる(?:で|わ|な))"
        + _END
        + "|ほんま|せや(?:な|けど|から)|おおきに|なんでやねん|しゃあない|ちゃう(?:で|ねん)|やさかい"
    ),
    "老人語": re.compile(
        r"(?:じゃ(?:よ|な|のう|ろう|ぞ|が|わい|から)?|のう|わい|(?:て|で)おる(?:よ|ぞ|わい|のう|のじゃ)?"
        r"|おったわい|(?:ぬ|る|た)わい|くれんかの|かのう?)" + _END
    ),
    "武士": re.compile(
        r"ござ(?:る|ら|った|ろう|りませぬ)|拙者|かたじけな|承知つかまつ|仕(?:る|った|ります)|でおじゃる"
        r"|(?:いた|致)す(?:所存|のみ)|候(?:え|う|。)|(?:り|し|き|み)ませぬ|まする"
    ),
    "お嬢様": re.compile(
        r"(?:です|ます|ました|ません|でした)(?:わ(?:よ|ね)?|の(?:よ|ね)?|こと(?:よ|ね)?)"
        + _END
        + r"|ませんこと|あそば[せしさす]|ごきげんよう|おほほ|くださいまし(?![たて])"
    ),
    "女性的": re.compile(
        r"(?:だ|る|た|い|う|く|す|む|ぶ|ぬ|つ|ぐ|ない)わ(?:よ|ね)?"
        + _END
        + r"|かしら(?:ね)?"
        + _END
        + r"|(?:な|る|た|い|う|く|す|む)のよ(?:ね)?"
        + _END
        + r"|なのね"
        + _END
    ),
    "荒っぽい": re.compile(
        r"(?:だ|る|た|い|(?<!ど)う|く|す|む|ぶ|つ|ぐ|ない)(?:ぜ|ぞ)"
        + _END
        + r"|(?:じゃ|ら|か|さ|た|ま|わ|て)ね[えぇ](?:よ|ぞ|か|な|だろ)?"
        + _END
        + r"|やがっ?[るたて]|てめ[えぇ]"
    ),
    "猫": re.compile(r"にゃ(?:ん|あ|ー|よ|ね|の)?" + _END),
}
"""Sentences of each variety. The patterns match their ends or their words."""
_STATED: dict[str, tuple[str, ...]] = {
    "関西": ("関西", "大阪", "京都", "神戸", "播州", "なにわ", "浪速", "西日本"),
    "老人語": (
        "老人",
        "おじいさん",
        "お爺",
        "じじい",
        "博士",
        "古風",
        "仙人",
        "長老",
        "のじゃ",
        "老婆",
        "老爺",
        "老師",
        "爺",
        "婆",
        "古語",
    ),
    "武士": (
        "武士",
        "侍",
        "サムライ",
        "武将",
        "古風",
        "忍",
        "剣士",
        "時代劇",
        "戦国",
        "江戸",
        "古語",
        "大名",
        "貴族",
        "平安",
    ),
    "お嬢様": ("お嬢様", "令嬢", "貴族", "姫", "上品"),
    "女性的": (
        "女性的",
        "女言葉",
        "女性語",
        "お姉さん",
        "オネエ",
        "お嬢様",
        "令嬢",
        "お母さん",
        "母親",
        "おばあ",
    ),
    "荒っぽい": (
        "荒っぽ",
        "荒々",
        "荒くれ",
        "乱暴",
        "粗野",
        "ぶっきらぼう",
        "男勝り",
        "ヤンキー",
        "不良",
        "熱血",
        "豪快",
        "べらんめえ",
        "江戸っ子",
    ),
    "猫": ("猫", "ネコ", "ねこ", "にゃ"),
}
"""Words in a persona's fields that ask for a variety."""
_TONES = {
    "関西": ("関西弁", "大阪弁", "京都弁"),
    "老人語": ("老人",),
    "武士": ("武士", "侍", "サムライ"),
    "お嬢様": ("お嬢様",),
    "猫": ("猫語", "ネコ語", "ねこ語"),
}
"""Words in a persona's tones with which it must speak a variety."""
_COUSINS = {
    "老人語": ("武士", "関西"),
    "武士": ("老人語",),
    "お嬢様": ("女性的", "関西"),
    "女性的": ("お嬢様", "関西"),
    "荒っぽい": ("関西", "老人語", "武士"),
}
"""Varieties whose speakers use forms of the variety, too."""
_COMMON = frozenset(["女性的", "荒っぽい"])
"""Varieties that ordinary speakers use now and then."""
_ROUGH_FIRST_PERSONS = ("僕", "ぼく", "ボク", "俺", "おれ", "オレ", "わし", "ワシ")
"""With these, ぞ and ぜ are no variety of their own."""
MIN_OWN_SENTENCES = 3
MIN_SENTENCES = 3
"""Sentences of an answer that are needed to tell that its role language is missing."""
MIN_OWN_SHARE = 0.5


def role_language(answer: Answer) -> Iterator[Fault]:
    """Find sentences in a variety that isn't the persona's, and answers without its own."""
    persona = answer.persona
    own = own_varieties(persona)
    sentences = [part for part in answer.speech if _is_sentence(part)]
    if not sentences:
        raise CannotMeasure("examples", "no_speech")
    used = {part.start: varieties_of(part) for part in sentences}
    for part in sentences:
        strange = [
            name
            for name in used[part.start]
            if name in own.judged
            and name not in own.used
            and not own.used & set(_COUSINS.get(name, ()))
            and not (name == "荒っぽい" and persona.first_person in _ROUGH_FIRST_PERSONS)
        ]
        if strange:
            yield Fault(*part.span, own.field, "・".join(sorted(own.main)))
    if own.main and len(sentences) >= MIN_SENTENCES:
        expected = own.main | {cousin for name in own.main for cousin in _COUSINS.get(name, ())}
        if not any(set(found) & expected for found in used.values()):
            yield Fault(*sentences[0].span, own.field, "・".join(sorted(own.main)))


def sentence_ending(answer: Answer) -> Iterator[Fault]:
    """Find answers without the endings that the persona's lines have, such as ロボ or でやんす."""
    persona = answer.persona
    endings = tuple(
        ending.strip("〜～-ー。！ ")
        for ending in persona.sentence_endings
        if ending.strip("〜～-ー。！ ")
    )
    endings = tuple(ending for ending in endings if ending not in _COMMON_ENDINGS)
    if not endings:
        raise CannotMeasure("sentence_endings", "not_stated")
    own = [part for line in own_lines(persona) for part in line.speech if _is_sentence(part)]
    if len(own) >= MIN_OWN_SENTENCES:
        share = sum(_ends_with(part, endings) for part in own) / len(own)
        if share < MIN_OWN_SHARE:
            raise CannotMeasure("sentence_endings", "mixed")
    sentences = [part for part in answer.speech if _is_sentence(part)]
    if len(sentences) < MIN_SENTENCES:
        raise CannotMeasure("sentence_endings", "no_speech")
    if not any(_ends_with(part, endings) for part in sentences):
        yield Fault(*sentences[0].span, "sentence_endings", "・".join(endings))


_COMMON_ENDINGS = frozenset(
    [
        "です",
        "ます",
        "ですね",
        "ますね",
        "でしょう",
        "でしょうか",
        "ましょう",
        "ください",
        "だ",
        "だよ",
        "だね",
        "よ",
        "ね",
        "さ",
        "の",
        "な",
        "わ",
        "なの",
        "かな",
        "だろう",
        "ですよ",
        "ますよ",
        "のです",
        "んだ",
        "んです",
        "ません",
        "ました",
        "でした",
        "である",
    ]
)


def _ends_with(part: Part, endings: Sequence[str]) -> bool:
    return part.text.strip().rstrip("。！？!?…～〜ー♪」』）) ").endswith(tuple(endings))


@dataclass(frozen=True, slots=True)
class OwnVarieties:
    """The varieties that a persona may use, and those that it must.

    Attributes:
        field: The field that tells it.
        used: The varieties of its lines and fields.
        main: The varieties that at least half of its lines have, or that its tones ask for.
        judged: The varieties that are strange if it doesn't use them.
    """

    field: str
    used: frozenset[str]
    main: frozenset[str]
    judged: frozenset[str]


@lru_cache(maxsize=256)
def own_varieties(persona: Persona) -> OwnVarieties:
    """Return the varieties of a persona, from its lines; from its tones if there are few lines.

    Raises:
        CannotMeasure: It has too few lines, and no tones.
    """
    own = [part for line in own_lines(persona) for part in line.speech if _is_sentence(part)]
    found = [varieties_of(part) for part in own]
    text = "\n".join([profile(persona), *persona.sentence_endings, *persona.catchphrases])
    used = {name for names in found for name in names} | _stated(text)
    used |= {
        name
        for each in (*persona.sentence_endings, *persona.catchphrases)
        for name in _matches(each)
    }
    clear = frozenset(VARIETIES) - _COMMON
    if len(own) < MIN_OWN_SENTENCES:
        if not persona.tones:
            raise CannotMeasure("examples", "too_few_examples")
        tones = "\n".join(persona.tones)
        main = {name for name, words in _TONES.items() if any(word in tones for word in words)}
        return OwnVarieties("tones", frozenset(used), frozenset(main), clear)
    main = {
        name
        for name in clear
        if sum(name in names for names in found) >= MIN_OWN_SHARE * len(found)
    }
    return OwnVarieties("examples", frozenset(used), frozenset(main), frozenset(VARIETIES))


def _stated(text: str) -> set[str]:
    return {name for name, words in _STATED.items() if any(word in text for word in words)}


def varieties_of(part: Part) -> tuple[str, ...]:
    """Return the varieties that a sentence has features of."""
    said = "".join(token.word.surface for token in part.tokens if not token.word.kept)
    return tuple(name for name in _matches(said.strip()) if _confirmed(name, part))


def _matches(text: str) -> list[str]:
    return [name for name, pattern in VARIETIES.items() if pattern.search(text)]


def _confirmed(name: str, part: Part) -> bool:
    """Tell whether the words of a sentence agree that it is of the variety."""
    words = [token.word for token in part.said]
    if name == "老人語":
        return _has_old_copula(words)
    if name == "関西":
        return not any(word.type in ("助動詞-マス", "助動詞-デス") for word in words[-3:]) and not (
            words[-1].surface == "で" and words[-2:-1] and words[-2].pos.startswith("名詞")
        )
    return True


def _has_old_copula(words: Sequence[Word]) -> bool:
    """Tell じゃ of an old man from that of じゃない and じゃあ, and おる from おります."""
    for word, after in pairwise([*words, NO_WORD]):
        if word.surface == "じゃ" and after.lemma not in ("ない", "無い", "ある", "あ", "ん"):
            at_end = after is NO_WORD or after.pos.startswith(("助詞-終助詞", "助動詞"))
            if at_end and after.surface not in ("なかっ", "ん"):
                return True
        if word.surface in ("のう", "わい", "じゃろう", "じゃろ"):
            return True
    last = words[-1]
    return (last.lemma in ("おる", "とる") and last.form.startswith(("終止形", "連体形"))) or (
        len(words) > 1
        and words[-2].lemma == "おる"
        and last.surface in ("よ", "ぞ", "のじゃ", "の", "のう")
    )


def _is_sentence(part: Part) -> bool:
    return len(part.said) >= 3
