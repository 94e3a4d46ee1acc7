"""A file's first reading, in a process of its own.

llama.cpp ends the process that reads certain damaged files (its asserts). Here that costs nothing:
weights are mapped, not copied, so the reading takes half a second and little memory.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from cachetools import LRUCache

from persona_lab.llama.bindings import Context, Model, model_unavailable

_ROOT = Path(__file__).parents[2]
_CRASHES = {signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE}
"""How a process ends over a damaged file; who is killed for want of memory ends otherwise."""
_TIMEOUT_S = 600.0
"""Seconds for the largest of files on the slowest of disks."""


def check_file(path: Path) -> None:
    """Raises ModelUnavailable for a file that would end the process that opens it.

    What is wrong with any other is for that process to find out. A file that didn't change is
    read once.
    """
    try:
        facts = path.stat()
    except OSError:
        return
    if not _loads_safely(path, facts.st_size, facts.st_mtime_ns):
        raise model_unavailable(path, "damaged_file", "not a GGUF file, or a damaged one")


_checked: LRUCache[tuple[Path, int, int], bool] = LRUCache(64)


def _loads_safely(path: Path, size: int, changed: int) -> bool:
    known = _checked.get((path, size, changed))
    if known is not None:
        return known
    command = [sys.executable, "-m", __name__, str(path.resolve())]
    try:
        ended = subprocess.run(  # noqa: S603 - ourselves, and a path that the settings name
            command, cwd=_ROOT, capture_output=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return True  # slow isn't damaged
    survived = -ended.returncode not in _CRASHES
    if ended.returncode != -signal.SIGKILL:
        _checked[path, size, changed] = survived
    return survived


def _load_file(path: Path) -> None:
    model = Model(path, low_memory=True)
    Context(model, cells=64, sequences=1, batch=32, threads=1).close()
    model.close()


if __name__ == "__main__":
    _load_file(Path(sys.argv[1]))
