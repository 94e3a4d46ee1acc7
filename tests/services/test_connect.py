"""The connect tab: visitors' own provider keys, and tokens for their programs."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from persona_lab.clients.pool import ClientPool
from persona_lab.errors import InvalidRequest, NotFound
from persona_lab.insights import parse_time_zone
from persona_lab.lab import Lab
from persona_lab.settings import ROOT
from persona_lab.translations import Translations
from persona_lab.ui.labels import key_labels
from persona_lab.ui.page import build
from persona_lab.ui.session import Visitor, Visitors
from persona_lab.ui.tabs.connect import KEYED_PROVIDERS, ConnectActions, key_state, token_label
from persona_lab.ui.visitor_keys import (
    IDLE_TIMEOUT_S,
    MAX_PAGES_PER_VISITOR,
    MAX_PAGES_WITH_KEYS,
    UserKeyStore,
)

MakeLab = Callable[..., Lab]
WORDS = Translations(ROOT / "templates" / "ui.yaml")
USER_KEY, SERVER_KEY = "sk-visitors-own-0123456789", "sk-house-0123456789"
MODEL = "openai:somebodys-model"


class KeyServer:
    """A fake OpenAI server that records the keys of requests.

    ``status`` is its HTTP status. Its errors repeat the key, as some servers do.
    """

    def __init__(self, server: HTTPServer) -> None:
        self.url = server.url_for("/v1")
        self.keys: list[str] = []
        self.status = 200
        server.expect_request("/v1/chat/completions").respond_with_handler(self.answer)

    def answer(self, request: Request) -> Response:
        key = request.headers["Authorization"].removeprefix("Bearer ")
        self.keys.append(key)
        if self.status != 200:
            error = {"error": {"message": f"no good: {key}", "type": "x", "code": "y"}}
            return Response(json.dumps(error), self.status, content_type="application/json")
        choice = {"index": 0, "delta": {"content": "はい。"}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1000, "completion_tokens": 500, "total_tokens": 1500}
        chunks = [{"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m"} | more
                  for more in ({"choices": [choice]}, {"choices": [], "usage": usage})]  # fmt: skip
        lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
        return Response("".join([*lines, "data: [DONE]\n\n"]), content_type="text/event-stream")


@pytest.fixture
def key_server(httpserver: HTTPServer) -> KeyServer:
    return KeyServer(httpserver)


@pytest.fixture
def server_lab(make_lab: MakeLab, key_server: KeyServer, tmp_path: Path) -> Lab:
    """A lab with a database file, whose OpenAI is the fake server, without a key."""
    return make_lab(
        database_url=f"sqlite:///{tmp_path / 'lab.db'}",
        openai_base_url=key_server.url,
        llm_retries=0,
    )


@pytest.fixture
async def pages(server_lab: Lab) -> AsyncIterator[Visitors]:
    yield visitors_of(server_lab)


def visitors_of(lab: Lab) -> Visitors:
    visitors = Visitors(lab, WORDS)
    visitors.user_keys = UserKeyStore(lab, grace=0)
    return visitors


async def at(visitors: Visitors, session: str, cookie: str = "") -> Visitor:
    cookies = {"persona_lab_visitor": cookie} if cookie else {}
    headers = {"accept-language": "ja"}
    return await visitors.from_request(
        gr.Request(session_hash=session, cookies=cookies, headers=headers)
    )


def contents(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in folder.iterdir()]


async def ask(visitor: Visitor, lab: Lab, message: str = "こんにちは") -> dict[str, Any]:
    agent = lab.store.list_agents(user_id=visitor.user_id)[0]
    chat = lab.store.create_chat(user_id=visitor.user_id, agent_id=agent.id)
    reply = await visitor.service.generate_response(
        message=message, agent_id=agent.id, chat_id=chat.id, user_id=visitor.user_id, model=MODEL
    )
    return reply.metadata


# ── keys ──────────────────────────────────────────────────────────────────────────────────


async def test_user_key_is_used_only_for_its_page(
    server_lab: Lab, pages: Visitors, key_server: KeyServer
) -> None:
    actions = ConnectActions(server_lab, pages)
    one = await actions.use_key("openai", f" {USER_KEY}\n", await at(pages, "one"))
    assert "error" not in await ask(one, server_lab)
    assert key_server.keys == [USER_KEY]
    two = await at(pages, "two")
    await ask(two, server_lab)
    assert USER_KEY not in key_server.keys[1:]
    again = await actions.forget_key("openai", one)
    await ask(again, server_lab)
    assert USER_KEY not in key_server.keys[1:]


async def test_user_key_request_has_no_fallback_model(
    make_lab: MakeLab, key_server: KeyServer
) -> None:
    lab = make_lab(openai_base_url=key_server.url, llm_retries=0, llm_fallback="mock:echo")
    key_server.status = 500
    pages = visitors_of(lab)
    one = await at(pages, "one")
    assert (await ask(one, lab))["provider"] == "mock"
    own = await ConnectActions(lab, pages).use_key("openai", USER_KEY, one)
    reply = await ask(own, lab)
    assert (reply["provider"], reply["fallback"]) == ("openai", True)
    assert "fallback_from" not in reply
    await pages.user_keys.close_page(own.page)


async def test_user_key_overrides_server_key_and_state_shows_it(
    make_lab: MakeLab, key_server: KeyServer
) -> None:
    lab = make_lab(openai_api_key=SERVER_KEY, openai_base_url=key_server.url)
    pages = visitors_of(lab)
    visitor = await at(pages, "one")
    assert visitor.translate("connect.key_state.house") in key_state("openai", visitor)
    assert visitor.translate("connect.key_state.none") in key_state("anthropic", visitor)
    assert key_server.url.split("/")[2] in key_state("openai", visitor)
    await ask(visitor, lab)
    actions = ConnectActions(lab, pages)
    visitor = await actions.use_key("openai", USER_KEY, visitor)
    assert visitor.translate("connect.key_state.own", end=USER_KEY[-4:]) in key_state(
        "openai", visitor
    )
    await ask(visitor, lab, "自分の")
    await ask(await at(pages, "two"), lab, "ほかのこと")
    assert key_server.keys == [SERVER_KEY, USER_KEY, SERVER_KEY]
    actions.visitors.user_keys.drop(visitor.page, "openai")
    await ask(visitor, lab, "また")
    assert key_server.keys[-1] == SERVER_KEY


async def test_user_key_stays_in_memory(
    server_lab: Lab,
    pages: Visitors,
    key_server: KeyServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    key_server.status = 401
    visitor = await ConnectActions(server_lab, pages).use_key(
        "openai", USER_KEY, await at(pages, "one")
    )
    metadata = await ask(visitor, server_lab)
    assert metadata["error_type"]
    assert key_server.keys == [USER_KEY]
    assert USER_KEY not in json.dumps(metadata, ensure_ascii=False, default=str)
    assert USER_KEY not in repr(visitor)
    assert USER_KEY not in "".join(
        record.getMessage() + str(record.__dict__) for record in caplog.records
    )
    assert all(USER_KEY.encode() not in each for each in contents(tmp_path))
    assert USER_KEY in visitor.service.clients.keys.all_secrets, "hidden from their answers"
    assert USER_KEY not in server_lab.clients.keys.all_secrets, "nobody else's answers hide it"
    await pages.user_keys.close_page(visitor.page)
    assert USER_KEY not in visitor.service.clients.keys.all_secrets


async def test_user_key_failure_does_not_affect_others(
    make_lab: MakeLab, key_server: KeyServer
) -> None:
    lab = make_lab(
        openai_api_key=SERVER_KEY,
        openai_base_url=key_server.url,
        llm_retries=0,
        llm_breaker_failures=1,
    )
    pages = visitors_of(lab)
    visitor = await ConnectActions(lab, pages).use_key("openai", USER_KEY, await at(pages, "one"))
    key_server.status = 500
    for message in ("一", "二"):
        assert (await ask(visitor, lab, message))["error_type"]
    key_server.status = 200
    assert "error" not in await ask(await at(pages, "two"), lab, "三")
    assert key_server.keys == [USER_KEY, USER_KEY, SERVER_KEY]
    await pages.user_keys.close_page(visitor.page)


async def test_user_key_answers_skip_cache_and_quota(
    make_lab: MakeLab, key_server: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fake server acts as the provider's own server."""
    monkeypatch.setattr(
        ClientPool, "user_pays", lambda self, info: info.provider in self.user_key_providers
    )
    lab = make_lab(openai_api_key=SERVER_KEY, openai_base_url=key_server.url, tokens_per_day=4000)
    pages = visitors_of(lab)
    visitor = await ConnectActions(lab, pages).use_key("openai", USER_KEY, await at(pages, "one"))
    for _ in range(4):  # 6,000 tokens
        metadata = await ask(visitor, lab)
        assert "error" not in metadata
        assert not metadata["cache_hit"]
    assert key_server.keys == [USER_KEY] * 4
    await pages.user_keys.close_page(visitor.page)


