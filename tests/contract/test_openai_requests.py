"""``/v1`` takes what OpenAI takes, and says which failures are final."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from support.fakes import ScriptedClient, reply_with
from support.http_server import ApiServer, ApiUser, serve_api

from persona_lab.errors import (
    BadKey,
    CircuitOpen,
    InvalidResponse,
    MissingKey,
    ModelUnavailable,
    Offline,
    OnlyThoughts,
    Overloaded,
    PersonaLabError,
    QuotaExceeded,
    RateLimitError,
    TokenQuotaExceeded,
)
from persona_lab.lab import Lab
from persona_lab.server.error_responses import headers_of
from persona_lab.types import Chunk

ASK: Any = {"model": "さくら", "messages": [{"role": "user", "content": "やあ"}]}
MakeLab = Callable[..., Lab]


class Api:
    """A served lab, and a caller with a persona."""

    def __init__(self, server: ApiServer, user: ApiUser) -> None:
        self.server = server
        self.user = user

    def post(self, path: str = "/v1/chat/completions", **body: Any) -> httpx.Response:
        return httpx.post(self.server.url + path, json=ASK | body, headers=self.user.headers)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.server.url + path, headers=self.user.headers)

    @property
    def model(self) -> ScriptedClient:
        client = self.server.lab.clients.get()
        assert isinstance(client, ScriptedClient)
        return client


@pytest.fixture
def api(make_lab: MakeLab) -> Iterator[Api]:
    with serve_api(make_lab(reply_with("はい"))) as server:
        yield Api(server, server.create_user("さくら"))


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ({"max_tokens": 128_000}, {"max_tokens": 2048}),
        ({"max_tokens": 10**30}, {"max_tokens": 2048}),
        ({"max_tokens": None, "max_completion_tokens": 200_000}, {"max_tokens": 2048}),
        ({"max_completion_tokens": 7}, {"max_tokens": 7}),
        ({"top_p": 0}, {"top_p": 0.001}),
        ({"top_p": 1.0, "temperature": 0, "n": 1}, {"top_p": 1.0, "temperature": 0}),
        ({"temperature": 2, "seed": -1}, {"temperature": 2, "seed": -1}),
        ({"temperature": None, "top_p": None, "n": None, "stop": None, "stream": None,
          "stream_options": None, "seed": None, "response_format": None, "tools": None,
          "logit_bias": None, "user": None}, {"temperature": 0.7, "stop": ()}),
        ({"stop": []}, {"stop": ()}),
        ({"presence_penalty": -1, "top_k": "x", "tool_choice": "required", "store": True,
          "reasoning_effort": "low", "metadata": {"a": "b"}, "whatever": [1]}, {}),
        ({"response_format": {"type": "text"}}, {}),
    ],
)  # fmt: skip
def test_option_is_taken_as_openai_takes_it(
    make_lab: MakeLab, options: dict[str, Any], sent: dict[str, Any]
) -> None:
    asked = []

    async def play(prompt: Any, options: Any) -> Any:
        asked.append(options)
        yield Chunk("はい", finish_reason="stop")

    with serve_api(make_lab(play)) as server:
        api = Api(server, server.create_user("さくら"))
        assert api.post(**options).status_code == 200
    assert {name: getattr(asked[0], name) for name in sent} == sent


@pytest.mark.parametrize(
    "options",
    [{"temperature": 2.1}, {"temperature": -1}, {"top_p": 1.1}, {"top_p": -0.1}, {"max_tokens": 0},
     {"n": 0}, {"seed": 2**63}, {"response_format": {"type": "json_schema"}}],
)  # fmt: skip
def test_option_is_refused_by_name_when_out_of_range(api: Api, options: dict[str, Any]) -> None:
    refused = api.post(**options)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == next(iter(options))


def test_messages_of_any_order_are_answered(api: Api) -> None:
    user, system, answer = (
        {"role": role, "content": "あ"} for role in ("user", "system", "assistant")
    )
    half = {"role": "user", "content": "長" * 1400}
    picture = {
        "type": "image_url",
        "image_url": {"url": "data:image/png;base64," + "A" * 3_000_000},
    }
    seen = {"role": "user", "content": [picture]}
    for messages in (
        [user, system], [system, system, user], [system], [user, answer], [half, half],
        [seen, answer, user], [system | {"role": "developer", "name": "x"}, user],
        [{**system, "content": "長" * 5000}],
    ):  # fmt: skip
        assert api.post(messages=messages).status_code == 200, messages
    refused = api.post(messages=[user, answer, seen])
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "messages")
    assert api.post(messages=[{"role": "user", "content": "長" * 2001}]).status_code == 413
    assert api.post(messages=[{"role": "user", "content": " "}]).status_code == 400


def test_body_is_refused_when_text_or_attachments_are_too_large(api: Api) -> None:
    text = {"role": "system", "content": "a" * 1024 * 1024}
    assert api.post(messages=[text]).status_code == 413

    def parts() -> Iterator[bytes]:
        yield b'{"x": "data:a/b;base64,'
        for _ in range(33):
            yield b"A" * 1024 * 1024
        yield b'"}'

    url = f"{api.server.url}/v1/chat/completions"
    refused = httpx.post(url, content=parts(), headers=api.user.headers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "invalid_request")


@pytest.mark.parametrize("slashes", ["/v1/chat/completions/", "/v1//chat/completions"])
def test_slashes_of_a_base_url_are_ignored(api: Api, slashes: str) -> None:
    assert api.post(slashes).status_code == 200
    assert api.get("/v1/models/").json() == api.get("/v1/models").json()
    assert api.get("/v1/models/さくら/").status_code == 200
    assert api.get("/api/v1/agents/").json() == api.get("/api/v1/agents").json()
    api.server.create_user("x")
    named = api.server.lab.store.create_agent(user_id=api.user.user_id, name="あ/い/")
    assert api.get("/v1/models/%E3%81%82%2F%E3%81%84%2F").json()["id"] == named.name


def test_model_id_may_contain_at_signs_and_colons(make_lab: MakeLab) -> None:
    with serve_api(make_lab()) as server:
        api = Api(server, server.create_user("Nora"))
        server.lab.store.create_agent(user_id=api.user.user_id, name="あ@い")
        for name in ("Nora", "あ@い"):
            for model in ("openai:qwen2.5-7b@q4_k_m", "openai:org/x:free@a@b", "mock:echo"):
                listed = api.get(f"/v1/models/{name}@{model}")
                assert (listed.status_code, listed.json()["id"]) == (200, f"{name}@{model}")
        assert api.post(model="Nora@mock:echo").status_code == 200
        answer = api.post(model="Nora@openai:qwen2.5-7b@q4_k_m")  # there is no key for it
        assert (answer.status_code, answer.json()["error"]["code"]) == (424, "missing_key")
        for model, code in (
            ("Nora@", "model_not_found"),
            ("x@mock:echo", "model_not_found"),
            ("Nora@nobody:x@y", "unknown_model"),
        ):
            assert api.post(model=model).json()["error"]["code"] == code


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "calls"),
    [
        (MissingKey(variable="OPENAI_API_KEY"), 424, 1),
        (BadKey(), 424, 1),
        (QuotaExceeded(), 424, 1),
        (InvalidResponse(), 424, 1),
        (OnlyThoughts(), 424, 1),
        (ModelUnavailable(why="closed"), 424, 1),
        (Overloaded(), 503, 3),
        (Offline(), 503, 3),
        (CircuitOpen(seconds=0.1), 503, 3),
    ],
)
def test_client_repeats_a_request_unless_the_failure_is_final(
    make_lab: MakeLab, error: PersonaLabError, status: int, calls: int, stream: bool
) -> None:
    requests = []
    lab = make_lab(reply_with(error=error), llm_retries=0)
    with serve_api(lab) as server:
        user = server.create_user("さくら")
        hooks = {"request": [requests.append]}
        http = httpx.Client(event_hooks=hooks)
        client = OpenAI(
            base_url=f"{server.url}/v1", api_key=user.token, max_retries=2, http_client=http
        )
        with client, pytest.raises(openai.APIStatusError) as failed:
            client.chat.completions.create(**ASK, stream=stream)
    assert (failed.value.status_code, len(requests)) == (status, calls)
    assert json.loads(failed.value.response.read())["error"]["type"] == "server_error"


def test_quota_of_the_day_is_final() -> None:
    headers = headers_of(TokenQuotaExceeded(seconds=540))
    assert headers == {"retry-after": "540", "x-should-retry": "false"}
    assert "x-should-retry" not in headers_of(RateLimitError(seconds=9))
