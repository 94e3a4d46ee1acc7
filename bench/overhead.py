"""What the pipeline adds to one bare call of OpenAI's SDK to the same server.

The server is a separate process on loopback that answers like a fast provider. The pipeline stores
both messages in a database on disk, builds the prompt from the conversation, processes the answer
and records the turn. The bare call stores nothing. It sends a conversation of half the length that
a chat of the pipeline reaches, so both sides send equally much on average. The sides are called
alternately within one run.

The run also measures the CPU time of one message, sixteen callers at once, the rendering of a
prompt, and an answer from the cache.
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
CALLER_ANSWERS = 10
"""Answers of each caller in one round."""
CALLER_ROUNDS = 5
"""Rounds of each side with all callers; the two sides alternate."""
EXCHANGES = 5
"""Exchanges in the prompt of the bare call: half of those that a chat of the pipeline gets."""
CPU_CHATS = 12
CPU_MESSAGES = 10
"""Messages of each of these chats."""
TIME_GOAL = 1.25
"""Time of an answer, as a multiple of the bare call's."""
FIRST_GOAL = 1.1
"""Time to the first visible words, as a multiple of the bare call's."""
CALLERS_GOAL = 0.9
"""Answers a second, as a share of the bare calls'."""
CPU_GOAL = 10.0
"""Milliseconds of CPU time of one message."""
FIRST, TOKENS, RATE = 0.15, 32, 100
"""The server's answer: seconds until it begins, its tokens, and tokens a second."""
MESSAGE = "光合成とは何ですか？"
MODEL = "bench-model"


@dataclass(frozen=True)
class Timing:
    """Seconds to the first words and to the end of one answer."""

    first: float
    whole: float


Call = Callable[[], Awaitable[Timing]]


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
        self.chat: Chat
        self.start_chat()

    def start_chat(self) -> None:
        """Continue in a new, empty chat."""
        self.chat = self.lab.store.create_chat(user_id=self.user.id, agent_id=self.agent.id)

    async def stream_pending(self) -> Timing:
        """Measure the first visible words: with the unfinished text, as the page shows it."""
        return await self.stream(pending=True)

    async def stream(self, message: str = MESSAGE, *, pending: bool = False) -> Timing:
        began, first = time.perf_counter(), 0.0
        events = self.lab.service.generate_streaming(
            message, self.agent.id, self.chat.id, self.user.id, pending=pending
        )
        async with contextlib.aclosing(events):
            async for event in events:
                if event.type == "delta" and (event.content or event.pending):
                    first = first or time.perf_counter() - began
        if "fallback" in event.metadata:
            raise RuntimeError(event.content)
        return Timing(first, time.perf_counter() - began)

    async def whole(self) -> Timing:
        began = time.perf_counter()
        reply = await self.lab.service.generate_response(
            MESSAGE, self.agent.id, self.chat.id, self.user.id
        )
        if "fallback" in reply.metadata:
            raise RuntimeError(reply.content)
        return Timing(math.nan, time.perf_counter() - began)

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

    async def stream(self) -> Timing:
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
        return Timing(first, time.perf_counter() - began)

    async def whole(self) -> Timing:
        began = time.perf_counter()
        answer = await self.sdk.chat.completions.create(
            model=MODEL,
            messages=self.messages,  # type: ignore[arg-type]
        )
        if not answer.choices[0].message.content:
            raise RuntimeError("an empty answer")
        return Timing(math.nan, time.perf_counter() - began)


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


async def in_turns(
    pipeline: Pipeline, ours: Call, theirs: Call, rounds: int
) -> tuple[list[Timing], list[Timing]]:
    for call in (ours, theirs) * 3:
        await call()
    timings: tuple[list[Timing], list[Timing]] = ([], [])
    for number in range(rounds):
        if number % (2 * EXCHANGES) == 0:
            pipeline.start_chat()
        pair = [(ours, timings[0]), (theirs, timings[1])]
        for call, results in pair if number % 2 else pair[::-1]:
            results.append(await call())
    return timings


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, math.ceil(share * len(values)) - 1)]


