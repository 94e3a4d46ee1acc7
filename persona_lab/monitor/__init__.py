"""The watch: what the house did, how long it took, what it cost, and when to look after it.

``requests.py`` is the id by which one request is followed through all its lines; ``logs.py``
makes lines of what the parts log; ``metrics.py`` counts for Prometheus; ``alerts.py`` says when
something is out of order, and ``webhook.py`` tells another program of it. They hear of each
generation when it is over, on a thread of the turn's own, and nothing here can break one.
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
    """All that watches a lab."""

    metrics: Metrics
    alerts: Alerts
    webhook: Webhook | None = None

    def close(self) -> None:
        """Watch no more, and let a webhook have what it hasn't had yet (blocks a moment)."""
        self.alerts.close()
        if self.webhook is not None:
            self.webhook.close()
