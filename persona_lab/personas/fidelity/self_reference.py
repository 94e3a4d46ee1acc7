"""What the persona calls itself and its listener."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

from persona_lab.japanese.morphology import NO_WORD
from persona_lab.personas.fidelity.answer import Answer, Token
from persona_lab.personas.fidelity.mark import CannotMeasure, Fault
from persona_lab.personas.fidelity.reference import own_lines
from persona_lab.personas.persona import Persona

_FIRST_PERSONS = {
    "私": ("私", "わたし", "ワタシ", "わたくし", "ワタクシ", "私め", "わたくしめ"),
    "あたし": ("あたし", "アタシ", "あたい", "アタイ", "あたくし"),
    "僕": ("僕", "ぼく", "ボク"),
    "俺": ("俺", "おれ", "オレ", "俺様", "オレ様", "おいら", "オイラ"),
    "わし": ("わし", "ワシ", "儂"),
    "拙者": ("拙者", "せっしゃ"),
    "吾輩": ("吾輩", "我輩", "わがはい", "ワガハイ"),
    "わらわ": ("わらわ", "妾", "ワラワ"),
    "小生": ("小生",),
    "それがし": ("それがし",),
    "うち": ("うち", "ウチ"),
}
"""Words for the speaker. Spellings and forms of one group replace each other."""
_SECOND_PERSONS = {
    "あなた": ("あなた", "貴方", "貴女", "アナタ", "あなた様", "貴方様", "あなたさま"),
    "あんた": ("あんた", "アンタ"),
    "君": ("君", "きみ", "キミ"),
    "お前": ("お前", "おまえ", "オマエ", "お前さん", "おまえさん", "お前さま", "てめえ", "てめぇ"),
    "貴様": ("貴様", "きさま", "キサマ"),
    "そなた": ("そなた", "其方", "そち", "お主", "おぬし", "汝", "なんじ", "貴殿", "御身"),
}
"""Words for the listener, in the same way."""
_SEPARATORS = re.compile(r"[、,，/／・|｜;；\s（）()「」]+|または|あるいは|もしくは|か、")
_POLITE_TITLES = ("様", "さま", "さん", "殿", "先生", "先輩", "方")
_PARTICLES_OF_SELF = (
    "は",
    "が",
    "も",
    "の",
    "に",
    "を",
    "と",
    "、",
    "って",
    "だって",
    "なら",
    "さ",
)
_PLURALS = ("たち", "達", "ら", "ども", "共", "等", "方")
_NEUTRAL_PLURALS = ("私", "あなた")
"""In their plural, these words fit a persona with any other word: 私たち, あなた方."""


def first_person(answer: Answer) -> Iterator[Fault]:
    """Find words for the speaker that the persona doesn't use."""
    field, names = _own_words(answer.persona, "first_person", _FIRST_PERSONS)
    allowed = _groups(names, _FIRST_PERSONS) | _groups_of_examples(answer.persona, "first_person")
    for token, following in _pronouns(answer, _surfaces(_FIRST_PERSONS)):
        group = _group(token.word.surface, _FIRST_PERSONS)
        plural = following in _PLURALS
        if group in allowed or (plural and group in _NEUTRAL_PLURALS):
            continue
        if group == "うち" and following not in ("は", "も", "が", "、"):
            continue  # うちの店
        yield Fault(token.start, token.end, field, "・".join(names))


def second_person(answer: Answer) -> Iterator[Fault]:
    """Find words for the listener that the persona doesn't use."""
    field, names = _own_words(answer.persona, "second_person", _SECOND_PERSONS)
    allowed = _groups(names, _SECOND_PERSONS) | _groups_of_examples(answer.persona, "second_person")
    titled = any(name.endswith(_POLITE_TITLES) for name in names)
    if not allowed and not titled:
        raise CannotMeasure(field, "not_stated")  # such as ミラ: a name, besides which あなた fits
    for token, following in _pronouns(answer, _surfaces(_SECOND_PERSONS)):
        group = _group(token.word.surface, _SECOND_PERSONS)
        if group in allowed or (following in _PLURALS and group in _NEUTRAL_PLURALS):
            continue
        if not allowed and group == "あなた" and not any(n.endswith(("様", "さま")) for n in names):
            continue  # 佐藤さん and あなた go together
        yield Fault(token.start, token.end, field, "・".join(names))


def _own_words(
    persona: Persona, field: str, groups: dict[str, tuple[str, ...]]
) -> tuple[str, tuple[str, ...]]:
    """Return the persona's words, and the field that says them: the field itself or examples."""
    stated = getattr(persona, field).strip()
    if stated:
        names = tuple(filter(None, _SEPARATORS.split(stated)))
        if field == "first_person" and not _groups(names, groups) and persona.name not in names:
            raise CannotMeasure(field, "not_stated")  # such as 一人称は使わない
        return field, names
    used = _groups_of_examples(persona, field)
    if len(used) != 1:
        raise CannotMeasure(field, "mixed" if used else "not_stated")
    return "examples", tuple(used)


@lru_cache(maxsize=256)
def _groups_of_examples(persona: Persona, field: str) -> frozenset[str]:
    """Return the groups of words that the persona's own lines use."""
    groups = _FIRST_PERSONS if field == "first_person" else _SECOND_PERSONS
    surfaces = _surfaces(groups)
    return frozenset(
        _group(token.word.surface, groups)
        for line in own_lines(persona)
        for token, following in _pronouns(line, surfaces)
        if not (following in _PLURALS and token.word.surface in _NEUTRAL_PLURALS)
    )


def _pronouns(answer: Answer, surfaces: frozenset[str]) -> Iterator[tuple[Token, str]]:
    """Find the pronouns in speech, each with the word after it."""
    for part in answer.speech:
        tokens = part.tokens
        for at, token in enumerate(tokens):
            word = token.word
            if word.kept or word.surface not in surfaces:
                continue
            before = tokens[at - 1].word if at else NO_WORD
            after = tokens[at + 1].word if at + 1 < len(tokens) else NO_WORD
            if not word.pos.startswith(("代名詞", "名詞")) or _is_compound(before.pos, after.pos):
                continue
            if word.surface in ("うち", "ウチ", "汝", "妾", "君", "きみ") and not _stands_alone(
                before.pos, after.surface
            ):
                continue
            yield token, after.surface


def _is_compound(before: str, after: str) -> bool:
    """Tell whether the word is a part of a longer one: 佐藤君, 私立, 俺流."""
    return before.startswith(("名詞-固有名詞", "接頭辞", "記号")) or after.startswith(
        ("接尾辞-形状詞的", "接尾辞-動詞的")
    )


def _stands_alone(before: str, after: str) -> bool:
    follows = before.startswith(("名詞", "接尾辞", "連体詞", "形容詞", "動詞", "助動詞"))
    plural = after in _PLURALS
    return (not follows or before.startswith("名詞-固有名詞")) and (
        plural
        or after in _PARTICLES_OF_SELF
        or after in ("」", "。", "！", "？", "!", "?", "…", "")
    )


def _surfaces(groups: dict[str, tuple[str, ...]]) -> frozenset[str]:
    return frozenset(word for words in groups.values() for word in words)


def _group(word: str, groups: dict[str, tuple[str, ...]]) -> str:
    return next((name for name, words in groups.items() if word in words), "")


def _groups(names: Sequence[str], groups: dict[str, tuple[str, ...]]) -> frozenset[str]:
    found = (_group(name, groups) for name in names)
    return frozenset(name for name in found if name)
