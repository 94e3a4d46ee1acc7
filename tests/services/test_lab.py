import asyncio
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support.fakes import ChatUser, reply_with

import persona_lab
from persona_lab import ErrorHandler, Lab, Settings, open_lab
from persona_lab.db.store import Store
from persona_lab.db.tables import Agent
from persona_lab.errors import (
    BadRequest,
    ConfigurationError,
    MessageTooLong,
    ModelUnavailable,
    OptionRefused,
    PersonaLabError,
    ProviderError,
    RateLimited,
    errors_by_code,
)
from persona_lab.pipeline.context import ContextManager
from persona_lab.pipeline.service import LLMService
from persona_lab.prompts.builder import PromptBuilder
from persona_lab.prompts.templates import PromptTemplateEngine
from persona_lab.responses.processor import ResponseProcessor
from persona_lab.settings import ROOT
from persona_lab.translations import Translations, load_texts

FALLBACKS = ROOT / "templates" / "fallbacks.yaml"
FRAMES = {"broken_off"}


# ── the lab ───────────────────────────────────────────────────────────────────────────────


def test_the_public_names_can_all_be_imported() -> None:
    for name in persona_lab.__all__:
        assert getattr(persona_lab, name).__name__ == name
    assert set(persona_lab.__all__) <= set(dir(persona_lab))
    with pytest.raises(AttributeError):
        persona_lab.nothing_of_that_name  # noqa: B018


def test_importing_the_package_loads_neither_an_sdk_nor_the_database() -> None:
    seen = "import sys, persona_lab; print(*sys.modules)"
    lab = "import sys; from persona_lab import open_lab; print(*sys.modules)"
    bare, whole = (
        set(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).split())
        for code in (seen, lab)
    )
    assert not {"sqlmodel", "jinja2", "persona_lab.lab"} & bare
    assert "persona_lab.lab" in whole
    assert not {"openai", "anthropic", "llama_cpp", "gradio"} & whole


def test_a_lab_has_the_parts_that_others_build_on(lab: Lab) -> None:
    parts = {
        "service": LLMService,
        "prompt_builder": PromptBuilder,
        "template_engine": PromptTemplateEngine,
        "context_manager": ContextManager,
        "response_processor": ResponseProcessor,
        "error_handler": ErrorHandler,
        "store": Store,
    }
    assert [name for name, kind in parts.items() if not isinstance(getattr(lab, name), kind)] == []


def test_the_demo_personas_are_there_from_the_start(lab: Lab) -> None:
    agents = lab.store.list_agents(user_id=lab.store.create_user().id)
    assert len(agents) >= 8
    assert {agent.language for agent in agents} == {"ja", "en"}


def test_a_lab_opened_twice_over_one_database_has_each_demo_once(tmp_path: Path) -> None:
    settings = Settings(database_url=f"sqlite:///{tmp_path / 'lab.db'}", llm_provider="mock")
    counts = []
    for _ in range(2):
        with open_lab(settings) as lab:
            counts.append(len(lab.store.list_agents(user_id=lab.store.create_user().id)))
    assert counts[0] == counts[1]


def test_what_was_said_outlives_the_lab(tmp_path: Path) -> None:
    settings = Settings(database_url=f"sqlite:///{tmp_path / 'lab.db'}", llm_provider="mock")
    with open_lab(settings) as lab:
        visitor = ChatUser(lab)
        asyncio.run(lab.service.generate_response(message="やあ", **visitor.ids))
        before = visitor.thread()
    with open_lab(settings) as lab:
        visitor.lab = lab
        assert visitor.thread() == before
        assert len(before) == 2


@pytest.mark.parametrize("ended", [True, False], ids=["closed", "running"])
def test_a_lab_closes_clients_that_were_bound_to_another_loop(ended: bool) -> None:
    lab = open_lab(Settings(database_url="sqlite://", llm_provider="mock"))
    loop, closed_on = asyncio.new_event_loop(), []
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    client = asyncio.run_coroutine_threadsafe(lab.clients.open(), loop).result()

    async def aclose() -> None:
        closed_on.append(asyncio.get_running_loop())
        loop.call_soon(lambda: None)  # as an SDK's connection does: fails on a closed loop

    client.aclose = aclose  # type: ignore[method-assign]
    if ended:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
    lab.close()
    assert len(closed_on) == 1
    if not ended:
        assert closed_on == [loop]
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def test_an_injected_client_answers_for_every_model(make_lab: Callable[..., Lab]) -> None:
    visitor = ChatUser(make_lab(reply_with("はい。")))
    reply = await visitor.lab.service.generate_response(
        message="やあ", **visitor.ids, model="openai:gpt-5-mini"
    )
    assert reply.content == "はい。"


