"""Fixtures of the whole suite: a lab in memory and a scripted model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from support.fakes import AS_SAID, Play, ScriptedClient

from persona_lab.lab import Lab, open_lab
from persona_lab.settings import ROOT, Settings

pytest_plugins = ["support.backends"]


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def home() -> dict[str, str]:
    """Where a test's labs keep what they keep. A file of tests that hold with real servers as
    well has a ``home`` of its own, which is :func:`services.places`."""
    return {"database_url": "sqlite://"}


@pytest.fixture
async def make_lab(home: dict[str, str]) -> AsyncIterator[Callable[..., Lab]]:
    """Opens labs at home: ``make_lab(play, **settings)``. No task may outlive its test."""
    opened: list[Lab] = []

    def make(
        play: Play | None = None, *, context: int = 4096, clock: object = None, **fields: object
    ) -> Lab:
        chosen = {**home, "llm_provider": "mock", **AS_SAID, **fields}
        client = None if play is None else ScriptedClient(play, context=context)
        timing = {} if clock is None else {"clock": clock}
        lab = open_lab(Settings(**chosen), client=client, **timing)
        opened.append(lab)
        return lab

    yield make
    for lab in opened:
        await lab.aclose()
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, f"tasks were left behind: {left}"


@pytest.fixture
async def lab(make_lab: Callable[..., Lab]) -> Lab:
    """A lab that answers with the mock."""
    return make_lab()


@pytest.fixture
def broken_copy(tmp_path: Path) -> Callable[[str, str], Path]:
    """``broken_copy("templates/fallbacks.yaml", text)``: the folder, with that file replaced."""
    import shutil

    def make(file: str, text: str) -> Path:
        folder = Path(file).parts[0]
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("lab.db*"))
        (tmp_path / file).write_text(text, "utf-8")
        return tmp_path / folder

    return make
