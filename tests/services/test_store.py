"""The store: whose rows are whose, and that none is lost, on SQLite and on PostgreSQL."""

from __future__ import annotations

import dataclasses
import inspect
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import OperationalError
from starlette.requests import Request
from support.backends import PostgresServer

from persona_lab.db import migrations
from persona_lab.db.store import MAX_API_TOKENS, REVISIONS, ChatState, Store
from persona_lab.db.tables import Agent, Generation, Message
from persona_lab.errors import (
    ConfigurationError,
    DiskFull,
    Forbidden,
    InputError,
    InvalidPersona,
    InvalidRequest,
    NotFound,
    StorageError,
)
from persona_lab.lab import Lab
from persona_lab.personas.persona import Persona, persona_of
from persona_lab.server.health import Readiness
from persona_lab.types import new_id, now


@dataclass
class Clock:
    moment: datetime = field(default_factory=lambda: datetime(2026, 4, 1, tzinfo=UTC))

    def __call__(self) -> datetime:
        return self.moment

    def tick(self, seconds: float = 1) -> None:
        self.moment += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock, database_url: str) -> Iterator[Store]:
    opened = Store(database_url, clock=clock)
    yield opened
    opened.close()


@pytest.fixture
def file(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'new' / 'lab.db'}"


@pytest.fixture
def user(store: Store) -> str:
    return store.create_user().id


FULL: dict[str, Any] = Persona.validate(
    {
        "name": "テスト太郎",
        "description": "検証用のペルソナ",
        "gender": "男性",
        "background": "海辺の町で育った。\n今は都会に住む。",
        "first_person": "僕",
        "second_person": "きみ",
        "greeting": "やあ",
        "personalities": ["明るい", "親切", "知的"],
        "roles": ["教師"],
        "tones": ["敬語", "カジュアル"],
        "sentence_endings": ["です", "ます"],
        "catchphrases": ["いい質問ですね"],
        "forbidden_words": ["無理"],
        "examples": [{"user": "空は？", "ai": "青いです。"}],
        "language": "ja",
    }
).to_dict()


# ── whose rows are whose ──────────────────────────────────────────────────────────────────


@dataclass
class World:
    """A user with one persona, one conversation and two messages; ids by their names."""

    user: str
    agent: str
    chat: str
    message: str
    asked: str
    token: str


@pytest.fixture
def world(store: Store, user: str) -> World:
    agent = store.create_agent(user_id=user, **FULL)
    store.update_agent(agent.id, user_id=user, description="別の説明")
    chat = store.create_chat(user_id=user, agent_id=agent.id)
    asked = store.add_message(chat.id, user_id=user, sender="user", content="こんにちは")
    answer = store.add_message(chat.id, user_id=user, sender="ai", content="やあ")
    store.record(_record(user))
    token, _ = store.create_token(user_id=user, name="仕事")
    return World(user, agent.id, chat.id, answer.id, asked.id, token.id)


def _record(user: str, **fields: Any) -> Generation:
    return Generation(
        user_id=user, agent_id="a", provider="mock", model="echo", status="ok", **fields
    )


def _finish(store: Store, chat: str, user: str, **fields: Any) -> Message:
    given: dict[str, Any] = {"content": "答え", "status": "ok", "details": {"model": "echo"}}
    generation = fields.pop("generation", None) or _record(user)
    return store.finish_turn(generation, chat_id=chat, user_id=user, **given | fields)


BY_ID: dict[str, tuple[str, Callable[[Store, World, str], object]]] = {
    "get_agent": ("agent", lambda s, w, u: s.get_agent(w.agent, user_id=u, deleted=True)),
    "update_agent": ("agent", lambda s, w, u: s.update_agent(w.agent, user_id=u, name="x")),
    "restore_answer": ("message", lambda s, w, u: s.restore_answer(w.asked, user_id=u)),
    "chat_state": ("chat", lambda s, w, u: s.chat_state(w.chat, user_id=u)),
    "summarize": (
        "chat",
        lambda s, w, u: s.summarize(w.chat, user_id=u, summary="x", since=ChatState()),
    ),
    "agent_named": ("agent", lambda s, w, u: s.agent_named(w.agent, user_id=u)),
    "get_message": ("message", lambda s, w, u: s.get_message(w.message, user_id=u)),
    "revoke_token": ("token", lambda s, w, u: s.revoke_token(w.token, user_id=u)),
    "undo_agent": ("agent", lambda s, w, u: s.undo_agent(w.agent, user_id=u)),
    "can_undo": ("agent", lambda s, w, u: s.can_undo(w.agent, user_id=u)),
    "duplicate_agent": ("agent", lambda s, w, u: s.duplicate_agent(w.agent, user_id=u, name="x")),
    "delete_agent": ("agent", lambda s, w, u: s.delete_agent(w.agent, user_id=u)),
    "restore_agent": ("agent", lambda s, w, u: s.restore_agent(w.agent, user_id=u)),
    "commit_version": ("agent", lambda s, w, u: s.commit_version(w.agent, user_id=u)),
    "list_versions": ("agent", lambda s, w, u: s.list_versions(w.agent, user_id=u)),
    "newest_version": ("agent", lambda s, w, u: s.newest_version(w.agent, user_id=u)),
    "get_version": (
        "agent",
        lambda s, w, u: s.get_version(w.agent, _commit(s, w), user_id=u),
    ),
    "restore_version": (
        "agent",
        lambda s, w, u: s.restore_version(w.agent, _commit(s, w), user_id=u),
    ),
    "create_chat": ("agent", lambda s, w, u: s.create_chat(agent_id=w.agent, user_id=u)),
    "get_chat": ("chat", lambda s, w, u: s.get_chat(w.chat, user_id=u)),
    "delete_chat": ("chat", lambda s, w, u: s.delete_chat(w.chat, user_id=u)),
    "restore_chat": ("chat", lambda s, w, u: s.restore_chat(w.chat, user_id=u)),
    "messages": ("chat", lambda s, w, u: s.messages(w.chat, user_id=u)),
    "list_exchanges": ("chat", lambda s, w, u: s.list_exchanges(w.chat, user_id=u, limit=5)),
    "begin_turn": ("chat", lambda s, w, u: s.begin_turn(w.chat, user_id=u, content="x")),
    "begin_regeneration": ("chat", lambda s, w, u: s.begin_regeneration(w.chat, user_id=u)),
    "finish_turn": ("chat", lambda s, w, u: _finish(s, w.chat, u)),
    "add_message": (
        "chat",
        lambda s, w, u: s.add_message(w.chat, user_id=u, sender="user", content="x"),
    ),
    "update_message": (
        "message",
        lambda s, w, u: s.update_message(w.message, user_id=u, content="x"),
    ),
}
"""Every method that names a row → what NotFound calls that row, and a call as ``u``."""

LISTS: dict[str, Callable[[Store, str], object]] = {
    "list_agents": lambda s, u: s.list_agents(user_id=u),
    "list_agent_names": lambda s, u: s.list_agent_names(user_id=u),
    "list_chats": lambda s, u: s.list_chats(user_id=u),
    "list_tokens": lambda s, u: s.list_tokens(user_id=u),
    "records": lambda s, u: s.records(user_id=u),
    "list_generation_rows": lambda s, u: s.list_generation_rows(user_id=u),
    "choices": lambda s, u: [name for names in s.choices(u, "ja").values() for name in names],
}

SAYS_WHOSE = {"open_chat", "create_token", "deleted_agent", "deleted_chat"}
"""They take the user too: one tells another's row from none, one names no row, and two are among
the user's own."""

