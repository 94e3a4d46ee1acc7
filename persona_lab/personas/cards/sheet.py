"""Sheets: a persona that someone wrote or pasted as text.

A line ``名前：…``, ``Name: …``, ``・性格：…``, ``**Name**: …``, ``【性格】…`` or ``# 性格`` begins
a field, and so does a row ``| 名前 | … |``. Lines without a label continue the field. Labels that
the persona has no field for, such as an age, go into the background as they are. W++ is
``[Character("Nova") { Personality("brave" + "curious") }]``.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from persona_lab.errors import CardError
from persona_lab.personas.cards.labels import (
    ALL_LABELS,
    FIELD_OF_LABEL,
    is_user,
    language_named,
    language_of,
    plain_label,
)
from persona_lab.personas.cards.mapping import (
    USER_IN_SPEECH,
    USER_IN_TEXT,
    Draft,
    Plan,
    fill_macros,
    named_turns,
    read_dialogue,
    split_list,
    unquote,
)
from persona_lab.personas.cards.model import Row
from persona_lab.personas.persona import NAME_LENGTH, PERSONA_FIELDS, Example, clean_text

MAX_SHEET_LENGTH = 200_000
"""Characters."""

_MARKS = "-*+•・●○■□◆◇▼▶◎★☆※>#|｜_ \t　"
"""Marks before a label, and bold marks around it."""
_NUMBER = re.compile(r"\d{1,2}[.)．）][ \t　]*+")
_HEADING = re.compile(
    r"(?:【(?P<a>[^】\n]{1,40})】|《(?P<b>[^》\n]{1,40})》|〔(?P<c>[^〕\n]{1,40})〕"
    r"|\[(?P<d>[^\]\n:：]{1,40})\]|［(?P<e>[^］\n:：]{1,40})］|<(?P<f>[^<>\n]{1,40})>)"
    r"[ \t　]*+[:：＝=]?(?P<rest>.*)"
)
_HASHES = re.compile(r"[ \t]{0,3}#{1,6}[ \t]+(?P<label>[^\n#:：]{1,40})#*[ \t]*")
_MACRO = re.compile(r"<(start|user|char|bot)>|\{\{", re.IGNORECASE)
_SHORT_LABEL = re.compile(
    r"(?:^|(?<![ \t　,、;；/／|｜])[ \t　,、;；/／|｜]++)("
    + "|".join(sorted((re.escape(label) for label in ALL_LABELS), key=len, reverse=True))
    + r"|[^\s　,、;；:：|｜/／「」。]{1,15})[ \t　]?[:：](?!//)",
    re.IGNORECASE,
)
"""A label in a line with several."""
_AFTER_LABEL = re.compile("[:：＝=|｜\t]")
_MAX_LABEL = 60
_MAX_SHORT_LINE = 500
_W_FIELD = re.compile(
    r"(?P<label>[A-Za-zぁ-んァ-ヶ一-龠ー][\w ’'/-]{0,40}?)[ \t]*\([ \t\n]*"
    r"(?P<values>[\"“”][^\"“”\n]*[\"“”](?:\s*\+\s*[\"“”][^\"“”\n]*[\"“”])*)\s*\)"
)
_W_VALUE = re.compile(r"[\"“”]([^\"“”\n]*)[\"“”]")
_W_HEAD = re.compile(r"\b(?:character|char)[ \t]{0,3}\(", re.IGNORECASE)
_EXCHANGE = re.compile(r"^[ \t]*>[ \t]?(.*)$")
_QUOTED = re.compile(r"^[ \t　]*[-*・]?[ \t　]*[「『“\"](.+)[」』”\"][ \t　]*$")
_FREE = ("greeting", "examples", "background", "description")
"""Fields whose lines may look like labels that nobody knows."""
_ITEM_MARKS = ("-", "・", "*", "•")
_TEXTS = ("examples", "background", "description", "greeting")


@dataclass(slots=True)
class _Part:
    """A labelled part of a sheet. ``target`` is the persona's field; "" if there is none."""

    label: str
    target: str
    lines: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "\n".join(self.lines).strip()


def is_sheet(text: str) -> bool:
    """Return whether ``text`` has a label of a persona's field."""
    head = text[:MAX_SHEET_LENGTH]
    return _is_w(head) or any(part.target and part.label for part in _parts(head))


