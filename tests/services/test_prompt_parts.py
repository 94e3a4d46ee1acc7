"""What was sent is stored once, and reads back as it was written."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlmodel import Session

from persona_lab.db.prompt_parts import restore, strip, text_hash
from persona_lab.db.store import Store
from persona_lab.db.tables import Message

SYSTEM = "あなたは海辺の町で育った教師です。" * 20
LONG = "これはとても長い文章なので、行の中に置くよりも別の表に置くほうがよい。" * 2

texts = st.one_of(
    st.sampled_from(
        ["", "はい", " はい\n", "=x", "#x", LONG, LONG + "\n二行目", "A: はい\nB: はい"]
    ),
    st.text(max_size=90),
)
senders = st.sampled_from(["user", "ai"])
turns = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant"]), "content": texts}
) | st.fixed_dictionaries({"role": st.just("tool"), "content": texts})


@st.composite
def answers(draw: st.DrawFn) -> tuple[dict[str, Any], dict[int, tuple[str, str]]]:
    """Metadata of an answer, and the chat's earlier messages: some of them were sent."""
    told = draw(st.lists(st.tuples(senders, texts), max_size=12))
    messages = {at: told[at] for at in range(len(told)) if draw(st.booleans()) or at % 5}
    of_chat = [
        {"role": {"user": "user", "ai": "assistant"}[sender], "content": content}
        for sender, content in messages.values()
    ]
    sent = draw(st.lists(st.sampled_from(of_chat) | turns if of_chat else turns, max_size=9))
    script = "\n".join(
        f"話者：{content.strip()}".replace("\n", " ") for _, content in messages.values()
    )
    system = draw(st.sampled_from([SYSTEM, SYSTEM + script, script]) | texts)
    chosen = draw(st.sampled_from([sent, of_chat, [], None, 3]))
    details: dict[str, Any] = {"model": "echo", "prompt": system, "sent": chosen}
    details["summary"] = draw(texts)
    return details, messages


@settings(max_examples=300, deadline=None)
@given(answers())
def test_restore_returns_what_strip_took(
    answer: tuple[dict[str, Any], dict[int, tuple[str, str]]],
) -> None:
    details, messages = answer
    before = copy.deepcopy(details)
    stripped = strip(details, "u", messages)
    assert details == before
    parts = json.loads(json.dumps(stripped.parts))
    whole = restore(stripped.details, parts, stripped.texts, messages)
    assert json.dumps(whole) == json.dumps(before)


def test_strip_refers_to_messages_by_position() -> None:
    messages = {0: ("user", "やあ"), 1: ("ai", "はい"), 2: ("ai", LONG), 3: ("user", "空は？")}
    sent = [
        {"role": "user", "content": "やあ"},
        {"role": "assistant", "content": LONG},
        {"role": "user", "content": "空は？"},
    ]
    stripped = strip({"prompt": SYSTEM, "sent": sent, "turns": 3}, "u", messages)
    assert stripped.details == {"prompt": "", "sent": [], "turns": 3}
    assert stripped.parts == {"sent": [0, [2, 3]], "prompt": [f"#{text_hash(SYSTEM, 'u')}"]}
    assert stripped.texts == {text_hash(SYSTEM, "u"): SYSTEM}


def test_strip_shares_the_persona_of_transcripts() -> None:
    messages = {0: ("user", "やあ"), 1: ("ai", f"{LONG}\n{LONG}")}
    first = strip({"prompt": f"{SYSTEM}\n話：やあ\n太郎：", "sent": []}, "u", messages)
    answer = messages[1][1].replace("\n", " ")
    later = f"{SYSTEM}\n話：やあ\n太郎：{answer}\n話：空は？\n太郎："
    second = strip({"prompt": later, "sent": []}, "u", {**messages, 2: ("user", "空は？")})
    assert set(first.texts) == set(second.texts)
    assert len(second.texts) == 1
    assert second.parts["prompt"][1:] == [[0], "=\n太郎：", [1], "=\n話：", [2], "=\n太郎："]


