"""The insights tab: valid and escaped charts, texts, and the CSV file."""

from __future__ import annotations

import csv
import io
import random
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from xml.etree import ElementTree as ET

import gradio as gr
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persona_lab.db.generations import GenerationRow
from persona_lab.db.store import Store
from persona_lab.db.tables import Generation
from persona_lab.errors import ErrorType, StorageError
from persona_lab.insights import (
    BYTE_ORDER_MARK,
    CSV_COLUMNS,
    SPANS,
    error_label,
    escape_formula,
    generations_to_csv,
    parse_time_zone,
    summarize,
)
from persona_lab.lab import Lab
from persona_lab.monitor.alerts import Alert
from persona_lab.settings import ROOT
from persona_lab.translations import Translations
from persona_lab.ui.render import charts
from persona_lab.ui.render.charts import BarRow, TimePoint, axis_ticks
from persona_lab.ui.render.insights import alerts_html, board_html
from persona_lab.ui.session import Visitor, Visitors
from persona_lab.ui.tabs.insights import InsightsActions, alerts_of

WORDS = Translations(ROOT / "templates" / "ui.yaml")
NOW = datetime(2026, 11, 23, 3, 30, tzinfo=UTC)
TRICK = "<script>alert(1)</script>\"'&${1+1}{{x}}"


@pytest.fixture
def visitors(lab: Lab) -> Visitors:
    return Visitors(lab, WORDS)


@pytest.fixture(params=["ja", "en"])
async def visitor(visitors: Visitors, request: pytest.FixtureRequest) -> Visitor:
    headers = {"accept-language": request.param}
    return await visitors.from_request(gr.Request(session_hash="one", cookies={}, headers=headers))


def turn(**fields: Any) -> GenerationRow:
    defaults = {
        "created_at": NOW, "kind": "chat", "agent_id": "a", "agent_name": "さくら", "demo": False,
        "provider": "mock", "model": "echo", "status": "ok", "error_type": None,
        "prompt_tokens": 900, "cached_tokens": 300, "completion_tokens": 50,
        "first_token_ms": 420.0, "total_ms": 1800.0, "cost": 0.0123, "cache_hit": False,
    }  # fmt: skip
    return GenerationRow(**{**defaults, **fields})


def many(count: int, *, days: int = 30) -> list[GenerationRow]:
    chance = random.Random(3)
    made = [
        turn(
            created_at=NOW - timedelta(days=chance.uniform(0, days)),
            kind=chance.choice(["chat", "compare", "try", "summary"]),
            agent_id=(who := chance.choice("abcdefghij")),
            agent_name=chance.choice([TRICK, "さくら"]) if who < "e" else None,
            model=chance.choice([TRICK, "small", "large", *"12345678"]),
            status=(status := chance.choice(["ok", "ok", "ok", "stopped", "failed"])),
            error_type=chance.choice(["timeout", TRICK]) if status == "failed" else None,
            first_token_ms=chance.choice([None, chance.uniform(1, 9_000)]),
            cost=chance.choice([None, 0.0, 0.5]),
        )
        for _ in range(count)
    ]
    return sorted(made, key=lambda one: one.created_at)


def board(turns: Sequence[GenerationRow], visitor: Visitor, span: str = "all") -> str:
    zone = parse_time_zone("Asia/Tokyo")
    since = None if span == "all" else NOW - timedelta(days=SPANS[span] or 0)
    summary = summarize(turns, span=span, since=since, until=NOW, zone=zone)
    return board_html(summary, visitor)


def tree(html: str) -> ET.Element:
    """Parse the page's HTML as XML; raise ParseError where it isn't."""
    return ET.fromstring(f"<div>{html}</div>")  # noqa: S314 - what we wrote ourselves


# ── charts ────────────────────────────────────────────────────────────────────────────────

numbers = st.floats(0, 1e9) | st.integers(0, 9).map(float)


@settings(deadline=None)
@given(numbers, st.booleans())
def test_axis_ticks_are_few_round_and_cover_values(most: float, whole: bool) -> None:
    scale = axis_ticks(most, whole=whole)
    assert scale[0] == 0
    assert 2 <= len(scale) <= 6
    assert scale[-1] >= most * 0.999
    assert scale[1] <= max(1, most)
    if whole:
        assert all(value == int(value) for value in scale)


