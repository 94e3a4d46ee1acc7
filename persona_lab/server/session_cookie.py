"""The visitor's cookie: a secret that scripts can't read. The store keeps its hash."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from persona_lab.types import Language

COOKIE = "persona_lab_visitor"
LANGUAGE_COOKIE = "persona_lab_language"
_SECRET = re.compile(r"[A-Za-z0-9_-]{43}")
_YEAR = 365 * 24 * 3600

POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    "connect-src 'self' data: blob: ws: wss:; object-src 'none'; base-uri 'self'"
)
"""Content-Security-Policy: the page loads nothing from other hosts."""


def visitor_secret(cookies: Mapping[str, str]) -> str | None:
    """The visitor's secret, when the cookie has the form that this module gives it."""
    secret = cookies.get(COOKIE, "")
    return secret if _SECRET.fullmatch(secret) else None


def language_of(cookies: Mapping[str, str], headers: Mapping[str, str]) -> Language:
    """The language chosen on the page, else the client's, else Japanese."""
    chosen = cookies.get(LANGUAGE_COOKIE, "")
    if chosen in ("ja", "en"):
        return "ja" if chosen == "ja" else "en"
    return _preferred(headers.get("accept-language", "ja"))


def _preferred(accepted: str) -> Language:
    """The preferred language of an ``Accept-Language`` header.

    Of equal weights the first wins. English if neither Japanese nor English is named.
    """
    best, wanted = 0.0, "en"
    for part in accepted.split(",")[:50]:
        name, *about = (each.strip() for each in part.lower().split(";"))
        language = name.partition("-")[0]
        weight = next((each[2:] for each in about if each.startswith("q=")), "1")
        try:
            weighs = float(weight)
        except ValueError:
            continue
        if language in ("ja", "en") and weighs > best:
            best, wanted = weighs, language
    return "ja" if wanted == "ja" else "en"


class VisitorCookie:
    """Sets the visitor's cookie when the page is opened, and renews it.

    Cookies of requests that another site's page sends are dropped: Gradio answers every origin.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request or a WebSocket."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if scope["type"] == "websocket" or scope["path"] != "/":
            if from_another_site(headers):
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


def from_another_site(headers: Headers) -> bool:
    """Browsers say so themselves, and no page can forge it; older ones name their origin."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    ours = (headers.get("host"), headers.get("x-forwarded-host"))
    return origin is not None and origin.partition("://")[2] not in ours
