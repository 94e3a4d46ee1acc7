"""The log: each line's fields, one id through all lines of a request, no key and nobody's words."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import subprocess
import sys
import warnings
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

import pytest
from pydantic import SecretStr
from support.fakes import NO_SECRETS, SECRETS, ChatUser, reply_with

from persona_lab.db.generations import GenerationResult
from persona_lab.errors import Offline
from persona_lab.lab import Lab
from persona_lab.monitor import logs
from persona_lab.monitor.request_context import (
    bind_fields,
    current_fields,
    request,
    request_id,
    with_request_context,
)
from persona_lab.redaction import MASK
from persona_lab.settings import ROOT, Settings
from persona_lab.types import Chunk, Options, Prompt

MakeLab = Callable[..., Lab]

ASKED = "私の飼い猫の名前はタマです"
SPECIFIED = {
    "timestamp", "level", "service", "event", "chat_id", "agent_id", "user_id", "model", "tokens",
    "latency_ms", "cache_hit", "error",
}  # fmt: skip


class Written(io.StringIO):
    """What was written to the log."""

    def lines(self, event: str = "") -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.getvalue().splitlines()]
        return [line for line in found if event in ("", line["event"])]


class Terminal(Written):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def as_before() -> Iterator[None]:
    """Logging is the process's: each test gives it back as it was."""
    root, ours = logging.getLogger(), logging.getLogger("persona_lab")
    handlers, levels = list(root.handlers), (root.level, ours.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])
    logging.captureWarnings(False)


@pytest.fixture
def open_log(as_before: None) -> Callable[..., Written]:
    """``open_log(**settings)``: the stream that all lines go to from now on."""

    def open_(stream: Written | None = None, secrets: Any = None, **fields: object) -> Written:
        stream = Written() if stream is None else stream
        logs.configure(Settings(**fields), secrets=secrets, stream=stream)
        return stream

    return open_


@pytest.fixture
def log(open_log: Callable[..., Written]) -> Written:
    return open_log()


ours = logging.getLogger("persona_lab.test")


# ── what a line has ───────────────────────────────────────────────────────────────────────


async def test_a_turn_is_a_line_with_the_fields_of_the_specification(
    make_lab: MakeLab, log: Written
) -> None:
    visitor = ChatUser(make_lab(reply_with("は", "い")))
    reply = await visitor.lab.service.generate_response(message=ASKED, **visitor.ids)
    [line] = log.lines("turn")
    assert line.keys() >= SPECIFIED
    assert line["timestamp"].endswith("Z")
    assert (line["level"], line["service"], line["event"]) == ("info", "persona-lab", "turn")
    assert {name: line[name] for name in visitor.ids} == visitor.ids
    assert line["model"] == "mock:scripted"
    assert line["tokens"] == {"prompt": 12, "completion": 2, "total": 14, "cached": 0}
    assert line["latency_ms"] == reply.metadata["total_ms"]
    assert line["first_token_ms"] == reply.metadata["first_token_ms"]
    assert (line["cache_hit"], line["error"], line["status"]) == (False, None, "ok")
    assert (line["attempts"], line["retries"], line["fallback_from"]) == (1, 0, [])
    assert line["cost"] == reply.metadata["cost"]
    assert line["request_id"] == reply.metadata["request_id"] != ""


async def test_a_turn_that_fails_tells_the_class_of_the_error(
    make_lab: MakeLab, log: Written
) -> None:
    visitor = ChatUser(make_lab(reply_with("は", error=Offline(provider="mock", model="scripted"))))
    await visitor.lab.service.generate_response(message=ASKED, **visitor.ids)
    [turn], [failed] = log.lines("turn"), log.lines("answer_failed")
    assert (turn["status"], turn["error"], turn["code"]) == ("failed", "offline", "offline")
    assert (failed["level"], failed["error"], failed["chat_id"]) == (
        "warning",
        "offline",
        visitor.chat.id,
    )
    assert failed["request_id"] == turn["request_id"]


async def test_a_cached_answer_says_so(make_lab: MakeLab, log: Written) -> None:
    lab = make_lab()
    visitor = ChatUser(lab)
    for _ in range(2):
        where = visitor.ids
        where["chat_id"] = lab.store.create_chat(
            user_id=visitor.user_id, agent_id=visitor.agent.id
        ).id
        await lab.service.generate_response(message=ASKED, **where)
    asked, cached = log.lines("turn")
    assert (asked["cache_hit"], cached["cache_hit"]) == (False, True)
    assert cached["tokens"]["total"] == cached["cost"] == 0