@pytest.mark.parametrize(
    ("file", "text", "named"),
    [
        ("templates/fallbacks.yaml", "timeout: {ja: はい}", "timeout"),
        ("templates/rules.yaml", "rules: [", "rules.yaml"),
        ("data/models.yaml", "models: [{provider: nobody, name: x}]", "model 1"),
        ("data/models.yaml", "models: 5", "models.yaml"),
        ("data/models.yaml", "models:", "models.yaml"),
        ("data/personas.yaml", "personas: [{id: x}]", "personas"),
    ],
)
def test_a_broken_file_stops_the_start_with_one_line_that_names_it(
    broken_copy: Callable[[str, str], Path], file: str, text: str, named: str
) -> None:
    folder = broken_copy(file, text)
    with pytest.raises(ConfigurationError) as stopped:
        open_lab(Settings(database_url="sqlite://", **{f"{folder.name}_dir": folder}))
    assert named in str(stopped.value)
    assert "\n" not in str(stopped.value)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("LLM_PROVIDER", "nobody"),
        ("LOCAL_THREADS", "99999999999"),
        ("MAX_CONTEXT_LENGTH", "9" * 30),
        ("MAX_MESSAGE_LENGTH", "0"),
        ("DATABASE_URL", "sqlite:///a%00b"),
        ("DATABASE_URL", "mysql://x"),
    ],
)
def test_a_wrong_setting_stops_the_start_with_one_line(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=f"^{variable}: ") as stopped:
        open_lab()
    assert "\n" not in str(stopped.value)


def test_a_damaged_model_is_named_by_its_path(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.gguf", tmp_path / "bad.gguf"
    for file in (good, bad):
        file.write_bytes(b"GGUF and then nothing")
    with pytest.raises(ConfigurationError, match=re.escape(str(good))) as stopped:
        open_lab(Settings(database_url="sqlite://", local_model=f"{good},{bad}"))
    assert "\n" not in str(stopped.value)


# ── words ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def words(tmp_path: Path) -> Callable[[str], Translations]:
    def read(text: str) -> Translations:
        (tmp_path / "ui.yaml").write_text(text, "utf-8")
        return Translations(tmp_path / "ui.yaml")

    return read


def test_words_are_found_by_their_path_and_language(words: Callable[[str], Translations]) -> None:
    read = words("chat:\n  send: {ja: 送る, en: Send}\n  n: {ja: '{n:,}件', en: '{n:,} found'}\n")
    assert read("chat.send", "ja") == "送る"
    assert read("chat.n", "en", n=1234) == "1,234 found"
    assert list(read) == ["chat.send", "chat.n"]
    with pytest.raises(KeyError):
        read("chat.none", "ja")
    with pytest.raises(KeyError):
        read("chat.n", "ja")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: {ja: はい}", "ui.yaml: a: en is missing"),
        ("g: {a: {ja: はい, en: ''}}", "ui.yaml: g.a: en must be text"),
        ("a: {ja: はい, en: Yes}", "ui.yaml: a: en must be text (put quotes around it)"),
        ("a: {ja: はい, en: Aye, fr: Oui}", "ui.yaml: a: fr stands among the languages"),
        ("a: {ja: '{x}', en: '{y}'}", "ui.yaml: a: {x} stands in one language and not in"),
        ("a: {ja: '{x.y}', en: '{x.y}'}", "ui.yaml: a: ja: {x.y} is not the name of a blank"),
        ("a: {ja: '{x', en: x}", "ui.yaml: a: ja: expected '}' before end of string"),
        ("a: はい", "ui.yaml: a: must hold ja and en, or further keys"),
        ("a: {ja: a, en: a}\na: {ja: b, en: b}", "ui.yaml: a: stands here twice"),
        ("no: {ja: a, en: a}", "ui.yaml: False: a key must be a word"),
        ("a: [", "ui.yaml: line "),
        ("", "ui.yaml: top level: must be a mapping"),
    ],
)
def test_a_wrong_file_of_words_is_named_with_its_key(
    words: Callable[[str], Translations], text: str, complaint: str
) -> None:
    with pytest.raises(ConfigurationError) as stopped:
        words(text)
    assert str(stopped.value).startswith(complaint)


@pytest.mark.parametrize("file", ["fallbacks.yaml", "openai_api.yaml", "summary.yaml", "ui.yaml"])
def test_a_mistyped_key_of_texts_is_named(tmp_path: Path, file: str) -> None:
    text = (ROOT / "templates" / file).read_text("utf-8")
    key = next(iter(Translations(ROOT / "templates" / file))).partition(".")[0]
    (tmp_path / file).write_text(re.sub(f"(?m)^{key}:", f"{key}x:", text, count=1), "utf-8")
    with pytest.raises(ConfigurationError, match=rf"^{file}: {key}\S*: is missing \({key}x"):
        load_texts(tmp_path, file)


