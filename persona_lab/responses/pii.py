"""Find personal data and keys in a text, in Japanese and foreign forms.

The search compares the NFKC form of each character, so full-width letters hide nothing. It
returns positions in the original text. python-stdnum checks the check digits of cards (Luhn) and of
individual numbers (My Number). phonenumbers checks phone numbers with a country code. National
numbers are found by their form alone, because a model also makes up numbers that no plan assigns
(555-123-4567, 090-0000-0000). A number with another label, such as an order number or an ISBN, is
not personal data.

Not found: names, dates of birth, addresses in words only, street addresses outside Japan, and
foreign phone numbers without their area code. Three numbers in a row (555 123 4567) are a phone
number, unless they are round or the words before them count something.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

import phonenumbers
from stdnum import ean, luhn
from stdnum.jp import in_

from persona_lab.redaction import secret_pattern
from persona_lab.unicode_text import is_invisible

Kind = Literal["key", "email", "card", "my_number", "phone", "address"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_DASH = "[-‐‑‒–—―−ーｰ]"
_SEPARATOR = rf"(?:{_DASH}|[ .　・/])"
_LABEL = re.compile(
    r"(?:注文|受注|発注|受付|伝票|追跡|管理|会員|顧客|お?客様|商品|予約|請求書?|見積書?|整理"
    r"|お?問い?合わ?せ|シリアル|送り状|製品|製造|部品|ロット|図面|案件|取引|承認|確認|特許|契約|口座"
    r"|当選|社員|証券|登録|申込|申請|受験|学籍|識別)"
    r"(?:番号|no\.?|ナンバー|id|コード)|品番|型番|棚番|バーコード|型式"
    r"|(?<![a-z])(?:isbn|imei|jan\s?(?:code|コード)|orders?|invoices?|tracking|sku|serial|parts?\s*n"
    r"|parts?(?=\s*(?:no|num))|models?|confirmation|ref|reference|tickets?)(?![a-z])"
    r"(?:\s*(?:numbers?|nos?\b\.?|codes?|ids?|#))?(?:\s+(?:is|was))?",
    re.IGNORECASE,
)
"""A label of a number that is not personal data."""
_LABEL_REACH = 12
"""Maximum number of characters between a label and its number."""
_CORRECTION = re.compile(
    r"(?<![\d -])\d[\d -]*(?:[でじ]ゃ?は?なく(?:て)?、?|または|もしくは|あるいは|,? (?:but|or) )"
)
"""Two numbers with one label: "123 ではなく 456". It ends before the second one."""
_PHONE_WORD_REACH = 16
"""Maximum number of characters between a phone word and the end of the text before a number."""
_CONTEXT_LENGTH = 200
"""Characters before a number that are searched for labels."""
_COUNT_WORDS = re.compile(
    r"(?:(?<![a-z])(?:chapters?|pages?|rooms?|rows?|columns?|ports?|years?|sizes?|values?|items?"
    r"|numbers|versions?|sections?|verses?|points?|scores?|widths?|bytes?|between|from)"
    r"|[章頁点巻号件年行列値幅]|ページ|サイズ|ポート|バージョン|得点)[:：はがの]? ?$"
    r"|[$€£¥#]$|\d[ ,:/]$",
    re.IGNORECASE,
)
"""Words and signs right before numbers that count something."""
_ROUND_NUMBER = re.compile(r"\d*0|1|256|512|1024|2048|4096|8192")
_PHONE_WORDS = re.compile(r"電話|tel|phone|call|携帯|連絡先|fax|☎|℡", re.IGNORECASE)
_ID_WORDS = re.compile(
    r"カード|(?<![a-z])(?:card|visa|mastercard|amex)(?![a-z])|マイナンバー|個人番号", re.IGNORECASE
)
"""Labels of a card's number and of an individual number."""


class Found(NamedTuple):
    """Personal data of one kind: ``text[start:end]``."""

    start: int
    end: int
    kind: Kind


def _is_card(candidate: str, before: str) -> bool:
    digits = _digits(candidate)
    if not 13 <= len(digits) <= 19 or digits[0] not in "23456" or len(set(digits)) == 1:
        return False
    return (
        luhn.is_valid(digits)
        and not (len(digits) == 13 and ean.is_valid(digits))
        and not _has_harmless_label(before, _ID_WORDS)
    )


