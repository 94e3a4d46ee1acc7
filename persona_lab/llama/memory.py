"""What has been read, and who shares it.

llama.cpp keeps the cells; this keeps the books: which tokens each sequence has read, how many
cells are in use (llama.cpp doesn't tell), which sequence was used longest ago, and which
beginnings are *pinned*: they stay while what hangs on them goes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol


class Cells(Protocol):
    """The part of :class:`native.Context` that is needed here."""

    cells: int

    def copy(self, source: int, target: int, length: int) -> None: ...
    def cut(self, sequence: int, length: int = 0) -> bool: ...
    def clear(self) -> None: ...


@dataclass(eq=False, slots=True)
class Sequence:
    """Tokens that were read one after another. ``cells``: one name for each token's cell."""

    number: int
    tokens: list[int] = field(default_factory=list)
    cells: list[int] = field(default_factory=list)
    live: bool = False
    used: int = 0


def common(one: Tokens[int], other: Tokens[int]) -> int:
    """How many tokens the two begin with alike."""
    shortest = min(len(one), len(other))
    if one[:shortest] == other[:shortest]:
        return shortest
    return next(i for i in range(shortest) if one[i] != other[i])


PINS = 8
"""Beginnings that are kept whatever else goes; one more lets go of the oldest."""


class Memory:
    def __init__(self, context: Cells, sequences: int, *, divisible: bool = True) -> None:
        """``divisible``: a sequence's beginning can be taken over without its end, as it can
        from attention's cells and can't from a recurrent model's single state."""
        self._context = context
        self._divisible = divisible
        self.sequences = [Sequence(number) for number in range(sequences)]
        self._pins: list[list[int]] = []
        self._holders: Counter[int] = Counter()
        self._names = count()
        self._clock = count(1)

    @property
    def used(self) -> int:
        """Cells in use."""
        return len(self._holders)

    def find(self, tokens: Tokens[int]) -> tuple[Sequence | None, int]:
        """The sequence that begins most like ``tokens``, and for how many of them.

        Never all of them: the last has to be read for what comes after it to be known.
        """
        best, length = None, 0
        for sequence in self.sequences:
            alike = min(common(sequence.tokens, tokens), len(tokens) - 1)
            whole = alike == len(sequence.tokens) and not sequence.live
            if alike > length and (whole or self._divisible):
                best, length = sequence, alike
        return best, length

    def take(self, tokens: Tokens[int]) -> Sequence:
        """A live sequence that has read as much of ``tokens`` as any has.

        One must be idle: there are more sequences than live streams.
        """
        source, length = self.find(tokens)
        if source is None or source.live or length < len(source.tokens):
            idle = [s for s in self.sequences if not s.live and s is not source]
            target = min(idle, key=lambda s: (bool(s.tokens), self._pinned(s), s.used))
            self.drop(target)
            if source is not None:
                self._context.copy(source.number, target.number, length)
                target.tokens = source.tokens[:length]
                target.cells = source.cells[:length]
                self._holders.update(target.cells)
            source = target
        source.live = True
        return source

    def pin(self, tokens: Tokens[int]) -> None:
        """Keep the beginning ``tokens`` from now on: what begins so goes last, and only down to it.

        Together pins take at most half of the cells; the oldest give way.
        """
        self._pins = [pin for pin in self._pins if common(pin, tokens) < min(len(pin), len(tokens))]
        self._pins.append(list(tokens))
        while len(self._pins) > PINS or 2 * sum(map(len, self._pins)) > self._context.cells:
            self._pins.pop(0)

    def room(self, wanted: int) -> bool:
        """Make ``wanted`` cells free, letting go of what was used longest ago, of pins last.

        False, and nothing is let go of, where live sequences leave too few.
        """
        live = {cell for sequence in self.sequences if sequence.live for cell in sequence.cells}
        if self._context.cells - len(live) < wanted:
            return False
        while self._context.cells - self.used < wanted:
            held = [s for s in self.sequences if s.tokens and not s.live]
            loose = [s for s in held if len(s.tokens) > self._pinned(s)]
            if not held:
                return False
            victim = min(loose or held, key=lambda s: s.used)
            self._shorten(victim, self._pinned(victim) if loose else 0)
        return True

    def _pinned(self, sequence: Sequence) -> int:
        """Tokens at the beginning of ``sequence`` that are a pin, and stand nowhere else."""
        alike = [len(pin) for pin in self._pins if common(pin, sequence.tokens) == len(pin)]
        length = max(alike, default=0)
        if length and self._holders[sequence.cells[length - 1]] > 1:
            return 0
        return length if self._divisible or length == len(sequence.tokens) else 0

    def read(self, sequence: Sequence, tokens: Tokens[int]) -> None:
        """``sequence`` has read ``tokens`` too."""
        cells = [next(self._names) for _ in tokens]
        sequence.tokens.extend(tokens)
        sequence.cells.extend(cells)
        self._holders.update(cells)

    def hold(self, sequence: Sequence) -> None:
        """Nobody writes on ``sequence`` any more; keep it for whoever begins alike."""
        sequence.live = False
        sequence.used = next(self._clock)

    def drop(self, sequence: Sequence) -> None:
        """Forget ``sequence``; cells that others share stay."""
        self._shorten(sequence, 0)
        sequence.live = False

    def _shorten(self, sequence: Sequence, length: int) -> None:
        """Keep the first ``length`` tokens of ``sequence``."""
        if sequence.tokens:
            self._context.cut(sequence.number, length)
        for cell in sequence.cells[length:]:
            if self._holders[cell] == 1:
                del self._holders[cell]
            else:
                self._holders[cell] -= 1
        del sequence.tokens[length:]
        del sequence.cells[length:]

    def clear(self) -> None:
        """Forget everything."""
        self._context.clear()
        self._holders.clear()
        self.sequences = [Sequence(sequence.number) for sequence in self.sequences]