async def test_a_stand_in_names_whom_it_stands_in_for_in_one_request(
    make_lab: MakeLab, log: Written
) -> None:
    lab = make_lab(llm_fallback="mock:echo", llm_retries=0)
    visitor = ChatUser(lab)
    await lab.service.generate_response(
        message=ASKED, **visitor.ids, model="mock:echo?fail=overloaded"
    )
    [turn], [passed] = log.lines("turn"), log.lines("passed_over")
    absent = {"model": "mock:echo?fail=overloaded", "code": "overloaded", "attempts": 1}
    assert (turn["fallback_from"], turn["model"], turn["status"]) == ([absent], "mock:echo", "ok")
    assert (passed["model"], passed["error"]) == ("mock:echo?fail=overloaded", "api_error")
    assert passed["user_id"] == visitor.user_id
    assert passed["request_id"] == turn["request_id"]


async def test_tries_are_counted_and_each_is_told(make_lab: MakeLab, log: Written) -> None:
    async def at_once(seconds: float) -> None:
        pass

    lab = make_lab(llm_retries=2, sleep=at_once)
    visitor = ChatUser(lab)
    await lab.service.generate_response(
        message=ASKED, **visitor.ids, model="mock:echo?fail=overloaded"
    )
    [turn] = log.lines("turn")
    assert (turn["attempts"], turn["retries"]) == (3, 2)
    retries = log.lines("retry")
    assert [line["attempts"] for line in retries] == [1, 2]
    assert {line["request_id"] for line in log.lines()} == {turn["request_id"]}


async def test_a_stopped_answer_leaves_its_line(make_lab: MakeLab, log: Written) -> None:
    visitor = ChatUser(make_lab(reply_with("は", "い")))
    events = visitor.lab.service.generate_streaming(message=ASKED, **visitor.ids)
    async for event in events:
        if event.type == "delta":
            break
    await events.aclose()
    [line] = log.lines("turn")
    assert (line["status"], line["chat_id"]) == ("stopped", visitor.chat.id)


def test_every_line_has_every_field_of_the_specification(log: Written) -> None:
    logging.getLogger("somebody.else").warning("something")
    [line] = log.lines()
    assert line.keys() >= SPECIFIED
    assert line["event"] == "something"
    assert line["tokens"] is None


def test_what_json_has_no_form_for_is_told_in_words(log: Written) -> None:
    class Odd:
        def __str__(self) -> str:
            return "odd"

    deep: list[Any] = []
    deep.append(deep)
    ours.info("x", extra={"event": "e", "odd": Odd(), "nan": float("nan"), "deep": deep, "s": {1}})
    [line] = log.lines()
    assert (line["odd"], line["nan"], line["s"], line["note"]) == ("odd", None, [1], "x")


def test_a_line_that_cannot_be_told_leaves_one_that_says_so(log: Written) -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("key-of-somebody")

    ours.info("x", extra={"event": "e", "broken": Broken()})
    [line] = log.lines()
    assert (line["event"], line["error_class"]) == ("line_failed", "RuntimeError")
    wrong = logging.makeLogRecord({"msg": "%d things", "args": ("key-of-somebody",)})
    told = json.loads(logs.LogFormatter(json_lines=True).format(wrong))
    assert (told["event"], told["error_class"]) == ("line_failed", "TypeError")
    assert "key-of-somebody" not in f"{told}{log.getvalue()}"


def test_half_a_character_and_line_breaks_stay_within_one_line(log: Written) -> None:
    ours.info("x", extra={"event": "e", "half": "\ud800", "breaks": "a\nb\r\u2028c"})
    assert log.getvalue().count("\n") == 1
    assert log.lines()[0]["breaks"] == "a\nb\r\u2028c"


def test_a_stream_that_takes_nothing_costs_nobody_anything(
    log: Written, capsys: pytest.CaptureFixture[str]
) -> None:
    log.close()
    ours.error("x", extra={"event": "e"})
    assert capsys.readouterr().err == ""


# ── one request ───────────────────────────────────────────────────────────────────────────


