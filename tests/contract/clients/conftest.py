"""Fake wires of each provider."""

from __future__ import annotations

import pytest
from support import tiny_gguf as tiny_gguf
from support.fake_servers import (
    FAKE_PROVIDERS,
    FakeHttpProvider,
    FakeOpenAI,
)


@pytest.fixture(autouse=True)
def no_keys_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for provider in ("OPENAI", "ANTHROPIC"):
        for name in ("API_KEY", "BASE_URL", "CUSTOM_HEADERS"):
            monkeypatch.delenv(f"{provider}_{name}", raising=False)


@pytest.fixture(params=["openai", "anthropic"])
def http(request: pytest.FixtureRequest) -> FakeHttpProvider:
    made = FAKE_PROVIDERS[request.param]()
    assert isinstance(made, FakeHttpProvider)
    return made


@pytest.fixture
def openai() -> FakeOpenAI:
    return FakeOpenAI()
