"""Fixtures and markers of the whole suite.

Each test carries the marker of its folder. ``slow`` tests are left out by ``make test``.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from support.app_process import RunningApp, run_app
from support.fakes import NO_PROCESSING, Script, ScriptedClient
from support.seeded_store import SeededStore

from persona_lab.clients.base import LLMClientInterface
from persona_lab.lab import Lab, open_lab
from persona_lab.prompts.templates import PromptTemplateEngine
from persona_lab.settings import ROOT, Settings

pytest_plugins = ["support.backends"]

settings.register_profile("fast", max_examples=20)
settings.register_profile("thorough", max_examples=100)

TESTS = Path(__file__).parent
FOLDERS = {"unit", "contract", "services", "browser", "slow"}
SERVERS = {"postgres_server", "redis_server", "served", "real"}
"""Fixtures that start PostgreSQL, Redis or the app as a process."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test by its folder, and as slow what the fast selection leaves out.

    The fast selection has the browser tests that are marked ``core``. Of the tests that run on
    SQLite and again on PostgreSQL and Redis it has the second run only where they are ``core``.
    """
    for item in items:
        folder = _folder(item.path)
        if folder in FOLDERS:
            item.add_marker(folder)
        repeated = item.get_closest_marker("external") is not None
        if (folder == "browser" or repeated) and not item.get_closest_marker("core"):
            item.add_marker("slow")
        if SERVERS & set(getattr(item, "fixturenames", ())):
            item.add_marker("external")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many tests each folder has and how long they took, set-up included."""
    seconds: Counter[str] = Counter()
    tests: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                folder = _folder(terminalreporter.config.rootpath / report.nodeid.split("::")[0])
                seconds[folder] += report.duration
                tests[folder] += report.when == "call"
    if not tests:
        return
    terminalreporter.section("durations by folder")
    for folder, spent in seconds.most_common():
        terminalreporter.write_line(f"{folder:<10}{tests[folder]:>6} tests{spent:>9.1f} s")
    terminalreporter.write_line(f"{'total':<10}{tests.total():>6} tests{seconds.total():>9.1f} s")


def _folder(path: Path) -> str:
    """The folder under ``tests`` that ``path`` is in."""
    return path.relative_to(TESTS).parts[0] if path.is_relative_to(TESTS) else "elsewhere"


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        for spelling in (name, name.upper()):
            monkeypatch.delenv(spelling, raising=False)


@pytest.fixture
def home() -> dict[str, str]:
    """Where a test's labs keep what they keep. A file of tests that hold with real servers as
    well has a ``home`` of its own, which is :func:`support.backends.places`."""
    return {"database_url": "sqlite://"}


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    """The app with the mock model as a process: one for all files of a worker."""
    with run_app(tmp_path_factory.mktemp("app")) as app:
        yield app


@pytest.fixture(scope="session")
def _template_engine() -> PromptTemplateEngine:
    """The project's templates, compiled once. Nothing changes an engine after its start."""
    return PromptTemplateEngine(ROOT / "templates")


@pytest.fixture
async def make_lab(
    home: dict[str, str],
    _template_engine: PromptTemplateEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Callable[..., Lab]]:
    """Opens labs at home: ``make_lab(play, **settings)``. No task may outlive its test.

    ``client`` answers in place of all models, as a :class:`ScriptedClient` with ``play`` does.
    """

    def engine(folder: Path) -> PromptTemplateEngine:
        shared = folder == ROOT / "templates"
        return _template_engine if shared else PromptTemplateEngine(folder)

    monkeypatch.setattr("persona_lab.lab.PromptTemplateEngine", engine)
    monkeypatch.setattr("persona_lab.lab.Store", SeededStore)
    opened: list[Lab] = []

    def make(
        play: Script | None = None,
        *,
        client: LLMClientInterface | None = None,
        context: int = 4096,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        **fields: object,
    ) -> Lab:
        chosen = {**home, "llm_provider": "mock", **NO_PROCESSING, **fields}
        if play is not None:
            client = ScriptedClient(play, context=context)
        lab = open_lab(Settings(**chosen), client=client, clock=clock, sleep=sleep)
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
