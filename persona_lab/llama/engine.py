"""The worker: takes requests, advances all of them together, a step at a time."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from persona_lab.errors import BadRequest, ContextTooLong, Overloaded, ProviderError
from persona_lab.llama import kv_cache
from persona_lab.llama.bindings import (
    BatchEntry,
    Context,
    Model,
    Progress,
    Sampler,
    SamplerOptions,
    model_closed,
    model_unavailable,
)
from persona_lab.llama.kv_cache import (
    BATCH_TOKENS,
    MIN_CHUNK,
    KVCache,
    next_chunk_size,
    prefillable_length,
)
from persona_lab.llama.prefix_cache import common_prefix_length
from persona_lab.llama.stream_decoder import StreamDecoder

log = logging.getLogger(__name__)

MAX_RUNNING = 16
"""Answers that are written at a time; further ones wait."""
SEQUENCES = MAX_RUNNING + 1
"""There is always one for who begins."""
MAX_QUEUED = 64
"""Requests that may wait; further ones are refused."""
PREFILL_CHUNK = 64
"""Tokens of prompts in a step in which somebody's answer is being written: 0.1 s of a stall."""
UNKNOWN_CACHE_BYTES = 64_000_000
"""Bytes that a context's cells may take where the file's header doesn't say."""
RESERVED_CELLS = 64
"""Cells that must be free for an answer before it is begun."""
MIN_SHARED_TOKENS = 32
"""Tokens that a neighbour is about to read which make it worth waiting for."""


@dataclass(frozen=True, slots=True)
class Step:
    """News of an answer; the last has ``finish``. ``cached_tokens`` weren't read anew.

    ``ahead``: requests that come first, while it waits for its turn."""

    text: str = ""
    queue_position: int | None = None
    finish: Literal["stop", "length"] | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


Listener = Callable[[Step | Exception], None]
"""Receives the steps of one answer, or the exception that ended it, which may be anybody's.

Called on the worker's thread: hand the value over and return. A listener that raises, as one with
a closed event loop does, cancels its answer."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What an engine is doing and has done, at a moment. Cells and tokens, ``seconds`` of writing.

    ``waiting``: answers that wait to be begun. ``reused_tokens`` of the ``prompt_tokens`` had been
    read before; ``paced_tokens`` are those ``written_tokens`` that came in ``seconds`` (the first
    of an answer comes with the end of reading)."""

    name: str
    cells: int
    cells_used: int
    live: int
    waiting: int
    prompt_tokens: int = 0
    reused_tokens: int = 0
    written_tokens: int = 0
    paced_tokens: int = 0
    seconds: float = 0.0

    @property
    def reuse_ratio(self) -> float:
        """Share of the prompts that needn't be read; 0 before the first."""
        return self.reused_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Tokens a second, of all answers together, while any was being written."""
        return self.paced_tokens / self.seconds if self.seconds else 0.0

    def __add__(self, other: EngineStats) -> EngineStats:
        sums = {
            field.name: getattr(self, field.name) + getattr(other, field.name)
            for field in fields(self)
            if field.name != "name"
        }
        return EngineStats(self.name, **sums)


class Generation:
    """An answer asked for. ``tokens`` are the prompt's and then, as it grows, the answer's."""

    def __init__(
        self,
        tokens: Sequence[int],
        *,
        max_tokens: int,
        sampler: Sampler,
        text: StreamDecoder,
        listener: Listener,
    ) -> None:
        self.tokens = list(tokens)
        self.prompt_tokens = len(tokens)
        self.cached_tokens: int | None = None
        self.max_tokens = max_tokens
        self.sampler = sampler
        self.text = text
        self.listener = listener
        self.queue_position = 0
        self.cancelled = False

    def cancel(self) -> None:
        """Stop before the next step. From any thread; harmless when the answer is over."""
        self.cancelled = True

    @property
    def completion_tokens(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    def pending_tokens(self, sequence: kv_cache.Sequence) -> list[int]:
        """What ``sequence`` hasn't read yet: one token while the answer is being written."""
        return self.tokens[len(sequence.tokens) :]

    def cells_needed(self, cached: int) -> int:
        """Cells that it will soon need, with ``read`` tokens in the context already."""
        coming = min(RESERVED_CELLS, self.max_tokens - self.completion_tokens)
        return len(self.tokens) - cached + coming