def _is_my_number(candidate: str, before: str) -> bool:
    digits = _digits(candidate)
    if len(digits) != 12 or len(set(digits)) == 1 or _has_harmless_label(before, _ID_WORDS):
        return False
    if re.fullmatch(r"(?:(?:19|20)\d\d\D){2}(?:19|20)\d\d", candidate):  # years
        return False
    return in_.is_valid(digits)


def _is_phone(candidate: str, before: str) -> bool:
    digits = _digits(candidate)
    if _has_harmless_label(before, _PHONE_WORDS):
        return False
    candidate = candidate.lstrip("(")
    if candidate.startswith(("+", "00")):
        return _is_international(candidate)
    called_phone = _PHONE_WORDS.search(before[-_PHONE_WORD_REACH:])
    if re.fullmatch(r"[\d .-]+", candidate) and not called_phone:
        parts = re.findall(r"\d+", candidate)  # it may be a row of numbers
        counts = "-" not in candidate and "." not in candidate and _COUNT_WORDS.search(before)
        rounded = len(parts) > 1 and all(map(_ROUND_NUMBER.fullmatch, parts))
        if _is_arithmetic_sequence(parts) or (digits[0] != "0" and (counts or rounded)):
            return False
    if digits[0] == "0":
        if len(digits) not in (10, 11):
            return False
        bare = candidate.isdigit()
        mobile = re.match(r"0(?:[5789]0\d{8}|120\d{6}$|800\d{7}|570\d{6}$)", digits)
        return not bare or bool(mobile) or bool(_PHONE_WORDS.search(before))
    return len(digits) in (10, 11)


def _is_international(candidate: str) -> bool:
    """Return whether a number with a country code is valid, or at least has a possible length.

    A number that is only possible must be grouped or long: it may be a sum of money.
    """
    try:
        number = phonenumbers.parse(candidate, "GB")  # a region where "00" stands for "+"
    except phonenumbers.NumberParseException:
        return False
    if phonenumbers.is_valid_number(number):
        return True
    long = len(candidate) > 11 or not candidate[1:].isdigit()
    possible = phonenumbers.is_possible_number_with_reason(number)
    return long and possible == phonenumbers.ValidationResult.IS_POSSIBLE


def _is_arithmetic_sequence(parts: list[str]) -> bool:
    """Return whether it is a row such as 01 02 03 04 05 or 05 10 15 20 25."""
    steps = {int(after) - int(one) for one, after in itertools.pairwise(parts)}
    return len(parts) > 2 and len(steps) == 1 and abs(steps.pop()) <= 10


def _is_key(candidate: str, before: str) -> bool:
    """Return whether it has a digit, as most keys do. Keys of Hugging Face are 34 letters."""
    return (
        any(letter.isdigit() for letter in candidate)
        or candidate.startswith("-----")
        or (candidate.startswith("hf_") and len(candidate) >= len("hf_") + 34)
    )


def _digits(candidate: str) -> str:
    return re.sub(r"\D", "", candidate)


def _has_harmless_label(before: str, names: re.Pattern[str]) -> bool:
    """Return whether the label before a number says that it is not personal data.

    A nearer word of ``names`` overrides the label. A number between the label and this number takes
    the label for itself.
    """
    before = _CORRECTION.sub("", before)
    end = max((label.end() for label in _LABEL.finditer(before)), default=-1)
    between = before[end:]
    return (
        end >= 0
        and len(between) <= _LABEL_REACH
        and not names.search(between)
        and not any(map(str.isdigit, between))
    )


def _accept_any(candidate: str, before: str) -> bool:
    return True


