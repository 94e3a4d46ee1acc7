"""Visitors' own provider keys. Each belongs to one open page and stays in this process's memory.

No database, log, file or browser storage has them. A reload of the page forgets them. When the
server has forgotten a page's keys, it never answers that page with the server's keys instead: the
visitor gets an error that asks for the key.
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
"""Maximum number of pages with keys. The page that has been idle longest loses its keys first."""
EACH = 4
"""Maximum number of pages with keys of one visitor."""
IDLE = 12 * 60 * 60
"""Seconds without a request from a page before its keys are forgotten, even if it isn't closed."""
MARKS = 10_000
"""Maximum number of remembered pages that have or had keys."""
GRACE = 30
"""Seconds in which a page that seemed to be closed can keep its keys by sending a request."""

Page = tuple[str, str]
"""The ``user_id`` of a page's visitor, and its session."""


@dataclass
class _Held:
    keys: UserKeys
    service: LLMService
    used: float
    live: bool = False
    """Whether the keys are there; if not, they were forgotten."""


class UserKeyStore:
    """The keys of each page.

    Args:
        lab: The lab, whose service answers pages without keys.
        grace: Seconds between the closing of a page and the loss of its keys.
        clock: Returns the time in seconds.
    """

    def __init__(
        self, lab: Lab, *, grace: float = GRACE, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._lab = lab
        self._grace = grace
        self._clock = clock
        self._held: OrderedDict[Page, _Held] = OrderedDict()
        """The page that has been idle longest is first."""
        self._tidy_at = clock() + GRACE
        self._closing: set[asyncio.Task[None]] = set()

    def service(self, page: Page) -> LLMService:
        """Return the service for a page: the lab's, or one that uses the page's keys."""
        self._forget_idle()
        held = self._held.get(page)
        if held is None:
            return self._lab.service
        held.used = self._clock()
        self._held.move_to_end(page)
        return held.service

    async def put(self, page: Page, provider: str, key: str) -> None:
        """Use ``key`` for the page's requests to ``provider``, from the next request on.

        An answer that is being generated keeps the key that it began with.
        """
        self._make_room(page)
        if page not in self._held:
            clients, keys = self._lab.clients.with_user_keys(self._lab.layers.wrap_private)
            service = self._lab.service.with_clients(clients)
            self._held[page] = _Held(keys, service, self._clock())
        held = self._held[page]
        held.keys.put(provider, SecretStr(key))
        held.live = True

    def drop(self, page: Page, provider: str) -> None:
        """Use the server's key for ``provider`` again, where the server has one."""
        if page in self._held:
            self._held[page].keys.drop(provider)

    async def leave(self, page: Page) -> None:
        """Forget the keys of a page that seems to be closed, after the grace period.

        A request from the page within that time keeps them.
        """
        held = self._held.get(page)
        if held is None:
            return
        last = held.used
        await asyncio.sleep(self._grace)
        if held.used == last:
            self._forget(held)
            await asyncio.gather(*self._closing)

    def _forget_idle(self) -> None:
        """Forget the keys of all idle pages. Any page's request may trigger it."""
        if self._clock() < self._tidy_at:
            return
        self._tidy_at = self._clock() + GRACE
        oldest = self._clock() - IDLE
        for held in itertools.takewhile(lambda held: held.used < oldest, self._held.values()):
            if held.live:
                self._forget(held)

    def _make_room(self, wanted: Page) -> None:
        """Forget keys of the pages that have been idle longest, until ``wanted`` fits in.

        A page whose keys were forgotten stays remembered as such, up to ``MARKS`` pages.
        """
        live = [page for page, held in self._held.items() if held.live and page != wanted]
        of_visitor = [page for page in live if page[0] == wanted[0]]
        surplus = {
            *live[: max(0, len(live) - MOST + 1)],
            *of_visitor[: max(0, len(of_visitor) - EACH + 1)],
        }
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
