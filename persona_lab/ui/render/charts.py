"""Charts as inline SVG, without a library, a script or a request.

Widths are percentages and heights are pixels, without a viewBox: a chart fills the width of its
container, and its text keeps its size. Classes of ``page.css`` set the colours, so charts follow
light and dark mode. Series differ in pattern, not only in colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

SeriesStyle = Literal["solid", "hatch", "outline", "error", "line", "dashed"]

PLOT_HEIGHT = 168
"""Pixels from the baseline to the highest value."""
HEAD_HEIGHT, FOOT_HEIGHT = 14, 26
"""Pixels above the plot for the top number, and below it for the labels of the axis."""
ROW_HEIGHT, BAR_HEIGHT = 46, 13
"""Pixels of the height of a row with its text, and of its bar."""
MAX_AXIS_LABELS = 4
"""Maximum number of labels along an axis: a phone's screen fits so many."""

PATTERNS = (
    '<svg class="patterns" width="0" height="0" aria-hidden="true" focusable="false"><defs>'
    + "".join(
        f'<pattern id="chart-{style}" width="6" height="6" patternUnits="userSpaceOnUse"'
        f' patternTransform="rotate({turn})"><rect class="ground" width="6" height="6"/>'
        '<rect class="stripe" width="2.6" height="6"/></pattern>'
        for style, turn in (("hatch", 45), ("error", -45))
    )
    + "</defs></svg>"
)
"""The fill patterns. A page with charts contains them once."""


@dataclass(frozen=True, slots=True)
class TimePoint:
    """One position on a time axis.

    Attributes:
        label: The text under it; may be "".
        title: The tooltip.
        values: One value for each series; None where there is none.
    """

    label: str
    title: str
    values: Sequence[float | None]


@dataclass(frozen=True, slots=True)
class BarRow:
    """A horizontal bar.

    Attributes:
        name: The text at its start.
        value: The value as text, at its end.
        title: The tooltip.
        segments: The lengths of its segments, one for each style.
    """

    name: str
    value: str
    title: str
    segments: Sequence[float]


def legend(entries: Sequence[tuple[SeriesStyle, str]]) -> str:
    """Return the legend as HTML: a swatch and a text for each style."""
    return "".join(
        f'<span><svg width="22" height="12" aria-hidden="true" focusable="false">'
        f"{_swatch(style)}</svg>{escape(words)}</span>"
        for style, words in entries
    )


def _swatch(style: SeriesStyle) -> str:
    if style in ("line", "dashed"):
        return (
            f'<line class="{style}" x1="1" y1="6" x2="21" y2="6"/>'
            f'<circle class="dot-{style}" cx="11" cy="6" r="3"/>'
        )
    return _rect(style, "1", 1, "20", 10)


def _rect(style: SeriesStyle, x: str, y: float, width: str, height: float) -> str:
    fill = f' fill="url(#chart-{style})"' if style in ("hatch", "error") else ""
    return (
        f'<rect class="{style}"{fill} x="{x}" y="{y:.1f}" width="{width}" height="{height:.1f}"/>'
    )


def column_chart(
    points: Sequence[TimePoint], styles: Sequence[SeriesStyle], description: str
) -> str:
    """Draw a stacked column for each point, on a scale of whole numbers.

    Args:
        points: The positions on the time axis.
        styles: The style of each series.
        description: The chart's content as text, for screen readers.

    Returns:
        The chart as SVG.
    """
    scale = axis_ticks(max(sum(v or 0 for v in p.values) for p in points), whole=True)
    share = 100 / len(points)
    width = min(0.66 * share, 9)
    shapes = []
    for number, point in enumerate(points):
        top = 0.0
        for style, value in zip(styles, point.values, strict=True):
            if value:
                height = max(value / scale[-1] * PLOT_HEIGHT, 1.5)
                left = (number + 0.5) * share - width / 2
                y = HEAD_HEIGHT + PLOT_HEIGHT - top - height
                shapes.append(_rect(style, f"{left:.2f}%", y, f"{width:.2f}%", height))
                top += height
    return _with_axes(points, scale, "{:,.0f}".format, "".join(shapes), description)


