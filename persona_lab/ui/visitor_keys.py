"""Visitors' own provider keys: one page's, while it is open, in this process's memory alone.

They are in no database, log, file or browser storage. Reloading the page forgets them. A page whose
keys were forgotten is never answered with the house's in their place: it is told to enter them.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import SecretStr

from persona_lab.clients.api_keys import UserKeys
from persona_lab.lab import Lab
from persona_lab.pipeline.service import LLMService

MOST = 1000
"""Pages that can have keys of their own; the one that has asked nothing for longest loses them."""
EACH = 4
"""Pages of one visitor's that can."""
IDLE = 12 * 60 * 60
"""Seconds without a word from a page after which its keys go, though nobody said it was closed."""
MARKS = 10_000
"""Pages of which it is remembered that they had keys."""
GRACE = 30
"""Seconds in which a page that was taken to be closed may turn out to be open."""

Page = tuple[str, str]
"""Whose it is (``user_id``), and its session."""


@dataclass
class _Held:
    keys: UserKeys
    service: LLMService
    used: float
    live: bool = False
    """Whether there is a key; else the page had one, and it was forgotten."""


class UserKeyStore:
    """The keys of each page. ``clock`` counts seconds."""

    def __init__(
        self, lab: Lab, *, grace: float = GRACE, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._lab = lab
        self._grace = grace
        self._clock = clock
        self._held: OrderedDict[Page, _Held] = OrderedDict()
        """The longest silent first."""
        self._tidy_at = clock() + GRACE
        self._closing: set[asyncio.Task[None]] = set()

    def service(self, page: Page) -> LLMService:
        """What answers this page: the lab's service, asking with the page's keys if it has any."""
        self._tidy()
        held = self._held.get(page)
        if held is None:
            return self._lab.service
        held.used = self._clock()
        self._held.move_to_end(page)
        return held.service

    async def put(self, page: Page, provider: str, key: str) -> None:
        """From now on the page's messages to ``provider`` are paid for with ``key``; answers under
        way go on with what they began with."""
        self._make_room(page)
        if page not in self._held:
            clients, keys = self._lab.clients.with_user_keys(self._lab.layers.wrap_private)
            service = self._lab.service.with_clients(clients)
            self._held[page] = _Held(keys, service, self._clock())
        held = self._held[page]
        held.keys.put(provider, SecretStr(key))
        held.live = True

    def drop(self, page: Page, provider: str) -> None:
        """The house's key again, if it has one."""
        if page in self._held:
            self._held[page].keys.drop(provider)

    async def leave(self, page: Page) -> None:
        """The page seems to be closed: unless it asks for something soon, its keys go."""
        held = self._held.get(page)
        if held is None:
            return
        last = held.used
        await asyncio.sleep(self._grace)
        if held.used == last:
            self._forget(held)
            await asyncio.gather(*self._closing)

    def _tidy(self) -> None:
        """Who has said nothing for long gives up their keys, whoever comes by."""
        if self._clock() < self._tidy_at:
            return
        self._tidy_at = self._clock() + GRACE
        late = self._clock() - IDLE
        for held in itertools.takewhile(lambda held: held.used < late, self._held.values()):
            if held.live:
                self._forget(held)

    def _make_room(self, wanted: Page) -> None:
        """The longest silent give up their keys. A page that had some isn't taken for one that had
        none, as long as it is remembered."""
        live = [page for page, held in self._held.items() if held.live and page != wanted]
        theirs = [page for page in live if page[0] == wanted[0]]
        surplus = {*live[: max(0, len(live) - MOST + 1)], *theirs[: max(0, len(theirs) - EACH + 1)]}
        for page in surplus:
            self._forget(self._held[page])
        while len(self._held) > MARKS:
            self._held.popitem(last=False)

    def _forget(self, held: _Held) -> None:
        held.live = False
        held.keys.forget()
        closing = asyncio.create_task(held.service.clients.aclose())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