@settings(deadline=None)
@given(st.lists(st.tuples(st.text(), st.none() | numbers, st.none() | numbers), min_size=1))
def test_time_charts_are_valid_svg(
    given: list[tuple[str, float | None, float | None]],
) -> None:
    places = [TimePoint(printable(text), printable(text), values) for text, *values in given]
    for draw in (charts.column_chart, charts.line_chart):
        svg = tree(draw(places, ["solid", "error"], TRICK))[0]
        assert svg.get("role") == "img"
        assert svg.get("aria-label") == TRICK
        titles = [title.text or "" for title in svg.iter("title")]
        assert titles == [place.title for place in places]
        for mark in svg.iter():
            for side in ("y", "y1", "y2", "cy"):
                assert (
                    -1
                    <= float(mark.get(side, 0))
                    <= charts.HEAD_HEIGHT + charts.PLOT_HEIGHT + charts.FOOT_HEIGHT
                )


@settings(deadline=None)
@given(st.lists(st.tuples(st.text(), numbers, numbers)))
def test_bar_chart_is_valid_svg_within_width(
    given: list[tuple[str, float, float]],
) -> None:
    rows = [BarRow(printable(n), printable(n), printable(n), pieces) for n, *pieces in given]
    svg = tree(charts.bar_chart(rows, ["solid", "outline"], "x"))[0]
    assert int(svg.get("height", 0)) == charts.ROW_HEIGHT * len(rows)
    for bar in svg.iter("rect"):
        x, width = (float((bar.get(s) or "0").rstrip("%")) for s in ("x", "width"))
        assert x + width <= 100.1


def printable(text: str) -> str:
    """Characters of names: XML has no other control characters, and parsers fold line ends."""
    return re.sub(r"[^\x20-\ud7ff\ue000-\ufffd]", "", text)


@pytest.mark.parametrize("count", [1, 4, 7, 24, 30, 62])
def test_time_chart_labels_last_point(count: int) -> None:
    places = [TimePoint(f"{number}日", "", (1,)) for number in range(count)]
    svg = tree(charts.column_chart(places, ["solid"], "x"))[0]
    words = [text.text for text in svg.iter("text") if text.get("class") == "label"]
    assert words[-1] == f"{count - 1}日"
    assert len(words) <= charts.MAX_AXIS_LABELS


# ── the tab ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("count", [1, 2, 400])
@pytest.mark.parametrize("span", ["today", "7days", "30days", "all"])
def test_board_is_valid_html_and_escapes_names(visitor: Visitor, count: int, span: str) -> None:
    days = {"today": 0, "7days": 6, "30days": 29, "all": 900}[span]
    html = board(many(count, days=days), visitor, span)
    found = tree(html)
    assert found.find(".//script") is None
    assert len(found.findall(".//figure")) == 4
    for figure in found.findall(".//figure"):
        drawn = [(e.get("role"), e.tag) for e in figure][1:]
        assert drawn in ([("img", "svg")], [(None, "p")])
    for chart in found.findall(".//figure/svg"):
        assert chart.get("aria-label")
    used = set(re.findall(r"url\(#([\w-]+)\)", html))
    assert used <= {pattern.get("id") for pattern in found.iter("pattern")}


def test_board_shows_four_numbers(visitor: Visitor) -> None:
    turns = [
        turn(first_token_ms=400.0),
        turn(kind="compare", first_token_ms=2400.0, cost=0.5),
        turn(status="failed", error_type="timeout", first_token_ms=None, cost=None),
        turn(kind="try", model="new", cost=None, first_token_ms=None),
    ]
    found = tree(board(turns, visitor))
    shown = {
        (section.get("class") or "").split()[-1]: [p.text for p in section.findall("p")]
        for section in found.findall(".//section")
    }
    say, timeout = visitor.translate, visitor.translate("insights.error_type.timeout")
    assert shown == {
        "number-answers": [
            "4",
            " · ".join(
                say(f"insights.kind.{kind}", count=count)
                for kind, count in (("chat", "2"), ("compare", "1"), ("try", "1"))
            ),
        ],
        "number-wait": [
            say("insights.wait_figure", p50="1.40", p95="2.30"),
            say("insights.wait_line", p50="1.40", p95="2.30"),
        ],
        "number-cost": ["$0.5123", say("insights.cost_partly", count="2")],
        "number-errors": [
            "25.0%",
            say(
                "insights.errors_line",
                answers="4",
                count="1",
                kinds=say("insights.errors_kind", kind=timeout, count="1"),
            ),
        ],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("cost", "tokens", "figure", "line"),
    [
        (0.0, 9, "figures.free", "insights.cost_free"),
        (None, 9, "figures.cost_unknown", "insights.cost_unknown"),
    ],
)
def test_board_names_free_and_unknown_costs(
    visitor: Visitor, cost: float | None, tokens: int, figure: str, line: str
) -> None:
    found = tree(board([turn(cost=cost, prompt_tokens=tokens)], visitor))
    (section,) = found.findall(".//section[4]/../section[3]")
    shown = [p.text for p in section.findall("p")]
    details = {"count": "1"} if "unknown" in line else {}
    assert shown == [visitor.translate(figure), visitor.translate(line, **details)]


