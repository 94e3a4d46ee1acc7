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
    subtitle = escape(visitor.translate("insights.alerts_about"))
    return (
        f'<div class="warning alerts" role="alert"><ul aria-label="{name}">{items}</ul>'
        f"<p>{subtitle}</p></div>"
    )


def board_html(summary: Summary, visitor: Visitor) -> str:
    """Return everything below the span selector as HTML."""
    translate = visitor.translate
    moment = summary.until.astimezone(parse_time_zone(summary.zone))
    as_of = translate("insights.as_of", time=f"{moment:%H:%M}", zone=summary.zone)
    status = f'<p class="quiet as-of" role="status">{escape(as_of)}</p>'
    if summary.empty:
        text = translate("insights.empty_span" if summary.has_history else "insights.empty")
        return f'{status}<p class="empty sheet">{escape(text)}</p>'
    drawn = "".join(
        draw(summary, visitor)
        for draw in (_answers_chart, _latency_chart, _tokens_chart, _cost_chart)
    )  # in the order of the numbers above them
    return (
        f'<h2 class="visually-hidden">{escape(translate("tab.insights"))}</h2>{status}'
        f'<div class="numbers">{_headline_numbers(summary, visitor)}</div>'
        f'{charts.PATTERNS}<div class="charts">{drawn}</div>'
        f"{_tables(summary, visitor)}{_explanations(visitor)}"
    )


def _headline_numbers(summary: Summary, visitor: Visitor) -> str:
    translate, total = visitor.translate, summary.total
    kinds = [
        translate(f"insights.kind.{kind}", count=f"{summary.kinds[kind]:,}")
        for kind in ANSWER_KINDS
        if summary.kinds.get(kind)
    ]
    first = total.first
    p50, p95 = format_seconds(first.p50), format_seconds(first.p95)
    wait = translate("insights.wait_figure", p50=p50, p95=p95)
    wait_text = translate("insights.wait_line", p50=p50, p95=p95)
    if first.p50 is None:
        wait, wait_text = "–", translate("insights.wait_none")
    stats = (
        ("answers", f"{total.answers:,}", " · ".join(kinds)),
        ("wait", wait, wait_text),
        ("cost", _format_price(total, visitor, short=True), _cost_text(summary, visitor)),
        ("errors", _format_percent(total.error_rate), _errors_text(summary, visitor)),
    )
    return "".join(
        f'<section class="sheet number number-{name}">'
        f"<h3>{escape(translate(f'insights.{name}'))}</h3>"
        f'<p class="figure">{escape(figure)}</p><p class="quiet">{escape(line)}</p></section>'
        for name, figure, line in stats
    )


def _cost_text(summary: Summary, visitor: Visitor) -> str:
    total = summary.total
    if total.unpriced:
        which = "cost_unknown" if total.cost is None else "cost_partly"
        return visitor.translate(f"insights.{which}", count=f"{total.unpriced:,}")
    if not total.cost:
        # The cost of a model whose requests all failed is unknown.
        known = all(group.stats.has_usage for group in summary.models)
        return visitor.translate("insights.cost_free" if known else "insights.cost_nothing")
    cost = format_cost(total.cost / max(1, total.answers), visitor)
    return visitor.translate("insights.cost_each", each=cost)


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


def persona_name(group: UsageGroup, visitor: Visitor) -> str:
    """Return a persona's name; personas that were never saved share one name."""
    if group.name is None:
        return visitor.translate("insights.never_kept")
    return visitor.translate("persona.demo", name=group.name) if group.demo else group.name


# ── charts ────────────────────────────────────────────────────────────────────────────────