def test_text_hash_differs_between_users() -> None:
    assert text_hash(SYSTEM, "u") != text_hash(SYSTEM, "v")


# ── in the store ──────────────────────────────────────────────────────────────────────────


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    opened = Store(database_url)
    yield opened
    opened.close()


def chat_of(store: Store, user: str) -> str:
    agent = store.create_agent(user_id=user, name="太郎")
    return store.create_chat(user_id=user, agent_id=agent.id).id


def exchange(store: Store, chat: str, user: str, number: int, system: str = SYSTEM) -> Message:
    """A question and its answer, with the metadata that the pipeline writes."""
    pairs = store.list_exchanges(chat, user_id=user, limit=5)
    asked = store.add_message(chat, user_id=user, sender="user", content=f"質問{number}")
    sent = [
        {"role": "user" if message.sender == "user" else "assistant", "content": message.content}
        for message in [*(each for pair in pairs for each in pair), asked]
    ]
    return store.add_message(
        chat,
        user_id=user,
        sender="ai",
        content=f"答え{number}。{LONG}",
        details=metadata(system, sent),
    )


def metadata(system: str, sent: list[dict[str, str]]) -> dict[str, Any]:
    usage = {
        "prompt_tokens": 1234,
        "completion_tokens": 123,
        "total_tokens": 1357,
        "cached_tokens": 1024,
    }
    return {
        "model": "gpt-4o-mini-2024-07-18",
        "provider": "openai",
        "spec": "openai:gpt-4o-mini",
        "usage": usage,
        "cached_tokens": 1024,
        "estimated": False,
        "processing_applied": ["tone:敬語"],
        "finish_reason": "stop",
        "first_token_ms": 312.4,
        "first_shown_ms": 313.9,
        "total_ms": 2345.6,
        "load_ms": 0.0,
        "cost": 0.000213,
        "status": "ok",
        "prompt": system,
        "turns": len(sent),
        "sent": sent,
        "summary": "",
        "cache_hit": False,
        "attempts": 1,
        "request_id": "0123456789abcdef0123456789abcdef",
    }


def rows(store: Store, query: str) -> list[Any]:
    with Session(store.engine) as session:
        return list(session.connection().execute(text(query)))


def test_every_read_returns_the_whole_metadata(store: Store) -> None:
    user = store.create_user().id
    chat = chat_of(store, user)
    written = [exchange(store, chat, user, number) for number in range(8)]
    wanted = [json.dumps(answer.details) for answer in written]
    assert json.loads(wanted[7])["sent"][0] == {"role": "user", "content": "質問2"}
    read = store.messages(chat, user_id=user)[1::2]
    assert [json.dumps(answer.details) for answer in read] == wanted
    [last] = store.messages(chat, user_id=user, limit=1)
    assert json.dumps(last.details) == wanted[7]
    assert json.dumps(store.get_message(last.id, user_id=user).details) == wanted[7]
    [(_, answer)] = store.list_exchanges(chat, user_id=None, limit=1)
    assert json.dumps(answer.details) == wanted[7]
    changed = store.update_message(last.id, user_id=user, status="stopped")
    assert json.dumps(changed.details) == wanted[7]
    [stored] = rows(store, "SELECT content FROM prompt")
    assert stored.content == SYSTEM
    assert "質問" not in str(rows(store, "SELECT details, prompt_parts FROM message"))


def test_sent_text_stays_when_an_interrupted_answer_changes(store: Store) -> None:
    user = store.create_user().id
    chat = chat_of(store, user)
    exchange(store, chat, user, 0)
    draft = store.messages(chat, user_id=user)[1]
    store.update_message(draft.id, user_id=user, status="interrupted")
    later = exchange(store, chat, user, 1)
    store.update_message(draft.id, user_id=user, content="別の答え", status="ok")
    assert store.get_message(later.id, user_id=user).details == later.details
    assert store.get_message(draft.id, user_id=user).content == "別の答え"


