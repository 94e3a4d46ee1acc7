"""Which template speaks, what it says, and where in it each field of the persona stands.

After a change of words: ``UPDATE_GOLDEN=1 pytest tests/unit/test_prompts.py``. Then read the diff
of ``tests/golden``.
"""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from persona_lab.clients.catalog import ModelInfo
from persona_lab.db.tables import Agent, Personality, Role, Tone
from persona_lab.errors import TemplateError
from persona_lab.personas.demos import load_demos
from persona_lab.personas.persona import TRAITS
from persona_lab.prompts.builder import PromptBuilder
from persona_lab.prompts.templates import PromptTemplateEngine
from persona_lab.prompts.trace import FIELDS, Traced, extract_spans
from persona_lab.settings import ROOT
from persona_lab.types import Prompt, PromptMessage, Span

TEMPLATES = ROOT / "templates"
GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = ("default", "customer_support", "teacher", "engineer")

CHAT = ModelInfo(provider="mock", name="chat")
WITH_TURNS = ModelInfo(provider="mock", name="small", examples="turns")
BASE = ModelInfo(provider="local", name="base", prompt="transcript")

ROLE = {
    "ja": dict(zip(NAMES, ("", "カスタマーサポート", "教師", "エンジニア"), strict=True)),
    "en": dict(zip(NAMES, ("", "Customer Support", "Teacher", "Engineer"), strict=True)),
}
CASUAL = {"ja": ("フレンドリー", "カジュアル"), "en": ("Friendly", "Casual")}

VOICE: dict[str, dict[str, Any]] = {
    "ja": {
        "name": "さくら",
        "description": "海辺の町の先生",
        "gender": "女性",
        "background": "潮だまりで育った。\n\n今も毎朝、海を見に行く。",
        "first_person": "わたし",
        "second_person": "きみ",
        "sentence_endings": ["だよ", "かな"],
        "catchphrases": ["いい質問！"],
        "forbidden_words": ["常識", "無理"],
        "examples": [
            {"user": "虹はなぜ見えるの？", "ai": "雨粒が光を分けるからだよ。"},
            {"user": "疲れた。", "ai": "お茶にしようか。"},
        ],
        "greeting": "やあ、待ってたよ。",
    },
    "en": {
        "name": "Rowan",
        "description": "a neighbour by the sea",
        "gender": "female",
        "background": "Grew up among tide pools.\n\nStill looks at the sea each morning.",
        "first_person": "I",
        "second_person": "friend",
        "sentence_endings": ["you see", "I reckon"],
        "catchphrases": ["Good question!"],
        "forbidden_words": ["obviously", "impossible"],
        "examples": [
            {"user": "Why is there a rainbow?", "ai": "The drops split the light, you see."},
            {"user": "I'm tired.", "ai": "Tea first, I reckon."},
        ],
        "greeting": "There you are.",
    },
}
HISTORY = [
    {"sender": "user", "content": "one", "timestamp": 1},
    {"sender": "ai", "content": "two"},
]


def persona(
    language: str = "ja",
    personalities: tuple[str, ...] = (),
    roles: tuple[str, ...] = (),
    tones: tuple[str, ...] = (),
    **fields: Any,
) -> Agent:
    return Agent(
        **{"name": "", "language": language} | fields,
        personalities=[Personality(name=name) for name in personalities],
        roles=[Role(name=name) for name in roles],
        tones=[Tone(name=name) for name in tones],
    )


@pytest.fixture(scope="module")
def engine() -> PromptTemplateEngine:
    return PromptTemplateEngine(TEMPLATES)


@pytest.fixture(scope="module")
def builder(engine: PromptTemplateEngine) -> PromptBuilder:
    return PromptBuilder(engine)


@pytest.fixture
def templates(tmp_path: Path) -> Path:
    """A copy of the templates, to break."""
    return Path(shutil.copytree(TEMPLATES, tmp_path / "templates"))


def check_golden(name: str, text: str) -> None:
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text + "\n", "utf-8")
    assert path.exists(), f"no {path.name}: run with UPDATE_GOLDEN=1"
    assert text + "\n" == path.read_text("utf-8")


