"""``/api/v1``: what a program does by HTTP, whose it is, and what it is told when that can't be."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.types import Message
from support import tiny_gguf as tiny_gguf
from support.app_process import wait_until
from support.fakes import reply_with
from support.http_server import ApiServer, ApiUser, create_api_user, serve_api

from persona_lab.errors import DiskFull, RateLimited, StorageError
from persona_lab.lab import Lab
from persona_lab.responses.changes import restore
from persona_lab.server import COOKIE
from persona_lab.server.openai_api import completions_app
from persona_lab.server.rest import rest_app
from persona_lab.server.routes import routes
from persona_lab.server.sse import EventStreamResponse, encode_event, to_json_line

SLOW = "mock:echo?rate=20&tokens=200"
NOBODY = "f" * 32


@pytest.fixture
def home(database_url: str) -> dict[str, str]:
    return {"database_url": database_url}


@pytest.fixture
def api(lab: Lab) -> Iterator[ApiServer]:
    with serve_api(lab) as served:
        yield served


@pytest.fixture
def program(api: ApiServer) -> ApiUser:
    return api.create_user()


@pytest.fixture
async def http(api: ApiServer, program: ApiUser) -> AsyncIterator[httpx.AsyncClient]:
    async with caller(api, program.headers) as client:
        yield client


def caller(api: ApiServer, headers: dict[str, str]) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"{api.url}/api/v1", headers=headers, timeout=30)


def refused(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """What an error tells, which has the shape of all."""
    assert response.status_code == status, response.text
    body = response.json()
    error = body["error"]
    assert isinstance(error, dict)
    assert error["code"] == code
    assert error["type"]
    assert error["message"]
    return error


# ── what can be done ──────────────────────────────────────────────────────────────────────

WHOLE = {
    "name": "タロウ", "description": "海の家の店長", "gender": "男性",
    "background": "港町で育った。",
    "first_person": "おいら", "second_person": "あんた", "greeting": "いらっしゃい！",
    "personalities": ["豪快"], "roles": ["店長"], "tones": ["カジュアル"],
    "sentence_endings": ["だぜ"], "catchphrases": ["潮の香りがするな"], "forbidden_words": ["無理"],
    "examples": [{"user": "暑いね", "ai": "かき氷、食ってくか？"}], "language": "ja",
}  # fmt: skip


@pytest.mark.core
async def test_a_persona_is_made_read_changed_listed_and_deleted(http: httpx.AsyncClient) -> None:
    made = await http.post("/agents", json=WHOLE)
    assert made.status_code == 201
    persona = made.json()
    assert WHOLE.items() <= persona.items()
    assert persona["demo"] is False
    where = f"/agents/{persona['id']}"
    assert (await http.get(where)).json() == persona
    changed = (await http.patch(where, json={"name": "ジロウ"})).json()
    assert (changed["name"], changed["id"]) == ("ジロウ", persona["id"])
    listed = (await http.get("/agents")).json()
    assert listed[0] == changed
    assert listed[-1]["demo"] is True
    gone = await http.delete(where)
    assert (gone.status_code, gone.text) == (204, "")
    refused(await http.get(where), 404, "not_found")


async def test_a_persona_is_committed_compared_and_restored(http: httpx.AsyncClient) -> None:
    made = (await http.post("/agents", json=WHOLE)).json()
    where = f"/agents/{made['id']}"
    first = await http.post(f"{where}/versions", json={"message": "最初"})
    assert (first.status_code, first.json()["number"]) == (201, 1)
    assert first.json()["persona"] == WHOLE
    refused(await http.post(f"{where}/versions", json={}), 422, "nothing_to_commit")
    await http.patch(where, json={"background": "山里で育った。"})
    diff = (await http.get(f"{where}/versions/1/diff")).json()
    assert diff["changes"] == [
        {"field": "background", "before": WHOLE["background"], "after": "山里で育った。"}
    ]
    assert {"kind": "added", "text": "山里"} in diff["prompt"]
    restored = (await http.post(f"{where}/versions/1/restore")).json()
    assert (restored["number"], restored["restored_from"]) == (3, 1)
    assert (await http.get(where)).json()["background"] == WHOLE["background"]
    listed = (await http.get(f"{where}/versions")).json()
    assert [version["number"] for version in listed] == [3, 2, 1]
    assert (await http.get(f"{where}/versions/2")).json()["persona"]["background"] != WHOLE[
        "background"
    ]
    between = (await http.get(f"{where}/versions/1/diff", params={"to": 3})).json()
    assert between["changes"] == []
    for number in (0, -1, 2**31, "x"):
        refused(await http.get(f"{where}/versions/{number}"), 422, "invalid_request")
    refused(await http.get(f"{where}/versions/9"), 404, "not_found")


async def test_a_changed_demo_becomes_a_copy_and_cannot_be_deleted(http: httpx.AsyncClient) -> None:
    demo = (await http.get("/agents")).json()[-1]
    copy = (await http.patch(f"/agents/{demo['id']}", json={"name": "わたしの"})).json()
    assert (copy["demo"], copy["name"]) == (False, "わたしの")
    assert copy["id"] != demo["id"]
    refused(await http.delete(f"/agents/{demo['id']}"), 404, "not_found")


@pytest.mark.core
async def test_a_conversation_is_begun_spoken_in_listed_and_deleted(
    http: httpx.AsyncClient, program: ApiUser
) -> None:
    begun = await http.post("/chats", json={"agent_id": program.agent.id})
    assert begun.status_code == 201
    where = f"/chats/{begun.json()['id']}"
    spoken = (await http.post(f"{where}/messages", json={"content": " やあ "})).json()
    assert (spoken["user"]["content"], spoken["user"]["sender"]) == ("やあ", "user")
    assert (spoken["answer"]["sender"], spoken["answer"]["status"]) == ("ai", "ok")
    messages = (await http.get(f"{where}/messages")).json()
    assert [m["id"] for m in messages] == [spoken["user"]["id"], spoken["answer"]["id"]]
    assert messages[1] == spoken["answer"]
    chats = (await http.get("/chats", params={"agent_id": program.agent.id, "limit": 1})).json()
    assert [(chat["id"], chat["title"]) for chat in chats] == [(begun.json()["id"], "やあ")]
    assert (await http.get(where)).json() == chats[0]
    assert (await http.delete(where)).status_code == 204
    refused(await http.get(f"{where}/messages"), 404, "not_found")
    assert (await http.get("/chats", params={"agent_id": NOBODY})).json() == []


async def test_an_answer_streams_as_the_websocket_tells_it(
    http: httpx.AsyncClient, program: ApiUser
) -> None:
    body = {"content": "やあ", "stream": True}
    async with http.stream("POST", f"/chats/{program.chat.id}/messages", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert "no-transform" in response.headers["cache-control"]
        lines = [line async for line in response.aiter_lines() if line]
    user, *chunks, end = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert user["sender"] == "user"
    assert {chunk["type"] for chunk in chunks} == {"stream_chunk"}
    assert end["content"] == "".join(chunk["content"] for chunk in chunks)
    messages = (await http.get(f"/chats/{program.chat.id}/messages")).json()
    assert [m["id"] for m in messages] == [user["id"], end["id"]]


async def test_a_model_and_its_sampling_may_be_chosen_for_a_message(
    http: httpx.AsyncClient, program: ApiUser
) -> None:
    models = (await http.get("/models")).json()
    assert (models[0]["model"], models[0]["available"]) == ("mock:echo", True)
    said = {"content": "やあ", "model": "mock:echo?tokens=50", "max_tokens": 3}
    spoken = (await http.post(f"/chats/{program.chat.id}/messages", json=said)).json()
    assert spoken["answer"]["metadata"]["finish_reason"] == "length"
    assert spoken["answer"]["metadata"]["spec"] == "mock:echo?tokens=50"


async def test_a_token_is_shown_once_used_and_revoked(api: ApiServer) -> None:
    cookie = {"cookie": f"{COOKIE}={'s' * 43}"}
    async with caller(api, cookie) as page:
        made = (await page.post("/tokens", json={"name": "仕事"})).json()
        assert made["token"].startswith("pl_")
        async with caller(api, {"authorization": f"bearer {made['token']}"}) as http:
            [listed] = (await http.get("/tokens")).json()
            assert listed["last_used_at"]
            assert {**listed, "last_used_at": None, "token": made["token"]} == made
            assert (await page.get("/chats")).json() == (await http.get("/chats")).json() == []
            assert (await page.delete(f"/tokens/{made['id']}")).status_code == 204
            refused(await http.get("/tokens"), 401, "unauthorized")
        assert (await page.get("/tokens")).json() == []


async def test_token_cannot_create_another_token(
    api: ApiServer, http: httpx.AsyncClient, program: ApiUser
) -> None:
    refused(await http.post("/tokens", json={"name": "mine now"}), 403, "page_only")
    assert len(api.lab.store.list_tokens(user_id=program.user_id)) == 1


async def test_a_long_conversation_is_read_page_by_page(
    api: ApiServer, http: httpx.AsyncClient, program: ApiUser
) -> None:
    for number in range(7):
        api.lab.store.add_message(
            program.chat.id, user_id=program.user_id, sender="user", content=str(number)
        )
    where, seen, before = f"/chats/{program.chat.id}/messages", "", ""
    while page := (await http.get(where, params={"limit": 3, "before": before})).json():
        seen = "".join(message["content"] for message in page) + " " + seen
        before = page[0]["id"]
    assert seen == "0 123 456 "
    assert len((await http.get(where)).json()) == 7
    theirs = api.create_user()
    foreign_message = api.lab.store.add_message(
        theirs.chat.id, user_id=theirs.user_id, sender="user", content="x"
    )
    for odd in (NOBODY, foreign_message.id, "\x00"):
        refused(await http.get(where, params={"before": odd}), 404, "not_found")


# ── who calls ─────────────────────────────────────────────────────────────────────────────


def operations(app: FastAPI) -> set[tuple[str, str]]:
    """Method and path of all that ``app`` describes."""
    return {
        (method.upper(), path)
        for path, methods in app.openapi()["paths"].items()
        for method in methods
    }


async def test_every_operation_checks_the_caller_first(api: ApiServer) -> None:
    apps = {"/api/v1": rest_app(api.lab), "/v1": completions_app(api.lab)}
    async with httpx.AsyncClient(base_url=api.url) as nobody:
        for where, app in apps.items():
            assert operations(app)
            for method, path in operations(app):
                sent = await nobody.request(method, where + path, json={})
                assert sent.status_code == 401, (method, path)


def test_routes_are_exactly_the_known_ones(lab: Lab) -> None:
    """A new one needs its place in the tests of whom it lets in."""
    assert [getattr(route, "path", "") for route in routes(lab)] == [
        "/healthz", "/readyz", "/metrics", "/ws/{chat_id}", "/api/v1/cards", "/api/v1", "/v1",
    ]  # fmt: skip


async def test_request_without_a_valid_token_is_refused(api: ApiServer, program: ApiUser) -> None:
    shown: list[dict[str, str]] = [
        {},
        {"authorization": "Bearer pl_wrong"},
        {"authorization": f"Basic {program.token}"},
        {"authorization": "Bearer"},
        {"authorization": "Bearer pl_wrong", "cookie": f"{COOKIE}={'s' * 43}"},
        {"cookie": f"{COOKIE}=short"},
        {"cookie": f"{COOKIE}={'s' * 43}", "origin": "http://evil.example"},
        {"cookie": f"{COOKIE}={'s' * 43}", "sec-fetch-site": "cross-site"},
    ]
    for headers in shown:
        async with caller(api, headers) as http:
            response = await http.get("/agents", params={"token": program.token})
            refused(response, 401, "unauthorized")
            assert response.headers["www-authenticate"] == "Bearer"


Call = tuple[str, str, dict[str, Any] | None]


def foreign(agent: str, chat: str, token: str) -> dict[tuple[str, str], Call]:
    """A call of every operation that takes an id, with ids of another's."""
    said, versions = {"content": "やあ"}, f"/agents/{agent}/versions"
    return {
        ("GET", "/agents/{agent_id}"): ("GET", f"/agents/{agent}", None),
        ("PATCH", "/agents/{agent_id}"): ("PATCH", f"/agents/{agent}", {"name": "乗っ取り"}),
        ("DELETE", "/agents/{agent_id}"): ("DELETE", f"/agents/{agent}", None),
        ("GET", "/agents/{agent_id}/versions"): ("GET", f"{versions}", None),
        ("POST", "/agents/{agent_id}/versions"): ("POST", f"{versions}", {"message": "乗っ取り"}),
        ("GET", "/agents/{agent_id}/versions/{number}"): ("GET", f"{versions}/1", None),
        ("POST", "/agents/{agent_id}/versions/{number}/restore"): (
            "POST",
            f"{versions}/1/restore",
            None,
        ),
        ("GET", "/agents/{agent_id}/versions/{number}/diff"): (
            "GET",
            f"{versions}/1/diff",
            None,
        ),
        ("GET", "/chats"): ("GET", f"/chats?agent_id={agent}", None),
        ("POST", "/chats"): ("POST", "/chats", {"agent_id": agent}),
        ("GET", "/chats/{chat_id}"): ("GET", f"/chats/{chat}", None),
        ("DELETE", "/chats/{chat_id}"): ("DELETE", f"/chats/{chat}", None),
        ("GET", "/chats/{chat_id}/messages"): ("GET", f"/chats/{chat}/messages", None),
        ("POST", "/chats/{chat_id}/messages"): ("POST", f"/chats/{chat}/messages", said),
        ("DELETE", "/tokens/{token_id}"): ("DELETE", f"/tokens/{token}", None),
    }


