"""What the pipeline adds to one bare call of OpenAI's SDK to the same server, both in one run.

The server is a process of its own on loopback that answers as a quick provider does. The pipeline
keeps both messages in a database on the disk, builds the prompt from the conversation, finishes the
answer and records the turn; the bare call sends the same messages and keeps nothing. Each round
asks both, one after the other, in turns.

Besides: what a template costs to render, what an answer from the cache costs, and sixteen callers
at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import openai

from bench import Measured
from bench.served import ROOT, free_port
from persona_lab import Lab, Settings, open_lab
from persona_lab.db.tables import Agent, Chat, User

ROUNDS = 80
CALLERS = 16
EACH = 12
"""Answers of each of them."""
GOAL = 1.25
FIRST, TOKENS, RATE = 0.15, 32, 100
"""The server's answer: seconds until it begins, its tokens, and how many come in a second."""
MESSAGE = "光合成とは何ですか？"
MODEL = "bench-model"


@dataclass(frozen=True)
class Took:
    """Seconds: to the first words and to the end."""

    first: float
    whole: float


Ask = Callable[[], Awaitable[Took]]


class Pipeline:
    """A designer's conversation with a demo persona."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.user: User = lab.store.create_user()
        self.agent: Agent = next(
            agent
            for agent in lab.store.list_agents(user_id=self.user.id)
            if agent.language == "ja" and not agent.tones[0].name.startswith("関西")
        )
        self.chat: Chat = self._chat()

    def _chat(self) -> Chat:
        return self.lab.store.create_chat(user_id=self.user.id, agent_id=self.agent.id)

    async def stream(self, message: str = MESSAGE) -> Took:
        began, first = time.perf_counter(), 0.0
        events = self.lab.service.generate_streaming(
            message, self.agent.id, self.chat.id, self.user.id
        )
        async with contextlib.aclosing(events):
            async for event in events:
                if event.type == "delta":
                    first = first or time.perf_counter() - began
        if "fallback" in event.metadata:
            raise RuntimeError(event.content)
        return Took(first, time.perf_counter() - began)

    async def whole(self) -> Took:
        began = time.perf_counter()
        reply = await self.lab.service.generate_response(
            MESSAGE, self.agent.id, self.chat.id, self.user.id
        )
        if "fallback" in reply.metadata:
            raise RuntimeError(reply.content)
        return Took(math.nan, time.perf_counter() - began)

    async def sent(self) -> list[dict[str, str]]:
        """The messages that the pipeline sends, for the bare call to send too."""
        prompt = await self.lab.service.preview(
            self.agent, MESSAGE, chat_id=self.chat.id, user_id=self.user.id
        )
        return prompt.messages()


class Bare:
    def __init__(self, url: str, messages: list[dict[str, str]]) -> None:
        self.sdk = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0)
        self.messages = messages

    async def stream(self) -> Took:
        began, first = time.perf_counter(), 0.0
        stream = await self.sdk.chat.completions.create(
            model=MODEL,
            messages=self.messages,  # type: ignore[arg-type]
            stream=True,
            stream_options={"include_usage": True},
        )
        async with stream:
            async for event in stream:
                if event.choices and event.choices[0].delta.content:
                    first = first or time.perf_counter() - began
        return Took(first, time.perf_counter() - began)

    async def whole(self) -> Took:
        began = time.perf_counter()
        answer = await self.sdk.chat.completions.create(
            model=MODEL,
            messages=self.messages,  # type: ignore[arg-type]
        )
        if not answer.choices[0].message.content:
            raise RuntimeError("an empty answer")
        return Took(math.nan, time.perf_counter() - began)


@contextlib.asynccontextmanager
async def provider(rate: float, first: float) -> AsyncIterator[str]:
    """The URL of a server of its own process."""
    port = free_port()
    process = subprocess.Popen(  # noqa: ASYNC220 - nobody waits for it to begin
        [sys.executable, "-m", "bench.provider", str(port), str(first), str(TOKENS), str(rate)],
        cwd=ROOT,
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("the server doesn't answer") from None
                await asyncio.sleep(0.05)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


@contextlib.asynccontextmanager
async def lab_at(url: str, folder: Path) -> AsyncIterator[Lab]:
    settings = Settings(
        llm_provider="openai",
        llm_model=MODEL,
        openai_base_url=url,
        database_url=f"sqlite:///{folder / 'lab.db'}",
        requests_per_minute=0,
        tokens_per_day=0,
        response_cache_ttl=0,
    )
    async with open_lab(settings) as lab:
        yield lab


async def in_turns(ours: Ask, theirs: Ask, rounds: int) -> tuple[list[Took], list[Took]]:
    for ask in (ours, theirs) * 3:
        await ask()
    took: tuple[list[Took], list[Took]] = ([], [])
    for number in range(rounds):
        pair = [(ours, took[0]), (theirs, took[1])]
        for ask, kept in pair if number % 2 else pair[::-1]:
            kept.append(await ask())
    return took


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, math.ceil(share * len(values)) - 1)]


async def together(ask: Sequence[Ask]) -> tuple[float, list[Took]]:
    """Seconds for all, and each answer's, of callers who ask one time after another."""

    async def caller(one: Ask) -> list[Took]:
        return [await one() for _ in range(EACH)]

    began = time.perf_counter()
    took = await asyncio.gather(*map(caller, ask))
    return time.perf_counter() - began, [each for row in took for each in row]


