"""The doors beside the pages, in the order in which they are tried."""

from __future__ import annotations

from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute

from persona_lab.lab import Lab
from persona_lab.server.completions import completions_app
from persona_lab.server.figures import MetricsDoor
from persona_lab.server.probes import Ready, alive
from persona_lab.server.rest import rest_app
from persona_lab.server.socket import Conversation


def routes(lab: Lab, *, shared: bool = False) -> list[BaseRoute]:
    """For the app that serves the pages, ahead of its own. ``shared``: a public link leads here."""
    return [
        Route("/healthz", alive),
        Route("/readyz", Ready(lab).answer),
        Route("/metrics", MetricsDoor(lab, shared=shared).answer),
        WebSocketRoute("/ws/{chat_id}", Conversation(lab).hold),
        Mount("/api/v1", rest_app(lab)),
        Mount("/v1", completions_app(lab)),
    ]
