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
from persona_lab.llama import kv_cache as memory
from persona_lab.llama.bindings import (
    Context,
    Entry,
    Model,
    Progress,
    Sampler,
    SamplerOptions,
    closed,
    unavailable,
)
from persona_lab.llama.kv_cache import BATCH, SHORTEST, Memory, piece, readable_ahead
from persona_lab.llama.prefix_cache import common
from persona_lab.llama.stream_decoder import TextStream

log = logging.getLogger(__name__)

LIVE = 16
"""Answers that are written at a time; further ones wait."""
SEQUENCES = LIVE + 1
"""There is always one for who begins."""
WAITING = 64
"""Requests that may wait; further ones are refused."""
PIECE = 64
"""Tokens of prompts in a step in which somebody's answer is being written: 0.1 s of a stall."""
UNKNOWN = 64_000_000
"""Bytes that a context's cells may take where the file's header doesn't say."""
MARGIN = 64
"""Cells that must be free for an answer before it is begun."""
WORTH_WAITING = 32
"""Tokens that a neighbour is about to read which make it worth waiting for."""


@dataclass(frozen=True, slots=True)
class Step:
    """News of an answer; the last has ``finish``. ``cached_tokens`` weren't read anew.

    ``ahead``: requests that come first, while it waits for its turn."""

    text: str = ""
    ahead: int | None = None
    finish: Literal["stop", "length"] | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


Listener = Callable[[Step | Exception], None]
"""Receives the steps of one answer, or the exception that ended it, which may be anybody's.

Called on the worker's thread: hand the value over and return. A listener that raises, as one with
a closed event loop does, cancels its answer."""


@dataclass(frozen=True, slots=True)
class Figures:
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
    def reuse(self) -> float:
        """Share of the prompts that needn't be read; 0 before the first."""
        return self.reused_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    @property
    def speed(self) -> float:
        """Tokens a second, of all answers together, while any was being written."""
        return self.paced_tokens / self.seconds if self.seconds else 0.0

    def __add__(self, other: Figures) -> Figures:
        sums = {
            field.name: getattr(self, field.name) + getattr(other, field.name)
            for field in fields(self)
            if field.name != "name"
        }
        return Figures(self.name, **sums)