_KANJI = "\u4e00-\u9fff々〇"
_PREFECTURE = rf"(?:北海道|東京都|(?:京都|大阪)府|(?:神奈川|和歌山|鹿児島|[{_KANJI}]{{2}})県)"
_HIRAGANA_CITIES = (
    "さいたま|いわき|つくば|つくばみらい|ひたちなか|かすみがうら|あきる野|いなべ|うきは|えびの|"
    "さくら|さぬき|たつの|つがる|にかほ|ふじみ野|みどり|みやま|むつ|うるま|あわら|いすみ|かほく"
)
_CITY = rf"(?:{_HIRAGANA_CITIES}|[{_KANJI}ァ-ヶー]{{1,7}}?)[市区町村郡]"
# No character may match two alternatives: each such character would double the time.
_PLACE = rf"(?:[{_KANJI}ァ-ヶー]|[のがつ](?=[{_KANJI}ァ-ヶー])){{0,20}}"
_FULL_PLACE = (
    rf"(?:[{_KANJI}ァ-ヶー]|\d{{1,2}}条|[のがつるり](?=[{_KANJI}ァ-ヶー])|[ぁ-ん]{{3,8}}(?=\d))"
    r"{0,30}"
)
"""A place after a prefecture and a city, where more characters are part of a name: 北1条西."""
_NUMERAL = r"(?:\d{1,5}|[一二三四五六七八九十]{1,4})"
_COUNTER = (
    "[日月年時分秒週個人円本冊枚回度点対歳件社店軒名箇つ泊組勝敗倍位割章話台%]|か[月所国年条]"
)
"""A counter or unit after a number."""
_LOT = (
    rf"(?:(?:{_NUMERAL}(?:丁目|番地)|\d{{1,5}}番|[一二三四五六七八九十]{{1,4}}番(?=[\d一二三四五六七八九十]))(?:の?{_NUMERAL}(?:番地?|号|{_DASH}|の)?){{0,3}}"
    rf"|\d{{1,5}}(?:(?:{_DASH}|の)\d{{1,5}}){{1,3}}号?)"
    rf"(?!{_DASH}?\d|{_COUNTER})"
)
_SINGLE_NUMBER_LOT = (
    rf"(?=[^\d\s]{{0,30}}[町字])(?:[{_KANJI}ァ-ヶー]|[のがつるり](?=[{_KANJI}ァ-ヶー])){{1,30}}"
    rf"(?<![第数口約計全積抜業])\d{{1,5}}(?!{_DASH}?\d|[.,]\d|{_COUNTER}|[万億千百世戸票名棟席株通k㎡])"
)
"""A name with 町 or 字 and a single number, after a prefecture and a city."""
_BUILDING = rf"(?:[ 　]?[{_KANJI}ァ-ヶーA-Za-z0-9]{{1,16}}?(?:号室|\d{{1,2}}階|\d{{1,2}}F))?"


# ASCII: a Japanese character next to a number is then no word character.
_PATTERNS: tuple[tuple[Kind, re.Pattern[str], Callable[[str, str], bool]], ...] = (
    (
        "key",
        secret_pattern(),
        _is_key,
    ),
    (
        "email",
        re.compile(
            r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}",
            re.ASCII,
        ),
        _accept_any,
    ),
    (
        "address",
        re.compile(
            rf"(?:〒\s*)?(?:\d{{3}}{_DASH}\d{{4}}[ 　]*)?{_PREFECTURE}[ 　]*(?:{_CITY}){{1,2}}"
            rf"[ 　]*(?:{_FULL_PLACE}[ 　]*{_LOT}|{_SINGLE_NUMBER_LOT}){_BUILDING}"
            rf"|(?:〒\s*\d{{3}}{_DASH}?\d{{4}}[ 　]*)(?:{_CITY}{_PLACE}[ 　]*{_LOT}{_BUILDING})?"
            rf"|(?<![{_KANJI}]){_CITY}(?=[のがつ]?[{_KANJI}ァ-ヶー]){_FULL_PLACE}{_LOT}{_BUILDING}",
            re.ASCII,
        ),
        _accept_any,
    ),
    (
        "card",  # of every length: an expiry date may follow
        re.compile(
            rf"(?<!\d)(?<!\d\.)(?=(\d(?:{_SEPARATOR}?\d){{12,18}})(?!\d))"
            rf"(?=(\d(?:{_SEPARATOR}?\d){{15}})(?!\d)|)(?=(\d(?:{_SEPARATOR}?\d){{14}})(?!\d)|)"
            rf"(?=(\d(?:{_SEPARATOR}?\d){{13}})(?!\d)|)",
            re.ASCII,
        ),
        _is_card,
    ),
    (
        "my_number",
        re.compile(
            rf"(?<!\d)(?<!\d\.)\d{{4}}(?:{_SEPARATOR}?\d{{4}}){{2}}(?!{_SEPARATOR}?\d)", re.ASCII
        ),
        _is_my_number,
    ),
    (
        "phone",
        re.compile(
            rf"(?<![\w+])\(?\+[1-9]\d{{0,2}}\)?(?:(?:{_SEPARATOR}|[()]){{0,2}}\d){{5,14}}"
            rf"(?!\d| ?(?:{_COUNTER}))"
            r"|(?<![\w+.-])\(?00[2-9]\d{1,2}[ -][1-9]\d{0,4}(?:[ -]\d{1,5}){1,4}(?![\d-])"
            rf"|(?<![\d+])(?<!\d\.)(?<!\d[-‐ー])\(?0\d{{1,4}}(?:\){_SEPARATOR}?|\(|{_SEPARATOR})\d{{1,4}}"
            rf"(?:\)|{_SEPARATOR})\d{{3,4}}(?!{_DASH}?\d)"
            r"|(?<![\d+-])(?<!\d\.)0\d(?:[ .-]\d\d){4}(?![\d-])"
            r"|(?<![\d+-])(?<!\d\.)0\d{9,10}(?![\d-])|(?<![\d+-])(?<!\d\.)0\d{4} \d{6}(?![\d-])"
            r"|(?<![\d.-])(?:1[-. ])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[-. ])\d{3}[-. ]\d{4}"
            rf"(?![\d-]| \d|\.\d|,\d| ?(?:{_COUNTER}))",
            re.ASCII,
        ),
        _is_phone,
    ),
)  # fmt: skip


