"""From a card to a persona and back.

:func:`map_card` says what goes where, and changes nothing. :func:`edit_card` puts an edited persona
into a card: only the fields that the edit concerns get a new text. The whole persona travels in
``extensions.persona_lab.persona``. It is trusted only if the card's text is what it renders to, so
a card shows in every program what it is here.
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from persona_lab.personas.cards.document import V3_FIELDS
from persona_lab.personas.cards.labels import LABELS, is_user, language_of
from persona_lab.personas.cards.model import OWN, Card, Note, Row, outside_fields, own_part
from persona_lab.personas.persona import (
    NAME_LENGTH,
    PERSONA_FIELDS,
    Example,
    Persona,
    clean_text,
)
from persona_lab.types import LANGUAGES
from persona_lab.unicode_text import is_blank

_MACRO = re.compile(r"\{\{\s*(char|user)\s*\}\}|<(user|char|bot)>", re.IGNORECASE)
USER_IN_TEXT = {"ja": "ユーザー", "en": "the user"}
USER_IN_SPEECH = {"ja": "あなた", "en": "you"}
_START = re.compile(r"^[ \t]*<START>[ \t]*$", re.IGNORECASE | re.MULTILINE)
_SPEAKER = re.compile(r"^[ \t]*([^:：\n]{1,60})[:：][ \t]*(.*)$")
_SEPARATORS = re.compile(r"[,、，;；\n]+|\s[/／+|｜]\s|／")
_LINES = re.compile(r"\n+")
_SENTENCE = re.compile(r"[。！？](?=.)|[.!?] +[A-Z]")
_PAIRS = ("「」", "『』", '""', "“”", "''", "()", "（）", "[]")
_QUOTED_PART = re.compile('「([^「」]*)」|“([^“”]*)”|"([^"]*)"')
_MAX_TEXT = 200_000
"""Characters of a field that are read; a persona holds no more."""
_MAX_TRAIT = 40
"""Characters of a trait. A longer part is prose, and the text stays in one piece."""
_LINE = 200
"""Characters of a description that counts as a tagline."""
_TEXT_GROUP = tuple(
    name for name in PERSONA_FIELDS if name not in ("name", "greeting", "examples", "language")
)
_GROUPS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("name",), ("name",)),
    (_TEXT_GROUP, ("description", "personality", "scenario")),
    (("greeting",), ("first_mes",)),
    (("examples",), ("mes_example",)),
)
"""Fields of the persona, and the fields of a card that hold them."""
_LABELLED = tuple(
    name for name in _TEXT_GROUP if name not in ("description", "background", "personalities")
)
"""Fields of the persona that a card's description has as labelled lines."""
_KEPT_FIELDS = (
    "creator_notes", "system_prompt", "post_history_instructions", "alternate_greetings", "tags",
    "creator", "character_version", *V3_FIELDS,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Plan:
    """What an import would do.

    Attributes:
        persona: The persona as it would be. Its name is empty if the source has none.
        rows: What goes where.
        notes: What was unusual in the source.
    """

    persona: Persona
    rows: tuple[Row, ...]
    notes: tuple[Note, ...] = ()


@dataclass(slots=True)
class Draft:
    """The values of a persona while a source is read; each fits its field."""

    values: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def put(self, source: str, target: str, value: Any) -> None:
        """Put ``value`` into the field ``target``; what the field can't hold is cut off."""
        fitted, cut = fit(target, value)
        if not fitted:
            return
        self.values[target] = fitted
        limit = PERSONA_FIELDS[target].limit
        if cut:
            self.rows.append(Row(source, target, "used", "row.cut", {"limit": limit}))
        else:
            self.rows.append(Row(source, target, "used"))

    def persona(self) -> Persona:
        """Return the persona of the values."""
        return Persona(**self.values)


def fit(name: str, value: Any) -> tuple[Any, bool]:
    """Return ``value`` as the persona's field ``name`` holds it, and whether a part is missing."""
    spec = PERSONA_FIELDS[name]
    match spec.kind:
        case "name" | "text":
            text = clean_text(str(value)[: 4 * spec.limit])
            if spec.kind == "name":
                text = " ".join(text.split())
                text = "" if is_blank(text) else text
            return text[: spec.limit], max(len(text), len(value) // 4) > spec.limit
        case "choice":
            return (value, False) if value in spec.values else (spec.values[0], True)
        case "examples":
            exchanges = tuple(
                Example(*(clean_text(side)[: spec.item_limit] for side in (each.user, each.ai)))
                for each in value
            )
            long = any(len(each.user + each.ai) > spec.item_limit for each in value)
            return exchanges[: spec.limit], long or len(exchanges) > spec.limit
        case "list" | "traits":
            lines = [" ".join(clean_text(str(item)).split()) for item in value]
            lines = [line for line in lines if line]
            if spec.kind == "traits":
                lines = list(dict.fromkeys(line[: spec.item_limit] for line in lines))
            long = any(len(line) > spec.item_limit for line in lines)
            fitted = tuple(line[: spec.item_limit] for line in lines[: spec.limit])
            return fitted, long or len(lines) > spec.limit


def split_list(text: str) -> list[str]:
    """Return the parts of a list in one text: with commas, slashes or lines between them.

    Sentences and quoted parts stay whole.
    """
    quoted = _QUOTED_PART.findall(text)
    if quoted and not _QUOTED_PART.sub("", text).strip(" \t\n,、，;；/／・+"):
        return [part.strip() for parts in quoted for part in parts if part.strip()]
    separators = _LINES if _SENTENCE.search(text) else _SEPARATORS
    parts = [unquote(part.strip(" \t・•*-")) for part in separators.split(unquote(text.strip()))]
    return [part for part in parts if part]


def unquote(text: str) -> str:
    """Return ``text`` without a pair of quotes or brackets around all of it."""
    inner = text[1:-1]
    pair = text[:1] + text[-1:]
    if len(text) < 2 or pair not in _PAIRS or not {*pair}.isdisjoint(inner):
        return text
    return inner.strip()


def join_list(items: Sequence[str], language: str) -> str:
    """Return ``items`` as one text that :func:`split_list` takes apart again."""
    between = "、" if language == "ja" else ", "
    if any(split_list(item) != [item] for item in items):
        left, right = "「」" if language == "ja" else "“”"
        items = [f"{left}{item}{right}" for item in items]
    return between.join(items)


def fill_macros(text: str, char: str, user: str) -> str:
    """Return ``text`` with the macros for character and user filled in."""

    def fill(match: re.Match[str]) -> str:
        return user if (match[1] or match[2]).lower() == "user" else char

    return _MACRO.sub(fill, text)


def read_dialogue(text: str, char: str) -> tuple[list[Example], str]:
    """Return the exchanges in example messages, and the lines that belong to none.

    A line ``NAME: …`` begins a message of that speaker; other lines continue it.
    """
    exchanges: list[Example] = []
    loose: list[str] = []
    for block in _START.split(text):
        turns: list[tuple[str, list[str]]] = []
        for line in block.strip().splitlines():
            match = _SPEAKER.match(line)
            speaker = match[1].strip() if match else ""
            if match and (is_user(speaker) or speaker.casefold() == char.casefold()):
                turns.append(("user" if is_user(speaker) else "ai", [match[2]]))
            elif turns:
                turns[-1][1].append(line)
            elif line.strip():
                loose.append(line)
        exchanges += _exchanges([(side, "\n".join(lines).strip()) for side, lines in turns])
    return exchanges, "\n".join(loose)


def _exchanges(turns: Sequence[tuple[str, str]]) -> list[Example]:
    found: list[Example] = []
    for side, said in turns:
        if side == "user":
            if found and not found[-1].ai:
                found[-1] = replace(found[-1], user=f"{found[-1].user}\n{said}")
            else:
                found.append(Example(user=said))
        elif found and not found[-1].ai:
            found[-1] = replace(found[-1], ai=said)
        elif found and found[-1].user:
            found[-1] = replace(found[-1], ai=f"{found[-1].ai}\n{said}")
        else:
            found.append(Example(ai=said))
    return [each for each in found if each.user or each.ai]


# ── card → persona ────────────────────────────────────────────────────────────────────────


def map_card(card: Card, *, user_name: str = "") -> Plan:
    """Say what goes where when ``card`` becomes a persona. Nothing is changed.

    Args:
        card: The card.
        user_name: What stands for ``{{user}}``; by default a word of the persona's language.
    """
    draft = _map_fields(card.data, user_name)
    persona = draft.persona()
    rows = draft.rows
    stored = _stored_persona(card.data)
    if stored is not None:
        if _changed_fields(card.data, persona, stored):
            rows.append(Row(f"extensions.{OWN}.persona", "", "kept", "row.stale"))
        else:
            persona = stored
            rows = _rows_of(stored)
    if not persona.name:
        rows.append(Row("name", "name", "kept", "row.no_name"))
    return Plan(persona, (*rows, *_kept_rows(card)), card.notes)


def _map_fields(data: Mapping[str, Any], user_name: str = "") -> Draft:
    char = (data.get("nickname") or data["name"])[:NAME_LENGTH]
    user_name = user_name[:NAME_LENGTH]
    prompt_texts = [data["description"], data["personality"], data["scenario"]]
    language = language_of("".join([*prompt_texts, data["first_mes"], data["mes_example"]]))

    def text(name: str, words: Mapping[str, str] = USER_IN_TEXT) -> str:
        return fill_macros(data[name][:_MAX_TEXT], char, user_name or words[language]).strip()

    draft = Draft({"language": language})
    draft.put("name", "name", data["name"])
    about = text("description")
    is_line = len(about) <= _LINE and "\n" not in about
    parts = [] if is_line else [about]
    if is_line:
        draft.put("description", "description", about)
    traits = split_list(text("personality"))
    if all(len(trait) <= _MAX_TRAIT for trait in traits):
        draft.put("personality", "personalities", traits)
    else:
        parts.append(f"{LABELS['personalities'][language][0]}: {text('personality')}")
    parts.append(text("scenario"))
    sources = [
        name
        for name, is_there in (
            ("description", not is_line),
            ("personality", "personalities" not in draft.values and bool(traits)),
            ("scenario", bool(parts[-1])),
        )
        if is_there
    ]
    if background := "\n\n".join(part for part in parts if part):
        draft.put(" + ".join(sources), "background", background)
    draft.put("first_mes", "greeting", text("first_mes", USER_IN_SPEECH))
    user = user_name or USER_IN_SPEECH[language]
    exchanges, loose = read_dialogue(
        named_turns(data["mes_example"][:_MAX_TEXT], data["name"]), _CHAR
    )
    if not exchanges and loose:
        exchanges, loose = [Example(ai=loose)], ""
    filled = [
        Example(*(fill_macros(side, char, user) for side in (each.user, each.ai)))
        for each in exchanges
    ]
    draft.put("mes_example", "examples", filled)
    if loose:
        draft.rows.append(Row("mes_example", "", "kept", "row.loose_lines"))
    return draft


_CHAR = "{{char}}"
_TURN = re.compile(
    r"^([ \t]*)(?:\{\{\s*(char|user)\s*\}\}|<(user|char|bot)>)[ \t]*(?=[:：])",
    re.IGNORECASE | re.MULTILINE,
)


def named_turns(text: str, name: str) -> str:
    """Return example messages with ``{{user}}`` and ``{{char}}`` as the speakers."""
    text = _TURN.sub(
        lambda m: "{{user}}" if (m[2] or m[3]).lower() == "user" else _CHAR,
        text.replace("\r\n", "\n"),
    )
    if not name.strip() or len(name) > NAME_LENGTH:
        return text
    own_name = re.compile(rf"^[ \t]*{re.escape(name.strip())}[ \t]*(?=[:：])", re.MULTILINE)
    return own_name.sub(_CHAR, text)


def _rows_of(persona: Persona) -> list[Row]:
    """Return the rows of a card whose persona is our own."""
    empty = Persona()
    sources = {field: " + ".join(names) for fields, names in _GROUPS for field in fields}
    return [
        Row(sources.get(name, f"extensions.{OWN}.persona"), name, "used")
        for name in PERSONA_FIELDS
        if getattr(persona, name) != getattr(empty, name) or name == "language"
    ]


def _kept_rows(card: Card) -> list[Row]:
    rows = []
    data = card.data
    for name in _KEPT_FIELDS:
        if data.get(name):
            prompts = name in ("system_prompt", "post_history_instructions")
            rows.append(Row(name, "", "kept", "row.own_rules" if prompts else ""))
    book = data.get("character_book")
    if book:
        count = len(book["entries"])
        rows.append(Row("character_book", "lorebook", "used", "row.lore", {"count": count}))
    known = {*_KEPT_FIELDS, *(name for _, names in _GROUPS for name in names)}
    known |= {"extensions", "character_book"}
    rows += [Row(name, "", "kept", "row.unknown") for name in data if name not in known]
    rows += [Row(f"extensions.{name}", "", "kept") for name in data["extensions"] if name != OWN]
    rows += [Row(path, "", "kept", "row.unusable") for path in own_part(data).get("kept", {})]
    rows += [Row(f"../{name}", "", "kept", "row.unknown") for name in outside_fields(card)]
    if card.picture is not None:
        rows.append(Row("picture", "", "kept"))
    rows += [Row(f"file:{path}", "", "kept") for path in card.members]
    return rows


def _stored_persona(data: Mapping[str, Any]) -> Persona | None:
    stored = own_part(data).get("persona")
    return persona_from(stored) if isinstance(stored, dict) else None


def persona_from(values: Mapping[str, Any]) -> Persona:
    """Return the persona of plain data from a stranger; what doesn't fit a field is left out."""
    found: dict[str, Any] = {}
    for name, spec in PERSONA_FIELDS.items():
        value = values.get(name)
        if spec.kind == "examples":
            value = [
                Example(*(str(each.get(side) or "") for side in ("user", "ai")))
                for each in (value if isinstance(value, list) else ())
                if isinstance(each, dict)
            ]
        elif spec.is_list:
            value = split_list(value) if isinstance(value, str) else value
            items = value if isinstance(value, list | tuple) else ()
            value = [item for item in items if isinstance(item, str)]
        elif not isinstance(value, str):
            value = ""
        if value:
            found[name] = fit(name, value)[0]
    return Persona(**found)


# ── persona → card ────────────────────────────────────────────────────────────────────────


def card_of(persona: Persona) -> Card:
    """Return a new card for ``persona``."""
    data: dict[str, Any] = {
        **_render(persona),
        "creator_notes": "",
        "system_prompt": "",
        "post_history_instructions": "",
        "creator": "",
        "character_version": "",
        "alternate_greetings": [],
        "tags": [],
        "extensions": {OWN: {"persona": persona.to_dict()}},
    }
    return Card(data)


def edit_card(card: Card, persona: Persona) -> Card:
    """Return ``card`` with ``persona`` in it; ``card`` itself stays as it is.

    Fields of the card that the edit doesn't concern keep their text, with its macros. The result
    counts as edited, and names the file that it was made from by its SHA-256.
    """
    before = map_card(card).persona
    if before == persona:
        return card
    data = copy.deepcopy(card.data)
    plain = _map_fields(card.data).persona()
    data |= _changed_fields(card.data, plain, persona)
    part = data["extensions"].setdefault(OWN, {})
    part["persona"] = persona.to_dict()
    part["edited"] = True
    if card.original:
        part["original"] = hashlib.sha256(card.original).hexdigest()
    outside = {
        name: data[name] if name in data and isinstance(value, str) else value
        for name, value in card.outside.items()
    }
    return replace(card, data=data, outside=outside)


def _changed_fields(data: Mapping[str, Any], plain: Persona, persona: Persona) -> dict[str, str]:
    """Return the fields of the card that must change so that it holds ``persona``.

    Args:
        data: The fields of the card.
        plain: The persona that the card's text says.
        persona: The persona that it shall say.
    """
    rendered = _render(persona)
    changed: dict[str, str] = {}
    for fields, names in _GROUPS:
        if any(getattr(plain, each) != getattr(persona, each) for each in fields):
            changed |= {name: rendered[name] for name in names if data[name] != rendered[name]}
    return changed


def _render(persona: Persona) -> dict[str, str]:
    """Return the six fields of V1 for ``persona``."""
    language = persona.language if persona.language in LANGUAGES else LANGUAGES[0]
    colon = "：" if language == "ja" else ": "
    lines = []
    for name in _LABELLED:
        value = getattr(persona, name)
        value = value if isinstance(value, str) else join_list(value, language)
        if value:
            lines.append(f"{LABELS[name][language][0]}{colon}{value}")
    parts = (persona.description, persona.background, "\n".join(lines))
    return {
        "name": persona.name,
        "description": "\n\n".join(part for part in parts if part),
        "personality": join_list(persona.personalities, language),
        "scenario": "",
        "first_mes": persona.greeting,
        "mes_example": _dialogue(persona.examples),
    }


def _dialogue(examples: Iterable[Example]) -> str:
    blocks = []
    for example in examples:
        turns = [("{{user}}", example.user), (_CHAR, example.ai)]
        said = "\n".join(f"{speaker}: {text}" for speaker, text in turns if text)
        blocks.append(f"<START>\n{said}")
    return "\n".join(blocks)
