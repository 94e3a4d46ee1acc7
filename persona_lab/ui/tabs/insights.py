"""The insights tab: answers, latency, tokens, cost and errors of the visitor's personas.

It shows the statistics of ``persona_lab/insights.py`` as four numbers, four charts, and tables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import gradio as gr

from persona_lab.errors import PersonaLabError
from persona_lab.insights import SPAN, SPANS, zone_of
from persona_lab.lab import Lab
from persona_lab.ui.csv_export import spreadsheet
from persona_lab.ui.events import PRIVATE_EVENT
from persona_lab.ui.render.insights import alerts_html, board_html
from persona_lab.ui.session import Visitor, Visitors

LOOK = 15.0
"""Seconds between two checks of an open page for active alerts."""

WITH_ZONE = "(...values) => [...values.slice(0, -1), personaLab.zone()]"
"""The last value becomes the browser's time zone."""
SAVE = "(text) => personaLab.saveSheet(text)"
"""Saves the text as a file in the browser, and empties the hidden box that carried it."""


Alerts = Callable[[Visitor, str], Sequence[str]]
"""Returns the texts of the active alerts for a visitor and a time zone."""


def no_alerts(visitor: Visitor, zone: str) -> Sequence[str]:
    """Return no alerts: for pages that aren't the operator's."""
    return ()


def alerts_of(lab: Lab) -> Alerts:
    """Return a function that gives the texts of the active alerts of ``lab``."""

    def current_alerts(visitor: Visitor, zone: str) -> Sequence[str]:
        place = zone_of(zone)
        return [
            visitor.translate(
                "insights.alert_since",
                what=visitor.translate(alert.key, **alert.details),
                since=f"{alert.since.astimezone(place):%Y-%m-%d %H:%M}",
            )
            for alert in lab.monitor.alerts.current
        ]

    return current_alerts


class InsightsActions:
    """The actions of the tab."""

    def __init__(
        self,
        lab: Lab,
        visitors: Visitors,
        alerts: Alerts = no_alerts,
    ) -> None:
        self.lab = lab
        self.visitors = visitors
        self.alerts = alerts

    async def board(self, span: str, zone: str, visitor: Visitor) -> str:
        """Return the tab's content as HTML, or an error message.

        Args:
            span: The time span: one of ``SPANS``.
            zone: The time zone, in which days begin at midnight.
            visitor: The visitor.
        """
        try:
            summary = await visitor.operations(self.lab).summary(span, zone)
        except PersonaLabError as wrong:
            return f'<p class="warning" role="alert">{escape(visitor.error_text(wrong))}</p>'
        return board_html(summary, visitor)

    async def sheet(self, span: str, zone: str, visitor: Visitor) -> str:
        """Return the generations of a span as CSV, without message texts."""
        turns = await visitor.operations(self.lab).list_turns(span, zone)
        return spreadsheet(turns, zone_of(zone), visitor)


def build_watch(lab: Lab, page: gr.Blocks, both: Callable[[str], str]) -> None:
    """Add a hidden component to the bar that shows, as a dot, whether an alert is active.

    The dot is on the button of the insights tab, visible from every tab. The check doesn't
    identify the visitor: an open page without other requests must not keep its keys alive.
    """
    mark = f'<p class="unseen stands" role="status">{both("insights.alerts_stand")}</p>'

    def check(shown: str | None) -> Any:
        current = mark if lab.monitor.alerts.current else ""
        return gr.skip() if current == (shown or "") else current  # announced once

    watch = gr.HTML(elem_id="watch")
    gr.on([page.load, gr.Timer(LOOK).tick], check, [watch], [watch], queue=False, **PRIVATE_EVENT)


def build_insights(
    actions: InsightsActions, tab: gr.Tab, i18n: gr.I18n, both: Callable[[str], str]
) -> None:
    """Build the tab and connect its events. It counts when it is opened or refreshed.

    Args:
        actions: The actions of the tab.
        tab: The tab, whose selection updates the content.
        i18n: The translations of labels.
        both: Returns a text in both languages, for HTML.
    """
    alerts = gr.HTML(elem_id="insights-alerts")
    with gr.Row(elem_classes="tools", elem_id="insights-tools"):
        span = gr.Radio(
            [(i18n(f"insights.span.{name}"), name) for name in SPANS],
            value=SPAN,
            label=i18n("insights.span.label"),
            elem_id="insights-span",
            elem_classes="segments",
        )
        again = gr.Button(
            i18n("insights.again"), size="sm", elem_id="insights-again", elem_classes="tool"
        )
        save = gr.Button(
            i18n("insights.save"), size="sm", elem_id="insights-save", elem_classes="tool"
        )
    board = gr.HTML(f'<p class="quiet">{both("insights.counting")}</p>', elem_id="insights-board")
    zone = gr.Textbox(visible="hidden")
    sheet = gr.Textbox(visible="hidden", elem_id="insights-sheet")

    async def count(chosen: str, zone: str, request: gr.Request) -> tuple[str, str]:
        visitor = await actions.visitors.of(request)
        with visitor.error_toasts():
            shown = await actions.board(chosen, zone or "", visitor)
            return alerts_html(actions.alerts(visitor, zone or ""), visitor), shown

    async def export(chosen: str, zone: str, request: gr.Request) -> str:
        visitor = await actions.visitors.of(request)
        with visitor.error_toasts():
            return await actions.sheet(chosen, zone or "", visitor)

    gr.on(
        [tab.select, span.input, again.click],
        count,
        [span, zone],
        [alerts, board],
        queue=False,
        trigger_mode="always_last",
        js=WITH_ZONE,
        **PRIVATE_EVENT,
    )
    written = save.click(export, [span, zone], [sheet], queue=False, js=WITH_ZONE, **PRIVATE_EVENT)
    written.success(None, [sheet], [sheet], js=SAVE)
