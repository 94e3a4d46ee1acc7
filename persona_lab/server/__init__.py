"""HTTP around the pages and beside them.

``visitors.py`` knows who a browser is, ``pages.py`` shapes the front page and shuts doors,
``instance.py`` takes the port. The doors for programs: ``who.py`` says who calls, ``rest.py`` is
``/api/v1``, ``completions.py`` ``/v1`` in OpenAI's form, ``socket.py`` ``/ws/{chat_id}``,
``probes.py`` whether all is well; ``telling.py``, ``stream.py`` and ``refusals.py`` are how they
tell an answer, send it, and say no. ``routes.py`` lists them.
"""

from persona_lab.server.gradio_middleware import (
    AllowGradioRoutes,
    FrontPage,
    RejectFileInputs,
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
    "FrontPage",
    "RejectFileInputs",
    "VisitorCookie",
    "check_port",
    "language_of",
    "only_instance",
    "visitor_secret",
]
