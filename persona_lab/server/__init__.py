"""HTTP around the page and beside it, without Gradio components.

``gradio_middleware.py`` limits what Gradio serves, ``session_cookie.py`` knows visitors,
``auth.py`` knows callers. ``rest.py`` is ``/api/v1``, ``openai_api.py`` is ``/v1`` in OpenAI's
form, ``websocket.py`` is ``/ws/{chat_id}``, ``health.py`` and ``metrics_endpoint.py`` are for
operators; ``routes.py`` lists them. All act through ``operations.py`` and share
``serializers.py``, ``answer_events.py``, ``sse.py`` and ``error_responses.py``.
"""

from persona_lab.server.gradio_middleware import (
    AllowGradioRoutes,
    CheckGradioCalls,
    FrontPage,
    RequestIdHeader,
)
from persona_lab.server.session_cookie import (
    COOKIE,
    LANGUAGE_COOKIE,
    VisitorCookie,
    language_of,
    visitor_secret,
)
from persona_lab.server.single_instance import check_port, only_instance

__all__ = [
    "COOKIE",
    "LANGUAGE_COOKIE",
    "AllowGradioRoutes",
    "CheckGradioCalls",
    "FrontPage",
    "RequestIdHeader",
    "VisitorCookie",
    "check_port",
    "language_of",
    "only_instance",
    "visitor_secret",
]
