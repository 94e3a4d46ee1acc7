"""Import slow libraries in a thread, so that the event loop keeps answering."""

from __future__ import annotations

import asyncio
import importlib
import threading

_import_lock = threading.Lock()
_imported: set[str] = set()


async def import_in_thread(*libraries: str) -> None:
    """Import ``libraries`` in a thread; they take tenths of a second.

    Imports run one at a time. Threads that import parts of one library at once block each other,
    and Python then gives one of them an incomplete module. ``sys.modules`` can't tell: it has a
    module before its import is complete.
    """
    if not _imported.issuperset(libraries):
        await asyncio.to_thread(import_libraries, *libraries)


def import_libraries(*libraries: str) -> None:
    """Import ``libraries`` in this thread, one caller at a time."""
    with _import_lock:
        for library in libraries:
            importlib.import_module(library)
        _imported.update(libraries)
