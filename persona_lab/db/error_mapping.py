"""Database and disk errors, mapped to ours by type and number, never by text."""

from __future__ import annotations

import errno
import sqlite3
import sys

from persona_lab.errors import DiskFull, StorageError


def map_storage_error(error: BaseException) -> StorageError | None:
    """Return our error for one of the database, its driver or the disk; None for any other.

    SQLAlchemy is looked up among the modules already loaded: importing it here would cost time
    at start, and its errors can't exist without it.
    """
    if isinstance(error, StorageError):
        return error
    if _disk_full(error):
        return DiskFull()
    alchemy = sys.modules.get("sqlalchemy.exc")
    if isinstance(error, sqlite3.Error) or (
        alchemy is not None and isinstance(error, alchemy.SQLAlchemyError)
    ):
        return StorageError()
    return None


def _disk_full(error: BaseException) -> bool:
    """Return whether SQLite, PostgreSQL or the operating system reports a full disk."""
    origin = getattr(error, "orig", None) or error
    if isinstance(origin, OSError):
        return origin.errno in (errno.ENOSPC, errno.EDQUOT)
    if getattr(origin, "sqlstate", None) == "53100":  # PostgreSQL's disk_full
        return True
    return getattr(origin, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