async def test_turns_at_one_time_have_an_id_each_even_where_they_take_turns_in_one_task(
    make_lab: MakeLab, log: Written
) -> None:
    lab = make_lab(reply_with("は", error=Offline(provider="mock", model="scripted")))
    one, other = ChatUser(lab), ChatUser(lab)
    streams = [lab.service.generate_streaming(message=ASKED, **v.ids) for v in (one, other)]
    while streams:
        for stream in list(streams):
            if await anext(stream, None) is None:
                streams.remove(stream)
    found = {v.chat.id: {x["request_id"] for x in log.lines() if x["chat_id"] == v.chat.id}
             for v in (one, other)}  # fmt: skip
    assert [len(ids) for ids in found.values()] == [1, 1]
    assert found[one.chat.id] != found[other.chat.id]
    assert len(log.lines()) == 4
    assert request_id() == ""


async def test_concurrent_turns_never_mix(make_lab: MakeLab, log: Written) -> None:
    async def play(prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        await asyncio.sleep(0)
        yield Chunk("は")
        raise Offline(provider="mock", model="scripted")

    lab = make_lab(play)
    visitors = [ChatUser(lab) for _ in range(12)]
    await asyncio.gather(*(lab.service.generate_response(message=ASKED, **v.ids) for v in visitors))
    by_request: dict[str, set[str]] = {}
    for line in log.lines():
        by_request.setdefault(line["request_id"], set()).add(line["chat_id"])
    assert len(by_request) == 12
    assert all(len(chats) == 1 for chats in by_request.values())


async def test_a_caller_may_give_the_id(make_lab: MakeLab, log: Written) -> None:
    visitor = ChatUser(make_lab(reply_with("はい")))
    with request("from-outside.7") as given:
        await visitor.lab.service.generate_response(message=ASKED, **visitor.ids)
    assert given == log.lines("turn")[0]["request_id"] == "from-outside.7"


@pytest.mark.parametrize("odd", ["", "a b", "x" * 65, 'x"', "あ", "a\n"])
def test_an_id_from_outside_that_could_be_anything_is_not_taken(odd: str) -> None:
    with request(odd) as given:
        assert given not in (odd, "")
        with request() as inner:
            assert inner == given


async def test_what_a_turn_tells_stays_its_own_under_a_shared_caller() -> None:
    @with_request_context
    async def turn(name: str) -> AsyncGenerator[dict[str, Any], None]:
        bind_fields(name=name)
        yield dict(current_fields())
        yield dict(current_fields())

    with request("shared"):
        one, other = turn("one"), turn("other")
        seen = [await anext(each) for each in (one, other, one, other)]
        assert current_fields() == {"request_id": "shared"}
    assert [x["name"] for x in seen] == ["one", "other", "one", "other"]
    assert {x["request_id"] for x in seen} == {"shared"}
    await one.aclose()
    await other.aclose()


# ── no key, nobody's words ────────────────────────────────────────────────────────────────

CANARY = "canary/7Qf+x\\y-0123456789"
TYPED = "sk-proj-canaryTypedByVisitor0123456789"


@pytest.mark.parametrize("style", ["json", "text"])
def test_a_key_is_hidden_wherever_it_stands(open_log: Callable[..., Written], style: str) -> None:
    log = open_log(log_format=style, log_messages=True, openai_api_key=CANARY)
    for key in (CANARY, TYPED):
        try:
            local = key
            raise ValueError(f"refused: {local}")
        except ValueError:
            ours.exception("with %s", key, extra={"event": "e"})
        ours.error(key)
        ours.error("x", extra={"event": key, "deep": {"list": [f"Bearer {key}"]}, key: key})
        ours.error("x", extra={"held": SecretStr(key)})
        logging.getLogger("foreign").error("url https://x/?api_key=%s", key, extra={"k": key})
    told = log.getvalue()
    assert "canary" not in told
    assert "7Qf" not in told
    assert MASK in told


@pytest.mark.parametrize("key", SECRETS, ids=lambda key: key[:8])
@pytest.mark.parametrize("style", ["json", "text"])
def test_a_key_that_nobody_told_us_of_is_hidden_by_its_look(
    open_log: Callable[..., Written], style: str, key: str
) -> None:
    log = open_log(log_format=style)
    ours.error("x", extra={"event": "e", "said": f"a\n{key}", "after": "stays"})
    told = log.getvalue()
    assert not any(line[4:] in told for line in key.split("\n"))
    assert MASK in told
    assert "stays" in told
    assert style == "text" or log.lines()[0]["after"] == "stays"


def test_half_a_private_key_costs_no_more_than_the_value_that_it_stands_in(log: Written) -> None:
    ours.error("x", extra={"said": '-----BEGIN PRIVATE KEY-----\nMII"abc', "more": "stays"})
    [line] = log.lines()
    assert (line["said"], line["more"]) == (MASK, "stays")


@pytest.mark.parametrize("text", NO_SECRETS)
def test_a_word_that_begins_like_a_key_stays_in_the_log(log: Written, text: str) -> None:
    ours.error("x", extra={"said": text})
    assert log.lines()[0]["said"] == text


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("Authorization: Bearer abc.def-ghi", "Authorization: Bearer "),
        ("https://h/x?token=abc.def-ghi&a=1", "&a=1"),
        ("redis://user:abc.def-ghi@host:6379/0", "@host:6379/0"),
        ("postgresql://u:abc.def-ghi@db/lab", "postgresql://u:"),
    ],
)
def test_what_stands_where_secrets_stand_is_hidden(log: Written, said: str, kept: str) -> None:
    ours.error("x", extra={"event": "e", "where": said})
    assert "abc.def-ghi" not in log.getvalue()
    assert kept in log.lines()[0]["where"]


