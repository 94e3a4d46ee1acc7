"""What libraries would read from the environment doesn't reach a request."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pydantic import SecretStr
from support.clients import collect_chunks
from support.fake_servers import SECRET, FakeAnthropic, FakeOpenAI
from support.faulty_server import FaultyResponse, FaultyServer, refusing_url

from persona_lab.clients.anthropic import AnthropicClient
from persona_lab.clients.api_keys import ApiKeys
from persona_lab.clients.catalog import ModelInfo
from persona_lab.clients.moderation import OpenAIModerator
from persona_lab.clients.openai import OpenAIClient
from persona_lab.settings import ROOT, Settings

ACCOUNT = {
    "OPENAI_ORG_ID": "org-operator",
    "OPENAI_PROJECT_ID": "proj-operator",
    "OPENAI_CUSTOM_HEADERS": "X-Gateway: operator\nAuthorization: Bearer operator",
    "OPENAI_ADMIN_KEY": "sk-admin-operator",
    "ANTHROPIC_AUTH_TOKEN": "token-operator",
    "ANTHROPIC_CUSTOM_HEADERS": "X-Gateway: operator\nX-Api-Key: operator",
    "ANTHROPIC_PROFILE": "operator",
}
"""The account of the operator, as the SDKs read it."""

KINDS: dict[str, tuple[type[Any], Any]] = {
    "openai": (OpenAIClient, FakeOpenAI()),
    "anthropic": (AnthropicClient, FakeAnthropic()),
}


@pytest.fixture(params=KINDS)
def provider(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def sent(provider: str, settings: Settings) -> httpx2.Request:
    """Return the request of a client with ``settings``."""
    requests: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        requests.append(request)
        return httpx2.Response(200, content=b"".join(KINDS[provider][1].answer_events()))

    http = httpx2.AsyncClient(transport=httpx2.MockTransport(answer))
    info = ModelInfo(provider=provider, name="m")
    await collect_chunks(KINDS[provider][0](info, settings, http_client=http))
    return requests[0]


def every_header(request: httpx2.Request) -> str:
    return str(request.headers.raw).lower()


async def test_visitors_key_goes_without_the_operators_account(
    provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ACCOUNT.items():
        monkeypatch.setenv(name, value)
    keys = ApiKeys(Settings()).with_user_keys()
    keys.put(provider, SecretStr(SECRET))
    request = await sent(provider, keys.settings)
    assert request.headers["authorization"] == f"Bearer {SECRET}"
    assert "operator" not in every_header(request)


async def test_operators_key_goes_with_the_operators_account(
    provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ACCOUNT.items():
        monkeypatch.setenv(name, value.replace("\nAuthorization: Bearer operator", ""))
    request = await sent(provider, Settings())
    assert request.headers["x-gateway"] == "operator"
    if provider == "openai":
        assert request.headers["openai-organization"] == "org-operator"
        assert request.headers["openai-project"] == "proj-operator"


async def test_moderation_goes_without_the_account_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = Settings(openai_api_key=SECRET)
    for name, value in ACCOUNT.items():
        monkeypatch.setenv(name, value)
    requests: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        requests.append(request)
        return httpx2.Response(200, json={"results": [{"flagged": False, "categories": {}}]})

    http = httpx2.AsyncClient(transport=httpx2.MockTransport(answer))
    await OpenAIModerator(lambda: settings, http_client=http).review("やあ")
    assert "operator" not in every_header(requests[0])


@pytest.mark.parametrize(
    ("provider", "address", "path"),
    [
        ("openai", "http://host/v1/chat/completions", "/v1/chat/completions"),
        ("openai", "http://host/a/b/", "/a/b/chat/completions"),
        ("anthropic", "http://host/v1", "/v1/messages"),
        ("anthropic", "http://host/a/v1/messages", "/a/v1/messages"),
    ],
)
@pytest.mark.parametrize("query", ["", "api-version=2026-01-01", "a=1&b="])
async def test_request_goes_to_the_endpoint_with_the_query(
    provider: str, address: str, path: str, query: str
) -> None:
    address += f"?{query}" if query else ""
    url = (await sent(provider, Settings(**{f"{provider}_base_url": address}))).url
    assert (url.path, url.query.decode()) == (path, query)


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
async def test_server_on_this_machine_is_asked_without_a_proxy(
    provider: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, fake = KINDS[provider]
    with refusing_url() as proxy:
        monkeypatch.setenv(variable, proxy)
        async with FaultyServer(FaultyResponse(fake.answer_events())) as server:
            settings = Settings(**{f"{provider}_base_url": server.url})
            client = kind(ModelInfo(provider=provider, name="m"), settings)
            assert await collect_chunks(client)
            await client.aclose()


async def test_other_server_is_asked_through_the_proxy(provider: str) -> None:
    kind, fake = KINDS[provider]
    async with FaultyServer(FaultyResponse(fake.answer_events())) as proxy:
        settings = Settings(
            **{f"{provider}_base_url": "http://models.example", "http_proxy": proxy.url}
        )
        client = kind(ModelInfo(provider=provider, name="m"), settings)
        assert await collect_chunks(client)
        await client.aclose()
        assert len(proxy.requests) == 1


ENVIRONMENT = re.compile(r"""environ(?:\.get)?[\[(]\s*"([A-Z_]+)""")


@pytest.mark.parametrize(
    "source", ["openai.lib._client_auth", "openai.__init__", "anthropic._client", "httpx._config"]
)
def test_document_lists_what_libraries_read(source: str) -> None:
    listed = (ROOT / "docs" / "providers.md").read_text("utf-8")
    module = importlib.util.find_spec(source)
    assert module is not None and module.origin is not None
    names = set(ENVIRONMENT.findall(Path(module.origin).read_text("utf-8")))
    assert names
    assert {name for name in names if f"`{name}`" not in listed} == set()