def parse_sheet(text: str) -> Plan:
    """Say what goes where when the sheet ``text`` becomes a persona.

    Raises:
        CardError: It is empty or too long.
    """
    text = clean_text(text.removeprefix("\ufeff")).strip()
    if not text:
        raise CardError("card_empty")
    if len(text) > MAX_SHEET_LENGTH:
        raise CardError("card_sheet_length", limit=MAX_SHEET_LENGTH)
    w_parts, text = _w_parts(text)
    parts = [*w_parts, *_parts(text)]
    language = language_of("".join(part.text for part in parts))
    for part in parts:
        if part.target == "language":
            language = language_named(part.text) or language
    name = next((part.text for part in parts if part.target == "name" and part.text), "")
    name = unquote(name.partition("\n")[0].strip())[:NAME_LENGTH]
    for part in parts:
        if part.target != "examples":
            speech = part.target == "greeting"
            user = (USER_IN_SPEECH if speech else USER_IN_TEXT)[language]
            part.lines = [fill_macros(line, name, user) for line in part.lines]
    draft = Draft({"language": language})
    background: list[str] = []
    sources: list[str] = []
    rows: list[Row] = []
    for target in PERSONA_FIELDS:
        same = [part for part in parts if part.target == target and part.text]
        if not same or target == "background":
            continue
        source = " + ".join(dict.fromkeys(part.label for part in same if part.label))
        value, rest = _value(target, same, name, USER_IN_SPEECH[language])
        if target == "language":
            rows.append(Row(source, target, "used"))
            continue
        draft.put(source, target, value)
        if rest:
            background.append(rest)
            sources.append(source)
    for part in parts:
        if part.text and part.target == "background":
            background.append(part.text)
            sources.append(part.label)
        elif part.text and not part.target:
            colon = "：" if language == "ja" else ": "
            gap = "\n" if part.text.startswith(_ITEM_MARKS) else ""
            background.append(f"{part.label}{colon.rstrip() if gap else colon}{gap}{part.text}")
            sources.append(part.label)
    if background:
        draft.put(
            " + ".join(filter(None, dict.fromkeys(sources))), "background", _joined(background)
        )
    return Plan(draft.persona(), (*rows, *draft.rows))


def _joined(parts: list[str]) -> str:
    """Return the parts of a background: short ones a line each, long ones a paragraph each."""
    joined = ""
    for part in parts:
        gap = "\n\n" if "\n" in part or "\n" in joined.rpartition("\n\n")[2] else "\n"
        joined += (gap if joined else "") + part
    return joined


def _value(target: str, parts: list[_Part], name: str, user: str) -> tuple[object, str]:
    """Return the value of the field, and what goes into the background instead."""
    texts = [part.text for part in parts]
    kind = PERSONA_FIELDS[target].kind
    if target == "examples":
        exchanges = _examples(named_turns("\n".join(texts), name), name)
        filled = [
            Example(*(fill_macros(side, name, user) for side in (each.user, each.ai)))
            for each in exchanges
        ]
        return filled, ""
    if kind in ("list", "traits"):
        items = [item for text in texts for item in split_list(text)]
        limit = PERSONA_FIELDS[target].item_limit
        long = [item for item in items if len(item) > limit]
        return [item for item in items if item not in long], "\n".join(long)
    if kind == "name":
        first, _, rest = texts[0].partition("\n")
        return first.strip('「」『』"“” '), "\n".join([*filter(None, [rest.strip()]), *texts[1:]])
    if target in _TEXTS:
        return "\n".join(texts), ""
    return texts[0].strip('「」『』"“” '), "\n".join(texts[1:])


def _examples(text: str, name: str) -> list[Example]:
    """Return exchanges written as ``User: …``, as ``> …``, or as lines that the persona says."""
    if any(_EXCHANGE.match(line) for line in text.splitlines()):
        turns: list[Example] = []
        for line in text.splitlines():
            if match := _EXCHANGE.match(line):
                turns.append(Example(user=match[1].strip()))
            elif turns and line.strip():
                said = "\n".join(filter(None, [turns[-1].ai, line.strip()]))
                turns[-1] = Example(turns[-1].user, said)
            elif line.strip():
                turns.append(Example(ai=line.strip()))
        return turns
    speaker = _speaker_of(text, name)
    exchanges, loose = read_dialogue(text, speaker)
    spoken = [_QUOTED.sub(r"\1", line).strip() for line in loose.splitlines()]
    return [*(Example(ai=line) for line in spoken if line), *exchanges]


def _speaker_of(text: str, name: str) -> str:
    """Return how example messages name the persona: the label beside that of the user."""
    labels = re.findall(r"^[ \t]*([^:：\n]{1,60})[:：]", text, flags=re.MULTILINE)
    others = list(dict.fromkeys(label.strip() for label in labels if not is_user(label)))
    if name in others or not others:
        return name
    has_user = any(is_user(label) for label in labels)
    return others[0] if has_user or others[0] in name else name


def _is_w(text: str) -> bool:
    """Return whether ``text`` has W++: a character, or two labels that we know."""
    if _W_HEAD.search(text):
        return True
    labels = (plain_label(match["label"]) for match in _W_FIELD.finditer(text))
    return sum(label in FIELD_OF_LABEL for label in labels) >= 2


