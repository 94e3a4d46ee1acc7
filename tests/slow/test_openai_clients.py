"""Real clients of OpenAI's protocol at ``/v1``: chat, stream, history and errors."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from support.app_process import skip_if_missing
from support.fakes import NO_PROCESSING, ScriptedClient, reply_with
from support.http_server import ApiServer, ApiUser, serve_api

from persona_lab.errors import InvalidResponse, Overloaded
from persona_lab.lab import open_lab
from persona_lab.settings import Settings
from persona_lab.types import Chunk, Options, Prompt

Message = dict[str, str]
SYSTEM = {"role": "system", "content": "今日は月曜日。"}
HISTORY = [
    {"role": "user", "content": "やあ"},
    {"role": "assistant", "content": "こんにちは"},
    {"role": "user", "content": "何曜日？"},
]


def package(name: str) -> Any:
    """Import a client; skip the test where it isn't installed."""
    if importlib.util.find_spec(name.partition(".")[0]) is None:
        skip_if_missing(name)
    return importlib.import_module(name)


@dataclass
class Place:
    """A served persona, whose model does as ``script`` says."""

    server: ApiServer
    user: ApiUser
    model: ScriptedClient
    base_url: str

    @property
    def name(self) -> str:
        return self.user.agent.name


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it asks the network
    monkeypatch.setenv("LANGSMITH_TRACING", "false")
    settings = Settings(
        database_url="sqlite://", llm_provider="mock", llm_retries=0, **NO_PROCESSING
    )
    model = ScriptedClient(reply_with("こん", "にちは"))
    with open_lab(settings, client=model) as lab, serve_api(lab) as server:
        yield Place(server, server.create_user("さくら"), model, f"{server.url}/v1")


# ── the clients: each answers a conversation whose last message is the user's ────────────────


def ask_openai(place: Place, messages: list[Message], stream: bool, name: str) -> str:
    with openai.OpenAI(base_url=place.base_url, api_key=place.user.token) as client:
        sent: Any = {"model": name, "messages": messages}
        if not stream:
            return client.chat.completions.create(**sent).choices[0].message.content or ""
        with client.chat.completions.create(**sent, stream=True) as chunks:
            return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def ask_litellm(place: Place, messages: list[Message], stream: bool, name: str) -> str:
    answer = package("litellm").completion(
        model=f"openai/{name}",
        api_base=place.base_url,
        api_key=place.user.token,
        messages=messages,
        stream=stream,
    )
    if not stream:
        return str(answer.choices[0].message.content)
    return "".join(chunk.choices[0].delta.content or "" for chunk in answer)


def ask_langchain(place: Place, messages: list[Message], stream: bool, name: str) -> str:
    model = package("langchain_openai").ChatOpenAI(
        model=name, base_url=place.base_url, api_key=place.user.token
    )
    sent = [(message["role"], message["content"]) for message in messages]
    if stream:
        return "".join(chunk.content for chunk in model.stream(sent))
    return str(model.invoke(sent).content)


def ask_pydantic_ai(place: Place, messages: list[Message], stream: bool, name: str) -> str:
    ai, parts = package("pydantic_ai"), package("pydantic_ai.messages")
    provider = package("pydantic_ai.providers.openai").OpenAIProvider(
        base_url=place.base_url, api_key=place.user.token
    )
    model = package("pydantic_ai.models.openai").OpenAIChatModel(name, provider=provider)
    makers: dict[str, Callable[[str], Any]] = {
        "system": lambda text: parts.ModelRequest(parts=[parts.SystemPromptPart(content=text)]),
        "user": lambda text: parts.ModelRequest(parts=[parts.UserPromptPart(content=text)]),
        "assistant": lambda text: parts.ModelResponse(parts=[parts.TextPart(content=text)]),
    }
    *history, last = messages
    sent = {
        "user_prompt": last["content"],
        "message_history": [makers[each["role"]](each["content"]) for each in history],
    }

    async def run() -> str:
        agent = ai.Agent(model)
        if not stream:
            return str((await agent.run(**sent)).output)
        async with agent.run_stream(**sent) as result:
            return "".join([text async for text in result.stream_text(delta=True)])

    return asyncio.run(run())


def ask_llm(place: Place, messages: list[Message], stream: bool, name: str) -> str:
    models = package("llm.default_plugins.openai_models")
    model = models.Chat(model_id="lab", model_name=name, api_base=place.base_url)
    conversation = model.conversation()  # it remembers its own turns only
    system = next((each["content"] for each in messages if each["role"] == "system"), None)
    answers = [
        "".join(
            conversation.prompt(each["content"], system=system, stream=stream, key=place.user.token)
        )
        for each in messages
        if each["role"] == "user"
    ]
    return answers[-1]


CLIENTS = {
    "openai": ask_openai,
    "litellm": ask_litellm,
    "langchain": ask_langchain,
    "pydantic-ai": ask_pydantic_ai,
    "llm": ask_llm,
}

pytestmark = [
    pytest.mark.parametrize("ask", CLIENTS.values(), ids=CLIENTS),
    pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"]),
    pytest.mark.filterwarnings("ignore"),  # of the clients
]


def status_of(error: BaseException | None) -> int | None:
    """Return the HTTP status that an error or its cause has."""
    while error is not None:
        if isinstance(status := getattr(error, "status_code", None), int):
            return status
        error = error.__cause__ or error.__context__
    return None


def test_client_gets_the_answer(place: Place, ask: Any, stream: bool) -> None:
    assert ask(place, HISTORY[:1], stream, place.name) == "こんにちは"
    [prompt] = place.model.prompts
    assert [turn.content for turn in prompt.turns] == ["やあ"]


def test_client_sends_system_and_history(place: Place, ask: Any, stream: bool) -> None:
    assert ask(place, [SYSTEM, *HISTORY], stream, place.user.agent.id) == "こんにちは"
    prompt = place.model.prompts[-1]
    assert [turn.role for turn in prompt.turns] == ["user", "assistant"] * 2 + ["user"]
    said = [turn.content for turn in prompt.turns]
    assert (said[0], said[2:]) == ("今日は月曜日。", ["やあ", "こんにちは", "何曜日？"])


def test_client_does_not_repeat_a_final_failure(place: Place, ask: Any, stream: bool) -> None:
    place.model.script = reply_with(error=InvalidResponse())
    with pytest.raises(Exception) as failed:
        ask(place, HISTORY, stream, place.name)
    assert len(place.model.prompts) == 1
    assert status_of(failed.value) in (424, None)


def test_client_repeats_when_the_model_is_busy(place: Place, ask: Any, stream: bool) -> None:
    async def busy_once(prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        if len(place.model.prompts) == 1:
            raise Overloaded
        yield Chunk("はい", finish_reason="stop")

    place.model.script = busy_once
    assert ask(place, HISTORY, stream, place.name) == "はい"


def test_client_is_told_that_there_is_no_such_persona(place: Place, ask: Any, stream: bool) -> None:
    with pytest.raises(Exception) as failed:
        ask(place, HISTORY, stream, "だれか")
    assert status_of(failed.value) in (404, None)
    assert "見つかりません" in str(failed.value)