FOR_NOBODY = {
    "check": "no rows",
    "total_cost": "a sum over all, for who runs the house",
    "user_for_token": "the token says who",
    "create_user": "makes one",
    "user_for_secret": "the secret says who",
    "create_agent": "new; user_id None makes a demo",
    "seed_agents": "demos are everybody's",
    "record": "the row says whose it is",
    "mark_interrupted": "at start, for all",
    "close": "no rows",
}


def _commit(store: Store, world: World) -> int:
    """Commit two versions with different options, and return the number of the first."""
    first, _ = (
        store.commit_version(world.agent, user_id=world.user, options={"id": new_id()})
        for _ in range(2)
    )
    return first.number


def _everything_of(store: Store, world: World) -> object:
    return (
        [persona_of(agent) for agent in store.list_agents(user_id=world.user)],
        [chat.model_dump() for chat in store.list_chats(user_id=world.user)],
        [turn.model_dump() for turn in store.messages(world.chat, user_id=world.user)],
        [turn.model_dump() for turn in store.records(user_id=world.user)],
        [token.model_dump() for token in store.list_tokens(user_id=world.user)],
    )


@pytest.mark.parametrize("method", BY_ID)
def test_a_row_of_another_user_is_as_good_as_none(store: Store, world: World, method: str) -> None:
    kind, call = BY_ID[method]
    stranger = store.create_user().id
    before = _everything_of(store, world)
    with pytest.raises(NotFound) as theirs:
        call(store, world, stranger)
    assert _everything_of(store, world) == before
    missing = World(world.user, *["f" * 32] * 5)
    with pytest.raises(NotFound) as none:
        call(store, missing, world.user)
    assert theirs.value.details == none.value.details == {"kind": kind}
    assert str(theirs.value) == str(none.value)
    call(store, world, world.user)


@pytest.mark.parametrize("method", LISTS)
def test_a_list_holds_ones_own_rows_only(store: Store, world: World, method: str) -> None:
    assert LISTS[method](store, world.user)
    assert not LISTS[method](store, store.create_user().id)


FORMER_NAMES = {
    "exchanges": "list_exchanges",
    "mark": "chat_state",
    "spent": "total_cost",
    "past_turns": "list_generation_rows",
}


def test_a_former_name_warns_and_does_the_same(store: Store, world: World) -> None:
    given: dict[str, dict[str, Any]] = {
        "exchanges": {"chat_id": world.chat, "user_id": world.user, "limit": 5},
        "mark": {"chat_id": world.chat, "user_id": world.user},
        "spent": {"since": datetime(2020, 1, 1, tzinfo=UTC)},
        "past_turns": {"user_id": world.user},
    }
    for old, new in FORMER_NAMES.items():
        with pytest.warns(DeprecationWarning, match=new):
            found = getattr(store, old)(**given[old])
        assert found == getattr(store, new)(**given[old])


def test_every_public_method_takes_the_user_it_is_for_or_is_known_not_to() -> None:
    methods = {
        name: inspect.signature(method).parameters
        for name, method in inspect.getmembers(Store, inspect.isfunction)
        if not name.startswith("_") and name not in FORMER_NAMES
    }
    assert set(methods) == set(BY_ID) | set(LISTS) | set(FOR_NOBODY) | SAYS_WHOSE
    for name in {*BY_ID, *LISTS, *SAYS_WHOSE}:
        assert methods[name]["user_id"].default is inspect.Parameter.empty, name


@pytest.mark.parametrize(
    "strange", ["", "\x00", "\ud800", "ペルソナ", "' OR 1=1 --", "x" * 9999, None, 5, []]
)
def test_an_id_that_cannot_be_one_names_no_row(store: Store, user: str, strange: Any) -> None:
    if strange is not None:
        assert store.list_chats(user_id=user, agent_id=strange) == []
    with pytest.raises(NotFound):
        store.get_agent(strange, user_id=user)
    with pytest.raises(NotFound):
        store.messages(strange, user_id=user)
    with pytest.raises(NotFound):
        store.update_message(strange, user_id=user, content="")


def test_a_secret_leads_to_its_user_and_is_not_stored(store: Store) -> None:
    user = store.user_for_secret("秘密")
    assert store.user_for_secret("秘密").id == user.id != store.user_for_secret("別").id
    assert user.secret_hash is not None
    assert len(user.secret_hash) == 64


def test_an_empty_secret_is_refused_since_many_would_share_it(store: Store) -> None:
    with pytest.raises(InputError):
        store.user_for_secret("")


@pytest.mark.core
def test_tabs_that_open_together_become_one_user(store: Store) -> None:
    start = threading.Barrier(8)

    def open_tab(_: int) -> str:
        start.wait()
        return store.user_for_secret("the same").id

    with ThreadPoolExecutor(8) as tabs:
        assert len(set(tabs.map(open_tab, range(8)))) == 1


# ── tokens of programs ────────────────────────────────────────────────────────────────────


def test_a_token_leads_to_its_user_and_is_not_stored(store: Store, user: str) -> None:
    token, secret = store.create_token(user_id=user, name=" 仕事\n用 ")
    assert secret.startswith("pl_")
    assert token.name == "仕事 用"
    assert store.user_for_token(secret).id == user
    with store.engine.connect() as connection:
        [row] = connection.execute(text("SELECT * FROM apitoken")).all()
    assert secret.removeprefix("pl_") not in str(row)


def test_a_token_that_was_revoked_or_never_was_leads_to_nobody(store: Store, user: str) -> None:
    token, secret = store.create_token(user_id=user)
    _, other = store.create_token(user_id=user)
    store.revoke_token(token.id, user_id=user)
    store.revoke_token(token.id, user_id=user)
    for nobodys in (secret, "", "pl_", "pl_x", token.token_hash, "\ud800", "pl_\x00"):
        with pytest.raises(NotFound) as none:
            store.user_for_token(nobodys)
        assert none.value.details == {"kind": "token"}
    assert store.user_for_token(other).id == user
    assert len(store.list_tokens(user_id=user)) == 1


def test_the_last_use_of_a_token_is_known_to_a_minute(
    store: Store, user: str, clock: Clock
) -> None:
    token, secret = store.create_token(user_id=user)
    assert token.last_used_at is None
    first = clock.moment
    for seconds, used in ((0, 0), (59, 0), (1, 60), (30, 60), (30, 120)):
        clock.tick(seconds)
        store.user_for_token(secret)
        [kept] = store.list_tokens(user_id=user)
        assert kept.last_used_at == first + timedelta(seconds=used)


