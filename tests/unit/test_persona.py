"""The typed persona, and the table of its fields that drives every other list of them."""

import dataclasses
from typing import Any, get_args

import gradio as gr
import pytest

from persona_lab.db.persona_rows import unsaved_agent
from persona_lab.db.tables import Agent
from persona_lab.errors import InvalidPersona
from persona_lab.personas.cards.labels import LABELS
from persona_lab.personas.demos import load_demos
from persona_lab.personas.persona import (
    PERSONA_FIELDS,
    Example,
    Persona,
    Section,
    clean_persona,
    persona_of,
)
from persona_lab.prompts.trace import FIELDS
from persona_lab.prompts.variables import template_variables
from persona_lab.server.rest_schemas import AgentOut, NewPersona, PersonaFields
from persona_lab.settings import ROOT
from persona_lab.translations import Translations
from persona_lab.types import LANGUAGES
from persona_lab.ui.persona_form import Form, build_section

NAMES = list(PERSONA_FIELDS)
EVERY_FIELD = pytest.mark.parametrize("name", NAMES)
SAMPLES: dict[str, Any] = {
    "name": "ミナ",
    "text": "一つ",
    "list": ["一", "二"],
    "traits": ["一", "二"],
    "examples": [{"user": "やあ", "ai": "はい"}],
    "choice": "en",
}
FULL = {field.name: SAMPLES[field.kind] for field in PERSONA_FIELDS.values()}


@pytest.fixture
async def form() -> Form:
    """The form; in a running loop, since Gradio opens a loop of its own where there is none."""
    with gr.Blocks():
        fields: dict[str, Any] = {}
        for section in get_args(Section):
            build_section(section, fields, gr.I18n(ja={}, en={}))
        return Form(fields)


@pytest.fixture(scope="module")
def words() -> Translations:
    return Translations(ROOT / "templates" / "ui.yaml")


# ── every list of fields ──────────────────────────────────────────────────────────────────


@EVERY_FIELD
def test_field_is_an_attribute_of_agent(name: str) -> None:
    assert name in Agent.__mapper__.attrs


@EVERY_FIELD
def test_field_is_in_the_form(form: Form, name: str) -> None:
    field, component = PERSONA_FIELDS[name], form.fields[name]
    assert component.elem_id == f"field-{name}"
    kinds = {"list": gr.Dropdown, "traits": gr.Dropdown, "choice": gr.Radio}
    assert isinstance(component, kinds.get(field.kind, gr.Textbox))


@EVERY_FIELD
def test_field_has_words_in_the_page(words: Translations, name: str) -> None:
    field = PERSONA_FIELDS[name]
    assert field.label in words
    if field.kind == "choice":
        assert all(key in words for _, key in field.choices)
    else:
        assert field.hint in words


@EVERY_FIELD
def test_field_is_in_the_rest_schema(name: str) -> None:
    given = PersonaFields.model_validate({name: FULL[name]}).given()
    assert given == {name: FULL[name]}
    answer = AgentOut.from_row(Agent(name="x")).model_dump()
    assert name in answer
    assert "name" in NewPersona.model_json_schema()["required"]


@EVERY_FIELD
def test_field_is_in_every_demo(name: str) -> None:
    assert all(name in demo for demo in load_demos(ROOT / "data" / "personas.yaml"))


@EVERY_FIELD
def test_field_is_a_variable_and_a_source_of_spans(name: str) -> None:
    field = PERSONA_FIELDS[name]
    variables = template_variables(
        Persona.validate(FULL), message="", history=[], labels=("", ""), with_examples=True
    )
    assert variables[field.variable or name]
    assert (name in FIELDS) == bool(field.colour)


@EVERY_FIELD
def test_field_has_a_colour_in_the_style_sheet(name: str) -> None:
    css = (ROOT / "persona_lab" / "ui" / "static" / "page.css").read_text("utf-8")
    colour = PERSONA_FIELDS[name].colour
    # Spans of examples have the colour of every span.
    assert colour in ("", "examples") or f".shade-{colour} {{" in css


def test_no_list_of_fields_has_another_field(form: Form) -> None:
    beside = {"id", "demo", "created_at", "updated_at"}
    assert set(form.fields) == set(NAMES)
    assert list(PersonaFields.model_fields) == NAMES
    assert set(AgentOut.model_fields) - beside == set(NAMES)
    assert set(FIELDS) == set(NAMES) - {"language"}
    assert list(persona_of(Agent(name="x"))) == NAMES


# ── the value ─────────────────────────────────────────────────────────────────────────────


def test_persona_survives_the_way_through_a_row() -> None:
    persona = Persona.validate(FULL)
    assert persona.to_dict() == FULL
    assert Persona.from_agent(unsaved_agent(persona.to_dict())) == persona
    assert persona.examples == (Example("やあ", "はい"),)


def test_persona_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Persona(name="x").name = "y"  # type: ignore[misc]


def test_persona_has_defaults_for_what_is_missing() -> None:
    assert Persona.validate({"name": "x"}) == Persona(name="x", language="ja")


def test_persona_needs_a_name() -> None:
    with pytest.raises(InvalidPersona, match="name: empty"):
        Persona.validate({})


@EVERY_FIELD
def test_clean_persona_names_the_field_when_the_type_is_wrong(name: str) -> None:
    with pytest.raises(InvalidPersona) as raised:
        clean_persona({name: 5})
    assert raised.value.details["field"] == name
    assert raised.value.details["reason"] in ("wrong_type", "unknown")


@EVERY_FIELD
def test_clean_persona_holds_the_limit_of_the_field(name: str) -> None:
    field = PERSONA_FIELDS[name]
    if not field.limit:
        return
    if field.is_list:
        most: Any = [f"{number}" for number in range(field.limit)]
        more: Any = [*most, "more"]
    elif field.kind == "examples":
        most = [{"user": "", "ai": "x"}] * field.limit
        more = [*most, most[0]]
    else:
        most, more = "x" * field.limit, "x" * (field.limit + 1)
    assert clean_persona({name: most}) == {name: most}
    with pytest.raises(InvalidPersona) as raised:
        clean_persona({name: more})
    assert raised.value.details["limit"] == field.limit


def test_clean_persona_refuses_an_unknown_field() -> None:
    with pytest.raises(InvalidPersona, match="nmae: unknown"):
        clean_persona({"nmae": "x"})


def test_card_labels_name_every_field_in_both_languages() -> None:
    assert LABELS.keys() == PERSONA_FIELDS.keys()
    assert all(labels[language] for labels in LABELS.values() for language in LANGUAGES)
