"""The named endpoints over HTTP, called through gradio_client."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from html import escape
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import httpx
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from support.app_process import GEMMA, SMOLLM, RunningApp, client_headers, make_data_folder, run_app
from support.selection import slow_after

from persona_lab.db.store import Store
from persona_lab.errors import DiskFull, StorageError
from persona_lab.lab import Lab
from persona_lab.personas.persona import Persona
from persona_lab.responses.changes import restore
from persona_lab.server import COOKIE
from persona_lab.settings import ROOT
from persona_lab.translations import Translations
from persona_lab.ui.session import Visitors

FALLBACKS = Translations(ROOT / "templates" / "fallbacks.yaml")
PAGE = Translations(ROOT / "templates" / "ui.yaml")
MODELS = """models:
  - {provider: mock, name: echo, context: 8192}
  - {provider: openai, name: gpt-x}
"""
ECHO = "mock:echo"
SLOW = "mock:echo?rate=100&tokens=60"
NOBODY = "0" * 32

JAPANESE = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]")

PUBLIC = {
    "/list_personas", "/save_persona", "/duplicate_persona", "/delete_persona", "/restore_persona",
    "/undo_persona", "/list_models", "/preview_prompt", "/try_message", "/compare", "/chat",
    "/regenerate", "/list_chats", "/get_chat", "/delete_chat", "/restore_chat", "/insights",
    "/export_turns",
}  # fmt: skip
WITHOUT_IDS = {"/list_personas", "/list_models", "/insights", "/export_turns"}

Connect = Callable[..., Client]


def connector(served: RunningApp) -> Iterator[Connect]:
    """``connect("en", cookie="…")``: a new client, a visitor of its own unless it has a cookie."""
    opened: list[Client] = []

    def connect(language: str = "ja", cookie: str = "") -> Client:
        client = Client(served.url, verbose=False, headers=dict(client_headers(language, cookie)))
        opened.append(client)
        return client

    yield connect
    for client in opened:
        client.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    folder = tmp_path_factory.mktemp("api")
    with run_app(folder, DATA_DIR=str(make_data_folder(folder, MODELS))) as app:
        yield app


@pytest.fixture
def connect(served: RunningApp) -> Iterator[Connect]:
    yield from connector(served)


@pytest.fixture
def client(connect: Connect) -> Client:
    return connect()


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    """The app as it comes: its own data, a local model for the default."""
    with run_app(tmp_path_factory.mktemp("real"), LLM_PROVIDER="local", LLM_MODEL="") as app:
        yield app


@pytest.fixture
def connect_real(real: RunningApp) -> Iterator[Connect]:
    yield from connector(real)


def demo(client: Client, language: str = "ja") -> dict[str, Any]:
    personas = client.predict(api_name="/list_personas")
    return next(p for p in personas if p["demo"] and p["language"] == language)


def fields(persona: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in persona.items() if k not in ("id", "demo")}


def said(code: str, language: str, **details: Any) -> str:
    """The words for an error; details that aren't given stand as they do in the file."""
    return str(FALLBACKS(code, language, **details))


def refusal(client: Client, *arguments: Any, api_name: str) -> str:
    with pytest.raises(AppError) as refused:
        client.predict(*arguments, api_name=api_name)
    return str(refused.value)


# ── what is offered ───────────────────────────────────────────────────────────────────────


def test_exactly_the_public_endpoints_are_named(client: Client) -> None:
    offered = client.view_api(return_format="dict", print_info=False)
    assert set(offered["named_endpoints"]) == PUBLIC
    assert offered["unnamed_endpoints"] == {}


def test_every_endpoint_and_parameter_is_described(client: Client) -> None:
    offered = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    for name, endpoint in offered.items():
        assert endpoint["description"], name
        for parameter in endpoint["parameters"]:
            described = parameter["python_type"]["description"]
            assert described, f"{name}: {parameter['parameter_name']} isn't described"


def test_list_models_has_the_default_first_and_availability(
    client: Client,
) -> None:
    listed = client.predict(api_name="/list_models")
    assert [(m["model"], m["available"]) for m in listed] == [(ECHO, True), ("openai:gpt-x", False)]


# ── personas ──────────────────────────────────────────────────────────────────────────────

WHOLE = {
    "name": "タロウ", "description": "海の家の店長", "gender": "男性",
    "background": "港町で育った。",
    "first_person": "おいら", "second_person": "あんた", "greeting": "いらっしゃい！",
    "personalities": ["豪快", "世話好き"], "roles": ["店長"], "tones": ["カジュアル"],
    "sentence_endings": ["だぜ"], "catchphrases": ["潮の香りがするな"], "forbidden_words": ["無理"],
    "examples": [{"user": "暑いね", "ai": "かき氷、食ってくか？"}], "language": "ja",
}  # fmt: skip


