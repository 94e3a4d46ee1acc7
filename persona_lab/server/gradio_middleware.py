"""The page's own head, and which of Gradio's doors stay shut."""

from __future__ import annotations

import json

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BLOCKED_PATHS = (
    "/gradio_api/deep_link",
    "/gradio_api/file",
    "/file=",
    "/gradio_api/upload",
    "/gradio_api/upload_progress",
    "/gradio_api/run-history",
    "/gradio_api/profiling",
    "/gradio_api/vibe",
    "/gradio_api/undo-vibe",
    "/gradio_api/process_recording",
    "/gradio_api/custom_component",
    "/gradio_api/dev",
    "/gradio_api/runs",
    "/gradio_api/stream",
    "/gradio_api/component_server",
    "/gradio_api/proxy=",
    "/monitoring",
    "/runs",
    "/openapi.json",
    "/gradio_api/openapi.json",
)
"""Gradio's doors that nothing here uses: some write a visitor's inputs to the disk."""


class FrontPage:
    """Puts ``head`` at the very beginning of the page's own head.

    Gradio's ``head=`` joins the page only after it has settled on a language and drawn once.
    """

    def __init__(self, app: ASGIApp, head: str) -> None:
        self.app = app
        self._mark, self._head = b"<head>", b"<head>" + head.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != "/" or scope["method"] != "GET":
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


class BlockGradioRoutes:
    """Answers 404 for :data:`CLOSED`, and 403 where another site's page asks whether it may say
    that it was forwarded: that is a proxy's to say."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(BLOCKED_PATHS):
            await PlainTextResponse("Not found", 404)(scope, receive, send)
            return
        if scope["type"] == "http" and scope["method"] == "OPTIONS":
            wanted = Headers(scope=scope).get("access-control-request-headers", "").lower()
            if "forwarded" in wanted:
                await PlainTextResponse("Forbidden", 403)(scope, receive, send)
                return
        await self.app(scope, receive, send)


class RejectFileInputs:
    """Lets pass to Gradio what the page's own fields send, and nothing larger or cleverer.

    Gradio fetches the address of a file that an input describes before any handler sees it, and
    keeps it on the disk. No field here takes a file.
    """

    MOST = 4_000_000
    """Bytes of one call: a persona with every field full has a fifth of them."""
    DOORS = ("/gradio_api/", "/login", "/logout")

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        calls = scope["type"] == "http" and scope["method"] in ("POST", "PUT", "PATCH")
        if not calls or not scope["path"].startswith(self.DOORS):
            await self.app(scope, receive, send)
            return
        body = bytearray()
        more = True
        while more:
            part = await receive()
            if part["type"] != "http.request":
                return  # gone before it had said all
            body.extend(part.get("body", b""))
            more = part.get("more_body", False)
            if len(body) > self.MOST:
                await PlainTextResponse("Too large", 413)(scope, receive, send)
                return
        if _describes_a_file(bytes(body)):
            await PlainTextResponse("No files here", 400)(scope, receive, send)
            return
        whole: Message | None = {"type": "http.request", "body": bytes(body), "more_body": False}

        async def again() -> Message:
            nonlocal whole
            given, whole = whole, None
            return given if given is not None else await receive()

        await self.app(scope, again, send)


def _describes_a_file(body: bytes) -> bool:
    try:
        waiting = [json.loads(body)]
    except (ValueError, RecursionError):
        return False  # Gradio says so itself
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            meta = value.get("meta")
            if isinstance(meta, dict) and "_type" in meta:
                return True
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return False
