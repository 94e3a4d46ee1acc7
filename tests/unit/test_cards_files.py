"""Cards of every kind: read, written and read again."""

from __future__ import annotations

import base64
import copy
import json
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
from support.card_files import (
    CARDS,
    OWN_CASES,
    SIGNATURE,
    V1,
    chunk,
    dump,
    picture,
    v3,
    zipped,
)

from persona_lab.errors import CardError
from persona_lab.personas.cards import (
    FORMATS,
    Card,
    card_of,
    edit_card,
    file_name,
    map_card,
    read_archive,
    read_card,
    write_archive,
    write_card,
    write_original,
)
from persona_lab.personas.cards.model import MAX_FILE_BYTES, own_part
from persona_lab.personas.demos import load_demos
from persona_lab.personas.persona import Example, Persona
from persona_lab.settings import ROOT
from persona_lab.translations import Translations

FAILURES = CARDS / "failures"
GIVEN = sorted([*CARDS.glob("*.json"), *CARDS.glob("*.png"), *FAILURES.glob("*.json")])
FILES = tuple(format_ for format_ in FORMATS if format_ != "text")
TEXTS = Translations(ROOT / "templates" / "cards.yaml")
ERRORS = Translations(ROOT / "templates" / "fallbacks.yaml")


def every_case() -> list[Any]:
    given = [pytest.param(path.read_bytes(), id=path.stem) for path in GIVEN]
    return [*given, *(pytest.param(data, id=name) for name, data in OWN_CASES.items())]


# ── read, write, read again ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize("data", every_case())
@pytest.mark.parametrize("format_", FILES)
def test_card_has_equal_fields_in_every_format(data: bytes, format_: Any) -> None:
    card = read_card(data)
    again = read_card(write_card(card, format_))
    assert again.data == card.data
    assert again.outside == card.outside
    assert map_card(again).persona == map_card(card).persona


@pytest.mark.parametrize("data", every_case())
@pytest.mark.parametrize("format_", ["charx", "json", "yaml"])
def test_card_is_equal_in_formats_that_hold_all(data: bytes, format_: Any) -> None:
    card = read_card(data)
    assert read_card(write_card(card, format_)) == card


@pytest.mark.parametrize("data", every_case())
@pytest.mark.parametrize("format_", ["v2-png", "v3-png"])
def test_png_keeps_picture_and_files(data: bytes, format_: Any) -> None:
    card = read_card(data)
    again = read_card(write_card(card, format_))
    assert (again.picture, again.members) == (card.picture, card.members)


@pytest.mark.parametrize("data", every_case())
def test_written_card_reads_without_a_repair(data: bytes) -> None:
    for format_ in FILES:
        notes = read_card(write_card(read_card(data), format_)).notes
        assert {note.key for note in notes} <= {"note.equal_entry", "note.v3_field"}


@pytest.mark.parametrize("data", every_case())
def test_original_is_kept_to_the_byte(data: bytes) -> None:
    assert write_original(read_card(data)) == data


def test_card_is_read_from_a_path() -> None:
    path = CARDS / "minimal_v2.json"
    assert read_card(path) == read_card(str(path)) == read_card(path.read_bytes())


@pytest.mark.parametrize("demo", load_demos(ROOT / "data" / "personas.yaml"), ids=lambda d: d["id"])
@pytest.mark.parametrize("format_", FILES)
def test_persona_is_equal_after_export_and_import(demo: dict[str, Any], format_: Any) -> None:
    persona = Persona.validate({name: value for name, value in demo.items() if name != "id"})
    assert map_card(read_card(write_card(card_of(persona), format_))).persona == persona


