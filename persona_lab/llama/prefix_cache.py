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

PAGE = 64
"""Tokens. No more than any model's sliding window: llama.cpp hands out no cells beyond it."""
WORTH_KEEPING = 32
"""Tokens that are worth a page of their own."""
_MORE = 1024
"""Bytes by which one page may be larger than another."""
_SYSTEM_PAGE = 4096
"""Bytes that a system gives at a time."""


@dataclass(eq=False, slots=True)
class Page:
    """``tokens``, and where their bytes are. ``exact``: how many of them were read exactly."""

    tokens: Sequence[int] = ()
    exact: int = 0
    slot: int = 0
    size: int = 0
    used: int = 0
    following: list[Page] = field(default_factory=list)

    def holds(self, tokens: Sequence[int], exact: int) -> bool:
        """Whether ``tokens`` are the first of its own, and read no less exactly."""
        return self.exact >= exact and common(self.tokens, tokens) == len(tokens)


Save = Callable[[int, int, memoryview], int]


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens the two begin with alike."""
    shortest = min(len(one), len(other))
    if one[:shortest] == other[:shortest]:
        return shortest
    return next(i for i in range(shortest) if one[i] != other[i])


class Shelf:
    def __init__(self, size: int) -> None:
        """``size``: bytes. How many pages that is shows the first full one."""
        self._bytes = bytearray(size)
        self._bytes[::_SYSTEM_PAGE] = bytes(len(range(0, size, _SYSTEM_PAGE)))  # taken now
        self._room = 0
        self._free: list[int] = []
        self._root = Page()

    def clear(self) -> None:
        self._root, self._room, self._free = Page(), 0, []

    def __len__(self) -> int:
        """Pages that are kept."""
        return sum(1 for _ in _below(self._root))

    def find(self, tokens: Sequence[int], *, exactly: bool = False) -> tuple[list[Page], int]:
        """The pages that ``tokens`` begin with, the last perhaps in part, and how many tokens
        those are; ``exactly``: of what was read exactly."""
        pages: list[Page] = []
        length, page = 0, self._root
        while True:
            rest = tokens[length : length + PAGE]
            best, alike = page, 0
            for following in page.following:
                same = common(following.tokens, rest)
                if exactly:
                    same = min(same, following.exact)
                if same > alike:
                    best, alike = following, same
            if not alike:
                return pages, length
            pages.append(best)
            length, page = length + alike, best
            if alike < PAGE:
                return pages, length

    def put(
        self,
        tokens: Sequence[int],
        exact: int,
        save: Save,
        *,
        now: int,
        pinned: Sequence[Sequence[int]] = (),
        spare: Sequence[Page] = (),
    ) -> None:
        """Keep ``tokens``, the first ``exact`` of them read exactly.

        ``save`` writes the cells of those from one to another and tells how many bytes they were,
        0 where there is too little room. What was used longest ago gives way, what is ``pinned``
        last and what is to ``spare`` never; where nothing can, the rest of ``tokens`` isn't kept.
        """
        page, path = self._root, [*spare]
        for begun in range(0, len(tokens), PAGE):
            piece = list(tokens[begun : begun + PAGE])
            known = min(max(0, exact - begun), len(piece))
            found = next((each for each in page.following if each.holds(piece, known)), None)
            if found is None:
                found = Page(piece, known)
                if len(piece) < WORTH_KEEPING or not self._fill(found, begun, save, pinned, path):
                    return
                for each in page.following[:]:
                    if found.holds(each.tokens, each.exact):
                        found.following += each.following
                        self._drop(page, each)
                page.following.append(found)
            found.used = now
            path.append(found)
            page = found

    def bytes_of(self, page: Page) -> memoryview:
        return self._at(page.slot)[: page.size]

    def _at(self, slot: int) -> memoryview:
        return memoryview(self._bytes)[slot * self._room : (slot + 1) * self._room]

    def _fill(
        self,
        page: Page,
        begun: int,
        save: Save,
        pinned: Sequence[Sequence[int]],
        spare: Sequence[Page],
    ) -> bool:
        """Put the page's bytes into a slot, if one can be had."""
        end = begun + len(page.tokens)
        if not self._room:
            page.size = save(begun, end, memoryview(self._bytes)) if end - begun == PAGE else 0
            if not page.size:
                return False
            self._room = page.size + _MORE
            self._free = list(range(len(self._bytes) // self._room))[:0:-1]
            return True
        if not self._free:
            self._let_go(pinned, spare)
        if not self._free:
            return False
        page.slot = self._free.pop()
        page.size = save(begun, end, self._at(page.slot))
        if not page.size:
            self._free.append(page.slot)
        return page.size > 0

    def _let_go(self, pinned: Sequence[Sequence[int]], spare: Sequence[Page]) -> None:
        stay = {id(page) for page in spare}
        dear = {id(page) for pin in pinned for page in self.find(pin)[0]}
        ends = [
            (before, page)
            for before, page in _below(self._root)
            if not page.following and id(page) not in stay
        ]
        if ends:
            self._drop(*min(ends, key=lambda end: (id(end[1]) in dear, end[1].used)))

    def _drop(self, before: Page, page: Page) -> None:
        before.following.remove(page)
        self._free.append(page.slot)


def _below(page: Page) -> Iterator[tuple[Page, Page]]:
    """All pages that follow ``page``, near or far, each with the one before it."""
    for following in page.following:
        yield page, following
        yield from _below(following)
