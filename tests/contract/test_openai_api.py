"""``/v1`` through OpenAI's own client: any program that speaks it can talk with a persona."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI
from pydantic import ValidationError
from support.app_process import wait_until
from support.fakes import NO_PROCESSING, ScriptedClient, reply_with
from support.http_server import ApiServer, ApiUser, serve_api

from persona_lab.clients.options import check_options
from persona_lab.errors import InvalidOption, Overloaded
from persona_lab.lab import Lab, open_lab
from persona_lab.server.openai_api import (
    completions_app,
    finish_reason,
)
from persona_lab.server.openai_schemas import CompletionRequest
from persona_lab.settings import ROOT, Settings
from persona_lab.translations import Translations
from persona_lab.types import Chunk, Options, Prompt, Usage

WORDS = Translations(ROOT / "templates" / "openai_api.yaml")
HEARD = WORDS("heard", "ja")


class Scripted:
    """A lab whose model does as it is told; ``asked`` are the options of each call."""

    def __init__(self) -> None:
        self.asked: list[Options] = []
        self.script = reply_with("こん", "にちは")
        self.client = ScriptedClient(self._play)
        settings = Settings(database_url="sqlite://", llm_provider="mock", **NO_PROCESSING)
        self.lab = open_lab(settings, client=self.client)

    async def _play(self, prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        self.asked.append(options)
        chunks = self.script(prompt, options)
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            await chunks.aclose()


@pytest.fixture
async def scripted() -> AsyncIterator[Scripted]:
    made = Scripted()
    yield made
    await made.lab.aclose()


@pytest.fixture
def api(scripted: Scripted) -> Iterator[ApiServer]:
    with serve_api(scripted.lab) as served:
        yield served


@pytest.fixture
def program(api: ApiServer) -> ApiUser:
    return api.create_user("さくら")


@pytest.fixture
async def client(api: ApiServer, program: ApiUser) -> AsyncIterator[AsyncOpenAI]:
    async with speaking(api, program.token) as made:
        yield made


def speaking(api: ApiServer, token: str) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{api.url}/v1", api_key=token, max_retries=0, timeout=30)


ASK: Any = {"model": "さくら", "messages": [{"role": "user", "content": "やあ"}]}


# ── whose personas ────────────────────────────────────────────────────────────────────────

FOREIGN: dict[tuple[str, str], tuple[str, Any]] = {
    ("GET", "/models"): ("/models", None),
    ("GET", "/models/{model}"): ("/models/PERSONA", None),
    ("POST", "/chat/completions"): (
        "/chat/completions",
        {"model": "PERSONA", "messages": [{"role": "user", "content": "やあ"}]},
    ),
}
"""A call of every operation, with another's persona where it takes one."""


def test_every_operation_is_tried_with_anothers_persona(scripted: Scripted) -> None:
    assert {
        (method.upper(), path)
        for path, methods in completions_app(scripted.lab).openapi()["paths"].items()
        for method in methods
    } == set(FOREIGN)


async def test_anothers_persona_is_as_good_as_none(api: ApiServer, program: ApiUser) -> None:
    theirs = api.create_user("ひみつの人")
    async with httpx.AsyncClient(base_url=f"{api.url}/v1", headers=program.headers) as http:
        for (method, _), (path, body) in FOREIGN.items():
            for persona in (theirs.agent.id, theirs.agent.name):
                said = json.loads(json.dumps(body).replace("PERSONA", persona))
                got = await http.request(method, path.replace("PERSONA", persona), json=said)
                if "PERSONA" in path + str(body):
                    assert (got.status_code, got.json()["error"]["code"]) == (
                        404, "model_not_found",
                    )  # fmt: skip
                else:
                    assert theirs.agent.id not in got.text
                    assert theirs.agent.name not in got.text
    assert api.lab.store.records(user_id=theirs.user_id) == []


# ── answers ───────────────────────────────────────────────────────────────────────────────


