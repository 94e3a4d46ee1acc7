"""The HTTP interfaces, without Gradio components.

- Around the page: ``gradio_middleware.py`` limits what Gradio serves, and ``session_cookie.py``
  identifies visitors.
- For programs: ``rest.py`` (``/api/v1``), ``openai_api.py`` (``/v1``) and ``websocket.py``
  (``/ws/{chat_id}``). ``auth.py`` authenticates their callers.
- For operators: ``health.py`` and ``metrics_endpoint.py``.

``routes.py`` lists all routes, and ``root_path.py`` finds them behind a proxy. The interfaces act
through ``operations.py`` and share ``serializers.py``, ``answer_events.py``, ``sse.py`` and
``error_responses.py``.
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
    visitor_language,
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
    "only_instance",
    "visitor_language",
    "visitor_secret",
]
