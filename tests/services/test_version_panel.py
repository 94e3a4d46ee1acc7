"""Versions on the page, as HTML."""

from __future__ import annotations

from dataclasses import replace

import pytest

from persona_lab.db.tables import Agent
from persona_lab.lab import Lab
from persona_lab.personas.persona import Persona
from persona_lab.personas.versions import DraftState, VersionDiff
from persona_lab.translations import load_texts
from persona_lab.types import Language
from persona_lab.ui.render.chat import build_thread
from persona_lab.ui.render.versions import (
    diff_html,
    history_html,
    proposed_message,
    version_line_html,
)
from persona_lab.ui.session import Visitor


@pytest.fixture(params=["ja", "en"])
def visitor(request: pytest.FixtureRequest, lab: Lab) -> Visitor:
    language: Language = request.param
    return Visitor(
        user_id=lab.store.create_user().id,
        language=language,
        session="one",
        translations=load_texts(lab.settings.templates_dir, "ui.yaml"),
        service=lab.service,
        error_handler=lab.error_handler,
    )


async def edit(visitor: Visitor, lab: Lab, **fields: object) -> tuple[Agent, DraftState]:
    """Commit a persona with a background and a role, and change the draft."""
    operations = visitor.operations(lab)
    agent = await operations.create_persona(name="さくら", background="港町", roles=["教師"])
    await operations.commit_version(agent.id)
    agent = await operations.update_persona(agent.id, **fields)
    return agent, await operations.draft_state(agent)


async def test_line_says_version_and_changes(visitor: Visitor, lab: Lab) -> None:
    agent, state = await edit(visitor, lab, background="山里")
    line = version_line_html(agent, state, visitor)
    assert "v1" in line
    assert visitor.translate("field.background") in line
    agent, state = await edit(visitor, lab)
    assert visitor.translate("versions.unchanged", number=1) in version_line_html(
        agent, state, visitor
    )


async def test_line_says_that_there_is_no_version_or_nothing_for_a_demo(
    visitor: Visitor, lab: Lab
) -> None:
    agent = await visitor.operations(lab).create_persona(name="さくら")
    state = await visitor.operations(lab).draft_state(agent)
    assert visitor.translate("versions.none") in version_line_html(agent, state, visitor)
    assert version_line_html(Agent(name="デモ"), state, visitor) == ""


async def test_line_says_when_only_a_template_changed(visitor: Visitor, lab: Lab) -> None:
    agent, state = await edit(visitor, lab)
    changed = replace(state, is_committed=False)
    text = visitor.translate("versions.new_template", number=1)
    assert text in version_line_html(agent, changed, visitor)


async def test_message_is_proposed_by_the_kinds_of_changes(visitor: Visitor, lab: Lab) -> None:
    _, state = await edit(visitor, lab, background="", roles=["医師"], greeting="やあ", gender="女")
    names = ("gender", "greeting", "background", "roles")
    patterns = {
        "ja": "{}、{}を追加、{}を削除、{}を変更",
        "en": "Add {}, {}; Remove {}; Change {}",
    }
    labels = [visitor.translate(f"field.{name}") for name in names]
    assert proposed_message(state, visitor) == patterns[visitor.language].format(*labels)
    first = visitor.translate("versions.first_message")
    assert proposed_message(DraftState(None, [], False), visitor) == first


async def test_difference_marks_words_and_escapes_them(visitor: Visitor, lab: Lab) -> None:
    agent, _ = await edit(visitor, lab, background="<b>山里</b>")
    html = diff_html(await visitor.operations(lab).diff_versions(agent.id, 1), visitor)
    assert "<del>港町</del>" in html
    assert "<ins>&lt;b&gt;山里&lt;/b&gt;</ins>" in html
    assert "<b>山里" not in html


async def test_unchanged_text_is_shortened_and_no_difference_is_said(visitor: Visitor) -> None:
    long = "同じ文章。" * 100
    html = diff_html(VersionDiff([], (f"{long}A{long}", f"{long}B{long}")), visitor)
    assert "<del>A</del><ins>B</ins>" in html
    assert len(html) < len(long)
    same = diff_html(VersionDiff([], ("x", "x")), visitor)
    assert visitor.translate("versions.same") in same


async def test_list_has_each_version_and_says_what_was_restored(visitor: Visitor, lab: Lab) -> None:
    agent, _ = await edit(visitor, lab, background="山里")
    operations = visitor.operations(lab)
    await operations.commit_version(agent.id, "<i>山</i>")
    await operations.restore_version(agent.id, 1)
    html = history_html(await operations.list_versions(agent.id), visitor)
    assert "&lt;i&gt;山&lt;/i&gt;" in html
    assert visitor.translate("versions.restored", number=1) in html
    assert html.index("<b>v3") < html.index("<b>v2") < html.index("<b>v1")
    assert visitor.translate("versions.empty") in history_html([], visitor)


def test_every_field_has_a_label_for_messages(visitor: Visitor) -> None:
    for name in Persona().to_dict():
        assert visitor.translate(f"field.{name}")


async def test_answers_name_their_version_and_say_when_the_persona_changed(
    visitor: Visitor, lab: Lab
) -> None:
    operations = visitor.operations(lab)
    agent = await operations.create_persona(name="さくら")
    await operations.commit_version(agent.id)
    chat = await operations.create_chat(agent.id)
    for background in ("港町", "山里"):
        async for _ in operations.send("やあ", chat.id, agent.id):
            pass
        agent = await operations.update_persona(agent.id, background=background)
    thread = build_thread(
        await operations.list_messages(chat.id),
        agent,
        visitor,
        await operations.list_versions(agent.id),
    )
    footers = [turn["content"][1].value for turn in thread if turn["role"] == "assistant"]
    older = visitor.translate("chat.older_persona")
    assert [("v1" in footer, older in footer) for footer in footers] == [
        (True, True),
        (False, True),
    ]
    await operations.update_persona(agent.id, background="港町")
    agent = await operations.get_persona(agent.id)
    thread = build_thread(await operations.list_messages(chat.id), agent, visitor)
    assert older not in thread[-1]["content"][1].value
