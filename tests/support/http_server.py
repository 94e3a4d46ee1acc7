"""The doors for programs, served over a lab of the test's own in a thread of their own."""

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
from support.app_process import free_port, until


@dataclass(frozen=True)
class Program:
    """A user with a token, a persona and a chat."""

    user_id: str
    token: str
    agent: Agent
    chat: Chat

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token}"}


@dataclass(frozen=True)
class Doors:
    lab: Lab
    address: str

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def socket(self, chat_id: str) -> str:
        return f"ws://{self.address}/ws/{chat_id}"

    def program(self, name: str = "テスト太郎") -> Program:
        """A new one."""
        return new_program(self.lab, name)

    def thread(self, program: Program) -> list[tuple[str, str, str]]:
        """The program's chat as it is stored: sender, content, status."""
        rows = self.lab.store.messages(program.chat.id, user_id=program.user_id)
        return [(row.sender, row.content, row.status) for row in rows]


def new_program(lab: Lab, name: str = "テスト太郎") -> Program:
    store = lab.store
    user_id = store.create_user().id
    agent = store.create_agent(user_id=user_id, name=name, roles=["教師"])
    chat = store.create_chat(user_id=user_id, agent_id=agent.id)
    _, token = store.create_token(user_id=user_id)
    return Program(user_id, token, agent, chat)


async def _page(request: Request) -> PlainTextResponse:
    return PlainTextResponse("the page")


@contextmanager
def opened(lab: Lab, **config: object) -> Iterator[Doors]:
    """``config`` is uvicorn's."""
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
        until(lambda: server.started or not thread.is_alive(), what="the doors didn't open")
        yield Doors(lab, f"127.0.0.1:{port}")
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the doors didn't close"