async def test_key_store_evicts_idle_pages_when_full(lab: Lab) -> None:
    pages = visitors_of(lab)

    def keys(user: str, page: str) -> str | None:
        clients = pages.user_keys.service((user, page)).clients
        assert clients.user_key_providers == {"openai"}, (
            "what had a key isn't taken for what had none"
        )
        return clients.settings.openai_api_key and "own"

    for number in range(MAX_PAGES_WITH_KEYS + 1):
        await pages.user_keys.put((f"user {number}", "page"), "openai", USER_KEY)
    assert keys("user 0", "page") is None
    assert keys("user 1", "page") == keys(f"user {MAX_PAGES_WITH_KEYS}", "page") == "own"
    for number in range(MAX_PAGES_PER_VISITOR + 1):
        await pages.user_keys.put(("one", f"page {number}"), "openai", USER_KEY)
    assert keys("one", "page 0") is None
    assert keys("one", "page 1") == keys("one", f"page {MAX_PAGES_PER_VISITOR}") == "own"


async def test_key_store_forgets_key_when_page_is_idle(lab: Lab) -> None:
    now = [0.0]
    keyring = UserKeyStore(lab, clock=lambda: now[0])
    await keyring.put(("one", "page"), "openai", USER_KEY)
    now[0] += IDLE_TIMEOUT_S + 1
    await keyring.put(("two", "page"), "openai", USER_KEY)
    assert keyring.service(("one", "page")).clients.settings.openai_api_key is None
    assert keyring.service(("two", "page")).clients.settings.openai_api_key is not None


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("", "empty_key"),
        ("  ", "empty_key"),
        ("二つの 言葉", "key_spaces"),
        ("sk-1\nsk-2", "key_spaces"),
        ("s" * 401, "long_key"),
        ('"level":', "key_characters"),
        ("everyone", "no_key"),
        ("sk-bogus-1234567890", "no_key"),
    ],
)
async def test_use_key_names_the_rule_when_key_is_malformed(
    server_lab: Lab, pages: Visitors, key: str, reason: str
) -> None:
    visitor = await at(pages, "one")
    with pytest.raises(gr.Error) as refused:
        await ConnectActions(server_lab, pages).use_key("openai", key, visitor)
    assert key.strip() == "" or key.strip() not in str(refused.value)
    limit = {"no_key": 20, "long_key": 400}.get(reason)
    assert visitor.translate(f"connect.{reason}", limit=limit) in str(refused.value)
    assert pages.with_current_keys(visitor).service is server_lab.service


