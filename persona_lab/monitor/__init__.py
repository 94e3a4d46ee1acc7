"""The watch: what the house did, how long it took, what it cost, and when to look after it.

``requests.py`` is the id by which one request is followed through all its lines; ``logs.py``
makes lines of what the parts log; ``metrics.py`` counts for Prometheus. They hear of each
generation when it is over, on a thread of the turn's own, and nothing here can break one.
"""

from __future__ import annotations

from dataclasses import dataclass

from persona_lab.monitor.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Monitor:
    """All that watches a lab."""

    metrics: Metrics
