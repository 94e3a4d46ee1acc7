"""Which tokens each sequence has evaluated, and which cells sequences share.

llama.cpp holds the cells. This module records which tokens each sequence has evaluated, how many
cells are in use (llama.cpp doesn't report it), what is in the prefix cache, and which prefixes are
pinned, that is evicted last.

Evaluation gives the same numbers, bit by bit, only if it is done in the same way: alone, from the
first cell on, in chunks that begin at a multiple of :data:`ALIGNMENT` tokens and have at least
:data:`MIN_CHUNK` tokens. A prefix that was evaluated so is *bit-exact*. A request that runs alone
reuses only bit-exact prefixes; concurrent requests reuse any. A recurrent model's state can't be
reused in part, so nothing is bit-exact there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol

from persona_lab.llama.prefix_cache import (
    MIN_BLOCK_TOKENS,
    CachedBlock,
    PrefixCache,
    common_prefix_length,
)

BATCH_TOKENS = 512
"""Largest chunk, in tokens, as in llama.cpp. Chunks end at its multiples."""
ALIGNMENT = 4
"""Tokens that llama.cpp sums up together."""
MIN_CHUNK = 8
"""Tokens. llama.cpp sums up a smaller chunk in another way."""
MAX_PINS = 8
"""Prefixes that can be pinned; one more replaces the oldest."""


class CellStore(Protocol):
    """The part of :class:`~persona_lab.llama.bindings.Context` that is needed here."""

    cells: int

    def copy(self, source: int, target: int, length: int) -> None:
        """Share the first ``length`` cells of ``source`` with ``target``."""

    def truncate(self, sequence: int, length: int = 0) -> bool:
        """Keep the first ``length`` cells; return whether this kind of memory can."""

    def clear(self) -> None:
        """Remove all cells."""

    def rewind(self) -> None:
        """Let an empty context begin at its first cell again."""

    def intact(self, sequence: int, length: int) -> bool:
        """Return whether the cells that the next token looks at are all there."""

    def save(self, sequence: int, begin: int, end: int, into: memoryview) -> int:
        """Copy cells into memory; return how many bytes they have, 0 if they don't fit."""

    def load(self, sequence: int, begin: int, end: int, data: memoryview) -> bool:
        """Append saved cells to ``sequence``; return whether enough cells were free."""


@dataclass(eq=False, slots=True)
class Sequence:
    """Tokens that were evaluated one after another.

    Attributes:
        number: Its number in llama.cpp.
        tokens: The tokens.
        cells: An id for each token's cell. Sequences that share a cell have its id in common.
        bit_exact: How many of the first tokens are bit-exact.
        live: Whether an answer uses it now.
        exclusive: Whether no other sequence has been live since it is.
        last_used: The tick at which it was last used.
    """

    number: int
    tokens: list[int] = field(default_factory=list)
    cells: list[int] = field(default_factory=list)
    bit_exact: int = 0
    live: bool = False
    exclusive: bool = False
    last_used: int = 0


def next_chunk_size(begun: int, end: int, most: int) -> int:
    """Return the size of the next chunk of the tokens from ``begun`` to ``end``.

    It is at most ``most``, and keeps the result bit-exact.
    """
    left = min(end, begun - begun % BATCH_TOKENS + BATCH_TOKENS) - begun
    if left <= most:
        return left
    size = most - most % ALIGNMENT
    return size if left - size >= MIN_CHUNK else max(0, size - MIN_CHUNK)