def test_a_token_is_known_though_its_use_cannot_be_written_down(store: Store, user: str) -> None:
    _, secret = store.create_token(user_id=user)
    refused = []

    @event.listens_for(store.engine, "before_cursor_execute")
    def fail(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("UPDATE"):
            refused.append(statement)
            full = sqlite3.OperationalError("database or disk is full")
            raise OperationalError(statement, {}, full)

    assert store.user_for_token(secret).id == user
    assert refused


def test_tokens_have_a_bound_that_revoking_lifts(store: Store, user: str) -> None:
    tokens = [store.create_token(user_id=user)[0] for _ in range(MAX_API_TOKENS)]
    with pytest.raises(InvalidRequest) as many:
        store.create_token(user_id=user)
    assert many.value.details == {"why": "many_tokens", "limit": MAX_API_TOKENS}
    store.revoke_token(tokens[0].id, user_id=user)
    store.create_token(user_id=user)
    with pytest.raises(InvalidRequest):
        store.create_token(user_id=store.create_user().id, name="長" * 101)


def test_only_the_door_that_asks_is_told_that_a_conversation_is_anothers(
    store: Store, world: World
) -> None:
    stranger = store.create_user().id
    assert store.open_chat(world.chat, user_id=world.user).id == world.chat
    with pytest.raises(Forbidden):
        store.open_chat(world.chat, user_id=stranger)
    store.delete_chat(world.chat, user_id=world.user)
    for chat in (world.chat, "f" * 32, "\x00"):
        with pytest.raises(NotFound):
            store.open_chat(chat, user_id=world.user)


def test_of_personas_with_one_name_the_users_own_and_newest_is_meant(
    store: Store, user: str, clock: Clock
) -> None:
    demo = store.create_agent(user_id=None, name="さくら")
    store.create_agent(user_id=store.create_user().id, name="さくら")
    assert store.agent_named("さくら", user_id=user).id == demo.id
    own = store.create_agent(user_id=user, name="さくら")
    clock.tick()
    newer = store.create_agent(user_id=user, name="さくら")
    assert store.agent_named(" さくら\n", user_id=user).id == newer.id
    assert store.agent_named(own.id, user_id=user).id == own.id
    store.delete_agent(newer.id, user_id=user)
    assert store.agent_named("さくら", user_id=user).id == own.id
    for none in ("", "さ", newer.id, "\x00", "\ud800"):
        with pytest.raises(NotFound):
            store.agent_named(none, user_id=user)


# ── personas ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.core
def test_a_persona_comes_back_as_it_was_given_and_readable_without_a_session(
    store: Store, user: str
) -> None:
    made = store.create_agent(user_id=user, **FULL)
    assert persona_of(made) == FULL
    assert persona_of(store.get_agent(made.id, user_id=user)) == FULL
    assert persona_of(store.list_agents(user_id=user)[0]) == FULL
    assert persona_of(store.create_agent(user_id=user, **persona_of(made))) == FULL


def test_names_of_traits_keep_the_order_they_were_given_in(store: Store, user: str) -> None:
    agent = store.create_agent(user_id=user, name="x", personalities=["い", "ろ", "は"])
    changed = store.update_agent(agent.id, user_id=user, personalities=["は", "に", "い", "は"])
    assert [trait.name for trait in changed.personalities] == ["は", "に", "い"]


def test_moments_are_aware_after_reading(store: Store, user: str, clock: Clock) -> None:
    agent = store.create_agent(user_id=user, name="x")
    assert store.get_agent(agent.id, user_id=user).created_at == clock.moment


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"name": "  \n "}, "empty"),
        ({"name": None}, "empty"),
        ({"name": "\u200b\u200d\ufeff"}, "empty"),
        ({"name": "\x00\x1b\u202e\u2066"}, "empty"),
        ({"name": "\ud800\u3164\u2800"}, "empty"),
        ({"name": "\ufe0f\u0301"}, "empty"),
        ({"name": "あ" * 101}, "too_long"),
        ({"background": "あ" * 10_001}, "too_long"),
        ({"personalities": ["x"] * 51}, "too_many"),
        ({"catchphrases": ["あ" * 201]}, "too_long"),
        ({"catchphrases": "です"}, "wrong_type"),
        ({"tones": [3]}, "wrong_type"),
        ({"gender": 3}, "wrong_type"),
        ({"examples": [{"user": "a", "ai": "b"}] * 21}, "too_many"),
        ({"examples": [{"user": "a"}]}, "wrong_type"),
        ({"examples": ["a"]}, "wrong_type"),
        ({"language": "fr"}, "unknown"),
        ({"owner_id": "me"}, "unknown"),
        ({"id": "mine"}, "unknown"),
    ],
)
def test_a_field_that_cannot_be_is_named_with_its_reason_and_nothing_changes(
    store: Store, user: str, fields: dict[str, Any], reason: str
) -> None:
    agent = store.create_agent(user_id=user, **FULL)
    with pytest.raises(InvalidPersona) as wrong:
        store.update_agent(agent.id, user_id=user, description="new", **fields)
    assert wrong.value.details["field"] in fields
    assert wrong.value.details["reason"] == reason
    assert persona_of(store.get_agent(agent.id, user_id=user)) == FULL


def test_the_longest_of_everything_is_taken(store: Store, user: str) -> None:
    agent = store.create_agent(
        user_id=user,
        name="あ" * 100,
        background="🦊" * 10_000,
        roles=[f"{n:0200}" for n in range(50)],
        examples=[{"user": "u", "ai": "a"}] * 20,
    )
    assert len(store.get_agent(agent.id, user_id=user).roles) == 50


@pytest.mark.core
def test_text_is_composed_and_rid_of_what_no_database_takes(store: Store, user: str) -> None:
    agent = store.create_agent(
        user_id=user,
        name=" か\u3099く\x00\ud83d ",
        background="👩‍👩‍👧\t一\r\n二\x1b\x85",
        tones=["か\u3099", "が", " "],
    )
    assert agent.name == "がく"
    assert agent.background == "👩‍👩‍👧\t一\n二"
    assert [tone.name for tone in agent.tones] == ["が"]


def test_a_rare_form_of_a_name_stays_as_typed(store: Store, user: str) -> None:
    assert store.create_agent(user_id=user, name="\ufa19谷").name == "\ufa19谷"


def test_ones_own_come_first_by_newest_change_then_demos_in_their_order(
    store: Store, user: str, clock: Clock
) -> None:
    store.seed_agents([{"id": "a", "name": "A"}, {"id": "b", "name": "B"}])
    clock.tick()
    store.seed_agents(
        [{"id": "c", "name": "C"}, {"id": "b", "name": "B"}, {"id": "a", "name": "A"}]
    )
    first = store.create_agent(user_id=user, name="first")
    clock.tick()
    store.create_agent(user_id=user, name="second")
    clock.tick()
    store.update_agent(first.id, user_id=user, gender="女性")
    names = [agent.name for agent in store.list_agents(user_id=user)]
    assert names == ["first", "second", "C", "B", "A"]


def test_a_changed_demo_goes_on_with_the_conversations_of_who_changed_it(
    store: Store, user: str
) -> None:
    demo = store.create_agent(user_id=None, **FULL)
    other = store.create_user().id
    mine, theirs = (store.create_chat(user_id=who, agent_id=demo.id).id for who in (user, other))
    copy = store.update_agent(demo.id, user_id=user, name="私の太郎")
    assert [chat.id for chat in store.list_chats(user_id=user, agent_id=copy.id)] == [mine]
    assert [chat.id for chat in store.list_chats(user_id=other, agent_id=demo.id)] == [theirs]


def test_changing_a_demo_makes_a_copy_and_leaves_the_demo(store: Store, user: str) -> None:
    demo = store.create_agent(user_id=None, **FULL)
    copy = store.update_agent(demo.id, user_id=user, name="私の太郎", roles=["エンジニア"])
    assert copy.id != demo.id
    assert copy.owner_id == user
    assert persona_of(copy) == FULL | {"name": "私の太郎", "roles": ["エンジニア"]}
    assert persona_of(store.get_agent(demo.id, user_id=user)) == FULL
    assert store.update_agent(demo.id, user_id=user, name="もう一つ").id != copy.id
    undone = store.undo_agent(copy.id, user_id=user)
    assert undone is not None
    assert persona_of(undone) == FULL


def test_saving_a_demo_as_it_is_copies_nothing(store: Store, user: str) -> None:
    demo = store.create_agent(user_id=None, **FULL)
    assert store.update_agent(demo.id, user_id=user, **FULL).id == demo.id
    assert len(store.list_agents(user_id=user)) == 1


