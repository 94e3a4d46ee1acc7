"""The WebSocket: what it says, whom it lets in, and that nothing it is sent can hurt it."""

from __future__ import annotations

import asyncio
import json
import socket as sockets
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from starlette.types import Message
from starlette.websockets import WebSocket
from support.app_process import wait_until
from support.fakes import reply_with
from support.http_server import ApiServer, ApiUser, create_api_user, serve_api
from support.texts import FALLBACKS
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from persona_lab.errors import DiskFull
from persona_lab.lab import Lab
from persona_lab.responses.changes import metadata_with_raw
from persona_lab.server import COOKIE
from persona_lab.server.websocket import MAX_QUEUED_MESSAGES, ChatSocket
from persona_lab.types import Chunk, Options, Prompt

SLOW = "mock:echo?rate=20&tokens=200"


@pytest.fixture
def home(database_url: str) -> dict[str, str]:
    return {"database_url": database_url}


@pytest.fixture
def api(lab: Lab) -> Iterator[ApiServer]:
    with serve_api(lab) as served:
        yield served


async def told(socket: ClientConnection) -> dict[str, Any]:
    """The next thing that the socket says."""
    async with asyncio.timeout(20):
        said = json.loads(await socket.recv())
    assert isinstance(said, dict)
    return said


async def answer(socket: ClientConnection) -> list[dict[str, Any]]:
    """All that it says up to the end of an answer."""
    said = [await told(socket)]
    while not said[-1].get("complete"):
        said.append(await told(socket))
    return said


async def say(socket: ClientConnection, content: str, **how: Any) -> None:
    await socket.send(json.dumps({"content": content, **how}))


async def stopped(api: ApiServer, program: ApiUser) -> None:
    """Until half an answer is all that was kept."""

    def so() -> bool:
        return [status for _, _, status in api.thread(program)] == ["ok", "stopped"]

    await asyncio.to_thread(wait_until, so)


async def closed(socket: ClientConnection) -> int:
    """The code with which it is closed, before it says anything."""
    async with asyncio.timeout(20):
        with pytest.raises(ConnectionClosed) as end:
            await socket.recv()
    assert end.value.rcvd is not None
    return end.value.rcvd.code


