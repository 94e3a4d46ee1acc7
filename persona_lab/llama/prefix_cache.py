"""What was read before, kept as bytes outside of the context: a tree of token prefixes.

In the context it would cost every step of every answer: attention weighs each cell there, whoever
it belongs to. Out of it, it costs a copy, some 5 ms for 900 tokens of a small model. A *page* holds
the cells of :data:`PAGE` tokens, or of fewer at a prompt's end, and follows the page of those
before; what begins alike stands there once::

    persona A ▒▒▒▒─▒▒▒▒─▒▒▒▒─┬─▒▒▒▒─▒▒  chat A
                             └─▒▒▒      chat B
    persona C ▒▒▒▒─▒▒▒▒─▒▒▒▒───▒        chat D

The memory is taken at once, so that it is as large at the start as it will ever be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

BLOCK_TOKENS = 64
"""Tokens. No more than any model's sliding window: llama.cpp hands out no cells beyond it."""
MIN_BLOCK_TOKENS = 32
"""Tokens that are worth a page of their own."""
_SLOT_MARGIN_BYTES = 1024
"""Bytes by which one page may be larger than another."""
_OS_PAGE_BYTES = 4096
"""Bytes that a system gives at a time."""


@dataclass(eq=False, slots=True)
class CachedBlock:
    """``tokens``, and where their bytes are. ``exact``: how many of them were read exactly."""

    tokens: Sequence[int] = ()
    bit_exact: int = 0
    slot: int = 0
    size: int = 0
    last_used: int = 0
    children: list[CachedBlock] = field(default_factory=list)

    def covers(self, tokens: Sequence[int], bit_exact: int) -> bool:
        """Whether ``tokens`` are the first of its own, and read no less exactly."""
        return self.bit_exact >= bit_exact and common_prefix_length(self.tokens, tokens) == len(
            tokens
        )


SaveCells = Callable[[int, int, memoryview], int]


def common_prefix_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens the two begin with alike."""
    shortest = min(len(one), len(other))
    if one[:shortest] == other[:shortest]:
        return shortest
    return next(i for i in range(shortest) if one[i] != other[i])


class PrefixCache:
    def __init__(self, size: int) -> None:
        """``size``: bytes. How many pages that is shows the first full one."""
        self._bytes = bytearray(size)
        self._bytes[::_OS_PAGE_BYTES] = bytes(len(range(0, size, _OS_PAGE_BYTES)))  # taken now
        self._slot_bytes = 0
        self._free_slots: list[int] = []
        self._root = CachedBlock()

    def clear(self) -> None:
        self._root, self._slot_bytes, self._free_slots = CachedBlock(), 0, []

    def __len__(self) -> int:
        """Pages that are kept."""
        return sum(1 for _ in _descendants(self._root))

    def find(
        self, tokens: Sequence[int], *, bit_exact: bool = False
    ) -> tuple[list[CachedBlock], int]:
        """The pages that ``tokens`` begin with, the last perhaps in part, and how many tokens
        those are; ``exactly``: of what was read exactly."""
        pages: list[CachedBlock] = []
        length, page = 0, self._root
        while True:
            rest = tokens[length : length + BLOCK_TOKENS]
            best, alike = page, 0
            for following in page.children:
                same = common_prefix_length(following.tokens, rest)
                if bit_exact:
                    same = min(same, following.bit_exact)
                if same > alike:
                    best, alike = following, same
            if not alike:
                return pages, length
            pages.append(best)
            length, page = length + alike, best
            if alike < BLOCK_TOKENS:
                return pages, length

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
        """Keep ``tokens``, the first ``exact`` of them read exactly.

        ``save`` writes the cells of those from one to another and tells how many bytes they were,
        0 where there is too little room. What was used longest ago gives way, what is ``pinned``
        last and what is to ``spare`` never; where nothing can, the rest of ``tokens`` isn't kept.
        """
        page, path = self._root, [*protected]
        for begun in range(0, len(tokens), BLOCK_TOKENS):
            piece = list(tokens[begun : begun + BLOCK_TOKENS])
            known = min(max(0, bit_exact - begun), len(piece))
            found = next((each for each in page.children if each.covers(piece, known)), None)
            if found is None:
                found = CachedBlock(piece, known)
                if len(piece) < MIN_BLOCK_TOKENS or not self._store(
                    found, begun, save, pinned, path
                ):
                    return
                for each in page.children[:]:
                    if found.covers(each.tokens, each.bit_exact):
                        found.children += each.children
                        self._remove(page, each)
                page.children.append(found)
            found.last_used = now
            path.append(found)
            page = found

    def data_of(self, page: CachedBlock) -> memoryview:
        return self._slot(page.slot)[: page.size]

    def _slot(self, slot: int) -> memoryview:
        return memoryview(self._bytes)[slot * self._slot_bytes : (slot + 1) * self._slot_bytes]

    def _store(
        self,
        page: CachedBlock,
        begun: int,
        save: SaveCells,
        pinned: Sequence[Sequence[int]],
        protected: Sequence[CachedBlock],
    ) -> bool:
        """Put the page's bytes into a slot, if one can be had."""
        end = begun + len(page.tokens)
        if not self._slot_bytes:
            page.size = (
                save(begun, end, memoryview(self._bytes)) if end - begun == BLOCK_TOKENS else 0
            )
            if not page.size:
                return False
            self._slot_bytes = page.size + _SLOT_MARGIN_BYTES
            self._free_slots = list(range(len(self._bytes) // self._slot_bytes))[:0:-1]
            return True
        if not self._free_slots:
            self._evict_one(pinned, protected)
        if not self._free_slots:
            return False
        page.slot = self._free_slots.pop()
        page.size = save(begun, end, self._slot(page.slot))
        if not page.size:
            self._free_slots.append(page.slot)
        return page.size > 0

    def _evict_one(self, pinned: Sequence[Sequence[int]], protected: Sequence[CachedBlock]) -> None:
        stay = {id(page) for page in protected}
        dear = {id(page) for pin in pinned for page in self.find(pin)[0]}
        ends = [
            (before, page)
            for before, page in _descendants(self._root)
            if not page.children and id(page) not in stay
        ]
        if ends:
            self._remove(*min(ends, key=lambda end: (id(end[1]) in dear, end[1].last_used)))

    def _remove(self, before: CachedBlock, page: CachedBlock) -> None:
        before.children.remove(page)
        self._free_slots.append(page.slot)


def _descendants(page: CachedBlock) -> Iterator[tuple[CachedBlock, CachedBlock]]:
    """All pages that follow ``page``, near or far, each with the one before it."""
    for following in page.children:
        yield page, following
        yield from _descendants(following)