def _chart(
    title: str,
    subtitle: str,
    legend: Sequence[tuple[charts.SeriesStyle, str]],
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
    subtitle = f"<span>{escape(subtitle)}</span>" if subtitle else ""
    return (
        f'<figure class="sheet"><figcaption><h3>{escape(title)}</h3>'
        f'<p class="figures">{subtitle}{charts.legend(legend)}</p></figcaption>{chart}</figure>'
    )


def _answers_chart(summary: Summary, visitor: Visitor) -> str:
    translate = visitor.translate
    points = [
        TimePoint(
            _axis_label(group, summary, visitor),
            translate(
                "insights.answers_at",
                at=_time_label(group, summary, visitor),
                answers=f"{group.stats.answers:,}",
                errors=f"{group.stats.errors:,}",
            ),
            (group.stats.answers - group.stats.errors, group.stats.errors),
        )
        for group in summary.timeline
    ]
    busiest = max(summary.timeline, key=lambda group: group.stats.answers)
    description = translate(
        "insights.answers_said",
        step=translate(f"insights.step.{summary.step}"),
        answers=f"{summary.total.answers:,}",
        errors=f"{summary.total.errors:,}",
        at=_time_label(busiest, summary, visitor),
        most=f"{busiest.stats.answers:,}",
    )
    legend: list[tuple[charts.SeriesStyle, str]] = [
        ("solid", translate("insights.answered")),
        ("error", translate("insights.failed")),
    ]
    chart = ""
    if summary.total.answers:
        chart = charts.column_chart(points, [style for style, _ in legend], description)
    step = translate(f"insights.step.{summary.step}")
    return _chart(translate("insights.answers_chart"), step, legend, chart, visitor)


def _latency_chart(summary: Summary, visitor: Visitor) -> str:
    translate = visitor.translate

    def point(group: UsageGroup) -> TimePoint:
        first, at = group.stats.first, _time_label(group, summary, visitor)
        if first.p50 is None or first.p95 is None:
            return TimePoint(
                _axis_label(group, summary, visitor),
                translate("insights.wait_nowhere", at=at),
                (None, None),
            )
        title = translate(
            "insights.wait_at", at=at, p50=format_seconds(first.p50), p95=format_seconds(first.p95)
        )
        return TimePoint(
            _axis_label(group, summary, visitor), title, (first.p50 / 1000, first.p95 / 1000)
        )

    total = summary.total.first
    description = translate(
        "insights.wait_said",
        step=translate(f"insights.step.{summary.step}"),
        p50=format_seconds(total.p50),
        p95=format_seconds(total.p95),
    )
    legend: list[tuple[charts.SeriesStyle, str]] = [
        ("line", translate("insights.p50")),
        ("dashed", translate("insights.p95")),
    ]
    points = [point(group) for group in summary.timeline]
    chart = ""
    if total.p50 is not None:
        chart = charts.line_chart(points, [style for style, _ in legend], description)
    step = translate(f"insights.step.{summary.step}")
    return _chart(translate("insights.wait_chart"), step, legend, chart, visitor)


def _tokens_chart(summary: Summary, visitor: Visitor) -> str:
    translate = visitor.translate
    models = sorted(summary.models, key=lambda group: -_total_tokens(group.stats))
    models_shown = [group for group in models if _total_tokens(group.stats)][:MAX_BARS]
    rows = []
    for group in models_shown:
        stats = group.stats
        title = translate(
            "insights.tokens_of",
            name=group.key,
            prompt=f"{stats.prompt_tokens:,}",
            cached=f"{stats.cached_tokens:,}",
            completion=f"{stats.completion_tokens:,}",
        )
        fresh = stats.prompt_tokens - stats.cached_tokens
        pieces = (fresh, stats.cached_tokens, stats.completion_tokens)
        rows.append(BarRow(group.key, f"{_total_tokens(stats):,}", title, pieces))
    legend: list[tuple[charts.SeriesStyle, str]] = [
        ("solid", translate("insights.prompt")),
        ("hatch", translate("insights.cached")),
        ("outline", translate("insights.completion")),
    ]
    description = translate("insights.tokens_said", rows=" / ".join(r.title for r in rows))
    chart = charts.bar_chart(rows, [style for style, _ in legend], description) if rows else ""
    return _chart(
        translate("insights.tokens_chart"),
        _omitted_text(models, rows, visitor),
        legend,
        chart,
        visitor,
    )


def _cost_chart(summary: Summary, visitor: Visitor) -> str:
    translate = visitor.translate
    personas = sorted(summary.personas, key=lambda group: -(group.stats.cost or 0))
    rows = [
        BarRow(
            persona_name(group, visitor),
            _format_price(group.stats, visitor),
            translate(
                "insights.cost_of",
                name=persona_name(group, visitor),
                cost=_format_price(group.stats, visitor),
            ),
            (group.stats.cost or 0.0,),
        )
        for group in personas[:MAX_BARS]
    ]
    description = translate("insights.costs_said", rows=" / ".join(r.title for r in rows))
    chart = charts.bar_chart(rows, ["solid"], description)
    return _chart(
        translate("insights.costs_chart"),
        _omitted_text(personas, rows, visitor),
        [],
        chart,
        visitor,
    )


def _omitted_text(groups: Sequence[UsageGroup], rows: Sequence[BarRow], visitor: Visitor) -> str:
    """Return a text with the number of ``groups`` that have no row; "" if all have one."""
    if len(groups) <= len(rows):
        return ""
    return visitor.translate("insights.rest", count=len(groups) - len(rows))


def _total_tokens(stats: UsageStats) -> int:
    return stats.prompt_tokens + stats.completion_tokens


# ── tables ────────────────────────────────────────────────────────────────────────────────

TABLE_COLUMNS = ("answers", "errors", "first", "whole", "prompt", "completion", "cost", "cache")


def _tables(summary: Summary, visitor: Visitor) -> str:
    translate = visitor.translate
    groups = [
        ("", [(translate("insights.all"), summary.total)]),
        (
            translate("insights.by_persona"),
            [(persona_name(p, visitor), p.stats) for p in summary.personas],
        ),
        (translate("insights.by_model"), [(p.key, p.stats) for p in summary.models]),
    ]
    times = [
        (_time_label(group, summary, visitor), group.stats)
        for group in summary.timeline
        if group.stats != UsageStats()
    ]
    return (
        f'<div class="sheet">{_table(translate("insights.table"), groups, visitor)}</div>'
        f'<details class="sheet"><summary>{escape(translate("insights.by_time"))}</summary>'
        f"{_table(translate('insights.by_time'), [('', times)], visitor)}</details>"
    )


def _table(
    name: str, groups: Sequence[tuple[str, Sequence[tuple[str, UsageStats]]]], visitor: Visitor
) -> str:
    """Return a table as HTML. ``groups`` are (heading, rows); a row is (name, stats)."""
    text = [visitor.translate(f"insights.column.{column}") for column in TABLE_COLUMNS]
    head = "".join(f'<th scope="col">{escape(word)}</th>' for word in text)
    bodies = []
    for heading, rows in groups:
        title = (
            f'<tr><th class="group" scope="rowgroup" colspan="{1 + len(text)}">'
            f"{escape(heading)}</th></tr>"
        )
        lines = "".join(_table_row(name, stats, visitor) for name, stats in rows)
        bodies.append(f"<tbody>{title if heading else ''}{lines}</tbody>")
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(name)}"><table><thead>'
        f"<tr><td></td>{head}</tr></thead>{''.join(bodies)}</table></div>"
    )


