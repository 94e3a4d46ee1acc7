"""The map of the house: imports point one way, and each kind of knowledge has one home."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOUSE = ROOT / "persona_lab"

LEVELS = [
    {"models", "errors", "words", "letters", "settings", "shared"},
    {
        "store", "migrations", "seeds", "prompts", "context", "clients", "llama", "circuits",
        "layers", "replies", "japanese", "tones", "guards", "monitor", "cache",
        "limits", "keys", "costs", "drafts",
    },
    {"service", "compare", "insights"},
    {"lab"},
    {"server", "ui"},
]  # fmt: skip
"""What stands on a level may import what stands on those before it."""

NEIGHBOURS = {
    ("errors", "models"), ("errors", "words"), ("words", "errors"), ("settings", "errors"),
    ("store", "migrations"), ("context", "store"), ("layers", "clients"), ("layers", "circuits"),
    ("circuits", "clients"), ("clients", "llama"), ("prompts", "clients"),
    ("tones", "japanese"), ("tones", "replies"), ("guards", "replies"),
    ("cache", "clients"), ("cache", "layers"), ("limits", "clients"), ("limits", "layers"),
    ("clients", "keys"), ("costs", "clients"), ("monitor", "replies"),
    ("compare", "service"), ("drafts", "store"), ("ui", "server"), ("server", "ui"),
}  # fmt: skip
"""Imports within a level that are meant. ``prompts`` takes a model's facts from ``clients``."""

SDKS = {"openai", "anthropic", "llama_cpp"}
SQL = {"sqlalchemy", "sqlmodel", "sqlite3"}


def modules() -> list[Path]:
    files = sorted(HOUSE.rglob("*.py"))
    return [file for file in files if "versions" not in file.parts]


def part_of(file: Path) -> str:
    return file.relative_to(HOUSE).with_suffix("").parts[0]


def imports(file: Path) -> Iterator[str]:
    """Dotted names of what ``file`` imports anywhere, ``from a import b`` as ``a`` and ``a.b``."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{file.name} imports relatively: the map can't be read"
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def level(part: str) -> int:
    return next(number for number, parts in enumerate(LEVELS) if part in parts)


def parts_imported(file: Path) -> set[str]:
    own = {name.split(".")[1] for name in imports(file) if name.startswith("persona_lab.")}
    return {part for part in own if (HOUSE / part).is_dir() or (HOUSE / f"{part}.py").is_file()}


@pytest.mark.parametrize("file", modules(), ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_one_way(file: Path) -> None:
    part = part_of(file)
    if part == "__init__":
        return  # names every part, and imports none until it is asked
    for other in parts_imported(file) - {part}:
        downhill = level(other) < level(part)
        assert downhill or (part, other) in NEIGHBOURS, f"{part} imports {other}"


def test_every_part_has_its_place_on_the_map() -> None:
    placed = set().union(*LEVELS)
    assert {part_of(file) for file in modules()} - {"__init__"} <= placed


def test_only_clients_know_an_sdk() -> None:
    knowing = {part_of(f) for f in modules() if {n.split(".")[0] for n in imports(f)} & SDKS}
    assert knowing <= {"clients", "llama"}


def test_only_the_store_and_the_nouns_know_sql() -> None:
    knowing = {part_of(f) for f in modules() if {n.split(".")[0] for n in imports(f)} & SQL}
    assert knowing <= {"store", "models", "migrations", "errors"}


def test_only_the_pages_and_the_server_know_gradio() -> None:
    knowing = {part_of(f) for f in modules() if "gradio" in {n.split(".")[0] for n in imports(f)}}
    assert knowing <= {"ui", "server"}


def test_only_the_settings_read_the_environment() -> None:
    reading = [
        str(file.relative_to(HOUSE))
        for file in modules()
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
    ]
    assert reading == ["llama/native.py"]  # it reads nothing: it tells OpenMP how to wait
