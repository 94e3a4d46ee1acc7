"""The page's functions: the form, saving, texts as HTML, batches of events, and visitors."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from datetime import date
from html import escape, unescape
from html.parser import HTMLParser
from typing import Any

import gradio as gr
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.app_process import GEMMA, SMOLLM
from support.fakes import reply_with
from support.texts import FALLBACKS

from persona_lab.db.persona_rows import unsaved_agent
from persona_lab.db.tables import Agent, Message
from persona_lab.errors import EmptyMessage, NotFound, RateLimited, UnknownModel
from persona_lab.lab import Lab
from persona_lab.personas.persona import persona_of
from persona_lab.server import COOKIE, LANGUAGE_COOKIE, visitor_language
from persona_lab.settings import ROOT
from persona_lab.translations import Translations
from persona_lab.types import Event, Prompt, PromptMessage, Span, Trace
from persona_lab.ui import streaming as stream
from persona_lab.ui.comparison_columns import CURRENT, first_comparison
from persona_lab.ui.persona_form import Form, format_examples, parse_examples
from persona_lab.ui.render.chat import build_thread
from persona_lab.ui.render.persona import head_html, hints_html
from persona_lab.ui.render.text import (
    answer_figures_html,
    format_cost,
    meter_html,
    price_with_date,
    prompt_html,
)
from persona_lab.ui.session import Visitor, Visitors
from persona_lab.ui.streaming import batch_events, waiting_text
from persona_lab.ui.tabs.persona import EditorActions, try_message

WORDS = Translations(ROOT / "templates" / "ui.yaml")
EMPTY: dict[str, Any] = persona_of(Agent(name="ミナ"))
TRICK = "<img src=x onerror=alert(1)>\"'&"


def request(session: str = "one", language: str = "ja", **cookies: str) -> gr.Request:
    """A request as Gradio passes it to a handler."""
    return gr.Request(session_hash=session, cookies=cookies, headers={"accept-language": language})


@pytest.fixture
def visitors(lab: Lab) -> Visitors:
    return Visitors(lab, WORDS)


@pytest.fixture
async def visitor(visitors: Visitors) -> Visitor:
    return await visitors.from_request(request())


@pytest.fixture
def actions(lab: Lab, visitors: Visitors) -> EditorActions:
    return EditorActions(lab, visitors)


class Reader(HTMLParser):
    """Reads the text and the tags of HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text = ""
        self.tags: set[str] = set()
        self.feed(html)

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)


# ── example exchanges as text ─────────────────────────────────────────────────────────────

lines = st.text(alphabet=">＞\\ \n　aあ", max_size=12).map(str.strip)
exchanges = st.lists(
    st.fixed_dictionaries({"user": lines, "ai": lines}).filter(lambda e: e["user"] or e["ai"]),
    max_size=4,
)


@given(exchanges)
def test_examples_round_trip_as_text(examples: list[dict[str, str]]) -> None:
    assert parse_examples(format_examples(examples)) == examples


@pytest.mark.parametrize(
    ("text", "examples"),
    [
        ("", []),
        ("\n \n", []),
        ("> やあ\nおう", [{"user": "やあ", "ai": "おう"}]),
        ("＞やあ\nおう", [{"user": "やあ", "ai": "おう"}]),
        ("> 一\n> 二\n三\n\n四", [{"user": "一\n二", "ai": "三\n\n四"}]),
        ("> やあ\nおう\n> またね\nまた", [{"user": "やあ", "ai": "おう"},
                                          {"user": "またね", "ai": "また"}]),
        ("> まだ途中", [{"user": "まだ途中", "ai": ""}]),
        ("返事だけ", [{"user": "", "ai": "返事だけ"}]),
    ],
)  # fmt: skip
def test_parse_examples_reads_handwritten_text(text: str, examples: list[dict[str, str]]) -> None:
    assert parse_examples(text) == examples


# ── the form ──────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def form() -> Form:
    return Form({name: gr.Textbox() for name in EMPTY})


def test_form_reads_what_it_shows(form: Form) -> None:
    persona = {
        **EMPTY, "background": "港町で\n育った。", "roles": ["教師"], "catchphrases": ["なるほど"],
        "examples": [{"user": "やあ", "ai": "> おう\nどうした"}],
    }  # fmt: skip
    assert form.read(form.show(persona)) == persona


