"""Keys that change without a restart, from wherever they come, and that nobody sees."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pytest_httpserver import HTTPServer
from support.fakes import ChatUser, reply_with
from werkzeug import Request, Response

from persona_lab.clients.api_keys import ApiKeys, Vault
from persona_lab.clients.catalog import Catalog
from persona_lab.clients.pool import ClientPool
from persona_lab.errors import ConfigurationError
from persona_lab.lab import Lab
from persona_lab.redaction import MASK
from persona_lab.settings import ROOT, Settings, load_settings

OLD, NEW = "sk-old-4711-aaaaaaaaaaaa", "sk-new-0815-bbbbbbbbbbbb"
TOKEN = "hvs.token-of-the-vault"


def key(keys: ApiKeys, name: str = "openai_api_key") -> str | None:
    held = getattr(keys.settings, name)
    return None if held is None else str(held.get_secret_value())


def replace_file(path: Path, content: str) -> None:
    """As Kubernetes does it: another file in its place."""
    new = path.with_suffix(".new")
    new.write_text(content)
    new.replace(path)


# ── files and the environment ─────────────────────────────────────────────────────────────


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "openai"
    path.write_text(f"{OLD}\n")
    return path


def test_the_environment_names_a_file_with_the_key(
    monkeypatch: pytest.MonkeyPatch, secret: Path
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY_FILE", str(secret))
    assert key(ApiKeys(load_settings())) == OLD


def test_a_changed_file_changes_the_key(secret: Path) -> None:
    keys = ApiKeys(Settings(openai_api_key_file=secret))
    replace_file(secret, NEW)
    assert key(keys) == OLD
    keys.refresh()
    assert key(keys) == NEW


def test_a_file_that_is_written_in_place_with_a_key_of_the_same_length_is_read_again(
    secret: Path,
) -> None:
    keys = ApiKeys(Settings(openai_api_key_file=secret))
    before = secret.stat()
    secret.write_text(f"{NEW}\n")
    os.utime(secret, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    keys.refresh()
    assert key(keys) == NEW


def test_a_link_that_leads_to_another_file_is_followed(tmp_path: Path) -> None:
    for name, content in (("1", OLD), ("2", NEW)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "openai_api_key").write_text(content)
    (tmp_path / "data").symlink_to(tmp_path / "1")
    keys = ApiKeys(Settings(secrets_dir=tmp_path / "data"))
    assert key(keys) == OLD
    (tmp_path / "data").unlink()
    (tmp_path / "data").symlink_to(tmp_path / "2")
    keys.refresh()
    assert key(keys) == NEW


@pytest.mark.parametrize("name", ["anthropic_api_key", "ANTHROPIC_API_KEY"])
def test_a_folder_of_secrets_may_get_a_key_later(tmp_path: Path, name: str) -> None:
    keys = ApiKeys(Settings(secrets_dir=tmp_path))
    assert key(keys, "anthropic_api_key") is None
    (tmp_path / name).write_text(NEW)
    keys.refresh()
    assert key(keys, "anthropic_api_key") == NEW


def test_a_file_that_vanishes_leaves_the_key_and_is_said_once(
    secret: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = ApiKeys(Settings(openai_api_key_file=secret))
    secret.unlink()
    for _ in range(3):
        keys.refresh()
    assert key(keys) == OLD
    assert len(caplog.records) == 1
    secret.write_text(NEW)
    keys.refresh()
    assert key(keys) == NEW


def test_what_is_wrong_at_start_is_one_line_that_names_the_variable(secret: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"^OPENAI_API_KEY_FILE: .*No such file"):
        ApiKeys(Settings(openai_api_key_file=secret.with_name("none")))
    with pytest.raises(ConfigurationError, match=r"OPENAI_API_KEY_FILE and OPENAI_API_KEY are"):
        ApiKeys(Settings(openai_api_key_file=secret, openai_api_key=OLD))
    secret.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match=r"^OPENAI_API_KEY_FILE: .*not UTF-8"):
        ApiKeys(Settings(openai_api_key_file=secret))


def test_the_nearest_place_counts(tmp_path: Path, secret: Path) -> None:
    (tmp_path / "openai_api_key").write_text("sk-of-the-folder")
    vault = {"OPENAI_API_KEY": "sk-of-the-vault", "ANTHROPIC_API_KEY": "sk-only-in-the-vault"}
    places: list[tuple[dict[str, Any], str]] = [
        ({"openai_api_key_file": secret, "secrets_dir": tmp_path}, OLD),
        ({"openai_api_key": NEW, "secrets_dir": tmp_path}, NEW),
        ({"secrets_dir": tmp_path}, "sk-of-the-folder"),
        ({}, "sk-of-the-vault"),
    ]
    for settings, expected in places:
        keys = ApiKeys(Settings(**settings), vault=Shelf(vault))
        assert key(keys) == expected
        assert key(keys, "anthropic_api_key") == "sk-only-in-the-vault"


class Shelf:
    """Another kind of vault."""

    def __init__(self, keys: Mapping[str, str]) -> None:
        self.keys = keys
        self.fault: OSError | None = None
        self.reads = 0

    def read(self) -> Mapping[str, str]:
        self.reads += 1
        if self.fault is not None:
            raise self.fault
        return self.keys


# ── the vault ─────────────────────────────────────────────────────────────────────────────


class VaultServer:
    """The part of HashiCorp Vault's HTTP interface that is read: KV, version 2."""

    def __init__(self, server: HTTPServer) -> None:
        self.address = server.url_for("").rstrip("/")
        self.keys: dict[str, str] = {"OPENAI_API_KEY": OLD}
        self.status = 200
        self.asked: list[tuple[str, str | None]] = []
        server.expect_request("/v1/team/data/lab/keys").respond_with_handler(self._answer)

    def _answer(self, request: Request) -> Response:
        self.asked.append((request.method, request.headers.get("X-Vault-Token")))
        if self.status != 200 or request.headers.get("X-Vault-Token") != TOKEN:
            refused = self.status if self.status != 200 else 403
            return Response('{"errors":["permission denied"]}', refused)
        from json import dumps

        secret = {"data": self.keys, "metadata": {"version": 1, "destroyed": False}}
        return Response(dumps({"data": secret}), content_type="application/json")


