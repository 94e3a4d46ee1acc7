"""A hundred chats at once, beside a bare ``gr.ChatInterface``. ``python -m bench load``.

Each side is served by its own process, answers at the same pace, and is called over Gradio's own
protocol by the same client, with a new visitor for each chat. Persona Lab stores every message in a
database on disk, builds a prompt and records the turn. The bare app stores nothing. The two sides
take turns within one run, and the table has the medians over the rounds.
"""

from __future__ import annotations

import asyncio
import json
import math
import secrets
import statistics
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
MESSAGES = 2
"""Messages of each chat, one after another."""
ROUNDS = 5
"""Rounds of each side."""
FIRST, RATE, TOKENS = 0.2, 50, 100
"""An answer: seconds until it begins, tokens a second, tokens."""
MODEL = f"echo?first={FIRST}&rate={RATE}&tokens={TOKENS}"
GOAL = 1.2
"""First words of Persona Lab, p95, as a multiple of the bare app's."""
TIMEOUT = 300.0


@dataclass(frozen=True)
class Timing:
    """Seconds to the first words and to the end of one answer, or the error that came instead."""

    first: float = math.nan
    whole: float = math.nan
    error: str = ""


@dataclass(frozen=True)
class Side:
    """One of the two apps.

    Attributes:
        url: The address that it is served at.
        inputs: Return the inputs of the chat endpoint for a message.
        text: Return the text in the endpoint's output.
    """

    url: str
    inputs: Callable[[str], list[Any]]
    text: Callable[[Any], str]


@dataclass(frozen=True)
class Round:
    """What one round of all chats measured: p95 in seconds, and the number of errors."""

    first: float
    whole: float
    errors: int


async def send(client: httpx2.AsyncClient, side: Side, message: str, session: str) -> Timing:
    """Send a message to ``/chat`` by the protocol that Gradio documents for curl."""
    try:
        return await _send(client, side, message, session)
    except httpx2.HTTPError as error:
        return Timing(error=repr(error))


async def _send(client: httpx2.AsyncClient, side: Side, message: str, session: str) -> Timing:
    began, first = time.perf_counter(), math.nan
    body = {"data": side.inputs(message), "session_hash": session}
    call = await client.post("/gradio_api/call/chat", json=body)
    call.raise_for_status()
    kind = ""
    async with client.stream("GET", f"/gradio_api/call/chat/{call.json()['event_id']}") as events:
        async for line in events.aiter_lines():
            if line.startswith("event: "):
                kind = line.removeprefix("event: ")
            elif line.startswith("data: ") and kind in ("generating", "complete", "error"):
                if kind == "error":
                    return Timing(error=line)
                if math.isnan(first) and side.text(json.loads(line.removeprefix("data: "))[0]):
                    first = time.perf_counter() - began
                if kind == "complete":
                    return Timing(first, time.perf_counter() - began)
    return Timing(error="the stream ended early")


async def chat(side: Side, start: asyncio.Barrier) -> list[Timing]:
    """Send one visitor's messages.

    The page is opened and a first message is answered before the measurement. All chats begin
    together at ``start``.
    """
    session = secrets.token_hex(8)
    async with httpx2.AsyncClient(base_url=side.url, timeout=TIMEOUT) as client:
        await client.get("/")  # for the cookie
        await send(client, side, "はじめまして", session)
        await start.wait()
        return [await send(client, side, f"質問{n}", session) for n in range(MESSAGES)]


async def run_round(side: Side) -> Round:
    """Run all chats at once."""
    start = asyncio.Barrier(CHATS)
    rows = await asyncio.gather(*(chat(side, start) for _ in range(CHATS)))
    timings = [timing for row in rows for timing in row]
    answers = [timing for timing in timings if not timing.error]
    if not answers:
        raise RuntimeError(timings[0].error)
    return Round(
        percentile([timing.first for timing in answers], 0.95),
        percentile([timing.whole for timing in answers], 0.95),
        len(timings) - len(answers),
    )


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, math.ceil(share * len(values)) - 1)]


def demo_persona(url: str) -> str:
    """Return the id of a demo persona that answers in English.

    A tone of a Japanese persona holds back the unfinished sentence, whatever the load is.
    """
    call = httpx2.post(f"{url}/gradio_api/call/list_personas", json={"data": []}).json()
    events = httpx2.get(f"{url}/gradio_api/call/list_personas/{call['event_id']}").text
    personas = json.loads(events.partition("data: ")[2].splitlines()[0])[0]
    return str(next(persona["id"] for persona in personas if persona["language"] == "en"))


def measure() -> Measured:
    pace = {"FIRST": str(FIRST), "RATE": str(RATE), "TOKENS": str(TOKENS)}
    mock = {"LLM_PROVIDER": "mock", "LLM_MODEL": MODEL}
    mock |= {"LOG_LEVEL": "error", "RESPONSE_CACHE_TTL": "0"}
    with (
        tempfile.TemporaryDirectory() as bare_folder,
        tempfile.TemporaryDirectory() as lab_folder,
        served("bench.bare_chat", Path(bare_folder), tabs=0, **pace) as bare,
        served("app.py", Path(lab_folder), **mock) as lab,
    ):
        agent = demo_persona(lab.url)
        sides = {
            "bare gr.ChatInterface": Side(bare.url, lambda message: [message], str),
            "Persona Lab": Side(
                lab.url, lambda message: [message, agent, "", ""], lambda step: step["content"]
            ),
        }
        rounds: dict[str, list[Round]] = {name: [] for name in sides}
        for _ in range(ROUNDS):
            for name, side in sides.items():
                rounds[name].append(asyncio.run(run_round(side)))
    medians = {
        name: [
            statistics.median(getattr(one, field) for one in measured)
            for field in ("first", "whole")
        ]
        for name, measured in rounds.items()
    }
    bare_first, bare_whole = medians["bare gr.ChatInterface"]
    lines = [
        f"| {name} | {sum(one.errors for one in rounds[name])} | {first:.2f} "
        f"| {first / bare_first:.2f} | {whole:.2f} | {whole / bare_whole:.2f} |"
        for name, (first, whole) in medians.items()
    ]
    ratio = medians["Persona Lab"][0] / bare_first
    errors = sum(one.errors for one in rounds["Persona Lab"])
    table = [
        f"### {CHATS} chats at once, {MESSAGES} messages each, {TOKENS} tokens at {RATE} a second; "
        f"medians of {ROUNDS} rounds of each side, in turn",
        "",
        f"| | errors | first words, p95 s | ratio (goal ≤ {GOAL}) | whole answer, p95 s | ratio |",
        "|---|---|---|---|---|---|",
        *lines,
    ]
    missed = [f"first words of {CHATS} chats, {ratio:.2f}"] if ratio > GOAL else []
    missed += [f"{errors} errors"] if errors else []
    return Measured("\n".join(table), missed)