def test_form_reads_empty_persona_when_fields_are_empty(form: Form) -> None:
    nothing = dict.fromkeys(form.fields.values())
    read = form.read({**nothing, form.fields["examples"]: ""})
    assert read["roles"] == []
    assert read["background"] == ""
    assert read["examples"] == []


def test_unsaved_agent_equals_saved_one(lab: Lab) -> None:
    persona = {**EMPTY, "roles": ["教師", "相談役"], "tones": ["敬語"], "greeting": "やあ"}
    kept = lab.store.create_agent(user_id=lab.store.create_user().id, **persona)
    assert persona_of(unsaved_agent(persona)) == persona_of(kept)


# ── saving ────────────────────────────────────────────────────────────────────────────────


def own(lab: Lab, visitor: Visitor, **fields: Any) -> Agent:
    persona = {**EMPTY, **fields}
    return lab.store.create_agent(user_id=visitor.user_id, **persona)


async def test_save_writes_nothing_when_form_is_unchanged(
    lab: Lab, actions: EditorActions, visitor: Visitor
) -> None:
    before = {a.id: a for a in lab.store.list_agents(user_id=visitor.user_id)}
    for agent in before.values():
        actions.record_shown(agent, visitor)
        kept, changed = await actions.save(agent.id, persona_of(agent), visitor)
        assert (kept.id, changed) == (agent.id, False)
    after = lab.store.list_agents(user_id=visitor.user_id)
    assert {a.id: (persona_of(a), a.updated_at) for a in after} == {
        a.id: (persona_of(a), a.updated_at) for a in before.values()
    }


async def test_save_writes_only_changed_fields(
    lab: Lab, actions: EditorActions, visitors: Visitors
) -> None:
    one, other = (
        await visitors.from_request(request("tab1")),
        await visitors.from_request(request("tab2")),
    )
    assert one.user_id != other.user_id
    cookie = {COOKIE: "s" * 43}
    one, other = [await visitors.from_request(request(tab, **cookie)) for tab in ("tab1", "tab2")]
    assert one.user_id == other.user_id
    agent = own(lab, one)
    for tab in (one, other):
        actions.record_shown(agent, tab)
    await actions.save(agent.id, {**EMPTY, "greeting": "やあ"}, one)
    kept, changed = await actions.save(agent.id, {**EMPTY, "gender": "女性"}, other)
    assert changed
    assert persona_of(kept) == {**EMPTY, "greeting": "やあ", "gender": "女性"}


async def test_page_state_is_separate_when_session_is_forged(
    lab: Lab, actions: EditorActions, visitors: Visitors
) -> None:
    mine = await visitors.from_request(request("tab", **{COOKIE: "s" * 43}))
    other = await visitors.from_request(request("tab", **{COOKIE: "t" * 43}))
    agent = own(lab, mine)
    actions.record_shown(agent, mine)
    assert (actions.open_persona_id(mine), actions.open_persona_id(other)) == (agent.id, None)
    assert actions.filled_fields(other) is None


async def test_save_copies_demo_once(lab: Lab, actions: EditorActions, visitor: Visitor) -> None:
    demo = lab.store.list_agents(user_id=visitor.user_id)[0]
    actions.record_shown(demo, visitor)
    first, _ = await actions.save(demo.id, {**persona_of(demo), "name": "あ"}, visitor)
    second, _ = await actions.save(first.id, {**persona_of(demo), "name": "あい"}, visitor)
    assert first.id == second.id != demo.id
    agents = lab.store.list_agents(user_id=visitor.user_id)
    assert [a.name for a in agents if a.owner_id] == ["あい"]
    assert persona_of(lab.store.get_agent(demo.id, user_id=visitor.user_id)) == persona_of(demo)


async def test_save_raises_when_persona_is_anothers(
    lab: Lab, actions: EditorActions, visitors: Visitors
) -> None:
    mine, theirs = (
        await visitors.from_request(request("one")),
        await visitors.from_request(request("two")),
    )
    agent = own(lab, theirs)
    with pytest.raises(NotFound):
        await actions.save(agent.id, {**EMPTY, "name": "乗っ取り"}, mine)
    assert lab.store.get_agent(agent.id, user_id=theirs.user_id).name == EMPTY["name"]


