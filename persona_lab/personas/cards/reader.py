"""Read character cards from files, and sheets from text."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from persona_lab.errors import CardError
from persona_lab.personas.cards import charx, png
from persona_lab.personas.cards.document import PROMPT_FIELDS, is_card, read_document
from persona_lab.personas.cards.labels import FIELD_OF_LABEL, plain_label
from persona_lab.personas.cards.mapping import Plan, card_of, map_card, persona_from
from persona_lab.personas.cards.model import (
    MAX_ARCHIVE_BYTES,
    MAX_FILE_BYTES,
    MAX_UNPACKED_BYTES,
    OWN,
    Card,
    Note,
    Source,
)
from persona_lab.personas.cards.plain_data import decode, read_json, read_yaml
from persona_lab.personas.cards.sheet import is_sheet, parse_sheet
from persona_lab.personas.persona import PERSONA_FIELDS

ARCHIVED = "/persona.charx"
"""The end of the path of each card in an archive."""
OWN_FORMAT = "persona_lab/card"
ICON_ADDED = "assets/icon/images/persona_lab_main.png"
ICON_DEFAULT = "assets/icon/images/persona_lab_default.png"
"""Where a zip file has the picture of a card. The first path is that of an asset which is written
for other programs; the second is that of the card's own asset ``ccdefault:``."""
EMBEDDED = "embeded://"
"""The specification spells it so."""
_OWN_FIELDS = PERSONA_FIELDS.keys() - {
    "name", "description", "gender", "greeting", "examples", "language"
}  # fmt: skip
"""Fields of a persona that no card has."""
_PICTURES = (b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM", b"\0\0\0\x1cftyp", b"\0\0\0 ftyp")


def read_card(source: bytes | bytearray | str | Path) -> Card:
    """Read a character card: JSON, PNG, CHARX, YAML, our own JSON, or a sheet.

    The kind of file is told by its content. Nothing outside the file is opened, whatever addresses
    it has.

    Args:
        source: The bytes of a file, or its path.

    Raises:
        CardError: It is no card, damaged or too large. ``why`` names the reason.
    """
    data = bytes(source) if isinstance(source, bytes | bytearray) else _read_file(Path(source))
    if len(data) > MAX_FILE_BYTES:
        raise CardError("card_file_size", limit=MAX_FILE_BYTES // 1_000_000)
    if not data.strip():
        raise CardError("card_empty")
    if data.startswith(png.SIGNATURE):
        card = _read_png(data)
    elif data.startswith(b"PK") or b"PK\x05\x06" in data[-65_600:]:
        card = _read_charx(data)
    elif data.startswith(_PICTURES):
        raise CardError("card_picture")
    else:
        card = _read_text(decode(data))
    return replace(card, original=data)


def read_sheet(text: str) -> Plan:
    """Say what goes where when ``text`` becomes a persona. The text may also be a card's JSON.

    Raises:
        CardError: It is empty or too long, or a damaged card.
    """
    if text.lstrip("\ufeff \t\r\n").startswith("{"):
        card = read_card(text.encode("utf-8", "replace"))
        if card.source != "sheet":
            return map_card(card)
    return parse_sheet(text)


def read_archive(data: bytes) -> list[Card]:
    """Return the cards of an archive that ``write_archive`` made.

    Raises:
        CardError: It is no such archive.
    """
    if len(data) > MAX_ARCHIVE_BYTES:
        raise CardError("card_file_size", limit=MAX_ARCHIVE_BYTES // 1_000_000)
    members, _ = charx.read_zip(data, MAX_ARCHIVE_BYTES)
    cards = [
        read_card(content) for path, content in sorted(members.items()) if path.endswith(ARCHIVED)
    ]
    if not cards:
        raise CardError("card_member", part=ARCHIVED[1:])
    return cards


def _read_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError):
        raise CardError("card_unreadable") from None


def _read_png(data: bytes) -> Card:
    image = png.read_png(data)
    keyword = "ccv3" if "ccv3" in image.documents else "chara"
    try:
        card = _read_text(decode(image.documents[keyword]))
    except CardError:
        if len(image.documents) == 1:
            raise
        keyword = "chara"
        card = _read_text(decode(image.documents[keyword]))
        card = replace(card, notes=(*card.notes, Note("note.damaged_v3", "ccv3")))
    return _with_source(
        replace(card, picture=image.picture, members=image.members or card.members), "png"
    )


def _read_charx(data: bytes) -> Card:
    members, prefix = charx.read_zip(data)
    document = members.pop(charx.DOCUMENT, None)
    if document is None:
        raise CardError("card_member", part=charx.DOCUMENT)
    card = _read_text(decode(document))
    picture = members.pop(ICON_ADDED, None)
    if picture is not None:
        _drop_asset(card.data, EMBEDDED + ICON_ADDED)
    elif (picture := members.pop(ICON_DEFAULT, None)) is not None:
        for asset in card.data.get("assets", ()):
            if asset["uri"] == EMBEDDED + ICON_DEFAULT:
                asset["uri"] = "ccdefault:"
    if picture is None:
        picture = card.picture
    return _with_source(
        replace(card, picture=picture, members=members or card.members, prefix=prefix), "charx"
    )


def _drop_asset(data: dict[str, Any], uri: str) -> None:
    data["assets"] = [asset for asset in data.get("assets", ()) if asset["uri"] != uri]
    if not data["assets"]:
        del data["assets"]


def _with_source(card: Card, source: Source) -> Card:
    return replace(card, source=source)


def _read_text(text: str) -> Card:
    """Return the card of a JSON text, a YAML text or a sheet."""
    stripped = text.lstrip()
    if stripped.startswith(("{", "[")):
        try:
            return _with_source(_read_value(read_json(text)), "json")
        except CardError as error:
            if error.details["why"] != "card_json" or not is_sheet(text):
                raise
            return _read_sheet_card(text)
    try:
        value = read_yaml(text)
    except CardError as error:
        if error.details["why"] != "card_yaml" or not is_sheet(text):
            raise
        return _read_sheet_card(text)
    if isinstance(value, dict) and _is_known(value) and not _has_labels(value):
        return _with_source(_read_value(value), "yaml")
    if is_sheet(text):
        return _read_sheet_card(text)
    return _with_source(_read_value(value), "yaml")


def _has_labels(document: Mapping[str, Any]) -> bool:
    """Return whether a mapping is a sheet: some keys are labels that neither we nor cards have."""
    if not {"spec", "data", "first_mes", "mes_example", "scenario", "format"}.isdisjoint(document):
        return False
    known = {*PERSONA_FIELDS, *PROMPT_FIELDS}
    return any(plain_label(key) in FIELD_OF_LABEL for key in document if key not in known)


def _read_sheet_card(text: str) -> Card:
    return _with_source(card_of(parse_sheet(text).persona), "sheet")


def _is_known(document: Mapping[str, Any]) -> bool:
    own = document.get("format") == OWN_FORMAT or not _OWN_FIELDS.isdisjoint(document)
    return own or is_card(document)


def _read_value(document: Any) -> Card:
    if isinstance(document, list) and len(document) == 1:
        document = document[0]
    if not isinstance(document, dict):
        raise CardError("card_unknown")
    if document.get("format") == OWN_FORMAT:
        return _read_own(document)
    if "spec" not in document and "data" not in document:
        if not _OWN_FIELDS.isdisjoint(document):
            return _read_persona(document)
        persona = document.get("persona")
        if isinstance(persona, dict) and not is_card(document):
            return _read_value(persona)
    return read_document(document)


def _read_persona(document: Mapping[str, Any]) -> Card:
    """Return a card for the plain data of a persona; what fits no field stays in the card."""
    persona = persona_from(document)
    card = card_of(persona)
    stored = persona.to_dict()
    rest = {
        name: value
        for name, value in document.items()
        if value not in (None, "", []) and stored.get(name) != value
    }
    if rest:
        card.data["extensions"][OWN]["kept"] = rest
    return replace(card, spec="own", notes=tuple(Note("note.kept", name) for name in rest))


def _read_own(document: Mapping[str, Any]) -> Card:
    inner = document.get("card")
    if not isinstance(inner, dict):
        raise CardError("card_unknown")
    card = read_document(inner)
    files = document.get("files")
    members: dict[str, bytes] = {}
    if isinstance(files, dict):
        members = {path: _unpack(value, path) for path, value in files.items() if path}
    if sum(map(len, members.values())) > MAX_UNPACKED_BYTES:
        raise CardError("card_unpacked_size", limit=MAX_UNPACKED_BYTES // 1_000_000)
    picture, prefix = document.get("picture"), document.get("prefix")
    return replace(
        card,
        picture=_unpack(picture, "picture") if picture else None,
        prefix=_unpack(prefix, "prefix") if prefix else b"",
        members=members,
        source="own",
    )


def _unpack(value: Any, part: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise CardError("card_data", part=part[:40]) from None