def line_chart(points: Sequence[TimePoint], styles: Sequence[SeriesStyle], description: str) -> str:
    """Draw a line for each series, with a gap where there is no value.

    Args:
        points: The positions on the time axis.
        styles: The style of each series.
        description: The chart's content as text, for screen readers.

    Returns:
        The chart as SVG.
    """
    scale = axis_ticks(max((v for p in points for v in p.values if v is not None), default=0))
    share = 100 / len(points)
    shapes = []
    for kind, style in enumerate(styles):
        before: tuple[float, float] | None = None
        marks = []
        for number, point in enumerate(points):
            value = point.values[kind]
            if value is None:
                before = None
                continue
            x, y = (number + 0.5) * share, HEAD_HEIGHT + PLOT_HEIGHT * (1 - value / scale[-1])
            if before is not None:
                shapes.append(
                    f'<line class="{style}" x1="{before[0]:.2f}%" y1="{before[1]:.1f}"'
                    f' x2="{x:.2f}%" y2="{y:.1f}"/>'
                )
            marks.append(f'<circle class="dot-{style}" cx="{x:.2f}%" cy="{y:.1f}" r="3"/>')
            before = x, y
        shapes += marks
    return _with_axes(points, scale, "{:g}".format, "".join(shapes), description)


def _with_axes(
    points: Sequence[TimePoint],
    scale: Sequence[float],
    number: Callable[[float], str],
    shapes: str,
    description: str,
) -> str:
    """Add the axes below ``shapes``, and above it a hover target for each point."""
    ground = HEAD_HEIGHT + PLOT_HEIGHT
    grid = []
    for value in scale:
        y = ground - PLOT_HEIGHT * value / scale[-1]
        grid.append(
            f'<line class="grid" x1="0" y1="{y:.1f}" x2="100%" y2="{y:.1f}"/>'
            f'<text class="tick" x="-8" y="{y + 4:.1f}">{number(value)}</text>'
        )
    share = 100 / len(points)
    named = [(n, point.label) for n, point in enumerate(points) if point.label]
    interval = math.ceil(len(named) / MAX_AXIS_LABELS)
    labels = [
        f'<text class="label" x="{(n + 0.5) * share:.2f}%" y="{ground + 20}">{escape(label)}</text>'
        for position, (n, label) in enumerate(named)
        if (len(named) - 1 - position) % interval == 0  # the last point always has its label
    ]
    targets = [
        f'<rect class="point" x="{n * share:.2f}%" y="0" width="{share:.2f}%" height="{ground}">'
        f"<title>{escape(point.title)}</title></rect>"
        for n, point in enumerate(points)
    ]
    return _svg(
        "over-time", ground + FOOT_HEIGHT, description, "".join([*grid, shapes, *labels, *targets])
    )


def bar_chart(bars: Sequence[BarRow], styles: Sequence[SeriesStyle], description: str) -> str:
    """Draw a bar for each row; the longest fills the width of the chart.

    Args:
        bars: The rows, from top to bottom.
        styles: The style of each segment.
        description: The chart's content as text, for screen readers.

    Returns:
        The chart as SVG.
    """
    highest = max((sum(row.segments) for row in bars), default=0) or 1
    shapes = []
    for number, row in enumerate(bars):
        y, left = number * ROW_HEIGHT, 0.0
        bar = [f'<rect class="rail" x="0" y="{y + 22 + BAR_HEIGHT}" width="100%" height="1"/>']
        for style, segment in zip(styles, row.segments, strict=True):
            if segment:
                width = segment / highest * 100
                bar.append(_rect(style, f"{left:.2f}%", y + 22, f"{width:.2f}%", BAR_HEIGHT))
                left += width
        shapes.append(
            f"<g><title>{escape(row.title)}</title>"
            f'<foreignObject x="0" y="{y}" width="100%" height="22"><div class="words">'
            f"<span>{escape(row.name)}</span><span>{escape(row.value)}</span></div></foreignObject>"
            f"{''.join(bar)}"
            f'<rect class="point" x="0" y="{y}" width="100%" height="{ROW_HEIGHT}"/></g>'
        )
    return _svg("rows", ROW_HEIGHT * len(bars), description, "".join(shapes))


def _svg(kind: str, height: int, description: str, inside: str) -> str:
    return (
        f'<svg class="chart {kind}" role="img" aria-label="{escape(description)}" focusable="false"'
        f' width="100%" height="{height}">{inside}</svg>'
    )


def axis_ticks(highest: float, *, whole: bool = False) -> list[float]:
    """Return two to six round numbers from 0 to at least ``highest``; integers if ``whole``."""
    if highest < 1e-6:
        return [0.0, 1.0]
    rough = highest / 4
    size = 10 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10, 20) if size * factor >= rough)
    if whole:
        step = max(1.0, step)
    return [step * n for n in range(math.ceil(highest / step - 1e-9) + 1)]