# ── words of the editor ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("fields", "hint"),
    [
        ({"tones": ["敬語", "カジュアル"]}, "hint.polite_and_casual"),
        ({"tones": ["polite"], "personalities": ["Casual"]}, "hint.polite_and_casual"),
        ({"forbidden_words": ["だめ"], "catchphrases": ["だめ"]}, "hint.forbidden_catchphrase"),
        (
            {"forbidden_words": ["だめ"], "examples": [{"user": "?", "ai": "だめだよ"}]},
            "hint.forbidden_in_example",
        ),
        ({"examples": [{"user": "?", "ai": ""}]}, "hint.half_example"),
    ],
)
async def test_hints_name_contradictions(
    visitor: Visitor, fields: dict[str, Any], hint: str
) -> None:
    details = dict.fromkeys(
        WORDS.placeholders(hint), "?" if hint == "hint.half_example" else "だめ"
    )
    assert visitor.translate(hint, **details) in hints_html({**EMPTY, **fields}, visitor)
    assert hints_html(EMPTY, visitor) == ""


async def test_persona_html_escapes_fields(
    actions: EditorActions, visitor: Visitor, lab: Lab
) -> None:
    persona = {
        **EMPTY, "name": TRICK, "background": TRICK, "roles": [TRICK], "forbidden_words": [TRICK],
        "catchphrases": [TRICK], "examples": [{"user": TRICK, "ai": TRICK}],
    }  # fmt: skip
    agent = unsaved_agent(persona)
    panel = await actions.prompt_panel(agent, "", TRICK, visitor)
    for html in (head_html(agent, visitor), hints_html(persona, visitor), panel):
        assert "img" not in Reader(html).tags
        assert TRICK in Reader(html).text


async def test_prompt_panel_shows_prompt_and_trace(
    actions: EditorActions, visitor: Visitor, lab: Lab
) -> None:
    agent = unsaved_agent({**EMPTY, "background": "<港町>で\n育った。", "roles": ["教師"]})
    panel = await actions.prompt_panel(agent, "", "やあ", visitor)
    prompt = await lab.service.preview(agent, "やあ")
    pre = re.search(r'<pre class="prompt">(.*?)</pre>', panel, re.DOTALL)
    assert pre is not None
    assert Reader(pre[1]).text == prompt.system
    assert 'data-field="background"' in panel
    assert f"<code>{prompt.trace.template}</code>" in panel
    assert visitor.translate("figures.free") in panel


async def test_prompt_panel_shows_error_when_preview_fails(
    actions: EditorActions, visitor: Visitor
) -> None:
    panel = await actions.prompt_panel(unsaved_agent(EMPTY), "nobody:x", "", visitor)
    assert Reader(panel).text == visitor.error_text(UnknownModel(model="nobody:x"))


async def test_try_message_streams_and_ends_with_figures(
    make_lab: Callable[..., Lab],
) -> None:
    lab = make_lab(reply_with("こん", "にちは", "。"))
    visitors = Visitors(lab, WORDS)
    visitor = await visitors.from_request(request())
    steps = try_message(EditorActions(lab, visitors), EMPTY, "やあ", "", visitor)
    shown = [step async for step in steps]
    assert "waiting" in shown[0]
    assert "<p>こんにちは。</p>" in shown[-1]
    assert "figures" in shown[-1]


async def test_try_message_counts_for_open_persona(
    lab: Lab, actions: EditorActions, visitor: Visitor
) -> None:
    agent = lab.store.create_agent(user_id=visitor.user_id, name="ミナ")
    actions.record_shown(agent, visitor)
    changed = {**persona_of(agent), "background": "まだ保存していない"}
    async for _ in try_message(actions, changed, "やあ", "", visitor):
        pass
    assert [
        turn.agent_name for turn in lab.store.list_generation_rows(user_id=visitor.user_id)
    ] == ["ミナ"]


async def test_try_message_shows_fallback_when_model_fails(
    make_lab: Callable[..., Lab],
) -> None:
    lab = make_lab(reply_with("こん", error=RateLimited()))
    visitors = Visitors(lab, WORDS)
    visitor = await visitors.from_request(request(language="en"))
    steps = try_message(EditorActions(lab, visitors), EMPTY, "やあ", "", visitor)
    shown = [step async for step in steps][-1]
    assert 'class="answer failed"' in shown
    assert FALLBACKS("rate_limit", "en") in unescape(shown)


