"""The engines of this process: one for each file, within the available memory.

The size of an engine is known before it is loaded: its weights, a working area and, once the file's
header is read, a cell for each token of context. If it doesn't fit beside the others, idle engines
are unloaded, the least recently used first. Their owners open them again on demand.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
from dataclasses import dataclass, field
from pathlib import Path

from persona_lab.llama.bindings import Progress, model_unavailable
from persona_lab.llama.engine import Engine
from persona_lab.llama.file_parts import part_paths

ENGINE_OVERHEAD_BYTES = 250_000_000
"""Bytes that an engine takes beside weights and cells: the larger of the two packaged models."""

_CGROUP_FOLDER = Path("/sys/fs/cgroup")
"""Where Linux publishes the limits of a container."""


@dataclass(slots=True)
class _Entry:
    engine: Engine
    bytes: int
    owners: set[object] = field(default_factory=set)


_engines: dict[tuple[Path, int, int, bool], _Entry] = {}
_registry_lock = threading.Lock()


def open_engine(
    path: Path,
    *,
    context: int,
    threads: int,
    flash: bool = False,
    owner: object,
    name: str = "",
    max_bytes: int = 0,
    progress: Progress | None = None,
) -> Engine:
    """Return the process's engine for ``path``, and record ``owner`` as one of its owners.

    The first owner loads it, which blocks: don't call this on the event loop. It stays until the
    last owner calls :func:`release_engines`, or until its memory is needed.

    Args:
        path: A GGUF file.
        context: Tokens that all running answers share.
        threads: Threads to compute with.
        flash: Use flash attention.
        owner: Any object that identifies the owner.
        name: Its name in errors and statistics.
        max_bytes: Memory that all engines may take together; 0 for what is available.
        progress: Receives the loaded share.

    Raises:
        ModelUnavailable: The file can't be loaded, or memory is short.
    """
    with _registry_lock:
        key = (path.resolve(), context, threads, flash)
        if key not in _engines:
            _engines[key] = _load(path, context, threads, flash, name, max_bytes, progress)
        entry = _engines[key]
        entry.owners.add(owner)
        return entry.engine


def running_engines() -> list[Engine]:
    """Return every loaded engine. It doesn't wait for one that is being loaded."""
    return [entry.engine for entry in list(_engines.values())]


def release_engines(owner: object) -> None:
    """Remove ``owner`` from all engines, and close those without owners. Blocks."""
    with _registry_lock:
        for key, entry in list(_engines.items()):
            entry.owners.discard(owner)
            if not entry.owners:
                del _engines[key]
                entry.engine.close()


def close_engines() -> None:
    """Close every engine. Runs at the end of the process."""
    with _registry_lock:
        while _engines:
            _engines.popitem()[1].engine.close()


atexit.register(close_engines)


def _load(
    path: Path,
    context: int,
    threads: int,
    flash: bool,
    name: str,
    max_bytes: int,
    progress: Progress | None,
) -> _Entry:
    claimed = 0

    def claim(wanted: int) -> None:
        nonlocal claimed
        _free_memory(path, wanted, max_bytes - claimed if max_bytes else 0)
        claimed += wanted

    claim(_file_size(path) + ENGINE_OVERHEAD_BYTES)
    engine = Engine(
        path,
        context=context,
        threads=threads,
        flash=flash,
        name=name,
        progress=progress,
        claim=claim,
    )
    return _Entry(engine, claimed)


def _file_size(path: Path) -> int:
    try:
        return sum(part.stat().st_size for part in part_paths(path))
    except OSError:  # loading it reports the error
        return 0


def _free_memory(path: Path, wanted: int, max_bytes: int) -> None:
    """Unload idle engines until ``wanted`` bytes are free.

    Raises:
        ModelUnavailable: That wouldn't be enough. Nothing is unloaded then.
    """
    taken = sum(entry.bytes for entry in _engines.values())
    left = min(max_bytes - taken, available_memory()) if max_bytes else available_memory()
    idle = [(key, entry) for key, entry in _engines.items() if entry.engine.idle]
    idle.sort(key=lambda each: each[1].engine.last_used)
    enough = left + sum(entry.bytes for _, entry in idle) >= wanted
    for key, entry in idle if enough else []:
        if left >= wanted:
            break
        if entry.engine.unload():
            del _engines[key]
            left += entry.bytes
    if left < wanted:
        needed, free = round(wanted / 1e6), max(0, round(left / 1e6))
        reason = f"it needs {needed} MB of memory, and {free} MB are free"
        raise model_unavailable(path, "no_room", reason, needed=needed, free=free)


def available_memory() -> int:
    """Return the bytes that the machine, or its container if that has fewer, can still give.

    A container's file cache shrinks on demand, so it doesn't count as taken.
    """
    import psutil

    left = int(psutil.virtual_memory().available)
    with contextlib.suppress(OSError, ValueError, KeyError):  # no container, or one without a limit
        limit = int((_CGROUP_FOLDER / "memory.max").read_text("ascii"))
        taken = int((_CGROUP_FOLDER / "memory.current").read_text("ascii"))
        lines = (_CGROUP_FOLDER / "memory.stat").read_text("ascii").splitlines()
        cache = int(dict(line.split() for line in lines)["file"])
        left = min(left, limit - taken + cache)
    return max(0, left)