def test_a_field_is_hidden_by_its_name_and_counts_of_tokens_are_not(log: Written) -> None:
    extra = {"api_key": "abc", "vault_token": "abc", "about": {"password": "abc", "tokens": 3}}
    ours.error("x", extra={"event": "e", "max_tokens": 5, "token": 7.5, **extra})
    [line] = log.lines()
    assert (line["api_key"], line["vault_token"], line["token"]) == (MASK,) * 3
    assert line["about"] == {"password": MASK, "tokens": 3}
    assert line["max_tokens"] == 5


def test_an_exception_shows_neither_locals_nor_the_words_that_it_quotes(log: Written) -> None:
    def deep() -> None:
        typed = "絶対に秘密"  # noqa: F841 - what a careless traceback would show
        raise ValueError("絶対に秘密")

    try:
        try:
            deep()
        except ValueError as wrong:
            raise ExceptionGroup("絶対に秘密", [wrong]) from None
    except ExceptionGroup:
        ours.exception("it broke")
        logging.getLogger("asyncio").exception("Task exception was never retrieved\n絶対に秘密")
    assert "絶対に秘密" not in log.getvalue()
    mine, foreign = log.lines()
    [stack] = mine["exception"]
    assert (stack["type"], stack["exceptions"][0][0]["type"]) == ("ExceptionGroup", "ValueError")
    assert "test_logs.py" in stack["frames"][0]
    assert foreign["event"] == "Task exception was never retrieved"


@pytest.mark.parametrize("on", [False, True])
async def test_words_of_a_turn_stand_in_the_log_only_when_that_is_switched_on(
    make_lab: MakeLab, open_log: Callable[..., Written], on: bool
) -> None:
    log = open_log(log_messages=on, log_level="debug")
    visitor = ChatUser(make_lab(reply_with("タマちゃん", "ですね"), log_messages=on))
    await visitor.lab.service.generate_response(message=ASKED, **visitor.ids)
    assert (ASKED in log.getvalue()) == ("タマちゃんですね" in log.getvalue()) == on


# ── who speaks, and in what form ──────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("chosen", "stream", "is_json"),
    [
        ("auto", Written, True),
        ("auto", Terminal, False),
        ("json", Terminal, True),
        ("TEXT", Written, False),
    ],
)
def test_lines_are_json_unless_somebody_reads_them(
    open_log: Callable[..., Written], chosen: str, stream: type[Written], is_json: bool
) -> None:
    log = open_log(stream(), log_format=chosen)
    ours.info("turn", extra={"event": "turn", "chat_id": "abc", "code": None})
    assert log.getvalue().startswith("{") == is_json
    assert ("\x1b[" in log.getvalue()) == (not is_json and stream is Terminal)
    assert "abc" in log.getvalue()
    assert ("code" in log.getvalue()) == is_json


def test_a_reader_sees_the_frames_and_nothing_that_moves_their_terminal(
    open_log: Callable[..., Written],
) -> None:
    log = open_log(log_format="text")
    try:
        raise ValueError("x")
    except ValueError:
        ours.exception("broke\x1b[2J", extra={"tokens": {"prompt": 3, "completion": 4}})
    assert "\x1b" not in log.getvalue()
    assert "test_logs.py" in log.getvalue()
    assert "tokens=3+4" in log.getvalue()


