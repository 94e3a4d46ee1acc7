"""Text in another language or script, and conjugations that don't exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from persona_lab.answer_text.passages import Kind
from persona_lab.japanese.morphology import NO_WORD, Word
from persona_lab.personas.fidelity.answer import CODE, Answer, Part, Token
from persona_lab.personas.fidelity.mark import Fault
from persona_lab.personas.fidelity.reference import own_lines, profile

_IDEOGRAPH = "[\u3400-\u4dbf\u4e00-\u9fff々]"
_HAN = re.compile(
    rf"{_IDEOGRAPH}++(?:[，；：、。]?{_IDEOGRAPH}++)*+(?![\u3041-\u30ff])|{_IDEOGRAPH}+"
)
"""A run of Chinese characters; if no kana follows, with its punctuation."""
_CHINESE_ONLY = frozenset(
    "你您吗呢吧很她哪么们这那说为时个从见让对问间还没给过谁岁话该请觉现进啊呀嗎麼"
)
"""Characters of Chinese that Japanese text of today doesn't have."""
_CHINESE_WORDS = re.compile(
    "(?<![\u4e00-\u9fff])(?:没有|但是|情况|如果|而且|可以(?!て)|什麼|這個|已經|好的|我的|多謝)(?![て])"
)
"""Words of Chinese whose characters are used in Japanese."""
_SCRIPTS = {
    "hangul": "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af",
    "cyrillic": "\u0400-\u04ff",
    "greek": "\u0370-\u03ff",
    "arabic": "\u0600-\u06ff",
    "hebrew": "\u0590-\u05ff",
    "thai": "\u0e00-\u0e7f",
    "devanagari": "\u0900-\u097f",
}
_FOREIGN = re.compile(
    "|".join(f"[{letters}][{letters} ]*[{letters}]" for letters in _SCRIPTS.values())
)
_LATIN = re.compile("[A-Za-z\u00c0-\u024f][A-Za-z\u00c0-\u024f'’-]*(?: [A-Za-z\u00c0-\u024f'’-]+)*")
_ACCENTED = re.compile("[\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f]")
_JAPANESE = re.compile("[\u3041-\u30ff\u3400-\u9fff]")
_FOREIGN_PHRASES = re.compile(
    "hola|(?:muchas )?gracias|lo siento|por favor|adi[oó]s|amig[oa]s?|se[nñ]or(?:a|ita)?"
    "|buen[oa]s? \\w+|bonjour|merci|pardon|mon ami|danke|bitte|guten \\w+"
    "|xie ?xie|ni ?hao|gomawo|annyeong\\w*",
    re.IGNORECASE,
)
"""Everyday words of other languages, also at the beginning of a sentence."""
_MIN_WORD = 4
"""Letters of the shortest Latin word that is marked: km, ms and vs are used in Japanese."""
_USED_IN_JAPANESE = frozenset(
    [
        "iphone",
        "ipad",
        "ebay",
        "mail",
        "email",
        "https",
        "http",
        "html",
        "json",
        "yaml",
        "version",
        "beta",
        "alpha",
        "plus",
        "mini",
        "live",
        "tips",
        "talk",
        "python",
        "java",
        "linux",
        "wifi",
        "google",
        "amazon",
        "youtube",
        "line",
        "note",
        "okay",
        "chao",
        "ciao",
        "sudo",
        "bash",
        "echo",
        "function",
        "return",
        "class",
        "import",
        "print",
        "true",
        "false",
        "null",
        "none",
        "void",
        "string",
        "int",
        "float",
    ]
)


def foreign_text(answer: Answer) -> Iterator[Fault]:
    """Find words of other languages in a Japanese answer.

    Text that the user or the persona wrote before is no fault; nor are names (in capitals),
    abbreviations, code and addresses.
    """
    known = _known_text(answer)
    masked = CODE.sub(lambda match: " " * len(match[0]), answer.text)
    spans: list[tuple[int, int]] = []
    for match in _HAN.finditer(masked):
        strange = [character for character in match[0] if _is_chinese(character)]
        if strange and not all(character in known for character in strange):
            spans.append(match.span())
    spans += [m.span() for m in _CHINESE_WORDS.finditer(masked) if m[0] not in known]
    for match in _FOREIGN.finditer(masked):
        if match[0] not in known and not _in_face(masked, match.start(), match.end()):
            spans.append(match.span())
    for match in _LATIN.finditer(masked):
        if _is_foreign_word(match[0], known) and _in_japanese(masked, match.start(), match.end()):
            spans.append(match.span())
    last = 0
    for start, end in sorted(spans):
        if start >= last:
            yield Fault(start, end, "language", answer.persona.language)
            last = end


@lru_cache(maxsize=4096)
def _is_chinese(character: str) -> bool:
    """Tell whether a character is none of Japanese: in no Japanese character set, or Chinese."""
    if character in _CHINESE_ONLY:
        return character not in _SHARED
    for encoding in ("euc_jis_2004", "cp932"):
        try:
            character.encode(encoding)
        except UnicodeEncodeError:
            continue
        return False
    return True