# ── strict files ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("data", every_case())
def test_v2_and_v3_have_each_field_of_their_specification(data: bytes) -> None:
    texts = "name description personality scenario first_mes mes_example creator_notes "
    texts += "system_prompt post_history_instructions creator character_version"
    for version in ("2", "3"):
        document = json.loads(write_card(read_card(data), f"v{version}-json"))  # type: ignore[arg-type]
        assert document["spec"] == f"chara_card_v{version}"
        assert document["spec_version"] == f"{version}.0"
        fields = document["data"]
        assert all(isinstance(fields[name], str) for name in texts.split())
        lists = ["alternate_greetings", "tags", *(["group_only_greetings"] * (version == "3"))]
        assert all(isinstance(text, str) for name in lists for text in fields[name])
        assert isinstance(fields["extensions"], dict)
        for entry in fields.get("character_book", {}).get("entries", ()):
            assert isinstance(entry["enabled"], bool)
            assert isinstance(entry["insertion_order"], int | float)
            assert isinstance(entry["content"], str)
            assert all(isinstance(key, str) for key in entry["keys"])
            assert entry.get("position", "after_char") in ("before_char", "after_char")


def test_v3_png_has_a_v2_card_that_says_so() -> None:
    data = write_card(read_card(OWN_CASES["v3 with unknown fields"]), "v3-png")
    assert data.count(b"tEXtchara\0") == data.count(b"tEXtccv3\0") == 1
    encoded = data.split(b"tEXtchara\0")[1]
    length = int.from_bytes(data[data.index(b"tEXtchara") - 4 :][:4]) - len(b"chara\0")
    old = json.loads(base64.b64decode(encoded[:length]))
    assert old["spec"] == "chara_card_v2"
    assert "Character Card V3" in old["data"]["creator_notes"]
    assert read_card(data).data["creator_notes"] == ""


def test_foreign_chunks_stay_in_their_order() -> None:
    data = OWN_CASES["png with a foreign chunk"]
    written = write_card(read_card(data), "v2-png")
    for part in (b"Comment\0hello", b"prVt\1\2"):
        assert part in written
    assert written.index(b"Comment") < written.index(b"prVt") < written.index(b"IDAT")


def test_given_png_keeps_its_pixels_and_texts() -> None:
    data = (CARDS / "test_character.png").read_bytes()
    written = write_card(read_card(data), "v3-png")
    start = data.index(b"IDAT")
    assert written.startswith(data[: data.index(b"tEXtchara") - 4])
    assert data[start : start + 100_000] in written


# ── failures of the wild ──────────────────────────────────────────────────────────────────


def failure(name: str) -> Card:
    return read_card(FAILURES / f"{name}.json")


def test_failure_null_book_counts_as_no_book() -> None:
    assert "character_book" not in failure("book_null").data


def test_failure_greetings_as_text_become_a_list() -> None:
    assert failure("greetings_text").data["alternate_greetings"] == ["おはよう、{{user}}。"]


def test_failure_v3_fields_in_v2_survive_and_v2_stays_strict() -> None:
    card = failure("v3_fields_in_v2")
    assert card.data["nickname"] == "ハルさん"
    written = json.loads(write_card(card, "v2-json"))["data"]
    assert "nickname" not in written
    assert written["extensions"]["persona_lab"]["v3"]["nickname"] == "ハルさん"
    assert {note.path for note in card.notes} >= {"nickname", "assets", "creation_date"}


def test_failure_entries_outside_the_specification_lose_nothing() -> None:
    card = failure("entries_outside_spec")
    snow, festival = card.data["character_book"]["entries"]
    assert (snow["keys"], snow["insertion_order"], snow["enabled"]) == (["雪"], 5, True)
    assert (snow["position"], snow["extensions"]["position"]) == ("after_char", 4)
    assert festival["keys"] == ["祭り", "花火"]
    assert festival["content"] == "夏の祭り。\n花火が上がる。"
    assert festival["position"] == "before_char"
    kept = own_part(card.data)["kept"]
    assert kept["character_book.entries.0"] == "ただの文"
    assert kept["character_book.entries.3"] == 42


def test_failure_linked_book_is_kept_and_never_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    card = failure("linked_book")
    assert own_part(card.data)["kept"] == {
        "character_book": "https://example.com/books/village.json"
    }
    assert [note.key for note in card.notes] == ["note.linked_book"]
    assert card.data["extensions"]["world"] == "北の村"


