"""Monitoring: log, metrics, alerts, and the id of a request.

``request_context.py`` keeps the id that all log lines of a request share. ``logs.py`` formats log
records. ``metrics.py`` counts for Prometheus. ``alerts.py`` raises and ends alerts, and
``webhook.py`` posts them. Metrics and alerts observe each finished generation, in a thread of the
turn. An error here never breaks an answer.
"""

from __future__ import annotations

from dataclasses import dataclass

from persona_lab.monitor.alerts import Alerts
from persona_lab.monitor.metrics import Metrics
from persona_lab.monitor.request_context import request, request_id
from persona_lab.monitor.webhook import Webhook

__all__ = ["Alerts", "Metrics", "Monitor", "Webhook", "request", "request_id"]


@dataclass(frozen=True, slots=True)
class Monitor:
    """The observers of a lab."""

    metrics: Metrics
    alerts: Alerts
    webhook: Webhook | None = None

    def close(self) -> None:
        """End all alerts, and let the webhook send what is queued (blocks for a moment)."""
        self.alerts.close()
        if self.webhook is not None:
            self.webhook.close()
