"""A scripted model, a user with a chat, and texts that look like secrets."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Any

from persona_lab.clients.base import LLMClientInterface
from persona_lab.clients.catalog import ModelInfo
from persona_lab.db.tables import Agent, Chat
from persona_lab.lab import Lab
from persona_lab.settings import Settings
from persona_lab.types import Chunk, Options, Prompt, Usage

Script = Callable[[Prompt, Options], AsyncGenerator[Chunk, None]]


class ScriptedClient(LLMClientInterface):
    """A client that answers as its script does, and records its prompts."""

    def __init__(self, script: Script, *, context: int = 4096, settings: Settings | None = None):
        info = ModelInfo(
            provider="mock", name="scripted", context=context, input_price=1, output_price=2
        )
        super().__init__(info, settings or Settings())
        self.script = script
        self.prompts: list[Prompt] = []

    async def stream(self, prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        self.prompts.append(prompt)
        chunks = self.script(prompt, options)
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            await chunks.aclose()


def reply_with(*pieces: str, error: Exception | None = None, finish: str = "stop") -> Script:
    """Return a script that yields ``pieces``, then raises ``error`` or yields the last chunk."""

    async def script(prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        for piece in pieces:
            yield Chunk(piece)
        if error is not None:
            raise error
        yield Chunk(finish_reason=finish, usage=Usage(12, len(pieces)), model="scripted-1")

    return script


NO_PROCESSING: dict[str, Any] = {
    "tone_adjustment": False,
    "mask_personal_data": False,
    "word_filter": False,
    "role_limits": False,
}
"""Settings without steps that hold back unfinished sentences: chunks stay as in the script."""


class ChatUser:
    """A user with a persona and a chat."""

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
    def ids(self) -> dict[str, str]:
        return {"agent_id": self.agent.id, "chat_id": self.chat.id, "user_id": self.user_id}

    def thread(self) -> list[tuple[str, str, str]]:
        """The stored chat: sender, content and status of each message."""
        rows = self.lab.store.messages(self.chat.id, user_id=self.user_id)
        return [(row.sender, row.content, row.status) for row in rows]


_LETTERS = "abcdefghij0123456789ABCDEFGHIJ"
SECRETS = [  # split, so that secret scanners don't report this file
    *(
        prefix + _LETTERS
        for prefix in (
            "sk-", "sk-proj-", "sk-ant-api03-", "sk_live_", "rk_test_", "pk-lf-", "ghp_", "gho_",
            "glpat-", "xoxp-", "xapp-1-", "AIza", "ya29.", "GOCSPX-", "hf_", "gsk_", "xai-",
            "pplx-", "nvapi-", "r8_", "hvs.", "npm_", "pypi-", "dckr_pat_", "whsec_",
        )
    ),
    "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYzAbCdEfGh",
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
"""Texts that look like secrets."""
NO_SECRETS = [
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
