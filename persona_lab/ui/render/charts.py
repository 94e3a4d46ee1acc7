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

Look = Literal["solid", "hatch", "outline", "error", "line", "dashed"]

HEIGHT = 168
"""Pixels from the baseline to the highest value."""
HEAD, FOOT = 14, 26
"""Pixels above the plot for the top number, and below it for the labels of the axis."""
ROW, BAR = 46, 13
"""Pixels of the height of a row with its text, and of its bar."""
LABELS = 4
"""Maximum number of labels along an axis: a phone's screen fits so many."""

PATTERNS = (
    '<svg class="patterns" width="0" height="0" aria-hidden="true" focusable="false"><defs>'
    + "".join(
        f'<pattern id="chart-{look}" width="6" height="6" patternUnits="userSpaceOnUse"'
        f' patternTransform="rotate({turn})"><rect class="ground" width="6" height="6"/>'
        '<rect class="stripe" width="2.6" height="6"/></pattern>'
        for look, turn in (("hatch", 45), ("error", -45))
    )
    + "</defs></svg>"
)
"""The fill patterns. A page with charts contains them once."""


@dataclass(frozen=True, slots=True)
class Place:
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
class Row:
    """A horizontal bar.

    Attributes:
        name: The text at its start.
        value: The value as text, at its end.
        title: The tooltip.
        pieces: The lengths of its segments, one for each look.
    """

    name: str
    value: str
    title: str
    pieces: Sequence[float]


def legend(entries: Sequence[tuple[Look, str]]) -> str:
    """Return the legend as HTML: a swatch and a text for each look."""
    return "".join(
        f'<span><svg width="22" height="12" aria-hidden="true" focusable="false">'
        f"{_swatch(look)}</svg>{escape(words)}</span>"
        for look, words in entries
    )


def _swatch(look: Look) -> str:
    if look in ("line", "dashed"):
        return (
            f'<line class="{look}" x1="1" y1="6" x2="21" y2="6"/>'
            f'<circle class="dot-{look}" cx="11" cy="6" r="3"/>'
        )
    return _rect(look, "1", 1, "20", 10)


def _rect(look: Look, x: str, y: float, width: str, height: float) -> str:
    fill = f' fill="url(#chart-{look})"' if look in ("hatch", "error") else ""
    return f'<rect class="{look}"{fill} x="{x}" y="{y:.1f}" width="{width}" height="{height:.1f}"/>'


def columns(places: Sequence[Place], looks: Sequence[Look], said: str) -> str:
    """Draw a stacked column for each place, on a scale of whole numbers.

    Args:
        places: The positions on the time axis.
        looks: The look of each series.
        said: The chart's content as text, for screen readers.

    Returns:
        The chart as SVG.
    """
    scale = ticks(max(sum(v or 0 for v in p.values) for p in places), whole=True)
    share = 100 / len(places)
    width = min(0.66 * share, 9)
    drawn = []
    for number, place in enumerate(places):
        top = 0.0
        for look, value in zip(looks, place.values, strict=True):
            if value:
                height = max(value / scale[-1] * HEIGHT, 1.5)
                left = (number + 0.5) * share - width / 2
                y = HEAD + HEIGHT - top - height
                drawn.append(_rect(look, f"{left:.2f}%", y, f"{width:.2f}%", height))
                top += height
    return _over_time(places, scale, "{:,.0f}".format, "".join(drawn), said)