def test_a_demo_cannot_be_deleted_or_restored_by_a_user(store: Store, user: str) -> None:
    demo = store.create_agent(user_id=None, name="demo")
    for change in (store.delete_agent, store.restore_agent):
        with pytest.raises(NotFound):
            change(demo.id, user_id=user)
    assert store.undo_agent(demo.id, user_id=user) is None


def test_undo_steps_back_change_by_change_until_nothing_is_left(
    store: Store, user: str, clock: Clock
) -> None:
    agent = store.create_agent(user_id=user, name="0", tones=["敬語"])
    for number in (1, 2, 3):
        clock.tick(20)
        store.update_agent(agent.id, user_id=user, name=str(number), tones=[str(number)])
    names = []
    while (undone := store.undo_agent(agent.id, user_id=user)) is not None:
        names.append((undone.name, [tone.name for tone in undone.tones]))
    assert names == [("2", ["2"]), ("1", ["1"]), ("0", ["敬語"])]


def test_typing_without_a_pause_is_one_step_of_undo(store: Store, user: str, clock: Clock) -> None:
    agent = store.create_agent(user_id=user, name="さ")
    for typed in ("さく", "さくら", "さくらこ"):
        clock.tick(1.5)
        store.update_agent(agent.id, user_id=user, name=typed)
    clock.tick(3)
    store.update_agent(agent.id, user_id=user, name="別の人")
    steps = [store.undo_agent(agent.id, user_id=user) for _ in range(3)]
    assert [step and step.name for step in steps] == ["さくらこ", "さ", None]


def test_each_field_and_each_picked_word_is_its_own_step_of_undo(store: Store, user: str) -> None:
    agent = store.create_agent(user_id=user, name="さ")
    changes: list[dict[str, Any]] = [
        {"name": "さくら"}, {"description": "先生"}, {"name": "はる"}, {"tones": ["敬語"]},
        {"tones": ["敬語", "早口"]}, {"examples": [{"user": "やあ", "ai": "お"}]},
        {"examples": [{"user": "やあ", "ai": "おう"}]},
    ]  # fmt: skip
    states = [persona_of(store.update_agent(agent.id, user_id=user, **c)) for c in changes]
    undone = []
    while (step := store.undo_agent(agent.id, user_id=user)) is not None:
        undone.append(persona_of(step))
    assert undone == [*states[4::-1], persona_of(agent)]


def test_a_persona_says_whether_a_step_of_undo_is_left(store: Store, user: str) -> None:
    agent = store.create_agent(user_id=user, name="0")
    assert not store.can_undo(agent.id, user_id=user)
    store.update_agent(agent.id, user_id=user, name="1")
    assert store.can_undo(agent.id, user_id=user)
    store.undo_agent(agent.id, user_id=user)
    assert not store.can_undo(agent.id, user_id=user)


def test_saving_what_is_there_already_is_no_step_of_undo(
    store: Store, user: str, clock: Clock
) -> None:
    agent = store.create_agent(user_id=user, **FULL)
    clock.tick(60)
    assert store.update_agent(agent.id, user_id=user, **FULL).updated_at == agent.updated_at
    assert store.undo_agent(agent.id, user_id=user) is None


def test_undo_keeps_the_newest_steps_only(store: Store, user: str, clock: Clock) -> None:
    agent = store.create_agent(user_id=user, name="0")
    for number in range(1, REVISIONS + 3):
        clock.tick(20)
        store.update_agent(agent.id, user_id=user, name=str(number))
    names = []
    while (undone := store.undo_agent(agent.id, user_id=user)) is not None:
        names.append(undone.name)
    assert len(names) == REVISIONS
    assert names[-1] == "2"


def test_a_duplicate_is_the_users_own_and_apart_from_its_origin(store: Store, user: str) -> None:
    demo = store.create_agent(user_id=None, **FULL)
    copy = store.duplicate_agent(demo.id, user_id=user, name="写し")
    store.update_agent(copy.id, user_id=user, roles=[])
    assert copy.owner_id == user
    assert persona_of(copy) == FULL | {"name": "写し"}
    assert persona_of(store.get_agent(demo.id, user_id=user)) == FULL


def test_label_of_a_duplicate_is_apart_from_its_fields(store: Store, user: str) -> None:
    agent = store.create_agent(user_id=user, **FULL)
    copy = store.duplicate_agent(agent.id, user_id=user, name=FULL["name"], label="コピー 1")
    assert persona_of(copy) == FULL
    labels = {name.id: name.label for name in store.list_agent_names(user_id=user)}
    assert (labels[agent.id], labels[copy.id]) == ("", "コピー 1")
    changed = store.update_agent(copy.id, user_id=user, roles=[])
    assert changed.label == "コピー 1"


def test_a_deleted_persona_is_hidden_still_takes_edits_and_can_be_restored(
    store: Store, user: str
) -> None:
    agent = store.create_agent(user_id=user, **FULL)
    chat = store.create_chat(user_id=user, agent_id=agent.id)
    store.delete_agent(agent.id, user_id=user)
    assert store.list_agents(user_id=user) == []
    with pytest.raises(NotFound):
        store.get_agent(agent.id, user_id=user)
    with pytest.raises(NotFound):
        store.create_chat(user_id=user, agent_id=agent.id)
    saved = store.update_agent(agent.id, user_id=user, name="遅れて届いた名")
    assert saved.deleted_at is not None
    assert store.get_agent(agent.id, user_id=user, deleted=True).name == "遅れて届いた名"
    assert store.get_chat(chat.id, user_id=user).agent_id == agent.id
    restored = store.restore_agent(agent.id, user_id=user)
    assert restored.deleted_at is None
    assert store.list_agents(user_id=user)[0].name == "遅れて届いた名"


def test_seeding_again_changes_nothing(store: Store, user: str, clock: Clock) -> None:
    seeds = [{"id": "taro", **FULL, "try": ["やあ"]}, {"id": "hana", "name": "花"}]
    store.seed_agents(seeds)
    before = [agent.model_dump() for agent in store.list_agents(user_id=user)]
    clock.tick()
    store.seed_agents(seeds)
    assert [agent.model_dump() for agent in store.list_agents(user_id=user)] == before
    assert [agent["seed"] for agent in before] == ["taro", "hana"]


def test_a_changed_file_of_demos_changes_removes_and_brings_back(store: Store, user: str) -> None:
    store.seed_agents([{"id": "a", "name": "A", "roles": ["教師"]}, {"id": "b", "name": "B"}])
    old = {agent.seed: agent.id for agent in store.list_agents(user_id=user)}
    chat = store.create_chat(user_id=user, agent_id=old["a"])
    store.seed_agents([{"id": "b", "name": "B2", "tones": ["敬語"]}])
    [left] = store.list_agents(user_id=user)
    assert (left.id, left.name, left.tones[0].name) == (old["b"], "B2", "敬語")
    assert store.get_agent(chat.agent_id, user_id=user, deleted=True).name == "A"
    store.seed_agents([{"id": "a", "name": "A"}])
    [back] = store.list_agents(user_id=user)
    assert (back.id, back.roles) == (old["a"], [])


