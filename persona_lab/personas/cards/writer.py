"""Write character cards as files."""

from __future__ import annotations

import base64
import copy
import re
from collections.abc import Iterable
from typing import Any, get_args

from persona_lab.errors import CardError
from persona_lab.personas.cards import charx, png
from persona_lab.personas.cards.document import write_document
from persona_lab.personas.cards.labels import LABELS
from persona_lab.personas.cards.mapping import join_list, map_card
from persona_lab.personas.cards.model import MAX_INLINE_BYTES, Card, Format
from persona_lab.personas.cards.plain_data import write_json, write_yaml
from persona_lab.personas.cards.reader import (
    ARCHIVED,
    EMBEDDED,
    ICON_ADDED,
    ICON_DEFAULT,
    OWN_FORMAT,
)
from persona_lab.personas.persona import PERSONA_FIELDS, Example, Persona

FORMATS: tuple[Format, ...] = get_args(Format)
EXTENSIONS: dict[Format, str] = {
    "v2-json": "v2.json",
    "v3-json": "v3.json",
    "v2-png": "v2.png",
    "v3-png": "v3.png",
    "charx": "charx",
    "yaml": "yaml",
    "json": "persona_lab.json",
    "text": "txt",
}
_UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*\u200b-\u200f\u202a-\u202e\u2066-\u2069]+')
_MAX_NAME = 60
_BACKFILL = (
    "This character card is Character Card V3, but it is loaded as a Character Card V2. "
    "Please use a Character Card V3 compatible application to use this character card properly."
)
"""The note that the specification of V3 asks for in a V2 card beside a V3 card."""


def write_card(card: Card, format: Format, *, prompt: str = "") -> bytes:  # noqa: A002 - the public name
    """Return ``card`` as a file.

    Everything that the card has is written, as far as the format has a place for it. CHARX holds
    all of it, and so do our own JSON and YAML, unless its files are large.

    Args:
        card: The card.
        format: One of :data:`FORMATS`. ``text`` is the prompt, or a sheet if there is none.
        prompt: The prompt of the persona, for ``text``.

    Raises:
        CardError: There is no such format.
    """
    match format:
        case "v2-json":
            return write_json(write_document(card, "v2"))
        case "v3-json":
            return write_json(write_document(card, "v3"))
        case "v2-png":
            return _write_png(card, {"chara": write_json(write_document(card, "v2"))})
        case "v3-png":
            documents = {
                "chara": write_json(_backfilled(card)),
                "ccv3": write_json(write_document(card, "v3")),
            }
            return _write_png(card, documents)
        case "charx":
            return _write_charx(card)
        case "yaml":
            return write_yaml(_own_document(card))
        case "json":
            return write_json(_own_document(card))
        case "text":
            return (prompt or write_sheet(map_card(card).persona)).encode()
    raise CardError("card_format", part=str(format)[:40])


def write_original(card: Card) -> bytes:
    """Return the file that ``card`` was read from, to the byte; empty if there is none."""
    return card.original


def file_name(card: Card, format: Format | None = None) -> str:  # noqa: A002 - as in write_card
    """Return a name for a file of ``card`` that every system accepts.

    An edited card has ``edited`` in its name, and the file that it came from ``original``.

    Args:
        card: The card.
        format: The format; None for the file that the card was read from.
    """
    name = _UNSAFE.sub("_", card.name).strip(" .")[:_MAX_NAME].rstrip(" .") or "persona"
    if format is None:
        kinds = {"png": "png", "charx": "charx", "yaml": "yaml", "sheet": "txt"}
        return f"{name}.original.{kinds.get(card.source, 'json')}"
    edited = "edited." if card.edited else ""
    return f"{name}.{edited}{EXTENSIONS[format]}"