async def test_server_key_is_not_used_when_user_key_was_forgotten(
    make_lab: MakeLab, key_server: KeyServer
) -> None:
    lab = make_lab(openai_api_key=SERVER_KEY, openai_base_url=key_server.url)
    pages = visitors_of(lab)
    visitor = await ConnectActions(lab, pages).use_key("openai", USER_KEY, await at(pages, "one"))
    await pages.user_keys.close_page(visitor.page)
    for service in (visitor.service, (await at(pages, "one")).service):
        reply = await ask(replace(visitor, service=service), lab)
        assert reply["error"]
    assert key_server.keys == []
    assert visitor.translate("connect.key_state.none") in key_state(
        "openai", pages.with_current_keys(visitor)
    )


async def test_key_is_forgotten_when_page_without_cookie_closes(
    server_lab: Lab, pages: Visitors, key_server: KeyServer
) -> None:
    await ConnectActions(server_lab, pages).use_key("openai", USER_KEY, await at(pages, "one"))
    await pages.on_unload(gr.Request(session_hash="one", cookies={}, headers={}))
    await ask(await at(pages, "one"), server_lab)
    assert key_server.keys == []


async def test_user_key_is_not_shared_when_session_is_forged(
    server_lab: Lab, pages: Visitors, key_server: KeyServer
) -> None:
    mine, theirs = await at(pages, "one", "a" * 43), await at(pages, "one", "b" * 43)
    assert mine.user_id != theirs.user_id
    await ConnectActions(server_lab, pages).use_key("openai", USER_KEY, mine)
    await ask(pages.with_current_keys(theirs), server_lab)
    assert USER_KEY not in key_server.keys
    with pytest.raises(gr.Error):  # a call without a session can't have a key
        await ConnectActions(server_lab, pages).use_key(
            "openai", USER_KEY, replace(mine, session="")
        )


