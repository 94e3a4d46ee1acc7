"""The documents of cards: read leniently, written strictly.

:func:`read_document` recognises a document by its ``spec``, then by its fields, and repairs what is
outside the specification. A repair loses nothing: a value that its field can't hold moves to
``extensions.persona_lab.kept``, by its path. :func:`write_document` writes V2 or V3 as specified. A
V2 document has fields of V3 under ``extensions.persona_lab.v3``.

No address is ever opened, here or anywhere in this package.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from persona_lab.errors import CardError
from persona_lab.personas.cards.model import MAX_ENTRIES, OWN, Card, Note, Spec

PROMPT_FIELDS = (
    "name", "description", "personality", "scenario", "first_mes", "mes_example",
)  # fmt: skip
"""The fields of V1."""
_V2_TEXTS = (
    "creator_notes", "system_prompt", "post_history_instructions", "creator", "character_version",
)  # fmt: skip
V3_FIELDS = (
    "assets", "nickname", "creator_notes_multilingual", "source", "group_only_greetings",
    "creation_date", "modification_date",
)  # fmt: skip
"""The fields that V3 added."""
_ALIASES = {
    "char_name": "name",
    "char_persona": "description",
    "context": "description",
    "world_scenario": "scenario",
    "char_greeting": "first_mes",
    "greeting": "first_mes",
    "example_dialogue": "mes_example",
}
"""Fields of older programs, in documents without ``spec``."""
_ENTRY_ALIASES = {
    "key": "keys",
    "keysecondary": "secondary_keys",
    "order": "insertion_order",
    "uid": "id",
}
"""Fields of SillyTavern's own lorebooks. There, ``disable`` stands for the opposite of
``enabled``."""
_POSITIONS = {
    "before_char": "before_char",
    "after_char": "after_char",
    "before_char_defs": "before_char",
    "after_char_defs": "after_char",
    0: "before_char",
    1: "after_char",
}
_SPECS: dict[str, Spec] = {"chara_card_v1": "v1", "chara_card_v2": "v2", "chara_card_v3": "v3"}
_NUMBER = re.compile(r"\s*[-+]?\d{1,30}(\.\d{1,30})?\s*", re.ASCII)
_TRUE = ("true", "1", "yes", "on")
_FALSE = ("false", "0", "no", "off", "")


class _UnusableError(Exception):
    """The field can't hold the value, and nothing sensible can be made of it."""


class _Repair:
    """Collects what was repaired, and the values that fit nowhere."""

    def __init__(self) -> None:
        self.notes: list[Note] = []
        self.kept: dict[str, Any] = {}

    def note(self, key: str, path: str, **details: Any) -> None:
        self.notes.append(Note(f"note.{key}", path, details))

    def keep(self, path: str, value: Any, key: str = "kept") -> None:
        self.kept[path] = value
        self.note(key, path)

    def apply(
        self, path: str, value: Any, convert: Callable[[Any], Any], default: Any = None
    ) -> Any:
        """Return ``value`` as ``convert`` makes it, or ``default`` for null and unusable values."""
        if value is None:
            return default
        try:
            repaired = convert(value)
        except _UnusableError:
            self.keep(path, value)
            return default
        if repaired != value or type(repaired) is not type(value):
            self.note("repaired", path)
        return repaired


# ── reading ───────────────────────────────────────────────────────────────────────────────


def is_card(document: Any) -> bool:
    """Return whether ``document`` has a field that tells a card."""
    if not isinstance(document, dict):
        return False
    if isinstance(document.get("data"), dict):
        return is_card(document["data"]) or str(document.get("spec")).startswith("chara_card")
    return not {*PROMPT_FIELDS, *_ALIASES, "alternate_greetings"}.isdisjoint(document)


def read_document(document: Any) -> Card:
    """Return the card of a V1, V2 or V3 document.

    Raises:
        CardError: It is no card, or exceeds a bound.
    """
    if isinstance(document, dict) and not is_card(document) and _is_lorebook(document):
        raise CardError("card_lorebook")
    if not is_card(document):
        raise CardError("card_unknown")
    repair = _Repair()
    spec, version, fields, outside = _parts(document, repair)
    if spec == "v2":
        for name in sorted(set(V3_FIELDS) & fields.keys()):
            repair.note("v3_field", name)
    data = _repair_data(fields, repair)
    if repair.kept:
        _own_part(data, repair).setdefault("kept", {}).update(repair.kept)
    return Card(data, outside, spec=spec, spec_version=version, notes=tuple(repair.notes))


