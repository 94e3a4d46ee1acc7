"""Authenticate callers: a program by its API token, or a visitor by the cookie of the page.

A token is sent in the header ``Authorization: Bearer pl_…``. A browser can't set headers of a
WebSocket, so there the token may also be in the query (``?token=``) or among the subprotocols. If a
request has a token, the cookie is ignored. Cookies of cross-site requests are ignored too.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from starlette.requests import HTTPConnection

from persona_lab.db.store import TOKEN_PREFIX, Store
from persona_lab.errors import NotFound, Unauthorized
from persona_lab.lab import Lab
from persona_lab.server.operations import Operations
from persona_lab.server.session_cookie import is_cross_site, visitor_language, visitor_secret
from persona_lab.types import Language


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated caller.

    Attributes:
        user_id: The owner of everything that the call reads and creates.
        language: The language of messages to the caller.
        by_token: The caller is a program with an API token, not the page.
    """

    user_id: str
    language: Language
    by_token: bool = False

    def operations(self, lab: Lab) -> Operations:
        """Return the caller's operations. The lab's own service answers."""
        return Operations(lab, self.user_id, self.language, lab.service)


async def authenticate(connection: HTTPConnection, store: Store) -> Caller:
    """Return the caller of a request or a WebSocket.

    Raises:
        Unauthorized: There is neither a token nor a usable cookie, or the token is not valid.
        StorageError: The database failed.
    """
    token = token_from(connection)
    if token is not None:
        try:
            user = await asyncio.to_thread(store.user_for_token, token)
        except NotFound:
            raise Unauthorized from None
        return Caller(user.id, client_language(connection), by_token=True)
    secret = visitor_secret(connection.cookies)
    if secret is None or is_cross_site(connection.headers):
        raise Unauthorized
    user = await asyncio.to_thread(store.user_for_secret, secret)
    return Caller(user.id, client_language(connection))


def client_language(connection: HTTPConnection) -> Language:
    """Return the language of messages to this client."""
    return visitor_language(connection.cookies, connection.headers)


def token_from(connection: HTTPConnection) -> str | None:
    """Return the token of a request; None if there is none, and "" for another auth scheme."""
    scheme, _, credentials = connection.headers.get("authorization", "").partition(" ")
    if scheme:
        return credentials.strip() if scheme.lower() == "bearer" else ""
    if connection.scope["type"] != "websocket":
        return None
    if "token" in connection.query_params:
        return connection.query_params["token"]
    return next(filter(_is_token, connection.scope.get("subprotocols", ())), None)


def choose_subprotocol(connection: HTTPConnection) -> str | None:
    """Return the subprotocol to accept a WebSocket with; None if the client offers none.

    Browsers close the connection if they offer subprotocols and the server accepts none. The token
    is chosen only if nothing else is offered.
    """
    offered: list[str] = list(connection.scope.get("subprotocols", ()))
    return next((name for name in offered if not _is_token(name)), next(iter(offered), None))


def _is_token(name: str) -> bool:
    return name.startswith(TOKEN_PREFIX)