async def test_a_user_has_so_many_sockets_at_a_time_and_no_more(
    api: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("persona_lab.server.websocket.MAX_SOCKETS_PER_USER", 2)
    program, other = api.create_user(), api.create_user()

    def opening(who: ApiUser) -> connect:
        return connect(api.socket_url(who.chat.id), additional_headers=who.headers)

    async def talks(socket: ClientConnection) -> None:
        await say(socket, "やあ")
        assert (await answer(socket))[-1]["complete"]

    async with opening(program) as one:
        await talks(one)
        async with opening(program) as two, opening(other) as theirs:
            await talks(two)
            await talks(theirs)
            async with opening(program) as third:
                assert await closed(third) == 4429
    async with opening(program) as again:
        await talks(again)


# ── what it says ──────────────────────────────────────────────────────────────────────────


@pytest.mark.core
async def test_message_is_echoed_as_stored_and_the_answer_streamed(api: ApiServer) -> None:
    program = api.create_user()
    async with connect(
        api.socket_url(program.chat.id), additional_headers=program.headers
    ) as socket:
        await say(socket, " やあ\r\n\x00")
        said = await answer(socket)
    asked, *chunks, end = said
    rows = api.lab.store.messages(program.chat.id, user_id=program.user_id)
    assert asked == {
        "id": rows[0].id,
        "content": "やあ",
        "sender": "user",
        "timestamp": rows[0].created_at.isoformat(),
    }
    assert len(chunks) > 3
    assert {(chunk["type"], chunk["complete"]) for chunk in chunks} == {("stream_chunk", False)}
    assert end == {
        "type": "stream_complete",
        "complete": True,
        "id": rows[1].id,
        "content": "".join(chunk["content"] for chunk in chunks),
        "sender": "ai",
        "timestamp": rows[1].created_at.isoformat(),
        "metadata": metadata_with_raw(rows[1].content, rows[1].details),
    }
    assert api.thread(program) == [("user", "やあ", "ok"), ("ai", end["content"], "ok")]


async def test_a_failed_answer_has_an_error_beside_the_fallback(api: ApiServer) -> None:
    program = api.create_user()
    headers = program.headers | {"accept-language": "en"}
    async with connect(api.socket_url(program.chat.id), additional_headers=headers) as socket:
        await say(socket, "やあ", model="mock:echo?fail=timeout&after=2")
        *_, error, end = await answer(socket)
        assert error["fallback"] is True
        assert error["error"]["code"] == error["error"]["type"] == "timeout"
        assert error["error"]["message"] == FALLBACKS("timeout", "en")
        assert end["metadata"]["fallback"] is True
        assert error["error"]["message"] in end["content"]
        await say(socket, "まだいる？")
        assert (await answer(socket))[-1]["metadata"]["status"] == "ok"


async def test_rate_limit_error_has_the_time_of_its_end(make_lab: Callable[..., Lab]) -> None:
    with serve_api(make_lab(requests_per_minute=1)) as api:
        program = api.create_user()
        where = api.socket_url(program.chat.id)
        async with connect(where, additional_headers=program.headers) as socket:
            for number in range(2):
                await say(socket, f"{number}つめ")
            await answer(socket)
            *_, error, _ = await answer(socket)
    assert error["error"]["code"] == "too_many_requests"
    assert 0 < error["error"]["retry_after"] <= 120


# ── whom it lets in ───────────────────────────────────────────────────────────────────────


async def test_token_is_read_from_header_address_or_subprotocol(
    api: ApiServer,
) -> None:
    program = api.create_user()
    where = api.socket_url(program.chat.id)
    ways: list[tuple[str, dict[str, Any], str | None]] = [
        (where, {"additional_headers": program.headers}, None),
        (f"{where}?token={program.token}", {}, None),
        (where, {"subprotocols": ["persona-lab", program.token]}, "persona-lab"),
        (where, {"subprotocols": [program.token]}, program.token),
    ]
    for address, how, agreed in ways:
        async with connect(address, **how) as socket:
            assert socket.subprotocol == agreed
            await say(socket, "やあ")
            assert (await answer(socket))[-1]["metadata"]["status"] == "ok"


async def test_cookie_opens_own_chats_except_from_another_site(api: ApiServer) -> None:
    secret = "s" * 43
    store = api.lab.store
    owner = store.user_for_secret(secret).id
    agent = store.create_agent(user_id=owner, name="わたしの")
    chat = store.create_chat(user_id=owner, agent_id=agent.id)
    cookie = {"cookie": f"{COOKIE}={secret}"}
    origins = [(None, True), (api.url, True), ("http://evil.example", False), ("null", False)]
    for origin, welcome in origins:
        headers = cookie | ({"origin": origin} if origin else {})
        async with connect(api.socket_url(chat.id), additional_headers=headers) as socket:
            if welcome:
                await say(socket, "やあ")
                assert (await answer(socket))[-1]["complete"]
            else:
                assert await closed(socket) == 4401


async def test_close_code_says_why_a_caller_is_refused(api: ApiServer) -> None:
    program, stranger = api.create_user(), api.create_user()
    theirs, missing = api.socket_url(program.chat.id), api.socket_url("f" * 32)
    wrong = {"authorization": "Bearer pl_wrong"}
    basic = {"authorization": "Basic cGxfd3Jvbmc6"}
    refused: list[tuple[str, dict[str, str], int]] = [
        (theirs, {}, 4401),
        (missing, {}, 4401),
        (theirs, wrong, 4401),
        (theirs, basic, 4401),
        (f"{theirs}?token=", {}, 4401),
        (f"{theirs}?token=%ff%00", {}, 4401),
        (theirs, wrong | {"cookie": f"{COOKIE}={'s' * 43}"}, 4401),
        (theirs, stranger.headers, 4403),
        (missing, stranger.headers, 4404),
        (api.socket_url("%00"), stranger.headers, 4404),
    ]
    for address, headers, code in refused:
        async with connect(address, additional_headers=headers) as socket:
            assert await closed(socket) == code, (address, headers)
    assert api.thread(program) == []


async def test_socket_closes_when_token_is_revoked_or_chat_deleted(
    api: ApiServer,
) -> None:
    program, other = api.create_user(), api.create_user()
    for who, code in ((program, 4401), (other, 4404)):
        async with connect(api.socket_url(who.chat.id), additional_headers=who.headers) as socket:
            await say(socket, "やあ")
            await answer(socket)
            store = api.lab.store
            if code == 4401:
                [token] = store.list_tokens(user_id=who.user_id)
                store.revoke_token(token.id, user_id=who.user_id)
            else:
                store.delete_chat(who.chat.id, user_id=who.user_id)
            await say(socket, "まだいる？")
            assert await closed(socket) == code


async def test_socket_closes_mid_answer_when_the_token_is_revoked(
    api: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("persona_lab.server.websocket.REAUTHORIZE_INTERVAL_S", 0.05)
    who = api.create_user()
    async with connect(api.socket_url(who.chat.id), additional_headers=who.headers) as socket:
        await socket.send(json.dumps({"content": "やあ", "model": "mock:echo?rate=5&tokens=500"}))
        for _ in range(3):
            await socket.recv()
        [token] = api.lab.store.list_tokens(user_id=who.user_id)
        api.lab.store.revoke_token(token.id, user_id=who.user_id)
        assert await closed(socket) == 4401
    assert api.thread(who)[-1][2] == "stopped"


# ── what it is sent ───────────────────────────────────────────────────────────────────────

UNUSABLE: list[tuple[str | bytes, str]] = [
    ("", "invalid_request"),
    ("{", "invalid_request"),
    ("[" * 20_000, "invalid_request"),
    ("[]", "invalid_request"),
    ("null", "invalid_request"),
    ('"やあ"', "invalid_request"),
    ("1" * 5000, "invalid_request"),
    ("[" * 100_000, "message_too_long"),
    ("{}", "invalid_request"),
    ('{"content": null}', "invalid_request"),
    ('{"content": ["やあ"]}', "invalid_request"),
    ('{"content": 5}', "invalid_request"),
    ('{"content": "x", "temperature": "hot"}', "invalid_request"),
    ('{"content": "x", "temperature": NaN}', "invalid_request"),
    ('{"content": "x", "stop": "x"}', "invalid_request"),
    ('{"content": ""}', "empty_message"),
    ('{"content": "\\u200b\\ud800"}', "empty_message"),
    ('{"content": "\\u200b\\u202e"}', "empty_message"),
    ('{"content": "x", "model": "nobody:x"}', "unknown_model"),
    (json.dumps({"content": "長" * 2001}), "message_too_long"),
    ('{"content": "' + "x" * 1_000_000 + '"}', "message_too_long"),
    (b'{"content": "x"}', "invalid_request"),
    (b"\xff\x00", "invalid_request"),
]


async def test_invalid_frame_gets_an_error_and_the_socket_stays_open(
    api: ApiServer,
) -> None:
    program = api.create_user()
    headers = program.headers | {"accept-language": "en"}
    async with connect(api.socket_url(program.chat.id), additional_headers=headers) as socket:
        for frame, code in UNUSABLE:
            await socket.send(frame)
            said = await told(socket)
            assert set(said) == {"error", "fallback"}, frame[:40]
            assert said["fallback"] is False
            assert (said["error"]["code"], said["error"]["type"]) == (code, "invalid_input"), frame
            assert said["error"]["message"].isascii() or "“" in said["error"]["message"]
        assert api.thread(program) == []
        await say(socket, "やあ", extra="passed over")
        assert (await answer(socket))[-1]["metadata"]["status"] == "ok"


async def test_a_few_messages_wait_in_line_and_more_are_refused(api: ApiServer) -> None:
    program = api.create_user()
    async with connect(
        api.socket_url(program.chat.id), additional_headers=program.headers
    ) as socket:
        await say(socket, "はじめ", model="mock:echo?first=1")
        assert (await told(socket))["content"] == "はじめ"
        for number in range(MAX_QUEUED_MESSAGES + 3):
            await say(socket, f"{number}つめ")
        refused = [await told(socket) for _ in range(3)]
        assert {said["error"]["code"] for said in refused} == {"busy"}
        for _ in range(1 + MAX_QUEUED_MESSAGES):
            await answer(socket)
    asked = [content for sender, content, _ in api.thread(program) if sender == "user"]
    assert asked == ["はじめ", *(f"{number}つめ" for number in range(MAX_QUEUED_MESSAGES))]


async def test_flood_is_refused_message_by_message(api: ApiServer) -> None:
    flooding, other = api.create_user(), api.create_user()
    where = api.socket_url(flooding.chat.id)
    async with connect(where, additional_headers=flooding.headers, max_queue=None) as socket:
        await say(socket, "はじめ", model="mock:echo?first=1")
        await told(socket)
        for number in range(2000):
            await socket.send("{" if number % 2 else '{"content": "あふれる"}')
        async with connect(api.socket_url(other.chat.id), additional_headers=other.headers) as calm:
            await say(calm, "やあ")
            assert (await answer(calm))[-1]["metadata"]["status"] == "ok"
        errors = 0
        while errors < 2000 - MAX_QUEUED_MESSAGES:
            errors += "error" in await told(socket)


# ── who reads slowly, and who goes away ───────────────────────────────────────────────────


async def test_slow_reader_slows_the_answer_without_buffering(
    make_lab: Callable[..., Lab],
) -> None:
    made = 0

    async def play(prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        nonlocal made
        for _ in range(500):
            made += 1
            yield Chunk("長い話")
        yield Chunk(finish_reason="stop")

    lab = make_lab(play)
    program = create_api_user(lab)
    inbox: asyncio.Queue[Message] = asyncio.Queue()
    reading, ended = asyncio.Event(), asyncio.Event()
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)
        if "stream_complete" in message.get("text", ""):
            ended.set()
        if len(sent) > 20:
            await reading.wait()  # as the server does while its buffer is full

    scope = {
        "type": "websocket",
        "path": "/",
        "headers": [(b"authorization", f"Bearer {program.token}".encode())],
        "path_params": {"chat_id": program.chat.id},
        "subprotocols": [],
    }
    inbox.put_nowait({"type": "websocket.connect"})
    inbox.put_nowait({"type": "websocket.receive", "text": '{"content": "やあ"}'})
    held = asyncio.create_task(ChatSocket(lab).handle(WebSocket(scope, inbox.get, send)))
    for _ in range(5):
        await asyncio.sleep(0.1)
    assert len(sent) == 21
    assert 0 < made < 30
    reading.set()
    async with asyncio.timeout(20):
        await ended.wait()
    assert made == 500
    inbox.put_nowait({"type": "websocket.disconnect", "code": 1000})
    await held


async def test_partial_answer_is_stored_when_the_client_disconnects(api: ApiServer) -> None:
    program = api.create_user()
    async with connect(
        api.socket_url(program.chat.id), additional_headers=program.headers
    ) as socket:
        await say(socket, "やあ", model=SLOW)
        for _ in range(5):
            await told(socket)
        await say(socket, "これは始まらない")
    await stopped(api, program)
    [asked, (_, kept, _)] = api.thread(program)
    assert asked == ("user", "やあ", "ok")
    assert 0 < len(kept) < 200
    store = api.lab.store
    await asyncio.to_thread(wait_until, lambda: bool(store.records(user_id=program.user_id)))
    [record] = store.records(user_id=program.user_id)
    assert record.status == "stopped"


async def test_a_client_that_fell_silent_without_a_word_is_noticed(lab: Lab) -> None:
    with serve_api(lab, ws_ping_interval=0.2, ws_ping_timeout=0.2) as api:
        program = api.create_user()
        host, _, port = api.address.partition(":")
        with closing(sockets.create_connection((host, int(port)))) as raw:
            raw.sendall(
                f"GET /ws/{program.chat.id}?token={program.token} HTTP/1.1\r\n"
                f"Host: {api.address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                "Sec-WebSocket-Version: 13\r\n\r\n".encode()
            )
            assert b"101 Switching" in await asyncio.to_thread(raw.recv, 4096)
            message = json.dumps({"content": "a", "model": SLOW}).encode()
            raw.sendall(bytes([0x81, 0x80 | len(message), 0, 0, 0, 0]) + message)
            await stopped(api, program)


async def test_unfinished_handshake_blocks_no_other_client(api: ApiServer) -> None:
    program = api.create_user()
    host, _, port = api.address.partition(":")
    halves = [sockets.create_connection((host, int(port))) for _ in range(20)]
    for half in halves:
        half.sendall(b"GET /ws/x HTTP/1.1\r\nUpgrade: websocket\r\n")
    async with connect(
        api.socket_url(program.chat.id), additional_headers=program.headers
    ) as socket:
        await say(socket, "やあ")
        assert (await answer(socket))[-1]["complete"]
    for half in halves:
        half.close()


# ── when the house itself fails ───────────────────────────────────────────────────────────


async def test_full_disk_is_reported_and_the_socket_stays_open(
    api: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = api.create_user()

    def full(*_: Any, **__: Any) -> None:
        raise DiskFull

    async with connect(
        api.socket_url(program.chat.id), additional_headers=program.headers
    ) as socket:
        with monkeypatch.context() as broken:
            broken.setattr(api.lab.store, "begin_turn", full)
            await say(socket, "やあ")
            assert (await told(socket))["error"]["code"] == "disk_full"
        await say(socket, "やあ")
        assert (await answer(socket))[-1]["metadata"]["status"] == "ok"


async def test_unexpected_error_is_reported_without_its_text(
    make_lab: Callable[..., Lab], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_api(make_lab(reply_with("はい"))) as api:
        program = api.create_user()
        secret = "ひみつ"

        def broken(*_: Any, **__: Any) -> None:
            raise KeyError(secret)

        where = api.socket_url(program.chat.id)
        async with connect(where, additional_headers=program.headers) as socket:
            monkeypatch.setattr(api.lab.store, "begin_turn", broken)
            await say(socket, "やあ")
            assert (await told(socket))["error"]["code"] == "system_error"
        monkeypatch.setattr(api.lab.store, "open_chat", broken)
        async with connect(where, additional_headers=program.headers) as socket:
            assert await closed(socket) == 1011
    assert "KeyError" in caplog.text
    assert secret not in caplog.text
