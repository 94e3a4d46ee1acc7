"""The HTTP interfaces of the started app: real clients, many at once, and invalid requests."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest
import schemathesis
from gradio_client import Client
from hypothesis import HealthCheck, given, settings
from openai import OpenAI
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from support.app_process import RunningApp, run_app
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect as connect_now

from persona_lab.settings import ROOT

MANY = 200
"""Sockets at once."""
ROUNDS = 2


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    with run_app(tmp_path_factory.mktemp("interfaces"), REQUESTS_PER_MINUTE="0") as app:
        yield app


@pytest.fixture(scope="module")
def token(served: RunningApp) -> str:
    """Made as a program makes its own: as a visitor of the page."""
    with httpx.Client(base_url=served.url, timeout=30) as visitor:
        visitor.get("/")
        made: str = visitor.post("/api/v1/tokens", json={"name": "試験"}).json()["token"]
        return made


@pytest.fixture
def http(served: RunningApp, token: str) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {token}"}
    with httpx.Client(base_url=f"{served.url}/api/v1", headers=headers, timeout=30) as client:
        yield client


@pytest.fixture
def persona(http: httpx.Client) -> dict[str, Any]:
    made: dict[str, Any] = http.post("/agents", json={"name": "さくら"}).json()
    return made


@pytest.fixture
def chat(http: httpx.Client, persona: dict[str, Any]) -> str:
    begun: str = http.post("/chats", json={"agent_id": persona["id"]}).json()["id"]
    return begun


def socket_of(served: RunningApp, chat: str) -> str:
    return f"{served.url.replace('http', 'ws', 1)}/ws/{chat}"


# ── beside the pages ──────────────────────────────────────────────────────────────────────


def test_api_routes_and_page_share_one_port(
    served: RunningApp, http: httpx.Client, token: str, persona: dict[str, Any], chat: str
) -> None:
    assert "personaLab" in httpx.get(served.url).text
    assert httpx.get(f"{served.url}/healthz").json() == {"status": "alive"}
    assert httpx.get(f"{served.url}/readyz").json()["ready"] is True
    described = httpx.get(f"{served.url}/api/v1/openapi.json").json()
    assert set(described["paths"]) >= {"/agents", "/chats/{chat_id}/messages", "/tokens"}
    said = http.post(f"/chats/{chat}/messages", json={"content": "やあ"}).json()
    assert said["answer"]["status"] == "ok"
    where = f"{socket_of(served, chat)}?token={token}"
    with connect_now(where) as socket:
        socket.send('{"content": "もしもし"}')
        told = [json.loads(socket.recv(timeout=30))]
        while not told[-1].get("complete"):
            told.append(json.loads(socket.recv(timeout=30)))
    assert told[0]["content"] == "もしもし"
    with OpenAI(base_url=f"{served.url}/v1", api_key=token) as client:
        chunks = client.chat.completions.create(
            model=persona["id"], messages=[{"role": "user", "content": "やあ"}], stream=True
        )
        assert "やあ" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def test_token_is_in_no_log(served: RunningApp, token: str, chat: str) -> None:
    for shown in (token, token + "x"):
        with (
            connect_now(f"{socket_of(served, chat)}?token={shown}") as socket,
            contextlib.suppress(ConnectionClosed),  # one of the two is shown the door at once
        ):
            socket.send("{")
            socket.recv(timeout=30)
        for where in ("/api/v1/agents", "/v1/models"):
            httpx.get(served.url + where, headers={"authorization": f"Bearer {shown}"}, timeout=30)
    assert "pl_" not in served.log
    assert "Traceback" not in served.log


def test_openapi_describes_every_operation_and_schema(served: RunningApp) -> None:
    described = httpx.get(f"{served.url}/api/v1/openapi.json").json()
    assert described["paths"]
    assert described["components"]["schemas"]
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            assert operation["description"], (method, path)
            assert {"401", "422", "500", "503"} <= set(operation["responses"]), (method, path)
    for name, schema in described["components"]["schemas"].items():
        assert schema.get("description"), name


# ── many at once ──────────────────────────────────────────────────────────────────────────


async def test_two_hundred_sockets_get_their_answers_in_flat_memory(
    served: RunningApp,
) -> None:
    store = served.store
    people = []
    for number in range(MANY):
        user = store.create_user().id
        agent = store.create_agent(user_id=user, name=f"人{number}")
        chat = store.create_chat(user_id=user, agent_id=agent.id)
        people.append((chat.id, store.create_token(user_id=user)[1]))
    process = psutil.Process(served.process.pid)
    ready = asyncio.Barrier(MANY)

    async def talk(number: int, chat: str, secret: str, turn: int) -> str:
        word = f"〈{number}の{turn}〉"
        headers = {"authorization": f"Bearer {secret}"}
        where = socket_of(served, chat)
        async with connect(where, additional_headers=headers, open_timeout=60) as socket:
            await ready.wait()
            await socket.send(json.dumps({"content": word}))
            told = [json.loads(await socket.recv())]
            while not told[-1].get("complete"):
                told.append(json.loads(await socket.recv()))
        assert told[0]["content"] == word
        assert told[-1]["metadata"]["status"] == "ok"
        heard = "".join(step.get("content", "") for step in told)
        assert set(re.findall(r"〈.*?〉", heard)) == {word}
        return word

    resident = []
    for turn in range(ROUNDS):
        async with asyncio.timeout(120):
            said = await asyncio.gather(*(talk(n, *who, turn) for n, who in enumerate(people)))
        assert len(set(said)) == MANY
        resident.append(process.memory_info().rss / 1e6)
    assert resident[-1] - resident[0] < 25, resident
    assert "Traceback" not in served.log


# ── whatever may be sent ──────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def own(served: RunningApp, token: str) -> dict[str, str]:
    """Ids that lead somewhere, so that what is sent gets past them."""
    headers = {"authorization": f"Bearer {token}"}
    with httpx.Client(base_url=f"{served.url}/api/v1", headers=headers, timeout=30) as http:
        agent = http.post("/agents", json={"name": "さくら"}).json()["id"]
        chat = http.post("/chats", json={"agent_id": agent}).json()["id"]
    return {"agent_id": agent, "chat_id": chat}


CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
FEW = settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def try_out(served: RunningApp, where: str, token: str, own: dict[str, str]) -> list[str]:
    """Sends every operation of a description what it allows and what it forbids; their names."""
    tried = []
    for found in schemathesis.openapi.from_url(served.url + where).get_all_operations():
        operation = found.ok()

        def send(case: Any) -> None:
            if case.method != "DELETE":
                for name in own.keys() & (case.path_parameters or {}).keys():
                    case.path_parameters[name] = own[name]
            case.call_and_validate(headers={"authorization": f"Bearer {token}"}, checks=CHECKS)

        for mode in GenerationMode:
            FEW(given(case=operation.as_strategy(generation_mode=mode))(send))()
        tried.append(operation.label)
    return tried


def test_no_request_of_the_schema_causes_a_server_error(
    served: RunningApp, token: str, own: dict[str, str]
) -> None:
    assert len(try_out(served, "/api/v1/openapi.json", token, own)) == 20
    assert len(try_out(served, "/api/v1/cards/openapi.json", token, own)) == 4
    assert len(try_out(served, "/v1/openapi.json", token, own)) == 3
    assert "Traceback" not in served.log


# ── the examples ──────────────────────────────────────────────────────────────────────────


def examples(readme: str, heading: str) -> list[str]:
    """The Python examples of a section that speak with a served lab."""
    _, _, below = (ROOT / readme).read_text("utf-8").partition(f"## {heading}\n")
    section = re.split(r"^## ", below, maxsplit=1, flags=re.MULTILINE)[0]
    found = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    return [text for text in found if "persona_lab" not in text]


def test_documented_examples_run_unchanged(served: RunningApp) -> None:
    known: dict[str, Any] = {"__name__": "example"}
    found = examples("docs/http-api.md", "From a program")
    assert len(found) == 7
    for text in found:  # in their order: a later one uses what an earlier one made
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(text.replace("127.0.0.1:7860", served.url.removeprefix("http://")), known)  # noqa: S102
        assert said.getvalue().strip(), text
    for opened in known.values():
        if isinstance(opened, httpx.Client | OpenAI | Client):
            opened.close()
