"""Middleware around Gradio's app: the page's head, the allowed routes, and the inputs of calls."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Match, compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from persona_lab.errors import InvalidRequest
from persona_lab.lab import Lab
from persona_lab.monitor.request_context import choose_id
from persona_lab.server.auth import client_language
from persona_lab.server.error_responses import error_response, status_of
from persona_lab.server.root_path import route_path, with_root_path

GRADIO_ROUTES = {
    ("GET HEAD", "/"): "the page; Gradio's own start asks with HEAD whether it is served",
    ("GET", "/assets/{file:path}"): "the page's scripts and styles",
    ("GET", "/static/js/{file:path}"): "the script by which a Space sizes the page's frame",
    ("GET", "/theme.css"): "the page's colours",
    ("GET", "/favicon.ico"): "browsers ask for it",
    ("GET", "/manifest.json"): "the page links it",
    ("GET", "/robots.txt"): "a share link tells crawlers to stay away",
    ("GET", "/config"): "gradio_client reads the components and the version here",
    ("GET", "/gradio_api/info"): "gradio_client and the API page read the endpoints here",
    ("GET", "/gradio_api/startup-events"): "launch() starts the queue with it",
    ("GET", "/gradio_api/heartbeat/{session}"): "tells the server that a page was closed",
    ("GET", "/gradio_api/app_id"): "a page asks after a lost connection whether the app restarted",
    ("POST", "/gradio_api/queue/join"): "calls of the page and of gradio_client",
    ("GET", "/gradio_api/queue/data"): "answers to the page and to gradio_client",
    ("POST", "/gradio_api/run/{endpoint}"): "events of the page that skip the queue",
    ("POST", "/gradio_api/call/{endpoint}"): "calls of programs without a client, such as curl",
    ("POST", "/gradio_api/call/v2/{endpoint}"): "the same with named parameters",
    ("GET", "/gradio_api/call/{endpoint}/{event}"): "answers to those calls",
    ("POST", "/gradio_api/cancel"): "stops a running call",
    ("POST", "/gradio_api/reset"): "gradio_client ends an iteration with it",
}
"""Gradio's routes that are served, and who needs each: methods and path as Starlette writes it.