async def run_callers(callers: Sequence[Call]) -> tuple[float, list[Timing]]:
    """Let all callers make their calls at once.

    Returns:
        The seconds until all are done, and the timing of each answer.
    """

    async def run_caller(call: Call) -> list[Timing]:
        return [await call() for _ in range(CALLER_ANSWERS)]

    began = time.perf_counter()
    rows = await asyncio.gather(*map(run_caller, callers))
    return time.perf_counter() - began, [timing for row in rows for timing in row]


async def _measure(folder: Path) -> Measured:
    rows = [
        "| one caller, ms | | p50 | p99 | ratio p50 | ratio p99 | goal |",
        "|---|---|---|---|---|---|---|",
    ]
    missed: list[str] = []
    async with provider(RATE, FIRST) as url, lab_at(url, folder) as lab:
        designer = Pipeline(lab)
        for _ in range(EXCHANGES):
            await designer.whole()
        bare = Bare(url, await designer.sent())
        for name, ours, theirs in (
            ("first visible words", designer.stream_pending, bare.stream),
            ("whole answer, streamed", designer.stream, bare.stream),
            ("whole answer, not streamed", designer.whole, bare.whole),
        ):
            timings = await in_turns(designer, ours, theirs, ROUNDS)
            kinds = [(name, "whole")]
            if ours == designer.stream_pending:
                kinds = [(name, "first")]
            if ours == designer.stream:
                kinds.insert(0, ("first words with the tone settled", "first"))
            for what, key in kinds:
                own, bares = ([getattr(each, key) for each in side] for side in timings)
                quantiles = [(percentile(own, q), percentile(bares, q)) for q in (0.5, 0.99)]
                ratios = [a / b for a, b in quantiles]
                slow, slower = (_ms(theirs) for _, theirs in quantiles)
                rows.append(f"| {what} | bare SDK | {slow} | {slower} | 1.00 | 1.00 | |")
                goal = f"≤ {TIME_GOAL}" if key == "whole" else ""
                if name == "first visible words":
                    goal = f"p50 ≤ {FIRST_GOAL}"
                    if ratios[0] > FIRST_GOAL:
                        missed.append(f"{name}, p50 {ratios[0]:.2f}")
                rows.append(
                    f"| | pipeline | {_ms(quantiles[0][0])} | {_ms(quantiles[1][0])} "
                    f"| {ratios[0]:.2f} | {ratios[1]:.2f} | {goal} |"
                )
                if key == "whole":
                    missed += [
                        f"{what}, {q} {r:.2f}"
                        for q, r in zip(("p50", "p99"), ratios, strict=True)
                        if r > TIME_GOAL
                    ]
        pipelines = [designer, *(Pipeline(lab) for _ in range(CALLERS - 1))]
        calls = {
            "bare SDK": [Bare(url, bare.messages).stream for _ in range(CALLERS)],
            "pipeline": [each.stream for each in pipelines],
        }
        rates: dict[str, list[float]] = {name: [] for name in calls}
        timings: dict[str, list[Timing]] = {name: [] for name in calls}
        for _ in range(CALLER_ROUNDS):
            for each in pipelines:
                each.start_chat()
            for name, callers in calls.items():
                seconds, row = await run_callers(callers)
                rates[name].append(len(row) / seconds)
                timings[name] += row
        ratio = statistics.median(rates["pipeline"]) / statistics.median(rates["bare SDK"])
        if ratio < CALLERS_GOAL:
            missed.append(f"{CALLERS} callers, {ratio:.2f}")
        rows += [
            "",
            f"| {CALLERS} callers, {CALLER_ROUNDS} rounds of {CALLER_ANSWERS} answers each | "
            "answers/s, median | p50 ms | p99 ms | ratio | goal |",
            "|---|---|---|---|---|---|",
            _callers_row("bare SDK", rates, timings, 1.0, ""),
            _callers_row("pipeline", rates, timings, ratio, f"≥ {CALLERS_GOAL}"),
        ]
    async with provider(1e6, 0) as url, lab_at(url, folder / "quick") as lab:
        designer = Pipeline(lab)
        for _ in range(EXCHANGES):
            await designer.whole()
        bare = Bare(url, await designer.sent())
        own, theirs = await in_turns(designer, designer.stream, bare.stream, ROUNDS)
        added = statistics.median(t.whole for t in own) - statistics.median(t.whole for t in theirs)
        render = await _rendering(designer)
    cpu = await _cpu_of_message(folder / "cpu")
    if cpu > CPU_GOAL:
        missed.append(f"CPU of one message, {cpu:.1f} ms")
    hit = await _cache_hit(folder / "cached")
    rows += [
        "",
        "| | ms | goal |",
        "|---|---|---|",
        f"| CPU time of one message | {cpu:.1f} | ≤ {CPU_GOAL:.0f} |",
        f"| added to an answer of {TOKENS} tokens that comes at once | {_ms(added)} | |",
        f"| rendering a prompt | {render * 1000:.2f} | |",
        f"| a whole answer from the cache, kept in the chat | {_ms(hit)} | |",
    ]
    return Measured("\n".join(rows), missed)


