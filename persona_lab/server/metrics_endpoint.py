"""``/metrics``: metrics for Prometheus, for the operator only.

With ``METRICS_TOKEN`` set, the endpoint answers requests that have it as a bearer token. Without
one, it answers only if the lab serves its own machine, the request names a loopback host, and no
proxy has forwarded it.
"""

from __future__ import annotations

import secrets

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from persona_lab.errors import InvalidRequest
from persona_lab.lab import Lab
from persona_lab.server.auth import client_language
from persona_lab.server.error_responses import error_response

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_PROXY_HEADERS = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "via")


def is_local_only(lab: Lab, *, shared: bool) -> bool:
    """Return whether the lab serves its own machine only.

    Args:
        lab: The lab.
        shared: Whether a public share link leads to it.
    """
    return lab.settings.gradio_server_name in LOOPBACK and not shared


class MetricsEndpoint:
    """The metrics endpoint of a lab. :meth:`answer` is the endpoint."""

    def __init__(self, lab: Lab, *, shared: bool = False) -> None:
        """Make the endpoint. The arguments are those of :func:`is_local_only`."""
        self._lab = lab
        self._local_only = is_local_only(lab, shared=shared)

    async def answer(self, request: Request) -> Response:
        """Return the metrics, or 404 for a client that may not read them."""
        if not self._may_read(request):
            error = InvalidRequest(why="no_route", status=404)
            body = error_response(error, self._lab.error_handler, client_language(request))
            return JSONResponse(body, 404)
        text, media_type = self._lab.monitor.metrics.render(request.headers.get("accept", ""))
        return Response(text, media_type=media_type)

    def _may_read(self, request: Request) -> bool:
        token = self._lab.settings.metrics_token
        if token is None:
            forwarded = any(name in request.headers for name in _PROXY_HEADERS)
            return self._local_only and request.url.hostname in LOOPBACK and not forwarded
        sent = request.headers.get("authorization", "")
        expected = f"Bearer {token.get_secret_value()}"
        return secrets.compare_digest(sent.encode(), expected.encode())