@pytest.fixture
def vault(httpserver: HTTPServer) -> VaultServer:
    return VaultServer(httpserver)


def of_vault(vault: VaultServer, **fields: Any) -> Settings:
    given = {"vault_token": TOKEN, "vault_secret": "team/lab/keys", "keys_ttl": 60, **fields}
    return Settings(vault_addr=vault.address, **given)


def test_keys_come_from_a_vault_and_change_there(vault: VaultServer) -> None:
    now = 0.0
    keys = ApiKeys(of_vault(vault), clock=lambda: now)
    assert key(keys) == OLD
    assert vault.asked == [("GET", TOKEN)]
    vault.keys = {"openai_api_key": NEW, "ANTHROPIC_API_KEY": "sk-ant-000000"}
    now = 59.0
    keys.refresh()
    assert key(keys) == OLD
    now = 60.0
    keys.refresh()
    assert (key(keys), key(keys, "anthropic_api_key")) == (NEW, "sk-ant-000000")
    assert len(vault.asked) == 2


def test_the_vaults_own_token_may_change_too(vault: VaultServer, tmp_path: Path) -> None:
    now = 0.0
    file = tmp_path / "token"
    file.write_text("an-old-token")
    settings = of_vault(vault, vault_token=None, vault_token_file=file)
    with pytest.raises(ConfigurationError, match="VAULT_ADDR: the vault refused: HTTP 403"):
        ApiKeys(settings)
    file.write_text(TOKEN)
    keys = ApiKeys(settings, clock=lambda: now)
    assert key(keys) == OLD
    assert TOKEN in keys.all_secrets


def test_a_vaults_token_that_is_no_text_is_told_and_leaves_the_keys(
    vault: VaultServer, tmp_path: Path
) -> None:
    now = 0.0
    file = tmp_path / "token"
    file.write_bytes(b"\xff\xfe")
    settings = of_vault(vault, vault_token=None, vault_token_file=file)
    ApiKeys(settings)  # as one that can't be reached: it is waited for
    file.write_text(TOKEN)
    keys = ApiKeys(settings, clock=lambda: now)
    file.write_bytes(b"\xff\xfe")
    now += 3600
    keys.refresh()
    assert key(keys) == OLD


