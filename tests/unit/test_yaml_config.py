"""The one loader of YAML files, and what it says of a wrong one."""

from pathlib import Path

import pytest

from persona_lab.errors import ConfigurationError, TemplateError
from persona_lab.yaml_config import StrictModel, dotted_place, load, numbered_place, unfold


class Item(StrictModel):
    name: str
    words: tuple[str, ...] = ()


class File(StrictModel):
    items: tuple[Item, ...]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.yaml"


def test_load_returns_the_model(path: Path) -> None:
    path.write_text("items: [{name: a, words: [b]}]", "utf-8")
    assert load(path, File) == File(items=(Item(name="a", words=("b",)),))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("items: [{name: a}, {nmae: b}]", "x.yaml: item 2: name: Field required"),
        ("items: [{name: a, x: b}]", "x.yaml: item 1: x: Extra inputs are not permitted"),
        ("items: [{name: a, words: [b, [c]]}]", "x.yaml: item 1: word 2: "),
        ("items: [{name: a, name: b}]", "x.yaml: name: stands here twice"),
        ("items: []\nitems: []", "x.yaml: items: stands here twice"),
        ("items: [{no: a}]", "x.yaml: False: a key must be a word (put quotes around it)"),
        ("items: [", "x.yaml: line 2: "),
        ("items: 5", "x.yaml: items: must be a list"),
        ("items: \x01", "x.yaml: control characters are not allowed"),
        ("", "x.yaml: must be a mapping with items"),
    ],
)
def test_load_names_the_place_in_one_line(path: Path, text: str, line: str) -> None:
    path.write_text(text + "\n", "utf-8")
    with pytest.raises(TemplateError) as raised:
        load(path, File, error_class=TemplateError)
    assert str(raised.value).startswith(line)
    assert "\n" not in str(raised.value)


def test_load_accepts_merged_keys_that_are_overridden(path: Path) -> None:
    path.write_text("items: [&a {name: a, words: [b]}, {<<: *a, name: c}]", "utf-8")
    assert load(path, File).items[1] == Item(name="c", words=("b",))


def test_load_names_a_missing_file(path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"^x\.yaml: can't be read: "):
        load(path, File)


def test_places_count_from_one() -> None:
    location = ("personas", 1, "examples", 0, "ai")
    assert numbered_place(location) == "persona 2: example 1: ai"
    assert dotted_place(location) == "persona 2: examples.1.ai"
    assert dotted_place(("choices", "en", "tones")) == "choices: en.tones"
    assert numbered_place(("rules", 0, "when", 0, "personalities", 0)) == (
        "rule 1: when 1: personality 1"
    )


def test_unfold_joins_japanese_lines_only() -> None:
    assert unfold("春 夏 a b") == "春夏 a b"