def test_failure_same_entry_under_two_keys_is_noted() -> None:
    card = failure("same_entry_two_keys")
    entries = card.data["character_book"]["entries"]
    assert len(entries) == 3
    assert entries[2]["keys"] == ["薬草", "薬"]
    assert entries[2]["secondary_keys"] == ["森"]
    assert "note.equal_entry" in {note.key for note in card.notes}


def test_failure_numbers_as_text_become_numbers() -> None:
    card = failure("numbers_as_text")
    assert card.data["character_version"] == "1.2"
    assert card.data["creation_date"] == 1703462400
    assert card.data["talkativeness"] == "0.5"
    book = card.data["character_book"]
    assert (book["scan_depth"], book["token_budget"], book["recursive_scanning"]) == (3, 200, False)
    entry = book["entries"][0]
    assert (entry["insertion_order"], entry["priority"], entry["enabled"]) == (7, 2, True)
    assert (entry["case_sensitive"], entry["constant"]) == (False, True)


def test_repeated_json_key_loses_no_value() -> None:
    card = read_card(b'{"name": "A", "first_mes": "1", "other": 1, "other": 2, "other": 1}')
    assert card.outside == {"other": 1, "other#2": 2}


@pytest.mark.parametrize("data", every_case())
def test_every_note_and_row_has_a_text(data: bytes) -> None:
    plan = map_card(read_card(data))
    for item in (*plan.notes, *plan.rows):
        if item.key:
            assert {TEXTS(item.key, language, **item.details) for language in ("ja", "en")}


# ── edits ─────────────────────────────────────────────────────────────────────────────────


def test_edit_changes_only_the_fields_concerned() -> None:
    card = read_card(CARDS / "full_v3_card.json")
    before = copy.deepcopy(card)
    persona = map_card(card).persona
    edited = edit_card(card, Persona(**{**_fields(persona), "greeting": "Ahoy!"}))
    changed = {name for name in card.data if card.data[name] != edited.data[name]}
    assert changed == {"first_mes", "extensions"}
    assert card == before
    assert edited.data["mes_example"] == card.data["mes_example"]
    again = read_card(write_card(edited, "v2-json"))
    assert map_card(again).persona.greeting == "Ahoy!"
    assert edit_card(card, persona) is card


def test_edit_renews_the_copies_that_old_programs_read() -> None:
    document = v3(first_mes="Hi") | {"name": "リン", "first_mes": "Hi", "chat": "x"}
    card = read_card(dump(document))
    assert [row.source for row in map_card(card).rows if row.source.startswith("../")] == [
        "../chat"
    ]
    edited = edit_card(card, Persona(**{**_fields(map_card(card).persona), "greeting": "Ho"}))
    assert edited.outside == {"name": "リン", "first_mes": "Ho", "chat": "x"}


def test_edited_export_is_told_from_the_original() -> None:
    card = read_card(CARDS / "minimal_v2.json")
    persona = map_card(card).persona
    edited = edit_card(card, Persona(**{**_fields(persona), "first_person": "私"}))
    again = read_card(write_card(edited, "v3-png"))
    assert (card.edited, edited.edited, again.edited) == (False, True, True)
    assert map_card(again).persona.first_person == "私"
    assert file_name(edited, "v3-png") == "Test Character V2.edited.v3.png"
    assert file_name(card, "v3-png") == "Test Character V2.v3.png"
    assert file_name(edited) == "Test Character V2.original.json"
    assert write_original(edited) == (CARDS / "minimal_v2.json").read_bytes()


def test_stored_persona_is_refused_if_the_text_says_otherwise() -> None:
    document = json.loads(write_card(card_of(Persona(name="A", background="good")), "v3-json"))
    document["data"]["description"] = "something else"
    plan = map_card(read_card(dump(document)))
    assert plan.persona.background == ""
    assert plan.persona.description == "something else"
    assert "row.stale" in {row.key for row in plan.rows}