@pytest.mark.parametrize("kind", ErrorType)
def test_error_label_is_unique_by_type(visitor: Visitor, kind: ErrorType) -> None:
    words = {one: error_label(one, WORDS, visitor.language) for one in ErrorType}
    assert f"insights.error_type.{kind}" in WORDS
    assert list(words.values()).count(words[kind]) == 1


def test_board_lists_error_types_by_frequency(
    visitor: Visitor,
) -> None:
    kinds = ["timeout", "bad_key", "bad_key", "offline"]
    turns = [turn(status="failed", error_type=kind) for kind in kinds]
    line = tree(board(turns, visitor)).findall(".//section[4]/p")[1].text or ""
    defaults = [
        visitor.translate(
            "insights.errors_kind", kind=error_label(kind, WORDS, visitor.language), count=count
        )
        for kind, count in (("bad_key", 2), ("timeout", 1), ("offline", 1))
    ]
    places = [line.index(each) for each in defaults]
    assert {"ja": "、", "en": ", "}[visitor.language].join(defaults[:2]) in line
    assert places[0] < min(places[1:])


def failure(**fields: Any) -> GenerationRow:
    nothing = {"prompt_tokens": 0, "cached_tokens": 0, "completion_tokens": 0, "cost": 0.0}
    defaults = {"status": "failed", "error_type": "bad_key", "first_token_ms": None}
    return turn(**{**nothing, **defaults, **fields})


def test_board_cost_is_unknown_when_model_only_failed(visitor: Visitor) -> None:
    found = tree(board([failure(model="paid"), turn(model="own", cost=0.0)], visitor))
    costs = {
        head.text: row.findall("td")[-2].text
        for row in found.iter("tr")
        if (head := row.find("th[@scope='row']")) is not None
    }
    assert costs["mock:paid"] == "–"
    assert costs["mock:own"] == visitor.translate("figures.free")
    shown = [p.text for p in found.findall(".//section[3]/p")]
    assert shown == [visitor.translate("figures.free"), visitor.translate("insights.cost_nothing")]
    shown = [p.text for p in tree(board([failure()], visitor)).findall(".//section[3]/p")]
    assert shown == ["–", visitor.translate("insights.cost_nothing")]


def test_board_chart_says_when_it_has_no_data(visitor: Visitor) -> None:
    figures = tree(board([failure()], visitor)).findall(".//figure")
    empty = [figure.findtext("figcaption/h3") for figure in figures if figure.find("svg") is None]
    charts_ = ("insights.wait_chart", "insights.tokens_chart")
    assert empty == [visitor.translate(name) for name in charts_]
    for figure in figures:
        if figure.find("svg") is None:
            assert figure.findtext("p") == visitor.translate("insights.nothing")


def test_board_table_has_total_personas_and_models(visitor: Visitor) -> None:
    turns = [
        turn(agent_id="a", agent_name="さくら"),
        turn(agent_id="d", agent_name="さくら", demo=True, model="other"),
        turn(agent_id="x", agent_name=None),
        turn(agent_id="y", agent_name=None),
    ]
    found = tree(board(turns, visitor))
    heads = [
        head.text
        for head in found.findall(".//div[@class='sheet']//tbody/tr/th")
        if head.get("scope") == "row"
    ]
    say = visitor.translate
    assert heads == [
        say("insights.all"),
        say("insights.never_kept"), "さくら", say("persona.demo", name="さくら"),
        "mock:echo", "mock:other",
    ]  # fmt: skip


