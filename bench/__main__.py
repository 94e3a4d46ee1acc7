"""``python -m bench [startup] [preview] [streaming] [memory] [overhead] [load]
[watching] [growth]``; without names, all.

Exits with 1 when a goal was missed, and says which in its last line.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys

NAMES = (
    "startup",
    "preview",
    "streaming",
    "memory",
    "overhead",
    "load",
    "watching",
    "growth",
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench", description="Persona Lab's benchmarks")
    parser.add_argument("names", nargs="*", metavar="name", help=f"any of: {', '.join(NAMES)}")
    names = parser.parse_args().names or NAMES
    for name in names:
        if name not in NAMES:
            parser.error(f"{name}: there is {', '.join(NAMES)}")
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.machine()}")
    print(f"load {os.getloadavg()[0]:.1f} at the start\n")
    missed = []
    for name in names:
        measured = importlib.import_module(f"bench.{name}").measure()
        print(measured.tables, end="\n\n", flush=True)
        missed += measured.missed
    if missed:
        print(f"Goals missed: {'; '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