# ── what the templates say ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("language", ["ja", "en"])
@pytest.mark.parametrize("form", ["", "casual_"])
@pytest.mark.parametrize("name", NAMES)
async def test_each_template_reads_as_its_golden_file(builder, name, form, language):
    role = ROLE[language][name]
    agent = persona(
        language,
        personalities=CASUAL[language] if form else CASUAL[language][:1],
        roles=(role,) if role else (),
        tones={"ja": ("やわらかい",), "en": ("Soft",)}[language],
        **VOICE[language],
    )
    prompt = await builder.build(agent, "…")
    assert prompt.trace.template == f"{form}{name}.{language}.j2"
    check_golden(f"{form}{name}.{language}", prompt.system)


@pytest.mark.parametrize("language", ["ja", "en"])
async def test_an_empty_persona_reads_as_its_golden_file(builder, language):
    prompt = await builder.build(persona(language), "")
    check_golden(f"default.empty.{language}", prompt.system)


@pytest.mark.parametrize("language", ["ja", "en"])
async def test_a_transcript_reads_as_its_golden_file(builder, language):
    agent = persona(
        language, personalities=CASUAL[language], tones=CASUAL[language][1:], **VOICE[language]
    )
    prompt = await builder.build(agent, "three", HISTORY, info=BASE)
    assert prompt.trace.template == f"transcript.{language}.j2"
    check_golden(f"transcript.{language}", prompt.system)


@pytest.mark.parametrize("language", ["ja", "en"])
async def test_the_transcript_of_an_empty_persona_reads_as_its_golden_file(builder, language):
    prompt = await builder.build(persona(language), "hello", info=BASE)
    check_golden(f"transcript.empty.{language}", prompt.system)


def test_every_template_has_a_golden_file(engine):
    assert {f"{key}.txt" for key in engine.names} <= {path.name for path in GOLDEN.iterdir()}


@pytest.mark.parametrize(
    ("language", "sections"),
    [
        ("ja", "基本情報 背景 性格特性 役割 話し方・口調 会話例 重要な指示"),
        ("en", "Basics Background Personality Role Voice Examples Important"),
    ],
)
async def test_the_sections_stand_in_their_order(builder, language, sections):
    prompt = await builder.build(persona(language, **VOICE[language]), "…")
    found = re.findall(r"^[【\[](.+)[】\]]$", prompt.system, re.MULTILINE)
    assert found == sections.split()


async def test_without_examples_their_section_is_absent(builder):
    prompt = await builder.build(persona(name="さくら"), "…")
    assert "会話例" not in prompt


async def test_an_example_with_one_side_only_is_left_out(builder):
    half = [{"user": "もしもし", "ai": " "}, {"user": "やあ", "ai": "どうも"}]
    prompt = await builder.build(persona(name="さくら", examples=half), "…")
    assert "もしもし" not in prompt
    assert "やあ" in prompt


async def test_no_prompt_of_a_demo_has_gaps_or_trailing_space(builder):
    for seed in load_demos(ROOT / "data" / "personas.yaml"):
        seed.pop("id")
        prompt = await builder.build(persona(**seed), "…")
        assert "\n\n\n" not in prompt.system
        assert all(line == line.rstrip() for line in prompt.system.splitlines())


async def test_the_specifications_own_case_names_persona_personality_and_role(builder):
    agent = persona(
        name="テスト太郎",
        personalities=("フレンドリー", "知的"),
        roles=("カスタマーサポート",),
        tones=("敬語",),
    )
    prompt = await builder.build(agent=agent, message="商品の返品方法を教えてください", context=[])
    for word in ("テスト太郎", "フレンドリー", "知的", "カスタマーサポート", "敬語"):
        assert word in prompt
    assert prompt.turns == (PromptMessage("user", "商品の返品方法を教えてください"),)


