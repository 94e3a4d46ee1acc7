"""The parts of a split model: ``model-00001-of-00003.gguf`` and so on.

llama.cpp opens the first part and finds the others beside it.
"""

from __future__ import annotations

import re
from pathlib import Path

_PART = re.compile(r"(?P<base>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf)", re.I)

MAX_PARTS = 1000
"""Maximum number of parts of a model."""


def part_names(name: str) -> list[str]:
    """Return the names of all parts of a model, the first part first.

    Args:
        name: The name or path of any part, or of a file that isn't split.
    """
    part = _PART.fullmatch(name)
    count = int(part["count"]) if part else 0
    if part is None or not 1 <= int(part["number"]) <= count <= MAX_PARTS:
        return [name]
    return [
        f"{part['base']}-{number:05}-of-{part['count']}{part['suffix']}"
        for number in range(1, count + 1)
    ]


def part_paths(path: Path) -> list[Path]:
    """Return the paths of all parts of the model in ``path``, the first part first."""
    return [path.with_name(name) for name in part_names(path.name)]