class Generation:
    """An answer asked for. ``tokens`` are the prompt's and then, as it grows, the answer's."""

    def __init__(
        self,
        tokens: Sequence[int],
        *,
        max_tokens: int,
        sampler: Sampler,
        text: TextStream,
        listener: Listener,
    ) -> None:
        self.tokens = list(tokens)
        self.prompt_tokens = len(tokens)
        self.cached_tokens: int | None = None
        self.max_tokens = max_tokens
        self.sampler = sampler
        self.text = text
        self.listener = listener
        self.ahead = 0
        self.cancelled = False

    def cancel(self) -> None:
        """Stop before the next step. From any thread; harmless when the answer is over."""
        self.cancelled = True

    @property
    def completion_tokens(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    def unread(self, sequence: memory.Sequence) -> list[int]:
        """What ``sequence`` hasn't read yet: one token while the answer is being written."""
        return self.tokens[len(sequence.tokens) :]

    def appetite(self, read: int) -> int:
        """Cells that it will soon need, with ``read`` tokens in the context already."""
        coming = min(MARGIN, self.max_tokens - self.completion_tokens)
        return len(self.tokens) - read + coming


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
        cells = context * self.model.cell_bytes or UNKNOWN
        try:
            claim(2 * cells)
            self._context = Context(
                self.model,
                cells=context,
                sequences=SEQUENCES,
                batch=BATCH,
                threads=threads,
                flash=flash,
            )
            try:
                self.memory = Memory(
                    self._context, SEQUENCES, shelf=cells, divisible=not self.model.recurrent
                )
            except MemoryError:
                self._context.close()
                raise unavailable(path, "no_memory", "not enough memory") from None
        except ProviderError:
            self.model.close()
            raise
        self.limit = min(self._context.cells, self.model.trained_context or self._context.cells)
        """Most tokens of one prompt with its answer."""
        self._live: dict[Generation, memory.Sequence] = {}
        self._waiting: list[Generation] = []
        self._ahead: list[list[int]] = []
        """Beginnings to be read while nobody wants an answer, the newest last: it comes first."""
        self._inbox: queue.SimpleQueue[Generation | list[int] | None] = queue.SimpleQueue()
        self._threads = self._threads_used = threads
        self._closed = False
        self._door = threading.Lock()
        """What is put in while it is held is seen by the worker, at its end too."""
        self._put = self._taken = self._settled = 0
        """News put into the inbox, taken out of it, and taken when nothing was left to do."""
        self._prompted = self._reused = self._written = self._paced = 0
        self._writing_seconds = 0.0
        self.used = time.monotonic()
        """When it was last asked for something."""
        self.unloaded = False
        """Closed to make room: it may be opened again."""
        self._thread = threading.Thread(target=self._work, name=f"llama-{self.name}", daemon=True)
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
        if len(tokens) >= self.limit:
            raise ContextTooLong(
                provider="local", model=self.name, tokens=len(tokens), limit=self.limit - 1
            )
        with self.model.used():
            sampler = Sampler(self.model, options or SamplerOptions())
        generation = Generation(
            tokens,
            max_tokens=min(max_tokens, self.limit - len(tokens)),
            sampler=sampler,
            text=TextStream(stop),
            listener=listener,
        )
        try:
            with self._door:
                if self._closed:
                    raise closed(self.model.path)
                if self._inbox.qsize() + len(self._waiting) >= WAITING:
                    raise Overloaded(provider="local", model=self.name)
                self._send(generation)
        except ProviderError:
            sampler.close()
            raise
        return generation

    def warm(self, tokens: Sequence[int]) -> None:
        """Read ``tokens`` while nobody wants an answer, and pin them. From any thread.

        A request never waits for this longer than for one step of :data:`PIECE` tokens, and
        takes over what was read by then. Raises ContextTooLong, ModelUnavailable when closed.
        """
        if len(tokens) >= self.limit:
            raise ContextTooLong(
                provider="local", model=self.name, tokens=len(tokens), limit=self.limit - 1
            )
        with self._door:
            if self._closed:
                raise closed(self.model.path)
            self._send(list(tokens))

    def _send(self, news: Generation | list[int]) -> None:
        """Called with the door held."""
        self._put += 1
        self.used = time.monotonic()
        self._inbox.put(news)

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn. From any thread."""
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        """Whether all that was asked for until now is done. From any thread."""
        return self._settled == self._put

    @property
    def figures(self) -> Figures:
        """What it is doing and has done. From any thread; nobody waits for anybody."""
        return Figures(
            name=self.name,
            cells=self._context.cells,
            cells_used=self.memory.used,
            live=len(self._live),
            waiting=len(self._waiting) + self._inbox.qsize(),
            prompt_tokens=self._prompted,
            reused_tokens=self._reused,
            written_tokens=self._written,
            paced_tokens=self._paced,
            seconds=self._writing_seconds,
        )

    def close(self) -> None:
        """End what is being written, stop the thread, give the memory back. From any thread."""
        with self._door:
            self._closed = True
            self._inbox.put(None)
        self._thread.join()

    def unload(self) -> bool:
        """Close it if it has nothing to do; False if it has. From any thread."""
        with self._door:
            if self._closed or not self.idle:
                return False
            self._closed = self.unloaded = True
            self._inbox.put(None)
        self._thread.join()
        return True

    # ── on the worker's thread ────────────────────────────────────────────────────────────

    def _work(self) -> None:
        while not self._closed:
            try:
                self._receive()
                self._forget_cancelled()
                self._admit()
                if self._live:
                    self._step()
                elif self._ahead:
                    self._read_ahead()
            except Exception as wrong:  # the worker outlives whatever befalls a request
                log.exception("a step of %s failed", self.name)
                self._fail(list(self._live), wrong)
                self._ahead.clear()
                self.memory.clear()
        _busy.discard(self)
        while not self._inbox.empty():
            late = self._inbox.get()
            if isinstance(late, Generation):
                self._waiting.append(late)
        try:
            self._fail([*self._live, *self._waiting], closed(self.model.path))
        finally:
            self._context.close()
            self.model.close()

    def _receive(self) -> None:
        """Take in what was submitted; sleep while there is nothing to do."""
        while True:
            busy = bool(self._live or self._waiting or self._ahead)
            if not busy:
                self.memory.keep()
                _busy.discard(self)
                self._settled = self._taken
            try:
                news = self._inbox.get(block=not busy)
            except queue.Empty:
                break
            if news is None:
                return
            self._taken += 1
            if isinstance(news, Generation):
                self._waiting.append(news)
            else:
                self.memory.pin(news)
                self._ahead = [*self._ahead, news][-memory.PINS :]
        self._share_processors()

    def _share_processors(self) -> None:
        """Engines that work at the same time divide the threads: more of them than processors
        would wait for one another."""
        _busy.add(self)
        threads = max(1, self._threads // len(_busy))
        if threads != self._threads_used:
            self._context.use_threads(threads)
            self._threads_used = threads

    def _forget_cancelled(self) -> None:
        for generation in [g for g in [*self._live, *self._waiting] if g.cancelled]:
            self._retire(generation)

    def _admit(self) -> None:
        """Begin what fits, first come first served; who can share soon waits for it."""
        self._begin_what_fits()
        for ahead, generation in enumerate(self._waiting, 1):
            if generation.ahead != ahead:
                generation.ahead = ahead
                self._tell(generation, Step(ahead=ahead))

    def _begin_what_fits(self) -> None:
        for generation in list(self._waiting):
            if len(self._live) == LIVE:
                return
            source, known = self.memory.find(generation.tokens)
            reading = (g for g, sequence in self._live.items() if len(g.unread(sequence)) > 1)
            soon = max((common(g.tokens, generation.tokens) for g in reading), default=0)
            if self.memory.divisible and soon - known >= WORTH_WAITING:
                continue
            wanted = sum(g.appetite(len(s.tokens)) for g, s in self._live.items())
            wanted += generation.appetite(known if source in self._live.values() else 0)
            if self._live and not self.memory.room(wanted):
                return
            try:
                sequence = self.memory.take(generation.tokens)
            except Exception as wrong:
                self._fail([generation], wrong)  # it would be tried again and again
                raise
            if generation.cached_tokens is None:
                generation.cached_tokens = len(sequence.tokens)
                self._prompted += generation.prompt_tokens
                self._reused += generation.cached_tokens
            self._waiting.remove(generation)
            self._live[generation] = sequence

    def _step(self) -> None:
        """One decode: a token for everyone who is writing, a piece for those who still read."""
        began, written = time.perf_counter(), self._written
        unread = {g: g.unread(sequence) for g, sequence in self._live.items()}
        writing = sum(1 for tokens in unread.values() if len(tokens) == 1)
        room = writing + PIECE if writing else BATCH
        batch: list[Entry] = []
        pieces: list[tuple[Generation, list[int]]] = []
        complete: list[tuple[Generation, int]] = []
        for generation in sorted(unread, key=lambda g: len(unread[g]) > 1):
            sequence = self._live[generation]
            begun, tokens = len(sequence.tokens), unread[generation]
            size = 1
            if len(tokens) > 1:
                size = piece(begun, len(generation.tokens), room - len(batch))
            whole = size == len(tokens)
            for number, token in enumerate(tokens[:size], 1):
                wanted = whole and number == size
                batch.append(Entry(token, begun + number - 1, sequence.number, wanted))
            pieces.append((generation, tokens[:size]))
            if whole:
                complete.append((generation, len(batch) - 1))
        if not self.memory.room(len(batch)):
            self._put_back(next(reversed(self._live)))
            return
        self._context.decode(batch)
        for generation, tokens in pieces:
            alone = len(pieces) == 1 and not writing
            self.memory.read(self._live[generation], tokens, exactly=alone)
        for generation, index in complete:
            try:
                self._write(generation, index)
            except ProviderError as wrong:  # nobody else's fault
                self._fail([generation], wrong)
        if writing:
            self._paced += self._written - written
            self._writing_seconds += time.perf_counter() - began

    def _read_ahead(self) -> None:
        """A piece of what was asked for last. It is held in between, for whoever comes."""
        tokens = self._ahead[-1][: readable_ahead(len(self._ahead[-1]))]
        beyond = [*tokens, *[-1] * SHORTEST]  # as much of a request as this can be of use to
        known = self.memory.find(beyond)[1]
        if known == len(tokens):
            self._ahead.pop()
            return
        sequence = self.memory.take(beyond)
        begun = len(sequence.tokens)
        following = tokens[begun : begun + piece(begun, len(tokens), PIECE)]
        try:
            if not self.memory.room(len(following)):
                self._ahead.pop()
                return
            entries = enumerate(following, begun)
            self._context.decode([Entry(t, at, sequence.number, False) for at, t in entries])
            self.memory.read(sequence, following, exactly=True)
        finally:
            self.memory.hold(sequence)
        if self.memory.find(beyond)[1] <= known:  # it can't be kept
            self._ahead.pop()

    def _write(self, generation: Generation, index: int) -> None:
        """Choose the next token and tell what it makes readable."""
        token = generation.sampler.sample(self._context, index)
        finish: Literal["stop", "length"] | None = None
        if self.model.is_end(token):
            finish, text = "stop", generation.text.feed(b"", final=True)
        else:
            generation.tokens.append(token)
            self._written += 1
            full = generation.completion_tokens >= generation.max_tokens
            text = generation.text.feed(self.model.piece(token), final=full)
            if generation.text.stopped:
                finish = "stop"
            elif full:
                finish = "length"
        if finish or text:
            self._tell(
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
            self._retire(generation)

    def _put_back(self, generation: Generation) -> None:
        """Let the youngest wait again, with all it has written, until there are cells for it."""
        self.memory.hold(self._live.pop(generation), generation.prompt_tokens)
        generation.ahead = 0  # it is told anew
        self._waiting.insert(0, generation)

    def _retire(self, generation: Generation) -> None:
        if generation in self._live:
            # What it wrote was read a token at a time, which isn't how a prompt is read.
            self.memory.hold(self._live.pop(generation), generation.prompt_tokens)
        else:
            self._waiting.remove(generation)
        generation.sampler.close()

    def _fail(self, generations: list[Generation], wrong: Exception) -> None:
        for generation in generations:
            self._retire(generation)
            self._tell(generation, wrong)

    def _tell(self, generation: Generation, news: Step | Exception) -> None:
        if generation.cancelled:
            return
        try:
            generation.listener(news)
        except Exception as wrong:  # noqa: BLE001 - whoever listens must not end the worker
            log.info("nobody listens any more: %r", wrong)
            generation.cancel()


_busy: set[Engine] = set()
"""Engines that are computing. Threads take from it and put into it what is theirs only."""