WITHOUT_IDS = {("GET", "/agents"), ("POST", "/agents"), ("GET", "/tokens"), ("POST", "/tokens"),
               ("GET", "/models")}  # fmt: skip


def test_every_operation_is_tried_with_anothers_ids(lab: Lab) -> None:
    assert operations(rest_app(lab)) == set(foreign("", "", "")) | WITHOUT_IDS


async def test_anothers_ids_are_refused_like_missing_ones(
    api: ApiServer, http: httpx.AsyncClient
) -> None:
    theirs = api.create_user("ひみつの人")
    store = api.lab.store
    store.commit_version(theirs.agent.id, user_id=theirs.user_id, message="ひみつ")
    store.add_message(theirs.chat.id, user_id=theirs.user_id, sender="user", content="ひみつ")
    [token] = store.list_tokens(user_id=theirs.user_id)

    def state() -> list[Any]:
        return [
            store.list_agents(user_id=theirs.user_id)[0],
            store.list_chats(user_id=theirs.user_id),
            api.thread(theirs),
            store.list_tokens(user_id=theirs.user_id),
        ]

    before = state()
    calls = foreign(theirs.agent.id, theirs.chat.id, token.id)
    for operation, (method, path, body) in calls.items():
        for how in (body, body and body | {"stream": True}) if "messages" in path else (body,):
            got = await http.request(method, path, json=how)
            _, missing, _ = foreign(NOBODY, NOBODY, NOBODY)[operation]
            nothing = body and {key: NOBODY if key == "agent_id" else value for key, value in
                                (how or {}).items()}  # fmt: skip
            assert got.text == (await http.request(method, missing, json=nothing)).text
            if operation == ("GET", "/chats"):
                assert got.json() == []
            else:
                refused(got, 404, "not_found")
    assert state() == before
    for path in ("/agents", "/chats", "/tokens"):
        assert theirs.user_id not in (listed := (await http.get(path)).text)
        assert "ひみつ" not in listed