async def test_board_guides_when_span_is_empty(
    lab: Lab, visitors: Visitors, visitor: Visitor
) -> None:
    actions = InsightsActions(lab, visitors)
    assert visitor.translate("insights.empty") in await actions.load_board("7days", "", visitor)
    long_ago = datetime.now(UTC) - timedelta(days=99)
    lab.store.record(
        Generation(
            user_id=visitor.user_id, agent_id="a", provider="mock", model="echo", status="ok",
            created_at=long_ago,
        )
    )  # fmt: skip
    assert visitor.translate("insights.empty_span") in await actions.load_board(
        "7days", "", visitor
    )
    assert "<figure" in await actions.load_board("all", "Asia/Tokyo", visitor)


async def test_board_shows_error_when_database_fails(
    lab: Lab, visitors: Visitors, visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Store, **_: Any) -> None:
        raise StorageError

    monkeypatch.setattr(Store, "list_generation_rows", refuse)
    found = tree(await InsightsActions(lab, visitors).load_board("7days", "", visitor))
    assert [(p.get("role"), p.text) for p in found] == [
        ("alert", visitor.error_text(StorageError()))
    ]


def test_alerts_html_lists_escaped_alerts(visitor: Visitor) -> None:
    assert alerts_html([], visitor) == ""
    found = tree(alerts_html(["ひとつめ", TRICK], visitor))
    assert [item.text for item in found.iter("li")] == ["ひとつめ", TRICK]
    assert found[0].get("role") == "alert"
    assert found[0].findtext("p") == visitor.translate("insights.alerts_about")


def test_alert_time_is_in_visitor_time_zone(
    lab: Lab, visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    alert = Alert("errors", 1.0, 0.1, 300, datetime(2026, 11, 25, 20, 45, tzinfo=UTC))
    monkeypatch.setattr(type(lab.monitor.alerts), "current", (alert,))
    (defaults,) = alerts_of(lab)(visitor, "Asia/Tokyo")
    assert visitor.translate(alert.key, **alert.details) in defaults
    assert "2026-11-26 05:45" in defaults


# ── the CSV file ──────────────────────────────────────────────────────────────────────────


def read(text: str) -> list[list[str]]:
    assert text.startswith(BYTE_ORDER_MARK)
    return list(
        csv.reader(io.StringIO(text.removeprefix(BYTE_ORDER_MARK), newline=""), strict=True)
    )


def test_csv_has_every_generation(visitor: Visitor) -> None:
    turns = many(300)
    head, *lines = read(
        generations_to_csv(turns, parse_time_zone("Asia/Tokyo"), WORDS, visitor.language)
    )
    assert head == [visitor.translate(f"sheet.{column}") for column in CSV_COLUMNS]
    assert len(lines) == len(turns)
    for line, one in zip(lines, turns, strict=True):
        cells = dict(zip(CSV_COLUMNS, line, strict=True))
        assert datetime.fromisoformat(cells["time"]) == one.created_at.replace(microsecond=0)
        assert cells["time"].endswith("+09:00")
        assert cells["persona"] == (one.agent_name or "")
        assert cells["kind"] == visitor.translate(f"sheet.kinds.{one.kind}")
        assert cells["status"] == visitor.translate(f"sheet.statuses.{one.status}")
        for name in ("prompt_tokens", "cached_tokens", "completion_tokens", "total_ms"):
            assert float(cells[name]) == getattr(one, name)
        for name in ("first_token_ms", "cost"):
            value = getattr(one, name)
            assert (float(cells[name]) if cells[name] else None) == value


@pytest.mark.parametrize(
    "name",
    [
        "=1+1",
        "+1",
        "-1",
        "@SUM(A1)",
        "＝1+1",
        "＋1",
        "－1",
        "＠x",
        "\t=1",
        " =1",
        "\r\n=1",
        "=",
        '="x"',
    ],
)
def test_csv_escapes_formulas_in_names(visitor: Visitor, name: str) -> None:
    (_, line) = read(
        generations_to_csv([turn(agent_name=name, model=name)], UTC, WORDS, visitor.language)
    )
    cells = dict(zip(CSV_COLUMNS, line, strict=True))
    for cell in (cells["persona"], cells["model"]):
        assert cell.startswith("'")
        assert cell.removeprefix("'") == " ".join(name.split())


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_escape_formula_keeps_text(text: str) -> None:
    cell = escape_formula(text)
    assert "\n" not in cell
    assert cell[:1] not in {*"=+-@＝＋－＠"}
    assert cell.removeprefix("'") == " ".join(text.split()).removeprefix("'")
