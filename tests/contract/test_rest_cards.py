"""``/api/v1/cards``: what a program does with character cards by HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from urllib.parse import unquote

import httpx
import pytest
from support.card_files import CARDS, OWN_CASES
from support.http_server import ApiServer, ApiUser, serve_api

from persona_lab.errors import CardError
from persona_lab.lab import Lab
from persona_lab.personas.cards import FORMATS, map_card, read_card
from persona_lab.personas.cards.model import MAX_FILE_BYTES

PNG = (CARDS / "test_character.png").read_bytes()


@pytest.fixture
def api(lab: Lab) -> Iterator[ApiServer]:
    with serve_api(lab) as served:
        yield served


@pytest.fixture
def program(api: ApiServer) -> ApiUser:
    return api.create_user()


@pytest.fixture
async def http(api: ApiServer, program: ApiUser) -> AsyncIterator[httpx.AsyncClient]:
    url = f"{api.url}/api/v1/cards"
    headers = {**program.headers, "accept-language": "en"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30) as client:
        yield client


async def test_read_says_what_goes_where(http: httpx.AsyncClient) -> None:
    answer = await http.post("/read", content=PNG)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["persona"] == map_card(read_card(PNG)).persona.to_dict()
    assert (body["spec"], body["source"], body["edited"]) == ("v3", "png", False)
    rows = {row["source"]: row for row in body["rows"]}
    assert (rows["first_mes"]["target"], rows["first_mes"]["fate"]) == ("greeting", "used")


async def test_read_persona_can_be_created(api: ApiServer, http: httpx.AsyncClient) -> None:
    persona = (await http.post("/read", content=OWN_CASES["sheet"])).json()["persona"]
    created = await http.post(f"{api.url}/api/v1/agents", json=persona)
    assert created.status_code == 201, created.text
    exported = await http.get(f"/agents/{created.json()['id']}", params={"format": "v3-png"})
    assert map_card(read_card(exported.content)).persona.to_dict() == persona


@pytest.mark.parametrize("format_", FORMATS)
async def test_export_and_convert_give_a_file(
    http: httpx.AsyncClient, program: ApiUser, format_: str
) -> None:
    exported = await http.get(f"/agents/{program.agent.id}", params={"format": format_})
    assert exported.status_code == 200, exported.text
    assert read_card(exported.content).name == program.agent.name
    assert "テスト太郎" in unquote(exported.headers["content-disposition"])
    converted = await http.post("/convert", content=PNG, params={"format": format_})
    assert read_card(converted.content).name == read_card(PNG).name
    no_picture = format_ in ("v2-json", "v3-json", "text")
    assert ("picture" in converted.headers.get("x-lost", "")) == no_picture


async def test_compatibility_has_texts(http: httpx.AsyncClient) -> None:
    content = (CARDS / "full_v3_card.json").read_bytes()
    rows = (await http.post("/compatibility?program=sillytavern", content=content)).json()
    nickname = next(row for row in rows if row["source"] == "nickname")
    assert nickname["fate"] == "kept"
    assert nickname["text"].startswith("It isn't used")


@pytest.mark.parametrize("language", ["ja", "en"])
@pytest.mark.parametrize("content", [b"", b"{", PNG[:200]], ids=["empty", "json", "picture"])
async def test_wrong_file_gets_a_clear_error(
    api: ApiServer, http: httpx.AsyncClient, content: bytes, language: str
) -> None:
    with pytest.raises(CardError) as caught:
        read_card(content)
    answer = await http.post("/read", content=content, headers={"accept-language": language})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (422, "card")
    assert error["message"] == api.lab.error_handler.error_text(caught.value, language)


async def test_file_that_is_too_large_is_refused(http: httpx.AsyncClient) -> None:
    answer = await http.post("/read", content=b"0" * (MAX_FILE_BYTES + 1))
    assert answer.status_code == 413
    assert answer.json()["error"]["message"]


async def test_strangers_are_refused(
    api: ApiServer, http: httpx.AsyncClient, program: ApiUser
) -> None:
    stranger = api.create_user("ほか")
    async with httpx.AsyncClient(base_url=f"{api.url}/api/v1/cards") as nobody:
        assert (await nobody.post("/read", content=PNG)).status_code == 401
    other = await http.get(f"/agents/{program.agent.id}", headers=stranger.headers)
    assert other.status_code == 404
    unknown = await http.get(f"/agents/{program.agent.id}", params={"format": "gif"})
    assert unknown.status_code == 422
