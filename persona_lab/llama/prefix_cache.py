"""Evaluated prefixes, kept as bytes outside of the context: a tree of blocks of tokens.

Inside the context they would slow down every step of every answer, because attention weighs each
cell there, whichever sequence it belongs to. Outside, they cost a copy: about 5 ms for 900 tokens
of a small model. A block holds the cells of :data:`BLOCK_TOKENS` tokens, or of fewer at a prompt's
end, and follows the block with the tokens before them. A shared prefix is stored once::

    persona A ▒▒▒▒─▒▒▒▒─▒▒▒▒─┬─▒▒▒▒─▒▒  chat A
                             └─▒▒▒      chat B
    persona C ▒▒▒▒─▒▒▒▒─▒▒▒▒───▒        chat D

The memory is allocated at once, so the process doesn't grow later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

BLOCK_TOKENS = 64
"""Tokens of a block. Not more than any model's sliding window: llama.cpp saves only its cells."""
MIN_BLOCK_TOKENS = 32
"""The smallest block that is worth keeping, in tokens."""
_SLOT_MARGIN_BYTES = 1024
"""Bytes by which one block may be larger than another."""
_OS_PAGE_BYTES = 4096
"""Bytes that the system allocates at a time."""


@dataclass(eq=False, slots=True)
class CachedBlock:
    """The cells of up to :data:`BLOCK_TOKENS` tokens.

    Attributes:
        tokens: The tokens.
        bit_exact: How many of them are bit-exact.
        slot: Where its bytes are.
        size: How many bytes it has.
        last_used: The tick at which it was last used.
        children: The blocks that follow it.
    """

    tokens: Sequence[int] = ()
    bit_exact: int = 0
    slot: int = 0
    size: int = 0
    last_used: int = 0
    children: list[CachedBlock] = field(default_factory=list)

    def covers(self, tokens: Sequence[int], bit_exact: int) -> bool:
        """Return whether it begins with ``tokens`` and as many are bit-exact."""
        return self.bit_exact >= bit_exact and common_prefix_length(self.tokens, tokens) == len(
            tokens
        )


SaveCells = Callable[[int, int, memoryview], int]


def common_prefix_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many leading tokens the two have in common."""
    shortest = min(len(one), len(other))
    if one[:shortest] == other[:shortest]:
        return shortest
    return next(i for i in range(shortest) if one[i] != other[i])


class PrefixCache:
    """Evaluated prefixes in a fixed amount of memory, evicted by least recent use."""

    def __init__(self, size: int) -> None:
        """Allocate ``size`` bytes. The first full block decides how many blocks fit."""
        self._bytes = bytearray(size)
        # Touch each page, so that the system allocates it now.
        self._bytes[::_OS_PAGE_BYTES] = bytes(len(range(0, size, _OS_PAGE_BYTES)))
        self._slot_bytes = 0
        self._free_slots: list[int] = []
        self._root = CachedBlock()

    def clear(self) -> None:
        """Remove everything."""
        self._root, self._slot_bytes, self._free_slots = CachedBlock(), 0, []

    def __len__(self) -> int:
        """Return the number of blocks."""
        return sum(1 for _ in _descendants(self._root))

    def find(
        self, tokens: Sequence[int], *, bit_exact: bool = False
    ) -> tuple[list[CachedBlock], int]:
        """Find the longest stored prefix of ``tokens``.

        Args:
            tokens: A prompt.
            bit_exact: Count only tokens that are bit-exact.

        Returns:
            Its blocks, of which the last may match in part, and the number of matching tokens.
        """
        blocks: list[CachedBlock] = []
        length, block = 0, self._root
        while True:
            rest = tokens[length : length + BLOCK_TOKENS]
            best, alike = block, 0
            for following in block.children:
                same = common_prefix_length(following.tokens, rest)
                if bit_exact:
                    same = min(same, following.bit_exact)
                if same > alike:
                    best, alike = following, same
            if not alike:
                return blocks, length
            blocks.append(best)
            length, block = length + alike, best
            if alike < BLOCK_TOKENS:
                return blocks, length

    def insert(
        self,
        tokens: Sequence[int],
        bit_exact: int,
        save: SaveCells,
        *,
        now: int,
        pinned: Sequence[Sequence[int]] = (),
        protected: Sequence[CachedBlock] = (),
    ) -> None:
        """Store ``tokens``. If nothing can be evicted, the rest of them isn't stored.

        Args:
            tokens: The tokens of a sequence.
            bit_exact: How many of the first are bit-exact.
            save: Copies the cells from one token to another into memory, and returns how many
                bytes they have; 0 if the memory is too small.
            now: The present tick.
            pinned: Prefixes whose blocks are evicted last.
            protected: Blocks that aren't evicted.
        """
        block, path = self._root, [*protected]
        for begun in range(0, len(tokens), BLOCK_TOKENS):
            piece = list(tokens[begun : begun + BLOCK_TOKENS])
            known = min(max(0, bit_exact - begun), len(piece))
            found = next((each for each in block.children if each.covers(piece, known)), None)
            if found is None:
                found = CachedBlock(piece, known)
                if len(piece) < MIN_BLOCK_TOKENS or not self._store(
                    found, begun, save, pinned, path
                ):
                    return
                for each in block.children[:]:
                    if found.covers(each.tokens, each.bit_exact):
                        found.children += each.children
                        self._remove(block, each)
                block.children.append(found)
            found.last_used = now
            path.append(found)
            block = found

    def data_of(self, block: CachedBlock) -> memoryview:
        """Return the bytes of ``block``."""
        return self._slot(block.slot)[: block.size]

    def _slot(self, slot: int) -> memoryview:
        return memoryview(self._bytes)[slot * self._slot_bytes : (slot + 1) * self._slot_bytes]

    def _store(
        self,
        block: CachedBlock,
        begun: int,
        save: SaveCells,
        pinned: Sequence[Sequence[int]],
        protected: Sequence[CachedBlock],
    ) -> bool:
        """Copy the block's cells into a slot; return whether there was one."""
        end = begun + len(block.tokens)
        if not self._slot_bytes:
            block.size = (
                save(begun, end, memoryview(self._bytes)) if end - begun == BLOCK_TOKENS else 0
            )
            if not block.size:
                return False
            self._slot_bytes = block.size + _SLOT_MARGIN_BYTES
            self._free_slots = list(range(len(self._bytes) // self._slot_bytes))[:0:-1]
            return True
        if not self._free_slots:
            self._evict_one(pinned, protected)
        if not self._free_slots:
            return False
        block.slot = self._free_slots.pop()
        block.size = save(begun, end, self._slot(block.slot))
        if not block.size:
            self._free_slots.append(block.slot)
        return block.size > 0

    def _evict_one(self, pinned: Sequence[Sequence[int]], protected: Sequence[CachedBlock]) -> None:
        protected_ids = {id(block) for block in protected}
        pinned_ids = {id(block) for pin in pinned for block in self.find(pin)[0]}
        ends = [
            (before, block)
            for before, block in _descendants(self._root)
            if not block.children and id(block) not in protected_ids
        ]
        if ends:
            self._remove(*min(ends, key=lambda end: (id(end[1]) in pinned_ids, end[1].last_used)))

    def _remove(self, before: CachedBlock, block: CachedBlock) -> None:
        before.children.remove(block)
        self._free_slots.append(block.slot)


def _descendants(block: CachedBlock) -> Iterator[tuple[CachedBlock, CachedBlock]]:
    """Yield all blocks below ``block``, each with its parent."""
    for following in block.children:
        yield block, following
        yield from _descendants(following)