# ── what it is told when that can't be ────────────────────────────────────────────────────


REFUSED: list[tuple[str, str, Any, int, str]] = [
    ("POST", "/agents", {}, 422, "invalid_request"),
    ("POST", "/agents", {"name": " "}, 422, "invalid_persona"),
    ("POST", "/agents", {"name": "x" * 101}, 422, "invalid_persona"),
    ("POST", "/agents", {"name": "x", "id": "y"}, 422, "invalid_request"),
    ("POST", "/agents", {"name": "x", "\ud800": "y"}, 422, "invalid_request"),
    ("POST", "/agents", {"name": "x", "language": "fr"}, 422, "invalid_request"),
    ("POST", "/agents", [1], 422, "invalid_request"),
    ("POST", "/agents", "[", 422, "invalid_request"),
    ("POST", "/agents", "[" * 100_000, 422, "invalid_request"),
    ("POST", "/agents", "1" * 5000, 422, "invalid_request"),
    ("POST", "/agents", " " * (8 * 1024 * 1024 + 1), 413, "invalid_request"),
    ("POST", "/tokens", {"name": "x"}, 403, "page_only"),
    ("GET", "/chats?limit=0", None, 422, "invalid_request"),
    ("GET", "/chats?limit=" + "9" * 30, None, 422, "invalid_request"),
    ("GET", "/agents/%00", None, 404, "not_found"),
    ("GET", "/agents/%ff", None, 404, "not_found"),
    ("GET", "/nothing", None, 404, "invalid_request"),
    ("PUT", "/agents", {}, 405, "invalid_request"),
    ("POST", "/chats/CHAT/messages", {"content": ""}, 422, "empty_message"),
    ("POST", "/chats/CHAT/messages", {"content": "長" * 2001}, 413, "message_too_long"),
    ("POST", "/chats/CHAT/messages", {"content": "x", "model": "nobody:x"}, 422,
     "unknown_model"),
    ("POST", "/chats/CHAT/messages", {"content": "x", "model": "\ud800"}, 422, "unknown_model"),
    ("POST", "/chats/CHAT/messages", {"content": "x", "temperature": 9}, 422,
     "invalid_request"),
    ("POST", "/chats/CHAT/messages", {"content": "x", "max_token": 9}, 422, "invalid_request"),
    ("POST", "/chats/CHAT/messages", {"content": "x", "model": "mock:echo?fail=timeout"}, 504,
     "timeout"),
    ("POST", "/chats/CHAT/messages", {"content": "x", "model": "mock:echo?fail=overloaded"},
     503, "overloaded"),
    ("POST", "/chats/CHAT/messages", {"content": "x", "model": "openai:x"}, 503, "missing_key"),
]  # fmt: skip


