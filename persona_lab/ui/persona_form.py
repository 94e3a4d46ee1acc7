"""The form of a persona: one component for each field, and values from and to a persona."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import gradio as gr
from gradio.components import Component

from persona_lab.personas.persona import PERSONA_FIELDS, PersonaField, Section


@dataclass(frozen=True)
class Form:
    """The editor's components by the names of a persona's fields, as ``persona_of`` has them."""

    fields: Mapping[str, Component]

    def read(self, values: Mapping[Component, Any]) -> dict[str, Any]:
        """Return a persona's fields from the values of the components."""
        persona = {name: values[field] for name, field in self.fields.items()}
        for name, field in PERSONA_FIELDS.items():
            if field.is_list:
                persona[name] = [str(item) for item in persona[name] or []]
        for name, value in persona.items():
            if value is None:
                persona[name] = ""
        persona["examples"] = parse_examples(persona["examples"])
        return persona

    def show(self, persona: Mapping[str, Any]) -> dict[Component, Any]:
        """Return values of the components that show ``persona``."""
        shown = {self.fields[name]: persona[name] for name in self.fields}
        shown[self.fields["examples"]] = format_examples(persona["examples"])
        return shown


def format_examples(examples: Sequence[Mapping[str, str]]) -> str:
    """Format example exchanges as text: ``> `` begins the user's lines, the answer follows."""
    exchanges = []
    for example in examples:
        user_line = "\n".join(f"> {line}" for line in example["user"].split("\n"))
        answer = "\n".join(
            f"\\{line}" if line.startswith((">", "＞", "\\")) else line
            for line in example["ai"].split("\n")
        )
        exchanges.append(f"{user_line}\n{answer}")
    return "\n\n".join(exchanges)


def parse_examples(text: str) -> list[dict[str, str]]:
    """Parse the text of :func:`format_examples`; an incomplete exchange is kept."""
    examples: list[dict[str, list[str]]] = []
    for line in text.split("\n"):
        user_line = re.match(r"[>＞] ?(.*)", line)
        if user_line:
            if not examples or examples[-1]["ai"]:
                examples.append({"user": [], "ai": []})
            examples[-1]["user"].append(user_line[1])
        elif examples:
            examples[-1]["ai"].append(line[1:] if line.startswith("\\") else line)
        elif line.strip():
            examples.append({"user": [], "ai": [line]})
    joined = [{k: "\n".join(v).strip() for k, v in example.items()} for example in examples]
    return [example for example in joined if example["user"] or example["ai"]]


def build_section(section: Section, fields: dict[str, Component], i18n: gr.I18n) -> None:
    """Lay out the fields of one section of the form, and add their components to ``fields``."""
    placed = [field for field in PERSONA_FIELDS.values() if field.place.section == section]
    placed.sort(key=lambda field: field.place.order)
    for row, group in groupby(placed, key=lambda field: field.place.row or field.name):
        with gr.Row() if row not in PERSONA_FIELDS else nullcontext():
            for field in group:
                fields[field.name] = _build_field(field, i18n)


def _build_field(field: PersonaField, i18n: gr.I18n) -> Component:
    options: dict[str, Any] = {
        "label": i18n(field.label),
        "elem_id": f"field-{field.name}",
        **dict(field.place.options),
    }
    match field.kind:
        case "choice":
            choices = [(i18n(words), value) for value, words in field.choices]
            return gr.Radio(choices, **options)
        case "list" | "traits":
            return gr.Dropdown(
                [], multiselect=True, allow_custom_value=True, info=i18n(field.hint), **options
            )
        case "examples":
            return gr.Textbox(
                info=i18n(field.hint), placeholder=i18n("editor.examples_form"), **options
            )
        case _:
            return gr.Textbox(placeholder=i18n(field.hint), **options)
