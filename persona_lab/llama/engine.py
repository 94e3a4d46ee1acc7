"""The worker: accepts requests and advances all of them together, one step at a time."""

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
    model_closed,
    model_unavailable,
)
from persona_lab.llama.generation import Generation, Listener, Step
from persona_lab.llama.kv_cache import (
    BATCH_TOKENS,
    MIN_CHUNK,
    KVCache,
    next_chunk_size,
    prefillable_length,
)
from persona_lab.llama.prefix_cache import common_prefix_length
from persona_lab.llama.sampling import Sampler, SamplerOptions
from persona_lab.llama.stream_decoder import StreamDecoder

log = logging.getLogger(__name__)

MAX_RUNNING = 16
"""Answers that are generated at the same time; further requests wait."""
SEQUENCES = MAX_RUNNING + 1
"""One more than can run, so that a new answer always finds an idle one."""
MAX_QUEUED = 64
"""Requests that may wait; further ones are refused."""
PREFILL_CHUNK = 64
"""Prompt tokens per step while any answer is being written: a delay of about 0.1 s."""
UNKNOWN_CACHE_BYTES = 64_000_000
"""Bytes to assume for a context's cells if the file's header doesn't give their size."""
MIN_SHARED_TOKENS = 32
"""A request waits for another's prompt if it can reuse at least as many more tokens of it."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What an engine does and has done, at one moment.

    Attributes:
        name: The model's name.
        cells: Cells of the context, one for each token.
        cells_used: Those in use.
        live: Answers that are being generated.
        waiting: Requests in the queue.
        prompt_tokens: Tokens of all prompts.
        reused_tokens: Those of them that were reused from the cache.
        written_tokens: Tokens of all answers.
        paced_tokens: Those of them that were written within ``seconds``. The first token of an
            answer comes with the end of its prompt and doesn't count.
        seconds: Time in which at least one answer was written.
    """

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
        """Share of the prompts' tokens that were reused; 0 before the first prompt."""
        return self.reused_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of all answers together, while any was being written."""
        return self.paced_tokens / self.seconds if self.seconds else 0.0

    def __add__(self, other: EngineStats) -> EngineStats:
        sums = {
            field.name: getattr(self, field.name) + getattr(other, field.name)
            for field in fields(self)
            if field.name != "name"
        }
        return EngineStats(self.name, **sums)


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
        """Load the model and start the thread.

        Args:
            path: A GGUF file.
            context: Tokens that all running answers share. The prefix cache has the same size.
            threads: Threads to compute with.
            flash: Use flash attention where the model has it.
            name: Its name in errors and statistics; the file's name if empty.
            progress: Receives the share that is loaded.
            claim: Receives the bytes of context and prefix cache before they are allocated. It
                may raise.

        Raises:
            ModelUnavailable: The file can't be loaded, or memory is short.
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
        """Largest number of tokens of one prompt with its answer."""
        self._running: dict[Generation, kv_cache.Sequence] = {}
        self._waiting: list[Generation] = []
        self._prefill_queue: list[list[int]] = []
        """Prefixes to evaluate while no request runs; the last one comes first."""
        self._inbox: queue.SimpleQueue[Generation | list[int] | None] = queue.SimpleQueue()
        self._threads = self._threads_used = threads
        self._closed = False
        self._submit_lock = threading.Lock()
        """The worker sees every item that is enqueued under it, also when it stops."""
        self._submitted = self._received = self._completed = 0
        """Items enqueued, items received, and items received when it last was idle."""
        self._prompt_tokens = self._reused_tokens = self._written_tokens = self._paced_tokens = 0
        self._writing_seconds = 0.0
        self.last_used = time.monotonic()
        """Time of the last request, on the monotonic clock."""
        self.unloaded = False
        """Whether it was closed to free its memory. Its owners may open it again."""
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
        """Request a continuation of ``tokens``. Thread-safe.

        Args:
            tokens: The prompt.
            listener: Receives the steps of the answer.
            max_tokens: Longest answer, in tokens.
            options: Sampling options.
            stop: Strings that end the answer and aren't part of it.

        Raises:
            BadRequest: The prompt is empty, or the grammar isn't valid.
            ContextTooLong: The prompt doesn't fit into the context.
            Overloaded: Too many requests wait.
            ModelUnavailable: The engine is closed.
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
        """Evaluate ``tokens`` while no request runs, and pin them. Thread-safe.

        A request waits for at most one step of :data:`PREFILL_CHUNK` tokens, and reuses what was
        evaluated by then.

        Raises:
            ContextTooLong: They don't fit into the context.
            ModelUnavailable: The engine is closed.
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
        """Hand ``news`` to the worker. The caller holds the submit lock."""
        self._submitted += 1
        self.last_used = time.monotonic()
        self._inbox.put(news)

    @property
    def waiting(self) -> int:
        """Number of requests in the queue. Thread-safe."""
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        """Whether every request until now is complete. Thread-safe."""
        return self._completed == self._submitted

    @property
    def stats(self) -> EngineStats:
        """Statistics of this moment. Thread-safe and without locks."""
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
        """End all answers, stop the thread and free the memory. Thread-safe."""
        with self._submit_lock:
            self._closed = True
            self._inbox.put(None)
        self._thread.join()

    def unload(self) -> bool:
        """Close it if it is idle; return whether it was. Thread-safe."""
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
            except Exception as error:  # the worker must survive any error of a request
                log.exception("a step of %s failed", self.name)
                self._fail(list(self._running), error)
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
        """Receive what was submitted; sleep while there is nothing to do."""
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
        """Divide the threads among the busy engines.

        More threads than processors would wait for one another.
        """
        _busy_engines.add(self)
        threads = max(1, self._threads // len(_busy_engines))
        if threads != self._threads_used:
            self._context.use_threads(threads)
            self._threads_used = threads

    def _drop_cancelled(self) -> None:
        for generation in [g for g in [*self._running, *self._waiting] if g.cancelled]:
            self._finish(generation)

    def _admit(self) -> None:
        """Start requests in their order, and tell the others their place in the queue."""
        self._start_waiting()
        for position, generation in enumerate(self._waiting, 1):
            if generation.queue_position != position:
                generation.queue_position = position
                self._notify(generation, Step(queue_position=position))

    def _start_waiting(self) -> None:
        """Start what fits. A request waits for a running prompt that it can reuse."""
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
            except Exception as error:
                self._fail([generation], error)  # or it would be tried for ever
                raise
            if generation.cached_tokens is None:
                generation.cached_tokens = len(sequence.tokens)
                self._prompt_tokens += generation.prompt_tokens
                self._reused_tokens += generation.cached_tokens
            self._waiting.remove(generation)
            self._running[generation] = sequence

    def _step(self) -> None:
        """Decode one batch: a token of each answer, and a chunk of each unfinished prompt."""
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
            except ProviderError as error:  # only this request is at fault
                self._fail([generation], error)
        if writing:
            self._paced_tokens += self._written_tokens - written
            self._writing_seconds += time.perf_counter() - began

    def _prefill_step(self) -> None:
        """Evaluate a chunk of the newest queued prefix, and keep it reusable in between."""
        tokens = self._prefill_queue[-1][: prefillable_length(len(self._prefill_queue[-1]))]
        beyond = [*tokens, *[-1] * MIN_CHUNK]  # the shortest request that can reuse all of them
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
        if self.cache.find_prefix(beyond)[1] <= known:  # there is no room to keep it
            self._prefill_queue.pop()

    def _sample_token(self, generation: Generation, index: int) -> None:
        """Choose the next token, and notify the listener of complete text."""
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
        """Queue a running answer again, with its text so far, until cells are free."""
        self.cache.retain(self._running.pop(generation), generation.prompt_tokens)
        generation.queue_position = 0  # the next position is sent
        self._waiting.insert(0, generation)

    def _finish(self, generation: Generation) -> None:
        if generation in self._running:
            # Its answer was evaluated one token at a time, so only its prompt is bit-exact.
            self.cache.retain(self._running.pop(generation), generation.prompt_tokens)
        else:
            self._waiting.remove(generation)
        generation.sampler.close()

    def _fail(self, generations: list[Generation], error: Exception) -> None:
        for generation in generations:
            self._finish(generation)
            self._notify(generation, error)

    def _notify(self, generation: Generation, news: Step | Exception) -> None:
        if generation.cancelled:
            return
        try:
            generation.listener(news)
        except Exception as error:  # noqa: BLE001 - a listener must not end the worker
            log.info("the listener of an answer failed: %r", error)
            generation.cancel()


_busy_engines: set[Engine] = set()
"""Engines that are computing. Each thread adds and removes only its own engine."""