async def test_new_key_does_not_affect_running_answer(
    server_lab: Lab, pages: Visitors, key_server: KeyServer
) -> None:
    actions = ConnectActions(server_lab, pages)
    visitor = await actions.use_key("openai", USER_KEY, await at(pages, "one"))
    client = await visitor.service.clients.open(MODEL)
    await actions.use_key("anthropic", USER_KEY, visitor)
    assert await visitor.service.clients.open(MODEL) is client
    assert "error" not in await ask(visitor, server_lab)


async def test_user_does_not_pay_when_server_is_custom(server_lab: Lab, pages: Visitors) -> None:
    visitor = await ConnectActions(server_lab, pages).use_key(
        "openai", USER_KEY, await at(pages, "one")
    )
    clients = visitor.service.clients
    assert not clients.user_pays(clients.info(MODEL))
    assert not server_lab.clients.user_pays(clients.info(MODEL))


def test_keyed_providers_have_labels() -> None:
    assert set(KEYED_PROVIDERS) == {"openai", "anthropic"}
    for provider in KEYED_PROVIDERS:
        assert key_labels(WORDS, "ja")[f"connect.key.{provider}"]


# ── tokens ────────────────────────────────────────────────────────────────────────────────


async def test_token_identifies_visitor_until_revoked(server_lab: Lab, pages: Visitors) -> None:
    actions = ConnectActions(server_lab, pages)
    visitor = await at(pages, "one")
    assert await actions.list_tokens(visitor) == []
    shown = await actions.create_token("ボット", visitor)
    secret = shown.partition("<code>")[2].partition("</code>")[0]
    assert server_lab.store.user_for_token(secret).id == visitor.user_id
    ((label, token_id),) = await actions.list_tokens(visitor)
    assert label.startswith("ボット")
    assert secret not in label
    with pytest.raises(NotFound):
        server_lab.store.revoke_token(token_id, user_id=(await at(pages, "two")).user_id)
    assert visitor.translate("connect.revoked", name="ボット") in await actions.revoke_token(
        token_id, visitor
    )
    assert await actions.list_tokens(visitor) == []
    with pytest.raises(NotFound):
        server_lab.store.user_for_token(secret)


async def test_token_label_shows_creation_and_last_use(server_lab: Lab, pages: Visitors) -> None:
    visitor = await at(pages, "one")
    token, secret = server_lab.store.create_token(user_id=visitor.user_id)
    assert visitor.translate("connect.never_used") in token_label(token, visitor)
    server_lab.store.user_for_token(secret)
    (token,) = server_lab.store.list_tokens(user_id=visitor.user_id)
    assert visitor.translate("connect.never_used") not in token_label(token, visitor)
    assert visitor.translate("connect.nameless") in token_label(token, visitor)


async def test_token_label_days_are_in_visitor_time_zone(server_lab: Lab, pages: Visitors) -> None:
    visitor = await at(pages, "one")
    token, _ = server_lab.store.create_token(user_id=visitor.user_id)
    token.created_at = token.last_used_at = datetime(2026, 11, 25, 20, tzinfo=UTC)
    assert token_label(token, visitor).count("2026-11-25") == 2
    assert token_label(token, visitor, parse_time_zone("Asia/Tokyo")).count("2026-11-26") == 2


async def test_create_token_raises_when_name_is_too_long(server_lab: Lab, pages: Visitors) -> None:
    visitor = await at(pages, "one")
    with pytest.raises(InvalidRequest):
        await ConnectActions(server_lab, pages).create_token("長" * 1000, visitor)
    assert server_lab.store.list_tokens(user_id=visitor.user_id) == []


async def test_model_state_is_renewed_after_each_event_of_keys(lab: Lab) -> None:
    page, _ = build(lab)
    keys = [
        event
        for event in page.fns.values()
        if event.name in ("on_use_key", "on_forget_key", "_on_open")
        and any(component.elem_id == "key-openai-state" for component in event.outputs)
    ]
    renewed = {
        event.trigger_after
        for event in page.fns.values()
        if any(component.elem_id == "ready" for component in event.outputs)
    }
    assert len(keys) == 1 + 2 * len(KEYED_PROVIDERS)
    assert {event._id for event in keys} <= renewed  # noqa: SLF001 - Gradio's id of an event