@pytest.mark.parametrize("status", [403, 500, 503])
def test_a_vault_that_fails_later_leaves_the_keys_and_is_said_once(
    vault: VaultServer, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    keys = ApiKeys(of_vault(vault), clock=lambda: now)
    caplog.clear()
    vault.status = status
    for now in (61.0, 130.0, 200.0):  # noqa: B007 - the clock reads it
        keys.refresh()
    assert key(keys) == OLD
    ours = [record for record in caplog.records if record.name == "persona_lab.keys"]
    assert len(ours) == 1
    assert str(status) in ours[0].getMessage()
    assert TOKEN not in caplog.text
    vault.status, vault.keys, now = 200, {"OPENAI_API_KEY": NEW}, 300.0
    keys.refresh()
    assert key(keys) == NEW


def test_a_vault_that_cannot_be_reached_at_start_is_waited_for(
    vault: VaultServer, httpserver: HTTPServer
) -> None:
    now = 0.0
    vault.status = 503
    keys = ApiKeys(of_vault(vault), clock=lambda: now)
    assert key(keys) is None
    vault.status, now = 200, 61.0
    keys.refresh()
    assert key(keys) == OLD


def test_a_token_that_no_header_can_hold_is_in_no_error() -> None:
    with pytest.raises(ConnectionError) as wrong:
        Vault("http://127.0.0.1:9", "secret/lab", lambda: "tok\nen-秘密").read()
    assert "秘密" not in repr(wrong.value)
    assert wrong.value.__cause__ is None


def test_one_caller_at_a_time_asks_the_vault() -> None:
    shelf = Shelf({})
    keys = ApiKeys(Settings(), vault=shelf, clock=iter(range(0, 9999, 100)).__next__)
    read = shelf.read

    def reentered() -> Mapping[str, str]:
        keys.refresh()
        return read()

    shelf.read = reentered  # type: ignore[method-assign]
    keys.refresh()
    assert shelf.reads == 2


# ── in the house ──────────────────────────────────────────────────────────────────────────


@pytest.fixture
def answers_with_key(httpserver: HTTPServer) -> Iterator[list[str]]:
    """An OpenAI-compatible server that repeats the key that it was given."""
    seen: list[str] = []

    def answer(request: Request) -> Response:
        bearer = request.headers["Authorization"].removeprefix("Bearer ")
        seen.append(bearer)
        pieces = [f"鍵は{bearer}", f"、前は{OLD}"]
        lines = [
            '{"id":"1","object":"chat.completion.chunk","created":0,"model":"m","choices":'
            '[{"index":0,"delta":{"content":"' + piece + '"},"finish_reason":null}]}'
            for piece in pieces
        ]
        lines.append(
            '{"id":"1","object":"chat.completion.chunk","created":0,"model":"m","choices":'
            '[{"index":0,"delta":{},"finish_reason":"stop"}]}'
        )
        body = "".join(f"data: {line}\n\n" for line in [*lines, "[DONE]"])
        return Response(body, content_type="text/event-stream")

    httpserver.expect_request("/v1/chat/completions").respond_with_handler(answer)
    yield seen


async def test_a_changed_key_is_used_from_the_next_answer_on_and_old_and_new_stay_hidden(
    make_lab: Callable[..., Lab],
    httpserver: HTTPServer,
    answers_with_key: list[str],
    secret: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    lab = make_lab(
        llm_provider="openai",
        llm_model="m",
        openai_base_url=httpserver.url_for("/v1"),
        openai_api_key_file=secret,
    )
    visitor = ChatUser(lab)
    for content in (OLD, OLD, NEW):
        replace_file(secret, content)
        reply = await lab.service.generate_response(f"鍵は？{len(content)}", **visitor.ids)
        assert reply.content == f"鍵は{MASK}、前は{MASK}"
        assert OLD not in str(reply.metadata)
    assert answers_with_key == [OLD, OLD, NEW]
    stored = str([row.model_dump() for row in lab.store.messages(
        visitor.chat.id, user_id=visitor.user_id)])  # fmt: skip
    for hidden in (OLD, NEW):
        assert hidden not in stored
        assert hidden not in caplog.text
        assert hidden not in repr(lab)


async def test_answers_that_are_being_given_keep_their_connection_when_the_key_changes(
    secret: Path, httpserver: HTTPServer
) -> None:
    settings = Settings(openai_api_key_file=secret, openai_base_url=httpserver.url_for("/v1"))
    clients = ClientPool(settings, Catalog(ROOT / "data" / "models.yaml"))
    first = await clients.open("openai:m")
    assert await clients.open("openai:m") is first
    replace_file(secret, NEW)
    second = await clients.open("openai:m")
    assert second is not first
    assert await clients.open("openai:m") is second
    closed: list[object] = []
    for client in (first, second):
        inner = client.aclose

        async def close(client: object = client, inner: Any = inner) -> None:
            closed.append(client)
            await inner()

        client.aclose = close  # type: ignore[method-assign]
    assert closed == []
    await clients.aclose()
    assert set(closed) == {first, second}


def test_passwords_in_addresses_stand_in_no_listing_of_the_settings() -> None:
    settings = Settings(
        database_url="postgresql://lab:hunter2222@db/lab", redis_url="redis://:hunter3333@cache/0"
    )
    assert "hunter" not in repr(settings)


async def test_without_places_that_change_nothing_is_looked_at(
    make_lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab(reply_with("はい。"), openai_api_key=OLD)
    monkeypatch.setattr(ApiKeys, "refresh", lambda self: pytest.fail("looked"))
    visitor = ChatUser(lab)
    reply = await lab.service.generate_response("やあ", **visitor.ids)
    assert reply.content == "はい。"
