"""Load a file once in a process of its own, to detect files that crash llama.cpp.

Failed asserts of llama.cpp end the process that loads certain damaged files. Weights are mapped,
not copied, so the check takes half a second and little memory.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from cachetools import LRUCache

from persona_lab.llama.bindings import Context, Model, model_unavailable
from persona_lab.llama.file_parts import part_paths

_ROOT = Path(__file__).parents[2]
_CRASHES = {signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE}
"""Signals that end a process over a damaged file. A lack of memory ends it by SIGKILL."""
_TIMEOUT_S = 600.0
"""Enough for the largest file on a slow disk."""


def check_file(path: Path) -> None:
    """Check that loading a file doesn't crash. A file is checked again only if it changed.

    Loading reports all other faults of a file.

    Raises:
        ModelUnavailable: It would end the process that loads it.
    """
    try:
        facts = [part.stat() for part in part_paths(path)]
    except OSError:
        return
    size, changed = sum(f.st_size for f in facts), max(f.st_mtime_ns for f in facts)
    if not _loads_safely(path, size, changed):
        raise model_unavailable(path, "damaged_file", "not a GGUF file, or a damaged one")


_checked_files: LRUCache[tuple[Path, int, int], bool] = LRUCache(64)


def _loads_safely(path: Path, size: int, changed: int) -> bool:
    known = _checked_files.get((path, size, changed))
    if known is not None:
        return known
    command = [sys.executable, "-m", __name__, str(path.resolve())]
    try:
        ended = subprocess.run(  # noqa: S603 - this module, with a path from the settings
            command, cwd=_ROOT, capture_output=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return True  # slow isn't damaged
    survived = -ended.returncode not in _CRASHES
    if ended.returncode != -signal.SIGKILL:
        _checked_files[path, size, changed] = survived
    return survived


def _load_file(path: Path) -> None:
    model = Model(path, low_memory=True)
    Context(model, cells=64, sequences=1, batch=32, threads=1).close()
    model.close()


if __name__ == "__main__":
    _load_file(Path(sys.argv[1]))