async def _measure(folder: Path) -> Measured:
    rows = [
        "| one caller, ms | | p50 | p99 | ratio p50 | ratio p99 | goal |",
        "|---|---|---|---|---|---|---|",
    ]
    missed: list[str] = []
    async with provider(RATE, FIRST) as url, lab_at(url, folder) as lab:
        designer = Pipeline(lab)
        for _ in range(5):  # a conversation that fills what is sent along
            await designer.whole()
        bare = Bare(url, await designer.sent())
        for name, ours, theirs in (
            ("whole answer, streamed", designer.stream, bare.stream),
            ("whole answer, not streamed", designer.whole, bare.whole),
        ):
            took = await in_turns(ours, theirs, ROUNDS)
            kinds = [(name, "whole")]
            if ours == designer.stream:
                kinds.insert(0, ("first words", "first"))
            for what, key in kinds:
                mine, bares = ([getattr(each, key) for each in side] for side in took)
                quantiles = [(percentile(mine, q), percentile(bares, q)) for q in (0.5, 0.99)]
                ratios = [a / b for a, b in quantiles]
                slow, slower = (_ms(theirs) for _, theirs in quantiles)
                rows.append(f"| {what} | bare SDK | {slow} | {slower} | 1.00 | 1.00 | |")
                goal = f"≤ {GOAL}" if key == "whole" else ""
                rows.append(
                    f"| | pipeline | {_ms(quantiles[0][0])} | {_ms(quantiles[1][0])} "
                    f"| {ratios[0]:.2f} | {ratios[1]:.2f} | {goal} |"
                )
                if key == "whole":
                    missed += [
                        f"{what}, {q} {r:.2f}"
                        for q, r in zip(("p50", "p99"), ratios, strict=True)
                        if r > GOAL
                    ]
        designers = [designer, *(Pipeline(lab) for _ in range(CALLERS - 1))]
        bares = [Bare(url, bare.messages) for _ in range(CALLERS)]
        for each in designers[1:]:
            await each.whole()
        theirs_took, theirs_each = await together([each.stream for each in bares])
        ours_took, ours_each = await together([each.stream for each in designers])
        ratio = ours_took / theirs_took
        rows += [
            "",
            f"| {CALLERS} callers, {EACH} answers each | answers/s | p50 ms | p99 ms | ratio |",
            "|---|---|---|---|---|",
            _crowd("bare SDK", theirs_took, theirs_each, 1.0),
            _crowd("pipeline", ours_took, ours_each, ratio),
        ]
    async with provider(1e6, 0) as url, lab_at(url, folder / "quick") as lab:
        designer = Pipeline(lab)
        await designer.whole()
        bare = Bare(url, await designer.sent())
        mine, theirs = await in_turns(designer.stream, bare.stream, ROUNDS)
        added = statistics.median(t.whole for t in mine) - statistics.median(
            t.whole for t in theirs
        )
        render = await _rendering(designer)
    hit = await _cache_hit(folder / "cached")
    rows += [
        "",
        "| | ms |",
        "|---|---|",
        f"| added to an answer of {TOKENS} tokens that comes at once | {_ms(added)} |",
        f"| rendering a prompt | {render * 1000:.2f} |",
        f"| a whole answer from the cache, kept in the chat | {_ms(hit)} |",
    ]
    return Measured("\n".join(rows), missed)


def _crowd(name: str, seconds: float, took: Sequence[Took], ratio: float) -> str:
    whole = [each.whole for each in took]
    return (
        f"| {name} | {len(took) / seconds:.1f} | {_ms(percentile(whole, 0.5))} "
        f"| {_ms(percentile(whole, 0.99))} | {ratio:.2f} |"
    )


async def _rendering(designer: Pipeline) -> float:
    """Median seconds of one build."""
    took = []
    for number in range(200):
        began = time.perf_counter()
        await designer.lab.prompt_builder.build(designer.agent, f"{MESSAGE} {number}", [])
        took.append(time.perf_counter() - began)
    return statistics.median(took)


async def _cache_hit(folder: Path) -> float:
    """Median seconds of an answer that another chat of the user had before."""
    settings = Settings(
        llm_provider="mock",
        database_url=f"sqlite:///{folder / 'lab.db'}",
        requests_per_minute=0,
    )
    async with open_lab(settings) as lab:
        designer, took = Pipeline(lab), []
        for number in range(ROUNDS + 1):
            designer.chat = designer._chat()
            each = await designer.stream()
            if number:
                took.append(each.whole)
        if lab.cache_manager.hits != ROUNDS:
            raise RuntimeError("the cache wasn't hit")
    return statistics.median(took)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f}"


def measure() -> Measured:
    with tempfile.TemporaryDirectory(prefix="persona-lab-") as folder:
        place = Path(folder)
        for part in ("quick", "cached"):
            (place / part).mkdir()
        return asyncio.run(_measure(place))
