# ruff: noqa: E501 - bodies stay on one line, as servers send them
"""A request that a server refuses is changed as the server says, and sent once more.

The names in brackets are public reports about comparable tools.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from support.clients import ALL_OPTIONS, OPTION_NAMES, PROMPT_WITH_IMAGES, collect_chunks
from support.fake_servers import PROMPT, FakeAnthropic, FakeOpenAI
from support.faulty_server import FaultyResponse, FaultyServer

from persona_lab.clients.anthropic import AnthropicClient
from persona_lab.clients.catalog import Catalog, ModelInfo
from persona_lab.clients.openai import OpenAIClient
from persona_lab.errors import BadRequest, OptionRefused, Overloaded, ProviderError, WrongAddress
from persona_lab.settings import ROOT, Settings
from persona_lab.types import Options, Prompt

KINDS: dict[str, tuple[type[Any], Any]] = {
    "openai": (OpenAIClient, FakeOpenAI()),
    "anthropic": (AnthropicClient, FakeAnthropic()),
}


def refusal(message: Any, status: int = 400, **fields: Any) -> FaultyResponse:
    """A response that refuses a request: a message, or a whole body."""
    body = (
        message if isinstance(message, dict | list) else {"error": {"message": message, **fields}}
    )
    return FaultyResponse([json.dumps(body).encode()], status, {"content-type": "application/json"})


async def ask(
    *responses: FaultyResponse,
    provider: str = "openai",
    options: Options = ALL_OPTIONS,
    prompt: Prompt = PROMPT,
    calls: int = 1,
    **facts: Any,
) -> list[dict[str, Any]]:
    """Return the requests that a server sees, which answers after ``responses``."""
    kind, fake = KINDS[provider]
    facts = {"name": "m", "accepts": OPTION_NAMES, "vision": True, **facts}
    async with FaultyServer(*responses, FaultyResponse(fake.answer_events())) as server:
        settings = Settings(**{f"{provider}_base_url": server.url})
        client = kind(ModelInfo(provider=provider, **facts), settings)
        for _ in range(calls):
            chunks = await collect_chunks(client, prompt, options)
            assert "".join(chunk.text for chunk in chunks) == fake.text
        await client.aclose()
        return server.requests


@pytest.mark.parametrize(
    ("refused", "gone"),
    [
        # a fixed value [litellm#13432, langfuse#9882]
        (refusal("Unsupported value: 'temperature' does not support 1.5 with this model. Only the default (1) value is supported.", param="temperature", code="unsupported_value"), {"temperature"}),
        (refusal("Unsupported parameter: 'stop' is not supported with this model.", code="unsupported_parameter"), {"stop"}),
        (refusal("Unrecognized request argument supplied: min_p"), {"min_p"}),
        (refusal("Unrecognized request arguments supplied: min_p, top_k"), {"min_p", "top_k"}),
        (refusal("property 'seed' is unsupported"), {"seed"}),
        (refusal([{"error": {"code": 400, "message": 'Invalid JSON payload received. Unknown name "repeat_penalty": Cannot find field.', "status": "INVALID_ARGUMENT"}}]), {"repeat_penalty"}),
        (refusal({"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]}, 422), {"seed"}),
        (refusal({"detail": [{"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs are not permitted"} for name in ("top_k", "min_p")]}, 422), {"top_k", "min_p"}),
        (refusal({"object": "error", "message": "[{'type': 'extra_forbidden', 'loc': ('body', 'stream_options'), 'msg': 'Extra inputs are not permitted'}]", "code": 400}), {"stream_options"}),
        (refusal("Argument not supported on this model: stop"), {"stop"}),
        (refusal("`temperature` and `top_p` cannot both be specified for this model. Please use only one."), {"top_p"}),
        (refusal("temperature: must be less than or equal to 1"), {"temperature"}),
        (refusal({"message": "top_p is not supported", "code": "unsupported"}, 422), {"top_p"}),
    ],
)  # fmt: skip
async def test_refused_parameter_is_left_out(refused: FaultyResponse, gone: set[str]) -> None:
    first, second, third = await ask(refused, calls=2)
    assert first.keys() - second.keys() == gone
    assert second == third
    assert {name: value for name, value in first.items() if name not in gone} == second


@pytest.mark.parametrize(
    ("message", "name", "facts"),
    [
        ("Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.", "max_completion_tokens", {}),
        ("Unknown parameter: max_tokens", "max_completion_tokens", {}),
        ("Unrecognized request argument supplied: max_completion_tokens", "max_tokens", {"name": "gpt-5-mini"}),
        ("max_tokens: extra fields not permitted. Use max_output_tokens instead", "max_output_tokens", {}),
    ],
)  # fmt: skip
async def test_limit_of_tokens_is_renamed(message: str, name: str, facts: dict[str, Any]) -> None:
    first, second = await ask(refusal(message), **facts)
    assert name not in first
    assert second[name] == ALL_OPTIONS.max_tokens


@pytest.mark.parametrize(
    ("provider", "message"),
    [
        ("openai", "max_tokens is too large: 100000. This model supports at most 16384 completion tokens, whereas you provided 100000."),
        ("openai", "Invalid max_tokens value, the valid range of max_tokens is [1, 16384]"),
        ("openai", "max_tokens (100000) exceeds the maximum of 16384"),
        ("anthropic", "max_tokens: 100000 > 16384, which is the maximum allowed number of output tokens for claude-3-5-sonnet-20241022"),
    ],
)  # fmt: skip
async def test_limit_of_tokens_is_lowered(provider: str, message: str) -> None:
    options = Options(max_tokens=100_000)
    first, second = await ask(refusal(message), provider=provider, options=options)
    assert (first["max_tokens"], second["max_tokens"]) == (100_000, 16_384)


async def test_only_value_is_sent() -> None:
    message = "invalid temperature: only 1 is allowed for this model"
    _, second = await ask(refusal(message))
    assert second["temperature"] == 1


async def test_stop_strings_are_cut_to_their_number() -> None:
    options = replace(ALL_OPTIONS, stop=tuple("あいうえお"))
    _, second = await ask(refusal("stop: must have at most 4 items"), options=options)
    assert second["stop"] == list("あいうえ")


async def test_parameters_are_refused_one_by_one() -> None:
    named = ("seed", "min_p", "top_k", "repeat_penalty")
    requests = await ask(*(refusal(f"Unknown parameter: '{name}'.", param=name) for name in named))
    assert len(requests) == 5
    assert not requests[-1].keys() & set(named)


SYSTEM = PROMPT.system
FIRST = f"{SYSTEM}\n\nやあ"


@pytest.mark.parametrize(
    "refused",
    [
        refusal("System role not supported"),
        refusal("System role not supported", 500),
        refusal({"error": {"code": 500, "message": "Jinja Exception: System role not supported", "type": "server_error"}}, 500),
        refusal("Developer instruction is not enabled for models/gemma-3-27b-it"),
        refusal("Unsupported value: 'messages[0].role' does not support 'system' with this model.", param="messages[0].role"),
        refusal("Only user and assistant roles are supported!"),
        refusal("Conversation roles must alternate user/assistant/user/assistant/..."),
        refusal("This model does not support system messages"),
    ],
)  # fmt: skip
async def test_persona_precedes_the_first_user_message(refused: FaultyResponse) -> None:
    _, second, third = await ask(refused, calls=2)
    assert second["messages"] == third["messages"]
    assert [message["role"] for message in second["messages"]] == ["user", "assistant", "user"]
    assert second["messages"][0]["content"] == FIRST


async def test_persona_precedes_pictures() -> None:
    _, second = await ask(refusal("System role not supported"), prompt=PROMPT_WITH_IMAGES)
    (message,) = second["messages"]
    assert message["content"][0] == {"type": "text", "text": SYSTEM}
    assert len(message["content"]) == 4


async def test_persona_precedes_an_opening_of_the_persona() -> None:
    prompt = replace(PROMPT, turns=PROMPT.turns[1:])
    _, second = await ask(refusal("System role not supported"), prompt=prompt)
    assert [message["role"] for message in second["messages"]] == ["user", "assistant", "user"]


async def test_system_text_of_anthropics_form_becomes_plain() -> None:
    message = "system.0.cache_control: Extra inputs are not permitted"
    first, second = await ask(refusal(message), provider="anthropic")
    assert isinstance(first["system"], list)
    assert second["system"] == SYSTEM


@pytest.mark.parametrize("provider", KINDS)
@pytest.mark.parametrize(
    ("refused", "error"),
    [
        (refusal("Invalid value for 'messages': too weird"), BadRequest),
        (refusal("no"), BadRequest),
        (refusal("Service busy, temperature", 503), Overloaded),
        (refusal("'response_format' is not supported", param="response_format"), OptionRefused),
    ],
)
async def test_other_refusals_are_not_repeated(
    provider: str, refused: FaultyResponse, error: type[ProviderError]
) -> None:
    kind, _ = KINDS[provider]
    options = replace(ALL_OPTIONS, json_schema='{"type": "object"}')
    async with FaultyServer(refused) as server:
        settings = Settings(**{f"{provider}_base_url": server.url})
        client = kind(ModelInfo(provider=provider, name="m", accepts=OPTION_NAMES), settings)
        with pytest.raises(error):
            await collect_chunks(client, PROMPT, options)
        await client.aclose()
        assert len(server.requests) == 1


async def test_server_that_refuses_everything_is_asked_a_bounded_number_of_times() -> None:
    with pytest.raises(BadRequest):
        await ask(*(refusal(f"Unknown parameter: '{name}'.", param=name) for name in
                    ("seed", "min_p", "top_k", "repeat_penalty", "stop", "top_p", "temperature")))  # fmt: skip


async def test_each_model_has_its_own_repairs() -> None:
    kind, fake = KINDS["openai"]
    answer = FaultyResponse(fake.answer_events())
    async with FaultyServer(refusal("Unknown parameter: 'seed'."), answer) as server:
        settings = Settings(openai_base_url=server.url)
        one = kind(ModelInfo(provider="openai", name="a", accepts=OPTION_NAMES), settings)
        other = one.for_model(ModelInfo(provider="openai", name="b", accepts=OPTION_NAMES))
        await collect_chunks(one, PROMPT, ALL_OPTIONS)
        await collect_chunks(other, PROMPT, ALL_OPTIONS)
        await one.aclose()
        assert ["seed" in request for request in server.requests] == [True, False, True]


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("gpt-5-mini", "max_completion_tokens"),
        ("openai/gpt-5", "max_completion_tokens"),
        ("azure/o3-mini", "max_completion_tokens"),
        ("openrouter/openai/o4-mini", "max_completion_tokens"),
        ("gpt-4o", "max_tokens"),
        ("openai/gpt-oss-20b", "max_tokens"),
        ("olmo-2", "max_tokens"),
        ("qwen3:8b", "max_tokens"),
    ],
)
async def test_reasoning_models_are_known_wherever_they_are_hosted(name: str, limit: str) -> None:
    info = Catalog(ROOT / "data" / "models.yaml").find(f"openai:{name}")
    (request,) = await ask(name=name, accepts=info.accepts)
    assert request[limit] == ALL_OPTIONS.max_tokens
    if limit == "max_completion_tokens":
        assert not request.keys() & {"temperature", "top_p", "stop"}


@pytest.mark.parametrize(
    ("name", "both"),
    [
        ("claude-haiku-4-5", False),
        ("claude-opus-4-1-20250805", False),
        ("us.anthropic.claude-sonnet-4-5-20250929-v1:0", False),
        ("anthropic/claude-sonnet-4.5", False),
        ("claude-3-5-haiku-latest", True),
        ("minimax-m2", True),
    ],
)
async def test_claude_4_gets_one_of_temperature_and_top_p(name: str, both: bool) -> None:
    (request,) = await ask(provider="anthropic", name=name)
    assert "temperature" in request
    assert ("top_p" in request) is both


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"error": {"message": "Unknown parameter: \'seed\'."}}\n\n',
        b'event: error\ndata: {"error": {"message": "seed is not supported", "code": 400}}\n\n',
    ],
)
async def test_refusal_in_a_stream_is_answered_too(event: bytes) -> None:
    first, second = await ask(FaultyResponse([event]))
    assert first.keys() - second.keys() == {"seed"}


async def test_refusal_behind_words_is_an_error() -> None:
    begun = FakeOpenAI().answer_events()[:2]
    event = b'data: {"error": {"message": "Unknown parameter: \'seed\'."}}\n\n'
    with pytest.raises(ProviderError):
        await ask(FaultyResponse([*begun, event]))


class PathServer:
    """A server that has the endpoint of chats at ``/v1`` only."""

    def __init__(self, wrong: FaultyResponse) -> None:
        self.paths: list[str] = []
        self._wrong = wrong

    def respond(self, request: httpx2.Request) -> httpx2.Response:
        self.paths.append(request.url.path)
        if request.url.path == "/v1/chat/completions":
            return httpx2.Response(200, content=b"".join(FakeOpenAI().answer_events()))
        content = b"".join(self._wrong.parts)
        return httpx2.Response(self._wrong.status, content=content)


@pytest.mark.parametrize("address", ["http://host", "http://host/", "http://host/api/chat"])
@pytest.mark.parametrize(
    "wrong",
    [
        FaultyResponse([b"404 page not found"], 404),
        FaultyResponse([b'{"detail": "Not Found"}'], 404),
        FaultyResponse([b'{"error": "Unexpected endpoint or method. (POST /chat/completions)"}']),
    ],
)
async def test_version_is_added_to_an_address_without_path(
    address: str, wrong: FaultyResponse
) -> None:
    server = PathServer(wrong)
    http = httpx2.AsyncClient(transport=httpx2.MockTransport(server.respond))
    info = ModelInfo(provider="openai", name="m")
    client = OpenAIClient(info, Settings(openai_base_url=address), http_client=http)
    for _ in range(2):
        await collect_chunks(client)
    assert server.paths == ["/chat/completions", *["/v1/chat/completions"] * 2]


@pytest.mark.parametrize("address", ["http://host/v2", "http://host"])
async def test_wrong_address_is_named(address: str) -> None:
    def respond(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(404, text="404 page not found")

    http = httpx2.AsyncClient(transport=httpx2.MockTransport(respond))
    info = ModelInfo(provider="openai", name="m")
    client = OpenAIClient(info, Settings(openai_base_url=address), http_client=http)
    with pytest.raises(WrongAddress):
        await collect_chunks(client)
