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
OWN, HOUSE = "sk-visitors-own-0123456789", "sk-house-0123456789"
MODEL = "openai:somebodys-model"


class Wire:
    """A server in OpenAI's form that writes down whose key it was shown; ``status`` is what it
    answers with. Its errors repeat the key, as careless servers do."""

    def __init__(self, server: HTTPServer) -> None:
        self.url = server.url_for("/v1")
        self.keys: list[str] = []
        self.status = 200
        server.expect_request("/v1/chat/completions").respond_with_handler(self.answer)

    def answer(self, request: Request) -> Response:
        key = request.headers["Authorization"].removeprefix("Bearer ")
        self.keys.append(key)
        if self.status != 200:
            wrong = {"error": {"message": f"no good: {key}", "type": "x", "code": "y"}}
            return Response(json.dumps(wrong), self.status, content_type="application/json")
        choice = {"index": 0, "delta": {"content": "はい。"}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1000, "completion_tokens": 500, "total_tokens": 1500}
        chunks = [{"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m"} | more
                  for more in ({"choices": [choice]}, {"choices": [], "usage": usage})]  # fmt: skip
        lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
        return Response("".join([*lines, "data: [DONE]\n\n"]), content_type="text/event-stream")


@pytest.fixture
def wire(httpserver: HTTPServer) -> Wire:
    return Wire(httpserver)


@pytest.fixture
def house(make_lab: MakeLab, wire: Wire, tmp_path: Path) -> Lab:
    """A lab on a file, whose OpenAI is the wire and which has no key for it."""
    return make_lab(
        database_url=f"sqlite:///{tmp_path / 'lab.db'}", openai_base_url=wire.url, llm_retries=0
    )


Sit = Callable[[str], Any]


@pytest.fixture
async def pages(house: Lab) -> AsyncIterator[Visitors]:
    yield visitors_of(house)


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


async def test_an_own_key_pays_for_its_page_and_for_no_other(
    house: Lab, pages: Visitors, wire: Wire
) -> None:
    actions = ConnectActions(house, pages)
    one = await actions.use_key("openai", f" {OWN}\n", await at(pages, "one"))
    assert "error" not in await ask(one, house)
    assert wire.keys == [OWN]
    two = await at(pages, "two")
    await ask(two, house)
    assert OWN not in wire.keys[1:]
    again = await actions.forget_key("openai", one)
    await ask(again, house)
    assert OWN not in wire.keys[1:]


async def test_nobody_stands_in_for_whom_a_visitor_asks_with_their_own_key(
    make_lab: MakeLab, wire: Wire
) -> None:
    lab = make_lab(openai_base_url=wire.url, llm_retries=0, llm_fallback="mock:echo")
    wire.status = 500
    pages = visitors_of(lab)
    one = await at(pages, "one")
    assert (await ask(one, lab))["provider"] == "mock"
    own = await ConnectActions(lab, pages).use_key("openai", OWN, one)
    told = await ask(own, lab)
    assert (told["provider"], told["fallback"]) == ("openai", True)
    assert "fallback_from" not in told
    await pages.user_keys.close_page(own.page)


async def test_an_own_key_stands_ahead_of_the_houses_and_the_page_says_whose_it_is(
    make_lab: MakeLab, wire: Wire
) -> None:
    lab = make_lab(openai_api_key=HOUSE, openai_base_url=wire.url)
    pages = visitors_of(lab)
    visitor = await at(pages, "one")
    assert visitor.translate("connect.key_state.house") in key_state("openai", visitor)
    assert visitor.translate("connect.key_state.none") in key_state("anthropic", visitor)
    assert wire.url.split("/")[2] in key_state("openai", visitor)
    await ask(visitor, lab)
    actions = ConnectActions(lab, pages)
    visitor = await actions.use_key("openai", OWN, visitor)
    assert visitor.translate("connect.key_state.own") in key_state("openai", visitor)
    await ask(visitor, lab, "自分の")
    await ask(await at(pages, "two"), lab, "ほかのこと")
    assert wire.keys == [HOUSE, OWN, HOUSE]
    actions.visitors.user_keys.drop(visitor.page, "openai")
    await ask(visitor, lab, "また")
    assert wire.keys[-1] == HOUSE


