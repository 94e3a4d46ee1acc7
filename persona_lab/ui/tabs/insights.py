"""The insights tab: answers, latency, tokens, cost and errors of the visitor's personas.

It shows the statistics of ``persona_lab/insights.py`` as four numbers, four charts, and tables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import ClassVar

import gradio as gr

from persona_lab.errors import PersonaLabError
from persona_lab.insights import DEFAULT_SPAN, SPANS, generations_to_csv, parse_time_zone
from persona_lab.lab import Lab
from persona_lab.ui.events import PRIVATE_EVENT, WITH_TIME_ZONE
from persona_lab.ui.page_context import PageContext
from persona_lab.ui.render.insights import alerts_html, board_html
from persona_lab.ui.session import Visitor, Visitors

SAVE_CSV = "(text) => personaLab.saveSheet(text)"
"""Saves the text as a file in the browser, and empties the hidden box that carried it."""


Alerts = Callable[[Visitor, str], Sequence[str]]
"""Returns the texts of the active alerts for a visitor and a time zone."""


def no_alerts(visitor: Visitor, zone: str) -> Sequence[str]:
    """Return no alerts: for pages that aren't the operator's."""
    return ()


def alerts_of(lab: Lab) -> Alerts:
    """Return a function that gives the texts of the active alerts of ``lab``."""

    def current_alerts(visitor: Visitor, zone: str) -> Sequence[str]:
        place = parse_time_zone(zone)
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

    async def load_board(self, span: str, zone: str, visitor: Visitor) -> str:
        """Return the tab's content as HTML, or an error message.

        Args:
            span: The time span: one of ``SPANS``.
            zone: The time zone, in which days begin at midnight.
            visitor: The visitor.
        """
        try:
            summary = await visitor.operations(self.lab).summary(span, zone)
        except PersonaLabError as error:
            return f'<p class="warning" role="alert">{escape(visitor.error_text(error))}</p>'
        return board_html(summary, visitor)

    async def export_csv(self, span: str, zone: str, visitor: Visitor) -> str:
        """Return the generations of a span as CSV, without message texts."""
        turns = await visitor.operations(self.lab).list_turns(span, zone)
        return generations_to_csv(
            turns, parse_time_zone(zone), visitor.translations, visitor.language
        )


class InsightsTab:
    """The tab. It counts when it is opened or refreshed."""

    key: ClassVar[str] = "insights"

    def __init__(self, page: PageContext) -> None:
        self._page = page
        alerts = alerts_of(page.lab) if page.shows_alerts else no_alerts
        self._actions = InsightsActions(page.lab, page.visitors, alerts)

    def build(self, frame: gr.Tab) -> None:
        """Create the components."""
        i18n = self._page.i18n
        self._frame = frame
        self._alerts = gr.HTML(elem_id="insights-alerts")
        with gr.Row(elem_classes="tools", elem_id="insights-tools"):
            self._span = gr.Radio(
                [(i18n(f"insights.span.{name}"), name) for name in SPANS],
                value=DEFAULT_SPAN,
                label=i18n("insights.span.label"),
                elem_id="insights-span",
                elem_classes="segments",
            )
            self._refresh = gr.Button(
                i18n("insights.again"), size="sm", elem_id="insights-again", elem_classes="tool"
            )
            self._save = gr.Button(
                i18n("insights.save"), size="sm", elem_id="insights-save", elem_classes="tool"
            )
        counting = f'<p class="quiet">{self._page.bilingual("insights.counting")}</p>'
        self._board = gr.HTML(counting, elem_id="insights-board")
        self._zone = gr.Textbox(visible="hidden")
        self._csv = gr.Textbox(visible="hidden", elem_id="insights-sheet")

    async def _on_count(self, span: str, zone: str, request: gr.Request) -> tuple[str, str]:
        visitor = await self._page.visitors.from_request(request)
        with visitor.error_toasts():
            board = await self._actions.load_board(span, zone or "", visitor)
            return alerts_html(self._actions.alerts(visitor, zone or ""), visitor), board

    async def _on_save(self, span: str, zone: str, request: gr.Request) -> str:
        visitor = await self._page.visitors.from_request(request)
        with visitor.error_toasts():
            return await self._actions.export_csv(span, zone or "", visitor)

    def wire(self) -> None:
        """Connect the events."""
        inputs = [self._span, self._zone]
        gr.on(
            [self._frame.select, self._span.input, self._refresh.click],
            self._on_count,
            inputs,
            [self._alerts, self._board],
            queue=False,
            trigger_mode="always_last",
            js=WITH_TIME_ZONE,
            **PRIVATE_EVENT,
        )
        written = self._save.click(
            self._on_save, inputs, [self._csv], queue=False, js=WITH_TIME_ZONE, **PRIVATE_EVENT
        )
        written.success(None, [self._csv], [self._csv], js=SAVE_CSV)
