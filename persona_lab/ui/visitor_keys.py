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

MAX_PAGES_WITH_KEYS = 1000
"""Maximum number of pages with keys. The page that has been idle longest loses its keys first."""
MAX_PAGES_PER_VISITOR = 4
"""Maximum number of pages with keys of one visitor."""
IDLE_TIMEOUT_S = 12 * 60 * 60
"""Seconds without a request from a page before its keys are forgotten, even if it isn't closed."""
MAX_REMEMBERED_PAGES = 10_000
"""Maximum number of remembered pages that have or had keys."""
CLOSE_GRACE_S = 30
"""Seconds in which a page that seemed to be closed can keep its keys by sending a request."""

Page = tuple[str, str]
"""The ``user_id`` of a page's visitor, and its session."""


@dataclass
class _PageKeys:
    keys: UserKeys
    service: LLMService
    last_used: float
    has_keys: bool = False
    """Whether the keys are there; if not, they were forgotten."""


class UserKeyStore:
    """The keys of each page.

    Args:
        lab: The lab, whose service answers pages without keys.
        grace: Seconds between the closing of a page and the loss of its keys.
        clock: Returns the time in seconds.
    """

    def __init__(
        self, lab: Lab, *, grace: float = CLOSE_GRACE_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._lab = lab
        self._close_grace_s = grace
        self._clock = clock
        self._pages: OrderedDict[Page, _PageKeys] = OrderedDict()
        """The page that has been idle longest is first."""
        self._next_cleanup = clock() + CLOSE_GRACE_S
        self._closing: set[asyncio.Task[None]] = set()

    def service(self, page: Page) -> LLMService:
        """Return the service for a page: the lab's, or one that uses the page's keys."""
        self._forget_idle()
        page_keys = self._pages.get(page)
        if page_keys is None:
            return self._lab.service
        page_keys.last_used = self._clock()
        self._pages.move_to_end(page)
        return page_keys.service

    async def put(self, page: Page, provider: str, key: str) -> None:
        """Use ``key`` for the page's requests to ``provider``, from the next request on.

        An answer that is being generated keeps the key that it began with.
        """
        self._evict_idle_pages(page)
        if page not in self._pages:
            clients, keys = self._lab.clients.with_user_keys(self._lab.layers.wrap_private)
            service = self._lab.service.with_clients(clients)
            self._pages[page] = _PageKeys(keys, service, self._clock())
        page_keys = self._pages[page]
        page_keys.keys.put(provider, SecretStr(key))
        page_keys.has_keys = True

    def drop(self, page: Page, provider: str) -> None:
        """Use the server's key for ``provider`` again, where the server has one."""
        if page in self._pages:
            self._pages[page].keys.drop(provider)

    async def close_page(self, page: Page) -> None:
        """Forget the keys of a page that seems to be closed, after the grace period.

        A request from the page within that time keeps them.
        """
        page_keys = self._pages.get(page)
        if page_keys is None:
            return
        last_used = page_keys.last_used
        await asyncio.sleep(self._close_grace_s)
        if page_keys.last_used == last_used:
            self._forget(page_keys)
            await asyncio.gather(*self._closing)

    def _forget_idle(self) -> None:
        """Forget the keys of all idle pages. Any page's request may trigger it."""
        if self._clock() < self._next_cleanup:
            return
        self._next_cleanup = self._clock() + CLOSE_GRACE_S
        oldest = self._clock() - IDLE_TIMEOUT_S
        for page_keys in itertools.takewhile(
            lambda page_keys: page_keys.last_used < oldest, self._pages.values()
        ):
            if page_keys.has_keys:
                self._forget(page_keys)

    def _evict_idle_pages(self, new_page: Page) -> None:
        """Forget keys of the pages that have been idle longest, until ``new_page`` fits in.

        A page whose keys were forgotten stays remembered as such, up to ``MAX_REMEMBERED_PAGES``.
        """
        pages_with_keys = [
            page
            for page, page_keys in self._pages.items()
            if page_keys.has_keys and page != new_page
        ]
        of_visitor = [page for page in pages_with_keys if page[0] == new_page[0]]
        surplus = {
            *pages_with_keys[: max(0, len(pages_with_keys) - MAX_PAGES_WITH_KEYS + 1)],
            *of_visitor[: max(0, len(of_visitor) - MAX_PAGES_PER_VISITOR + 1)],
        }
        for page in surplus:
            self._forget(self._pages[page])
        while len(self._pages) > MAX_REMEMBERED_PAGES:
            self._pages.popitem(last=False)

    def _forget(self, page_keys: _PageKeys) -> None:
        page_keys.has_keys = False
        page_keys.keys.forget()
        closing = asyncio.create_task(page_keys.service.clients.aclose())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
