"""What the page's Gradio events share: options, the type of an update, cancelling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gradio.components import Component

Update = dict[Component, Any]
"""New values of components, as an event's handler returns them."""

PRIVATE_EVENT: Mapping[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
"""Options of the page's own events: hidden from API clients, without Gradio's loading overlay."""
WITH_TIME_ZONE = "(...values) => [...values.slice(0, -1), personaLab.zone()]"
"""A script for an event: the last value becomes the browser's time zone."""


def noop_for_cancel() -> None:
    """Do nothing, as the function of an event that cancels others.

    Gradio cancels after the event's function has returned, so the function must return at once.
    A later event shows the result.
    """