def _is_lorebook(document: Mapping[str, Any]) -> bool:
    inner = document.get("data")
    return "entries" in document or (isinstance(inner, dict) and "entries" in inner)


def _parts(
    document: dict[str, Any], repair: _Repair
) -> tuple[Spec, str, dict[str, Any], dict[str, Any]]:
    """Return the version, its text, the card's fields and the fields beside them."""
    fields = copy.deepcopy(document)
    stated = fields.pop("spec", None)
    version = fields.pop("spec_version", None)
    if stated is not None and not isinstance(stated, str):
        repair.keep("spec", stated)
    if version is not None and not isinstance(version, str | int | float):
        repair.keep("spec_version", version)
    spec = _SPECS.get(str(stated))
    inner = fields.get("data")
    if isinstance(inner, dict) and (spec in ("v2", "v3") or is_card(inner)):
        del fields["data"]
        if spec is None:
            spec = "v2" if stated is None else "v3"
            repair.note("unknown_spec", "spec", spec=str(stated)[:40])
        spec = "v2" if spec == "v1" else spec
        number = _float(version)
        if spec == "v3" and number is not None and number > 3:
            repair.note("newer_version", "spec_version", version=str(version)[:20])
            return spec, str(version)[:20], inner, fields
        return spec, "2.0" if spec == "v2" else "3.0", inner, fields
    if spec in ("v2", "v3"):
        repair.note("flat", "data")
    if "data" in fields:
        repair.keep("data", fields.pop("data"))
    known = {*PROMPT_FIELDS, *_V2_TEXTS, *V3_FIELDS} | {
        "alternate_greetings", "tags", "extensions", "character_book",
    }  # fmt: skip
    flat = {name: fields.pop(name) for name in list(fields) if name in known}
    for alias, name in _ALIASES.items():
        if alias in fields and not flat.get(name):
            flat[name] = fields.pop(alias)
            repair.note("alias", alias, name=name)
    return spec or "v1", "1.0" if spec is None else "2.0" if spec == "v2" else "3.0", flat, fields


def _float(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value)
    return float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else None


def _repair_data(fields: dict[str, Any], repair: _Repair) -> dict[str, Any]:
    data: dict[str, Any] = {}
    extensions = fields.pop("extensions", None) or None
    if extensions is not None and not isinstance(extensions, dict):
        repair.keep("extensions", extensions)
        extensions = None
    extensions = extensions or {}
    own = extensions.get(OWN)
    if OWN in extensions and not isinstance(own, dict):
        repair.keep(f"extensions.{OWN}", extensions.pop(OWN))
    elif own and isinstance(own.get("v3"), dict):
        for name, value in own.pop("v3").items():
            fields.setdefault(name, value)
        if not own:
            del extensions[OWN]
    for name in (*PROMPT_FIELDS, *_V2_TEXTS):
        data[name] = repair.apply(name, fields.pop(name, None), _text, "")
    data["alternate_greetings"] = repair.apply(
        "alternate_greetings", fields.pop("alternate_greetings", None), _texts, []
    )
    data["tags"] = repair.apply("tags", fields.pop("tags", None), _tags, [])
    if book := _repair_book(fields.pop("character_book", None), repair):
        data["character_book"] = book
    for name, convert in _OPTIONAL.items():
        value = repair.apply(name, fields.pop(name, None), convert)
        if value is not None and (value or name != "group_only_greetings"):
            data[name] = value
    data["extensions"] = extensions
    return data | fields


def _own_part(data: dict[str, Any], repair: _Repair) -> dict[str, Any]:
    """Return our part of the extensions, made where it is missing."""
    part: dict[str, Any] = data["extensions"].setdefault(OWN, {})
    if not isinstance(part.get("kept", {}), dict):
        repair.keep(f"extensions.{OWN}.kept", part["kept"])
        part["kept"] = {}
    return part


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return "\n".join(value)
    raise _UnusableError


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        value = _list_in(value) or ([value] if value else [])
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list):
        raise _UnusableError
    return [_text(item) for item in value if item is not None]


