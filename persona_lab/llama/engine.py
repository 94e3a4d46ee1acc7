"""The engine: a model, its context, and the thread that advances all requests together."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from persona_lab.errors import BadRequest, ContextTooLong, Overloaded, ProviderError
from persona_lab.llama.bindings import (
    Context,
    Model,
    Progress,
    model_closed,
    model_unavailable,
)
from persona_lab.llama.engine_stats import EngineStats
from persona_lab.llama.generation import Generation, Listener
from persona_lab.llama.kv_cache import BATCH_TOKENS, KVCache
from persona_lab.llama.sampling import Sampler, SamplerOptions
from persona_lab.llama.scheduler import SEQUENCES, Scheduler
from persona_lab.llama.stream_decoder import StreamDecoder

log = logging.getLogger(__name__)

MAX_QUEUED = 64
"""Requests that may wait; further ones are refused."""
UNKNOWN_CACHE_BYTES = 64_000_000
"""Bytes to assume for a context's cells if the file's header doesn't give their size."""


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
            self.context = Context(
                self.model,
                cells=context,
                sequences=SEQUENCES,
                batch=BATCH_TOKENS,
                threads=threads,
                flash=flash,
            )
            try:
                self.cache = KVCache(
                    self.context,
                    SEQUENCES,
                    prefix_cache_bytes=cells,
                    partial_reuse=not self.model.recurrent,
                )
            except MemoryError:
                self.context.close()
                raise model_unavailable(path, "no_memory", "not enough memory") from None
        except ProviderError:
            self.model.close()
            raise
        self.context_limit = min(
            self.context.cells, self.model.trained_context or self.context.cells
        )
        """Largest number of tokens of one prompt with its answer."""
        self._scheduler = Scheduler(self.model, self.context, self.cache)
        self._inbox: queue.SimpleQueue[Generation | list[int] | None] = queue.SimpleQueue()
        self._threads = self._threads_used = threads
        self._closed = False
        self._submit_lock = threading.Lock()
        """The worker sees every item that is enqueued under it, also when it stops."""
        self._submitted = self._received = self._completed = 0
        """Items enqueued, items received, and items received when it last was idle."""
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
                if self._inbox.qsize() + len(self._scheduler.waiting) >= MAX_QUEUED:
                    raise Overloaded(provider="local", model=self.name)
                self._enqueue(generation)
        except ProviderError:
            sampler.close()
            raise
        return generation

    def prefill(self, tokens: Sequence[int]) -> None:
        """Evaluate ``tokens`` while no request runs, and pin them. Thread-safe.

        A request waits for at most one step of :data:`~persona_lab.llama.scheduler.PREFILL_CHUNK`
        tokens, and reuses what was evaluated by then.

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

    def _enqueue(self, item: Generation | list[int]) -> None:
        """Hand ``item`` to the worker. The caller holds the submit lock."""
        self._submitted += 1
        self.last_used = time.monotonic()
        self._inbox.put(item)

    @property
    def waiting(self) -> int:
        """Number of requests in the queue. Thread-safe."""
        return len(self._scheduler.waiting)

    @property
    def idle(self) -> bool:
        """Whether every request until now is complete. Thread-safe."""
        return self._completed == self._submitted

    @property
    def stats(self) -> EngineStats:
        """Statistics of this moment. Thread-safe and without locks."""
        scheduler = self._scheduler
        return EngineStats(
            name=self.name,
            cells=self.context.cells,
            cells_used=self.cache.cells_used,
            live=len(scheduler.running),
            waiting=len(scheduler.waiting) + self._inbox.qsize(),
            prompt_tokens=scheduler.prompt_tokens,
            reused_tokens=scheduler.reused_tokens,
            written_tokens=scheduler.written_tokens,
            paced_tokens=scheduler.paced_tokens,
            seconds=scheduler.writing_seconds,
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
        scheduler = self._scheduler
        while not self._closed:
            try:
                self._drain_inbox()
                scheduler.drop_cancelled()
                scheduler.admit()
                scheduler.step()
            except Exception as error:  # the worker must survive any error of a request
                log.exception("a step of %s failed", self.name)
                scheduler.fail_step(error)
        _busy_engines.discard(self)
        while not self._inbox.empty():
            late = self._inbox.get()
            if isinstance(late, Generation):
                scheduler.waiting.append(late)
        try:
            scheduler.fail_all(model_closed(self.model.path))
        finally:
            self.context.close()
            self.model.close()

    def _drain_inbox(self) -> None:
        """Receive what was submitted; sleep while there is nothing to do."""
        while True:
            busy = self._scheduler.busy
            if not busy:
                self.cache.save_idle()
                _busy_engines.discard(self)
                self._completed = self._received
            try:
                item = self._inbox.get(block=not busy)
            except queue.Empty:
                break
            if item is None:
                return
            self._received += 1
            if isinstance(item, Generation):
                self._scheduler.waiting.append(item)
            else:
                self._scheduler.add_prefix(item)
        self._share_threads()

    def _share_threads(self) -> None:
        """Divide the threads among the busy engines.

        More threads than processors would wait for one another.
        """
        _busy_engines.add(self)
        threads = max(1, self._threads // len(_busy_engines))
        if threads != self._threads_used:
            self.context.use_threads(threads)
            self._threads_used = threads


_busy_engines: set[Engine] = set()
"""Engines that are computing. Each thread adds and removes only its own engine."""