async def test_every_refusal_has_one_shape_and_a_fitting_status(
    api: ApiServer, program: ApiUser
) -> None:
    for language in ("ja", "en"):
        headers = {"content-type": "application/json", "accept-language": language}
        async with caller(api, program.headers | headers) as http:
            for method, path, body, status, code in REFUSED:
                text = body if isinstance(body, str) else json.dumps(body)
                content = None if body is None else text.encode()
                where = path.replace("CHAT", program.chat.id)
                sent = await http.request(method, where, content=content)
                words = refused(sent, status, code)["message"]
                assert any(letter > "\u3040" for letter in words) == (language == "ja"), where


async def test_endless_body_is_refused_and_the_server_stays_up(http: httpx.AsyncClient) -> None:
    async def endless() -> AsyncGenerator[bytes, None]:
        for _ in range(20):
            yield b" " * 1024 * 1024

    with_type = {"content-type": "application/json"}
    try:
        sent = await http.post("/agents", content=endless(), headers=with_type)
    except httpx.TransportError:
        pass  # the server closed the connection during the request
    else:
        refused(sent, 413, "invalid_request")
    assert (await http.get("/agents")).status_code == 200


async def test_an_answers_metadata_has_its_raw_text_and_changes(
    make_lab: Callable[..., Lab],
) -> None:
    raw = "はい。\n\n\n\nどうぞ。"
    with serve_api(make_lab(reply_with(raw))) as api:
        program = api.create_user()
        async with caller(api, program.headers) as http:
            where = f"/chats/{program.chat.id}/messages"
            answer = (await http.post(where, json={"content": "やあ"})).json()["answer"]
            _, kept = (await http.get(where)).json()
    for each in (answer, kept):
        assert each["content"] == "はい。\n\nどうぞ。"
        assert each["metadata"]["raw"] == raw
        [change] = each["metadata"]["changes"]
        assert change["step"] == "blank_lines"
        assert restore(each["content"], [change]) == raw