def find_personal(text: str, start: int = 0) -> list[Found]:
    """Return the personal data in ``text`` from ``start`` on, in order and without overlaps.

    The text before ``start`` is searched for labels of a number.
    """
    normal, places = normalized(text)
    begin = start if places is None else _first_index_at(places, start)
    taken: list[Found] = []
    for kind, pattern, accepts in _PATTERNS:
        for match in pattern.finditer(normal, begin):
            before = normal[max(0, match.start() - _CONTEXT_LENGTH) : match.start()]
            readings = [each.rstrip(" \t\n　") for each in (match[0], *match.groups()) if each]
            first = match.start()
            if match[0][:1] == "(" and match[0].count("(") > match[0].count(")"):
                readings, first = [match[0][1:]], first + 1  # it belongs to the sentence
            candidate = next((each for each in readings if accepts(each, before)), "")
            if not candidate:
                continue
            last = first + len(candidate)
            if places is not None:
                first, last = places[first], places[last - 1] + 1
            if any(first < other.end and other.start < last for other in taken):
                continue
            taken.append(Found(first, last, kind))
    return sorted(taken)


def canonical(text: str) -> str:
    """Return letters and digits alone, so that two ways of writing the same are equal."""
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", text).casefold()))


def normalized(text: str) -> tuple[str, list[int] | None]:
    """Return the NFKC form of each visible character, and the position in ``text`` of each.

    Characters without width and accents on letters are left out, so they hide nothing. The
    positions are None when the text doesn't change.
    """
    if text.isascii():
        return text, None
    characters = list(map(plain, text))
    for mark in _LONE_VOICING_MARK.finditer(text):
        characters[mark.start()] = ""
    normal = "".join(characters)
    if normal == text:
        return text, None
    return normal, [at for at, same in enumerate(characters) for _ in same]


@lru_cache(maxsize=8192)
def plain(character: str) -> str:
    """Return the NFKC form of one character, or "" for an invisible one or an accent."""
    if is_invisible(character) and character not in _VOICING_MARKS:
        return ""
    return unicodedata.normalize("NFKC", character)


_VOICING_MARKS = ("\u3099", "\u309a")
"""Combining marks that change a kana into another one."""
_LONE_VOICING_MARK = re.compile("(?<![ぁ-ヿｦ-ﾝ])[\u3099\u309aﾞﾟ]")
"""Such a mark without a kana before it, as wide or half as wide."""


def _first_index_at(places: list[int], start: int) -> int:
    return next((at for at, place in enumerate(places) if place >= start), len(places))
