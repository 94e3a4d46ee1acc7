"""Serve the HTTP interfaces of a test's lab in a thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from persona_lab.db.tables import Agent, Chat
from persona_lab.lab import Lab
from persona_lab.server import AllowGradioRoutes, RequestIdHeader, VisitorCookie
from persona_lab.server.routes import routes
from support.app_process import free_port, wait_until


@dataclass(frozen=True)
class ApiUser:
    """A user with an API token, a persona and a chat."""

    user_id: str
    token: str
    agent: Agent
    chat: Chat

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token}"}


@dataclass(frozen=True)
class ApiServer:
    """A running server and its lab."""

    lab: Lab
    address: str

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def socket_url(self, chat_id: str) -> str:
        return f"ws://{self.address}/ws/{chat_id}"

    def create_user(self, name: str = "テスト太郎") -> ApiUser:
        """Return a new user."""
        return create_api_user(self.lab, name)

    def thread(self, user: ApiUser) -> list[tuple[str, str, str]]:
        """The stored chat of a user: sender, content and status of each message."""
        rows = self.lab.store.messages(user.chat.id, user_id=user.user_id)
        return [(row.sender, row.content, row.status) for row in rows]


def create_api_user(lab: Lab, name: str = "テスト太郎") -> ApiUser:
    store = lab.store
    user_id = store.create_user().id
    agent = store.create_agent(user_id=user_id, name=name, roles=["教師"])
    chat = store.create_chat(user_id=user_id, agent_id=agent.id)
    _, token = store.create_token(user_id=user_id)
    return ApiUser(user_id, token, agent, chat)


async def _page(request: Request) -> PlainTextResponse:
    return PlainTextResponse("the page")


@contextmanager
def serve_api(lab: Lab, **config: object) -> Iterator[ApiServer]:
    """Serve a lab until the block ends. ``config`` has options of uvicorn."""
    own = routes(lab)
    app = Starlette(
        routes=[*own, Route("/", _page)],
        middleware=[
            Middleware(RequestIdHeader),
            Middleware(AllowGradioRoutes, lab=lab, own=own),
            Middleware(VisitorCookie),
        ],
    )
    port = free_port()
    server = uvicorn.Server(
        uvicorn.Config(app, port=port, log_level="warning", lifespan="off", **config)  # type: ignore[arg-type]
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive(), what="the server didn't start")
        yield ApiServer(lab, f"127.0.0.1:{port}")
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server didn't stop"
