"""The base of the REST app and the ``/v1`` app.

It authenticates each request, limits its body, sets the request id and answers every error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from persona_lab.errors import PersonaLabError
from persona_lab.lab import Lab
from persona_lab.monitor.request_context import request as request_context
from persona_lab.server.auth import Caller, authenticate, client_language
from persona_lab.server.error_responses import headers_of, status_of, to_lab_error
from persona_lab.server.operations import Operations
from persona_lab.types import Language

ErrorBody = Callable[[PersonaLabError, Lab, Language], Any]
"""Returns the body of an error response, with a message in the language."""


def get_lab(request: Request) -> Lab:
    """Return the lab of the app that serves the request."""
    lab: Lab = request.app.state.lab
    return lab


async def require_caller(
    request: Request,
    _in_openapi: Annotated[
        object,
        Security(HTTPBearer(auto_error=False, description="An API token, `pl_…`.")),
    ],
) -> Caller:
    """Return the authenticated caller.

    Raises:
        Unauthorized: The request has no valid token or cookie.
        StorageError: The database failed.
    """
    return await authenticate(request, get_lab(request).store)


LabDep = Annotated[Lab, Depends(get_lab)]
CallerDep = Annotated[Caller, Depends(require_caller)]


def get_operations(lab: LabDep, caller: CallerDep) -> Operations:
    """Return the operations of the caller."""
    return caller.operations(lab)


OperationsDep = Annotated[Operations, Depends(get_operations)]


@dataclass(frozen=True, slots=True)
class Attachments:
    """How the parts of a body are dropped that no route reads.

    Attributes:
        drop: Returns a body without them.
        max_body: The largest body with them, in bytes.
    """

    drop: Callable[[bytes], bytes]
    max_body: int


def create_api_app(
    lab: Lab,
    routers: Sequence[APIRouter],
    *,
    error_body: ErrorBody,
    max_body: int,
    status_of_error: Callable[[PersonaLabError], int] = status_of,
    attachments: Attachments | None = None,
    **openapi: Any,
) -> FastAPI:
    """Return an app whose routes all require authentication.

    Args:
        lab: The lab of the routes.
        routers: The routes.
        error_body: Returns the body of an error response.
        max_body: The largest body of a request, in bytes.
        status_of_error: Returns the status of an error response.
        attachments: What is dropped from a body before its size is checked.
        openapi: Arguments of ``FastAPI``, such as ``title`` and ``version``.
    """

    def respond(scope: Scope, error: Exception) -> Response:
        lab_error = to_lab_error(error)
        body = error_body(lab_error, lab, client_language(HTTPConnection(scope)))
        return JSONResponse(body, status_of_error(lab_error), headers_of(lab_error))

    async def handle(request: Request, error: Exception) -> Response:
        return respond(request.scope, error)

    app = FastAPI(
        docs_url=None,  # these pages load scripts from other hosts
        redoc_url=None,
        redirect_slashes=False,  # the app doesn't know the scheme and host of a proxy
        dependencies=[Depends(require_caller)],  # also for routes that don't use the caller
        exception_handlers={
            HTTPException: handle,
            RequestValidationError: handle,
            PersonaLabError: handle,
        },
        middleware=[
            Middleware(
                _RequestMiddleware, respond=respond, max_body=max_body, attachments=attachments
            )
        ],
        **openapi,
    )
    app.state.lab = lab
    for router in routers:
        app.include_router(router)
    return app


class _RequestMiddleware:
    """Limit the body, answer unexpected errors, set the request id, and clean the path.

    A body that is too large is refused before it is read if its length is declared, else while it
    is read. Log lines and the response carry the client's ``X-Request-ID``, or a new id. Slashes
    that a client's base URL adds to the path are ignored.
    """

    def __init__(
        self,
        app: ASGIApp,
        respond: Callable[[Scope, Exception], Response],
        max_body: int,
        attachments: Attachments | None = None,
    ) -> None:
        self.app = app
        self._respond = respond
        self._max_body = max_body
        self._attachments = attachments

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with request_context(HTTPConnection(scope).headers.get("x-request-id")) as request_id:
            await self._serve(_without_extra_slashes(scope), receive, send, request_id)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        started = False
        size = 0

        async def receive_limited() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._max_body:
                raise HTTPException(413)
            return message

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if not started:
                MutableHeaders(scope=message)["x-request-id"] = request_id
            started = True
            await send(message)

        try:
            length = HTTPConnection(scope).headers.get("content-length", "0")
            attachments = self._attachments
            max_length = attachments.max_body if attachments else self._max_body
            if length.isascii() and length.isdigit() and int(length[:20]) > max_length:
                raise HTTPException(413)
            if attachments:
                receive = await _receive_without(attachments, receive)
            await self.app(scope, receive_limited, send_with_id)
        except ClientDisconnect:
            return
        except Exception as error:  # noqa: BLE001 - every error must get a response
            response = self._respond(scope, error)  # also logs the error
            if not started:
                await response(scope, receive, send_with_id)


async def _receive_without(attachments: Attachments, receive: Receive) -> Receive:
    """Read the body, and return a function that receives it without ``attachments``."""
    body = bytearray()
    more_body = True
    while more_body:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientDisconnect
        body.extend(message.get("body", b""))
        more_body = message.get("more_body", False)
        if len(body) > attachments.max_body:
            raise HTTPException(413)
    shortened: Message | None = {
        "type": "http.request",
        "body": attachments.drop(bytes(body)),
        "more_body": False,
    }

    async def replay() -> Message:
        nonlocal shortened
        message, shortened = shortened, None
        return message if message is not None else await receive()

    return replay


def _without_extra_slashes(scope: Scope) -> Scope:
    """Return ``scope`` without a trailing slash, and with one slash after the root path."""
    root = scope.get("root_path", "")
    path: str = scope["path"]
    if scope["type"] != "http" or not path.startswith(f"{root}/"):
        return scope
    route = "/" + path[len(root) :].lstrip("/")
    if scope.get("raw_path", b"/").endswith(b"/"):  # not a name's own slash, which is "%2F" there
        route = route.removesuffix("/")
    return {**scope, "path": root + route}
