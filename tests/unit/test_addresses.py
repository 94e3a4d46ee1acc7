"""Addresses of servers, as people paste them."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from persona_lab.settings import Settings


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("http://127.0.0.1:11434/v1", "http://127.0.0.1:11434/v1"),
        ("https://api.example/v1/", "https://api.example/v1"),
        ("https://api.example/v1/chat/completions", "https://api.example/v1"),
        ("https://api.example/v1/chat/completions/", "https://api.example/v1"),
        ("https://api.example/v1/completions", "https://api.example/v1"),
        ("https://api.example/v1/responses#try", "https://api.example/v1"),
        ("https://api.example/v1/models", "https://api.example/v1"),
        ("  https://api.example/v1 \r\n", "https://api.example/v1"),
        ("https://api.example/v1\u3000", "https://api.example/v1"),
        ("\ufeffhttps://api.example/v1\u200b", "https://api.example/v1"),
        ('"https://api.example/v1"', "https://api.example/v1"),
        ("<https://api.example/v1>", "https://api.example/v1"),
        ("ｈｔｔｐｓ：／／api.example/v1", "https://api.example/v1"),
        ("HTTPS://api.example//v1", "https://api.example/v1"),
        ("https://api.example/chat/completions?api-version=1", "https://api.example?api-version=1"),
        ("localhost:1234/v1", "http://localhost:1234/v1"),
        ("ollama:11434/v1", "http://ollama:11434/v1"),
        ("192.168.0.7:8000/v1", "http://192.168.0.7:8000/v1"),
        ("[::1]:8000/v1", "http://[::1]:8000/v1"),
        ("nas.local/v1", "http://nas.local/v1"),
        ("//api.example/v1", "https://api.example/v1"),
        ("api.example/v1", "https://api.example/v1"),
    ],
)
def test_openai_address_is_normalized(given: str, used: str) -> None:
    assert Settings(openai_base_url=given).openai_base_url == used


@pytest.mark.parametrize(
    "given",
    [
        "https://api.example",
        "https://api.example/",
        "https://api.example/v1",
        "https://api.example/v1/",
        "https://api.example/v1/messages",
        "https://api.example/v1/messages/ \n",
        "api.example/v1/models",
    ],
)
def test_anthropic_address_has_no_version(given: str) -> None:
    assert Settings(anthropic_base_url=given).anthropic_base_url == "https://api.example"


def test_path_before_the_version_stays() -> None:
    settings = Settings(anthropic_base_url="https://api.example/anthropic/v1?key=1")
    assert settings.anthropic_base_url == "https://api.example/anthropic?key=1"


@pytest.mark.parametrize(
    "given", ["ftp://host/v1", "http://", "http://host:port", "http://[::1", " ", "a b"]
)
def test_unusable_address_is_refused(given: str) -> None:
    with pytest.raises(ValidationError, match="must be"):
        Settings(openai_base_url=given)