def test_every_field_of_a_saved_persona_comes_back(client: Client) -> None:
    saved = client.predict(WHOLE, api_name="/save_persona")
    assert fields(saved) == Persona.validate(WHOLE).to_dict()
    assert saved in client.predict(api_name="/list_personas")


def test_changing_a_field_leaves_the_others(client: Client) -> None:
    saved = client.predict(WHOLE, api_name="/save_persona")
    changed = client.predict({"name": "ジロウ"}, saved["id"], api_name="/save_persona")
    assert changed == {**saved, "name": "ジロウ"}


def test_a_changed_demo_becomes_a_copy_and_stays_as_it_was(client: Client) -> None:
    before = demo(client)
    copy = client.predict({"name": "わたしの"}, before["id"], api_name="/save_persona")
    assert copy == {**before, "id": copy["id"], "demo": False, "name": "わたしの"}
    assert copy["id"] != before["id"]
    assert demo(client) == before


def test_undo_steps_back_to_what_a_persona_was(client: Client) -> None:
    saved = client.predict(WHOLE, api_name="/save_persona")
    client.predict({"name": "ジロウ"}, saved["id"], api_name="/save_persona")
    assert client.predict(saved["id"], api_name="/undo_persona") == saved


def test_a_deleted_persona_leaves_the_list_and_comes_back(client: Client) -> None:
    saved = client.predict(WHOLE, api_name="/save_persona")
    client.predict(saved["id"], api_name="/delete_persona")
    assert saved not in client.predict(api_name="/list_personas")
    assert client.predict(saved["id"], api_name="/restore_persona") == saved
    assert saved in client.predict(api_name="/list_personas")


def test_a_demo_can_be_copied_but_not_deleted(client: Client) -> None:
    original = demo(client)
    copy = client.predict(original["id"], "写し", api_name="/duplicate_persona")
    assert fields(copy) == {**fields(original), "name": "写し"}
    assert refusal(client, original["id"], api_name="/delete_persona") == said("not_found", "ja")
    assert demo(client) == original


# ── the preview ───────────────────────────────────────────────────────────────────────────


def pieces(persona: dict[str, Any]) -> dict[str, set[str]]:
    """For each field, the texts that a span of it may hold: a value, or a line of it."""
    found: dict[str, set[str]] = {}
    for name, value in fields(persona).items():
        values = value if isinstance(value, list) else [value]
        texts = [t for v in values for t in (v.values() if isinstance(v, dict) else [v])]
        found[name] = {line for text in texts for line in [text, *text.split("\n")]}
    return found


@pytest.mark.parametrize("persona_is_kept", slow_after(1, [True, False]))
def test_preview_span_holds_the_text_of_its_field(client: Client, persona_is_kept: bool) -> None:
    for persona in [*client.predict(api_name="/list_personas"), {**WHOLE, "id": ""}]:
        if persona_is_kept and persona["id"]:
            preview = client.predict(persona["id"], "やあ", api_name="/preview_prompt")
        else:
            preview = client.predict("", "やあ", "", fields(persona), api_name="/preview_prompt")
        texts, system, position = pieces(persona), preview["system"], 0
        for start, end, field in preview["spans"]:
            assert position <= start < end, "spans stand in order and don't overlap"
            assert system[start:end] in texts[field], f"{persona['name']}: {field}"
            position = end
        assert {field for *_, field in preview["spans"]} >= {"name", "description", "background"}


@pytest.mark.parametrize("language", slow_after(1, ["ja", "en"]))
def test_the_preview_is_what_is_sent(client: Client, language: str) -> None:
    persona = demo(client, language)
    preview = client.predict(persona["id"], "元気？", api_name="/preview_prompt")
    *_, last = client.submit("元気？", persona["id"], api_name="/chat")
    assert last["metadata"]["prompt"] == preview["system"]
    assert preview["turns"][-1] == {"role": "user", "content": "元気？"}
    assert len(preview["turns"]) == last["metadata"]["turns"]


def test_the_preview_of_changes_is_the_preview_after_saving_them(client: Client) -> None:
    persona = client.predict(WHOLE, api_name="/save_persona")
    changes = {"roles": ["教師"], "personalities": ["フレンドリー"], "catchphrases": ["なるほどな"]}
    before = client.predict(persona["id"], "", "", changes, api_name="/preview_prompt")
    client.predict(changes, persona["id"], api_name="/save_persona")
    assert client.predict(persona["id"], api_name="/preview_prompt") == before
    assert before["template"].startswith("casual_teacher")
    assert before["rule"] > 0
    assert before["reason"]