@pytest.mark.parametrize(
    "seeds",
    [
        [{"name": "no id"}],
        [{"id": "a", "name": "x"}, {"id": "a", "name": "y"}],
        [{"id": "a"}],
        [{"id": "a", "name": "x", "nmae": "y"}],
    ],
)
def test_a_wrong_demo_is_named_and_none_is_changed(
    store: Store, user: str, seeds: list[dict[str, Any]]
) -> None:
    with pytest.raises(ConfigurationError, match=r"number \d|personas: a: "):
        store.seed_agents([{"id": "good", "name": "good"}, *seeds])
    assert store.list_agents(user_id=user) == []


def test_list_agent_names_pages_and_searches_in_order(
    store: Store, user: str, clock: Clock
) -> None:
    store.seed_agents([{"id": name, "name": name} for name in ("デモ花", "デモ桜")])
    for name in ("Ann_1", "桜", "ANNA", "100%"):
        clock.tick()
        store.create_agent(user_id=user, name=name)

    def names(**page: Any) -> list[str]:
        return [agent.name for agent in store.list_agent_names(user_id=user, **page)]

    every = [agent.name for agent in store.list_agents(user_id=user)]
    assert names() == every == ["100%", "ANNA", "桜", "Ann_1", "デモ花", "デモ桜"]
    for limit in range(8):
        for offset in range(8):
            assert names(limit=limit, offset=offset) == every[offset : offset + limit]
    assert names(search="ann") == ["ANNA", "Ann_1"]
    assert names(search="桜", limit=1, offset=1) == ["デモ桜"]
    assert (names(search="%"), names(search="_"), names(search="x")) == (["100%"], ["Ann_1"], [])
    demos = [agent.name for agent in store.list_agent_names(user_id=user) if agent.demo]
    assert demos == ["デモ花", "デモ桜"]
    assert [agent.name for agent in store.list_agents(user_id=user, name="桜")] == ["桜"]


def test_choices_are_what_ones_own_personas_of_a_language_use(store: Store, user: str) -> None:
    store.seed_agents([{"id": "a", "name": "A", "roles": ["教師"], "tones": ["敬語"]}])
    store.create_agent(user_id=user, name="x", roles=["忍者", "教師"])
    store.create_agent(user_id=user, name="y", roles=["忍者"])
    store.create_agent(user_id=user, name="z", roles=["Ninja"], language="en")
    store.create_agent(user_id=store.create_user().id, name="y", roles=["秘密の役割"])
    assert store.choices(user, "ja") == {
        "personalities": [],
        "roles": ["忍者", "教師"],
        "tones": [],
    }
    assert store.choices(user, "en")["roles"] == ["Ninja"]


# ── conversations ─────────────────────────────────────────────────────────────────────────


def test_messages_stand_in_their_order_with_all_that_was_given(store: Store, user: str) -> None:
    agent = store.create_agent(user_id=user, name="x")
    chat = store.create_chat(user_id=user, agent_id=agent.id)
    store.add_message(
        chat.id, user_id=user, sender="user", content="絵文字👩‍👩‍👧\x00です", image_url="data:x"
    )
    answer = store.add_message(
        chat.id, user_id=user, sender="ai", content="", status="streaming", details={"n": [1]}
    )
    store.update_message(answer.id, user_id=user, content="はい", status="ok", details={"m": "か"})
    asked, answered = store.messages(chat.id, user_id=user)
    assert (asked.position, asked.sender, asked.content) == (0, "user", "絵文字👩‍👩‍👧です")
    assert asked.image_url == "data:x"
    assert (answered.position, answered.content, answered.status) == (1, "はい", "ok")
    assert answered.details == {"m": "か"}


def test_updating_one_part_of_a_message_leaves_the_others(store: Store, world: World) -> None:
    store.update_message(world.message, user_id=world.user, details={"tokens": 3})
    changed = store.update_message(world.message, user_id=world.user, status="stopped")
    assert (changed.content, changed.status, changed.details) == ("やあ", "stopped", {"tokens": 3})


def test_the_first_words_of_the_user_title_the_conversation(store: Store, user: str) -> None:
    agent = store.create_agent(user_id=user, name="x")
    chat = store.create_chat(user_id=user, agent_id=agent.id)
    store.add_message(chat.id, user_id=user, sender="ai", content="ようこそ")
    store.add_message(chat.id, user_id=user, sender="user", content="一行目\n" + "あ" * 50)
    store.add_message(chat.id, user_id=user, sender="user", content="次")
    assert store.get_chat(chat.id, user_id=user).title == "一行目 " + "あ" * 36


def test_conversations_are_listed_by_last_use(store: Store, user: str, clock: Clock) -> None:
    one, two = (store.create_agent(user_id=user, name=name) for name in "12")
    old = store.create_chat(user_id=user, agent_id=one.id)
    clock.tick()
    new = store.create_chat(user_id=user, agent_id=two.id)
    assert [chat.id for chat in store.list_chats(user_id=user)] == [new.id, old.id]
    clock.tick()
    store.add_message(old.id, user_id=user, sender="user", content="また")
    assert [chat.id for chat in store.list_chats(user_id=user)] == [old.id, new.id]
    assert [chat.id for chat in store.list_chats(user_id=user, limit=1)] == [old.id]
    assert [chat.id for chat in store.list_chats(user_id=user, agent_id=two.id)] == [new.id]


@pytest.mark.core
def test_a_deleted_conversation_is_hidden_keeps_a_late_answer_and_comes_back(
    store: Store, world: World
) -> None:
    store.delete_chat(world.chat, user_id=world.user)
    assert store.list_chats(user_id=world.user) == []
    for read in (store.get_chat, store.messages):
        with pytest.raises(NotFound):
            read(world.chat, user_id=world.user)
    store.update_message(world.message, user_id=world.user, content="遅れた答え")
    store.add_message(world.chat, user_id=world.user, sender="ai", content="もっと遅れた答え")
    store.restore_chat(world.chat, user_id=world.user)
    kept = [turn.content for turn in store.messages(world.chat, user_id=world.user)]
    assert kept == ["こんにちは", "遅れた答え", "もっと遅れた答え"]


@pytest.mark.core
def test_a_turn_begins_with_all_it_needs_in_one_transaction(store: Store, world: World) -> None:
    start = store.begin_turn(world.chat, user_id=world.user, content="次は？", agent_id=world.agent)
    assert persona_of(start.agent) == persona_of(store.get_agent(world.agent, user_id=world.user))
    assert (start.question.position, start.question.content) == (2, "次は？")
    assert start.state == store.chat_state(world.chat, user_id=world.user)
    assert store.messages(world.chat, user_id=world.user)[-1].id == start.question.id


def test_a_turn_of_a_deleted_row_or_another_persona_stores_nothing(
    store: Store, world: World
) -> None:
    who = {"user_id": world.user, "content": "x"}
    with pytest.raises(NotFound) as other:
        store.begin_turn(world.chat, **who, agent_id="a" * 32)
    assert other.value.details == {"kind": "agent"}
    store.delete_agent(world.agent, user_id=world.user)
    with pytest.raises(NotFound) as without_agent:
        store.begin_turn(world.chat, **who)
    assert without_agent.value.details == {"kind": "agent"}
    with pytest.raises(NotFound):
        store.begin_regeneration(world.chat, user_id=world.user)
    store.restore_agent(world.agent, user_id=world.user)
    store.delete_chat(world.chat, user_id=world.user)
    with pytest.raises(NotFound) as without_chat:
        store.begin_turn(world.chat, **who)
    assert without_chat.value.details == {"kind": "chat"}
    store.restore_chat(world.chat, user_id=world.user)
    assert [m.content for m in store.messages(world.chat, user_id=world.user)] == [
        "こんにちは",
        "やあ",
    ]


