"""The visitor's cookie: a secret that scripts can't read. The database has only its hash."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from persona_lab.server.root_path import route_path
from persona_lab.types import LANGUAGES, Language

COOKIE = "persona_lab_visitor"
LANGUAGE_COOKIE = "persona_lab_language"
_SECRET = re.compile(r"[A-Za-z0-9_-]{43}")
_MAX_AGE_S = 365 * 24 * 3600

POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    "connect-src 'self' data: blob: ws: wss:; object-src 'none'; base-uri 'self'"
)
"""Content-Security-Policy: the page loads nothing from other hosts."""


def visitor_secret(cookies: Mapping[str, str]) -> str | None:
    """Return the visitor's secret; None if there is no cookie, or one of another form."""
    secret = cookies.get(COOKIE, "")
    return secret if _SECRET.fullmatch(secret) else None


def visitor_language(cookies: Mapping[str, str], headers: Mapping[str, str]) -> Language:
    """Return the language chosen on the page, or the client's, or Japanese."""
    chosen = cookies.get(LANGUAGE_COOKIE, "")
    if chosen in LANGUAGES:
        return "ja" if chosen == "ja" else "en"
    return _preferred(headers.get("accept-language", "ja"))


def _preferred(accepted: str) -> Language:
    """Return the preferred language of an ``Accept-Language`` header.

    The first of equal weights wins. English if neither Japanese nor English is named.
    """
    highest, preferred = 0.0, "en"
    for part in accepted.split(",")[:50]:
        name, *parameters = (item.strip() for item in part.lower().split(";"))
        language = name.partition("-")[0]
        quality = next((item[2:] for item in parameters if item.startswith("q=")), "1")
        try:
            weight = float(quality)
        except ValueError:
            continue
        if language in LANGUAGES and weight > highest:
            highest, preferred = weight, language
    return "ja" if preferred == "ja" else "en"


class VisitorCookie:
    """Set the visitor's cookie when the page is opened, and renew it.

    Gradio answers requests of every origin, so cookies of cross-site requests are removed.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request or a WebSocket."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if scope["type"] == "websocket" or route_path(scope) != "/":
            if is_cross_site(headers):
                remaining = [pair for pair in scope["headers"] if pair[0] != b"cookie"]
                scope = {**scope, "headers": remaining}
            await self.app(scope, receive, send)
            return
        secret = visitor_secret(cookie_parser(headers.get("cookie", ""))) or secrets.token_urlsafe(
            32
        )
        secure = "https" in (scope.get("scheme"), _first(headers, "x-forwarded-proto").lower())
        # In a Space the page is in a frame of another site, where other cookies aren't sent.
        same_site = "SameSite=None; Secure; Partitioned" if secure else "SameSite=Lax"
        cookie = f"{COOKIE}={secret}; Path=/; Max-Age={_MAX_AGE_S}; HttpOnly; {same_site}"

        async def send_with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers_out = MutableHeaders(scope=message)
                headers_out.append("set-cookie", cookie)
                headers_out["content-security-policy"] = POLICY
            await send(message)

        await self.app(scope, receive, send_with_cookie)


def is_cross_site(headers: Headers) -> bool:
    """Return whether a page of another site sent the request.

    Browsers send ``Sec-Fetch-Site``, which scripts can't change. Older ones send ``Origin``.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    hosts = (headers.get("host"), _first(headers, "x-forwarded-host"))
    return origin is not None and origin.partition("://")[2] not in filter(None, hosts)


def _first(headers: Headers, name: str) -> str:
    """Return the first value of a list that proxies append to: the browser's side; "" for none."""
    return headers.get(name, "").partition(",")[0].strip()