def _w_parts(text: str) -> tuple[list[_Part], str]:
    """Return the fields of W++ in ``text``, and the text around them."""
    if not _is_w(text):
        return [], text
    parts: list[_Part] = []
    rest: list[str] = []
    at = 0
    for match in _W_FIELD.finditer(text):
        rest.append(text[at : match.start()])
        at = match.end()
        label = match["label"].strip()
        values = [value.strip() for value in _W_VALUE.findall(match["values"])]
        plain = plain_label(label)
        target = "name" if plain in ("character", "char") else FIELD_OF_LABEL.get(plain, "")
        if target == "name" and any(part.target == "name" for part in parts):
            if values == parts[0].lines:
                continue
            target = ""
        if target in PERSONA_FIELDS and PERSONA_FIELDS[target].is_list:
            parts.append(_Part(label, target, values))
        else:
            parts.append(_Part(label, target, [", ".join(values)]))
    rest.append(text[at:])
    around = re.sub(r"[\[\](){}+,\s]*\n|^[\[\](){}+,\s]+|[\[\](){}+,\s]+$", "\n", "".join(rest))
    return parts, around.strip()


def _parts(text: str) -> list[_Part]:
    """Return the labelled parts of a sheet; the first has no label."""
    parts = [_Part("", "background")]
    for line in _lines(text):
        label, rest, sure = _label_of(line)
        target = FIELD_OF_LABEL.get(plain_label(label), "") if label else ""
        current = parts[-1].target
        is_speech = current in ("examples", "greeting") and not sure
        if target and not (is_speech and target in ("name", "language")):
            parts.append(_Part(label, target, [rest]))
        elif label and not is_speech and not is_user(label) and (rest or sure):
            parts.append(_Part(label, "", [rest]))
        elif _is_rule(line):
            continue
        elif parts[-1].label and not parts[-1].target and not line.strip():
            parts.append(_Part("", "background"))
        elif _is_after_list(parts[-1], line):
            parts.append(_Part("", "background", [line.rstrip()]))
        else:
            parts[-1].lines.append(line.rstrip())
    return parts


def _is_after_list(part: _Part, line: str) -> bool:
    """Return whether ``line`` is prose that an empty line divides from a short field."""
    return (
        part.target not in (*_TEXTS, "")
        and not part.lines[-1]
        and any(part.lines)
        and bool(line.strip())
        and not line.lstrip().startswith(_ITEM_MARKS)
    )


def _lines(text: str) -> Iterator[str]:
    """Yield the lines of a sheet. One with several labels, of which we know two, is divided."""
    for line in text.splitlines():
        found = list(_SHORT_LABEL.finditer(line)) if len(line) <= _MAX_SHORT_LINE else []
        known = [match for match in found if plain_label(match[1].lstrip("[")) in FIELD_OF_LABEL]
        if len(known) < 2 or found[0].start(1) > len(line) - len(line.lstrip(_MARKS + "[")):
            yield line
            continue
        starts = [*(match.start(1) for match in found), len(line)]
        for start, end in itertools.pairwise(starts):
            yield line[start:end].strip(" \t　,、;；/／|｜")


def _is_rule(line: str) -> bool:
    """Return whether the line only separates parts: ``---``, ``| --- | --- |``, ``===``."""
    return bool(line.strip()) and not re.sub(r"[-=*_|｜ー―─━:\s　]+", "", line)


def _label_of(line: str) -> tuple[str, str, bool]:
    """Return the label of a line, the text after it, and whether the line is surely a heading."""
    if match := _HASHES.fullmatch(line):
        return match["label"].strip(_MARKS), "", True
    line = line.lstrip(_MARKS)
    if match := _NUMBER.match(line):
        line = line[match.end() :].lstrip(_MARKS)
    if (match := _HEADING.fullmatch(line)) and not _MACRO.match(line):
        groups = match.groupdict()
        rest = groups.pop("rest")
        label = next(value for value in groups.values() if value)
        return label.strip(), rest.strip(), True
    alone = line[: _MAX_LABEL + 1].strip(_MARKS + ":：")
    if len(line) <= _MAX_LABEL and plain_label(alone) in FIELD_OF_LABEL:
        return alone, "", True
    match = _AFTER_LABEL.search(line[:_MAX_LABEL])
    if match is None:
        return "", "", False
    label = line[: match.start()].strip(_MARKS + "[")
    rest = line[match.end() :].strip()
    if rest.count("]") > rest.count("["):
        rest = rest.removesuffix("]").strip()
    if match[0] in "|｜":
        rest = rest.rstrip("|｜ \t")
    if rest.startswith("**"):
        rest = rest.removeprefix("**").strip()  # **Name:** …
    if not label or rest.startswith("//") or _is_prose(label):
        return "", "", False
    return label, rest, False


def _is_prose(label: str) -> bool:
    """Return whether a label is rather the beginning of a sentence, or a time of day."""
    if plain_label(label) in FIELD_OF_LABEL:
        return False
    return (
        len(label) > 24
        or label[-1:].isdigit()
        or bool(re.search('[。、！？!?.,「」"“”]', label))
        or len(label.split()) > 4
    )