@pytest.mark.core
def test_a_turn_ends_with_its_answer_and_one_generation(store: Store, world: World) -> None:
    draft = store.add_message(
        world.chat, user_id=world.user, sender="ai", content="答", status="streaming"
    )
    generation, before = _record(world.user), len(store.records(user_id=world.user))
    for _ in range(2):  # as after a connection that broke at the commit
        answer = _finish(store, world.chat, world.user, generation=generation, message_id=draft.id)
    assert (answer.id, answer.content, answer.status) == (draft.id, "答え", "ok")
    assert store.get_message(draft.id, user_id=world.user).details == {"model": "echo"}
    assert len(store.records(user_id=world.user)) == before + 1


def test_a_turn_whose_row_is_another_users_or_gone_leaves_its_generation(
    store: Store, world: World
) -> None:
    stranger = store.create_user().id
    for message_id in (world.message, "f" * 32):
        with pytest.raises(NotFound):
            _finish(store, world.chat, stranger, message_id=message_id)
    assert store.get_message(world.message, user_id=world.user).content == "やあ"
    assert len(store.records(user_id=stranger)) == 2


def test_a_replaced_answer_is_set_aside_and_kept(store: Store, world: World) -> None:
    start = store.begin_regeneration(world.chat, user_id=world.user)
    assert start.question.content == "こんにちは"
    store.add_message(world.chat, user_id=world.user, sender="ai", content="新しい答え")
    shown = [turn.content for turn in store.messages(world.chat, user_id=world.user)]
    every = store.messages(world.chat, user_id=world.user, superseded=True)
    assert shown == ["こんにちは", "新しい答え"]
    assert [turn.content for turn in every] == ["こんにちは", "やあ", "新しい答え"]


def test_without_a_message_of_the_users_there_is_no_answer_to_replace(
    store: Store, user: str
) -> None:
    agent = store.create_agent(user_id=user, name="x")
    chat = store.create_chat(user_id=user, agent_id=agent.id)
    greeting = store.add_message(chat.id, user_id=user, sender="ai", content="ようこそ")
    with pytest.raises(NotFound) as none:
        store.begin_regeneration(chat.id, user_id=user)
    assert none.value.details == {"kind": "message"}
    assert store.messages(chat.id, user_id=user)[0].id == greeting.id


def test_records_come_back_from_a_moment_on(store: Store, user: str, clock: Clock) -> None:
    for number in range(3):
        store.record(_record(user, created_at=clock.moment, prompt_tokens=number, cost=0.5))
        clock.tick()
    since = clock.moment - timedelta(seconds=2)
    assert [turn.prompt_tokens for turn in store.records(user_id=user)] == [0, 1, 2]
    assert [turn.prompt_tokens for turn in store.records(user_id=user, since=since)] == [1, 2]


def test_what_a_crash_left_streaming_is_interrupted_at_start(store: Store, world: World) -> None:
    store.update_message(world.message, user_id=world.user, content="途中ま", status="streaming")
    assert store.mark_interrupted() == 1
    assert store.mark_interrupted() == 0
    last = store.messages(world.chat, user_id=world.user)[-1]
    assert (last.content, last.status) == ("途中ま", "interrupted")


def test_an_answer_that_a_crash_left_set_aside_stands_again_at_start(
    store: Store, world: World
) -> None:
    who = {"user_id": world.user}
    asked = store.add_message(world.chat, sender="user", content="もう一度", **who)
    store.add_message(world.chat, sender="ai", content="古い返事", **who)
    store.begin_regeneration(world.chat, **who)
    assert store.messages(world.chat, **who)[-1].id == asked.id
    before = store.chat_state(world.chat, **who).revision
    store.mark_interrupted()
    assert store.messages(world.chat, **who)[-1].content == "古い返事"
    assert store.chat_state(world.chat, **who).revision != before


# ── under load and in trouble ─────────────────────────────────────────────────────────────


def _write_together(store: Store, writers: int, each: int) -> None:
    user = store.create_user().id
    agent = store.create_agent(user_id=user, name="x")
    chat = store.create_chat(user_id=user, agent_id=agent.id)

    def write(writer: int) -> None:
        for number in range(each):
            content = f"{writer}-{number}"
            store.add_message(chat.id, user_id=user, sender="user", content=content)
            store.update_agent(agent.id, user_id=user, tones=[content])

    with ThreadPoolExecutor(writers) as threads:
        for done in [threads.submit(write, writer) for writer in range(writers)]:
            done.result()
    kept = store.messages(chat.id, user_id=user)
    assert [turn.position for turn in kept] == list(range(writers * each))
    assert {turn.content for turn in kept} == {
        f"{writer}-{number}" for writer in range(writers) for number in range(each)
    }
    for writer in range(writers):
        mine = [turn.content for turn in kept if turn.content.startswith(f"{writer}-")]
        assert mine == [f"{writer}-{number}" for number in range(each)]


def test_sixteen_writers_lose_nothing_on_a_file(file: str) -> None:
    store = Store(file)
    _write_together(store, 16, 8)
    store.close()


def test_one_answer_stands_for_a_question_also_where_another_process_started_meanwhile(
    store: Store,
) -> None:
    user = store.create_user().id
    agent = store.create_agent(user_id=user, name="あ")
    chat = store.create_chat(user_id=user, agent_id=agent.id)
    store.add_message(chat.id, user_id=user, sender="user", content="問い")
    store.add_message(chat.id, user_id=user, sender="ai", content="前の答え")
    store.begin_regeneration(chat.id, user_id=user)
    store.mark_interrupted()  # a replica starts before the first word of another answer
    store.add_message(chat.id, user_id=user, sender="ai", content="次の答え", instead=True)
    standing = [message.content for message in store.messages(chat.id, user_id=user)]
    assert standing == ["問い", "次の答え"]


def test_an_answer_set_aside_comes_back_at_a_start_only_where_nothing_else_stands(
    store: Store,
) -> None:
    user = store.create_user().id
    agent = store.create_agent(user_id=user, name="あ")
    for status, stands in (("failed", ["問い", "途中"]), ("interrupted", ["問い", "途中"])):
        chat = store.create_chat(user_id=user, agent_id=agent.id)
        store.add_message(chat.id, user_id=user, sender="user", content="問い")
        store.add_message(chat.id, user_id=user, sender="ai", content="前の答え")
        store.begin_regeneration(chat.id, user_id=user)
        store.add_message(chat.id, user_id=user, sender="ai", content="途中", status=status)
        store.mark_interrupted()
        assert [m.content for m in store.messages(chat.id, user_id=user)] == stands


@pytest.mark.core
def test_sixteen_writers_lose_nothing(store: Store) -> None:
    _write_together(store, 16, 8)


def test_two_processes_worth_of_stores_write_to_one_file(file: str) -> None:
    one, two = Store(file), Store(file)
    user = one.create_user().id
    chat = one.create_chat(user_id=user, agent_id=one.create_agent(user_id=user, name="x").id).id

    def write(number: int) -> None:
        store = (one, two)[number % 2]
        store.add_message(chat, user_id=user, sender="user", content=str(number))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(64)))
    assert [turn.position for turn in two.messages(chat, user_id=user)] == list(range(64))
    one.close()
    two.close()


def test_memory_is_seen_by_all_threads_and_by_no_other_store(store: Store, world: World) -> None:
    with ThreadPoolExecutor(1) as thread:
        read = thread.submit(store.get_chat, world.chat, user_id=world.user)
        assert read.result().id == world.chat
    if store.engine.dialect.name == "sqlite":
        other = Store("sqlite://")
        assert other.list_chats(user_id=world.user) == []
        other.close()


