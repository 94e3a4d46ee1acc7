"""The scheduler: decides which requests run, and what each step of ``llama_decode`` evaluates."""

from __future__ import annotations

import logging
import time
from typing import Literal

from persona_lab.errors import ProviderError
from persona_lab.llama import kv_cache
from persona_lab.llama.bindings import BatchEntry, Context, Model
from persona_lab.llama.generation import Generation, Step
from persona_lab.llama.kv_cache import (
    BATCH_TOKENS,
    MAX_PINS,
    MIN_CHUNK,
    KVCache,
    next_chunk_size,
    prefillable_length,
)
from persona_lab.llama.prefix_cache import common_prefix_length

log = logging.getLogger(__name__)

MAX_RUNNING = 16
"""Answers that are generated at the same time; further requests wait."""
SEQUENCES = MAX_RUNNING + 1
"""One more than can run, so that a new answer always finds an idle one."""
PREFILL_CHUNK = 64
"""Prompt tokens per step while any answer is being written: a delay of about 0.1 s."""
MIN_SHARED_TOKENS = 32
"""A request waits for another's prompt if it can reuse at least as many more tokens of it."""


class Scheduler:
    """The requests of one engine. All methods are called on the engine's thread.

    Other threads may read the attributes.

    Attributes:
        running: The answers that are being generated, with their sequences.
        waiting: The requests in the queue, in their order.
        prompt_tokens: Tokens of all prompts.
        reused_tokens: Those of them that were reused from the cache.
        written_tokens: Tokens of all answers.
        paced_tokens: Those of them that were written within ``writing_seconds``.
        writing_seconds: Time in which at least one answer was written.
    """

    def __init__(self, model: Model, context: Context, cache: KVCache) -> None:
        self._model = model
        self._context = context
        self._cache = cache
        self.running: dict[Generation, kv_cache.Sequence] = {}
        self.waiting: list[Generation] = []
        self._prefixes: list[list[int]] = []
        """Prefixes to evaluate while no request runs; the last one comes first."""
        self.prompt_tokens = self.reused_tokens = self.written_tokens = self.paced_tokens = 0
        self.writing_seconds = 0.0

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.running or self.waiting or self._prefixes)

    def add_prefix(self, tokens: list[int]) -> None:
        """Pin a prefix, and evaluate it while no request runs."""
        self._cache.pin(tokens)
        self._prefixes = [*self._prefixes, tokens][-MAX_PINS:]

    def step(self) -> None:
        """Do the next step: of the running answers or, without any, of a prefix."""
        if self.running:
            self._decode_step()
        elif self._prefixes:
            self._prefill_step()

    def fail_step(self, error: Exception) -> None:
        """End the running answers with ``error``, and empty the context."""
        self._fail(list(self.running), error)
        self._prefixes.clear()
        self._cache.clear()

    def fail_all(self, error: Exception) -> None:
        """End the running and the waiting answers with ``error``."""
        self._fail([*self.running, *self.waiting], error)

    def drop_cancelled(self) -> None:
        """Remove the requests whose callers have cancelled them."""
        for generation in [g for g in [*self.running, *self.waiting] if g.cancelled]:
            self._finish(generation)

    def admit(self) -> None:
        """Start requests in their order, and tell the others their place in the queue."""
        self._start_waiting()
        for position, generation in enumerate(self.waiting, 1):
            if generation.queue_position != position:
                generation.queue_position = position
                self._notify(generation, Step(queue_position=position))

    def _start_waiting(self) -> None:
        """Start what fits. A request waits for a running prompt that it can reuse."""
        for generation in list(self.waiting):
            if len(self.running) == MAX_RUNNING:
                return
            source, known = self._cache.find_prefix(generation.tokens)
            reading = (
                g for g, sequence in self.running.items() if len(g.pending_tokens(sequence)) > 1
            )
            soon = max(
                (common_prefix_length(g.tokens, generation.tokens) for g in reading), default=0
            )
            if self._cache.partial_reuse and soon - known >= MIN_SHARED_TOKENS:
                continue
            wanted = sum(g.cells_needed(len(s.tokens)) for g, s in self.running.items())
            wanted += generation.cells_needed(known if source in self.running.values() else 0)
            if self.running and not self._cache.ensure_free(wanted):
                return
            try:
                sequence = self._cache.acquire(generation.tokens)
            except Exception as error:
                self._fail([generation], error)  # or it would be tried for ever
                raise
            if generation.cached_tokens is None:
                generation.cached_tokens = len(sequence.tokens)
                self.prompt_tokens += generation.prompt_tokens
                self.reused_tokens += generation.cached_tokens
            self.waiting.remove(generation)
            self.running[generation] = sequence

    def _decode_step(self) -> None:
        """Decode one batch: a token of each answer, and a chunk of each unfinished prompt."""
        began, written = time.perf_counter(), self.written_tokens
        unread = {g: g.pending_tokens(sequence) for g, sequence in self.running.items()}
        writing = sum(1 for tokens in unread.values() if len(tokens) == 1)
        room = writing + PREFILL_CHUNK if writing else BATCH_TOKENS
        batch: list[BatchEntry] = []
        pieces: list[tuple[Generation, list[int]]] = []
        complete: list[tuple[Generation, int]] = []
        for generation in sorted(unread, key=lambda g: len(unread[g]) > 1):
            sequence = self.running[generation]
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
        if not self._cache.ensure_free(len(batch)):
            self._requeue(next(reversed(self.running)))
            return
        self._context.decode(batch)
        for generation, tokens in pieces:
            alone = len(pieces) == 1 and not writing
            self._cache.append(self.running[generation], tokens, bit_exact=alone)
        for generation, index in complete:
            try:
                self._sample_token(generation, index)
            except ProviderError as error:  # only this request is at fault
                self._fail([generation], error)
        if writing:
            self.paced_tokens += self.written_tokens - written
            self.writing_seconds += time.perf_counter() - began

    def _prefill_step(self) -> None:
        """Evaluate a chunk of the newest queued prefix, and keep it reusable in between."""
        tokens = self._prefixes[-1][: prefillable_length(len(self._prefixes[-1]))]
        beyond = [*tokens, *[-1] * MIN_CHUNK]  # the shortest request that can reuse all of them
        known = self._cache.find_prefix(beyond)[1]
        if known == len(tokens):
            self._prefixes.pop()
            return
        sequence = self._cache.acquire(beyond)
        begun = len(sequence.tokens)
        following = tokens[begun : begun + next_chunk_size(begun, len(tokens), PREFILL_CHUNK)]
        try:
            if not self._cache.ensure_free(len(following)):
                self._prefixes.pop()
                return
            entries = enumerate(following, begun)
            self._context.decode([BatchEntry(t, at, sequence.number, False) for at, t in entries])
            self._cache.append(sequence, following, bit_exact=True)
        finally:
            self._cache.retain(sequence)
        if self._cache.find_prefix(beyond)[1] <= known:  # there is no room to keep it
            self._prefixes.pop()

    def _sample_token(self, generation: Generation, index: int) -> None:
        """Choose the next token, and notify the listener of complete text."""
        token = generation.sampler.sample(self._context, index)
        finish: Literal["stop", "length"] | None = None
        if self._model.is_end(token):
            finish, text = "stop", generation.text.feed(b"", final=True)
        else:
            generation.tokens.append(token)
            self.written_tokens += 1
            full = generation.completion_tokens >= generation.max_tokens
            text = generation.text.feed(self._model.token_bytes(token), final=full)
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
        self._cache.retain(self.running.pop(generation), generation.prompt_tokens)
        generation.queue_position = 0  # the next position is sent
        self.waiting.insert(0, generation)

    def _finish(self, generation: Generation) -> None:
        if generation in self.running:
            # Its answer was evaluated one token at a time, so only its prompt is bit-exact.
            self._cache.retain(self.running.pop(generation), generation.prompt_tokens)
        else:
            self.waiting.remove(generation)
        generation.sampler.close()

    def _fail(self, generations: list[Generation], error: Exception) -> None:
        for generation in generations:
            self._finish(generation)
            self._notify(generation, error)

    def _notify(self, generation: Generation, result: Step | Exception) -> None:
        if generation.cancelled:
            return
        try:
            generation.listener(result)
        except Exception as error:  # noqa: BLE001 - a listener must not end the worker
            log.info("the listener of an answer failed: %r", error)
            generation.cancel()