class Engine:
    """One model, one context, one thread."""

    def __init__(
        self,
        path: Path,
        *,
        context: int,
        threads: int,
        flash: bool = False,
        name: str = "",
        progress: Progress | None = None,
        claim: Callable[[int], None] = lambda _: None,
    ) -> None:
        """``context``: tokens of memory, shared by all answers; the shelf has room for as many.
        ``flash``: flash attention. Loads the model.

        ``claim`` hears how many bytes context and shelf will take, before they are taken, and
        may raise. Raises ModelUnavailable.
        """
        self.name = name or path.stem
        self.model = Model(path, progress=progress)
        cells = context * self.model.cell_bytes or UNKNOWN_CACHE_BYTES
        try:
            claim(2 * cells)
            self._context = Context(
                self.model,
                cells=context,
                sequences=SEQUENCES,
                batch=BATCH_TOKENS,
                threads=threads,
                flash=flash,
            )
            try:
                self.cache = KVCache(
                    self._context,
                    SEQUENCES,
                    prefix_cache_bytes=cells,
                    partial_reuse=not self.model.recurrent,
                )
            except MemoryError:
                self._context.close()
                raise model_unavailable(path, "no_memory", "not enough memory") from None
        except ProviderError:
            self.model.close()
            raise
        self.context_limit = min(
            self._context.cells, self.model.trained_context or self._context.cells
        )
        """Most tokens of one prompt with its answer."""
        self._running: dict[Generation, kv_cache.Sequence] = {}
        self._waiting: list[Generation] = []
        self._prefill_queue: list[list[int]] = []
        """Beginnings to be read while nobody wants an answer, the newest last: it comes first."""
        self._inbox: queue.SimpleQueue[Generation | list[int] | None] = queue.SimpleQueue()
        self._threads = self._threads_used = threads
        self._closed = False
        self._submit_lock = threading.Lock()
        """What is put in while it is held is seen by the worker, at its end too."""
        self._submitted = self._received = self._completed = 0
        """News put into the inbox, taken out of it, and taken when nothing was left to do."""
        self._prompt_tokens = self._reused_tokens = self._written_tokens = self._paced_tokens = 0
        self._writing_seconds = 0.0
        self.last_used = time.monotonic()
        """When it was last asked for something."""
        self.unloaded = False
        """Closed to make room: it may be opened again."""
        self._thread = threading.Thread(target=self._run, name=f"llama-{self.name}", daemon=True)
        self._thread.start()

    def submit(
        self,
        tokens: Sequence[int],
        listener: Listener,
        *,
        max_tokens: int = 256,
        options: SamplerOptions | None = None,
        stop: Sequence[str] = (),
    ) -> Generation:
        """Ask for what follows ``tokens``; ``listener`` hears of it. From any thread.

        Raises ContextTooLong, BadRequest when there are no tokens, Overloaded when too many
        wait, ModelUnavailable when closed.
        """
        if not tokens:
            raise BadRequest("an empty prompt", provider="local", model=self.name)
        if len(tokens) >= self.context_limit:
            raise ContextTooLong(
                provider="local", model=self.name, tokens=len(tokens), limit=self.context_limit - 1
            )
        with self.model.in_use():
            sampler = Sampler(self.model, options or SamplerOptions())
        generation = Generation(
            tokens,
            max_tokens=min(max_tokens, self.context_limit - len(tokens)),
            sampler=sampler,
            text=StreamDecoder(stop),
            listener=listener,
        )
        try:
            with self._submit_lock:
                if self._closed:
                    raise model_closed(self.model.path)
                if self._inbox.qsize() + len(self._waiting) >= MAX_QUEUED:
                    raise Overloaded(provider="local", model=self.name)
                self._enqueue(generation)
        except ProviderError:
            sampler.close()
            raise
        return generation

    def prefill(self, tokens: Sequence[int]) -> None:
        """Read ``tokens`` while nobody wants an answer, and pin them. From any thread.

        A request never waits for this longer than for one step of :data:`PIECE` tokens, and
        takes over what was read by then. Raises ContextTooLong, ModelUnavailable when closed.
        """
        if len(tokens) >= self.context_limit:
            raise ContextTooLong(
                provider="local", model=self.name, tokens=len(tokens), limit=self.context_limit - 1
            )
        with self._submit_lock:
            if self._closed:
                raise model_closed(self.model.path)
            self._enqueue(list(tokens))

    def _enqueue(self, news: Generation | list[int]) -> None:
        """Called with the door held."""
        self._submitted += 1
        self.last_used = time.monotonic()
        self._inbox.put(news)

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn. From any thread."""
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        """Whether all that was asked for until now is done. From any thread."""
        return self._completed == self._submitted

    @property
    def stats(self) -> EngineStats:
        """What it is doing and has done. From any thread; nobody waits for anybody."""
        return EngineStats(
            name=self.name,
            cells=self._context.cells,
            cells_used=self.cache.cells_used,
            live=len(self._running),
            waiting=len(self._waiting) + self._inbox.qsize(),
            prompt_tokens=self._prompt_tokens,
            reused_tokens=self._reused_tokens,
            written_tokens=self._written_tokens,
            paced_tokens=self._paced_tokens,
            seconds=self._writing_seconds,
        )

    def close(self) -> None:
        """End what is being written, stop the thread, give the memory back. From any thread."""
        with self._submit_lock:
            self._closed = True
            self._inbox.put(None)
        self._thread.join()

    def unload(self) -> bool:
        """Close it if it has nothing to do; False if it has. From any thread."""
        with self._submit_lock:
            if self._closed or not self.idle:
                return False
            self._closed = self.unloaded = True
            self._inbox.put(None)
        self._thread.join()
        return True

    # ── on the worker's thread ────────────────────────────────────────────────────────────

    def _run(self) -> None:
        while not self._closed:
            try:
                self._drain_inbox()
                self._drop_cancelled()
                self._admit()
                if self._running:
                    self._step()
                elif self._prefill_queue:
                    self._prefill_step()
            except Exception as wrong:  # the worker outlives whatever befalls a request
                log.exception("a step of %s failed", self.name)
                self._fail(list(self._running), wrong)
                self._prefill_queue.clear()
                self.cache.clear()
        _busy_engines.discard(self)
        while not self._inbox.empty():
            late = self._inbox.get()
            if isinstance(late, Generation):
                self._waiting.append(late)
        try:
            self._fail([*self._running, *self._waiting], model_closed(self.model.path))
        finally:
            self._context.close()
            self.model.close()

    def _drain_inbox(self) -> None:
        """Take in what was submitted; sleep while there is nothing to do."""
        while True:
            busy = bool(self._running or self._waiting or self._prefill_queue)
            if not busy:
                self.cache.save_idle()
                _busy_engines.discard(self)
                self._completed = self._received
            try:
                news = self._inbox.get(block=not busy)
            except queue.Empty:
                break
            if news is None:
                return
            self._received += 1
            if isinstance(news, Generation):
                self._waiting.append(news)
            else:
                self.cache.pin(news)
                self._prefill_queue = [*self._prefill_queue, news][-kv_cache.MAX_PINS :]
        self._share_threads()

    def _share_threads(self) -> None:
        """Engines that work at the same time divide the threads: more of them than processors
        would wait for one another."""
        _busy_engines.add(self)
        threads = max(1, self._threads // len(_busy_engines))
        if threads != self._threads_used:
            self._context.use_threads(threads)
            self._threads_used = threads

    def _drop_cancelled(self) -> None:
        for generation in [g for g in [*self._running, *self._waiting] if g.cancelled]:
            self._finish(generation)

    def _admit(self) -> None:
        """Begin what fits, first come first served; who can share soon waits for it."""
        self._start_waiting()
        for ahead, generation in enumerate(self._waiting, 1):
            if generation.queue_position != ahead:
                generation.queue_position = ahead
                self._notify(generation, Step(queue_position=ahead))

    def _start_waiting(self) -> None:
        for generation in list(self._waiting):
            if len(self._running) == MAX_RUNNING:
                return
            source, known = self.cache.find_prefix(generation.tokens)
            reading = (
                g for g, sequence in self._running.items() if len(g.pending_tokens(sequence)) > 1
            )
            soon = max(
                (common_prefix_length(g.tokens, generation.tokens) for g in reading), default=0
            )
            if self.cache.partial_reuse and soon - known >= MIN_SHARED_TOKENS:
                continue
            wanted = sum(g.cells_needed(len(s.tokens)) for g, s in self._running.items())
            wanted += generation.cells_needed(known if source in self._running.values() else 0)
            if self._running and not self.cache.ensure_free(wanted):
                return
            try:
                sequence = self.cache.acquire(generation.tokens)
            except Exception as wrong:
                self._fail([generation], wrong)  # it would be tried again and again
                raise
            if generation.cached_tokens is None:
                generation.cached_tokens = len(sequence.tokens)
                self._prompt_tokens += generation.prompt_tokens
                self._reused_tokens += generation.cached_tokens
            self._waiting.remove(generation)
            self._running[generation] = sequence

    def _step(self) -> None:
        """One decode: a token for everyone who is writing, a piece for those who still read."""
        began, written = time.perf_counter(), self._written_tokens
        unread = {g: g.pending_tokens(sequence) for g, sequence in self._running.items()}
        writing = sum(1 for tokens in unread.values() if len(tokens) == 1)
        room = writing + PREFILL_CHUNK if writing else BATCH_TOKENS
        batch: list[BatchEntry] = []
        pieces: list[tuple[Generation, list[int]]] = []
        complete: list[tuple[Generation, int]] = []
        for generation in sorted(unread, key=lambda g: len(unread[g]) > 1):
            sequence = self._running[generation]
            begun, tokens = len(sequence.tokens), unread[generation]
            size = 1
            if len(tokens) > 1:
                size = next_chunk_size(begun, len(generation.tokens), room - len(batch))
            whole = size == len(tokens)
            for number, token in enumerate(tokens[:size], 1):
                wanted = whole and number == size
                batch.append(BatchEntry(token, begun + number - 1, sequence.number, wanted))
            pieces.append((generation, tokens[:size]))
            if whole:
                complete.append((generation, len(batch) - 1))
        if not self.cache.ensure_free(len(batch)):
            self._requeue(next(reversed(self._running)))
            return
        self._context.decode(batch)
        for generation, tokens in pieces:
            alone = len(pieces) == 1 and not writing
            self.cache.append(self._running[generation], tokens, bit_exact=alone)
        for generation, index in complete:
            try:
                self._sample_token(generation, index)
            except ProviderError as wrong:  # nobody else's fault
                self._fail([generation], wrong)
        if writing:
            self._paced_tokens += self._written_tokens - written
            self._writing_seconds += time.perf_counter() - began

    def _prefill_step(self) -> None:
        """A piece of what was asked for last. It is held in between, for whoever comes."""
        tokens = self._prefill_queue[-1][: prefillable_length(len(self._prefill_queue[-1]))]
        beyond = [*tokens, *[-1] * MIN_CHUNK]  # as much of a request as this can be of use to
        known = self.cache.find_prefix(beyond)[1]
        if known == len(tokens):
            self._prefill_queue.pop()
            return
        sequence = self.cache.acquire(beyond)
        begun = len(sequence.tokens)
        following = tokens[begun : begun + next_chunk_size(begun, len(tokens), PREFILL_CHUNK)]
        try:
            if not self.cache.ensure_free(len(following)):
                self._prefill_queue.pop()
                return
            entries = enumerate(following, begun)
            self._context.decode([BatchEntry(t, at, sequence.number, False) for at, t in entries])
            self.cache.append(sequence, following, bit_exact=True)
        finally:
            self.cache.retain(sequence)
        if self.cache.find_prefix(beyond)[1] <= known:  # it can't be kept
            self._prefill_queue.pop()

    def _sample_token(self, generation: Generation, index: int) -> None:
        """Choose the next token and tell what it makes readable."""
        token = generation.sampler.sample(self._context, index)
        finish: Literal["stop", "length"] | None = None
        if self.model.is_end(token):
            finish, text = "stop", generation.text.feed(b"", final=True)
        else:
            generation.tokens.append(token)
            self._written_tokens += 1
            full = generation.completion_tokens >= generation.max_tokens
            text = generation.text.feed(self.model.token_bytes(token), final=full)
            if generation.text.stopped:
                finish = "stop"
            elif full:
                finish = "length"
        if finish or text:
            self._notify(
                generation,
                Step(
                    text,
                    finish=finish,
                    prompt_tokens=generation.prompt_tokens,
                    cached_tokens=generation.cached_tokens or 0,
                    completion_tokens=generation.completion_tokens,
                ),
            )
        if finish:
            self._finish(generation)

    def _requeue(self, generation: Generation) -> None:
        """Let the youngest wait again, with all it has written, until there are cells for it."""
        self.cache.retain(self._running.pop(generation), generation.prompt_tokens)
        generation.queue_position = 0  # it is told anew
        self._waiting.insert(0, generation)

    def _finish(self, generation: Generation) -> None:
        if generation in self._running:
            # What it wrote was read a token at a time, which isn't how a prompt is read.
            self.cache.retain(self._running.pop(generation), generation.prompt_tokens)
        else:
            self._waiting.remove(generation)
        generation.sampler.close()

    def _fail(self, generations: list[Generation], wrong: Exception) -> None:
        for generation in generations:
            self._finish(generation)
            self._notify(generation, wrong)

    def _notify(self, generation: Generation, news: Step | Exception) -> None:
        if generation.cancelled:
            return
        try:
            generation.listener(news)
        except Exception as wrong:  # noqa: BLE001 - whoever listens must not end the worker
            log.info("nobody listens any more: %r", wrong)
            generation.cancel()


_busy_engines: set[Engine] = set()
"""Engines that are computing. Threads take from it and put into it what is theirs only."""
