"""HTTP around the pages: who is visiting, which of Gradio's own doors stay shut, one instance.

A visitor is known by a secret in a cookie that scripts can't read; the store keeps its hash.
"""

from __future__ import annotations

import re
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from persona_lab.errors import ConfigurationError

COOKIE = "persona_lab_visitor"
LANGUAGE_COOKIE = "persona_lab_language"
_SECRET = re.compile(r"[A-Za-z0-9_-]{43}")
_YEAR = 365 * 24 * 3600

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


def visitor_secret(cookies: dict[str, str]) -> str | None:
    """The visitor's secret, when the cookie has the form that this module gives it."""
    secret = cookies.get(COOKIE, "")
    return secret if _SECRET.fullmatch(secret) else None


POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    "connect-src 'self' data: blob: ws: wss:; object-src 'none'; base-uri 'self'"
)
"""Nothing on the page may load from anywhere else, whoever wrote it."""


class VisitorCookie:
    """Gives every browser that opens the page a secret of its own, and keeps it fresh.

    A page of another site calls without it: Gradio answers every origin, cookies included.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if scope["type"] == "websocket" or scope["path"] != "/":
            if _from_another_site(headers):
                kept = [pair for pair in scope["headers"] if pair[0] != b"cookie"]
                scope = {**scope, "headers": kept}
            await self.app(scope, receive, send)
            return
        secret = visitor_secret(cookie_parser(headers.get("cookie", ""))) or secrets.token_urlsafe(
            32
        )
        secure = "https" in (scope.get("scheme"), headers.get("x-forwarded-proto"))
        # In a Space the page stands in another site's frame: only such a cookie reaches it.
        where = "SameSite=None; Secure; Partitioned" if secure else "SameSite=Lax"
        cookie = f"{COOKIE}={secret}; Path=/; Max-Age={_YEAR}; HttpOnly; {where}"

        async def send_with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers_out = MutableHeaders(scope=message)
                headers_out.append("set-cookie", cookie)
                headers_out["content-security-policy"] = POLICY
            await send(message)

        await self.app(scope, receive, send_with_cookie)


def _from_another_site(headers: Headers) -> bool:
    """Browsers say so themselves, and no page can forge it; older ones name their origin."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    ours = (headers.get("host"), headers.get("x-forwarded-host"))
    return origin is not None and origin.partition("://")[2] not in ours


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


def check_port(host: str, port: int) -> None:
    """Raises ConfigurationError when another program already serves there. Port 0 is any."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (socket.gaierror, UnicodeError) as wrong:
            raise ConfigurationError(
                f"GRADIO_SERVER_NAME: {host} is no address of this machine"
            ) from wrong
        except OSError as wrong:
            raise ConfigurationError(
                f"{host}:{port} can't be served ({wrong.strerror}): is another Persona Lab open? "
                "Close it, or choose another port with GRADIO_SERVER_PORT."
            ) from wrong


@contextmanager
def only_instance(database_url: str) -> Iterator[None]:
    """Holds a lock beside a SQLite file, so that two servers don't take turns with one database.

    Raises ConfigurationError when another holds it. Other databases need no such lock.
    """
    from filelock import FileLock, Timeout

    from persona_lab.store import database_file

    file = database_file(database_url)
    if file is None:
        yield
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{file}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        if not Path(lock.lock_file).exists():
            raise ConfigurationError(f"DATABASE_URL: {file.parent} takes no files") from None
        raise ConfigurationError(
            f"another Persona Lab already uses {file}: close it, or give this one its own "
            "database with DATABASE_URL=sqlite:///other.db"
        ) from None
    try:
        yield
    finally:
        lock.release()