# ── the rules ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("personalities", "roles", "tones", "name", "rule"),
    [
        ([], [], [], "default", 0),
        (["明るい"], ["歌手"], ["敬語"], "default", 0),
        ([], ["カスタマーサポート"], [], "customer_support", 1),
        ([], ["customer SUPPORT"], [], "customer_support", 1),
        ([], ["教師"], [], "teacher", 2),
        ([], ["Teacher"], [], "teacher", 2),
        ([], ["エンジニア"], [], "engineer", 3),
        ([], ["ｴﾝｼﾞﾆｱ"], [], "engineer", 3),
        ([], ["engineer"], [], "engineer", 3),
        ([], ["エンジニア", "教師"], [], "teacher", 2),
        (["フレンドリー"], ["教師"], [], "teacher", 2),
        (["カジュアル"], ["教師"], [], "teacher", 2),
        ([], ["教師"], ["カジュアル"], "teacher", 2),
        (["フレンドリー", "カジュアル"], [], [], "casual_default", 0),
        (["カジュアル", "フレンドリー"], ["教師"], [], "casual_teacher", 2),
        (["フレンドリー"], ["エンジニア"], ["カジュアル"], "casual_engineer", 3),
        (["friendly", "casual"], ["customer support"], [], "casual_customer_support", 1),
    ],
)
def test_the_first_rule_that_fits_chooses(engine, personalities, roles, tones, name, rule):
    choice = engine.get_template(personalities, roles, tones=tones)
    assert (choice.name, choice.rule) == (name, rule)


def test_the_specifications_two_arguments_are_enough(engine):
    assert engine.get_template(["知的"], ["教師"]).file == "teacher.ja.j2"


def test_a_reason_names_the_personas_own_words_in_both_languages(engine):
    choice = engine.get_template(["Friendly"], ["先生"], tones=["カジュアル"], language="en")
    assert choice.reasons["ja"] == "役割「先生」・性格「Friendly」・口調「カジュアル」"
    assert choice.reason == "role “先生”, personality “Friendly”, tone “カジュアル”"


def test_the_reason_for_a_form_of_the_default_names_the_form(engine):
    choice = engine.get_template(["フレンドリー"], ["歌手"], tones=["カジュアル"])
    assert (choice.name, choice.rule) == ("casual_default", 0)
    for language, words in {"ja": "口調「カジュアル」", "en": "tone “カジュアル”"}.items():
        assert "casual" in choice.reasons[language]
        assert words in choice.reasons[language]


async def test_the_trace_has_the_reason_in_both_languages_whatever_the_personas(builder):
    prompt = await builder.build(Agent(name="さくら", roles=[Role(name="先生")]), "やあ")
    assert prompt.trace.reasons == {"ja": "役割「先生」", "en": "role “先生”"}
    assert prompt.trace.reason == prompt.trace.reasons["ja"]
    assert hash(prompt.trace)


def test_a_missing_casual_form_falls_back_to_its_base(templates):
    for language in ("ja", "en"):
        (templates / "prompts" / f"casual_teacher.{language}.j2").unlink()
    choice = PromptTemplateEngine(templates).get_template(["フレンドリー", "カジュアル"], ["教師"])
    assert choice.file == "teacher.ja.j2"
    assert choice.reason == "役割「教師」"


def test_a_designer_adds_a_rule_and_a_template_without_code(templates):
    for language in ("ja", "en"):
        (templates / "prompts" / f"poet.{language}.j2").write_text("{{ agent_name }} ♪", "utf-8")
    rules = templates / "rules.yaml"
    rule = "rules:\n  - when: [{tones: [詩的]}]\n    template: poet\n"
    rules.write_text(rules.read_text("utf-8").replace("rules:\n", rule, 1), "utf-8")
    engine = PromptTemplateEngine(templates)
    assert engine.get_template([], ["教師"], tones=["詩的"]).name == "poet"
    assert engine.get_template([], ["教師"]).rule == 3


# ── the trace ─────────────────────────────────────────────────────────────────────────────


def values(agent: Agent) -> dict[str, list[str]]:
    """Every text that a span of each field may hold."""
    names = {f: [each.name for each in getattr(agent, f)] for f in TRAITS}
    examples = [text for example in agent.examples for text in example.values()]
    plain = {f: getattr(agent, f) for f in FIELDS if f not in names and f != "examples"}
    return (
        {f: value if isinstance(value, list) else [value] for f, value in plain.items()}
        | names
        | {"examples": examples}
    )


@pytest.mark.parametrize("info", [CHAT, BASE], ids=["chat", "transcript"])
async def test_each_span_is_exactly_a_value_of_its_field(builder, info):
    for seed in load_demos(ROOT / "data" / "personas.yaml"):
        seed.pop("id")
        agent = persona(**seed)
        allowed = values(agent)
        prompt = await builder.build(agent, "…", HISTORY, info=info)
        assert prompt.trace.spans
        for span in prompt.trace.spans:
            assert prompt.system[span.start : span.end] in allowed[span.field], span


