"""Visitors' own provider keys: one page's, while it is open, in this process's memory alone.

They are in no database, log, file or browser storage. Reloading the page forgets them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cachetools import TTLCache
from pydantic import SecretStr

from persona_lab.lab import Lab
from persona_lab.service import LLMService

MOST = 1000
"""Pages that can have keys of their own; the one that got its keys first loses them to another."""
FORGOTTEN = 12 * 60 * 60
"""Seconds after which the keys of a page go, if nobody has told that it was closed."""


@dataclass(frozen=True)
class _Held:
    keys: Mapping[str, SecretStr]
    service: LLMService


class Keyring:
    """The keys of each page by its session."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._held: TTLCache[str, _Held] = TTLCache(MOST, FORGOTTEN)

    def service(self, session: str) -> LLMService:
        """What answers this page: the lab's service, asking with the page's keys if it has any."""
        held = self._held.get(session)
        return held.service if held else self._lab.service

    async def put(self, session: str, provider: str, key: str) -> None:
        """From now on the page's messages to ``provider`` are paid for with ``key``."""
        await self._hold(session, {**self._keys(session), provider: SecretStr(key)})

    async def drop(self, session: str, provider: str) -> None:
        """The house's key again, if it has one."""
        await self._hold(session, {n: k for n, k in self._keys(session).items() if n != provider})

    async def leave(self, session: str) -> None:
        """The page was closed."""
        await self._hold(session, {})

    def _keys(self, session: str) -> Mapping[str, SecretStr]:
        held = self._held.get(session)
        return held.keys if held else {}

    async def _hold(self, session: str, keys: Mapping[str, SecretStr]) -> None:
        former = self._held.pop(session, None)
        if keys:
            clients = self._lab.clients.with_keys(keys, self._lab.layers.alone)
            self._held[session] = _Held(keys, self._lab.service.with_clients(clients))
        if former is not None:
            await former.service.clients.aclose()