async def test_an_own_key_is_nowhere_but_in_memory(
    house: Lab, pages: Visitors, wire: Wire, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    wire.status = 401
    visitor = await ConnectActions(house, pages).use_key("openai", OWN, await at(pages, "one"))
    metadata = await ask(visitor, house)
    assert metadata["error_type"]
    assert wire.keys == [OWN]
    assert OWN not in json.dumps(metadata, ensure_ascii=False, default=str)
    assert OWN not in repr(visitor)
    assert OWN not in "".join(
        record.getMessage() + str(record.__dict__) for record in caplog.records
    )
    assert all(OWN.encode() not in each for each in contents(tmp_path))
    assert OWN in visitor.service.clients.keys.all_secrets, "hidden from their answers"
    assert OWN not in house.clients.keys.all_secrets, "nobody else's answers hide it"
    await pages.user_keys.close_page(visitor.page)
    assert OWN not in visitor.service.clients.keys.all_secrets


async def test_a_visitors_account_in_trouble_is_nobody_elses(make_lab: MakeLab, wire: Wire) -> None:
    lab = make_lab(
        openai_api_key=HOUSE, openai_base_url=wire.url, llm_retries=0, llm_breaker_failures=1
    )
    pages = visitors_of(lab)
    visitor = await ConnectActions(lab, pages).use_key("openai", OWN, await at(pages, "one"))
    wire.status = 500
    for message in ("一", "二"):
        assert (await ask(visitor, lab, message))["error_type"]
    wire.status = 200
    assert "error" not in await ask(await at(pages, "two"), lab, "三")
    assert wire.keys == [OWN, OWN, HOUSE]
    await pages.user_keys.close_page(visitor.page)


async def test_answers_paid_for_by_a_visitor_are_neither_cached_nor_counted(
    make_lab: MakeLab, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wire stands in for the provider's own server."""
    monkeypatch.setattr(
        ClientPool, "user_pays", lambda self, info: info.provider in self.user_key_providers
    )
    lab = make_lab(openai_api_key=HOUSE, openai_base_url=wire.url, tokens_per_day=4000)
    pages = visitors_of(lab)
    visitor = await ConnectActions(lab, pages).use_key("openai", OWN, await at(pages, "one"))
    for _ in range(4):  # 6,000 tokens
        metadata = await ask(visitor, lab)
        assert "error" not in metadata
        assert not metadata["cache_hit"]
    assert wire.keys == [OWN] * 4
    await pages.user_keys.close_page(visitor.page)


async def test_no_more_pages_than_there_is_room_for_keep_keys(lab: Lab) -> None:
    pages = visitors_of(lab)

    def keys(user: str, page: str) -> str | None:
        clients = pages.user_keys.service((user, page)).clients
        assert clients.user_key_providers == {"openai"}, (
            "what had a key isn't taken for what had none"
        )
        return clients.settings.openai_api_key and "own"

    for number in range(MAX_PAGES_WITH_KEYS + 1):
        await pages.user_keys.put((f"user {number}", "page"), "openai", OWN)
    assert keys("user 0", "page") is None
    assert keys("user 1", "page") == keys(f"user {MAX_PAGES_WITH_KEYS}", "page") == "own"
    for number in range(MAX_PAGES_PER_VISITOR + 1):
        await pages.user_keys.put(("one", f"page {number}"), "openai", OWN)
    assert keys("one", "page 0") is None
    assert keys("one", "page 1") == keys("one", f"page {MAX_PAGES_PER_VISITOR}") == "own"


async def test_a_page_that_has_been_silent_for_half_a_day_loses_its_key(lab: Lab) -> None:
    now = [0.0]
    keyring = UserKeyStore(lab, clock=lambda: now[0])
    await keyring.put(("one", "page"), "openai", OWN)
    now[0] += IDLE_TIMEOUT_S + 1
    await keyring.put(("two", "page"), "openai", OWN)
    assert keyring.service(("one", "page")).clients.settings.openai_api_key is None
    assert keyring.service(("two", "page")).clients.settings.openai_api_key is not None


@pytest.mark.parametrize(
    "key", ["", "  ", "二つの 言葉", "sk 1", "sk-1\nsk-2", "s" * 401, '"level":', "everyone"]
)
async def test_what_is_no_key_is_refused(house: Lab, pages: Visitors, key: str) -> None:
    visitor = await at(pages, "one")
    with pytest.raises(gr.Error) as refused:
        await ConnectActions(house, pages).use_key("openai", key, visitor)
    assert key.strip() == "" or key.strip() not in str(refused.value)
    words = "connect.no_key" if key.strip() else "connect.empty_key"
    assert visitor.translate(words) in str(refused.value)
    assert pages.with_current_keys(visitor).service is house.service


async def test_a_page_whose_key_was_forgotten_is_never_paid_for_by_the_house(
    make_lab: MakeLab, wire: Wire
) -> None:
    lab = make_lab(openai_api_key=HOUSE, openai_base_url=wire.url)
    pages = visitors_of(lab)
    visitor = await ConnectActions(lab, pages).use_key("openai", OWN, await at(pages, "one"))
    await pages.user_keys.close_page(visitor.page)
    for service in (visitor.service, (await at(pages, "one")).service):
        told = await ask(replace(visitor, service=service), lab)
        assert told["error"]
    assert wire.keys == []
    assert visitor.translate("connect.key_state.none") in key_state(
        "openai", pages.with_current_keys(visitor)
    )


async def test_a_page_without_a_cookie_forgets_its_key_when_it_is_closed(
    house: Lab, pages: Visitors, wire: Wire
) -> None:
    await ConnectActions(house, pages).use_key("openai", OWN, await at(pages, "one"))
    await pages.on_unload(gr.Request(session_hash="one", cookies={}, headers={}))
    await ask(await at(pages, "one"), house)
    assert wire.keys == []


async def test_another_who_names_the_same_session_has_no_part_in_its_key(
    house: Lab, pages: Visitors, wire: Wire
) -> None:
    mine, theirs = await at(pages, "one", "a" * 43), await at(pages, "one", "b" * 43)
    assert mine.user_id != theirs.user_id
    await ConnectActions(house, pages).use_key("openai", OWN, mine)
    await ask(pages.with_current_keys(theirs), house)
    assert OWN not in wire.keys
    with pytest.raises(gr.Error):  # nor does a call without a session have a place for one
        await ConnectActions(house, pages).use_key("openai", OWN, replace(mine, session=""))


async def test_another_key_leaves_answers_under_way_alone(
    house: Lab, pages: Visitors, wire: Wire
) -> None:
    actions = ConnectActions(house, pages)
    visitor = await actions.use_key("openai", OWN, await at(pages, "one"))
    client = await visitor.service.clients.open(MODEL)
    await actions.use_key("anthropic", OWN, visitor)
    assert await visitor.service.clients.open(MODEL) is client
    assert "error" not in await ask(visitor, house)


async def test_a_server_of_the_houses_counts_whatever_key_it_is_shown(
    house: Lab, pages: Visitors
) -> None:
    visitor = await ConnectActions(house, pages).use_key("openai", OWN, await at(pages, "one"))
    clients = visitor.service.clients
    assert not clients.user_pays(clients.info(MODEL))
    assert not house.clients.user_pays(clients.info(MODEL))


def test_every_provider_that_asks_for_a_key_has_its_words() -> None:
    assert set(KEYED_PROVIDERS) == {"openai", "anthropic"}
    for provider in KEYED_PROVIDERS:
        assert key_labels(WORDS, "ja")[f"connect.key.{provider}"]


# ── tokens ────────────────────────────────────────────────────────────────────────────────


async def test_a_token_is_shown_once_and_leads_to_its_visitor_until_it_is_revoked(
    house: Lab, pages: Visitors
) -> None:
    actions = ConnectActions(house, pages)
    visitor = await at(pages, "one")
    assert await actions.list_tokens(visitor) == []
    shown = await actions.create_token("ボット", visitor)
    secret = shown.partition("<code>")[2].partition("</code>")[0]
    assert house.store.user_for_token(secret).id == visitor.user_id
    ((label, token_id),) = await actions.list_tokens(visitor)
    assert label.startswith("ボット")
    assert secret not in label
    with pytest.raises(NotFound):
        house.store.revoke_token(token_id, user_id=(await at(pages, "two")).user_id)
    assert visitor.translate("connect.revoked", name="ボット") in await actions.revoke_token(
        token_id, visitor
    )
    assert await actions.list_tokens(visitor) == []
    with pytest.raises(NotFound):
        house.store.user_for_token(secret)


async def test_a_token_says_since_when_it_is_there_and_whether_it_was_used(
    house: Lab, pages: Visitors
) -> None:
    visitor = await at(pages, "one")
    token, secret = house.store.create_token(user_id=visitor.user_id)
    assert visitor.translate("connect.never_used") in token_label(token, visitor)
    house.store.user_for_token(secret)
    (token,) = house.store.list_tokens(user_id=visitor.user_id)
    assert visitor.translate("connect.never_used") not in token_label(token, visitor)
    assert visitor.translate("connect.nameless") in token_label(token, visitor)


async def test_a_tokens_days_are_those_of_the_visitors_own_zone(
    house: Lab, pages: Visitors
) -> None:
    visitor = await at(pages, "one")
    token, _ = house.store.create_token(user_id=visitor.user_id)
    token.created_at = token.last_used_at = datetime(2026, 11, 25, 20, tzinfo=UTC)
    assert token_label(token, visitor).count("2026-11-25") == 2
    assert token_label(token, visitor, parse_time_zone("Asia/Tokyo")).count("2026-11-26") == 2


async def test_a_name_that_is_too_long_makes_no_token(house: Lab, pages: Visitors) -> None:
    visitor = await at(pages, "one")
    with pytest.raises(InvalidRequest):
        await ConnectActions(house, pages).create_token("長" * 1000, visitor)
    assert house.store.list_tokens(user_id=visitor.user_id) == []
