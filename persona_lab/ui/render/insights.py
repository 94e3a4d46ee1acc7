"""The insights tab as HTML: alerts, four numbers, four charts, and tables."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from html import escape

from persona_lab.insights import (
    LatencyPercentiles,
    Summary,
    UsageGroup,
    UsageStats,
    error_label,
    parse_time_zone,
)
from persona_lab.ui.render import charts
from persona_lab.ui.render.charts import BarRow, TimePoint
from persona_lab.ui.render.text import format_cost, format_seconds
from persona_lab.ui.session import Visitor

MAX_BARS = 7
"""Maximum number of bars in a chart by model or persona. The table has all."""

ANSWER_KINDS = ("chat", "compare", "try", "api")


def alerts_html(alerts: Sequence[str], visitor: Visitor) -> str:
    """Return the alerts at the top of the tab as HTML; "" without alerts.

    Alerts concern all users, and the rest of the tab only the visitor: a note says so.
    """
    if not alerts:
        return ""
    items = "".join(f"<li>{escape(alert)}</li>" for alert in alerts)
    name = escape(visitor.translate("insights.alerts"))
    about = escape(visitor.translate("insights.alerts_about"))
    return (
        f'<div class="warning alerts" role="alert"><ul aria-label="{name}">{items}</ul>'
        f"<p>{about}</p></div>"
    )


def board_html(summary: Summary, visitor: Visitor) -> str:
    """Return everything below the span selector as HTML."""
    say = visitor.translate
    moment = summary.until.astimezone(parse_time_zone(summary.zone))
    as_of = say("insights.as_of", time=f"{moment:%H:%M}", zone=summary.zone)
    status = f'<p class="quiet as-of" role="status">{escape(as_of)}</p>'
    if summary.empty:
        words = say("insights.empty_span" if summary.has_history else "insights.empty")
        return f'{status}<p class="empty sheet">{escape(words)}</p>'
    drawn = "".join(
        draw(summary, visitor)
        for draw in (_answers_chart, _latency_chart, _tokens_chart, _cost_chart)
    )  # in the order of the numbers above them
    return (
        f'<h2 class="unseen">{escape(say("tab.insights"))}</h2>{status}'
        f'<div class="numbers">{_headline_numbers(summary, visitor)}</div>'
        f'{charts.PATTERNS}<div class="charts">{drawn}</div>'
        f"{_tables(summary, visitor)}{_explanations(visitor)}"
    )


def _headline_numbers(summary: Summary, visitor: Visitor) -> str:
    say, total = visitor.translate, summary.total
    kinds = {kind: f"{summary.kinds.get(kind, 0):,}" for kind in ANSWER_KINDS}
    first = total.first
    half, most = format_seconds(first.p50), format_seconds(first.p95)
    wait = say("insights.wait_figure", p50=half, p95=most)
    began = say("insights.wait_line", p50=half, p95=most)
    if first.p50 is None:
        wait, began = "–", say("insights.wait_none")
    figures = (
        ("answers", f"{total.answers:,}", say("insights.kinds", **kinds)),
        ("wait", wait, began),
        ("cost", _format_price(total, visitor, short=True), _cost_text(summary, visitor)),
        ("errors", _format_percent(total.error_rate), _errors_text(summary, visitor)),
    )
    return "".join(
        f'<section class="sheet number number-{name}"><h3>{escape(say(f"insights.{name}"))}</h3>'
        f'<p class="figure">{escape(figure)}</p><p class="quiet">{escape(line)}</p></section>'
        for name, figure, line in figures
    )


def _cost_text(summary: Summary, visitor: Visitor) -> str:
    total = summary.total
    if total.unpriced:
        which = "cost_unknown" if total.cost is None else "cost_partly"
        return visitor.translate(f"insights.{which}", count=f"{total.unpriced:,}")
    if not total.cost:
        # The cost of a model whose requests all failed is unknown.
        known = all(part.stats.has_usage for part in summary.models)
        return visitor.translate("insights.cost_free" if known else "insights.cost_nothing")
    each = format_cost(total.cost / max(1, total.answers), visitor)
    return visitor.translate("insights.cost_each", each=each)


def _errors_text(summary: Summary, visitor: Visitor) -> str:
    if not summary.total.errors:
        return visitor.translate("insights.errors_none")
    most_first = sorted(summary.error_types.items(), key=lambda item: -item[1])
    kinds = [
        visitor.translate(
            "insights.errors_kind",
            kind=error_label(kind, visitor.translations, visitor.language),
            count=f"{count:,}",
        )
        for kind, count in most_first
    ]
    return visitor.translate(
        "insights.errors_line",
        answers=f"{summary.total.answers:,}",
        count=f"{summary.total.errors:,}",
        kinds=visitor.translate("editor.between").join(kinds),
    )


def persona_name(part: UsageGroup, visitor: Visitor) -> str:
    """Return a persona's name; personas that were never saved share one name."""
    if part.name is None:
        return visitor.translate("insights.never_kept")
    return visitor.translate("persona.demo", name=part.name) if part.demo else part.name


