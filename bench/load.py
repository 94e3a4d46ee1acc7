"""``python -m bench.load``: a hundred chats at once, beside a bare ``gr.ChatInterface``.

Both are served by a process of their own, answer at the same pace, and are asked over Gradio's own
protocol by the same client, a stranger for each chat. The lab keeps every message in a database on
the disk, builds a prompt and records the turn; the bare app keeps nothing.
"""

from __future__ import annotations

import asyncio
import json
import math
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from bench import Measured
from bench.served import served

CHATS = 100
TURNS = 2
"""Messages of each chat, one after another."""
ALONE = 10
"""Messages of the single user."""
FIRST, RATE, TOKENS = 0.2, 50, 100
"""An answer: seconds until it begins, tokens a second, tokens."""
MODEL = f"mock:echo?first={FIRST}&rate={RATE}&tokens={TOKENS}"
PATIENCE = 300.0


@dataclass(frozen=True)
class Took:
    """Seconds to the first words and to the end of one answer; ``wrong`` where it has none."""

    first: float = math.nan
    whole: float = math.nan
    wrong: str = ""


Ask = Callable[[str], list[Any]]
"""What the chat's endpoint is given with a message."""
Shown = Callable[[Any], str]
"""The text in what it gives."""


async def ask(visitor: httpx2.AsyncClient, data: list[Any], shown: Shown, session: str) -> Took:
    """One message to ``/chat``, by the protocol that Gradio documents for curl."""
    try:
        return await _asked(visitor, data, shown, session)
    except httpx2.HTTPError as wrong:
        return Took(wrong=repr(wrong))


async def _asked(visitor: httpx2.AsyncClient, data: list[Any], shown: Shown, session: str) -> Took:
    began, first = time.perf_counter(), math.nan
    call = await visitor.post("/gradio_api/call/chat", json={"data": data, "session_hash": session})
    call.raise_for_status()
    where = f"/gradio_api/call/chat/{call.json()['event_id']}"
    kind = ""
    async with visitor.stream("GET", where) as events:
        async for line in events.aiter_lines():
            if line.startswith("event: "):
                kind = line.removeprefix("event: ")
            elif line.startswith("data: ") and kind in ("generating", "complete", "error"):
                if kind == "error":
                    return Took(wrong=line)
                if math.isnan(first) and shown(json.loads(line.removeprefix("data: "))[0]):
                    first = time.perf_counter() - began
                if kind == "complete":
                    return Took(first, time.perf_counter() - began)
    return Took(wrong="it broke off")


async def chat(
    url: str, data: Ask, shown: Shown, turns: int, begun: asyncio.Barrier | None = None
) -> list[Took]:
    """A stranger's messages, one after another. The page is opened and a first message answered
    before the watch starts, for all at ``begun``."""
    session = secrets.token_hex(8)
    async with httpx2.AsyncClient(base_url=url, timeout=PATIENCE) as visitor:
        await visitor.get("/")  # their cookie
        await ask(visitor, data("はじめまして"), shown, session)
        if begun is not None:
            await begun.wait()
        return [await ask(visitor, data(f"質問{n}"), shown, session) for n in range(turns)]


async def crowd(url: str, data: Ask, shown: Shown) -> tuple[list[Took], list[Took]]:
    """The single user's answers, and then those of all chats at once."""
    alone = await chat(url, data, shown, ALONE)
    begun = asyncio.Barrier(CHATS)
    rows = await asyncio.gather(*(chat(url, data, shown, TURNS, begun) for _ in range(CHATS)))
    return alone, [took for row in rows for took in row]


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, math.ceil(share * len(values)) - 1)]


def row(name: str, alone: list[Took], together: list[Took]) -> str:
    one = percentile([took.first for took in alone if not took.wrong], 0.95)
    many = [took for took in together if not took.wrong]
    if not many:
        return f"| {name} | {len(together)} | {one:.2f} | | | |"
    first = percentile([took.first for took in many], 0.95)
    whole = percentile([took.whole for took in many], 0.95)
    wrong = len(together) - len(many)
    return f"| {name} | {wrong} | {one:.2f} | {first:.2f} | {first / one:.1f} | {whole:.2f} |"


def persona(url: str) -> str:
    """The id of a demo."""
    call = httpx2.post(f"{url}/gradio_api/call/list_personas", json={"data": []}).json()
    told = httpx2.get(f"{url}/gradio_api/call/list_personas/{call['event_id']}").text
    return str(json.loads(told.partition("data: ")[2].splitlines()[0])[0][0]["id"])


def measure() -> Measured:
    pace = {"FIRST": str(FIRST), "RATE": str(RATE), "TOKENS": str(TOKENS)}
    mock = {"LLM_PROVIDER": "mock", "LLM_MODEL": MODEL.removeprefix("mock:")}
    mock |= {"LOG_LEVEL": "error", "RESPONSE_CACHE_TTL": "0"}
    lines = []
    with (
        tempfile.TemporaryDirectory() as folder,
        served("bench.bare_chat", Path(folder), tabs=0, **pace) as bare,
    ):
        took = asyncio.run(crowd(bare.url, lambda text: [text], str))
        lines.append(row("bare gr.ChatInterface", *took))
    with tempfile.TemporaryDirectory() as folder, served("app.py", Path(folder), **mock) as lab:
        agent = persona(lab.url)
        took = asyncio.run(
            crowd(lab.url, lambda text: [text, agent, "", ""], lambda step: step["content"])
        )
        lines.append(row("Persona Lab", *took))
    wrong = sum(one.wrong != "" for one in took[1])
    table = [
        f"### {CHATS} chats at once, {TURNS} messages each, {TOKENS} tokens at {RATE} a second",
        "",
        "| | errors | first words alone, p95 s | together, p95 s | ratio | whole answer, p95 s |",
        "|---|---|---|---|---|---|",
        *lines,
    ]
    return Measured("\n".join(table), [f"{wrong} errors"] if wrong else [])


if __name__ == "__main__":
    measured = measure()
    print(measured.tables)
    sys.exit(1 if measured.missed else 0)
