"""``kill -9`` in the middle of answers, again and again, and a database that goes away under them:
what was taken is there afterwards."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from support.backends import PostgresServer
from support.fakes import ChatUser

from persona_lab.clients.mock import ANSWERS
from persona_lab.db.store import Store
from persona_lab.errors import StorageError
from persona_lab.lab import Lab, open_lab
from persona_lab.settings import Settings
from persona_lab.types import Chunk, Options, Prompt, Usage

TESTS = Path(__file__).resolve().parents[1]


class Nursery:
    """A process whose children are there to be killed."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, TESTS / "support" / "crash_worker.py"],
            cwd=TESTS.parent,
            env={**os.environ, "PYTHONPATH": str(TESTS.parent)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def heard(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the nursery is gone"
        said: dict[str, Any] = json.loads(line)
        return said

    def kill_one(self, url: str, after: float) -> list[dict[str, Any]]:
        """Let a child talk on the database and kill it ``after`` seconds from its first message.

        What it said until then.
        """
        assert self.process.stdin is not None
        print(url, file=self.process.stdin, flush=True)
        said: list[dict[str, Any]] = []
        pid, timer = 0, None
        while True:
            line = self.heard()
            if "ended" in line:
                return said
            if "pid" in line:
                pid = line["pid"]
            else:
                said.append(line)
            if pid and said and timer is None:
                timer = threading.Timer(after, os.kill, (pid, signal.SIGKILL))
                timer.start()

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()


@pytest.fixture
def nursery() -> Iterator[Nursery]:
    opened = Nursery()
    yield opened
    opened.close()


def check(store: Store, said: list[dict[str, Any]], met: Counter[str]) -> None:
    """Everything that was said to be there is there, and what is there is sound."""
    for line in said:
        rows = {row.id: row for row in store.messages(line["chat_id"], user_id=line["user_id"])}
        if "kept" in line:
            assert rows[line["kept"]].content == line["message"]
            met["messages"] += 1
        else:
            assert (rows[line["done"]].content, rows[line["done"]].status) == (
                line["content"],
                "ok",
            )
            met["whole answers"] += 1
    for chat_id, user_id in {(line["chat_id"], line["user_id"]) for line in said}:
        rows_in_order = store.messages(chat_id, user_id=user_id)
        assert [row.position for row in rows_in_order] == list(range(len(rows_in_order)))
        for row in rows_in_order[:-1]:
            assert row.status == "ok"
        last = rows_in_order[-1]
        met[f"last: {last.sender} {last.status}"] += 1
        if last.status == "interrupted":
            asked = rows_in_order[-2].content
            assert last.content
            assert (ANSWERS["ja"].format(message=asked) * 9).startswith(last.content)


def test_kill_loses_no_message_and_marks_partial_answers(nursery: Nursery, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'lab.db'}"
    chance = random.Random(4711)
    met: Counter[str] = Counter()
    for _ in range(20):
        said = nursery.kill_one(url, after=chance.uniform(0, 0.9))
        store = Store(url)
        store.mark_interrupted()
        check(store, said, met)
        with store.engine.connect() as connection:
            for pragma in ("integrity_check", "quick_check"):
                assert connection.exec_driver_sql(f"PRAGMA {pragma}").scalar() == "ok"
            assert connection.exec_driver_sql("PRAGMA foreign_key_check").all() == []
        store.close()
    sys.stderr.write(f"{dict(met)}\n")
    assert met["messages"] >= 80
    assert met["whole answers"] > 0
    assert met["last: ai interrupted"] >= 20
    assert met["last: ai streaming"] == 0


def test_kills_lose_nothing_on_postgresql_either(
    nursery: Nursery, postgres_server: PostgresServer
) -> None:
    url = postgres_server.url
    chance = random.Random(815)
    met: Counter[str] = Counter()
    for _ in range(6):
        said = nursery.kill_one(url, after=chance.uniform(0.1, 0.7))
        store = Store(url)
        store.mark_interrupted()
        check(store, said, met)
        with store.engine.connect() as connection:
            orphans = "SELECT count(*) FROM message LEFT JOIN chat ON chat.id = chat_id"
            assert connection.execute(text(f"{orphans} WHERE chat.id IS NULL")).scalar() == 0
        store.close()
    sys.stderr.write(f"{dict(met)}\n")
    assert met["messages"] >= 24
    assert met["last: ai interrupted"] >= 6


async def test_a_conversation_goes_on_after_a_kill(nursery: Nursery, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'lab.db'}"
    said = nursery.kill_one(url, after=0.3)
    where = {name: said[0][name] for name in ("user_id", "agent_id", "chat_id")}
    lab: Lab = open_lab(Settings(database_url=url, llm_provider="mock"))
    async with lab:
        half = lab.store.messages(said[0]["chat_id"], user_id=said[0]["user_id"])[-1]
        assert half.status == "interrupted"
        reply = await lab.service.generate_response("続けて", **where)
        assert "続けて" in reply.content
        assert reply.metadata["turns"] >= 3


# ── the database goes away ────────────────────────────────────────────────────────────────


async def test_answer_is_stored_later_when_the_database_stops(
    make_lab: Callable[..., Lab], postgres_server: PostgresServer
) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def play(prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        yield Chunk("前半、")
        begun.set()
        await go_on.wait()
        yield Chunk("後半。")
        yield Chunk(finish_reason="stop", usage=Usage(5, 5), model="m")

    visitor = ChatUser(make_lab(play, database_url=postgres_server.url))
    ask = visitor.lab.service.generate_response
    answer = asyncio.create_task(ask("一", **visitor.ids))
    await begun.wait()
    await asyncio.to_thread(postgres_server.stop)
    go_on.set()
    reply = await answer
    assert reply.content == "前半、後半。"
    assert reply.metadata["code"] == "storage"
    assert "fallback" not in reply.metadata
    with pytest.raises(StorageError):
        await ask("二", **visitor.ids)
    await asyncio.to_thread(postgres_server.start)
    assert (await ask("三", **visitor.ids)).metadata["turns"] == 3
    assert visitor.thread() == [
        ("user", "一", "ok"),
        ("ai", "前半、後半。", "ok"),
        ("user", "三", "ok"),
        ("ai", "前半、後半。", "ok"),
    ]