# ── charts ────────────────────────────────────────────────────────────────────────────────


def _chart(
    title: str,
    about: str,
    key: Sequence[tuple[charts.SeriesStyle, str]],
    chart: str,
    visitor: Visitor,
) -> str:
    """Return a chart with title and legend as HTML; ``chart`` is "" without data."""
    if not chart:
        nothing = escape(visitor.translate("insights.nothing"))
        return (
            f'<figure class="sheet"><figcaption><h3>{escape(title)}</h3></figcaption>'
            f'<p class="empty">{nothing}</p></figure>'
        )
    about = f"<span>{escape(about)}</span>" if about else ""
    return (
        f'<figure class="sheet"><figcaption><h3>{escape(title)}</h3>'
        f'<p class="figures">{about}{charts.legend(key)}</p></figcaption>{chart}</figure>'
    )


def _answers_chart(summary: Summary, visitor: Visitor) -> str:
    say = visitor.translate
    places = [
        TimePoint(
            _axis_label(part, summary, visitor),
            say(
                "insights.answers_at",
                at=_time_label(part, summary, visitor),
                answers=f"{part.stats.answers:,}",
                errors=f"{part.stats.errors:,}",
            ),
            (part.stats.answers - part.stats.errors, part.stats.errors),
        )
        for part in summary.timeline
    ]
    most = max(summary.timeline, key=lambda part: part.stats.answers)
    said = say(
        "insights.answers_said",
        step=say(f"insights.step.{summary.step}"),
        answers=f"{summary.total.answers:,}",
        errors=f"{summary.total.errors:,}",
        at=_time_label(most, summary, visitor),
        most=f"{most.stats.answers:,}",
    )
    key: list[tuple[charts.SeriesStyle, str]] = [
        ("solid", say("insights.answered")),
        ("error", say("insights.failed")),
    ]
    chart = (
        charts.column_chart(places, [look for look, _ in key], said)
        if summary.total.answers
        else ""
    )
    step = say(f"insights.step.{summary.step}")
    return _chart(say("insights.answers_chart"), step, key, chart, visitor)


def _latency_chart(summary: Summary, visitor: Visitor) -> str:
    say = visitor.translate

    def place(part: UsageGroup) -> TimePoint:
        first, at = part.stats.first, _time_label(part, summary, visitor)
        if first.p50 is None or first.p95 is None:
            return TimePoint(
                _axis_label(part, summary, visitor),
                say("insights.wait_nowhere", at=at),
                (None, None),
            )
        title = say(
            "insights.wait_at", at=at, p50=format_seconds(first.p50), p95=format_seconds(first.p95)
        )
        return TimePoint(
            _axis_label(part, summary, visitor), title, (first.p50 / 1000, first.p95 / 1000)
        )

    total = summary.total.first
    said = say(
        "insights.wait_said",
        step=say(f"insights.step.{summary.step}"),
        p50=format_seconds(total.p50),
        p95=format_seconds(total.p95),
    )
    key: list[tuple[charts.SeriesStyle, str]] = [
        ("line", say("insights.p50")),
        ("dashed", say("insights.p95")),
    ]
    places = [place(part) for part in summary.timeline]
    chart = (
        charts.line_chart(places, [look for look, _ in key], said) if total.p50 is not None else ""
    )
    step = say(f"insights.step.{summary.step}")
    return _chart(say("insights.wait_chart"), step, key, chart, visitor)