def test_a_full_disk_is_said_and_leaves_the_database_sound(file: str) -> None:
    store = Store(file)
    user = store.create_user().id
    chat = store.create_chat(
        user_id=user, agent_id=store.create_agent(user_id=user, name="x").id
    ).id

    def fill_disk(connection: sqlite3.Connection, _: object) -> None:
        [[pages]] = connection.execute("PRAGMA page_count").fetchall()
        connection.execute(f"PRAGMA max_page_count={pages + 4}").close()

    store.engine.dispose()
    event.listen(store.engine, "connect", fill_disk)
    written = 0
    with pytest.raises(DiskFull):
        while written < 100:
            store.add_message(chat, user_id=user, sender="user", content="あ" * 1000)
            written += 1
    with pytest.raises(DiskFull):
        store.create_agent(user_id=user, name="大", background="あ" * 10_000, roles=["教師"])
    assert len(store.messages(chat, user_id=user)) == written > 0
    assert [agent.name for agent in store.list_agents(user_id=user)] == ["x"]

    event.remove(store.engine, "connect", fill_disk)
    store.engine.dispose()
    store.add_message(chat, user_id=user, sender="user", content="また書ける")
    kept = store.messages(chat, user_id=user)
    assert [turn.position for turn in kept] == list(range(written + 1))
    with store.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
    store.close()


@pytest.mark.core
def test_an_error_of_the_database_leaves_as_ours(store: Store) -> None:
    with pytest.raises(StorageError) as wrong:
        store.create_agent(user_id="nobody", name="x")
    assert wrong.value.__cause__ is not None
    assert "nobody" not in str(wrong.value.__cause__).split("[SQL")[-1]


def test_a_failed_write_leaves_nothing_behind(store: Store, user: str) -> None:
    with pytest.raises(StorageError):
        store.create_agent(user_id="nobody", name="x", roles=["半端"])
    store.create_agent(user_id=user, name="y", roles=["全部"])
    with store.engine.connect() as connection:
        names = connection.execute(text("SELECT name FROM role")).scalars().all()
    assert names == ["全部"]


def test_a_database_that_stops_is_said_clearly_and_used_again_when_it_is_back(
    postgres_server: PostgresServer,
) -> None:
    store = Store(postgres_server.url)
    user = store.create_user().id
    agent = store.create_agent(user_id=user, **FULL)
    chat = store.create_chat(user_id=user, agent_id=agent.id).id
    with ThreadPoolExecutor(8) as threads:  # several connections are open
        list(threads.map(lambda _: store.list_agents(user_id=user), range(16)))
    for _ in range(2):
        postgres_server.stop()
        calls: list[Callable[[], object]] = [
            lambda: store.get_chat(chat, user_id=user),
            lambda: store.add_message(chat, user_id=user, sender="user", content="x"),
            lambda: store.update_agent(agent.id, user_id=user, name="x"),
            lambda: store.user_for_secret("s"),
        ]
        for call in calls:
            with pytest.raises(StorageError) as wrong:
                call()
            assert wrong.value.code == "storage"
        postgres_server.start()
        assert persona_of(store.get_agent(agent.id, user_id=user)) == FULL
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda _: store.list_agents(user_id=user), range(16)))
    store.add_message(chat, user_id=user, sender="user", content="また書ける")
    assert [turn.content for turn in store.messages(chat, user_id=user)] == ["また書ける"]
    store.close()


def test_statement_ends_with_an_error_when_it_takes_too_long(
    postgres_server: PostgresServer,
) -> None:
    store = Store(f"{postgres_server.url}?tcp_user_timeout=500")
    user = store.create_user().id
    agent = store.create_agent(user_id=user, **FULL)
    with store.engine.begin() as other:
        other.exec_driver_sql("LOCK TABLE agent")
        calls: list[Callable[[], object]] = [
            lambda: store.get_agent(agent.id, user_id=user),
            lambda: store.update_agent(agent.id, user_id=user, name="x"),
        ]
        for call in calls:
            began = time.monotonic()
            with pytest.raises(StorageError) as wrong:
                call()
            assert wrong.value.code == "storage"
            assert 0.4 < time.monotonic() - began < 3
    assert persona_of(store.get_agent(agent.id, user_id=user)) == FULL
    store.close()


@pytest.mark.parametrize(
    ("query", "timeout"),
    [
        ("", "15s"),
        ("?tcp_user_timeout=1000", "1s"),
        ("?tcp_user_timeout=0", "0"),
        ("?options=-c%20statement_timeout%3D1min", "1min"),
    ],
)
def test_statement_timeout_comes_from_the_url(
    postgres_server: PostgresServer, query: str, timeout: str
) -> None:
    store = Store(postgres_server.url + query)
    for _ in range(2):  # it outlives a rollback
        with store.engine.connect() as connection:
            assert connection.exec_driver_sql("SHOW statement_timeout").scalar() == timeout
            assert connection.exec_driver_sql("SELECT pg_sleep(0.1)").one() == ("",)
            connection.rollback()
    store.close()


def test_migration_may_take_longer_than_a_statement(postgres_server: PostgresServer) -> None:
    postgres_server.empty()
    engine = create_engine(postgres_server.url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect() as other, ThreadPoolExecutor() as threads:
        other.exec_driver_sql("SELECT pg_advisory_xact_lock(7265)")  # another replica migrates
        opening = threads.submit(Store, f"{postgres_server.url}?tcp_user_timeout=300")
        with pytest.raises(TimeoutError):
            opening.result(1)
        other.rollback()
        opening.result().close()
    engine.dispose()


async def test_readiness_fails_in_bounded_time_while_postgres_is_frozen(
    make_lab: Callable[..., Lab], postgres_server: PostgresServer
) -> None:
    lab = make_lab(database_url=postgres_server.url)
    readiness = Readiness(lab, timeout_s=0.5)
    request = Request({"type": "http"})
    assert (await readiness.answer(request)).status_code == 200
    postgres_server.pause()
    for _ in range(2):
        began = time.monotonic()
        assert (await readiness.answer(request)).status_code == 503
        assert time.monotonic() - began < 3
    postgres_server.resume()
    assert (await Readiness(lab, timeout_s=30).answer(request)).status_code == 200


def test_connecting_ends_with_one_line_while_postgres_is_frozen(
    postgres_server: PostgresServer,
) -> None:
    postgres_server.pause()
    began = time.monotonic()
    assert "timeout" in _refusal(f"{postgres_server.url}?connect_timeout=2")
    assert time.monotonic() - began < 6


def test_a_database_that_is_away_at_start_stops_it_with_one_line(
    postgres_server: PostgresServer,
) -> None:
    postgres_server.stop()
    assert "refused" in _refusal(postgres_server.url)


def test_a_revision_counts_what_changes_a_conversation_and_not_what_is_added(
    store: Store, world: World
) -> None:
    def revision() -> int:
        return store.chat_state(world.chat, user_id=world.user).revision

    start = revision()
    growing = store.add_message(
        world.chat, user_id=world.user, sender="ai", content="は", status="streaming"
    )
    assert store.chat_state(world.chat, user_id=world.user).answering
    store.update_message(growing.id, user_id=world.user, content="はい", status="ok")
    mark = store.chat_state(world.chat, user_id=world.user)
    assert (mark.revision, mark.last, mark.answering) == (start, growing.position, False)
    changes: list[Callable[[], object]] = [
        lambda: store.update_message(world.message, user_id=world.user, content="直した"),
        lambda: store.begin_regeneration(world.chat, user_id=world.user),
        lambda: store.restore_answer(world.asked, user_id=world.user),
    ]
    for number, change in enumerate(changes, 1):
        change()
        assert revision() == start + number
    store.update_message(world.message, user_id=world.user, status="streaming")
    before = revision()
    store.mark_interrupted()
    assert revision() == before + 1


def test_edits_at_once_are_all_counted(store: Store, world: World) -> None:
    start = store.chat_state(world.chat, user_id=world.user).revision

    def edit(number: int) -> None:
        store.update_message(world.message, user_id=world.user, content=str(number))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(edit, range(24)))
    assert store.chat_state(world.chat, user_id=world.user).revision == start + 24