@pytest.mark.parametrize(
    ("tokens", "state"),
    [(100, "calm"), (3071, "calm"), (3072, "near"), (4096, "near"), (4097, "over")],
)
def test_meter_turns_amber_and_red_at_the_limits(tokens: int, state: str) -> None:
    assert f'class="meter {state}"' in meter_html(tokens, 4096, "x")


async def test_prompt_panel_counts_against_the_context(
    lab: Lab, actions: EditorActions, visitor: Visitor
) -> None:
    agent = Agent(**{**EMPTY, "personalities": [], "roles": [], "tones": []})
    context = lab.clients.info("mock:echo").context
    assert f" / {context:,}" in await actions.prompt_panel(agent, "mock:echo", "", visitor)


# ── text for the page ─────────────────────────────────────────────────────────────────────


async def test_prompt_html_links_spans_to_fields(visitor: Visitor) -> None:
    prompt = Prompt(
        "名は<ミナ>。明るい。",
        turns=(PromptMessage("user", "<やあ>"), PromptMessage("assistant", "はい")),
        trace=Trace("default", 2, "理由<b>", (Span(2, 6, "name"), Span(7, 10, "personalities"))),
    )
    html = prompt_html(prompt, visitor, tokens=1234, about=True, price="無料")
    assert 'data-field="name" role="link" tabindex="-1">&lt;ミナ&gt;</span>。<span' in html
    assert visitor.translate("preview.tokens_about", count="1,234") in html
    assert {"b"} == Reader(html).tags & {"b", "ミナ", "やあ"}, "only the turns' heads are bold"
    read = Reader(html).text
    assert "名は<ミナ>。明るい。" in read
    assert "<やあ>" in read
    assert visitor.translate("preview.rule", number=2, reason="理由<b>") in read


@pytest.mark.parametrize(
    ("cost", "words"),
    [(0.0, "無料"), (None, "料金不明"), (0.0123, "$0.0123"), (0.00001234, "$0.000012")],
)
async def test_format_cost_uses_dollars_or_words(
    visitor: Visitor, cost: float | None, words: str
) -> None:
    assert format_cost(cost, visitor) == words


async def test_answer_figures_are_empty_when_not_measured(visitor: Visitor) -> None:
    assert answer_figures_html({}, visitor) == ""
    line = answer_figures_html({"total_ms": 1234.0, "first_token_ms": None, "cost": 0.0}, visitor)
    assert "1.23" in line
    assert "–" in line


async def test_answer_figures_name_cache_hit_without_tokens(visitor: Visitor) -> None:
    told = {"total_ms": 5.0, "first_token_ms": 1.0, "cost": 0.0}
    line = answer_figures_html({**told, "cache_hit": True}, visitor)
    assert visitor.translate("figures.cache_hit") in line
    none = visitor.translate("figures.tokens", prompt=0, completion=0)
    assert none in answer_figures_html(told, visitor)
    assert none not in line


async def test_answer_figures_note_cut_answer(visitor: Visitor) -> None:
    cut, whole = (
        answer_figures_html(
            {"total_ms": 5.0, "first_token_ms": 1.0, "finish_reason": reason}, visitor
        )
        for reason in ("length", "stop")
    )
    assert visitor.translate("figures.cut") in cut
    assert visitor.translate("figures.cut") not in whole


async def test_answer_figures_show_an_unknown_finish_reason(visitor: Visitor) -> None:
    figures = {"total_ms": 5.0, "first_token_ms": 1.0, "finish_reason": "<b>moon"}
    shown = answer_figures_html(figures, visitor)
    assert escape(visitor.translate("figures.unknown_end", reason="<b>moon")) in shown


async def test_thread_notes_unanswered_message(visitor: Visitor) -> None:
    said = [("user", "一"), ("user", "二"), ("ai", "はい"), ("user", "三")]
    rows = [
        Message(chat_id="c", position=n, sender=who, content=text)
        for n, (who, text) in enumerate(said)
    ]
    none = f"<em>{visitor.translate('chat.status.unanswered')}</em>"
    thread = [turn["content"] for turn in build_thread(rows, Agent(name="ミナ"), visitor)]
    assert [text if isinstance(text, str) else text[0] for text in thread] == [
        "<p>一</p>", none, "<p>二</p>", "<p>はい</p>", "<p>三</p>", none,
    ]  # fmt: skip


