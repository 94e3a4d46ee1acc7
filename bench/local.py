"""The local engine beside the ``Llama`` class and a llama.cpp server of 8 slots, in one run.

``make bench-local``. Each contender works in a process of its own, one after the other, on the
same tokens: of each packaged model, with a persona of about 300 and of about 900 tokens. The
server is xllamacpp's, for this only. What a row is compared with stands in its name.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from bench import Measured
from persona_lab.clients.catalog import Catalog, ModelInfo
from persona_lab.clients.local import processors
from persona_lab.clients.weights import find_weights
from persona_lab.llama.bindings import Model
from persona_lab.personas.demos import load_demos
from persona_lab.settings import ROOT, load_settings

LENGTHS = (300, 900)
"""Tokens of a persona."""
COLUMNS = 8
ANSWER = 64
"""Tokens of an answer where its rate is measured."""
ROUNDS = 5
CONTEXT = 4096
Tokens = list[int]


class Timing(NamedTuple):
    """Seconds since the first request of the job: the request, the first token, the last."""

    requested: float
    first: float
    last: float
    tokens: int

    @property
    def wait(self) -> float:
        return self.first - self.requested


# ── the contenders, each in a process of its own ──────────────────────────────────────────


class Ours:
    def __init__(self, path: Path, threads: int) -> None:
        from persona_lab.llama import Engine

        self.engine = Engine(path, context=CONTEXT, threads=threads)
        self.engine.model.is_end = lambda token: False  # type: ignore[method-assign]

    def together(self, prompts: Sequence[Tokens], count: int) -> list[Timing]:
        from persona_lab.llama import SamplerOptions, Step

        listeners = [_Listener() for _ in prompts]
        begun = time.perf_counter()
        for prompt, listener in zip(prompts, listeners, strict=True):

            def hear(news: Any, listener: _Listener = listener) -> None:
                if not isinstance(news, Step):
                    raise news
                if news.queue_position is None:
                    listener.token(news.completion_tokens, over=news.finish is not None)

            listener.requested = time.perf_counter()
            self.engine.submit(
                prompt, hear, max_tokens=count, options=SamplerOptions(temperature=0)
            )
        return [listener.timing(begun) for listener in listeners]

    def warm(self, tokens: Tokens) -> None:
        self.engine.prefill(tokens)
        while not self.engine.idle:
            time.sleep(0.005)

    def limit(self, prompts: Sequence[Tokens], count: int) -> float:
        """Tokens a second of llama.cpp's own batches, with nothing chosen and nobody told."""
        from persona_lab.llama.bindings import BatchEntry, Context

        context = Context(
            self.engine.model, cells=CONTEXT, sequences=32, batch=512, threads=processors()
        )
        try:
            for number, prompt in enumerate(prompts):
                context.decode(
                    [BatchEntry(token, at, number, False) for at, token in enumerate(prompt[:64])]
                )
            begun = time.perf_counter()
            for step in range(count):
                context.decode([BatchEntry(9, 64 + step, n, True) for n in range(len(prompts))])
            return count * len(prompts) / (time.perf_counter() - begun)
        finally:
            context.close()

    def resident(self) -> float:
        return _resident()


class LlamaClass:
    """One sequence: who comes while it answers waits."""

    def __init__(self, path: Path, threads: int) -> None:
        from llama_cpp import Llama

        self.llama = Llama(
            str(path), n_ctx=CONTEXT, n_threads=threads, n_threads_batch=threads, verbose=False
        )

    def together(self, prompts: Sequence[Tokens], count: int) -> list[Timing]:
        listeners = [_Listener() for _ in prompts]
        begun = time.perf_counter()
        for listener in listeners:
            listener.requested = begun
        for prompt, listener in zip(prompts, listeners, strict=True):
            for number, _ in enumerate(self.llama.generate(prompt, temp=0), 1):
                listener.token(number, over=number == count)
                if number == count:
                    break
        return [listener.timing(begun) for listener in listeners]


