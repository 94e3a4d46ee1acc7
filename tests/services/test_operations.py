"""What every interface does with personas, chats and models, and how it is serialized."""

from __future__ import annotations

import pytest

from persona_lab.errors import InputError, NotFound, UnknownModel
from persona_lab.lab import Lab
from persona_lab.server.answer_events import MessageOut
from persona_lab.server.operations import Operations
from persona_lab.server.rest_schemas import AgentOut, ModelOut
from persona_lab.server.serializers import message_data, model_data, persona_data


def operations_of(lab: Lab) -> Operations:
    """Those of a new user."""
    return Operations(lab, lab.store.create_user().id, "ja", lab.service)


async def test_another_users_persona_and_chat_are_not_found(lab: Lab) -> None:
    mine, other = operations_of(lab), operations_of(lab)
    persona = await mine.create_persona(name="さくら")
    chat = await mine.create_chat(persona.id)
    for refused in (
        other.get_persona(persona.id),
        other.update_persona(persona.id, name="x"),
        other.delete_persona(persona.id),
        other.get_chat(chat.id),
        other.list_messages(chat.id),
        other.delete_chat(chat.id),
    ):
        with pytest.raises(NotFound):
            await refused


async def test_chat_for_begins_nothing_when_it_cannot_be_answered(lab: Lab) -> None:
    mine = operations_of(lab)
    persona = await mine.create_persona(name="さくら")
    with pytest.raises(InputError):
        await mine.chat_for("", "", persona.id)
    with pytest.raises(UnknownModel):
        await mine.chat_for("やあ", "", persona.id, model="no:such")
    assert await mine.list_chats() == []
    text, chat = await mine.chat_for(" やあ ", "", persona.id)
    assert text == "やあ"
    assert (await mine.chat_for("また", chat.id, ""))[1].id == chat.id


async def test_rest_shapes_agree_with_the_shared_serializers(lab: Lab) -> None:
    mine = operations_of(lab)
    persona = await mine.create_persona(name="さくら", roles=["教師"])
    shown = AgentOut.from_row(persona).model_dump(mode="json")
    assert persona_data(persona).items() <= shown.items()
    chat = await mine.create_chat(persona.id)
    async for _ in mine.send("やあ", chat.id, persona.id):
        pass
    for message in await mine.list_messages(chat.id):
        data = message_data(message)
        shown = MessageOut.from_row(message).model_dump(mode="json")
        assert {**shown, "timestamp": data["timestamp"]} == data
    for info, available in mine.list_models():
        data = model_data(info, available)
        assert ModelOut(**data).model_dump() == data
