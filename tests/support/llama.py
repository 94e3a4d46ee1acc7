"""Helpers for tests of the local engine, and a KV cache without memory of llama.cpp."""

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
from support.app_process import skip_if_missing

GREEDY = SamplerOptions(temperature=0)


class GenerationListener:
    """Collects the steps of a generation."""

    def __init__(self) -> None:
        self.steps: queue.SimpleQueue[Step | Exception] = queue.SimpleQueue()
        self.pieces: list[str] = []
        self.queue_positions: list[int] = []
        self.generation: Generation | None = None

    def wait(self) -> Step:
        while True:
            step = self.steps.get(timeout=60)
            if isinstance(step, Exception):
                raise step
            self.pieces.append(step.text)
            if step.queue_position is not None:
                self.queue_positions.append(step.queue_position)
            if step.finish:
                return step

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def tokens(self) -> list[int]:
        assert self.generation is not None
        return self.generation.tokens[self.generation.prompt_tokens :]


def submit(engine: Engine, prompt: list[int], **options: object) -> GenerationListener:
    answer = GenerationListener()
    options = {"options": GREEDY, "max_tokens": 24} | options
    answer.generation = engine.submit(prompt, answer.steps.put, **options)  # type: ignore[arg-type]
    return answer


@contextlib.contextmanager
def pause_worker(engine: Engine, tokens: int = 1) -> Iterator[None]:
    """Pause the worker of the engine during an answer of ``tokens``, until the block ends.

    Requests that are submitted meanwhile are scheduled together.
    """
    paused, resume = threading.Event(), threading.Event()

    def wait(_: object) -> None:
        paused.set()
        assert resume.wait(60)

    engine.submit(engine.model.tokenize("wait"), wait, max_tokens=tokens, options=GREEDY)
    assert paused.wait(60)
    try:
        yield
    finally:
        resume.set()


def tokenize(engine: Engine, text: str) -> list[int]:
    return engine.model.tokenize(text, bos=True)


def reusable_length(tokens: Sequence[int]) -> int:
    """Return how many of ``tokens`` another sequence that begins with them can reuse."""
    return prefillable_length(len(tokens))


def cached_length(engine: Engine, tokens: Sequence[int]) -> int:
    """Return how many of ``tokens`` are cached for a request that begins with them."""
    return engine.cache.find_prefix([*tokens, *[-1] * MIN_CHUNK])[1]


PACKAGED_MODELS = ("gemma-3-270m", "smollm2-135m-instruct")


def find_packaged_weights(name: str) -> Path:
    info = Catalog(ROOT / "data" / "models.yaml").find(f"local:{name}")
    if importlib.util.find_spec(info.source.removeprefix("package:")) is None:
        skip_if_missing(info.source)
    return find_weights(info, Settings())


class FakeKVMemory:
    """KV memory without llama.cpp: it stores the tokens of each sequence instead of cells."""

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


PAGE_BYTES = 1024 + BLOCK_TOKENS
"""Bytes of a page of the prefix cache, at one byte a token."""


class FakeKVCache(KVCache):
    """A KV cache over :class:`FakeKVMemory`, with a prefix cache of ``pages`` pages."""

    def __init__(self, pages: int = 0, *, divisible: bool = True) -> None:
        self.memory = FakeKVMemory()
        super().__init__(
            self.memory, 6, prefix_cache_bytes=pages * PAGE_BYTES, partial_reuse=divisible
        )

    def append_read(self, sequence: Any, tokens: list[int], **options: bool) -> None:
        self.memory.read.setdefault(sequence.number, []).extend(tokens)
        self.append(sequence, tokens, **options)

    def serve(self, tokens: list[int]) -> int:
        """Serve a request of ``tokens``, and return how many of them were cached."""
        sequence = self.acquire(tokens)
        known = len(sequence.tokens)
        self.append_read(sequence, tokens[known:], bit_exact=True)
        assert self.memory.read[sequence.number] == sequence.tokens == tokens
        self.retain(sequence)
        return known
