"""The page's own head, and which of Gradio's doors stay shut."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CLOSED = (
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


class ClosedDoors:
    """Answers 404 for :data:`CLOSED`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(CLOSED):
            await PlainTextResponse("Not found", 404)(scope, receive, send)
            return
        await self.app(scope, receive, send)