def _callers_row(
    name: str,
    rates: dict[str, list[float]],
    timings: dict[str, list[Timing]],
    ratio: float,
    goal: str,
) -> str:
    whole = [timing.whole for timing in timings[name]]
    return (
        f"| {name} | {statistics.median(rates[name]):.1f} | {_ms(percentile(whole, 0.5))} "
        f"| {_ms(percentile(whole, 0.99))} | {ratio:.2f} | {goal} |"
    )


async def _cpu_of_message(folder: Path) -> float:
    """Return the milliseconds of CPU time that one streamed message takes.

    The model is in this process and answers at once, so this is the service's own work in all
    threads: storage, prompt, answer, records.
    """
    settings = Settings(
        llm_provider="mock",
        database_url=f"sqlite:///{folder / 'lab.db'}",
        requests_per_minute=0,
        tokens_per_day=0,
        response_cache_ttl=0,
    )
    async with open_lab(settings) as lab:
        pipeline = Pipeline(lab)
        for number in range(CPU_MESSAGES):
            await pipeline.stream(f"{MESSAGE} {number}")
        began = time.process_time()
        for _ in range(CPU_CHATS):
            pipeline.start_chat()
            for number in range(CPU_MESSAGES):
                await pipeline.stream(f"{MESSAGE} {number}")
        seconds = time.process_time() - began
    return seconds * 1000 / (CPU_CHATS * CPU_MESSAGES)


async def _rendering(designer: Pipeline) -> float:
    """Median seconds of one build."""
    timings = []
    for number in range(200):
        began = time.perf_counter()
        await designer.lab.prompt_builder.build(designer.agent, f"{MESSAGE} {number}", [])
        timings.append(time.perf_counter() - began)
    return statistics.median(timings)


async def _cache_hit(folder: Path) -> float:
    """Median seconds of an answer that another chat of the user had before."""
    settings = Settings(
        llm_provider="mock",
        database_url=f"sqlite:///{folder / 'lab.db'}",
        requests_per_minute=0,
    )
    async with open_lab(settings) as lab:
        designer, timings = Pipeline(lab), []
        for number in range(ROUNDS + 1):
            designer.start_chat()
            each = await designer.stream()
            if number:
                timings.append(each.whole)
        if lab.cache_manager.hits != ROUNDS:
            raise RuntimeError("the cache wasn't hit")
    return statistics.median(timings)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f}"


def measure() -> Measured:
    with tempfile.TemporaryDirectory(prefix="persona-lab-") as folder:
        place = Path(folder)
        for part in ("quick", "cached", "cpu"):
            (place / part).mkdir()
        return asyncio.run(_measure(place))