def test_archive_is_read_again() -> None:
    cards = [read_card(data) for data in OWN_CASES.values()]
    cards.append(edit_card(cards[0], Persona(name="New", examples=(Example("a", "b"),))))
    assert read_archive(write_archive(cards)) == cards


@pytest.mark.parametrize("name", ["a/b", "..", "con:x", "\u202egnp", "", "長" * 300])
def test_file_name_is_safe(name: str) -> None:
    made = file_name(card_of(Persona(name=name)), "v3-png")
    assert made.removesuffix(".v3.png").strip(". ")
    assert not set(made) & set('/\\:<>"|?*\u202e')
    assert len(made.encode()) <= 255


def _fields(persona: Persona) -> dict[str, Any]:
    return {name: getattr(persona, name) for name in persona.__slots__}


# ── bounds and damage ─────────────────────────────────────────────────────────────────────

BOMB = zlib.compress(b"0" * 200_000_000, 9)
DEEP = 100_000
WRONG = {
    "card_empty": b" \n",
    "card_file_size": b"0" * (MAX_FILE_BYTES + 1),
    "card_text_size": b'{"name": "' + b"a" * 10_000_001 + b'"}',
    "card_depth": b'{"name": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "card_values": b'{"name": [' + b"1," * 500_001 + b"1]}",
    "card_json": b'{"name": ',
    "card_unknown": b'{"title": "a page"}',
    "card_lorebook": dump({"spec": "lorebook_v3", "data": {"entries": []}}),
    "card_entries": dump(v3(character_book={"entries": [{}] * 10_001})),
    "card_encoding": b"name: \x81 ",
    "card_yaml": b"scenario: [a, b\n}",
    "card_aliases": b"name: &a x\nfirst_mes: *a",
    "card_picture": picture(),
    "card_data": picture(chunk(b"tEXt", b"chara\0!!")),
    "card_zip": b"PK\3\4" + b"\0" * 100,
    "card_member": zipped({"a": b"b"}),
    "card_unpacked_size": zipped({"card.json": dump(V1), "a": b"0" * 100_000_001}),
}


@pytest.mark.parametrize(("why", "data"), WRONG.items(), ids=WRONG)
def test_wrong_file_gets_a_clear_error(why: str, data: bytes) -> None:
    with pytest.raises(CardError) as caught:
        read_card(data)
    details = caught.value.details
    assert details["why"] == why
    for language in ("ja", "en"):
        reason = ERRORS(f"reasons.{why}", language, **{"limit": "", "line": "", **details})
        assert reason in ERRORS("card", language, reason=reason)


@pytest.mark.parametrize(
    ("why", "data"),
    [
        ("card_depth", b"scenario: " + b"[\n" * DEEP),
        ("card_text_size", picture(chunk(b"zTXt", b"chara\0\0" + BOMB))),
        ("card_text_size", zipped({"card.json": b"0" * 10_000_001})),
        ("card_picture", b"\xff\xd8\xff\xe0 a picture"),
        ("card_zip", zipped({"card.json": dump(V1)}, zipfile.ZIP_LZMA)),
        ("card_picture", SIGNATURE + struct.pack(">I", 0xFFFFFFFF) + b"tEXtchara\0"),
    ],
    ids=["yaml depth", "chunk bomb", "member size", "jpeg", "lzma", "chunk length"],
)
def test_bomb_is_refused(why: str, data: bytes) -> None:
    with pytest.raises(CardError) as caught:
        read_card(data)
    assert caught.value.details["why"] == why


def test_encrypted_zip_is_refused() -> None:
    data = bytearray(zipped({"card.json": dump(V1)}))
    data[data.index(b"PK\1\2") + 8] |= 1
    with pytest.raises(CardError, match="card_encrypted"):
        read_card(bytes(data))


def test_missing_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.png", "a\0b"):
        with pytest.raises(CardError, match="card_unreadable"):
            read_card(path)
