"""What has been read, and who shares it.

llama.cpp keeps the cells; this keeps the books: which tokens each sequence has read, how many
cells are in use (llama.cpp doesn't tell), what is on the shelf, and which beginnings are *pinned*:
they are the last to go.

Reading gives the same numbers, bit by bit, if it is done in the same way: alone, from the first
cell on, in pieces that begin at a multiple of :data:`GRAIN` tokens and aren't shorter than
:data:`SHORTEST`. What was read so is *exact*, and who comes alone takes over no more than that; who
comes while others are answered takes over what there is. (A recurrent model's state can't be taken
over in part: nothing is exact there.)
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
"""Most tokens of a piece, as in llama.cpp: pieces end at its multiples."""
ALIGNMENT = 4
"""Tokens that llama.cpp sums up together."""
MIN_CHUNK = 8
"""Tokens. A piece of fewer is summed up in another way."""
MAX_PINS = 8
"""Beginnings that are kept whatever else goes; one more lets go of the oldest."""


class CellStore(Protocol):
    """The part of :class:`native.Context` that is needed here."""

    cells: int

    def copy(self, source: int, target: int, length: int) -> None: ...
    def truncate(self, sequence: int, length: int = 0) -> bool: ...
    def clear(self) -> None: ...
    def rewind(self) -> None: ...
    def intact(self, sequence: int, length: int) -> bool: ...
    def save(self, sequence: int, begin: int, end: int, into: memoryview) -> int: ...
    def load(self, sequence: int, begin: int, end: int, data: memoryview) -> bool: ...


@dataclass(eq=False, slots=True)
class Sequence:
    """Tokens that were read one after another, the first ``exact`` of them exactly.

    ``shares``: a name for each token's cell, which sequences that share it have in common.
    ``alone``: no other was live since it is."""

    number: int
    tokens: list[int] = field(default_factory=list)
    cells: list[int] = field(default_factory=list)
    bit_exact: int = 0
    live: bool = False
    exclusive: bool = False
    last_used: int = 0


def next_chunk_size(begun: int, end: int, most: int) -> int:
    """How many tokens to read at once of those from ``begun`` to ``end``, at most ``most``."""
    left = min(end, begun - begun % BATCH_TOKENS + BATCH_TOKENS) - begun
    if left <= most:
        return left
    size = most - most % ALIGNMENT
    return size if left - size >= MIN_CHUNK else max(0, size - MIN_CHUNK)


def _reusable_length(known: int, tokens: int) -> int:
    """How many of ``known`` tokens needn't be read by who has ``tokens``, of which they're the
    first.

    Never all: the last has to be read for what comes after it to be known.
    """
    known = min(known, tokens - 1)
    known -= known % ALIGNMENT
    batch = known - known % BATCH_TOKENS
    end = min(tokens, batch + BATCH_TOKENS)  # of the piece that begins there
    if known > batch and end - known < MIN_CHUNK:
        known = max(batch, (end - MIN_CHUNK) // ALIGNMENT * ALIGNMENT)
    return known


def prefillable_length(length: int) -> int:
    """How many of ``length`` tokens can be read ahead of what follows them, and be exact."""
    length -= length % ALIGNMENT
    over = length % BATCH_TOKENS
    if over < MIN_CHUNK:
        return length - over
    return length - max(0, MIN_CHUNK - (BATCH_TOKENS - over))


class KVCache:
    def __init__(
        self,
        context: CellStore,
        sequences: int,
        *,
        prefix_cache_bytes: int = 0,
        partial_reuse: bool = True,
    ) -> None:
        """``shelf``: its bytes. ``divisible``: a sequence's beginning can be taken over without its
        end, as it can from attention's cells and can't from a recurrent model's single state: that
        isn't put on the shelf."""
        self._context = context
        self.partial_reuse = partial_reuse
        self.sequences = [Sequence(number) for number in range(sequences)]
        self.prefix_cache = PrefixCache(prefix_cache_bytes if partial_reuse else 0)
        self._pins: list[list[int]] = []
        self._cell_users: Counter[int] = Counter()
        self._cell_ids = count()
        self._ticks = count(1)

    @property
    def cells_used(self) -> int:
        """Cells in use."""
        return len(self._cell_users)

    def find_prefix(self, tokens: Tokens[int]) -> tuple[Sequence | list[CachedBlock] | None, int]:
        """Whose beginning serves most of ``tokens``, and how many of them."""
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
        pages, known = self.prefix_cache.find(tokens, bit_exact=alone)
        known = _reusable_length(known, len(tokens))
        return (pages, known) if known > length else (best, length)

    def acquire(self, tokens: Tokens[int]) -> Sequence:
        """A live sequence that has read as much of ``tokens`` as :meth:`find` says.

        What nobody is using leaves the context, which is the live ones' alone. One sequence must be
        idle: there are more than live streams.
        """
        live = [sequence for sequence in self.sequences if sequence.live]
        if not live:  # what was read beside others lies among cells that were theirs
            self._offload([s for s in self._idle() if not s.exclusive])
        source, length = self.find_prefix(tokens)
        others = [sequence for sequence in self._idle() if sequence is not source]
        pages = source if isinstance(source, list) else []
        if self.partial_reuse:
            self._offload(others, protected=pages)
            if pages:  # more exact ones may stand in their place
                pages, known = self.prefix_cache.find(tokens, bit_exact=not live)
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
                self._restore_blocks(taken, pages, length, bit_exact=not live)
        for sequence in live:
            sequence.exclusive = False
        taken.live, taken.exclusive = True, not live
        return taken

    def _empty_sequence(self, held: list[Sequence]) -> Sequence:
        empty = [s for s in self.sequences if not (s.live or s.tokens)]
        if not empty:
            empty = [min(held, key=lambda sequence: sequence.last_used)]
            self.release(empty[0])
        return empty[0]

    def _copy_prefix(self, taken: Sequence, source: Sequence, length: int) -> None:
        """Let the empty ``taken`` begin with the first cells of ``source``, which is live."""
        self._context.copy(source.number, taken.number, length)
        taken.tokens, taken.cells = source.tokens[:length], source.cells[:length]
        taken.bit_exact = min(source.bit_exact, length)
        self._cell_users.update(taken.cells)

    def _restore_blocks(
        self, taken: Sequence, pages: list[CachedBlock], length: int, *, bit_exact: bool
    ) -> None:
        """Let the empty ``taken`` begin with what stands on ``pages``, while there are cells."""
        for page in pages:
            begun = len(taken.tokens)
            if begun >= length:
                break
            end, data = begun + len(page.tokens), self.prefix_cache.data_of(page)
            if self._context.cells - self.cells_used < len(page.tokens) or not self._context.load(
                taken.number, begun, end, data
            ):
                break
            page.last_used = next(self._ticks)
            self.append(taken, page.tokens)
            taken.bit_exact += page.bit_exact if bit_exact and taken.bit_exact == begun else 0
        self._truncate(taken, min(length, len(taken.tokens) // ALIGNMENT * ALIGNMENT))
        if taken.tokens and not self._context.intact(taken.number, len(taken.tokens)):
            self._truncate(taken, 0)

    def pin(self, tokens: Tokens[int]) -> None:
        """Keep the beginning ``tokens`` from now on: what begins so goes last.

        Each is at most a quarter, together they are at most half as many tokens as there are cells;
        the oldest give way.
        """
        tokens = tokens[: self._context.cells // 4]
        if len(tokens) < MIN_BLOCK_TOKENS:
            return
        self._pins = [
            pin
            for pin in self._pins
            if common_prefix_length(pin, tokens) < min(len(pin), len(tokens))
        ]
        self._pins.append(list(tokens))
        while len(self._pins) > MAX_PINS or 2 * sum(map(len, self._pins)) > self._context.cells:
            self._pins.pop(0)

    def ensure_free(self, wanted: int) -> bool:
        """Make ``wanted`` cells free: what nobody is using leaves the context.

        False, and nothing leaves it, where live sequences leave too few.
        """
        if self._context.cells - self.cells_used >= wanted:
            return True
        live = {cell for sequence in self.sequences if sequence.live for cell in sequence.cells}
        if self._context.cells - len(live) < wanted:
            return False
        self._offload(self._idle())
        return True

    def append(self, sequence: Sequence, tokens: Tokens[int], *, bit_exact: bool = False) -> None:
        """``sequence`` has read ``tokens`` too; ``exactly``: of a prompt, and nothing beside."""
        shares = [next(self._cell_ids) for _ in tokens]
        sequence.tokens.extend(tokens)
        sequence.cells.extend(shares)
        self._cell_users.update(shares)
        if bit_exact and sequence.exclusive and len(tokens) >= MIN_CHUNK:
            sequence.bit_exact = len(sequence.tokens)

    def retain(self, sequence: Sequence, length: int | None = None) -> None:
        """Nobody writes on ``sequence`` any more; keep its first ``length`` tokens for whoever
        begins alike."""
        sequence.live, sequence.last_used = False, next(self._ticks)
        if self.partial_reuse:
            length = len(sequence.tokens) if length is None else min(length, len(sequence.tokens))
            self._truncate(sequence, length - length % ALIGNMENT)

    def save_idle(self) -> None:
        """Put what nobody is using on the shelf already: who comes next needn't wait for it."""
        for held in self._idle():
            self._save(held)

    def release(self, sequence: Sequence) -> None:
        """Forget ``sequence``; cells that others share stay."""
        self._truncate(sequence, 0)
        sequence.live = False

    def clear(self) -> None:
        """Forget everything."""
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
                pinned=self._pins,
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