@pytest.mark.parametrize("sender", ["user", "ai"])
async def test_thread_shows_every_character_of_both_roles(visitor: Visitor, sender: str) -> None:
    text = "5~7時、2*3=6、4*5=20\n[状態]: 空腹\n(*^_^*) __init__.py $$x$$"
    rows = [Message(chat_id="c", position=0, sender=sender, content=text)]
    content = build_thread(rows, Agent(name="ミナ"), visitor)[0]["content"]
    html = content if isinstance(content, str) else content[0]
    assert html == f"<p>{text}</p>".replace("\n", "<br>")


@pytest.mark.parametrize(
    ("model", "words"),
    [("mock:echo", "answer"), (GEMMA, "loading"), ("nobody:x", "answer"), ("local:x", "answer")],
)
async def test_waiting_text_names_known_reason(
    lab: Lab, visitor: Visitor, model: str, words: str
) -> None:
    how_far = {"percent": 0} if words == "loading" else {}
    assert await waiting_text(model, visitor) == visitor.translate(f"waiting.{words}", **how_far)


@pytest.mark.parametrize(
    ("cost", "day", "words"),
    [
        (0.0012, date(2026, 11, 23), "$0.0012（2026-11-23の料金）"),
        (0.0012, None, "$0.0012"),
        (0.0, date(2026, 11, 23), "無料"),
        (None, date(2026, 11, 23), "料金不明"),
    ],
)
async def test_price_has_date_of_price_list(
    visitor: Visitor, cost: float | None, day: date | None, words: str
) -> None:
    assert price_with_date(cost, day, visitor) == words


async def test_answer_figures_omit_tokens_when_no_model_answered(visitor: Visitor) -> None:
    failed = {"total_ms": 20.0, "first_token_ms": None, "fallback": True, "cost": 0.0}
    line = answer_figures_html(failed, visitor)
    assert visitor.translate("figures.total", seconds="0.02") in line
    assert visitor.translate("figures.free") not in line
    half = answer_figures_html({**failed, "first_token_ms": 9.0}, visitor)
    assert visitor.translate("figures.free") in half


async def test_prompt_html_explains_transcript(visitor: Visitor) -> None:
    for kind, told in (("transcript", True), ("chat", False)):
        prompt = Prompt("ミナ：", kind=kind, trace=Trace("transcript", 0, "台本", ()))  # type: ignore[arg-type]
        html = prompt_html(prompt, visitor, tokens=1, about=False, price="無料")
        assert (visitor.translate("preview.transcript_note") in html) == told


# ── the first comparison ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("default", "language", "models"),
    [
        ("local", "ja", [GEMMA, GEMMA]),
        ("local", "en", [GEMMA, SMOLLM]),
        ("mock", "ja", ["mock:echo", GEMMA]),
    ],
)
async def test_first_comparison_picks_models_by_language(
    make_lab: Callable[..., Lab], default: str, language: str, models: list[str]
) -> None:
    lab = make_lab(llm_provider=default)
    visitor = await Visitors(lab, WORDS).from_request(request(language=language))
    personas = {a.id: a for a in lab.store.list_agents(user_id=visitor.user_id)}
    opened = next(a.id for a in personas.values() if a.language == language)
    specs, who = await first_comparison(lab, opened, visitor)
    assert specs[:2] == models
    assert who[0] == CURRENT
    if models[0] == models[1]:
        assert who[1] != opened
        assert personas[who[1]].language == language
    else:
        assert who[1] == CURRENT


# ── the pace of a page ────────────────────────────────────────────────────────────────────


async def pieces(*texts: str, closed: list[bool] | None = None) -> AsyncGenerator[Event, None]:
    try:
        yield Event("start")
        for text in texts:
            yield Event("delta", text)
        yield Event("done", "".join(texts))
    finally:
        if closed is not None:
            closed.append(True)