@pytest.mark.parametrize("language", ["ja", "en"])
async def test_every_field_that_has_a_value_is_in_the_trace(builder, language):
    agent = persona(language, ("a",), ("b",), ("c",), **VOICE[language])
    prompt = await builder.build(agent, "…")
    assert {span.field for span in prompt.trace.spans} == set(FIELDS)


async def test_every_entry_of_a_list_has_its_own_span(builder):
    agent = persona(personalities=("明るい", "親切"), **VOICE["ja"])
    prompt = await builder.build(agent, "…")
    texts = [prompt.system[s.start : s.end] for s in prompt.trace.spans if s.field == "examples"]
    assert texts == [
        "虹はなぜ見えるの？",
        "雨粒が光を分けるからだよ。",
        "疲れた。",
        "お茶にしようか。",
    ]
    traits = [
        prompt.system[s.start : s.end] for s in prompt.trace.spans if s.field == "personalities"
    ]
    assert traits == ["明るい", "親切"]


def test_marks_go_through_loops_joins_concatenation_macros_and_set(templates):
    (templates / "prompts" / "default.ja.j2").write_text(
        "{% macro twice(x) %}{{ x }}{{ x }}{% endmacro %}"
        "{% set kept %}<{{ agent_name }}>{% endset %}"
        "{{ twice(agent_name) }} {{ roles | join('+') }} {{ gender ~ '!' }} {{ kept }}"
        "{% for tone in tones %} {{ loop.index }}{{ tone }}{% endfor %}"
        " {{ agent_name | length }}{{ agent_name == 'Ann' }}{{ 'n' in agent_name }}",
        "utf-8",
    )
    engine = PromptTemplateEngine(templates)
    choice = engine.get_template((), ())
    text, spans = engine.render(
        choice,
        {
            "agent_name": Traced("Ann", "name"),
            "roles": [Traced("x", "roles"), Traced("y", "roles")],
            "gender": Traced("f", "gender"),
            "tones": [Traced("soft", "tones")],
        },
    )
    assert text == "AnnAnn x+y f! <Ann> 1soft 3TrueTrue"
    assert spans == (
        Span(0, 3, "name"),
        Span(3, 6, "name"),
        Span(7, 8, "roles"),
        Span(9, 10, "roles"),
        Span(11, 12, "gender"),
        Span(15, 18, "name"),
        Span(21, 25, "tones"),
    )


def test_a_mark_that_lost_its_other_half_makes_no_span():
    text = str(Traced("whole", "name"))
    assert extract_spans(text[:-2] + text) == ("wholwhole", (Span(4, 9, "name"),))
    assert extract_spans("a" + text[1:]) == ("awhole", ())


async def test_marks_in_a_personas_own_text_are_dropped(builder):
    agent = persona(name="さ\ufdd0く\ufdd3ら", background="\ufdef")
    history = [{"sender": "ai", "content": "\ufdd2c"}]
    chat = await builder.build(agent, "…")
    script = await builder.build(agent, "a\ufdd1b", history, info=BASE)
    assert "決まった背景はありません" in chat
    for prompt in (chat, script):
        assert {prompt.system[span.start : span.end] for span in prompt.trace.spans} == {"さくら"}


def test_an_empty_value_leaves_no_mark():
    assert str(Traced("", "name")) == str(Traced(None, "name")) == ""


# ── the sandbox, and broken files ─────────────────────────────────────────────────────────


async def test_persona_text_is_never_template_source(builder):
    source = "{{ 7*7 }}{% for x in y %}{# #}"
    agent = persona(
        personalities=(source,), **{**VOICE["ja"], "name": source, "background": source}
    )
    prompt = await builder.build(agent, source)
    assert prompt.system.count(source) >= 3
    assert "49" not in prompt


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("a\n{{ ''.__class__ }}", "line 2: access to attribute '__class__'"),
        ("{{ agent_nmae }}", "line 1: 'agent_nmae' is undefined"),
        ("\n\n{% if %}", "line 3: Expected an expression"),
        ("{{ 1/0 }}", "line 1: division by zero"),
        ("{{ roles.append('x') }}", "line 1: access to attribute 'append'"),
        ("{% include 'nowhere.j2' %}", "line 1: there is no prompts/nowhere.j2"),
        ("{{ roles | random }}", "line 1: No filter named 'random'"),
        ("x\n{% if not agent_name %}{{ tones[0] }}{% endif %}", "line 2: "),
    ],
)
def test_a_broken_template_is_named_by_file_and_line_at_the_start(templates, source, reason):
    (templates / "prompts" / "poet.en.j2").write_text(source, "utf-8")
    with pytest.raises(TemplateError) as caught:
        PromptTemplateEngine(templates)
    assert str(caught.value).startswith(f"poet.en.j2: {reason}")
    assert "\n" not in str(caught.value)


