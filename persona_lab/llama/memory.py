"""What has been read, and who shares it.

llama.cpp keeps the cells; this keeps the books: which tokens each sequence has read, how many
cells are in use (llama.cpp doesn't tell) and which sequence was used longest ago.
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


class Memory:
    def __init__(self, context: Cells, sequences: int, *, divisible: bool = True) -> None:
        """``divisible``: a sequence's beginning can be taken over without its end, as it can
        from attention's cells and can't from a recurrent model's single state."""
        self._context = context
        self._divisible = divisible
        self.sequences = [Sequence(number) for number in range(sequences)]
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
            target = min(idle, key=lambda s: (bool(s.tokens), s.used))
            self.drop(target)
            if source is not None:
                self._context.copy(source.number, target.number, length)
                target.tokens = source.tokens[:length]
                target.cells = source.cells[:length]
                self._holders.update(target.cells)
            source = target
        source.live = True
        return source

    def room(self, wanted: int) -> bool:
        """Make ``wanted`` cells free, letting go of what was used longest ago.

        False, and nothing is let go of, where live sequences leave too few.
        """
        live = {cell for sequence in self.sequences if sequence.live for cell in sequence.cells}
        if self._context.cells - len(live) < wanted:
            return False
        while self._context.cells - self.used < wanted:
            held = [s for s in self.sequences if s.tokens and not s.live]
            if not held:
                return False
            self.drop(min(held, key=lambda s: s.used))
        return True

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
        if sequence.tokens:
            self._context.cut(sequence.number)
        for cell in sequence.cells:
            if self._holders[cell] == 1:
                del self._holders[cell]
            else:
                self._holders[cell] -= 1
        sequence.tokens = []
        sequence.cells = []
        sequence.live = False

    def clear(self) -> None:
        """Forget everything."""
        self._context.clear()
        self._holders.clear()
        self.sequences = [Sequence(sequence.number) for sequence in self.sequences]