def _list_in(text: str) -> list[Any]:
    """Return the list of a JSON text, or of nothing."""
    if not text.lstrip().startswith("["):
        return []
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return []
    texts = isinstance(found, list) and all(isinstance(item, str) for item in found)
    return found if texts else []


def _tags(value: Any) -> list[str]:
    if isinstance(value, str) and not _list_in(value):
        return [tag.strip() for tag in re.split("[,、，]", value) if tag.strip()]
    return _texts(value)


def _number(value: Any) -> int | float:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int | float):
        return value
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        number = float(value)
        return int(number) if number.is_integer() and "." not in value else number
    raise _UnusableError


def _bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in _TRUE:
        return True
    if isinstance(value, str) and value.strip().lower() in _FALSE:
        return False
    raise _UnusableError


def _map_of_texts(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise _UnusableError
    return {key: _text(item) for key, item in value.items() if item is not None}


def _assets(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise _UnusableError
    parts = ("type", "uri", "name", "ext")
    return [
        {**asset, **{part: _text("" if asset.get(part) is None else asset[part]) for part in parts}}
        for asset in value
    ]


_OPTIONAL: dict[str, Callable[[Any], Any]] = {
    "nickname": _text,
    "creator_notes_multilingual": _map_of_texts,
    "source": _texts,
    "group_only_greetings": _texts,
    "creation_date": _number,
    "modification_date": _number,
    "assets": _assets,
}


# ── lorebooks ─────────────────────────────────────────────────────────────────────────────


def _repair_book(book: Any, repair: _Repair) -> dict[str, Any] | None:
    path = "character_book"
    if book is None or book == "" or book == []:
        if book is not None:
            repair.note("repaired", path)
        return None
    if isinstance(book, str):
        repair.keep(path, book, "linked_book")
        return None
    if isinstance(book, list):
        book = {"entries": book}
        repair.note("repaired", path)
    if not isinstance(book, dict):
        repair.keep(path, book)
        return None
    entries = book.pop("entries", None)
    extensions = book.pop("extensions", None) or None
    for name, convert in _BOOK_FIELDS.items():
        if name in book:
            value = repair.apply(f"{path}.{name}", book.pop(name), convert)
            if value is not None:
                book[name] = value
    if isinstance(entries, dict):
        repair.note("entries_by_key", f"{path}.entries")
        entries = [
            {"id": _entry_id(key), **entry}
            if isinstance(entry, dict) and not {"id", "uid"} & entry.keys()
            else entry
            for key, entry in entries.items()
        ]
    if not isinstance(entries, list):
        if isinstance(entries, str):
            repair.keep(f"{path}.entries", entries, "linked_book")
        elif entries is not None:
            repair.keep(f"{path}.entries", entries)
        entries = []
    if len(entries) > MAX_ENTRIES:
        raise CardError("card_entries", limit=MAX_ENTRIES)
    repaired = [
        _repair_entry(entry, f"{path}.entries.{number}", repair)
        for number, entry in enumerate(entries)
    ]
    book["extensions"] = extensions if isinstance(extensions, dict) else {}
    if extensions is not None and not isinstance(extensions, dict):
        repair.keep(f"{path}.extensions", extensions)
    book["entries"] = [entry for entry in repaired if entry is not None]
    _note_equal_entries(book["entries"], repair)
    return book


def _entry_id(key: str) -> int | str:
    return int(key) if re.fullmatch(r"0|[1-9][0-9]{0,14}", key) else key


def _repair_entry(entry: Any, path: str, repair: _Repair) -> dict[str, Any] | None:
    if not isinstance(entry, dict):
        repair.keep(path, entry)
        return None
    _join_aliases(entry, path, repair)
    fixed: dict[str, Any] = {}
    for name, (convert, default) in _ENTRY_FIELDS.items():
        fixed[name] = repair.apply(
            f"{path}.{name}", entry.pop(name, None), convert, copy.copy(default)
        )
    for name, convert in _ENTRY_OPTIONAL.items():
        if name in entry:
            value = repair.apply(f"{path}.{name}", entry.pop(name), convert)
            if value is not None and (name != "use_regex" or value):
                fixed[name] = value
    position = entry.pop("position", None)
    if position is not None:
        known = isinstance(position, str | int) and not isinstance(position, bool)
        if known and position in _POSITIONS:
            fixed["position"] = _POSITIONS[position]
            if position != fixed["position"]:
                repair.note("repaired", f"{path}.position")
        elif isinstance(position, int) and "position" not in fixed["extensions"]:
            fixed["position"] = "after_char"
            fixed["extensions"]["position"] = position
            repair.note("repaired", f"{path}.position")
        else:
            repair.keep(f"{path}.position", position)
    return fixed | entry


def _join_aliases(entry: dict[str, Any], path: str, repair: _Repair) -> None:
    """Give the fields of SillyTavern's own lorebooks the names of the specification."""
    for alias, name in _ENTRY_ALIASES.items():
        if alias not in entry:
            continue
        value = entry.pop(alias)
        if entry.get(name) in (None, [], "") or entry[name] == value:
            entry[name] = value
        elif name in ("keys", "secondary_keys"):
            try:
                both = [*_keys(entry[name]), *_keys(value)]
            except _UnusableError:
                entry[alias] = value
                continue
            entry[name] = list(dict.fromkeys(both))
        else:
            entry[alias] = value
            continue
        repair.note("alias", f"{path}.{alias}", name=name)
    if "disable" in entry and "enabled" not in entry:
        try:
            entry["enabled"] = not _bool(entry["disable"])
            del entry["disable"]
            repair.note("alias", f"{path}.disable", name="enabled")
        except _UnusableError:
            pass


def _note_equal_entries(entries: list[dict[str, Any]], repair: _Repair) -> None:
    seen: dict[str, int] = {}
    for number, entry in enumerate(entries):
        same = json.dumps([entry["keys"], entry["content"]])
        first = seen.setdefault(same, number)
        if first != number:
            path = f"character_book.entries.{number}"
            repair.note("equal_entry", path, first=first + 1)


def _keys(value: Any) -> list[str]:
    """Return keys; a text holds them with commas between, unless it is a regular expression."""
    if isinstance(value, str) and not value.startswith("/"):
        return _tags(value)
    return _texts(value)


def _extensions(value: Any) -> dict[str, Any]:
    if value == []:  # how some languages write an empty mapping
        return {}
    if not isinstance(value, dict):
        raise _UnusableError
    return value


_BOOK_FIELDS: dict[str, Callable[[Any], Any]] = {
    "name": _text,
    "description": _text,
    "scan_depth": _number,
    "token_budget": _number,
    "recursive_scanning": _bool,
}
_ENTRY_FIELDS: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "keys": (_keys, []),
    "content": (_text, ""),
    "extensions": (_extensions, {}),
    "enabled": (_bool, True),
    "insertion_order": (_number, 100),
}
_ENTRY_OPTIONAL: dict[str, Callable[[Any], Any]] = {
    "use_regex": _bool,
    "case_sensitive": _bool,
    "constant": _bool,
    "name": _text,
    "priority": _number,
    "comment": _text,
    "selective": _bool,
    "secondary_keys": _keys,
}


# ── writing ───────────────────────────────────────────────────────────────────────────────


def write_document(card: Card, spec: Literal["v2", "v3"]) -> dict[str, Any]:
    """Return the card as a document that follows the specification of V2 or V3."""
    data = copy.deepcopy(card.data)
    if spec == "v2":
        late = {name: data.pop(name) for name in V3_FIELDS if name in data}
        if late:
            data["extensions"].setdefault(OWN, {})["v3"] = late
    else:
        data.setdefault("group_only_greetings", [])
        for entry in data.get("character_book", {}).get("entries", ()):
            entry.setdefault("use_regex", False)
    newer = spec == "v3" and card.spec == "v3"
    version = card.spec_version if newer else "2.0" if spec == "v2" else "3.0"
    return {
        "spec": f"chara_card_{spec}",
        "spec_version": version,
        "data": data,
        **copy.deepcopy(card.outside),
    }