def test_a_fault_in_a_part_is_named_by_the_part(templates):
    (templates / "prompts" / "_casual.ja.j2").write_text("- ok\n{{ nope }}\n", "utf-8")
    with pytest.raises(TemplateError, match=r"^_casual\.ja\.j2: line 2: 'nope' is undefined$"):
        PromptTemplateEngine(templates)


def test_a_template_that_is_not_utf8_is_named(templates):
    (templates / "prompts" / "poet.ja.j2").write_bytes("教師".encode("shift_jis"))
    with pytest.raises(TemplateError, match=r"^poet\.ja\.j2: "):
        PromptTemplateEngine(templates)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("template: teacher", "templat: teacher", "rule 2: template: Field required"),
        ("      - roles: [教師", "      - role: [教師", "rule 2: when 1: role: Extra inputs"),
        ("roles: [教師, 先生, Teacher, Tutor]", "roles: []", "rule 2: when 1: names no person"),
        ("template: engineer", "template: ../x", "rule 3: template: String should match"),
        ("template: engineer", "template: enginer", "rule 3: there is no prompts/enginer.ja.j2"),
        ("prefix: casual", "prefix: casul", "form 1: there is no prompts/casul_"),
        ("forms:", "form:", "form: Extra inputs"),
        ("rules:\n", "rules: [\n", "line "),
        ("user: ユーザー", "usr: ユーザー", "transcript: ja: user: Field required"),
    ],
)
def test_a_broken_rule_is_named_by_file_and_number_at_the_start(templates, old, new, message):
    path = templates / "rules.yaml"
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), "utf-8")
    with pytest.raises(TemplateError) as caught:
        PromptTemplateEngine(templates)
    assert str(caught.value).startswith(f"rules.yaml: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "file", ["rules.yaml", "prompts/default.en.j2", "prompts/transcript.ja.j2"]
)
def test_a_missing_file_is_named_at_the_start(templates, file):
    (templates / file).unlink()
    with pytest.raises(TemplateError, match=Path(file).name):
        PromptTemplateEngine(templates)


def test_a_language_without_templates_is_named(engine):
    with pytest.raises(TemplateError, match=r"^teacher\.fr\.j2: there is no such template$"):
        engine.get_template([], ["教師"], language="fr")


# ── the prompt that is sent ───────────────────────────────────────────────────────────────


async def test_the_system_text_does_not_depend_on_the_conversation(builder):
    agent = persona(roles=("教師",), **VOICE["ja"])
    one = await builder.build(agent, "one", [], info=CHAT)
    two = await builder.build(agent, "two", HISTORY, info=CHAT)
    assert one.system == two.system
    assert one.trace == two.trace


async def test_context_and_message_follow_as_turns(builder):
    prompt = await builder.build(persona(), "three", HISTORY)
    assert prompt.turns == (
        PromptMessage("user", "one"),
        PromptMessage("assistant", "two"),
        PromptMessage("user", "three"),
    )
    assert (prompt.kind, prompt.message, prompt.stop) == ("chat", "three", ())


async def test_examples_can_go_ahead_as_turns_and_then_not_in_the_system(builder):
    agent = persona(**VOICE["ja"])
    prompt = await builder.build(agent, "three", HISTORY, info=WITH_TURNS)
    assert "会話例" not in prompt.system
    assert prompt.turns[:2] == (
        PromptMessage("user", "虹はなぜ見えるの？"),
        PromptMessage("assistant", "雨粒が光を分けるからだよ。"),
    )
    assert [turn.content for turn in prompt.turns[4:]] == ["one", "two", "three"]


async def test_no_turn_carries_a_mark(builder):
    prompt = await builder.build(persona(**VOICE["ja"]), "…", info=WITH_TURNS)
    assert not any("\ufdd0" <= c <= "\ufdef" for turn in prompt.turns for c in turn.content)
    assert all(type(turn.content) is str for turn in prompt.turns)