def test_other_libraries_speak_from_warnings_on_whatever_our_level(
    open_log: Callable[..., Written],
) -> None:
    log = open_log(log_level="DEBUG")
    logging.getLogger("openai._base_client").debug("Request options: %s", ASKED)
    logging.getLogger("httpx2").info("HTTP Request")
    ours.debug("ours")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("mind this", stacklevel=1)
    assert [line["event"] for line in log.lines()][:1] == ["ours"]
    assert ["mind this" in line["event"] for line in log.lines()] == [False, True]


def test_a_level_above_ours_is_silent(open_log: Callable[..., Written]) -> None:
    log = open_log(log_level="warning")
    ours.info("quiet")
    assert log.getvalue() == ""


def test_beginning_anew_doubles_no_line(open_log: Callable[..., Written]) -> None:
    first, second = open_log(), open_log()
    ours.info("once")
    assert (first.getvalue(), len(second.lines())) == ("", 1)


def test_opening_the_log_loads_nothing_that_takes_time() -> None:
    script = (
        "import sys; from persona_lab.monitor import logs, Monitor; "
        "from persona_lab.settings import Settings; logs.configure(Settings()); "
        "print([m for m in ('structlog', 'prometheus_client', 'genai_prices') if m in sys.modules])"
    )
    said = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, check=True, text=True
    )
    assert said.stdout == "[]\n"


def test_the_servers_own_lines_and_a_threads_last_come_in_our_form() -> None:
    script = (
        "import logging, uvicorn; from persona_lab.monitor import logs; "
        "from persona_lab.settings import Settings; "
        "logs.configure(Settings()); logs.capture_uvicorn_logs(); "
        "uvicorn.Config(app=None, log_level='warning'); "
        "logging.getLogger('uvicorn.error').error('Exception in ASGI application'); "
        "logging.getLogger('uvicorn.access').info('GET /?token=x'); "
        "import threading; dying = threading.Thread(target=int, args=['sk-canary-0123456789']); "
        "dying.start(); dying.join()"
    )
    said = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, check=True, text=True
    )
    server, thread = [json.loads(line) for line in said.stderr.splitlines()]
    assert (server["event"], server["logger"]) == ("Exception in ASGI application", "uvicorn.error")
    assert (thread["event"], thread["exception"][0]["type"]) == ("thread_died", "ValueError")
    assert "canary" not in said.stderr
    assert said.stdout == ""


# ── whoever watches ───────────────────────────────────────────────────────────────────────


async def test_an_observer_that_raises_costs_neither_the_turn_nor_the_next_observer(
    make_lab: MakeLab, log: Written
) -> None:
    seen: list[GenerationResult] = []

    def broken(outcome: GenerationResult) -> None:
        raise RuntimeError(ASKED)

    lab = make_lab(reply_with("は", "い"))
    lab.service.observers = (broken, seen.append)
    visitor = ChatUser(lab)
    reply = await lab.service.generate_response(message=ASKED, **visitor.ids)
    assert (reply.content, "fallback" in reply.metadata) == ("はい", False)
    [outcome] = seen
    assert outcome.record.id == lab.store.records(user_id=visitor.user_id)[0].id
    assert (outcome.spec, outcome.code, outcome.attempts) == ("mock:scripted", None, 1)
    [line] = log.lines("observer_failed")
    assert (line["error_class"], line["chat_id"]) == ("RuntimeError", visitor.chat.id)
    assert ASKED not in log.getvalue()


async def test_whoever_watches_hears_of_a_turn_that_the_store_did_not_take(
    make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[GenerationResult] = []
    lab = make_lab(reply_with("は", "い"))
    lab.service.observers = (seen.append,)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lab.store, "finish_turn", full)
    reply = await lab.service.generate_response(message=ASKED, **ChatUser(lab).ids)
    assert reply.metadata["code"] == "disk_full"
    assert [outcome.record.status for outcome in seen] == ["ok"]


async def test_a_summary_is_watched_too(make_lab: MakeLab) -> None:
    seen: list[GenerationResult] = []
    lab = make_lab(reply_with("要約", "です"), context_summary=True, max_context_length=2)
    lab.service.observers = (seen.append,)
    visitor = ChatUser(lab)
    for _ in range(4):
        await lab.service.generate_response(message=ASKED, **visitor.ids)
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)
    assert {outcome.record.kind for outcome in seen} == {"chat", "summary"}
