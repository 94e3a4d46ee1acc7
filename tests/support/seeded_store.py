"""A store in memory that gets the demo personas as a copy instead of row by row."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

from persona_lab.db.store import Store

_copies: dict[str, bytes] = {}
"""Serialized databases by the demo personas that they hold."""


class SeededStore(Store):
    """A :class:`Store` that seeds a new database in memory at a fraction of the time.

    The first store of a process writes the rows. Later ones copy its database. Databases in files
    and on servers are seeded as usual.
    """

    def seed_agents(self, personas: list[dict[str, Any]]) -> None:
        """Make the demos be ``personas``, as :meth:`Store.seed_agents` does."""
        url, known = self.engine.url, repr(personas)
        in_memory = url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:")
        if not in_memory or known not in _copies:
            super().seed_agents(personas)
        if not in_memory:
            return
        with closing(self.engine.raw_connection()) as pooled:
            connection = pooled.driver_connection
            assert isinstance(connection, sqlite3.Connection)
            if known not in _copies:
                _copies[known] = connection.serialize()
                return
            with closing(sqlite3.connect(":memory:")) as copy:
                copy.deserialize(_copies[known])
                copy.backup(connection)
