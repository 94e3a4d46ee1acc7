"""Requests to an engine, and what tests ask of its answers."""

from __future__ import annotations

import contextlib
import importlib.util
import queue
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from persona_lab.clients.catalog import Catalog
from persona_lab.clients.weights import find_weights
from persona_lab.llama import (
    Engine,
    Generation,
    SamplerOptions,
    Step,
)
from persona_lab.llama.kv_cache import (
    MIN_CHUNK,
    KVCache,
    prefillable_length,
)
from persona_lab.llama.prefix_cache import BLOCK_TOKENS
from persona_lab.settings import ROOT, Settings
from support import tiny_gguf as tiny_gguf
from support.app_process import missing

GREEDY = SamplerOptions(temperature=0)


class Answer:
    """Listens to a generation until it is over."""

    def __init__(self) -> None:
        self.news: queue.SimpleQueue[Step | Exception] = queue.SimpleQueue()
        self.pieces: list[str] = []
        self.ahead: list[int] = []
        self.generation: Generation | None = None

    def wait(self) -> Step:
        while True:
            news = self.news.get(timeout=60)
            if isinstance(news, Exception):
                raise news
            self.pieces.append(news.text)
            if news.queue_position is not None:
                self.ahead.append(news.queue_position)
            if news.finish:
                return news

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def tokens(self) -> list[int]:
        assert self.generation is not None
        return self.generation.tokens[self.generation.prompt_tokens :]


def ask(engine: Engine, prompt: list[int], **options: object) -> Answer:
    answer = Answer()
    options = {"options": GREEDY, "max_tokens": 24} | options
    answer.generation = engine.submit(prompt, answer.news.put, **options)  # type: ignore[arg-type]
    return answer


@contextlib.contextmanager
def held_up(engine: Engine, tokens: int = 1) -> Iterator[None]:
    """The worker waits inside while it writes an answer of ``tokens``, and then goes on with it.

    What is asked for meanwhile arrives together.
    """
    there, go = threading.Event(), threading.Event()

    def wait(_: object) -> None:
        there.set()
        assert go.wait(60)

    engine.submit(engine.model.tokenize("wait"), wait, max_tokens=tokens, options=GREEDY)
    assert there.wait(60)
    try:
        yield
    finally:
        go.set()


def prompt(engine: Engine, text: str) -> list[int]:
    return engine.model.tokenize(text, bos=True)


def whole(tokens: Sequence[int]) -> int:
    """How many of ``tokens`` can be taken over by what begins with them."""
    return prefillable_length(len(tokens))


def known(engine: Engine, tokens: Sequence[int]) -> int:
    """How many of ``tokens`` a request that begins with them needn't read."""
    return engine.cache.find_prefix([*tokens, *[-1] * MIN_CHUNK])[1]


PACKAGED = ("gemma-3-270m", "smollm2-135m-instruct")


def packaged(name: str) -> Path:
    info = Catalog(ROOT / "data" / "models.yaml").find(f"local:{name}")
    if importlib.util.find_spec(info.source.removeprefix("package:")) is None:
        missing(info.source)
    return find_weights(info, Settings())


class Paper:
    """Cells that only exist on paper: what each sequence has read, an entry for each token."""

    cells = 400

    def __init__(self) -> None:
        self.read: dict[int, list[int]] = {}

    def copy(self, source: int, target: int, length: int) -> None:
        self.read[target] = self.read[source][:length]

    def truncate(self, sequence: int, length: int = 0) -> bool:
        self.read[sequence] = self.read.get(sequence, [])[:length]
        return True

    def clear(self) -> None:
        self.read.clear()

    def rewind(self) -> None:
        assert not any(self.read.values())

    def intact(self, sequence: int, length: int) -> bool:
        return True

    def save(self, sequence: int, begin: int, end: int, into: memoryview) -> int:
        data = bytes(self.read[sequence][begin:end])
        if len(data) > len(into):
            return 0
        into[: len(data)] = data
        return len(data)

    def load(self, sequence: int, begin: int, end: int, data: memoryview) -> bool:
        assert len(self.read.setdefault(sequence, [])) == begin
        self.read[sequence] += list(data)
        return True


PAGES = 1024 + BLOCK_TOKENS
"""Bytes that a page takes, where a token's are one."""


class Books(KVCache):
    """The books of cells on paper, and a shelf of so many pages."""

    def __init__(self, pages: int = 0, *, divisible: bool = True) -> None:
        self.paper = Paper()
        super().__init__(self.paper, 6, prefix_cache_bytes=pages * PAGES, partial_reuse=divisible)

    def reads(self, sequence: Any, tokens: list[int], **how: bool) -> None:
        self.paper.read.setdefault(sequence.number, []).extend(tokens)
        self.append(sequence, tokens, **how)

    def serve(self, tokens: list[int]) -> int:
        """Somebody comes with ``tokens``, reads what isn't known, and goes; how many were known."""
        sequence = self.acquire(tokens)
        known = len(sequence.tokens)
        self.reads(sequence, tokens[known:], bit_exact=True)
        assert self.paper.read[sequence.number] == sequence.tokens == tokens
        self.retain(sequence)
        return known
