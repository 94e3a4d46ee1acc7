"""Who calls: a program by its API token, else a visitor of this site's own page by their cookie.

A token stands in the header ``Authorization: Bearer pl_…``. A browser's WebSocket can set no
header: there it may stand in the address (``?token=``), or among the subprotocols. Whoever shows
a token is known by that alone. The cookie counts only where no page of another site has sent it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from starlette.requests import HTTPConnection

from persona_lab.db.store import TOKEN_PREFIX, Store
from persona_lab.errors import NotFound, Unauthorized
from persona_lab.lab import Lab
from persona_lab.server.operations import Operations
from persona_lab.server.session_cookie import from_another_site, language_of, visitor_secret
from persona_lab.types import Language


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated caller.

    Attributes:
        user_id: Owns what the call reads and makes.
        language: Of the messages that the caller gets.
        by_token: The caller is a program with an API token, not the page.
    """

    user_id: str
    language: Language
    by_token: bool = False

    def operations(self, lab: Lab) -> Operations:
        """What the caller can do, answered by the lab's own service."""
        return Operations(lab, self.user_id, self.language, lab.service)


async def caller(connection: HTTPConnection, store: Store) -> Caller:
    """Raises Unauthorized for who shows nothing, or a token that leads to nobody; StorageError."""
    secret = token_of(connection)
    if secret is not None:
        try:
            user = await asyncio.to_thread(store.user_for_token, secret)
        except NotFound:
            raise Unauthorized from None
        return Caller(user.id, spoken(connection), by_token=True)
    visitor = visitor_secret(connection.cookies)
    if visitor is None or from_another_site(connection.headers):
        raise Unauthorized
    user = await asyncio.to_thread(store.user_for_secret, visitor)
    return Caller(user.id, spoken(connection))


def spoken(connection: HTTPConnection) -> Language:
    """The language of messages to this client."""
    return language_of(connection.cookies, connection.headers)


def token_of(connection: HTTPConnection) -> str | None:
    """What the call shows as its token; None where it shows none."""
    scheme, _, secret = connection.headers.get("authorization", "").partition(" ")
    if scheme:
        return secret.strip() if scheme.lower() == "bearer" else ""
    if connection.scope["type"] != "websocket":
        return None
    if "token" in connection.query_params:
        return connection.query_params["token"]
    return next(filter(_is_token, connection.scope.get("subprotocols", ())), None)


def subprotocol(connection: HTTPConnection) -> str | None:
    """What to agree on with a WebSocket's client, for which naming none is a failure.

    The token itself only where it is all that was offered.
    """
    offered: list[str] = list(connection.scope.get("subprotocols", ()))
    return next((name for name in offered if not _is_token(name)), next(iter(offered), None))


def _is_token(name: str) -> bool:
    return name.startswith(TOKEN_PREFIX)
