"""The routes besides those of Gradio, in the order in which they are matched."""

from __future__ import annotations

from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute

from persona_lab.lab import Lab
from persona_lab.server.cards import cards_app
from persona_lab.server.health import Readiness, healthz
from persona_lab.server.metrics_endpoint import MetricsEndpoint
from persona_lab.server.openai_api import completions_app
from persona_lab.server.rest import rest_app
from persona_lab.server.websocket import ChatSocket


def routes(lab: Lab, *, shared: bool = False) -> list[BaseRoute]:
    """Return the routes of Persona Lab. They are matched before those of Gradio.

    Args:
        lab: The lab that they serve.
        shared: A public share link leads to this app.
    """
    return [
        Route("/healthz", healthz),
        Route("/readyz", Readiness(lab).answer),
        Route("/metrics", MetricsEndpoint(lab, shared=shared).answer),
        WebSocketRoute("/ws/{chat_id}", ChatSocket(lab).handle),
        Mount("/api/v1/cards", cards_app(lab)),
        Mount("/api/v1", rest_app(lab)),
        Mount("/v1", completions_app(lab)),
    ]
