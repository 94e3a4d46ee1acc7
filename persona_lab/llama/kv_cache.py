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

from persona_lab.llama.prefix_cache import WORTH_KEEPING, Page, Shelf, common

BATCH = 512
"""Most tokens of a piece, as in llama.cpp: pieces end at its multiples."""
GRAIN = 4
"""Tokens that llama.cpp sums up together."""
SHORTEST = 8
"""Tokens. A piece of fewer is summed up in another way."""
PINS = 8
"""Beginnings that are kept whatever else goes; one more lets go of the oldest."""


class Cells(Protocol):
    """The part of :class:`native.Context` that is needed here."""

    cells: int

    def copy(self, source: int, target: int, length: int) -> None: ...
    def cut(self, sequence: int, length: int = 0) -> bool: ...
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
    shares: list[int] = field(default_factory=list)
    exact: int = 0
    live: bool = False
    alone: bool = False
    used: int = 0


def piece(begun: int, end: int, most: int) -> int:
    """How many tokens to read at once of those from ``begun`` to ``end``, at most ``most``."""
    left = min(end, begun - begun % BATCH + BATCH) - begun
    if left <= most:
        return left
    size = most - most % GRAIN
    return size if left - size >= SHORTEST else max(0, size - SHORTEST)


def _of_use(known: int, tokens: int) -> int:
    """How many of ``known`` tokens needn't be read by who has ``tokens``, of which they're the
    first.

    Never all: the last has to be read for what comes after it to be known.
    """
    known = min(known, tokens - 1)
    known -= known % GRAIN
    batch = known - known % BATCH
    end = min(tokens, batch + BATCH)  # of the piece that begins there
    if known > batch and end - known < SHORTEST:
        known = max(batch, (end - SHORTEST) // GRAIN * GRAIN)
    return known


def readable_ahead(length: int) -> int:
    """How many of ``length`` tokens can be read ahead of what follows them, and be exact."""
    length -= length % GRAIN
    over = length % BATCH
    if over < SHORTEST:
        return length - over
    return length - max(0, SHORTEST - (BATCH - over))


class Memory:
    def __init__(
        self, context: Cells, sequences: int, *, shelf: int = 0, divisible: bool = True
    ) -> None:
        """``shelf``: its bytes. ``divisible``: a sequence's beginning can be taken over without its
        end, as it can from attention's cells and can't from a recurrent model's single state: that
        isn't put on the shelf."""
        self._context = context
        self.divisible = divisible
        self.sequences = [Sequence(number) for number in range(sequences)]
        self.shelf = Shelf(shelf if divisible else 0)
        self._pins: list[list[int]] = []
        self._holders: Counter[int] = Counter()
        self._names = count()
        self._clock = count(1)

    @property
    def used(self) -> int:
        """Cells in use."""
        return len(self._holders)

    def find(self, tokens: Tokens[int]) -> tuple[Sequence | list[Page] | None, int]:
        """Whose beginning serves most of ``tokens``, and how many of them."""
        alone = not any(sequence.live for sequence in self.sequences)
        best: Sequence | list[Page] | None = None
        length = 0
        for sequence in self.sequences:
            known = common(sequence.tokens, tokens)
            if self.divisible:
                known = _of_use(min(known, sequence.exact) if alone else known, len(tokens))
            elif sequence.live or known < len(sequence.tokens) or known == len(tokens):
                continue
            whole = not self.divisible or self._context.intact(sequence.number, known)
            if known > length and whole:
                best, length = sequence, known
        pages, known = self.shelf.find(tokens, exactly=alone)
        known = _of_use(known, len(tokens))
        return (pages, known) if known > length else (best, length)

    def take(self, tokens: Tokens[int]) -> Sequence:
        """A live sequence that has read as much of ``tokens`` as :meth:`find` says.

        What nobody is using leaves the context, which is the live ones' alone. One sequence must be
        idle: there are more than live streams.
        """
        live = [sequence for sequence in self.sequences if sequence.live]
        if not live:  # what was read beside others lies among cells that were theirs
            self._put_away([s for s in self._held() if not s.alone])
        source, length = self.find(tokens)
        others = [sequence for sequence in self._held() if sequence is not source]
        pages = source if isinstance(source, list) else []
        if self.divisible:
            self._put_away(others, spare=pages)
            if pages:  # more exact ones may stand in their place
                pages, known = self.shelf.find(tokens, exactly=not live)
                length = min(length, _of_use(known, len(tokens)))
            if not self.used:
                self._context.rewind()
        if isinstance(source, Sequence) and not source.live:
            taken = source
            if length < len(source.tokens):
                self._keep(source)
                self._shorten(source, length)
        else:
            taken = self._empty(others)
            if isinstance(source, Sequence):
                self._share(taken, source, length)
            else:
                self._load(taken, pages, length, exactly=not live)
        for sequence in live:
            sequence.alone = False
        taken.live, taken.alone = True, not live
        return taken

    def _empty(self, held: list[Sequence]) -> Sequence:
        empty = [s for s in self.sequences if not (s.live or s.tokens)]
        if not empty:
            empty = [min(held, key=lambda sequence: sequence.used)]
            self.drop(empty[0])
        return empty[0]

    def _share(self, taken: Sequence, source: Sequence, length: int) -> None:
        """Let the empty ``taken`` begin with the first cells of ``source``, which is live."""
        self._context.copy(source.number, taken.number, length)
        taken.tokens, taken.shares = source.tokens[:length], source.shares[:length]
        taken.exact = min(source.exact, length)
        self._holders.update(taken.shares)

    def _load(self, taken: Sequence, pages: list[Page], length: int, *, exactly: bool) -> None:
        """Let the empty ``taken`` begin with what stands on ``pages``, while there are cells."""
        for page in pages:
            begun = len(taken.tokens)
            if begun >= length:
                break
            end, data = begun + len(page.tokens), self.shelf.bytes_of(page)
            if self._context.cells - self.used < len(page.tokens) or not self._context.load(
                taken.number, begun, end, data
            ):
                break
            page.used = next(self._clock)
            self.read(taken, page.tokens)
            taken.exact += page.exact if exactly and taken.exact == begun else 0
        self._shorten(taken, min(length, len(taken.tokens) // GRAIN * GRAIN))
        if taken.tokens and not self._context.intact(taken.number, len(taken.tokens)):
            self._shorten(taken, 0)

    def pin(self, tokens: Tokens[int]) -> None:
        """Keep the beginning ``tokens`` from now on: what begins so goes last.

        Each is at most a quarter, together they are at most half as many tokens as there are cells;
        the oldest give way.
        """
        tokens = tokens[: self._context.cells // 4]
        if len(tokens) < WORTH_KEEPING:
            return
        self._pins = [pin for pin in self._pins if common(pin, tokens) < min(len(pin), len(tokens))]
        self._pins.append(list(tokens))
        while len(self._pins) > PINS or 2 * sum(map(len, self._pins)) > self._context.cells:
            self._pins.pop(0)

    def room(self, wanted: int) -> bool:
        """Make ``wanted`` cells free: what nobody is using leaves the context.

        False, and nothing leaves it, where live sequences leave too few.
        """
        if self._context.cells - self.used >= wanted:
            return True
        live = {cell for sequence in self.sequences if sequence.live for cell in sequence.shares}
        if self._context.cells - len(live) < wanted:
            return False
        self._put_away(self._held())
        return True

    def read(self, sequence: Sequence, tokens: Tokens[int], *, exactly: bool = False) -> None:
        """``sequence`` has read ``tokens`` too; ``exactly``: of a prompt, and nothing beside."""
        shares = [next(self._names) for _ in tokens]
        sequence.tokens.extend(tokens)
        sequence.shares.extend(shares)
        self._holders.update(shares)
        if exactly and sequence.alone and len(tokens) >= SHORTEST:
            sequence.exact = len(sequence.tokens)

    def hold(self, sequence: Sequence, length: int | None = None) -> None:
        """Nobody writes on ``sequence`` any more; keep its first ``length`` tokens for whoever
        begins alike."""
        sequence.live, sequence.used = False, next(self._clock)
        if self.divisible:
            length = len(sequence.tokens) if length is None else min(length, len(sequence.tokens))
            self._shorten(sequence, length - length % GRAIN)

    def keep(self) -> None:
        """Put what nobody is using on the shelf already: who comes next needn't wait for it."""
        for held in self._held():
            self._keep(held)

    def drop(self, sequence: Sequence) -> None:
        """Forget ``sequence``; cells that others share stay."""
        self._shorten(sequence, 0)
        sequence.live = False

    def clear(self) -> None:
        """Forget everything."""
        self._context.clear()
        self._holders.clear()
        self.shelf.clear()
        self.sequences = [Sequence(sequence.number) for sequence in self.sequences]

    def _held(self) -> list[Sequence]:
        return [s for s in self.sequences if s.tokens and not s.live]

    def _put_away(self, held: list[Sequence], spare: Tokens[Page] = ()) -> None:
        for sequence in held:
            self._keep(sequence, spare)
            self.drop(sequence)

    def _keep(self, held: Sequence, spare: Tokens[Page] = ()) -> None:
        if self.divisible and self._context.intact(held.number, 0):
            self.shelf.put(
                held.tokens,
                held.exact,
                lambda begin, end, into: self._context.save(held.number, begin, end, into),
                now=next(self._clock),
                pinned=self._pins,
                spare=spare,
            )

    def _shorten(self, sequence: Sequence, length: int) -> None:
        """Keep the first ``length`` tokens of ``sequence``."""
        if length < len(sequence.tokens) and not self._context.cut(sequence.number, length):
            length = 0
            self._context.cut(sequence.number)
        for cell in sequence.shares[length:]:
            if self._holders[cell] == 1:
                del self._holders[cell]
            else:
                self._holders[cell] -= 1
        del sequence.tokens[length:]
        del sequence.shares[length:]
        sequence.exact = min(sequence.exact, length)
