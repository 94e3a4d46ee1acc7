"""The mock model."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support import tiny_gguf as tiny_gguf
from support.clients import (
    OPTIONS,
    catch_error,
    collect_chunks,
    mock_client,
)
from support.fake_servers import (
    PROMPT,
    FakeMock,
)

from persona_lab.clients.catalog import Catalog
from persona_lab.errors import (
    ModelTimeout,
    RateLimited,
    UnknownModel,
)
from persona_lab.settings import Settings
from persona_lab.types import Options, Prompt, PromptMessage


class Clock:
    """Time that passes only in :meth:`sleep`, which always sleeps ``late`` seconds too long."""

    def __init__(self, late: float = 0) -> None:
        self.now = 100.0
        self.late = late

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds + self.late


async def test_mock_answers_in_the_language_of_the_message() -> None:
    english = Prompt(system="あなたはミナです。", turns=(PromptMessage("user", "Hello there"),))
    assert "no model was asked" in (await mock_client("echo").generate(english)).content
    assert "練習用" in (await mock_client("echo").generate(PROMPT)).content
    wordless = replace(PROMPT, turns=(PromptMessage("user", "!?"),), message="!?")
    assert "練習用" in (await mock_client("echo").generate(wordless)).content


async def test_mock_repeats_any_message() -> None:
    odd = "{message} {0} %s 😊\n次の行"
    answer = await mock_client("echo").generate(replace(PROMPT, message=odd))
    assert odd in answer.content


async def test_mock_does_not_sleep_by_default() -> None:
    async def never(seconds: float) -> None:
        raise AssertionError(seconds)

    assert len(await collect_chunks(mock_client("echo?tokens=500", sleep=never))) == 501


async def test_mock_rate_does_not_drift_when_sleeps_are_late() -> None:
    clock = Clock(late=0.003)
    times = []
    client = mock_client("echo?rate=100&first=5&tokens=200", clock=clock, sleep=clock.sleep)
    async for chunk in client.stream(PROMPT, OPTIONS):
        if chunk.text:
            times.append(clock.now - 100)
    assert len(times) == 200
    assert times[0] == pytest.approx(5, abs=0.01)
    assert times[-1] == pytest.approx(5 + 199 / 100, abs=0.01)


async def test_mock_has_the_tokens_of_its_name_up_to_max_tokens() -> None:
    chunks = await collect_chunks(mock_client("echo?tokens=200"), options=Options(max_tokens=20))
    assert len(chunks) == 21
    assert chunks[-1].finish_reason == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 20


async def test_mock_fails_after_the_tokens_of_its_name() -> None:
    got = []
    with pytest.raises(RateLimited):
        async for chunk in mock_client("echo?fail=rate_limit&after=3").stream(PROMPT, OPTIONS):
            got.append(chunk.text)
    assert len(got) == 3


async def test_the_mock_loses_the_readers_patience_like_any_other() -> None:
    clock = Clock()
    client = mock_client("echo?first=60", clock=clock, sleep=clock.sleep)
    assert type(await catch_error(client, timeout=30)) is ModelTimeout
    assert clock.now == 130


@pytest.mark.parametrize(
    ("bound", "limit", "given", "until"),
    [("timeout", 3, 0, 3), ("idle_timeout", 3, 1, 8), ("total_timeout", 18, 2, 18)],
)
async def test_the_mock_keeps_each_bound_on_waiting(
    bound: str, limit: float, given: int, until: float
) -> None:
    clock, got = Clock(), []
    client = mock_client("echo?first=5&rate=0.1", clock=clock, sleep=clock.sleep)
    with pytest.raises(ModelTimeout):
        async for chunk in client.stream(PROMPT, Options(**{bound: limit})):
            got.append(chunk.text)
    assert len(got) == given
    assert clock.now - 100 == pytest.approx(until)


@pytest.mark.parametrize(
    "name",
    [
        "parrot",
        "echo?speed=3",
        "echo?rate=0",
        "echo?rate=inf",
        "echo?fail=nonsense",
        "echo?fail=",
        "echo?tokens",
        "echo?tokens=many",
        "echo?after=-1",
    ],
)
def test_a_mock_that_does_not_exist_is_an_unknown_model(name: str) -> None:
    with pytest.raises(UnknownModel):
        mock_client(name)


@pytest.mark.parametrize("spec", [5, None, "openai:\ud800", "\ud800"])
def test_catalog_raises_unknown_model_when_the_name_is_malformed(spec: object) -> None:
    catalog = Catalog(Settings().data_dir / "models.yaml")
    with pytest.raises(UnknownModel) as told:
        catalog.find(spec)  # type: ignore[arg-type]
    assert str(told.value.details["model"]).encode()


def test_a_question_mark_alone_changes_nothing() -> None:
    assert mock_client("echo?").behaviour == FakeMock().answering_client().behaviour