async def test_rate_limit_answers_429_with_retry_after(make_lab: Callable[..., Lab]) -> None:
    with serve_api(make_lab(requests_per_minute=1)) as api:
        program = api.create_user()
        async with caller(api, program.headers) as http:
            where = f"/chats/{program.chat.id}/messages"
            assert (await http.post(where, json={"content": "1"})).status_code == 200
            sent = await http.post(where, json={"content": "2"})
            error = refused(sent, 429, "too_many_requests")
            assert sent.headers["retry-after"] == str(error["retry_after"])
            assert (await http.get("/agents")).status_code == 200
    body = sent.json()
    assert (body["fallback"], body["user"]["content"]) == (True, "2")
    assert body["answer"]["status"] == "failed"


async def test_retry_after_of_the_provider_is_passed_on(
    make_lab: Callable[..., Lab],
) -> None:
    busy = reply_with(error=RateLimited(retry_after=30))
    with serve_api(make_lab(busy, llm_retries=0)) as api:
        program = api.create_user()
        async with caller(api, program.headers) as http:
            where = f"/chats/{program.chat.id}/messages"
            sent = await http.post(where, json={"content": "1"})
            refused(sent, 503, "rate_limit")
            assert sent.headers["retry-after"] == "30"


async def test_a_models_name_is_no_place_for_a_novel(
    http: httpx.AsyncClient, program: ApiUser
) -> None:
    long = {"content": "やあ", "model": "mock:" + "x" * 1000}
    sent = await http.post(f"/chats/{program.chat.id}/messages", json=long)
    assert len(refused(sent, 422, "unknown_model")["model"]) == 300