def lines(places: Sequence[Place], looks: Sequence[Look], said: str) -> str:
    """Draw a line for each series, with a gap where there is no value.

    Args:
        places: The positions on the time axis.
        looks: The look of each series.
        said: The chart's content as text, for screen readers.

    Returns:
        The chart as SVG.
    """
    scale = ticks(max((v for p in places for v in p.values if v is not None), default=0))
    share = 100 / len(places)
    drawn = []
    for kind, look in enumerate(looks):
        before: tuple[float, float] | None = None
        marks = []
        for number, place in enumerate(places):
            value = place.values[kind]
            if value is None:
                before = None
                continue
            x, y = (number + 0.5) * share, HEAD + HEIGHT * (1 - value / scale[-1])
            if before is not None:
                drawn.append(
                    f'<line class="{look}" x1="{before[0]:.2f}%" y1="{before[1]:.1f}"'
                    f' x2="{x:.2f}%" y2="{y:.1f}"/>'
                )
            marks.append(f'<circle class="dot-{look}" cx="{x:.2f}%" cy="{y:.1f}" r="3"/>')
            before = x, y
        drawn += marks
    return _over_time(places, scale, "{:g}".format, "".join(drawn), said)


def _over_time(
    places: Sequence[Place],
    scale: Sequence[float],
    number: Callable[[float], str],
    drawn: str,
    said: str,
) -> str:
    """Add the axes below ``drawn``, and above it a hover target for each place."""
    ground = HEAD + HEIGHT
    grid = []
    for value in scale:
        y = ground - HEIGHT * value / scale[-1]
        grid.append(
            f'<line class="grid" x1="0" y1="{y:.1f}" x2="100%" y2="{y:.1f}"/>'
            f'<text class="tick" x="-8" y="{y + 4:.1f}">{number(value)}</text>'
        )
    share = 100 / len(places)
    named = [(n, place.label) for n, place in enumerate(places) if place.label]
    every = math.ceil(len(named) / LABELS)
    words = [
        f'<text class="label" x="{(n + 0.5) * share:.2f}%" y="{ground + 20}">{escape(label)}</text>'
        for position, (n, label) in enumerate(named)
        if (len(named) - 1 - position) % every == 0  # the last place always has its label
    ]
    points = [
        f'<rect class="point" x="{n * share:.2f}%" y="0" width="{share:.2f}%" height="{ground}">'
        f"<title>{escape(place.title)}</title></rect>"
        for n, place in enumerate(places)
    ]
    return _svg("over-time", ground + FOOT, said, "".join([*grid, drawn, *words, *points]))


def rows(given: Sequence[Row], looks: Sequence[Look], said: str) -> str:
    """Draw a bar for each row; the longest fills the width of the chart.

    Args:
        given: The rows, from top to bottom.
        looks: The look of each segment.
        said: The chart's content as text, for screen readers.

    Returns:
        The chart as SVG.
    """
    most = max((sum(row.pieces) for row in given), default=0) or 1
    drawn = []
    for number, row in enumerate(given):
        y, left = number * ROW, 0.0
        bar = [f'<rect class="rail" x="0" y="{y + 22 + BAR}" width="100%" height="1"/>']
        for look, piece in zip(looks, row.pieces, strict=True):
            if piece:
                width = piece / most * 100
                bar.append(_rect(look, f"{left:.2f}%", y + 22, f"{width:.2f}%", BAR))
                left += width
        drawn.append(
            f"<g><title>{escape(row.title)}</title>"
            f'<foreignObject x="0" y="{y}" width="100%" height="22"><div class="words">'
            f"<span>{escape(row.name)}</span><span>{escape(row.value)}</span></div></foreignObject>"
            f'{"".join(bar)}<rect class="point" x="0" y="{y}" width="100%" height="{ROW}"/></g>'
        )
    return _svg("rows", ROW * len(given), said, "".join(drawn))


def _svg(kind: str, height: int, said: str, inside: str) -> str:
    return (
        f'<svg class="chart {kind}" role="img" aria-label="{escape(said)}" focusable="false"'
        f' width="100%" height="{height}">{inside}</svg>'
    )


def ticks(most: float, *, whole: bool = False) -> list[float]:
    """Return two to six round numbers from 0 to at least ``most``; integers if ``whole``."""
    if most < 1e-6:
        return [0.0, 1.0]
    rough = most / 4
    size = 10 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10, 20) if size * factor >= rough)
    if whole:
        step = max(1.0, step)
    return [step * n for n in range(math.ceil(most / step - 1e-9) + 1)]