_SHARED = frozenset("那没対")


def _known_text(answer: Answer) -> str:
    texts = [*answer.user_turns, profile(answer.persona)]
    texts += [line.text for line in own_lines(answer.persona)]
    texts += [*answer.persona.catchphrases, *answer.persona.sentence_endings]
    return "\n".join(texts).lower()


def _in_face(text: str, start: int, end: int) -> bool:
    """Tell whether letters are a part of a face such as (´Д｀)."""
    around = text[max(0, start - 3) : start] + text[end : end + 3]
    return end - start <= 3 and any(mark in around for mark in "(（)）`´｀・^")


def _is_foreign_word(text: str, known: str) -> bool:
    if _FOREIGN_PHRASES.fullmatch(text) and text.lower() not in known:
        return True
    letters = sum(map(str.isalpha, text))
    if letters < _MIN_WORD or text.lower() in known:
        return False
    if _ACCENTED.search(text) and text[:1].islower():
        return True
    words = [word for word in re.split("[ '’-]", text) if word]
    lower = [word for word in words if word.islower() and len(word) >= _MIN_WORD]
    if any(word in _USED_IN_JAPANESE for word in lower):
        return False
    if len(words) == 1:
        return bool(lower)
    return len(lower) >= max(1, len(words) // 2) and text[:1].islower()


def _in_japanese(text: str, start: int, end: int) -> bool:
    """Tell whether a word stands in the middle of Japanese text, and not in an identifier."""
    before, after = text[:start].rstrip(" "), text[end:].lstrip(" ")
    if before[-1:] in tuple("_-/.=<>{}[]#@$%&+\\\"'0123456789") or after[:1] in tuple(
        "_-/.=<>{}[]@(\\\"'0123456789"
    ):
        return False
    follows = _JAPANESE.match(before[-1:]) or before[-1:] in ("", *"\n、。！？「（")
    precedes = _JAPANESE.match(after[:1]) or after[:1] in tuple("、。！？」）")
    return bool(follows and precedes)


# ── conjugation ──


def broken_conjugation(answer: Answer) -> Iterator[Fault]:
    """Find forms that no verb or adjective has: 来るました, 楽しいでした, 行くて."""
    for part in answer.parts:
        if part.kind in (Kind.SPEECH, Kind.NARRATION, Kind.DIRECTION, Kind.LIST):
            yield from _broken_in(part)


def _broken_in(part: Part) -> Iterator[Fault]:
    tokens = part.tokens
    for at in range(len(tokens) - 1):
        before, word = tokens[at].word, tokens[at + 1].word
        after = tokens[at + 2].word if at + 2 < len(tokens) else NO_WORD
        if before.kept and part.kind is not Kind.DIRECTION:
            continue
        length = _broken_length(before, word, after)
        if length and not _is_name_or_quote(tokens, at):
            yield Fault(tokens[at].start, tokens[at + length].end, "language", "")


def _broken_length(before: Word, word: Word, after: Word) -> int:
    """Return how many words after ``before`` make a broken form; 0 for a sound one."""
    ends = before.form.startswith(("終止形", "連体形"))
    is_verb = before.is_verb()
    is_past_polite = (word.type, word.surface, after.surface) == ("助動詞-デス", "でし", "た")
    match word.type:
        case "助動詞-マス" if before.surface + word.surface != "ますます":
            sound = not (ends and (is_verb or before.is_adjective())) and before.type not in (
                "助動詞-タ",
                "助動詞-マス",
            )
            return 0 if sound else 1 + after.pos.startswith("助動詞")  # 来るました, 来たます
        case "助動詞-デス" if is_past_polite:
            broken = ends and (is_verb or before.is_adjective() or before.type == "助動詞-タ")
            return 2 * (broken or before.surface == "ます")  # 楽しいでした, 行くでした
        case "助動詞-デス":
            return int(before.surface in ("だ", "です") and before.type.startswith("助動詞"))
        case "助動詞-ダ" if word.surface == "だ" and before.pos.startswith("形容詞"):
            return int(ends and after.surface not in ("ろ", "ろう"))  # 楽しいだ
        case "助動詞-ナイ":
            return int(ends and is_verb and before.surface == before.lemma)  # 知るない
        case "助動詞-タ" if word.surface == "た":
            of_polite = before.surface == "ん" and before.type == "助動詞-ヌ"
            return int(of_polite or (ends and is_verb and before.surface == before.lemma))  # 行くた
    te = word.surface == "て" and word.pos == "助詞-接続助詞"
    quotes = after.lemma in ("言う", "いう", "思う", "こと", "ば", "の") or before.lemma.endswith(
        "う"
    )
    return int(te and not quotes and ends and is_verb and before.surface == before.lemma)  # 行くて


def _is_name_or_quote(tokens: tuple[Token, ...], at: int) -> bool:
    """Tell whether the words may be a name or a quoted word: 「いいだ」."""
    return at > 0 and tokens[at - 1].word.surface in ("「", "『", "“", '"')
