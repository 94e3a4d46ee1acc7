"""The base of the apps for programs: authentication, body limits, request ids, error shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from persona_lab.monitor.request_context import request
from persona_lab.server.auth import Caller, caller, spoken
from persona_lab.server.error_responses import headers_of, ours, status_of
from persona_lab.server.operations import Operations
from persona_lab.types import Language

Shape = Callable[[PersonaLabError, Lab, Language], Any]
"""Makes the body of an error response, with a message in the language."""


def lab_of(request: Request) -> Lab:
    """The lab of the app that serves the request."""
    lab: Lab = request.app.state.lab
    return lab


async def authenticate(
    request: Request,
    _documented: Annotated[
        object,
        Security(HTTPBearer(auto_error=False, description="An API token, `pl_…`.")),
    ],
) -> Caller:
    """Raises Unauthorized."""
    return await caller(request, lab_of(request).store)


LabDep = Annotated[Lab, Depends(lab_of)]
CallerDep = Annotated[Caller, Depends(authenticate)]


def operations_of(lab: LabDep, caller: CallerDep) -> Operations:
    """What the caller can do."""
    return caller.operations(lab)


OperationsDep = Annotated[Operations, Depends(operations_of)]


def create_api_app(
    lab: Lab,
    routers: Sequence[APIRouter],
    *,
    shape: Shape,
    max_body: int,
    statuses: Mapping[int, int] | None = None,
    **described: Any,
) -> FastAPI:
    """An app of ``routers`` over ``lab``. Every route requires authentication.

    Args:
        lab: What the routes work on.
        routers: The routes.
        shape: Makes the body of an error response.
        max_body: Size of a request's body in bytes.
        statuses: Status codes that this app replaces by others.
        described: Passed on to FastAPI: title, version and the like.
    """

    def refuse(scope: Scope, error: Exception) -> Response:
        known = ours(error)
        body = shape(known, lab, spoken(HTTPConnection(scope)))
        status = status_of(known)
        return JSONResponse(body, (statuses or {}).get(status, status), headers_of(known))

    async def handle(request: Request, error: Exception) -> Response:
        return refuse(request.scope, error)

    app = FastAPI(
        docs_url=None,  # those pages are fetched from another site
        redoc_url=None,
        redirect_slashes=False,  # a proxy's scheme and host aren't known here
        dependencies=[Depends(authenticate)],  # also where an operation doesn't ask who it is for
        exception_handlers={
            HTTPException: handle,
            RequestValidationError: handle,
            PersonaLabError: handle,
        },
        middleware=[Middleware(_Bounds, refuse=refuse, max_body=max_body)],
        **described,
    )
    app.state.lab = lab
    for router in routers:
        app.include_router(router)
    return app


class _Bounds:
    """Middleware: limits the body, answers unexpected errors, and sets the request id.

    A body that is too large is refused before it is read if its length is declared, else while it
    is read. Log lines and the response carry the caller's ``X-Request-ID``, or a new id.
    """

    def __init__(
        self, app: ASGIApp, refuse: Callable[[Scope, Exception], Response], max_body: int
    ) -> None:
        self.app = app
        self._refuse = refuse
        self._max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with request(HTTPConnection(scope).headers.get("x-request-id")) as known_as:
            await self._let_in(scope, receive, send, known_as)

    async def _let_in(self, scope: Scope, receive: Receive, send: Send, known_as: str) -> None:
        begun = False
        size = 0

        async def bounded() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._max_body:
                raise HTTPException(413)
            return message

        async def noticed(message: Message) -> None:
            nonlocal begun
            if not begun:
                MutableHeaders(scope=message)["x-request-id"] = known_as
            begun = True
            await send(message)

        try:
            length = HTTPConnection(scope).headers.get("content-length", "0")
            if length.isascii() and length.isdigit() and int(length[:20]) > self._max_body:
                raise HTTPException(413)
            await self.app(scope, bounded, noticed)
        except ClientDisconnect:
            return
        except Exception as error:  # noqa: BLE001 - whatever it is, the program gets an answer
            response = self._refuse(scope, error)  # which also notes it down
            if not begun:
                await response(scope, receive, noticed)
