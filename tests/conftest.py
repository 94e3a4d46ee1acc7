"""Fixtures of the whole suite: a lab in memory, and a model that does as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from persona_lab.clients import LLMClientInterface, ModelInfo
from persona_lab.lab import Lab, open_lab
from persona_lab.models import Agent, Chat, Chunk, Options, Prompt, Usage
from persona_lab.settings import ROOT, Settings

pytest_plugins = ["services"]

Play = Callable[[Prompt, Options], AsyncGenerator[Chunk, None]]


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


class ScriptedClient(LLMClientInterface):
    """Answers as ``play`` does; ``prompts`` are those it was sent. It never touches a network."""

    def __init__(self, play: Play, *, context: int = 4096, settings: Settings | None = None):
        info = ModelInfo(
            provider="mock", name="scripted", context=context, input_price=1, output_price=2
        )
        super().__init__(info, settings or Settings())
        self.play = play
        self.prompts: list[Prompt] = []

    async def stream(self, prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        self.prompts.append(prompt)
        chunks = self.play(prompt, options)
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            await chunks.aclose()


def says(*pieces: str, error: Exception | None = None, finish: str = "stop") -> Play:
    """A script: the pieces, then the error or the last chunk."""

    async def play(prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        for piece in pieces:
            yield Chunk(piece)
        if error is not None:
            raise error
        yield Chunk(finish_reason=finish, usage=Usage(12, len(pieces)), model="scripted-1")

    return play


AS_SAID: dict[str, Any] = {
    "tone_adjustment": False,
    "mask_personal_data": False,
    "word_filter": False,
    "role_limits": False,
}
"""Scripts say where a stream is cut; tone and guards would hold back what is unfinished."""


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


class Visitor:
    """A user with a persona and a chat of their own."""

    def __init__(self, lab: Lab, name: str = "テスト太郎", language: str = "ja") -> None:
        self.lab = lab
        self.user_id = lab.store.create_user().id
        self.agent: Agent = lab.store.create_agent(
            user_id=self.user_id,
            name=name,
            personalities=["フレンドリー", "知的"],
            roles=["カスタマーサポート"],
            tones=["敬語"],
            language=language,
        )
        self.chat: Chat = lab.store.create_chat(user_id=self.user_id, agent_id=self.agent.id)

    @property
    def where(self) -> dict[str, str]:
        return {"agent_id": self.agent.id, "chat_id": self.chat.id, "user_id": self.user_id}

    def thread(self) -> list[tuple[str, str, str]]:
        """The chat as it is stored: sender, content, status."""
        rows = self.lab.store.messages(self.chat.id, user_id=self.user_id)
        return [(row.sender, row.content, row.status) for row in rows]


_LETTERS = "abcdefghij0123456789ABCDEFGHIJ"
KEYS = [  # none as it would stand in a file that somebody's scanner reads
    *(
        begin + _LETTERS
        for begin in (
            "sk-", "sk-proj-", "sk-ant-api03-", "sk_live_", "rk_test_", "pk-lf-", "ghp_", "gho_",
            "glpat-", "xoxp-", "xapp-1-", "AIza", "ya29.", "GOCSPX-", "hf_", "gsk_", "xai-",
            "pplx-", "nvapi-", "r8_", "hvs.", "npm_", "pypi-", "dckr_pat_", "whsec_",
        )
    ),
    "AKIA" + "IOSFODNN7EXAMPLE",
    "ASIA" + "IOSFODNN7EXAMPLE",
    "github_pat_" + "11ABCDEFG0_" + _LETTERS,
    "xoxb-" + "123456789012-abcdefghijkl",
    f"SG.{_LETTERS}.{_LETTERS}",
    f"pl_{_LETTERS}0123456789-_a",
    "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0TH",
    "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIabcdef\n-----END RSA PRIVATE KEY-----",
    "-----BEGIN " + 'PRIVATE KEY-----\nMIIabcdef\nMIIghijkl\n-----END PRIVATE KEY-----',
]  # fmt: skip
"""Texts with the look of keys."""
NO_KEYS = [
    "sk-learn", "sk_SK_2024_locale", "task-sk-1", "risk-assessment-2024-plan", "sk_live_",
    "AKIA1",
    "AKIAmono2024nomachi", "ghp_short1", "ghz_abcdefghij0123456789abc", "github_pat_1",
    "xoxo-love-2",
    "xoxz-0123456789ab", "AIzawa2024", "hf_transfer_2024", "gsk_2", "xai-2024",
    "xaiver-2024-report",
    "hvs.example.1", "npm_config_registry_2024", "npm-2024-report-of-the-year",
    "pl_PL.UTF-8_2024", "eyJ0", "eyJabc.def.1", "SG.2024.1", "r8_2", "-----BEGIN CERTIFICATE-----",
    "3f2504e0-4f89-11d3-9a0c-0305e82c3301", "d41d8cd98f00b204e9800998ecf8427e",
]  # fmt: skip


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