def _tokens_chart(summary: Summary, visitor: Visitor) -> str:
    say = visitor.translate
    models = sorted(summary.models, key=lambda part: -_total_tokens(part.stats))
    shown = [part for part in models if _total_tokens(part.stats)][:MAX_BARS]
    rows = []
    for part in shown:
        figures = part.stats
        title = say(
            "insights.tokens_of",
            name=part.key,
            prompt=f"{figures.prompt_tokens:,}",
            cached=f"{figures.cached_tokens:,}",
            completion=f"{figures.completion_tokens:,}",
        )
        fresh = figures.prompt_tokens - figures.cached_tokens
        pieces = (fresh, figures.cached_tokens, figures.completion_tokens)
        rows.append(BarRow(part.key, f"{_total_tokens(figures):,}", title, pieces))
    key: list[tuple[charts.SeriesStyle, str]] = [
        ("solid", say("insights.prompt")),
        ("hatch", say("insights.cached")),
        ("outline", say("insights.completion")),
    ]
    said = say("insights.tokens_said", rows=" / ".join(r.title for r in rows))
    chart = charts.bar_chart(rows, [look for look, _ in key], said) if rows else ""
    return _chart(
        say("insights.tokens_chart"), _omitted_text(models, rows, visitor), key, chart, visitor
    )


def _cost_chart(summary: Summary, visitor: Visitor) -> str:
    say = visitor.translate
    personas = sorted(summary.personas, key=lambda part: -(part.stats.cost or 0))
    rows = [
        BarRow(
            persona_name(part, visitor),
            _format_price(part.stats, visitor),
            say(
                "insights.cost_of",
                name=persona_name(part, visitor),
                cost=_format_price(part.stats, visitor),
            ),
            (part.stats.cost or 0.0,),
        )
        for part in personas[:MAX_BARS]
    ]
    said = say("insights.costs_said", rows=" / ".join(r.title for r in rows))
    chart = charts.bar_chart(rows, ["solid"], said)
    return _chart(
        say("insights.costs_chart"), _omitted_text(personas, rows, visitor), [], chart, visitor
    )


def _omitted_text(parts: Sequence[UsageGroup], rows: Sequence[BarRow], visitor: Visitor) -> str:
    """Return a text with the number of ``parts`` that have no row; "" if all have one."""
    if len(parts) <= len(rows):
        return ""
    return visitor.translate("insights.rest", count=len(parts) - len(rows))


def _total_tokens(figures: UsageStats) -> int:
    return figures.prompt_tokens + figures.completion_tokens


# ── tables ────────────────────────────────────────────────────────────────────────────────

TABLE_COLUMNS = ("answers", "errors", "first", "whole", "prompt", "completion", "cost", "cache")


def _tables(summary: Summary, visitor: Visitor) -> str:
    say = visitor.translate
    groups = [
        ("", [(say("insights.all"), summary.total)]),
        (
            say("insights.by_persona"),
            [(persona_name(p, visitor), p.stats) for p in summary.personas],
        ),
        (say("insights.by_model"), [(p.key, p.stats) for p in summary.models]),
    ]
    times = [
        (_time_label(part, summary, visitor), part.stats)
        for part in summary.timeline
        if part.stats != UsageStats()
    ]
    return (
        f'<div class="sheet">{_table(say("insights.table"), groups, visitor)}</div>'
        f'<details class="sheet"><summary>{escape(say("insights.by_time"))}</summary>'
        f"{_table(say('insights.by_time'), [('', times)], visitor)}</details>"
    )


