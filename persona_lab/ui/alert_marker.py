"""A hidden component of the header that marks the insights tab while an alert is active."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from persona_lab.lab import Lab
from persona_lab.ui.events import PRIVATE_EVENT

CHECK_INTERVAL_S = 15.0
"""Seconds between two checks of an open page for active alerts."""


def build_alert_marker(lab: Lab, page: gr.Blocks, bilingual: Callable[[str], str]) -> None:
    """Build the marker. CSS shows it as a dot on the tab's button, visible from every tab.

    The check doesn't identify the visitor: an open page without other requests must not keep its
    keys alive.
    """
    active = (
        f'<p class="visually-hidden active" role="status">{bilingual("insights.alerts_stand")}</p>'
    )

    def check(shown: str | None) -> Any:
        current = active if lab.monitor.alerts.current else ""
        return gr.skip() if current == (shown or "") else current  # announced once

    marker = gr.HTML(elem_id="alert-marker")
    gr.on(
        [page.load, gr.Timer(CHECK_INTERVAL_S).tick],
        check,
        [marker],
        [marker],
        queue=False,
        **PRIVATE_EVENT,
    )