async def test_batch_events_groups_quick_events_in_order() -> None:
    batches = [batch async for batch in batch_events(pieces(*"あいうえお"))]
    events = [event for batch in batches for event in batch]
    assert "".join(e.content for e in events if e.type == "delta") == "あいうえお"
    assert (events[0].type, events[-1].type) == ("start", "done")
    assert len(batches) < len(events)


async def test_batch_events_yields_heartbeat_when_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "HEARTBEAT_S", 0.01)
    speak = asyncio.Event()

    async def silent() -> AsyncGenerator[Event, None]:
        await speak.wait()
        yield Event("done", "やあ")

    batches = batch_events(silent())
    assert await anext(batches) == []
    speak.set()
    rest = [event async for batch in batches for event in batch]
    assert [event.content for event in rest] == ["やあ"]


async def test_batch_events_closes_source_when_closed() -> None:
    closed: list[bool] = []
    batches = batch_events(pieces(*"あ" * 100, closed=closed))
    assert await anext(batches)
    await batches.aclose()
    assert closed == [True]


async def test_batch_events_raises_error_after_earlier_events() -> None:
    async def broken() -> AsyncIterator[Event]:
        yield Event("delta", "ここまで")
        raise RateLimited

    got: list[Event] = []
    with pytest.raises(RateLimited):
        async for batch in batch_events(broken()):  # type: ignore[arg-type]
            got += batch
    assert [event.content for event in got] == ["ここまで"]


# ── who is looking ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("accepted", "cookie", "language"),
    [
        ("ja", "", "ja"),
        ("ja-JP,ja;q=0.9,en;q=0.8", "", "ja"),
        ("en-US,en;q=0.9,ja;q=0.8", "", "en"),
        ("fr", "", "en"),
        ("", "", "en"),
        ("en", "ja", "ja"),
        ("ja", "en", "en"),
        ("ja", "fr", "ja"),
        ("JA", "", "ja"),
        ("ja; q=0.9, en; q=0.5", "", "ja"),
        ("fr;q=0.9, ja;q=0.8, en;q=0.1", "", "ja"),
        ("en;q=0.1, ja", "", "ja"),
        ("ja;q=0, en;q=0.1", "", "en"),
        ("ja;q=x, en", "", "en"),
    ],
)
def test_language_cookie_overrides_browser_language(
    accepted: str, cookie: str, language: str
) -> None:
    cookies = {LANGUAGE_COOKIE: cookie} if cookie else {}
    assert visitor_language(cookies, {"accept-language": accepted}) == language


async def test_visitor_is_identified_by_cookie_else_session(
    visitors: Visitors,
) -> None:
    cookie = {COOKIE: "s" * 43}
    one, again = [await visitors.from_request(request(s, **cookie)) for s in ("a", "b")]
    assert one.user_id == again.user_id
    bare, other = [await visitors.from_request(request(s)) for s in ("a", "b")]
    assert len({one.user_id, bare.user_id, other.user_id}) == 3
    assert (await visitors.from_request(request("a"))).user_id == bare.user_id


async def test_visitor_ignores_forged_cookie(visitors: Visitors) -> None:
    bare = await visitors.from_request(request("a"))
    forged = await visitors.from_request(request("a", **{COOKIE: f"session:{'a' * 35}"}))
    assert forged.user_id == bare.user_id
    cannot_be_another = await visitors.from_request(request("b", **{COOKIE: "session:a"}))
    assert cannot_be_another.user_id != bare.user_id


async def test_error_toast_is_translated_without_internals(
    visitors: Visitors, caplog: pytest.LogCaptureFixture
) -> None:
    japanese, english = [
        await visitors.from_request(request("a", tongue)) for tongue in ("ja", "en")
    ]
    for visitor in (japanese, english):
        with pytest.raises(gr.Error) as told, visitor.error_toasts():
            raise EmptyMessage
        assert told.value.message == FALLBACKS("empty_message", visitor.language)
    assert not caplog.records
    with pytest.raises(gr.Error) as told, japanese.error_toasts():
        raise ValueError("sk-secret")
    assert "sk-secret" not in str(told.value)
    assert caplog.records


async def test_error_toast_is_absent_when_cancelled(visitor: Visitor) -> None:
    with pytest.raises(asyncio.CancelledError), visitor.error_toasts():
        raise asyncio.CancelledError
