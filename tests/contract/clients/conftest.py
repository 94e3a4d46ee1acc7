"""Fake wires of each provider."""

from __future__ import annotations

import pytest
from support import tiny_gguf as tiny_gguf
from support.fake_servers import (
    WIRES,
    HttpWire,
    OpenAIWire,
)


@pytest.fixture(autouse=True)
def no_keys_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for provider in ("OPENAI", "ANTHROPIC"):
        for name in ("API_KEY", "BASE_URL", "CUSTOM_HEADERS"):
            monkeypatch.delenv(f"{provider}_{name}", raising=False)


@pytest.fixture(params=["openai", "anthropic"])
def http(request: pytest.FixtureRequest) -> HttpWire:
    made = WIRES[request.param]()
    assert isinstance(made, HttpWire)
    return made


@pytest.fixture
def openai() -> OpenAIWire:
    return OpenAIWire()