def test_an_unknown_placeholder_of_a_text_is_named(tmp_path: Path) -> None:
    text = (ROOT / "templates" / "summary.yaml").read_text("utf-8")
    (tmp_path / "summary.yaml").write_text(text.replace("{summary}", "{sumary}"), "utf-8")
    with pytest.raises(ConfigurationError, match=r"^summary.yaml: former: \{sumary\} is an"):
        load_texts(tmp_path, "summary.yaml")


def test_a_missing_file_of_words_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"^none\.yaml: "):
        Translations(tmp_path / "none.yaml")


# ── the words for errors ──────────────────────────────────────────────────────────────────


def handler() -> ErrorHandler:
    return ErrorHandler(Translations(FALLBACKS))


@pytest.mark.parametrize("code", sorted(errors_by_code()))
def test_error_text_is_what_happened_and_one_action(code: str) -> None:
    read = Translations(FALLBACKS)
    details = dict.fromkeys(read.placeholders(code), 1)
    ja, en = read(code, "ja", **details), read(code, "en", **details)
    assert ja.endswith("。")
    assert en.endswith(".")
    assert ja.count("。") <= 2
    assert len(ja) <= 80
    assert len(en) <= 130
    assert "残って" not in ja
    assert "kept" not in en


@pytest.mark.parametrize("error", [BadRequest(), OptionRefused(option="temperature")])
def test_refused_request_advises_only_what_can_be_done(error: ProviderError) -> None:
    ja, en = (handler().error_text(error, language) for language in ("ja", "en"))
    assert "初期値" not in ja
    assert "Reset" not in en
    for text in (ja, en):
        assert ("temperature" in text) == isinstance(error, OptionRefused)


def test_an_error_without_words_stops_the_start(words: Callable[[str], Translations]) -> None:
    with pytest.raises(ConfigurationError, match="has no words"):
        ErrorHandler(words("timeout: {ja: a, en: a}"))


async def test_fallback_is_a_notice_in_the_language_of_the_persona() -> None:
    read = Translations(FALLBACKS)
    japanese, english = Agent(name="さくら"), Agent(name="Emma", language="en")
    for agent, language in ((japanese, "ja"), (english, "en")):
        reply = await handler().handle(RateLimited(), "x", agent)
        assert reply.content == reply.metadata["error"] == read("rate_limit", language)
    both = await handler().handle(RateLimited(), "x", japanese, language="en")
    assert both.content == read("rate_limit", "en")


async def test_without_a_persona_the_plain_words_stand_alone() -> None:
    reply = await handler().handle(RateLimited(), "x", "some-id")
    assert reply.content == reply.metadata["error"]
    assert reply.metadata["error_type"] == "rate_limit"
    assert reply.metadata["fallback"] is True


def test_the_details_of_an_error_fill_its_words_and_unknown_ones_leave_a_dash() -> None:
    said = handler().error_text(MessageTooLong(length=100_000, limit=2000), "en")
    assert "100,000 / 2,000" in said
    assert "–" in handler().error_text(MessageTooLong(), "en")


def test_why_a_local_model_is_unavailable_is_said_in_the_readers_language(
    words: Callable[[str], Translations],
) -> None:
    frame = 'model_unavailable: {ja: "{model}（{reason}）", en: "{model} ({reason})"}\n'
    plain = "".join(f"{code}: {{ja: あ, en: a}}\n" for code in sorted({*errors_by_code(), *FRAMES}))
    plain = plain.replace("model_unavailable: {ja: あ, en: a}\n", frame)
    why = 'reasons:\n  no_file: {ja: "{path}がない", en: "no {path}"}\n'
    error = ModelUnavailable(model="m", why="no_file", reason="there is no file", path="x")
    without, with_words = ErrorHandler(words(plain)), ErrorHandler(words(plain + why))
    assert without.error_text(error, "ja") == "m（there is no file）"
    assert with_words.error_text(error, "ja") == "m（xがない）"
    assert with_words.error_text(error, "en") == "m (no x)"


async def test_the_log_tells_the_error_apart_and_holds_neither_message_nor_key(
    caplog: pytest.LogCaptureFixture,
) -> None:
    error = ProviderError("sk-secret", provider="openai", model="gpt", status=500)
    await handler().handle(error, "とても秘密", Agent(name="さくら"))
    try:
        raise ValueError("sk-secret")
    except ValueError as unknown:
        await handler().handle(unknown, "とても秘密", "some-id")
    first, second = caplog.records
    assert (first.code, first.provider, first.status) == ("api_error", "openai", 500)
    assert (second.error_class, second.agent_id) == ("ValueError", "some-id")
    assert "test_lab.py" in second.trace[0]
    for record in caplog.records:
        everything = f"{record.getMessage()} {vars(record)}"
        assert "sk-secret" not in everything
        assert "とても秘密" not in everything


def test_the_root_of_the_tree_has_words() -> None:
    assert handler().error_text(PersonaLabError(), "ja")