class Server:
    def __init__(self, path: Path, threads: int) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_parallel = COLUMNS
        params.n_ctx = COLUMNS * 2048
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.verbosity = -1
        self.server = xllamacpp.Server(params)

    def together(self, prompts: Sequence[Tokens], count: int) -> list[Timing]:
        listeners = [_Listener() for _ in prompts]
        begun = time.perf_counter()

        def ask(prompt: Tokens, listener: _Listener) -> None:
            listener.requested = time.perf_counter()
            heard = 0

            def hear(news: Any) -> None:
                nonlocal heard
                for piece in news if isinstance(news, list) else [news]:
                    choice = piece["choices"][0]
                    over = choice["finish_reason"] is not None
                    heard += not over
                    used = piece.get("usage") or {}
                    listener.token(used.get("completion_tokens", heard), over=over)

            self.server.handle_completions(
                {
                    "prompt": prompt,
                    "n_predict": count,
                    "stream": True,
                    "cache_prompt": True,
                    "temperature": 0,
                    "ignore_eos": True,
                },
                hear,
            )

        threads = [
            threading.Thread(target=ask, args=both) for both in zip(prompts, listeners, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [listener.timing(begun) for listener in listeners]


@dataclass
class _Listener:
    requested: float = 0
    first: float = 0
    last: float = 0
    tokens: int = 0
    over: threading.Event = field(default_factory=threading.Event)

    def token(self, count: int, *, over: bool) -> None:
        now = time.perf_counter()
        self.first = self.first or now
        self.last, self.tokens = now, count
        if over:
            self.over.set()

    def timing(self, begun: float) -> Timing:
        if not self.over.wait(600):
            raise TimeoutError("an answer took ten minutes")
        return Timing(self.requested - begun, self.first - begun, self.last - begun, self.tokens)


def _resident() -> float:
    """MB of this process's memory."""
    status = Path("/proc/self/status").read_text("ascii")
    return next(int(line.split()[1]) / 1000 for line in status.splitlines() if "VmRSS" in line)


def _serve(kind: str, path: Path, threads: int, pipe: Connection) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries are talkative
    os.dup2(2, 1)
    contender = {"ours": Ours, "llama": LlamaClass, "server": Server}[kind](path, threads)
    pipe.send(None)
    while (request := pipe.recv()) is not None:
        name, arguments = request
        pipe.send(getattr(contender, name)(*arguments))
    os._exit(0)


Ask = Callable[..., Any]


@contextmanager
def contender(kind: str, path: Path) -> Iterator[Ask]:
    """``ask("together", prompts, count)``: a method of the contender, in its process."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(kind, path, processors(), there), daemon=True)
    process.start()
    there.close()
    here.recv()

    def ask(name: str, *arguments: Any) -> Any:
        here.send((name, arguments))
        return here.recv()

    try:
        yield ask
    finally:
        here.send(None)
        process.join()


# ── what they are given ───────────────────────────────────────────────────────────────────


class Words:
    """Personas, messages and whole prompts of a model's tokens; none comes twice."""

    def __init__(self, path: Path, info: ModelInfo) -> None:
        self.model = Model(path, vocab_only=True)
        seeds = load_demos(ROOT / "data" / "personas.yaml")
        spoken = [seed for seed in seeds if seed["language"] == info.languages[0]]
        self.sentences = [
            sentence
            for seed in spoken
            for key in ("description", "background", "greeting")
            for sentence in seed[key].replace("。", "。\n").replace(". ", ".\n").splitlines()
        ]
        self.dice = random.Random(7)

    def persona(self, length: int) -> Tokens:
        text = [f"No. {self.dice.randrange(10**9)}"]
        tokens: Tokens = []
        while len(tokens) < length:
            text.append(self.dice.choice(self.sentences))
            tokens = self.model.tokenize("\n".join(text), bos=True)
        return tokens[:length]

    def message(self) -> Tokens:
        said = f"\nUser {self.dice.randrange(10**6)}: {self.dice.choice(self.sentences)}\nAI:"
        return self.model.tokenize(said)[:40]


# ── the jobs ──────────────────────────────────────────────────────────────────────────────


def alternating(ask: Ask, words: Words, length: int) -> float:
    """Seconds to the first token, chats of two personas in turn; both have been read before."""
    personas = [words.persona(length), words.persona(length)]
    waits = []
    for number in range(2 * ROUNDS + 2):
        prompt = personas[number % 2] + words.message()
        (timing,) = ask("together", [prompt], 8)
        if number >= 2:
            waits.append(timing.wait)
    return statistics.median(waits)


def columns(
    ask: Ask, words: Words, length: int, *, warmed: bool = False, count: int = 8
) -> list[list[Timing]]:
    """Eight columns that start together with a new persona, several times."""
    rounds = []
    for _ in range(3):
        persona = words.persona(length)
        if warmed:
            ask("warm", persona)
        rounds.append(ask("together", [persona + words.message() for _ in range(COLUMNS)], count))
    return rounds


def slowest(rounds: list[list[Timing]]) -> float:
    return statistics.median(max(timing.wait for timing in timings) for timings in rounds)


def job(rounds: list[list[Timing]]) -> float:
    """Tokens a second from the first request to the last token."""
    return statistics.median(
        sum(timing.tokens for timing in timings) / max(timing.last for timing in timings)
        for timings in rounds
    )


def rate(timings: Sequence[Timing]) -> float:
    """Tokens a second, once all of them write."""
    begun = max(timing.first for timing in timings)
    ended = max(timing.last for timing in timings)
    written = sum(
        (timing.tokens - 1) * (timing.last - begun) / (timing.last - timing.first)
        for timing in timings
    )
    return written / (ended - begun)


def one_column(ask: Ask, words: Words, length: int) -> float:
    persona = words.persona(length)
    ask("together", [persona + words.message()], 2)
    return statistics.median(
        rate(ask("together", [persona + words.message()], 2 * ANSWER)) for _ in range(ROUNDS)
    )


def long_chat(ask: Ask, words: Words, length: int) -> dict[int, float]:
    """Seconds to the first token of a turn; the conversation so far is sent each time."""
    chat, waits = words.persona(length), {}
    for turn in range(1, 32):
        chat = chat + words.message()
        (timing,) = ask("together", [chat], 24)
        waits[turn] = timing.wait
        chat = chat + words.message()[:24]  # what was answered, of the same length for all
    return {turn: statistics.median(waits[t] for t in (turn, turn + 1)) for turn in (2, 10, 30)}


def memory(ask: Ask, words: Words) -> tuple[float, float, float]:
    """MB at rest, with eight columns, and after 1,000 requests."""
    ask("together", [words.persona(100)], 4)
    rest = ask("resident")
    columns(ask, words, 300, count=ANSWER)
    busy = ask("resident")
    for _ in range(125):
        persona = words.persona(words.dice.randrange(20, 120))
        ask("together", [persona + words.message()[:12] for _ in range(COLUMNS)], 2)
    return rest, busy, ask("resident")


# ── the tables ────────────────────────────────────────────────────────────────────────────


def measure(lengths: Sequence[int] = LENGTHS) -> Measured:
    settings = load_settings()
    catalog = Catalog(settings.data_dir / "models.yaml")
    packaged = [m for m in catalog.models.values() if m.source.startswith("package:")]
    tables, missed = [], []
    for info in packaged:
        path = find_weights(info, settings)
        words = Words(path, info)
        for length in lengths:
            rows = _rows(path, words, length)
            tables.append(f"### {info.label}, persona of {length} tokens\n")
            tables.append(
                "| | ours | `Llama` class | server | ratio | goal |\n|---|---|---|---|---|---|"
            )
            for row in rows:
                tables.append(row.text)
                print(row.text, file=sys.stderr, flush=True)
                if row.missed:
                    missed.append(f"{info.name}, {length}: {row.missed}")
            tables.append("")
            print(f"{info.label}, {length} tokens: measured", file=sys.stderr, flush=True)
        tables.append(_memory_table(info, path, words, missed))
    return Measured("\n".join(tables), missed)


class Row(NamedTuple):
    text: str
    missed: str


def _row(
    name: str,
    ours: float,
    llama: float | None,
    server: float | None,
    unit: str,
    goals: dict[str, tuple[float, float]],
) -> Row:
    """``goals``: by contender, (the ratio, its bound); times must stay below, rates above."""
    shown = ["" if v is None else f"{v:.0f}" for v in (ours, llama, server)]
    sign, good = ("≤", float.__le__) if unit == "ms" else ("≥", float.__ge__)
    ratios = ", ".join(f"{ratio:.2f}" for ratio, _ in goals.values())
    bounds = ", ".join(f"{sign} {bound} × {who}" for who, (_, bound) in goals.items())
    wrong = [f"{name} {r:.2f} × {who}" for who, (r, b) in goals.items() if not good(r, b)]
    text = f"| {name}, {unit} | {' | '.join(shown)} | {ratios} | {bounds} |"
    return Row(text, "; ".join(wrong))


def _rows(path: Path, words: Words, length: int) -> list[Row]:
    with contender("ours", path) as ask:
        ours_turns = alternating(ask, words, length)
        ours_new = columns(ask, words, length)
        ours_warmed = slowest(columns(ask, words, length, warmed=True))
        ours_one = one_column(ask, words, length)
        ours_job = columns(ask, words, length, count=ANSWER)
        chat = long_chat(ask, words, min(length, 600))
        limit = ask("limit", [words.persona(80) for _ in range(COLUMNS)], ANSWER)
    with contender("llama", path) as ask:
        llama_turns = alternating(ask, words, length)
        llama_one = one_column(ask, words, length)
    with contender("server", path) as ask:
        server_turns = alternating(ask, words, length)
        server_new = columns(ask, words, length)
        server_one = one_column(ask, words, length)
        server_job = columns(ask, words, length, count=ANSWER)
    together = statistics.median(rate(timings) for timings in ours_job)
    first, tenth, last = chat.values()
    new, theirs = slowest(ours_new), slowest(server_new)
    return [
        _row(
            "first token, two personas in turn",
            1000 * ours_turns, 1000 * llama_turns, 1000 * server_turns, "ms",
            {
                "`Llama`": (ours_turns / llama_turns, 0.12),
                "server": (ours_turns / server_turns, 1.1),
            },
        ),
        _row(
            "slowest first token of 8 columns, new persona",
            1000 * new, None, 1000 * theirs, "ms", {"server": (new / theirs, 0.25)},
        ),
        _row(
            "the same, persona read ahead",
            1000 * ours_warmed, None, 1000 * theirs, "ms", {"server": (ours_warmed / theirs, 0.1)},
        ),
        _row("one column", ours_one, llama_one, server_one, "tokens/s",
             {"`Llama`": (ours_one / llama_one, 0.97)}),
        _row("8 columns writing", together, None,
             statistics.median(rate(timings) for timings in server_job), "tokens/s",
             {"one column": (together / ours_one, 1.5)}),
        _row(f"8 columns, first request to last token (batch limit {limit:.0f})",
             job(ours_job), None, job(server_job), "tokens/s",
             {"server": (job(ours_job) / job(server_job), 1.0)}),
        _row(f"first token at turn 30 (turn 2: {1000 * first:.0f}, 10: {1000 * tenth:.0f})",
             1000 * last, None, None, "ms", {"turn 2": (last / first, 1.5)}),
    ]  # fmt: skip


def _memory_table(info: ModelInfo, path: Path, words: Words, missed: list[str]) -> str:
    with contender("ours", path) as ask:
        rest, busy, after = memory(ask, words)
    weights = path.stat().st_size / 1e6
    for name, bad in (
        (f"memory beyond the weights {max(busy, after) - weights:.0f} MB > 600",
         max(busy, after) - weights > 600),
        (f"memory grew by {after - busy:.0f} MB over 1,000 requests", after - busy > 30),
    ):  # fmt: skip
        if bad:
            missed.append(f"{info.name}: {name}")
    return (
        f"Memory of {info.label} ({weights:.0f} MB of weights): at rest {rest:.0f} MB, with 8"
        f" columns {busy:.0f} MB, after 1,000 requests {after:.0f} MB.\n"
    )


if __name__ == "__main__":
    measured = measure()
    print(measured.tables)
    if measured.missed:
        print(f"Goals missed: {'; '.join(measured.missed)}", file=sys.stderr)
    sys.exit(bool(measured.missed))