async def test_before_anything_is_typed_there_is_no_turn_for_it(builder):
    assert (await builder.build(persona(), "")).turns == ()
    transcript = await builder.build(persona(name="さくら"), "", info=BASE)
    assert transcript.system.endswith("\n\nさくら：")


async def test_an_answer_that_never_came_leaves_no_empty_turn(builder):
    context = [{"sender": "user", "content": "one"}, {"sender": "ai", "content": ""}]
    prompt = await builder.build(persona(), "two", context)
    assert [turn.content for turn in prompt.turns] == ["one", "two"]


async def test_a_message_is_sent_to_the_byte(builder):
    message = "  def f():\n\treturn '\u3000'\n"
    assert (await builder.build(persona(), message)).turns[-1].content == message


async def transcript(builder: PromptBuilder, agent: Agent) -> Prompt:
    return await builder.build(agent, "three", HISTORY, info=BASE)


async def test_a_transcript_is_one_text_that_ends_in_the_personas_name(builder):
    prompt = await transcript(builder, persona(**VOICE["ja"]))
    assert (prompt.kind, prompt.turns) == ("transcript", ())
    assert prompt.system.endswith("さくら：")
    last = [prompt.system.index(text) for text in ("お茶にしようか。", "one", "two", "three")]
    assert last == sorted(last)


@pytest.mark.parametrize(("language", "user"), [("ja", "ユーザー"), ("en", "User")])
async def test_a_transcript_stops_at_either_name_with_either_colon(builder, language, user):
    prompt = await transcript(builder, persona(**VOICE[language], language=language))
    name = VOICE[language]["name"]
    for label in (user, name):
        for colon in ":：":
            assert any(stop.strip() == f"{label}{colon}" for stop in prompt.stop)


async def test_a_persona_without_a_name_still_has_a_label_in_a_transcript(builder):
    prompt = await transcript(builder, persona("en"))
    assert prompt.system.endswith("Assistant:")
    assert any("Assistant:" in stop for stop in prompt.stop)


@pytest.mark.parametrize(
    ("tones", "expected"),
    [
        (("敬語",), "おはようございます"),
        (("カジュアル",), "おはよう！"),
        (("関西弁",), "おはようさん"),
        (("敬語", "お嬢様言葉"), "ごきげんよう"),
        ((), "おはようございます"),
    ],
)
async def test_a_transcript_shows_everyday_exchanges_in_the_personas_register(
    builder, tones, expected
):
    prompt = await transcript(builder, persona(name="ケン", tones=tones))
    assert f"ユーザー：おはよう。\nケン：{expected}" in prompt.system


async def test_a_register_that_nobody_wrote_is_left_to_the_personas_own_examples(builder):
    voice = {**VOICE["ja"], "greeting": ""}
    prompt = await transcript(builder, persona(tones=("博多弁",), **voice))
    assert "おはよう" not in prompt
    assert "自己紹介をしてください。\nさくら：わたしはさくら。海辺の町の先生。" in prompt


async def test_the_own_self_introduction_of_a_persona_is_enough(builder):
    own = [{"user": "自己紹介して。", "ai": "オレだ。"}]
    prompt = await transcript(builder, persona(name="ケン", examples=own))
    assert prompt.system.count("自己紹介") == 1


async def test_a_transcript_does_not_name_the_words_that_must_not_be_said(builder):
    assert "常識" not in await transcript(builder, persona(**VOICE["ja"]))


async def test_paragraphs_of_the_conversation_do_not_break_the_script(builder):
    context = [{"sender": "ai", "content": "one\n\ntwo"}]
    prompt = await builder.build(persona(name="ケン"), "three\n\nfour", context, info=BASE)
    assert "ケン：one  two\n" in prompt.system
    assert prompt.system.endswith("ユーザー：three  four\nケン：")


async def test_a_line_break_in_a_name_does_not_break_the_script(builder):
    prompt = await transcript(builder, persona(name="さくら\n先生"))
    assert prompt.system.endswith("さくら 先生：")


async def test_none_in_a_field_of_an_unsaved_agent_counts_as_empty(builder):
    agent = persona(name="さくら", gender=None, background=None, catchphrases=[None, "", " "])
    prompt = await builder.build(agent, "…")
    assert "None" not in prompt.system
    assert "口ぐせ" not in prompt