def _table(
    name: str, groups: Sequence[tuple[str, Sequence[tuple[str, UsageStats]]]], visitor: Visitor
) -> str:
    """Return a table as HTML. ``groups`` are (heading, rows); a row is (name, figures)."""
    words = [visitor.translate(f"insights.column.{column}") for column in TABLE_COLUMNS]
    head = "".join(f'<th scope="col">{escape(word)}</th>' for word in words)
    bodies = []
    for heading, rows in groups:
        title = (
            f'<tr><th class="group" scope="rowgroup" colspan="{1 + len(words)}">'
            f"{escape(heading)}</th></tr>"
        )
        lines = "".join(_table_row(name, figures, visitor) for name, figures in rows)
        bodies.append(f"<tbody>{title if heading else ''}{lines}</tbody>")
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(name)}"><table><thead>'
        f"<tr><td></td>{head}</tr></thead>{''.join(bodies)}</table></div>"
    )


def _table_row(name: str, figures: UsageStats, visitor: Visitor) -> str:
    prompt = f"{figures.prompt_tokens:,}"
    if figures.cached_tokens:
        prompt = visitor.translate(
            "insights.prompt_reused", count=prompt, cached=f"{figures.cached_tokens:,}"
        )
    values = (
        f"{figures.answers:,}",
        f"{figures.errors:,}",
        _format_percentiles(figures.first),
        _format_percentiles(figures.whole),
        prompt,
        f"{figures.completion_tokens:,}",
        _format_price(figures, visitor),
        _format_percent(figures.cache_hit_rate),
    )
    cells = "".join(f"<td>{escape(value)}</td>" for value in values)
    return f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'


def _format_percentiles(waits: LatencyPercentiles) -> str:
    if waits.p50 is None:
        return "–"
    return " · ".join(format_seconds(value) for value in (waits.p50, waits.p95, waits.p99))


def _format_percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _format_price(figures: UsageStats, visitor: Visitor, *, short: bool = False) -> str:
    """Return the known cost as text, and how many generations it leaves out.

    A dash means that no generation reports usage. ``short`` leaves the number out, for places
    where another line has it.
    """
    if not figures.has_usage:
        return "–"
    unknown = figures.unpriced and not figures.cost  # only free generations have a known price
    known = format_cost(None if unknown else figures.cost, visitor)
    if unknown or short or figures.cost is None or not figures.unpriced:
        return known
    return visitor.translate("insights.price_partly", known=known, count=f"{figures.unpriced:,}")


def _explanations(visitor: Visitor) -> str:
    """Return the explanation of the statistics as HTML."""
    topics = ("answers", "waits", "percentiles", "tokens", "cost", "cache", "days")
    lines = "".join(
        f"<dt>{escape(visitor.translate(f'insights.how.{topic}.name'))}</dt>"
        f"<dd>{escape(visitor.translate(f'insights.how.{topic}.text'))}</dd>"
        for topic in topics
    )
    title = escape(visitor.translate("insights.how.title"))
    return f'<details class="sheet how"><summary>{title}</summary><dl>{lines}</dl></details>'


# ── dates as text ─────────────────────────────────────────────────────────────────────────


def _axis_label(part: UsageGroup, summary: Summary, visitor: Visitor) -> str:
    """Return the label under a position of the axis. Only every sixth hour has one."""
    moment = datetime.fromisoformat(part.key)
    if summary.step == "hour" and moment.hour % 6:
        return ""
    step = "day" if summary.step == "week" else summary.step
    return _format_time(moment, step, visitor)


def _time_label(part: UsageGroup, summary: Summary, visitor: Visitor) -> str:
    return _format_time(datetime.fromisoformat(part.key), summary.step, visitor)


def _format_time(moment: datetime, step: str, visitor: Visitor) -> str:
    months = visitor.translate("insights.months").split()
    return visitor.translate(
        f"insights.at.{step}",
        year=moment.year,
        month=months[moment.month - 1],
        day=moment.day,
        hour=moment.hour,
    )