@pytest.mark.parametrize(
    "wrong",
    [{"personalities": "abc"}, {"name": 5}, {"colour": "red"}, {"examples": [{"user": "a"}]}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_the_preview_refuses_what_saving_refuses(client: Client, wrong: dict[str, Any]) -> None:
    persona = {"name": "x", **wrong}
    saving = refusal(client, persona, api_name="/save_persona")
    assert refusal(client, "", "", "", persona, api_name="/preview_prompt") == saving
    assert saving != said("system_error", "ja")


# ── answers ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("model", slow_after(1, [GEMMA, SMOLLM]))
@pytest.mark.parametrize(
    ("language", "message"),
    slow_after(1, [("ja", "こんにちは。自己紹介をしてください。"), ("en", "Who are you?")]),
)
def test_a_persona_answers_from_each_packaged_model(
    connect_real: Connect, model: str, language: str, message: str
) -> None:
    client = connect_real(language)
    steps = list(client.submit(message, demo(client, language)["id"], "", model, api_name="/chat"))
    texts = [step["content"] for step in steps]
    answer, metadata = texts[-1], steps[-1]["metadata"]
    assert metadata["status"] == "ok", answer
    assert "fallback" not in metadata
    assert metadata["spec"] == model
    assert metadata["usage"]["completion_tokens"] > 0
    assert answer.strip()
    assert len({text for text in texts if text}) > 2, "the answer came in pieces"
    if model == GEMMA:
        assert bool(JAPANESE.search(answer)) is (language == "ja")


@pytest.mark.parametrize("model", slow_after(1, [GEMMA, SMOLLM]))
def test_the_preview_is_what_a_packaged_model_is_sent(connect_real: Connect, model: str) -> None:
    client = connect_real()
    persona = demo(client)["id"]
    preview = client.predict(persona, "元気？", model, api_name="/preview_prompt")
    *_, last = client.submit("元気？", persona, "", model, api_name="/chat")
    assert last["metadata"]["prompt"] == preview["system"]
    assert preview["kind"] == ("transcript" if model == GEMMA else "chat")


def test_an_answer_comes_in_pieces_and_ends_whole(client: Client) -> None:
    steps = list(client.submit("やあ", demo(client)["id"], "", SLOW, api_name="/chat"))
    texts = [step["content"] for step in steps]
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    assert len(set(texts)) > 10
    assert [step["done"] for step in steps].count(True) == 1
    assert steps[-1]["done"]
    assert steps[-1]["metadata"]["usage"]["completion_tokens"] == 60


def test_chat_is_continued_stored_deleted_and_restored(
    client: Client,
) -> None:
    persona = demo(client)["id"]
    first = client.predict("一つめ", persona, api_name="/chat")
    chat = first["chat_id"]
    second = client.predict("二つめ", persona, chat, api_name="/chat")
    assert second["metadata"]["turns"] == first["metadata"]["turns"] + 2
    kept = client.predict(chat, api_name="/get_chat")
    assert [(m["sender"], m["content"]) for m in kept] == [
        ("user", "一つめ"), ("ai", first["content"]), ("user", "二つめ"), ("ai", second["content"]),
    ]  # fmt: skip
    (listed,) = client.predict(persona, api_name="/list_chats")
    assert (listed["id"], listed["title"]) == (chat, "一つめ")
    client.predict(chat, api_name="/delete_chat")
    assert client.predict(api_name="/list_chats") == []
    client.predict(chat, api_name="/restore_chat")
    assert client.predict(chat, api_name="/get_chat") == kept


def test_an_answers_metadata_has_its_raw_text_and_changes(client: Client) -> None:
    persona = client.predict({"name": "ミナ", "tones": ["カジュアル"]}, api_name="/save_persona")
    asked = "わたしの番号は 090-1234-5678 です。"
    answer = client.predict(asked, persona["id"], "", ECHO, api_name="/chat")
    metadata = answer["metadata"]
    assert metadata["changes"]
    assert restore(answer["content"], metadata["changes"]) == metadata["raw"] != answer["content"]
    _, kept = client.predict(answer["chat_id"], api_name="/get_chat")
    assert [kept["metadata"][key] for key in ("raw", "changes")] == [
        metadata["raw"],
        metadata["changes"],
    ]


def test_a_conversation_does_not_change_its_persona(client: Client) -> None:
    japanese, english = demo(client)["id"], demo(client, "en")["id"]
    chat = client.predict("一つめ", japanese, api_name="/chat")["chat_id"]
    kept = client.predict(chat, api_name="/get_chat")
    assert refusal(client, "二つめ", english, chat, api_name="/chat") == said("not_found", "ja")
    assert client.predict(chat, api_name="/get_chat") == kept


def test_another_answer_takes_the_place_of_the_last(client: Client) -> None:
    first = client.predict("やあ", demo(client)["id"], api_name="/chat")
    again = client.predict(first["chat_id"], SLOW, api_name="/regenerate")
    assert again["content"] != first["content"]
    kept = client.predict(first["chat_id"], api_name="/get_chat")
    assert [m["content"] for m in kept] == ["やあ", again["content"]]


def test_partial_answer_is_marked_when_the_client_leaves(client: Client) -> None:
    slow = "mock:echo?rate=20&tokens=2000"
    job = client.submit("やあ", demo(client)["id"], "", slow, api_name="/chat")
    chat = next(step["chat_id"] for step in job if step["content"])
    job.cancel()
    deadline = time.monotonic() + 20
    while (answer := client.predict(chat, api_name="/get_chat")[-1])["status"] != "stopped":
        assert time.monotonic() < deadline
    assert answer["sender"] == "ai"
    assert answer["content"]


def test_try_message_takes_an_unsaved_persona_and_stores_nothing(
    client: Client,
) -> None:
    before = client.predict(api_name="/list_personas")
    steps = list(client.submit("やあ", "", ECHO, {"name": "ためし"}, api_name="/try_message"))
    assert steps[-1]["done"]
    assert "やあ" in steps[-1]["content"]
    assert steps[-1]["metadata"]["usage"]["completion_tokens"] > 0
    assert steps[-1]["content"].startswith(steps[0]["content"])
    assert client.predict(api_name="/list_personas") == before
    assert client.predict(api_name="/list_chats") == []


def test_columns_answer_at_the_same_time(client: Client) -> None:
    ids = [p["id"] for p in client.predict(api_name="/list_personas")[:2]]
    job = client.submit("やあ", [SLOW, SLOW], ids, api_name="/compare")
    snapshots = list(job)
    growing = [s for s in snapshots if all(c["text"] and c["state"] != "done" for c in s)]
    assert len({tuple(c["text"] for c in s) for s in growing}) > 5
    assert [c["state"] for c in snapshots[-1]] == ["done", "done"]
    assert [c["persona"] for c in snapshots[-1]] == ids
    assert all(c["metadata"]["usage"]["completion_tokens"] == 60 for c in snapshots[-1])


def test_compare_answers_other_columns_when_one_fails(client: Client) -> None:
    models = [ECHO, "openai:gpt-x", "nobody:x", f"{ECHO}?fail=rate_limit"]
    *_, cells = client.submit("やあ", models, [demo(client)["id"]], api_name="/compare")
    assert [c["state"] for c in cells] == ["done", "failed", "failed", "failed"]
    assert [c["error"] for c in cells] == [
        "",
        said("missing_key", "ja", variable="OPENAI_API_KEY"),
        said("unknown_model", "ja", model="nobody:x"),
        said("rate_limit", "ja"),
    ]


# ── insights ──────────────────────────────────────────────────────────────────────────────


def test_insights_has_figures_by_persona_model_and_day(client: Client) -> None:
    persona = client.predict(WHOLE, api_name="/save_persona")
    first = client.predict("やあ", persona["id"], api_name="/chat")
    client.predict("やあ", persona["id"], "", f"{ECHO}?fail=timeout", api_name="/chat")
    list(client.submit("やあ", persona["id"], ECHO, {"name": "かり"}, api_name="/try_message"))
    told = client.predict("7days", "Asia/Tokyo", api_name="/insights")
    total = told["total"]
    assert (total["answers"], total["errors"], total["unpriced"]) == (3, 1, 0)
    assert told["kinds"] == {"chat": 2, "try": 1}
    assert told["error_types"] == {"timeout": 1}
    assert total["tokens"]["prompt"] >= first["metadata"]["usage"]["prompt_tokens"] > 0
    assert total["first_token_ms"]["p50"] <= total["first_token_ms"]["p95"]
    assert [(p["id"], p["name"], p["answers"]) for p in told["by_persona"]] == [
        (persona["id"], "タロウ", 3)
    ]
    assert {m["provider"] for m in told["by_model"]} == {"mock"}
    for parts in (told["by_model"], told["by_day"]):
        assert sum(part["answers"] for part in parts) == 3
    assert told["zone"] == "Asia/Tokyo"


def test_insights_has_only_the_visitors_generations(connect: Connect) -> None:
    theirs, stranger = Mine(connect()), connect()
    told = stranger.predict("all", api_name="/insights")
    assert told["total"]["answers"] == 0
    assert (told["by_persona"], told["by_model"], told["by_day"]) == ([], [], [])
    assert len(stranger.predict("all", api_name="/export_turns").splitlines()) == 1
    assert theirs.client.predict("all", api_name="/insights")["total"]["answers"] == 1
    sheet = theirs.client.predict("all", "Asia/Tokyo", api_name="/export_turns")
    assert len(sheet.splitlines()) == 2
    assert Mine.whisper not in sheet
    assert "+09:00" in sheet


# ── bad input ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("language", slow_after(1, ["ja", "en"]))
def test_invalid_message_is_refused_and_not_stored(connect: Connect, language: str) -> None:
    client = connect(language)
    persona = demo(client)["id"]
    for message, words in (
        ("", said("empty_message", language)),
        (" \u200b\n", said("empty_message", language)),
        ("長" * 100_000, said("message_too_long", language, length=100_000, limit=2000)),
    ):
        assert refusal(client, message, persona, api_name="/chat") == words
        assert refusal(client, message, [ECHO], [persona], api_name="/compare") == words
    assert client.predict(api_name="/list_chats") == []


@pytest.mark.parametrize("language", slow_after(1, ["ja", "en"]))
@pytest.mark.parametrize("model", slow_after(1, ["nobody:x", "x", ":"]))
def test_unknown_provider_is_refused_and_nothing_is_stored(
    connect: Connect, language: str, model: str
) -> None:
    client = connect(language)
    words = said("unknown_model", language, model=model)
    assert refusal(client, "やあ", demo(client)["id"], "", model, api_name="/chat") == words
    assert client.predict(api_name="/list_chats") == []


@pytest.mark.parametrize("language", slow_after(1, ["ja", "en"]))
def test_message_is_stored_and_error_translated_when_model_fails(
    connect: Connect, language: str
) -> None:
    client = connect(language)
    persona = demo(client)["id"]
    for model, code, details in (
        ("openai:gpt-x", "missing_key", {"variable": "OPENAI_API_KEY"}),
        (f"{ECHO}?fail=quota", "quota", {}),
        (f"{ECHO}?fail=timeout&after=2", "timeout", {}),
    ):
        *_, last = client.submit("だいじな文", persona, "", model, api_name="/chat")
        assert last["metadata"]["fallback"] is True
        assert last["metadata"]["error"] == said(code, language, **details)
        assert last["metadata"]["error"] in last["content"]
        kept = client.predict(last["chat_id"], api_name="/get_chat")
        assert [m["content"] for m in kept] == ["だいじな文", last["content"]]
        assert kept[-1]["status"] == "failed"


def test_only_model_files_that_the_deployment_names_are_opened(client: Client) -> None:
    for file in ("/no/where/model.gguf", "/etc/hostname", "owner/repo:model.gguf"):
        model = f"local:{file}"
        words = said("unknown_model", "ja", model=model)
        assert refusal(client, "文", demo(client)["id"], "", model, api_name="/chat") == words


@pytest.mark.parametrize(
    ("persona", "field"),
    slow_after(
        2,
        [
            ({}, "name"),
            ({"name": "  "}, "name"),
            ({"name": "長" * 101}, "name"),
            ({"name": "x", "background": "長" * 10_001}, "background"),
            ({"name": "x", "roles": "教師"}, "roles"),
            ({"name": "x", "examples": ["?"]}, "examples"),
            ({"name": "x", "language": "fr"}, "language"),
            ({"name": "x", "owner_id": "me"}, "owner_id"),
        ],
    ),
)
def test_save_persona_names_the_field_when_it_is_invalid(
    client: Client, persona: dict[str, Any], field: str
) -> None:
    before = client.predict(api_name="/list_personas")
    label = PAGE(f"field.{field}", "ja") if f"field.{field}" in PAGE else field
    assert f"{label}：" in refusal(client, persona, api_name="/save_persona")
    assert client.predict(api_name="/list_personas") == before


@pytest.mark.parametrize(
    ("api_name", "arguments"),
    slow_after(
        3,
        [
            ("/save_persona", ([1],)),
            ("/save_persona", ("name",)),
            ("/chat", (None, NOBODY)),
            ("/chat", (5, NOBODY)),
            ("/compare", ("やあ", None, [NOBODY])),
            ("/compare", ("やあ", [], [NOBODY])),
            ("/compare", ("やあ", [ECHO] * 9, [NOBODY])),
            ("/compare", ("やあ", [ECHO] * 2, [NOBODY] * 3)),
            ("/insights", ("yesterday",)),
            ("/insights", (7, "Asia/Tokyo")),
            ("/export_turns", ("7days", None)),
        ],
    ),
)
def test_values_of_the_wrong_kind_are_refused_as_such(
    client: Client, api_name: str, arguments: tuple[Any, ...]
) -> None:
    words = refusal(client, *arguments, api_name=api_name)
    assert words in (said("invalid_input", "ja"), said("not_found", "ja"))


@pytest.mark.parametrize(
    "name", slow_after(1, ["\u200b\u200d", "\ufeff\u3164", "\x00\x1b", "\u202e", "　"])
)
def test_a_name_that_shows_nothing_is_refused_in_words(client: Client, name: str) -> None:
    words = said(
        "invalid_persona", "ja", field=PAGE("field.name", "ja"), reason=PAGE("reason.empty", "ja")
    )
    assert refusal(client, {"name": name}, api_name="/save_persona") == words
    kept = client.predict(WHOLE, api_name="/save_persona")
    assert refusal(client, {"name": name}, kept["id"], api_name="/save_persona") == words
    assert kept in client.predict(api_name="/list_personas")


def test_what_an_error_repeats_is_text_and_no_html(client: Client) -> None:
    image = "<img src=x onerror=alert(1)>"
    persona = demo(client)["id"]
    for told in (
        refusal(client, "やあ", persona, "", f"nobody:{image}", api_name="/chat"),
        refusal(client, {"name": "x", image: ""}, api_name="/save_persona"),
    ):
        assert escape(image, quote=False) in told
        assert "<" not in told


def test_half_a_surrogate_pair_is_refused_or_left_out(served: RunningApp, client: Client) -> None:
    persona, half = demo(client)["id"], "\ud800"
    headers = {"content-type": "application/json"}

    def told(name: str, *data: Any) -> str:
        call = f"{served.url}/gradio_api/call/{name}"
        event = httpx.post(call, content=json.dumps({"data": data}), headers=headers).json()
        return httpx.get(f"{call}/{event['event_id']}", timeout=30).text

    logged = len(served.log)
    for message, who, chat, model in (
        ("やあ", half, "", ""),
        ("やあ", persona, half, ""),
        ("やあ", persona, "", f"x:{half}"),
        (half, persona, "", ""),
        (f"{half} \u200b", persona, "", ""),
    ):
        answer = told("chat", message, who, chat, model)
        assert "event: error" in answer
        assert json.loads(answer.rpartition("data: ")[2])["error"]
    assert json.dumps("タロウ") in told("save_persona", {"name": f"タロ{half}ウ"}, "")
    assert "Traceback" not in served.log[logged:]


@pytest.mark.parametrize(
    ("path", "sent", "status", "part"),
    [
        ("call/chat", {"data": ["SECRETWORDS"]}, 422, "message, persona_id, chat_id, model"),
        ("run/chat", {"data": ["SECRETWORDS"]}, 422, "message, persona_id, chat_id, model"),
        ("call/v2/chat", {"message": "SECRETWORDS"}, 422, "persona_id"),
        ("call/v2/chat", {"message": "SECRETWORDS", "persona_id": "", "x": 1}, 422, "“x”"),
        ("call/v2/nope", {"message": "SECRETWORDS"}, 404, ""),
        ("call/nope", {"data": ["SECRETWORDS"]}, 404, ""),
        ("run/nope", {"data": ["SECRETWORDS"]}, 404, ""),
        ("run/predict", {"data": ["SECRETWORDS"], "fn_index": 9999}, 404, ""),
        ("queue/join", {"data": ["SECRETWORDS"], "fn_index": 10, "session_hash": "a"}, 422, "4"),
        ("call/chat", {"data": "SECRETWORDS"}, 422, "“data”"),
    ],
)
def test_a_call_that_gradio_cannot_handle_is_not_logged(
    served: RunningApp, path: str, sent: dict[str, Any], status: int, part: str
) -> None:
    answer = httpx.post(f"{served.url}/gradio_api/{path}", json=sent, headers=client_headers("en"))
    assert answer.status_code == status
    error = answer.json()["error"]
    assert (error["code"], part in error["message"]) == ("invalid_request", True)
    assert "SECRETWORDS" not in served.log + answer.text
    assert "Traceback" not in served.log


@pytest.mark.parametrize("full", [DiskFull(), StorageError()])
@pytest.mark.parametrize("language", ["ja", "en"])
async def test_new_visitor_gets_an_error_when_the_database_fails(
    make_lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch, full: StorageError, language: str
) -> None:
    lab = make_lab()

    def refuse(self: Store, secret: str) -> None:
        raise full

    monkeypatch.setattr(Store, "user_for_secret", refuse)
    request: Any = SimpleNamespace(
        session_hash="s", cookies={}, headers={"accept-language": language}
    )
    with pytest.raises(gr.Error) as told:
        await Visitors(lab, PAGE).from_request(request)
    assert told.value.message == said(full.code, language)
    assert told.value.print_exception is False


async def test_unexpected_error_is_logged_with_place_but_not_text(
    make_lab: Callable[..., Lab], caplog: pytest.LogCaptureFixture
) -> None:
    request: Any = SimpleNamespace(session_hash="s", cookies={}, headers={})
    visitor = await Visitors(make_lab(), PAGE).from_request(request)
    key = "-".join(["sk", "0123456789"])
    with pytest.raises(gr.Error) as told, visitor.error_toasts():
        raise RuntimeError(key)
    assert told.value.message == said("system_error", "ja")
    assert key not in caplog.text
    assert Path(__file__).name in caplog.text


def test_an_id_that_is_no_text_is_refused_as_such(client: Client) -> None:
    for wrong in (None, 5, {"a": 1}, "\x00", "テスト"):
        words = refusal(client, "やあ", wrong, api_name="/chat")
        assert words in (said("invalid_input", "ja"), said("not_found", "ja"))


def test_chat_is_refused_but_kept_when_its_persona_is_deleted(
    client: Client,
) -> None:
    persona = client.predict(WHOLE, api_name="/save_persona")["id"]
    chat = client.predict("やあ", persona, api_name="/chat")["chat_id"]
    client.predict(persona, api_name="/delete_persona")
    assert refusal(client, "まだいる？", persona, api_name="/chat") == said("not_found", "ja")
    assert client.predict(chat, api_name="/get_chat")[0]["content"] == "やあ"


# ── isolation ─────────────────────────────────────────────────────────────────────────────


class Mine:
    """What a visitor has that no other may see or touch: a persona, and a chat with it."""

    secret = "ひみつの背景"
    whisper = "ひみつの話"

    def __init__(self, client: Client) -> None:
        self.client = client
        persona = {**WHOLE, "background": self.secret}
        self.persona = client.predict(persona, api_name="/save_persona")["id"]
        self.chat = client.predict(self.whisper, self.persona, api_name="/chat")["chat_id"]

    def state(self) -> Any:
        """All of it, as its owner sees it."""
        return [
            self.client.predict(api_name="/list_personas"),
            self.client.predict(api_name="/list_chats"),
            self.client.predict(self.chat, api_name="/get_chat"),
        ]


def foreign(persona: str, chat: str, own: str) -> dict[str, list[tuple[Any, ...]]]:
    """Calls that name a persona and a chat of another's, at every endpoint that takes an id."""
    return {
        "/save_persona": [({"name": "乗っ取り"}, persona)],
        "/duplicate_persona": [(persona, "写し")],
        "/delete_persona": [(persona,)],
        "/restore_persona": [(persona,)],
        "/undo_persona": [(persona,)],
        "/preview_prompt": [(persona,), (persona, "", "", {"name": "x"})],
        "/try_message": [("やあ", persona), ("やあ", persona, "", {"name": "x"})],
        "/compare": [("やあ", [ECHO], [persona]), ("やあ", [ECHO] * 2, [own, persona])],
        "/chat": [("やあ", persona), ("やあ", own, chat), ("やあ", persona, chat)],
        "/regenerate": [(chat,)],
        "/list_chats": [(persona,)],
        "/get_chat": [(chat,)],
        "/delete_chat": [(chat,)],
        "/restore_chat": [(chat,)],
    }


def outcome(client: Client, arguments: tuple[Any, ...], api_name: str) -> Any:
    try:
        return client.predict(*arguments, api_name=api_name)
    except AppError as refused:
        return str(refused)


def test_every_endpoint_is_tried_with_anothers_ids() -> None:
    assert set(foreign("", "", "")) | WITHOUT_IDS == PUBLIC
    assert not set(foreign("", "", "")) & WITHOUT_IDS


@pytest.mark.parametrize("api_name", slow_after(1, sorted(PUBLIC - WITHOUT_IDS)))
def test_anothers_ids_are_refused_like_missing_ones(connect: Connect, api_name: str) -> None:
    theirs, stranger = Mine(connect()), connect()
    own = demo(stranger)["id"]
    before = theirs.state()
    calls = foreign(theirs.persona, theirs.chat, own)[api_name]
    missing = foreign(NOBODY, NOBODY, own)[api_name]
    for arguments, nothing in zip(calls, missing, strict=True):
        got = outcome(stranger, arguments, api_name)
        assert got == outcome(stranger, nothing, api_name)
        assert got == ([] if api_name == "/list_chats" else said("not_found", "ja"))
    assert theirs.state() == before


def test_what_one_visitor_makes_another_does_not_see(connect: Connect) -> None:
    theirs, stranger = Mine(connect()), connect()
    mine = Mine(stranger)
    seen = json.dumps(mine.state(), ensure_ascii=False)
    assert theirs.persona not in seen
    assert theirs.chat not in seen
    assert mine.persona in seen


def test_a_client_with_the_pages_cookie_has_what_the_page_has(
    served: RunningApp, connect: Connect
) -> None:
    secret = httpx.get(served.url).cookies[COOKIE]
    one, two = (connect(cookie=f"{COOKIE}={secret}") for _ in range(2))
    saved = one.predict(WHOLE, api_name="/save_persona")
    assert saved in two.predict(api_name="/list_personas")


class Page:
    """The page's own events, called as a browser would and with what no browser would send."""

    def __init__(self, http: httpx.Client) -> None:
        self.http = http
        self.http.get("/")
        self.config = self.http.get("/config").json()
        self.components = {c["id"]: c for c in self.config["components"]}

    def events(self) -> list[dict[str, Any]]:
        return [
            d
            for d in self.config["dependencies"]
            if d["backend_fn"] and d["api_visibility"] != "public"
        ]

    def call(self, event: dict[str, Any], values: dict[str, Any], fallback: str) -> str:
        """Everything the server says to ``event`` when its inputs are ``values`` by elem_id.

        Hidden inputs without a name, which hold ids, get ``fallback``.
        """
        data = []
        for id_ in event["inputs"]:
            component = self.components[id_]
            props = component["props"]
            name = props.get("elem_id")
            if name in values:
                data.append(values[name])
            elif component["type"] == "textbox" and props.get("visible") == "hidden":
                data.append(fallback)
            else:
                data.append(props.get("value"))
        session = f"session{event['id']}"
        body = {"data": data, "fn_index": event["id"], "session_hash": session}
        if not event["queue"]:
            return readable(self.http.post("/gradio_api/run/predict", json=body).text)
        self.http.post("/gradio_api/queue/join", json=body).raise_for_status()
        told = []
        with self.http.stream(
            "GET", "/gradio_api/queue/data", params={"session_hash": session}
        ) as stream:
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    told.append(readable(line.removeprefix("data:")))
                    if '"process_completed"' in line or '"close_stream"' in line:
                        break
        return "\n".join(told)


def readable(body: str) -> str:
    """JSON without its escapes, so that words can be looked for in it."""
    return json.dumps(json.loads(body), ensure_ascii=False)


def page_values(persona: str, chat: str) -> dict[str, Any]:
    """Inputs of the page by elem_id, with ids where ids go and a hand's mark on the form."""
    return {
        "editing": persona, "who": persona, "chat-id": chat, "chat-deleted": chat,
        "chat-list": chat, "touched": "yes", "model": ECHO, "field-name": "乗っ取り",
        "field-language": "ja", "field-examples": "", "chat-message": "やあ",
        "compare-message": "やあ", "try-message": "やあ",
    }  # fmt: skip


def told_of(page: Page, persona: str, chat: str) -> dict[str, str]:
    """What each of the page's events says when it is called with these ids."""
    values = page_values(persona, chat)
    return {
        f"{event['id']} {event['api_name']}": page.call(event, values, persona)
        for event in page.events()
    }


@pytest.fixture
def page(served: RunningApp) -> Iterator[Page]:
    with httpx.Client(base_url=served.url, timeout=30) as http:
        yield Page(http)


def test_page_event_neither_shows_nor_changes_data_of_others(page: Page, connect: Connect) -> None:
    theirs = Mine(connect())
    before = theirs.state()
    for event, told in told_of(page, theirs.persona, theirs.chat).items():
        assert theirs.secret not in told, event
        assert theirs.whisper not in told, event
    assert theirs.state() == before


def test_page_event_treats_ids_of_others_like_missing_ids(
    served: RunningApp, connect: Connect
) -> None:
    theirs = Mine(connect())
    told = []
    for persona, chat in ((theirs.persona, theirs.chat), (NOBODY, NOBODY)):
        with httpx.Client(base_url=served.url, timeout=30) as http:
            given = told_of(Page(http), persona, chat)
        # The figures count the visitor's own answers, which are recorded beside the events.
        told.append(
            {
                event: anonymous(text)
                for event, text in given.items()
                if not event.endswith("_on_count")
            }
        )
    assert told[0] == told[1]


def anonymous(told: str) -> str:
    """The last word of it, without ids, new tokens and figures, which differ from call to call."""
    return re.sub(r"pl_[\w-]{43}|[0-9a-f]{32}|\d+(\.\d+)?(e-\d+)?|null", "#", told.splitlines()[-1])


def test_page_events_show_the_visitors_own_data(page: Page, connect: Connect) -> None:
    mine = Mine(connect(cookie=f"{COOKIE}={page.http.cookies[COOKIE]}"))
    told = "".join(told_of(page, mine.persona, mine.chat).values())
    assert mine.secret in told
    assert mine.whisper in told
