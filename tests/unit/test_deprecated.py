"""Former public names work until 0.2, with a DeprecationWarning."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from unittest.mock import AsyncMock

import pytest

from persona_lab.clients.base import LLMClientInterface
from persona_lab.clients.middleware.rate_limit import RateLimiter
from persona_lab.db.generations import FailedAttempt, GenerationResult
from persona_lab.db.tables import Agent, Generation
from persona_lab.errors import Offline
from persona_lab.lab import Lab
from persona_lab.settings import ROOT
from persona_lab.types import Chunk, Options, Prompt

ROW = {"user_id": "u", "agent_id": "a", "provider": "mock", "model": "echo", "status": "ok"}


def test_generation_accepts_the_former_field() -> None:
    with pytest.warns(DeprecationWarning, match="user_key"):
        row = Generation(**ROW, own=True)
    assert row.user_key
    with pytest.warns(DeprecationWarning, match="user_key"):
        assert row.own  # type: ignore[attr-defined]
    with pytest.warns(DeprecationWarning, match="user_key"):
        row.own = False
    assert not row.user_key


def test_generation_result_accepts_the_former_field() -> None:
    failed = (FailedAttempt("mock:a", "offline"),)
    with pytest.warns(DeprecationWarning, match="failed_attempts"):
        result = GenerationResult(Generation(**ROW), "mock:echo", passed_over=failed)  # type: ignore[call-arg]
    with pytest.warns(DeprecationWarning, match="failed_attempts"):
        assert result.passed_over == failed  # type: ignore[attr-defined]
    assert replace(result, attempts=2).failed_attempts == failed


async def test_former_methods_warn_and_do_the_same(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab()
    with pytest.warns(DeprecationWarning, match="error_text"):
        said = lab.error_handler.say(Offline(), "en")
    assert said == lab.error_handler.error_text(Offline(), "en")
    with pytest.warns(DeprecationWarning, match="prefill"):
        await lab.service.read_ahead(Agent(name="x"))
    limiter = RateLimiter(0, 1000)
    reservation = await limiter.check_and_update("u", 10)
    with pytest.warns(DeprecationWarning, match="reconcile"):
        await limiter.settle("u", reservation, 5)


async def test_client_overrides_with_former_names_warn_and_work() -> None:
    warmed = AsyncMock()
    with pytest.warns(DeprecationWarning) as warned:

        class OldClient(LLMClientInterface):
            def __init__(self) -> None: ...

            async def stream(self, prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
                yield Chunk("x")

            @property
            def ready(self) -> bool:
                return False

            @property
            def loaded(self) -> float:
                return 0.5

            async def warm(self) -> None:
                await warmed()

            async def read_ahead(self, prompts: Sequence[Prompt]) -> None:
                await warmed(prompts)

    assert [str(each.message).partition(" is ")[0] for each in warned] == [
        "OldClient.ready", "OldClient.loaded", "OldClient.warm", "OldClient.read_ahead",
    ]  # fmt: skip
    assert {each.filename for each in warned} == {__file__}
    client = OldClient()
    assert (client.is_loaded, client.load_progress) == (False, 0.5)
    await client.load()
    await client.prefill([])
    assert warmed.await_count == 2


def test_types_of_columns_are_in_the_import_path_of_programs() -> None:
    from persona_lab.models import Language, Sender, Status

    assert all((Language, Sender, Status))


def test_the_former_module_of_migrations_runs() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "persona_lab.migrations"], cwd=ROOT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert "persona_lab.db.migrations" in run.stderr
    assert run.returncode == 1  # it wants an argument
