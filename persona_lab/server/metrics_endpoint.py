"""``/metrics``: figures for Prometheus, for whoever runs the house and nobody else.

With ``METRICS_TOKEN`` it opens to who shows that as a bearer token. Without one it is shut, but for
a lab that serves its own machine only: there it is open to a caller who calls it by such a name and
whose request no proxy passed on.
"""

from __future__ import annotations

import secrets

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from persona_lab.errors import InvalidRequest
from persona_lab.lab import Lab
from persona_lab.server.auth import spoken
from persona_lab.server.error_responses import error_response

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_PASSED_ON = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "via")


def is_local_only(lab: Lab, *, shared: bool) -> bool:
    """Whether the lab serves its own machine only. ``shared``: a link makes it public."""
    return lab.settings.gradio_server_name in LOOPBACK and not shared


class MetricsEndpoint:
    """:meth:`answer` is the endpoint over ``lab``; ``shared`` as :func:`alone` takes it."""

    def __init__(self, lab: Lab, *, shared: bool = False) -> None:
        self._lab = lab
        self._alone = is_local_only(lab, shared=shared)

    async def answer(self, request: Request) -> Response:
        """The metrics, or 404 for a client that may not read them."""
        if not self._opens_to(request):
            error = InvalidRequest(why="no_route", status=404)
            body = error_response(error, self._lab.error_handler, spoken(request))
            return JSONResponse(body, 404)
        text, kind = self._lab.monitor.metrics.render(request.headers.get("accept", ""))
        return Response(text, media_type=kind)

    def _opens_to(self, request: Request) -> bool:
        wanted = self._lab.settings.metrics_token
        if wanted is None:
            passed_on = any(name in request.headers for name in _PASSED_ON)
            return self._alone and request.url.hostname in LOOPBACK and not passed_on
        shown = request.headers.get("authorization", "")
        told = f"Bearer {wanted.get_secret_value()}"
        return secrets.compare_digest(shown.encode(), told.encode())