def test_a_regeneration_takes_back_a_summary_that_tells_of_what_it_replaces(
    store: Store, world: World
) -> None:
    for through, left in ((1, ""), (-1, "")):
        mark = store.chat_state(world.chat, user_id=world.user)
        since = dataclasses.replace(mark, summary_through=through)
        store.summarize(world.chat, user_id=world.user, summary="まとめ", since=since)
        store.begin_regeneration(world.chat, user_id=world.user)
        assert store.chat_state(world.chat, user_id=world.user).summary == left


# ── opening, and the schema ───────────────────────────────────────────────────────────────


def test_a_new_database_is_made_with_its_folder_and_stays(file: str) -> None:
    first = Store(file)
    user = first.user_for_secret("s").id
    agent = first.create_agent(user_id=user, **FULL)
    first.close()
    second = Store(file)
    assert persona_of(second.get_agent(agent.id, user_id=user)) == FULL
    with second.engine.connect() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert pragmas == {
        "journal_mode": "wal",
        "synchronous": 1,
        "foreign_keys": 1,
        "busy_timeout": 30_000,
    }
    second.close()


@pytest.mark.parametrize("new", [True, False])
def test_a_new_or_current_database_opens_without_alembic(file: str, new: bool) -> None:
    if not new:
        Store(file).close()
    code = (
        "import sys; from persona_lab.db.store import Store; Store(sys.argv[1]).close(); "
        "sys.exit('alembic' in sys.modules)"
    )
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code, file], cwd=root).returncode == 0


@pytest.mark.parametrize("shared", [True, False])
def test_new_stores_that_open_together_all_open(file: str, shared: bool) -> None:
    start = threading.Barrier(4)

    def open_store(_: int) -> str:
        start.wait()
        store = Store(file if shared else "sqlite://")
        user = store.user_for_secret("s").id
        store.close()
        return user

    with ThreadPoolExecutor(4) as threads:
        assert len(set(threads.map(open_store, range(4)))) == (1 if shared else 4)


def test_a_store_waits_for_another_that_is_making_the_file(tmp_path: Path) -> None:
    file = f"sqlite:///{tmp_path / 'lab.db'}"
    maker = sqlite3.connect(tmp_path / "lab.db", isolation_level=None, check_same_thread=False)
    maker.execute("PRAGMA user_version = 0")  # the file is there, and not in WAL mode yet
    maker.execute("BEGIN IMMEDIATE")
    with ThreadPoolExecutor(1) as threads:
        opening = threads.submit(Store, file)
        with pytest.raises(TimeoutError):
            opening.result(0.3)
        maker.execute("COMMIT")
        maker.close()
        opening.result(10).close()


def test_a_step_that_rebuilds_a_table_keeps_the_rows_that_refer_to_it(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(file)
    user = store.create_user().id
    agent = store.create_agent(user_id=user, **FULL)
    store.close()
    folder = tmp_path / "migrations"
    shutil.copytree(Path(migrations.__file__).parent, folder)
    (folder / "versions" / "next.py").write_text(
        "from alembic import op\n"
        f"revision, down_revision = 'next', {migrations.HEAD!r}\n"
        "def upgrade():\n"
        "    with op.batch_alter_table('agent', recreate='always') as table:\n"
        "        table.create_index('ix_agent_name', ['name'])\n"
    )
    monkeypatch.setattr(migrations, "__file__", str(folder / "__init__.py"))
    monkeypatch.setattr(migrations, "HEAD", "next")
    store = Store(file)
    assert persona_of(store.get_agent(agent.id, user_id=user)) == FULL
    with store.engine.connect() as connection:
        assert migrations.current(connection) == "next"
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
    store.close()


def _refusal(url: str) -> str:
    with pytest.raises(ConfigurationError) as refused:
        Store(url)
    words = str(refused.value)
    assert "DATABASE_URL" in words
    assert "\n" not in words
    return words


def test_a_newer_schema_is_refused_and_left_alone(file: str) -> None:
    store = Store(file)
    with store.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    store.close()
    assert "newer" in _refusal(file)
    assert "9999" in _refusal(file)


def test_a_database_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE invoices (id)")
    connection.commit()
    connection.close()
    assert "invoices" in _refusal(f"sqlite:///{path}")
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("invoices",)]
    connection.close()


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "lab.db"
    path.write_text("これはデータベースではない" * 100)
    assert "not a database" in _refusal(f"sqlite:///{path}")
    assert path.read_text() == "これはデータベースではない" * 100


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    _refusal(f"sqlite:///{tmp_path / 'file' / 'lab.db'}")
    _refusal(f"sqlite:///{tmp_path}")


@contextmanager
def _unprivileged(folder: Path) -> Iterator[None]:
    """As a user who may not write into ``folder``: root may write anywhere."""
    Store("sqlite://").close()  # what opening imports is imported: nobody may not even read it
    if os.geteuid():
        yield
        return
    os.chown(folder, 65534, 65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_folder_without_permission_is_refused() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o500)
        with _unprivileged(folder):
            assert "unable to open" in _refusal(f"sqlite:///{folder / 'lab.db'}")
            assert not list(folder.iterdir())
        folder.chmod(0o700)


def test_a_missing_driver_is_said_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    assert "pip install 'psycopg[binary]'" in _refusal("postgresql://localhost/lab")


def test_an_address_that_is_none_is_refused() -> None:
    _refusal("sqlite")
    _refusal("sqlite+nothing:///x")


def test_a_row_can_be_made_in_memory_with_its_traits_and_no_database() -> None:
    agent = Agent(name="テスト太郎")
    assert persona_of(agent)["personalities"] == []


def test_what_was_deleted_last_is_offered_for_a_day_to_its_owner(tmp_path: Path) -> None:
    moment = [now()]
    store = Store("sqlite://", clock=lambda: moment[0])
    user, other = store.create_user().id, store.create_user().id
    first, last = (store.create_agent(user_id=user, name=name).id for name in ("先", "後"))
    chat = store.create_chat(user_id=user, agent_id=first).id
    assert store.deleted_agent(user_id=user) is None
    for agent in (first, last):
        moment[0] += timedelta(minutes=1)
        store.delete_agent(agent, user_id=user)
    store.delete_chat(chat, user_id=user)
    offered = store.deleted_agent(user_id=user)
    assert offered is not None
    assert offered.id == last
    assert store.deleted_agent(user_id=other) is None
    assert store.deleted_chat(first, user_id=other) is None
    assert store.deleted_chat(last, user_id=user) is None
    found = store.deleted_chat(first, user_id=user)
    assert found is not None
    assert found.id == chat
    store.restore_agent(last, user_id=user)
    before = store.deleted_agent(user_id=user)
    assert before is not None
    assert before.id == first
    moment[0] += timedelta(days=1)
    assert store.deleted_agent(user_id=user) is None
    assert store.deleted_chat(first, user_id=user) is None
    store.close()