def _reusable_length(known: int, tokens: int) -> int:
    """Return how many of the ``known`` leading tokens a prompt of ``tokens`` tokens can reuse.

    Never all of the prompt: its last token must be evaluated to get the next one.
    """
    known = min(known, tokens - 1)
    known -= known % ALIGNMENT
    batch = known - known % BATCH_TOKENS
    end = min(tokens, batch + BATCH_TOKENS)  # of the chunk that begins there
    if known > batch and end - known < MIN_CHUNK:
        known = max(batch, (end - MIN_CHUNK) // ALIGNMENT * ALIGNMENT)
    return known


def prefillable_length(length: int) -> int:
    """Return how many of the first ``length`` tokens can be evaluated early and be bit-exact."""
    length -= length % ALIGNMENT
    over = length % BATCH_TOKENS
    if over < MIN_CHUNK:
        return length - over
    return length - max(0, MIN_CHUNK - (BATCH_TOKENS - over))


class KVCache:
    """The sequences of one context, and the prefix cache beside it."""

    def __init__(
        self,
        context: CellStore,
        sequences: int,
        *,
        prefix_cache_bytes: int = 0,
        partial_reuse: bool = True,
    ) -> None:
        """Create empty sequences.

        Args:
            context: Holds the cells.
            sequences: How many sequences there are.
            prefix_cache_bytes: Size of the prefix cache.
            partial_reuse: Whether the first part of a sequence can be reused without the rest.
                Attention allows it. A recurrent model has a single state, which isn't put into
                the prefix cache either.
        """
        self._context = context
        self.partial_reuse = partial_reuse
        self.sequences = [Sequence(number) for number in range(sequences)]
        self.prefix_cache = PrefixCache(prefix_cache_bytes if partial_reuse else 0)
        self.pins: list[list[int]] = []
        self._cell_users: Counter[int] = Counter()
        self._cell_ids = count()
        self._ticks = count(1)

    @property
    def cells_used(self) -> int:
        """Number of cells in use."""
        return len(self._cell_users)

    def find_prefix(self, tokens: Tokens[int]) -> tuple[Sequence | list[CachedBlock] | None, int]:
        """Return where the longest reusable prefix of ``tokens`` is, and its length."""
        alone = not any(sequence.live for sequence in self.sequences)
        best: Sequence | list[CachedBlock] | None = None
        length = 0
        for sequence in self.sequences:
            known = common_prefix_length(sequence.tokens, tokens)
            if self.partial_reuse:
                known = _reusable_length(
                    min(known, sequence.bit_exact) if alone else known, len(tokens)
                )
            elif sequence.live or known < len(sequence.tokens) or known == len(tokens):
                continue
            whole = not self.partial_reuse or self._context.intact(sequence.number, known)
            if known > length and whole:
                best, length = sequence, known
        blocks, known = self.prefix_cache.find(tokens, bit_exact=alone)
        known = _reusable_length(known, len(tokens))
        return (blocks, known) if known > length else (best, length)

    def acquire(self, tokens: Tokens[int]) -> Sequence:
        """Return a live sequence that begins with the prefix that :meth:`find_prefix` finds.

        Idle sequences move out of the context into the prefix cache. At least one sequence must
        be idle, so there are more sequences than running answers.
        """
        live = [sequence for sequence in self.sequences if sequence.live]
        if not live:  # what ran beside others lies among their cells
            self._offload([s for s in self._idle() if not s.exclusive])
        source, length = self.find_prefix(tokens)
        others = [sequence for sequence in self._idle() if sequence is not source]
        blocks = source if isinstance(source, list) else []
        if self.partial_reuse:
            self._offload(others, protected=blocks)
            if blocks:  # offloading may have replaced them by bit-exact ones
                blocks, known = self.prefix_cache.find(tokens, bit_exact=not live)
                length = min(length, _reusable_length(known, len(tokens)))
            if not self.cells_used:
                self._context.rewind()
        if isinstance(source, Sequence) and not source.live:
            taken = source
            if length < len(source.tokens):
                self._save(source)
                self._truncate(source, length)
        else:
            taken = self._empty_sequence(others)
            if isinstance(source, Sequence):
                self._copy_prefix(taken, source, length)
            else:
                self._restore_blocks(taken, blocks, length, bit_exact=not live)
        for sequence in live:
            sequence.exclusive = False
        taken.live, taken.exclusive = True, not live
        return taken

    def _empty_sequence(self, held: list[Sequence]) -> Sequence:
        """Return an empty sequence; the least recently used of ``held`` makes way."""
        empty = [s for s in self.sequences if not (s.live or s.tokens)]
        if not empty:
            empty = [min(held, key=lambda sequence: sequence.last_used)]
            self.release(empty[0])
        return empty[0]

    def _copy_prefix(self, taken: Sequence, source: Sequence, length: int) -> None:
        """Share the first ``length`` cells of the live ``source`` with the empty ``taken``."""
        self._context.copy(source.number, taken.number, length)
        taken.tokens, taken.cells = source.tokens[:length], source.cells[:length]
        taken.bit_exact = min(source.bit_exact, length)
        self._cell_users.update(taken.cells)

    def _restore_blocks(
        self, taken: Sequence, blocks: list[CachedBlock], length: int, *, bit_exact: bool
    ) -> None:
        """Load the blocks into the empty ``taken`` while there are free cells."""
        for block in blocks:
            begun = len(taken.tokens)
            if begun >= length:
                break
            end, data = begun + len(block.tokens), self.prefix_cache.data_of(block)
            if self._context.cells - self.cells_used < len(block.tokens) or not self._context.load(
                taken.number, begun, end, data
            ):
                break
            block.last_used = next(self._ticks)
            self.append(taken, block.tokens)
            taken.bit_exact += block.bit_exact if bit_exact and taken.bit_exact == begun else 0
        self._truncate(taken, min(length, len(taken.tokens) // ALIGNMENT * ALIGNMENT))
        if taken.tokens and not self._context.intact(taken.number, len(taken.tokens)):
            self._truncate(taken, 0)

    def pin(self, tokens: Tokens[int]) -> None:
        """Pin the prefix ``tokens``: what begins with it is evicted last.

        A pin covers at most a quarter of the cells, and all pins at most half of them. The oldest
        pins are removed first.
        """
        tokens = tokens[: self._context.cells // 4]
        if len(tokens) < MIN_BLOCK_TOKENS:
            return
        self.pins = [
            pin
            for pin in self.pins
            if common_prefix_length(pin, tokens) < min(len(pin), len(tokens))
        ]
        self.pins.append(list(tokens))
        while len(self.pins) > MAX_PINS or 2 * sum(map(len, self.pins)) > self._context.cells:
            self.pins.pop(0)

    def ensure_free(self, wanted: int) -> bool:
        """Free ``wanted`` cells by moving idle sequences out of the context.

        Returns:
            Whether they are free. If live sequences leave too few, nothing is moved.
        """
        if self._context.cells - self.cells_used >= wanted:
            return True
        live = {cell for sequence in self.sequences if sequence.live for cell in sequence.cells}
        if self._context.cells - len(live) < wanted:
            return False
        self._offload(self._idle())
        return True

    def append(self, sequence: Sequence, tokens: Tokens[int], *, bit_exact: bool = False) -> None:
        """Record that ``sequence`` evaluated ``tokens``.

        Args:
            sequence: The sequence.
            tokens: The tokens.
            bit_exact: Whether they are part of a prompt and were evaluated alone.
        """
        cells = [next(self._cell_ids) for _ in tokens]
        sequence.tokens.extend(tokens)
        sequence.cells.extend(cells)
        self._cell_users.update(cells)
        if bit_exact and sequence.exclusive and len(tokens) >= MIN_CHUNK:
            sequence.bit_exact = len(sequence.tokens)

    def retain(self, sequence: Sequence, length: int | None = None) -> None:
        """Make ``sequence`` idle, and keep its first ``length`` tokens for reuse."""
        sequence.live, sequence.last_used = False, next(self._ticks)
        if self.partial_reuse:
            length = len(sequence.tokens) if length is None else min(length, len(sequence.tokens))
            self._truncate(sequence, length - length % ALIGNMENT)

    def save_idle(self) -> None:
        """Copy idle sequences into the prefix cache now, so that no request waits for it."""
        for held in self._idle():
            self._save(held)

    def release(self, sequence: Sequence) -> None:
        """Empty ``sequence``. Cells that others share stay."""
        self._truncate(sequence, 0)
        sequence.live = False

    def clear(self) -> None:
        """Remove everything."""
        self._context.clear()
        self._cell_users.clear()
        self.prefix_cache.clear()
        self.sequences = [Sequence(sequence.number) for sequence in self.sequences]

    def _idle(self) -> list[Sequence]:
        return [s for s in self.sequences if s.tokens and not s.live]

    def _offload(self, held: list[Sequence], protected: Tokens[CachedBlock] = ()) -> None:
        for sequence in held:
            self._save(sequence, protected)
            self.release(sequence)

    def _save(self, held: Sequence, protected: Tokens[CachedBlock] = ()) -> None:
        if self.partial_reuse and self._context.intact(held.number, 0):
            self.prefix_cache.insert(
                held.tokens,
                held.bit_exact,
                lambda begin, end, into: self._context.save(held.number, begin, end, into),
                now=next(self._ticks),
                pinned=self.pins,
                protected=protected,
            )

    def _truncate(self, sequence: Sequence, length: int) -> None:
        """Keep the first ``length`` tokens of ``sequence``."""
        if length < len(sequence.tokens) and not self._context.truncate(sequence.number, length):
            length = 0
            self._context.truncate(sequence.number)
        for cell in sequence.cells[length:]:
            if self._cell_users[cell] == 1:
                del self._cell_users[cell]
            else:
                self._cell_users[cell] -= 1
        del sequence.tokens[length:]
        del sequence.cells[length:]
        sequence.bit_exact = min(sequence.bit_exact, length)
