"""A model of a few random weights, and engines with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import tiny_gguf as tiny_gguf

from persona_lab.llama import (
    Engine,
    open_engine,
    release_engines,
)
from persona_lab.llama import registry as engines


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write(tmp_path_factory.mktemp("weights") / "tiny.gguf")


@pytest.fixture
def engine(tiny: Path) -> Iterator[Engine]:
    engine = Engine(tiny, context=512, threads=1)
    yield engine
    engine.close()


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Callable[..., Engine]]:
    """``shelf("a")``: the engine of a file of its own, where all may take what two take."""
    names: dict[str, Path] = {}
    two = 2 * (
        300_000 + engines.ENGINE_OVERHEAD_BYTES
    )  # a tiny file with its cells and shelf has less than 0.3 MB

    def opened(name: str, most: int = two) -> Engine:
        path = names.setdefault(name, tiny_gguf.write(tmp_path / f"{name}.gguf"))
        return open_engine(path, context=512, threads=1, owner="shelf", max_bytes=most)

    yield opened
    release_engines("shelf")