async def test_a_persona_answers_as_a_model_would(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(**ASK)
    assert answer.model == "さくら"
    assert answer.object == "chat.completion"
    [choice] = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", "こんにちは")
    assert choice.finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (12, 14)


async def test_an_answer_streams_with_its_usage_at_the_end_on_request(client: AsyncOpenAI) -> None:
    for options in ({}, {"stream_options": {"include_usage": True}}):
        stream = await client.chat.completions.create(**ASK, stream=True, **options)
        chunks = [chunk async for chunk in stream]
        if options:
            last = chunks.pop()
            assert (last.choices, last.usage and last.usage.completion_tokens) == ([], 2)
        assert all(chunk.usage is None for chunk in chunks)
        assert len({chunk.id for chunk in chunks}) == 1
        deltas = [chunk.choices[0].delta for chunk in chunks]
        assert deltas[0].role == "assistant"
        assert "".join(delta.content or "" for delta in deltas) == "こんにちは"
        assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * 3 + ["stop"]


async def test_model_may_be_a_persona_id_or_a_demo(client: AsyncOpenAI, program: ApiUser) -> None:
    listed = (await client.models.list()).data
    assert (listed[0].id, listed[0].owned_by) == ("さくら", "you")
    assert listed[-1].owned_by == "demo"
    for model in (program.agent.id, listed[-1].id):
        answer = await client.chat.completions.create(**{**ASK, "model": model})
        assert answer.model == model
        assert (await client.models.retrieve(model)).id == model


async def test_every_listed_name_leads_to_a_persona_of_its_own(
    client: AsyncOpenAI, api: ApiServer, program: ApiUser
) -> None:
    store = api.lab.store
    newest = store.create_agent(user_id=program.user_id, name="さくら")
    listed = [model.id for model in (await client.models.list()).data]
    assert listed[:2] == ["さくら", program.agent.id]
    assert store.agent_named("さくら", user_id=program.user_id).id == newest.id
    assert len(set(listed)) == len(listed)


async def test_earlier_messages_are_context_and_only_usage_is_stored(
    client: AsyncOpenAI, scripted: Scripted, program: ApiUser
) -> None:
    said = [
        {"role": "system", "content": "今日は月曜日。"},
        {"role": "user", "content": "やあ"},
        {"role": "assistant", "content": "こんにちは"},
        {"role": "user", "content": [{"type": "text", "text": "なに\u202e曜日？"}]},
    ]
    await client.chat.completions.create(model="さくら", messages=said)  # type: ignore[arg-type]
    [prompt] = scripted.client.prompts
    preview = await scripted.lab.service.preview(program.agent, "x")
    assert prompt.system == preview.system
    assert [turn.content for turn in prompt.turns] == [
        "今日は月曜日。", HEARD, "やあ", "こんにちは", "なに曜日？",
    ]  # fmt: skip
    store = scripted.lab.store
    [chat] = store.list_chats(user_id=program.user_id)
    assert store.messages(chat.id, user_id=program.user_id) == []
    [record] = store.records(user_id=program.user_id)
    assert (record.kind, record.chat_id, record.status) == ("api", None, "ok")


async def test_sampling_is_passed_on_and_other_fields_are_ignored(
    client: AsyncOpenAI, scripted: Scripted
) -> None:
    await client.chat.completions.create(
        **ASK, temperature=0.25, top_p=0.5, max_tokens=7, seed=3, stop="。", logprobs=True,
        tools=[{"type": "function", "function": {"name": "f"}}], user="u",
    )  # fmt: skip
    await client.chat.completions.create(**ASK, max_completion_tokens=9, stop=["、", "。"])
    first, second = scripted.asked
    assert (first.temperature, first.top_p, first.max_tokens) == (0.25, 0.5, 7)
    assert (first.seed, first.stop) == (3, ("。",))
    assert (second.max_tokens, second.stop) == (9, ("、", "。"))


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_tokens", True), ("n", True), ("temperature", False), ("stop", [""]), ("stop", "")],
)
def test_option_of_the_wrong_kind_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError) as wrong:
        CompletionRequest.model_validate(
            {"model": "x", "messages": [{"role": "user", "content": "a"}], field: value}
        )
    assert wrong.value.errors()[0]["loc"] == (field,)
    if field != "n":
        option = ("",) if field == "stop" else value
        with pytest.raises(InvalidOption):
            check_options({field: option})


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [({"finish_reason": "length"}, "length"), ({"finish_reason": "stop"}, "stop"),
     ({"finish_reason": "stop", "blocked": "words"}, "content_filter")],
)  # fmt: skip
def test_the_reason_of_an_end_is_in_openais_words(metadata: dict[str, str], reason: str) -> None:
    assert finish_reason(metadata) == reason


# ── the conversation ──────────────────────────────────────────────────────────────────────


async def test_oldest_messages_are_cut_when_the_context_is_full(
    make_lab: Callable[..., Lab],
) -> None:
    play = reply_with("はい")
    lab = make_lab(play, context=1200)
    with serve_api(lab) as api:
        program = api.create_user("さくら")
        long = [
            {"role": role, "content": f"{number}" + "長" * 100}
            for number in range(30)
            for role in ("user", "assistant")
        ]
        async with speaking(api, program.token) as client:
            messages: Any = [*long, {"role": "user", "content": "やあ"}]
            await client.chat.completions.create(model="さくら", messages=messages)
    client_ = lab.clients.get()
    assert isinstance(client_, ScriptedClient)
    [prompt] = client_.prompts
    assert prompt.turns[-1].content == "やあ"
    assert prompt.turns[-2].content.startswith("29長")
    assert 2 < len(prompt.turns) < 40


# ── errors ────────────────────────────────────────────────────────────────────────────────