def _table_row(name: str, stats: UsageStats, visitor: Visitor) -> str:
    prompt = f"{stats.prompt_tokens:,}"
    if stats.cached_tokens:
        prompt = visitor.translate(
            "insights.prompt_reused", count=prompt, cached=f"{stats.cached_tokens:,}"
        )
    values = (
        f"{stats.answers:,}",
        f"{stats.errors:,}",
        _format_percentiles(stats.first),
        _format_percentiles(stats.whole),
        prompt,
        f"{stats.completion_tokens:,}",
        _format_price(stats, visitor),
        _format_percent(stats.cache_hit_rate),
    )
    cells = "".join(f"<td>{escape(value)}</td>" for value in values)
    return f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'


def _format_percentiles(latency: LatencyPercentiles) -> str:
    if latency.p50 is None:
        return "–"
    return " · ".join(format_seconds(value) for value in (latency.p50, latency.p95, latency.p99))


def _format_percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _format_price(stats: UsageStats, visitor: Visitor, *, short: bool = False) -> str:
    """Return the known cost as text, and how many generations it leaves out.

    A dash means that no generation reports usage. ``short`` leaves the number out, for places
    where another line has it.
    """
    if not stats.has_usage:
        return "–"
    unknown = stats.unpriced and not stats.cost  # only free generations have a known price
    known = format_cost(None if unknown else stats.cost, visitor)
    if unknown or short or stats.cost is None or not stats.unpriced:
        return known
    return visitor.translate("insights.price_partly", known=known, count=f"{stats.unpriced:,}")


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


def _axis_label(group: UsageGroup, summary: Summary, visitor: Visitor) -> str:
    """Return the label under a position of the axis. Only every sixth hour has one."""
    moment = datetime.fromisoformat(group.key)
    if summary.step == "hour" and moment.hour % 6:
        return ""
    step = "day" if summary.step == "week" else summary.step
    return _format_time(moment, step, visitor)


def _time_label(group: UsageGroup, summary: Summary, visitor: Visitor) -> str:
    return _format_time(datetime.fromisoformat(group.key), summary.step, visitor)


def _format_time(moment: datetime, step: str, visitor: Visitor) -> str:
    months = visitor.translate("insights.months").split()
    return visitor.translate(
        f"insights.at.{step}",
        year=moment.year,
        month=months[moment.month - 1],
        day=moment.day,
        hour=moment.hour,
    )
