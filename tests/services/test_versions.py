"""Versions of a persona: commit, list, compare, restore."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from persona_lab.db.versions import snapshot_of
from persona_lab.errors import InvalidPersona, NotFound, NothingToCommit
from persona_lab.lab import Lab
from persona_lab.personas.persona import persona_of
from persona_lab.personas.versions import Snapshot
from persona_lab.server.operations import Operations


@pytest.fixture
def mine(lab: Lab) -> Operations:
    return Operations(lab, lab.store.create_user().id, "ja", lab.service)


async def test_a_persona_is_committed_and_listed(mine: Operations) -> None:
    persona = await mine.create_persona(name="さくら", background="港町")
    assert await mine.list_versions(persona.id) == []
    first = await mine.commit_version(persona.id, " 最初の版 ")
    await mine.update_persona(persona.id, background="山里")
    second = await mine.commit_version(persona.id)
    assert [(v.number, v.message) for v in await mine.list_versions(persona.id)] == [
        (2, ""),
        (1, "最初の版"),
    ]
    assert first.hash != second.hash
    assert (await mine.get_version(persona.id, 1)).persona["background"] == "港町"
    assert (await mine.get_version(persona.id, 2)).persona["background"] == "山里"


async def test_an_unchanged_persona_is_not_committed_again(mine: Operations) -> None:
    persona = await mine.create_persona(name="さくら")
    await mine.commit_version(persona.id)
    with pytest.raises(NothingToCommit) as caught:
        await mine.commit_version(persona.id, "また")
    assert caught.value.details["number"] == 1
    await mine.update_persona(persona.id, background="港町")
    await mine.update_persona(persona.id, background="")
    with pytest.raises(NothingToCommit):
        await mine.commit_version(persona.id)


async def test_a_message_that_is_too_long_is_refused(mine: Operations) -> None:
    persona = await mine.create_persona(name="さくら")
    with pytest.raises(InvalidPersona) as caught:
        await mine.commit_version(persona.id, "あ" * 201)
    assert caught.value.details == {"field": "message", "reason": "too_long", "limit": 200}
    assert await mine.list_versions(persona.id) == []


async def test_the_draft_says_what_differs_from_the_newest_version(mine: Operations) -> None:
    persona = await mine.create_persona(name="さくら")
    state = await mine.draft_state(persona)
    assert (state.version, state.is_committed) == (None, False)
    await mine.commit_version(persona.id)
    state = await mine.draft_state(persona)
    assert state.version is not None
    assert (state.version.number, state.changes, state.is_committed) == (1, [], True)
    persona = await mine.update_persona(persona.id, background="港町", roles=["教師"])
    state = await mine.draft_state(persona)
    assert [change.field for change in state.changes] == ["background", "roles"]
    assert not state.is_committed


async def test_a_copy_of_a_demo_begins_with_the_demo_as_its_first_version(
    mine: Operations,
) -> None:
    demo = next(a for a in await mine.list_personas() if a.owner_id is None)
    assert await mine.list_versions(demo.id) == []
    copy = await mine.update_persona(demo.id, background="港町")
    assert (await mine.get_version(copy.id, 1)).persona == persona_of(demo)
    assert [c.field for c in (await mine.draft_state(copy)).changes] == ["background"]
    with pytest.raises(NotFound):
        await mine.commit_version(demo.id)


async def test_a_duplicate_begins_with_its_first_version(mine: Operations) -> None:
    persona = await mine.create_persona(name="さくら")
    copy = await mine.duplicate_persona(persona.id, "さくら2")
    assert (await mine.draft_state(copy)).is_committed
    assert await mine.list_versions(persona.id) == []


async def test_restoring_is_a_new_version_and_keeps_the_draft(mine: Operations) -> None:
    persona = await mine.create_persona(name="さくら", background="港町", tones=["敬語"])
    await mine.commit_version(persona.id)
    await mine.update_persona(persona.id, background="山里", tones=["関西弁"])
    restored, version = await mine.restore_version(persona.id, 1, "下書き")
    assert (restored.background, [tone.name for tone in restored.tones]) == ("港町", ["敬語"])
    versions = await mine.list_versions(persona.id)
    assert [(v.number, v.message, v.restored_from) for v in versions] == [
        (3, "", 1),
        (2, "下書き", None),
        (1, "", None),
    ]
    assert version.number == 3
    assert (await mine.get_version(persona.id, 2)).persona["background"] == "山里"
    assert (await mine.draft_state(restored)).is_committed
    undone = await mine.undo_persona(persona.id)
    assert undone is not None
    assert undone.background == "山里"


async def test_restoring_without_a_change_adds_one_version_at_most(mine: Operations) -> None:
    persona = await mine.create_persona(name="さくら")
    await mine.commit_version(persona.id)
    with pytest.raises(NothingToCommit):
        await mine.restore_version(persona.id, 1)
    await mine.update_persona(persona.id, background="港町")
    await mine.commit_version(persona.id)
    await mine.restore_version(persona.id, 1)
    assert [v.number for v in await mine.list_versions(persona.id)] == [3, 2, 1]


async def test_a_version_that_is_not_there_is_not_found(mine: Operations) -> None:
    persona = await mine.create_persona(name="さくら")
    for refused in (mine.get_version(persona.id, 1), mine.restore_version(persona.id, 1)):
        with pytest.raises(NotFound) as caught:
            await refused
        assert caught.value.details == {"kind": "version"}


async def test_the_difference_has_both_prompts(mine: Operations) -> None:
    persona = await mine.create_persona(name="さくら", background="港町で育った。")
    await mine.commit_version(persona.id)
    await mine.update_persona(persona.id, background="山里で育った。")
    diff = await mine.diff_versions(persona.id, 1)
    assert [(c.field, c.before, c.after) for c in diff.changes] == [
        ("background", "港町で育った。", "山里で育った。")
    ]
    before, after = diff.prompts
    assert before.replace("港町", "山里") == after != before
    blank = await mine.diff_versions(persona.id, 0, 1)
    assert [c.field for c in blank.changes] == ["background"]


async def test_versions_committed_at_once_have_numbers_of_their_own(mine: Operations) -> None:
    persona = await mine.create_persona(name="さくら")
    commits = [
        asyncio.to_thread(
            mine.store.commit_version, persona.id, user_id=mine.user_id, options={"seed": n}
        )
        for n in range(8)
    ]
    await asyncio.gather(*commits)
    assert [v.number for v in await mine.list_versions(persona.id)] == [*range(8, 0, -1)]


async def test_a_changed_template_can_be_committed(mine: Operations) -> None:
    persona = await mine.create_persona(name="さくら")
    version = await mine.commit_version(persona.id)
    assert len(version.templates) == 2
    kept = snapshot_of(version)
    changed = replace(kept, templates=dict.fromkeys(kept.templates, "0" * 64))
    assert not kept.is_same(changed)
    assert kept.is_same(Snapshot(kept.persona, kept.options))
    again = await asyncio.to_thread(
        mine.store.commit_version,
        persona.id,
        user_id=mine.user_id,
        options=kept.options,
        templates=changed.templates,
    )
    assert again.number == 2