@pytest.mark.parametrize(
    ("raised", "status", "code"),
    [(DiskFull(), 503, "disk_full"), (StorageError(), 503, "storage"),
     (KeyError("ひみつ"), 500, "system_error")],
)  # fmt: skip
async def test_database_error_is_reported_without_any_text_of_users(
    api: ApiServer, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, raised: Exception, status: int, code: str,
) -> None:  # fmt: skip
    def broken(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr(api.lab.store, "list_agents", broken)
    sent = await http.get("/agents")
    refused(sent, status, code)
    assert "ひみつ" not in sent.text + caplog.text
    assert ("KeyError" in caplog.text) == (status == 500)


# ── who reads slowly, and who goes away ───────────────────────────────────────────────────


async def test_partial_answer_is_stored_when_the_client_disconnects(
    api: ApiServer, http: httpx.AsyncClient, program: ApiUser
) -> None:
    body = {"content": "やあ", "model": SLOW, "stream": True}
    async with http.stream("POST", f"/chats/{program.chat.id}/messages", json=body) as response:
        lines = response.aiter_lines()
        for _ in range(8):
            await anext(lines)
        del lines  # what it left half read is closed now, and not when the test is over
    await asyncio.to_thread(wait_until, lambda: [row[2] for row in api.thread(program)][1:] == [
        "stopped"
    ])  # fmt: skip
    assert 0 < len(api.thread(program)[1][1]) < 200


@pytest.mark.parametrize("path", ["/api/v1", "/v1"])
async def test_unstreamed_answer_is_stopped_when_client_disconnects(
    make_lab: Callable[..., Lab], path: str
) -> None:
    lab = make_lab(llm_model=SLOW.removeprefix("mock:"))
    with serve_api(lab) as api:
        await _leave(api, api.create_user(), path)


async def _leave(api: ApiServer, program: ApiUser, path: str) -> None:
    if path == "/v1":
        where = "/v1/chat/completions"
        said = {"model": program.agent.id, "messages": [{"role": "user", "content": "やあ"}]}
    else:
        where = f"/api/v1/chats/{program.chat.id}/messages"
        said = {"content": "やあ", "model": SLOW}
    with pytest.raises(httpx.ReadTimeout):
        async with httpx.AsyncClient(base_url=api.url, headers=program.headers) as http:
            await http.post(where, json=said, timeout=0.5)

    def ended() -> list[str]:
        return [turn.status for turn in api.lab.store.records(user_id=program.user_id)]

    await asyncio.to_thread(wait_until, lambda: ended() == ["stopped"])


async def test_request_id_is_the_callers_or_a_new_one(
    api: ApiServer, http: httpx.AsyncClient, program: ApiUser
) -> None:
    mine = {"x-request-id": "from-my-program.7"}
    sent = await http.post(
        f"/chats/{program.chat.id}/messages", json={"content": "やあ"}, headers=mine
    )
    assert sent.headers["x-request-id"] == mine["x-request-id"]
    assert sent.json()["answer"]["metadata"]["request_id"] == mine["x-request-id"]
    refusals = [await http.get(f"/agents/{NOBODY}") for _ in range(2)]
    ids = {answer.headers["x-request-id"] for answer in refusals}
    assert len(ids) == 2
    odd = await http.get("/agents", headers={"x-request-id": "a b\tc" * 40})
    assert odd.headers["x-request-id"] not in {"a b\tc" * 40, ""}
    for method, path, status in (
        ("GET", "/healthz", 200), ("GET", "/metrics", 200), ("GET", "/nowhere", 404),
        ("POST", "/healthz", 405), ("POST", "/metrics", 405),
    ):  # fmt: skip
        sent = await http.request(method, f"{api.url}{path}", headers=mine)
        assert (sent.status_code, sent.headers["x-request-id"]) == (status, "from-my-program.7")
        if status >= 400:
            refused(sent, status, "invalid_request")


async def test_null_for_a_persona_field_is_refused(
    http: httpx.AsyncClient, program: ApiUser
) -> None:
    for field in ("roles", "name", "examples", "language"):
        sent = await http.patch(f"/agents/{program.agent.id}", json={field: None})
        assert refused(sent, 422, "invalid_request")["field"] == field
    assert (await http.get(f"/agents/{program.agent.id}")).json()["roles"] == ["教師"]


def excused(error: Exception) -> bytes:
    return encode_event(type(error).__name__)


async def test_slow_reader_slows_the_stream_without_buffering() -> None:
    made = closed = 0
    reading = asyncio.Event()
    sent: list[Message] = []

    async def events() -> AsyncGenerator[bytes, None]:
        nonlocal made, closed
        try:
            for _ in range(500):
                made += 1
                yield encode_event("長い話")
        finally:
            closed += 1

    async def send(message: Message) -> None:
        sent.append(message)
        if len(sent) > 20:
            await reading.wait()

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    sending = asyncio.create_task(
        EventStreamResponse(events(), excused)({"type": "http"}, receive, send)
    )
    for _ in range(5):
        await asyncio.sleep(0.05)
    assert (made, closed) == (20, 0)
    reading.set()
    await sending
    assert (made, closed) == (500, 1)
    assert sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_a_reader_that_takes_nothing_for_long_counts_as_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("persona_lab.server.sse.SEND_TIMEOUT_S", 0.05)
    closed = False

    async def events() -> AsyncGenerator[bytes, None]:
        nonlocal closed
        try:
            while True:
                yield encode_event("長い話")
        finally:
            closed = True

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(TimeoutError):
        await EventStreamResponse(events(), excused)({"type": "http"}, receive, send)
    assert closed


async def test_a_long_wait_has_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("persona_lab.server.sse.HEARTBEAT_S", 0.02)
    sent: list[Message] = []

    async def events() -> AsyncGenerator[bytes, None]:
        yield encode_event("はじめ")
        await asyncio.sleep(0.2)
        yield encode_event("おわり")

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    await EventStreamResponse(events(), excused)({"type": "http"}, receive, send)
    bodies = [message.get("body") for message in sent]
    assert bodies.count(b": \n\n") > 2
    assert [body for body in bodies if body != b": \n\n"] == [
        None, encode_event("はじめ"), encode_event("おわり"), b"",
    ]  # fmt: skip


@pytest.mark.parametrize("wait", [0, 0.1])
async def test_error_before_text_has_a_status_unless_it_came_late(
    monkeypatch: pytest.MonkeyPatch, wait: float
) -> None:
    monkeypatch.setattr("persona_lab.server.sse.HEARTBEAT_S", 0.02)
    sent: list[Message] = []

    async def events() -> AsyncGenerator[bytes, None]:
        await asyncio.sleep(wait)
        raise RateLimited
        yield b""

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    with nullcontext() if wait else pytest.raises(RateLimited):
        await EventStreamResponse(events(), excused)({"type": "http"}, receive, send)
    said = [message.get("body") for message in sent if message.get("body") != b": \n\n"]
    assert said == ([None, encode_event("RateLimited"), b""] if wait else [])


def test_sse_event_is_one_line_and_valid_utf8() -> None:
    text = "一\n二\r三\x85四\u2028五\u2029六\ud800"
    event = encode_event(to_json_line({"content": text})).decode()
    assert event.count("\n") == 2
    assert len(event.splitlines()) == 2
    assert json.loads(event.removeprefix("data: "))["content"] == text.replace("\ud800", "?")


# ── probes ────────────────────────────────────────────────────────────────────────────────


async def test_the_probes_answer_whether_all_is_well(
    api: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with httpx.AsyncClient(base_url=api.url) as anybody:
        assert (await anybody.get("/healthz")).json() == {"status": "alive"}
        ready = await anybody.get("/readyz")
        assert (ready.status_code, ready.json()) == (
            200, {"ready": True, "database": True, "model": True},
        )  # fmt: skip

        def broken() -> None:
            raise StorageError

        monkeypatch.setattr(api.lab.store, "check", broken)
        ready = await anybody.get("/readyz")
        assert (ready.status_code, ready.json()["database"]) == (503, False)
        assert (await anybody.get("/healthz")).status_code == 200


async def test_a_default_model_that_has_no_key_is_not_ready(make_lab: Callable[..., Lab]) -> None:
    with serve_api(make_lab(llm_provider="openai", llm_model="gpt-x")) as api:
        async with httpx.AsyncClient(base_url=api.url) as anybody:
            ready = await anybody.get("/readyz")
    assert (ready.status_code, ready.json()["model"]) == (503, False)


async def test_a_default_model_whose_file_went_away_is_not_ready(
    make_lab: Callable[..., Lab], tmp_path: Path
) -> None:
    file = tiny_gguf.write(tmp_path / "tiny.gguf")
    with serve_api(make_lab(llm_provider="local", local_model=str(file))) as api:
        async with httpx.AsyncClient(base_url=api.url) as anybody:
            assert (await anybody.get("/readyz")).json()["model"] is True
            file.unlink()
            ready = await anybody.get("/readyz")
    assert (ready.status_code, ready.json()["model"]) == (503, False)


async def test_key_in_a_providers_error_text_is_redacted(make_lab: Callable[..., Lab]) -> None:
    with serve_api(
        make_lab(reply_with("鍵は sk-secret-123 です"), openai_api_key="sk-secret-123")
    ) as api:
        program = create_api_user(api.lab)
        async with caller(api, program.headers) as http:
            sent = await http.post(f"/chats/{program.chat.id}/messages", json={"content": "x"})
    assert sent.status_code == 200
    assert "sk-secret" not in sent.text


async def test_metrics_are_open_to_localhost_or_with_their_token(
    make_lab: Callable[..., Lab],
) -> None:
    async def asked(
        lab: Lab, *, shared: bool = False, at: str = "http://127.0.0.1:7860", **headers: str
    ) -> int:
        app = Starlette(routes=routes(lab, shared=shared))
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url=at) as http:
            answer = await http.get("/metrics", headers=headers)
        if answer.status_code == 200:
            assert list(text_string_to_metric_families(answer.text))
        return answer.status_code

    own = make_lab()
    assert await asked(own) == 200
    assert await asked(own, at="http://[::1]:7860") == 200
    assert await asked(own, at="http://lab.example") == 404  # a name that was bound to this address
    assert await asked(own, shared=True) == 404
    assert await asked(own, **{"x-forwarded-for": "10.0.0.1"}) == 404
    assert await asked(make_lab(gradio_server_name="lab.example")) == 404
    guarded = make_lab(metrics_token="canary-token", gradio_server_name="lab.example")
    assert await asked(guarded) == 404
    assert await asked(guarded, authorization="Bearer wrong") == 404
    assert await asked(guarded, shared=True, authorization="Bearer canary-token") == 200
