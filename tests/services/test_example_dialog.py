"""An answer becomes an example of its persona."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from persona_lab.errors import InvalidPersona, NotFound
from persona_lab.lab import Lab
from persona_lab.personas.persona import EXAMPLES
from persona_lab.translations import load_texts
from persona_lab.ui.example_dialog import ExampleDialog
from persona_lab.ui.render.answer import example_button_html
from persona_lab.ui.session import Visitor


@pytest.fixture
def visitor(lab: Lab) -> Visitor:
    return Visitor(
        user_id=lab.store.create_user().id,
        session="one",
        language="ja",
        translations=load_texts(lab.settings.templates_dir, "ui.yaml"),
        service=lab.service,
        error_handler=lab.error_handler,
    )


@pytest.fixture
def dialog(lab: Lab) -> ExampleDialog:
    page: Any = SimpleNamespace(lab=lab)
    return ExampleDialog(page)


async def test_example_is_added_behind_the_others(
    lab: Lab, visitor: Visitor, dialog: ExampleDialog
) -> None:
    operations = visitor.operations(lab)
    first = {"user": "やあ", "ai": "はい"}
    agent = await operations.create_persona(name="さくら", examples=[first])
    agent = await dialog.add(agent.id, " おすすめは？ ", "玉露です。\n", visitor)
    assert agent.examples == [first, {"user": "おすすめは？", "ai": "玉露です。"}]


async def test_example_of_a_demo_makes_a_copy(
    lab: Lab, visitor: Visitor, dialog: ExampleDialog
) -> None:
    demo = next(a for a in await visitor.operations(lab).list_personas() if a.owner_id is None)
    copy = await dialog.add(demo.id, "やあ", "はい", visitor)
    assert copy.id != demo.id
    assert copy.examples == [*demo.examples, {"user": "やあ", "ai": "はい"}]


async def test_too_many_examples_and_another_users_persona_are_refused(
    lab: Lab, visitor: Visitor, dialog: ExampleDialog
) -> None:
    full = [{"user": str(number), "ai": "はい"} for number in range(EXAMPLES)]
    agent = await visitor.operations(lab).create_persona(name="さくら", examples=full)
    with pytest.raises(InvalidPersona):
        await dialog.add(agent.id, "やあ", "はい", visitor)
    theirs = lab.store.create_agent(user_id=lab.store.create_user().id, name="ひみつ")
    with pytest.raises(NotFound):
        await dialog.add(theirs.id, "やあ", "はい", visitor)


def test_button_escapes_what_it_holds(visitor: Visitor) -> None:
    html = example_button_html('"><script>', "<b>'", visitor)
    assert "<script>" not in html
    assert "<b>" not in html