def write_archive(cards: Iterable[Card]) -> bytes:
    """Return all of ``cards`` as one zip file, with a folder each.

    A folder has the card as CHARX (from which ``read_archive`` reads it again), as V3 in a picture,
    as a sheet, and the file that the card was imported from.
    """
    members: dict[str, bytes] = {}
    for number, card in enumerate(cards, 1):
        title = file_name(card, "text").removesuffix(".txt").removesuffix(".edited")
        folder = f"{number:05d} {title}"
        members[f"{folder}{ARCHIVED}"] = write_card(card, "charx")
        for format_ in ("v3-png", "text"):
            name = file_name(card, format_)
            members[f"{folder}/{name}"] = write_card(card, format_)
        if card.original:
            members[f"{folder}/{file_name(card)}"] = write_original(card)
    return charx.write_zip(members)


def write_sheet(persona: Persona) -> str:
    """Return ``persona`` as a sheet that ``read_sheet`` reads."""
    language = persona.language
    lines = []
    for name in PERSONA_FIELDS:
        value = getattr(persona, name)
        label = LABELS[name][language][0]
        if name == "language":
            value = "日本語" if language == "ja" else "English"
        if name not in ("examples", "greeting") and value:
            text = value if isinstance(value, str) else join_list(value, language)
            lines.append(_line(label, text, language))
    if persona.greeting:
        lines += ["", f"【{LABELS['greeting'][language][0]}】", persona.greeting]
    if persona.examples:
        lines += ["", f"【{LABELS['examples'][language][0]}】", *map(_exchange, persona.examples)]
    return "\n".join(lines).strip() + "\n"


def _line(label: str, text: str, language: str) -> str:
    if "\n" in text:
        return f"\n【{label}】\n{text}\n"
    return f"{label}：{text}" if language == "ja" else f"{label}: {text}"


def _exchange(example: Example) -> str:
    asked = "\n".join(f"> {line}" for line in example.user.splitlines())
    return f"{asked}\n{example.ai}".strip() + "\n"


def _backfilled(card: Card) -> dict[str, Any]:
    document = write_document(card, "v2")
    notes = document["data"]["creator_notes"]
    document["data"]["creator_notes"] = f"{_BACKFILL}\n\n{notes}".strip()
    return document


def _own_document(card: Card) -> dict[str, Any]:
    """Return everything that the card has as one document."""
    document: dict[str, Any] = {
        "format": OWN_FORMAT,
        "version": 1,
        "persona": map_card(card).persona.to_dict(),
        "card": write_document(card, "v2" if card.spec in ("v1", "v2") else "v3"),
    }
    if not fits_inline(card):
        return document
    for name, content in (("picture", card.picture), ("prefix", card.prefix)):
        if content:
            document[name] = base64.b64encode(content).decode()
    if card.members:
        document["files"] = {
            path: base64.b64encode(content).decode() for path, content in card.members.items()
        }
    return document


def fits_inline(card: Card) -> bool:
    """Return whether our own JSON and YAML hold the card's picture and files."""
    parts = [card.picture or b"", card.prefix, *card.members.values()]
    return sum(map(len, parts)) <= MAX_INLINE_BYTES


def _write_png(card: Card, documents: dict[str, bytes]) -> bytes:
    members = {path: content for path, content in card.members.items() if png.fits_png(path)}
    picture = card.picture
    if picture is not None and not picture.startswith(png.SIGNATURE):
        picture = None
    return png.write_png(documents, picture, members, card.name)


def _write_charx(card: Card) -> bytes:
    document = write_document(card, "v3")
    members = {path: content for path, content in card.members.items() if path != charx.DOCUMENT}
    if card.picture is not None:
        path = _place_picture(document["data"])
        members[path] = card.picture
    return charx.write_zip({charx.DOCUMENT: write_json(document), **members}, card.prefix)


def _place_picture(data: dict[str, Any]) -> str:
    """Let an asset name the picture, and return its path."""
    assets = data.setdefault("assets", [])
    for asset in assets:
        if asset["uri"] == "ccdefault:" and asset["type"] == "icon":
            asset["uri"] = EMBEDDED + ICON_DEFAULT
            return ICON_DEFAULT
    icon = {"type": "icon", "uri": EMBEDDED + ICON_ADDED, "name": "main", "ext": "png"}
    data["assets"] = [*copy.copy(assets), icon]
    return ICON_ADDED