async def test_errors_are_those_that_the_client_knows(
    client: AsyncOpenAI, api: ApiServer, program: ApiUser
) -> None:
    create = client.chat.completions.create
    with pytest.raises(openai.NotFoundError) as nobody:
        await create(**{**ASK, "model": "だれか"})
    assert (nobody.value.code, nobody.value.type) == ("model_not_found", "invalid_request_error")
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("だれ/か")
    for wrong, param in (
        ({"temperature": 9}, "temperature"),
        ({"n": 2}, "n"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "narrator", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content.str"),
        ({"messages": [{"role": "user", "content": ""}]}, None),
        ({"seed": "x"}, "seed"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            await create(**{**ASK, **wrong})
        assert refused.value.param == param
        assert refused.value.type == "invalid_request_error"
    with pytest.raises(openai.APIStatusError) as long:
        await create(**{**ASK, "messages": [{"role": "user", "content": "長" * 2001}]})
    assert (long.value.status_code, long.value.code) == (413, "message_too_long")
    async with speaking(api, "pl_wrong") as stranger:
        with pytest.raises(openai.AuthenticationError) as unknown:
            await stranger.models.list()
    assert unknown.value.code == "invalid_api_key"


async def test_another_users_personas_are_no_models(
    client: AsyncOpenAI, api: ApiServer, program: ApiUser
) -> None:
    theirs = api.create_user("ひみつの人")
    assert "ひみつの人" not in [model.id for model in (await client.models.list()).data]
    for name in ("ひみつの人", theirs.agent.id):
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(**{**ASK, "model": name})
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve(name)


@pytest.mark.parametrize("stream", [False, True])
async def test_error_has_a_status_when_the_model_fails_before_text(
    client: AsyncOpenAI, scripted: Scripted, stream: bool
) -> None:
    scripted.script = reply_with(error=Overloaded(provider="mock"))
    with pytest.raises(openai.InternalServerError) as failed:
        await client.chat.completions.create(**ASK, stream=stream)
    assert (failed.value.status_code, failed.value.code) == (503, "overloaded")
    assert failed.value.type == "server_error"


async def test_broken_stream_ends_with_an_error_after_its_text(
    client: AsyncOpenAI, scripted: Scripted
) -> None:
    scripted.script = reply_with("ここまで", error=Overloaded(provider="mock"))
    come = ""
    with pytest.raises(openai.APIError) as failed:
        async for chunk in await client.chat.completions.create(**ASK, stream=True):
            come += chunk.choices[0].delta.content or ""
    assert come == "ここまで"
    assert failed.value.code == "overloaded"


async def test_rate_limit_answers_429_with_retry_after(make_lab: Callable[..., Lab]) -> None:
    with serve_api(make_lab(requests_per_minute=1)) as api:
        program = api.create_user("さくら")
        async with speaking(api, program.token) as client:
            await client.chat.completions.create(**ASK)
            with pytest.raises(openai.RateLimitError) as much:
                await client.chat.completions.create(**ASK)
    assert much.value.code == "rate_limit_exceeded"
    assert 0 < int(much.value.response.headers["retry-after"]) <= 120


async def test_a_client_that_goes_away_stops_the_answer(
    client: AsyncOpenAI, scripted: Scripted, program: ApiUser
) -> None:
    stopped = asyncio.Event()

    async def endless(prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        try:
            while True:
                yield Chunk("長い話")
                await asyncio.sleep(0.01)
        finally:
            stopped.set()

    scripted.script = endless
    stream = await client.chat.completions.create(**ASK, stream=True)
    async for _ in stream:
        break
    await stream.close()
    await asyncio.to_thread(wait_until, stopped.is_set)
    store = scripted.lab.store
    await asyncio.to_thread(wait_until, lambda: store.records(user_id=program.user_id))
    [record] = store.records(user_id=program.user_id)
    assert (record.kind, record.status) == ("api", "stopped")


async def test_the_provider_counts_are_passed_on(client: AsyncOpenAI, scripted: Scripted) -> None:
    async def counted(prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        yield Chunk("はい")
        yield Chunk(finish_reason="length", usage=Usage(40, 2, cached_tokens=30))

    scripted.script = counted
    answer = await client.chat.completions.create(**ASK)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert json.loads(answer.usage.model_dump_json(exclude_none=True)) == {
        "prompt_tokens": 40, "completion_tokens": 2, "total_tokens": 42,
        "prompt_tokens_details": {"cached_tokens": 30},
    }  # fmt: skip


async def test_model_after_an_at_sign_replaces_the_default(
    make_lab: Callable[..., Lab],
) -> None:
    with serve_api(make_lab()) as api:
        program = api.create_user("あ@い")
        async with speaking(api, program.token) as client:
            for name, finish in (("あ@い", "stop"), ("あ@い@mock:echo?tokens=99", "length")):
                said = ASK | {"model": name, "max_tokens": 60}
                answer = await client.chat.completions.create(**said)
                assert answer.model == name
                assert answer.choices[0].finish_reason == finish
            for name in ("あ@い@nobody:x", "あ@い@", "@mock:echo", "う@mock:echo"):
                with pytest.raises(openai.APIStatusError) as refused:
                    await client.chat.completions.create(**ASK | {"model": name})
                assert refused.value.status_code in (400, 404)
        spoken = {record.model for record in api.lab.store.records(user_id=program.user_id)}
        assert spoken == {"echo", "echo?tokens=99"}
