"""The demo personas and suggestions in data/personas.yaml, and what a broken one says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from persona_lab.db.tables import Agent
from persona_lab.errors import ConfigurationError
from persona_lab.personas.demos import load_choices, load_demos, load_messages
from persona_lab.settings import ROOT

PERSONAS = ROOT / "data" / "personas.yaml"


@pytest.fixture
def edited(tmp_path: Path) -> Callable[[Callable[[Any], Any]], Path]:
    """A copy of the real file after an edit to its content."""

    def edit(change: Callable[[Any], Any]) -> Path:
        content = yaml.safe_load(PERSONAS.read_text("utf-8"))
        change(content)
        path = tmp_path / "personas.yaml"
        path.write_text(yaml.safe_dump(content, allow_unicode=True), "utf-8")
        return path

    return edit


def test_both_languages_have_several_demos():
    languages = [seed["language"] for seed in load_demos(PERSONAS)]
    assert languages.count("ja") >= 5
    assert languages.count("en") >= 4


def test_the_demos_show_what_the_tool_is_for():
    traits = {t for seed in load_demos(PERSONAS) for t in seed["roles"] + seed["tones"]}
    assert {"カスタマーサポート", "教師", "エンジニア", "カジュアル", "関西弁"} <= traits
    assert {"Customer Support", "Teacher", "Engineer", "Casual", "Scots"} <= traits


def test_a_demo_is_an_id_and_fields_of_an_agent():
    columns = set(Agent.model_fields) | {"personalities", "roles", "tones"}
    for seed in load_demos(PERSONAS):
        assert set(seed) <= columns
        assert len(seed["examples"]) >= 4  # what a base model needs


def test_every_demo_has_two_messages_to_begin_with():
    messages = load_messages(PERSONAS)
    assert list(messages) == [seed["id"] for seed in load_demos(PERSONAS)]
    assert {len(each) for each in messages.values()} == {2}


def test_no_demo_says_in_its_examples_what_it_never_says():
    assert any(seed["forbidden_words"] for seed in load_demos(PERSONAS))
    for seed in load_demos(PERSONAS):
        said = " ".join(example["ai"] for example in seed["examples"]).lower()
        assert [word for word in seed["forbidden_words"] if word.lower() in said] == []


def test_folded_japanese_lines_join_without_a_space():
    misaki = load_demos(PERSONAS)[0]
    assert " " not in misaki["background"]


def test_folded_english_lines_keep_their_spaces():
    grace = next(seed for seed in load_demos(PERSONAS) if seed["id"] == "grace")
    assert "customer care, so she knows" in grace["background"]


def test_each_language_suggests_a_dozen_words_a_list():
    choices = load_choices(PERSONAS)
    fields = {"personalities", "roles", "tones"}
    assert {language: set(lists) for language, lists in choices.items()} == {
        "ja": fields,
        "en": fields,
    }
    for lists in choices.values():
        assert all(len(words) >= 12 for words in lists.values())
        assert all(len(words) == len(set(words)) for words in lists.values())


def test_the_words_of_the_demos_that_choose_a_template_are_suggested():
    choices = load_choices(PERSONAS)
    assert {"フレンドリー", "カジュアル"} <= set(choices["ja"]["personalities"])
    assert {"カスタマーサポート", "教師", "エンジニア"} <= set(choices["ja"]["roles"])
    assert {"Customer Support", "Teacher", "Engineer"} <= set(choices["en"]["roles"])


def test_an_unknown_field_is_named_by_file_number_and_field(edited):
    path = edited(lambda content: content["personas"][2].update(nmae="レン"))
    with pytest.raises(ConfigurationError, match=r"^personas\.yaml: persona 3: nmae: .+$"):
        load_demos(path)


def test_a_half_example_is_named_to_the_side_that_is_missing(edited):
    path = edited(lambda content: content["personas"][1]["examples"][0].pop("ai"))
    with pytest.raises(ConfigurationError, match=r"persona 2: examples\.1\.ai: "):
        load_demos(path)


def test_two_demos_cannot_share_an_id(edited):
    path = edited(lambda content: content["personas"][4].update(id="misaki"))
    with pytest.raises(ConfigurationError, match="persona 5: id: another persona has 'misaki'"):
        load_demos(path)


def test_a_broken_suggestion_is_named(edited):
    path = edited(lambda content: content["choices"]["en"].update(tones="Polite"))
    with pytest.raises(ConfigurationError, match=r"^personas\.yaml: choices: en\.tones: "):
        load_choices(path)


def test_a_key_that_nobody_reads_is_refused(edited):
    path = edited(lambda content: content.update(choises={}))
    with pytest.raises(ConfigurationError, match=r"^personas\.yaml: choises: "):
        load_choices(path)


def test_broken_yaml_is_named_by_its_line(tmp_path):
    path = tmp_path / "personas.yaml"
    path.write_text("personas:\n  - id: a\n   name: b\n", "utf-8")
    with pytest.raises(ConfigurationError, match=r"^personas\.yaml: line 3: "):
        load_demos(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"^personas\.yaml: can't be read: "):
        load_demos(tmp_path / "personas.yaml")
