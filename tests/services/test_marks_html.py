"""Marks under a tried answer."""

from __future__ import annotations

from typing import get_args

import pytest
from support.texts import PAGE

from persona_lab.lab import Lab
from persona_lab.personas.fidelity import RuleName
from persona_lab.personas.persona import Persona
from persona_lab.types import Language
from persona_lab.ui.render.marks import marks_html, marks_of
from persona_lab.ui.session import Visitor


@pytest.fixture(params=["ja", "en"])
def visitor(request: pytest.FixtureRequest, lab: Lab) -> Visitor:
    language: Language = request.param
    return Visitor(
        user_id=lab.store.create_user().id,
        session="one",
        language=language,
        translations=PAGE,
        service=lab.service,
        error_handler=lab.error_handler,
    )


async def test_banned_word_and_wrong_first_person_are_marked(visitor: Visitor) -> None:
    persona = Persona(name="さくら", first_person="私", forbidden_words=("コーヒー",))
    html = marks_html(await marks_of("俺はコーヒーが好きです。", persona), visitor)
    assert visitor.translate("marks.forbidden_word", quote="コーヒー") in html
    assert visitor.translate("marks.first_person", quote="俺") + " → 私" in html
    assert 'data-mark="forbidden_words"' in html


async def test_answer_of_the_persona_has_no_mark(visitor: Visitor) -> None:
    persona = Persona(name="さくら", first_person="私", forbidden_words=("コーヒー",))
    assert marks_html(await marks_of("私は紅茶が好きです。", persona), visitor) == ""


async def test_marks_escape_what_they_quote(visitor: Visitor) -> None:
    persona = Persona(name="さくら", forbidden_words=("<b>だめ</b>",))
    found = await marks_of("それは<b>だめ</b>です。", persona)
    html = marks_html(found, visitor)
    assert found
    assert "<b>" not in html


@pytest.mark.parametrize("rule", get_args(RuleName))
@pytest.mark.parametrize("language", ["ja", "en"])
def test_every_rule_has_a_text(rule: str, language: str) -> None:
    assert "語" in PAGE(f"marks.{rule}", language, quote="語")
