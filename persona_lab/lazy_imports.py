"""Import slow libraries in a thread, so that the event loop keeps answering."""

from __future__ import annotations

import asyncio
import importlib
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


_importing = threading.Lock()
_imported: set[str] = set()


async def import_in_thread(*libraries: str) -> None:
    """Import what takes tenths of a second beside the loop, so that nobody else waits for it.

    One import at a time: threads that import parts of one library at once lock each other out,
    and Python then gives one of them half a module. ``sys.modules`` has it before it is whole.
    """
    if not _imported.issuperset(libraries):
        await asyncio.to_thread(_load, libraries)


def _load(libraries: tuple[str, ...]) -> None:
    with _importing:
        for library in libraries:
            importlib.import_module(library)
        _imported.update(libraries)
