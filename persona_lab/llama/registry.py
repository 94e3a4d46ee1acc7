"""The engines of this process: one for each file, whoever asks, for as long as memory lasts.

What an engine takes is known before it takes it: its weights and room to work in, and, once the
file has been read, a cell for each token of context. Where that doesn't fit beside the others,
those that nobody is using are unloaded, the longest unused first; whoever held one opens it again
when they need it.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
from dataclasses import dataclass, field
from pathlib import Path

from persona_lab.llama.bindings import Progress, model_unavailable
from persona_lab.llama.engine import Engine

ENGINE_OVERHEAD_BYTES = 250_000_000
"""Bytes that an engine takes beside weights and cells, at most (of both packaged models)."""

_CGROUP = Path("/sys/fs/cgroup")
"""Where Linux says what a container may have."""


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
    """The process's engine for ``path``, which is ``owner``'s too from now on.

    Loaded for the first of its owners (it takes a moment: call it off the event loop); it stays
    until the last has called :func:`release_engines`, or until its memory is needed. ``most``:
    bytes that all engines may take together, 0 for what the machine has; ``progress`` hears what
    share is loaded. Raises ModelUnavailable.
    """
    with _registry_lock:
        key = (path.resolve(), context, threads, flash)
        if key not in _engines:
            _engines[key] = _load(path, context, threads, flash, name, max_bytes, progress)
        kept = _engines[key]
        kept.owners.add(owner)
        return kept.engine


def running_engines() -> list[Engine]:
    """Every engine of this process, at this moment: nobody waits for one that is being loaded."""
    return [kept.engine for kept in list(_engines.values())]


def release_engines(owner: object) -> None:
    """``owner`` needs no engine any more; those that nobody else needs are closed (blocks)."""
    with _registry_lock:
        for key, kept in list(_engines.items()):
            kept.owners.discard(owner)
            if not kept.owners:
                del _engines[key]
                kept.engine.close()


def close_engines() -> None:
    """Close every engine of the process, whoever owns it. Runs by itself at its end."""
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
        return path.stat().st_size
    except OSError:  # loading it will say what is wrong
        return 0


def _free_memory(path: Path, wanted: int, max_bytes: int) -> None:
    """Unload what nobody is using until ``wanted`` bytes are free.

    Raises ModelUnavailable where that isn't enough; nothing is unloaded then.
    """
    taken = sum(kept.bytes for kept in _engines.values())
    left = min(max_bytes - taken, available_memory()) if max_bytes else available_memory()
    idle = [(key, kept) for key, kept in _engines.items() if kept.engine.idle]
    idle.sort(key=lambda each: each[1].engine.last_used)
    enough = left + sum(kept.bytes for _, kept in idle) >= wanted
    for key, kept in idle if enough else []:
        if left >= wanted:
            break
        if kept.engine.unload():
            del _engines[key]
            left += kept.bytes
    if left < wanted:
        needed, free = round(wanted / 1e6), max(0, round(left / 1e6))
        reason = f"it needs {needed} MB of memory, and {free} MB are free"
        raise model_unavailable(path, "no_room", reason, needed=needed, free=free)


def available_memory() -> int:
    """Bytes that this process can still have: of the machine, or of its container if that has less.

    A container's file cache gives way to whoever needs memory, so it isn't counted as taken.
    """
    import psutil

    left = int(psutil.virtual_memory().available)
    with contextlib.suppress(OSError, ValueError, KeyError):  # no container, or none with a bound
        bound = int((_CGROUP / "memory.max").read_text("ascii"))
        taken = int((_CGROUP / "memory.current").read_text("ascii"))
        lines = (_CGROUP / "memory.stat").read_text("ascii").splitlines()
        cache = int(dict(line.split() for line in lines)["file"])
        left = min(left, bound - taken + cache)
    return max(0, left)
