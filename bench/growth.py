"""A store of one user with many personas and messages, beside one with a few.

The small one has as many chats of a persona, so that both sides read lists of the same length.

Both databases are files in a temporary folder. Both labs run in this process with the mock client,
which answers at once. Each action is done on one and on the other in turn. The big database is
filled by plain inserts, then opened as always. Sizes: ``BENCH_PERSONAS`` and ``BENCH_MESSAGES``.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlmodel import SQLModel

from bench import Measured
from persona_lab import Lab, Settings, open_lab
from persona_lab.clients.catalog import ModelInfo
from persona_lab.clients.mock import MockClient
from persona_lab.db.prompt_parts import text_hash
from persona_lab.db.store import Store
from persona_lab.types import new_id

PERSONAS = int(os.environ.get("BENCH_PERSONAS", "10000"))
MESSAGES = int(os.environ.get("BENCH_MESSAGES", "1000000"))
LENGTH = 20
"""Messages of a chat."""
SMALL = 10
"""Personas of the small store."""
PAGE = 50
ROUNDS = 60
GOAL = 1.5
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
WORDS = "光合成とは、植物が光のエネルギーを使って、水と二酸化炭素から糖を作るはたらきです。"
BACKGROUND = "海辺の町で育ち、今は都会の学校で理科を教える。" * 9
"""About 200 characters."""

Action = Callable[["Side"], Awaitable[object]]


class Side:
    """A lab with one user, and the persona and the chat that the actions use."""

    def __init__(self, folder: Path, personas: int, messages: int) -> None:
        url = f"sqlite:///{folder / 'lab.db'}"
        store = Store(url)
        self.user = store.create_user().id
        self.file = folder / "lab.db"
        self.bytes_per_message = fill(store, self.file, self.user, personas, messages)
        store.close()
        self.lab: Lab = open_lab(
            Settings(
                database_url=url, requests_per_minute=0, tokens_per_day=0, tokens_per_day_total=0
            ),
            client=MockClient(ModelInfo(provider="mock", name="echo"), Settings()),
        )
        own = [a for a in self.lab.store.list_agent_names(user_id=self.user) if not a.demo]
        self.agent = own[len(own) // 2].id
        self.chat = self.lab.store.list_chats(user_id=self.user, agent_id=self.agent)[0].id


def fill(store: Store, file: Path, user: str, personas: int, messages: int) -> float:
    """Insert personas with chats of :data:`LENGTH` messages; bytes a message beyond its text."""
    tables = SQLModel.metadata.tables
    agents = [store.create_agent(user_id=user, name="太郎0", background=BACKGROUND)]
    rows = [
        {**agents[0].model_dump(), "id": new_id(), "name": f"太郎{number}",
         "updated_at": BEGIN + timedelta(minutes=number)}
        for number in range(1, personas)
    ]  # fmt: skip
    system = (BACKGROUND * 3)[:600]
    key = text_hash(system, user)
    with store.engine.begin() as connection:
        if rows:
            connection.execute(tables["agent"].insert(), rows)
        prompt = {"hash": key, "user_id": user, "content": system}
        connection.execute(tables["prompt"].insert(), [prompt])
    ids = [agents[0].id, *(row["id"] for row in rows)]
    before, text = _size(store, file), 0
    for first in range(0, max(1, messages // LENGTH), 500):
        chats: list[dict[str, Any]] = []
        message_rows: list[dict[str, Any]] = []
        for number in range(first, min(first + 500, max(1, messages // LENGTH))):
            moment = BEGIN + timedelta(minutes=number)
            chat = {"id": new_id(), "user_id": user, "agent_id": ids[number % personas],
                    "title": "光合成", "created_at": moment, "updated_at": moment}  # fmt: skip
            chats.append(chat)
            message_rows += [_message(chat["id"], at, key, moment) for at in range(LENGTH)]
        text += sum(len(message["content"].encode()) for message in message_rows)
        with store.engine.begin() as connection:
            connection.execute(tables["chat"].insert(), chats)
            connection.execute(tables["message"].insert(), message_rows)
            links = [{"chat_id": chat["id"], "hash": key} for chat in chats]
            connection.execute(tables["chatprompt"].insert(), links)
    return (_size(store, file) - before - text) / max(LENGTH, messages)


def _message(chat_id: str, at: int, key: str, moment: datetime) -> dict[str, Any]:
    row = {"id": new_id(), "chat_id": chat_id, "position": at, "content": f"{at}: {WORDS}",
           "created_at": moment, "status": "ok", "superseded": False}  # fmt: skip
    if at % 2 == 0:
        return row | {"sender": "user", "details": {}, "prompt_parts": None}
    begin = max(0, at - 9)
    usage = {"prompt_tokens": 1234, "completion_tokens": 123, "total_tokens": 1357,
             "cached_tokens": 1024}  # fmt: skip
    details = {
        "model": "gpt-4o-mini-2024-07-18", "provider": "openai", "spec": "openai:gpt-4o-mini",
        "usage": usage, "cached_tokens": 1024, "estimated": False,
        "processing_applied": ["tone:敬語"], "finish_reason": "stop", "first_token_ms": 312.4,
        "first_shown_ms": 313.9, "total_ms": 2345.6, "load_ms": 0.0, "cost": 0.000213,
        "status": "ok", "prompt": "", "turns": at - begin, "sent": [], "summary": "",
        "cache_hit": False, "attempts": 1, "request_id": new_id(),
    }  # fmt: skip
    parts = {"sent": [[begin, at - 1]], "prompt": [f"#{key}"]}
    return row | {"sender": "ai", "details": details, "prompt_parts": parts}


def _size(store: Store, file: Path) -> int:
    with store.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    return file.stat().st_size


async def _open(side: Side) -> None:
    store = side.lab.store
    agent = await asyncio.to_thread(store.get_agent, side.agent, user_id=side.user)
    await asyncio.to_thread(store.choices, side.user, agent.language)
    await asyncio.to_thread(store.can_undo, agent.id, user_id=side.user)


async def _preview(side: Side) -> None:
    agent = await asyncio.to_thread(side.lab.store.get_agent, side.agent, user_id=side.user)
    await side.lab.service.preview(agent, WORDS, chat_id=side.chat, user_id=side.user)


async def _send(side: Side) -> None:
    reply = await side.lab.service.generate_response(WORDS, side.agent, side.chat, side.user)
    if "fallback" in reply.metadata:
        raise RuntimeError(reply.content)


def _call(method: str, **options: Any) -> Action:
    return lambda side: asyncio.to_thread(
        getattr(side.lab.store, method), user_id=side.user, **options
    )


ACTIONS: dict[str, Action] = {
    f"list personas (a page of {PAGE})": _call("list_agent_names", limit=PAGE),
    "open a persona": _open,
    "list its chats": lambda side: asyncio.to_thread(
        side.lab.store.list_chats, user_id=side.user, agent_id=side.agent
    ),
    "list all chats (a page)": _call("list_chats"),
    "read a chat": lambda side: asyncio.to_thread(
        side.lab.store.messages, side.chat, user_id=side.user, limit=PAGE
    ),
    "preview": _preview,
    "send": _send,
}


def measure() -> Measured:
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        began = time.perf_counter()
        big = Side(Path(one), PERSONAS, MESSAGES)
        filled = time.perf_counter() - began
        small = Side(Path(other), SMALL, SMALL * MESSAGES // PERSONAS)
        taken = asyncio.run(_run(small, big))
        size = big.file.stat().st_size
    return report(taken, big.bytes_per_message, size, filled)


async def _run(small: Side, big: Side) -> dict[str, tuple[list[float], list[float]]]:
    taken: dict[str, tuple[list[float], list[float]]] = {}
    try:
        for name, action in ACTIONS.items():
            taken[name] = ([], [])
            for number in range(ROUNDS + 5):
                for side, times in zip((small, big), taken[name], strict=True):
                    began = time.perf_counter()
                    await action(side)
                    if number >= 5:
                        times.append((time.perf_counter() - began) * 1000)
    finally:
        for side in (small, big):
            await side.lab.aclose()
    return taken


def report(
    taken: dict[str, tuple[list[float], list[float]]], beyond: float, size: int, filled: float
) -> Measured:
    """Medians in milliseconds on the small and on the big database."""
    lines = [
        f"### Growth: {PERSONAS:,} personas, {MESSAGES:,} messages, {size / 1e6:,.0f} MB",
        "",
        f"{beyond:.0f} bytes a message beyond its text; filled in {filled:.0f} s. "
        f"Medians of {ROUNDS}, taking turns.",
        "",
        "| | small ms | big ms | ratio | goal |",
        "|---|---|---|---|---|",
    ]
    missed = []
    for name, (small, big) in taken.items():
        floor, median = statistics.median(small), statistics.median(big)
        ratio = median / floor
        lines.append(f"| {name} | {floor:.2f} | {median:.2f} | {ratio:.2f} | ≤ {GOAL} |")
        if ratio > GOAL:
            missed.append(f"{name} {ratio:.2f} > {GOAL}")
    return Measured("\n".join(lines), missed)