A trailing slash makes no difference. The other routes of Gradio serve files, write inputs to the
disk, or belong to features that are switched off.
"""

_PATTERNS = [(frozenset(methods.split()), compile_path(path)[0]) for methods, path in GRADIO_ROUTES]


class FrontPage:
    """Inserts ``head`` at the start of the page's ``<head>`` element.

    Gradio's own ``head=`` is added only after the page has chosen a language and rendered once.
    """

    def __init__(self, app: ASGIApp, head: str) -> None:
        self.app = app
        self._mark, self._head = b"<head>", b"<head>" + head.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request; change the front page only."""
        if scope["type"] != "http" or route_path(scope) != "/" or scope["method"] != "GET":
            await self.app(scope, receive, send)
            return
        start: Message = {}
        body = bytearray()

        async def send_with_head(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message
                return
            body.extend(message.get("body", b""))
            if message.get("more_body"):
                return
            page = bytes(body).replace(self._mark, self._head, 1)
            MutableHeaders(scope=start)["content-length"] = str(len(page))
            await send(start)
            await send({"type": "http.response.body", "body": page})

        await self.app(scope, receive, send_with_head)


class RequestIdHeader:
    """Gives each response without ``X-Request-ID`` that header: the client's id, or a new one.

    It also tells nginx not to buffer event streams, those of Gradio too.

    It sets no id for the log: Gradio starts its queue in a request, and all events of the queue
    would have the id of that request.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = choose_id(Headers(scope=scope).get("x-request-id"))

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("x-request-id", request_id)
                if headers.get("content-type", "").startswith("text/event-stream"):
                    headers.setdefault("x-accel-buffering", "no")
            await send(message)

        await self.app(scope, receive, send_with_id)


class AllowGradioRoutes:
    """Passes on requests to the app's own routes and to :data:`GRADIO_ROUTES`.

    Every other request gets 404, or 405 if an own route has no such method, in the shape of
    :mod:`persona_lab.server.error_responses`. A preflight of another site's page that wants to send
    ``X-Forwarded-*`` gets 403: those headers are for proxies only.

    The path and the root path are made uniform first (:mod:`persona_lab.server.root_path`). The
    root path without a slash redirects to the page, whose links are relative.

    Args:
        app: The app behind this middleware.
        lab: Its error handler knows the message of the 404.
        own: The routes that this project adds to Gradio's app.
    """

    def __init__(self, app: ASGIApp, lab: Lab, own: Sequence[BaseRoute]) -> None:
        self.app = app
        self._lab = lab
        self._own = own

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or refuse it."""
        if scope["type"] in ("http", "websocket"):
            scope = with_root_path(scope)
        if scope["type"] == "http":
            refusal = self._refusal(scope)
            if refusal is not None:
                await refusal(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        if scope["path"] == scope["root_path"] and scope["method"] in ("GET", "HEAD"):
            query = scope.get("query_string", b"").decode("latin-1")
            return RedirectResponse(f"{scope['root_path']}/" + (query and f"?{query}"))
        if not is_allowed(scope["method"], route_path(scope)):
            match = self._own_match(scope)
            if match == Match.NONE:
                return self._error(scope, InvalidRequest(why="no_route", status=404))
            if match == Match.PARTIAL and scope["method"] != "OPTIONS":
                return self._error(scope, InvalidRequest(why="no_method", status=405))
        if scope["method"] == "OPTIONS":
            wanted = Headers(scope=scope).get("access-control-request-headers", "").lower()
            if "forwarded" in wanted:
                return PlainTextResponse("Forbidden", 403)
        return None

    def _error(self, scope: Scope, error: InvalidRequest) -> Response:
        language = client_language(HTTPConnection(scope))
        body = error_response(error, self._lab.error_handler, language)
        return JSONResponse(body, status_of(error))

    def _own_match(self, scope: Scope) -> Match:
        """Return how well the own routes match: the path and the method, the path, or nothing."""
        path = scope["path"]
        # Starlette redirects where only the trailing slash differs.
        variants = [{**scope, "path": p} for p in (path, path.rstrip("/"), f"{path}/")]
        matches = [route.matches(variant)[0] for route in self._own for variant in variants]
        return max(matches, key=lambda match: match.value, default=Match.NONE)


def is_allowed(method: str, path: str) -> bool:
    """Whether Gradio may answer ``method`` on ``path``, a path without the app's root path.

    A preflight is allowed wherever any method is.
    """
    path = path.rstrip("/") or "/"
    return any(
        pattern.match(path) and (method == "OPTIONS" or method in methods)
        for methods, pattern in _PATTERNS
    )


@dataclass(frozen=True, slots=True)
class CallInput:
    """One input of an endpoint or of an event of the page.

    Attributes:
        name: Its name; "" for an input of an event.
        required: Whether it has no default.
    """

    name: str = ""
    required: bool = True


FindInputs = Callable[[str, int | None], Sequence[CallInput] | None]
"""Returns the inputs of an endpoint by name, or of the event with an index; None without one."""


class CheckGradioCalls:
    """Refuses calls of Gradio's API that Gradio can't handle, or that contain a file.

    Gradio answers a call of an unknown endpoint, or with too few inputs, with 500, and writes the
    inputs into the log. Gradio also downloads every file that an input names before a handler runs,
    and keeps it on the disk. No field of this page takes a file.

    Args:
        app: The app behind this middleware.
        lab: Its error handler knows the messages of refusals.
        find_inputs: Finds the inputs of an endpoint.
    """

    MAX_BYTES = 4_000_000
    """Size of one call. A persona with every field full takes a fifth of it."""
    PREFIX = "/gradio_api/"

    def __init__(self, app: ASGIApp, lab: Lab, find_inputs: FindInputs) -> None:
        self.app = app
        self._lab = lab
        self._find_inputs = find_inputs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or refuse its body."""
        path = route_path(scope) if scope["type"] == "http" else ""
        if not path.startswith(self.PREFIX) or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        body = bytearray()
        more_body = True
        while more_body:
            part = await receive()
            if part["type"] != "http.request":
                return  # the client disconnected
            body.extend(part.get("body", b""))
            more_body = part.get("more_body", False)
            if len(body) > self.MAX_BYTES:
                await self._refuse(InvalidRequest(why="too_large", status=413), scope, send)
                return
        try:
            self._check(path.removeprefix(self.PREFIX).rstrip("/"), bytes(body))
        except InvalidRequest as error:
            await self._refuse(error, scope, send)
            return
        buffered: Message | None = {"type": "http.request", "body": bytes(body)}

        async def replay() -> Message:
            nonlocal buffered
            message, buffered = buffered, None
            return message if message is not None else await receive()

        await self.app(scope, replay, send)

    async def _refuse(self, error: InvalidRequest, scope: Scope, send: Send) -> None:
        language = client_language(HTTPConnection(scope))
        body = error_response(error, self._lab.error_handler, language)
        await JSONResponse(body, status_of(error))(scope, _no_message, send)

    def _check(self, path: str, body: bytes) -> None:
        """Raise InvalidRequest if Gradio can't handle the call ``body`` of ``path``."""
        try:
            call = json.loads(body)
        except (ValueError, RecursionError):
            raise InvalidRequest(why="not_json") from None
        if not isinstance(call, dict):
            raise InvalidRequest(why="no_object")
        if _contains_file(call):
            raise InvalidRequest(why="no_files", status=400)
        if path == "queue/join":
            index = _as_index(call.get("fn_index"))
            if index is None:
                raise InvalidRequest(why="field_value", field="fn_index")
            _check_list(call, self._find_inputs("", index))
            return
        kind, _, name = path.rpartition("/")
        if kind == "run":
            _check_list(call, self._find_inputs(name, _as_index(call.get("fn_index"))))
        elif kind == "call":
            _check_list(call, self._find_inputs(name, None))
        elif kind == "call/v2":
            _check_names(call, self._find_inputs(name, None))


async def _no_message() -> Message:
    return {"type": "http.disconnect"}


def _as_index(value: Any) -> int | None:
    """Return a function index as Gradio reads it; None for a value that is none."""
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _check_list(call: dict[str, Any], inputs: Sequence[CallInput] | None) -> None:
    """Check a call with a list of inputs. Gradio ignores further inputs."""
    if inputs is None:
        raise InvalidRequest(why="no_route", status=404)
    data = call.get("data")
    if not isinstance(data, list):
        raise InvalidRequest(why="field_value", field="data")
    if len(data) < len(inputs):
        names = ", ".join(each.name for each in inputs)
        raise InvalidRequest(
            why="few_inputs", field="data", needed=len(inputs), given=len(data), names=names
        )


def _check_names(call: dict[str, Any], inputs: Sequence[CallInput] | None) -> None:
    """Check a call with named inputs."""
    if inputs is None:
        raise InvalidRequest(why="no_route", status=404)
    names = {each.name for each in inputs}
    unknown = [name for name in call if name not in {*names, "oauth_token"}]
    missing = [each.name for each in inputs if each.required and each.name not in call]
    if missing or unknown:
        raise InvalidRequest(why="field_value", field=[*missing, *unknown][0][:80])


def _contains_file(call: dict[str, Any]) -> bool:
    pending: list[Any] = [call]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            meta = value.get("meta")
            if isinstance(meta, dict) and "_type" in meta:
                return True
            pending += value.values()
        elif isinstance(value, list):
            pending += value
    return False