def test_users_with_the_same_text_share_no_row(store: Store) -> None:
    users = [store.create_user().id for _ in range(2)]
    for user in users:
        exchange(store, chat_of(store, user), user, 0)
    found = rows(store, "SELECT user_id, hash FROM prompt")
    assert {row.user_id for row in found} == set(users)
    assert len({row.hash for row in found}) == 2


def test_deleting_a_chat_leaves_no_prompt(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'lab.db'}"
    store = Store(url)
    user = store.create_user().id
    gone, kept = chat_of(store, user), chat_of(store, user)
    exchange(store, gone, user, 0)
    exchange(store, gone, user, 1, system=f"別の{SYSTEM}")
    answer = exchange(store, kept, user, 2)
    with store.engine.begin() as connection:
        connection.execute(text("DELETE FROM chat WHERE id = :id"), {"id": gone})
    store.close()
    store = Store(url)
    assert [row.content for row in rows(store, "SELECT content FROM prompt")] == [SYSTEM]
    assert store.get_message(answer.id, user_id=user).details == answer.details
    store.close()


def test_rows_of_the_version_before_are_read_and_converted(
    database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"sqlite:///{tmp_path / 'lab.db'}" if database_url == "sqlite://" else database_url
    store = Store(url)
    user = store.create_user().id
    chats = [chat_of(store, user) for _ in range(3)]
    written = [exchange(store, chat, user, number) for chat in chats for number in range(4)]
    old = [{"id": answer.id, "details": json.dumps(answer.details)} for answer in written]
    with store.engine.begin() as connection:
        for row in old:
            change = "UPDATE message SET details = :details, prompt_parts = NULL WHERE id = :id"
            connection.execute(text(change), row)
        connection.execute(text("DELETE FROM chatprompt"))
        connection.execute(text("DELETE FROM prompt"))

    def read() -> list[str]:
        found = [store.get_message(row["id"], user_id=user).details for row in old]
        return [json.dumps(details) for details in found]

    wanted = [row["details"] for row in old]
    assert read() == wanted
    store.close()
    caplog.set_level("INFO", "persona_lab.db.store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("persona_lab.db.store.CHATS_AT_ONCE", 2)
        patch.setattr("persona_lab.db.store.PROGRESS_INTERVAL_S", 0.0)
        store = Store(url)
    progress = [record.getMessage() for record in caplog.records if "upgrade" in record.message]
    assert "2 chats, 4 answers left" in progress[0]
    assert "3 chats, 0 answers left" in progress[1]
    assert read() == wanted
    unconverted = "SELECT count(*) FROM message WHERE prompt_parts IS NULL AND sender = 'ai'"
    assert rows(store, unconverted)[0][0] == 0
    assert "質問" not in str(rows(store, "SELECT details FROM message"))
    # A replica of the version before writes one of the converted rows again.
    with store.engine.begin() as connection:
        new = old[0] | {"details": old[0]["details"].replace("海辺", "山奥")}
        connection.execute(text("UPDATE message SET details = :details WHERE id = :id"), new)
    assert read() == [new["details"], *wanted[1:]]
    store.close()


def test_a_message_takes_less_than_700_bytes_beyond_its_text(tmp_path: Path) -> None:
    path = tmp_path / "lab.db"
    store = Store(f"sqlite:///{path}")
    user = store.create_user().id
    chats = [chat_of(store, user) for _ in range(5)]

    def size() -> int:
        with store.engine.connect() as connection:
            connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)"))
        return path.stat().st_size

    before, own = size(), 0
    for number in range(20):
        for chat in chats:
            answer = exchange(store, chat, user, number)
            own += len(f"質問{number}{answer.content}".encode())
    assert (size() - before - own) / (2 * 20 * len(chats)) <= 700
    store.close()
