"""The WebSocket ``/ws/{chat_id}``: one conversation over one socket.

The client sends ``{"content": …}``, with ``model`` and sampling options if it wants them. The
server sends the steps of :mod:`persona_lab.server.answer_events`. A message that can't be used
gets an error in the shape of :mod:`persona_lab.server.error_responses`; the socket stays open.

Close codes:
    4401: the caller is unknown, or the token was revoked since.
    4403: the conversation belongs to another user.
    4404: the conversation doesn't exist.
    4429: the user has too many open sockets.

One message is answered at a time; at most :data:`WAITING` more wait. The answer is sent at the
reader's pace. A client that disconnects stops it.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import aclosing, suppress

from pydantic import ValidationError
from starlette.types import Message
from starlette.websockets import WebSocket, WebSocketDisconnect

from persona_lab.db.tables import Chat
from persona_lab.errors import (
    Forbidden,
    InvalidRequest,
    MessageTooLong,
    NotFound,
    PersonaLabError,
    StorageError,
    TooManyAtOnce,
    Unauthorized,
)
from persona_lab.lab import Lab
from persona_lab.server.answer_events import MessageIn, stream_answer_events
from persona_lab.server.auth import Caller, caller, spoken, subprotocol
from persona_lab.server.error_responses import error_response, ours
from persona_lab.server.sse import as_json

WAITING = 4
"""Messages that may wait for the answer before theirs."""
CLOSES: dict[type[PersonaLabError], int] = {
    Unauthorized: 4401,
    Forbidden: 4403,
    NotFound: 4404,
    TooManyAtOnce: 4429,
}
"""Who isn't let in, and with which code that is said."""
INTERNAL = 1011
AGAIN = 5.0
"""Seconds between two looks whether who calls may still."""
SOCKETS = 50
"""Sockets that a user may have open at a time."""


class ChatSocket:
    """:meth:`handle` is the endpoint over ``lab``."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._open: Counter[str] = Counter()
        limit = lab.input_validator.max_length
        self._longest = 12 * limit + 4096
        """Characters of a frame: the longest message with every character escaped, and the rest."""

    async def handle(self, socket: WebSocket) -> None:
        """Serve one socket until it is closed."""
        await socket.accept(subprotocol(socket))  # else no client would see why it is closed
        user = ""
        try:
            user = (await self._admitted(socket))[0].user_id
            self._open[user] += 1
            if self._open[user] > SOCKETS:
                raise TooManyAtOnce(limit=SOCKETS)
            await self._converse(socket)
        except WebSocketDisconnect:
            return
        except Exception as error:  # noqa: BLE001 - whatever it is, the client is told
            known = ours(error)
            with suppress(WebSocketDisconnect):
                await socket.close(CLOSES.get(type(known), INTERNAL), known.code)
        finally:
            if user:
                self._open[user] -= 1
                self._open += Counter()  # keeps those above zero

    async def _admitted(self, socket: WebSocket) -> tuple[Caller, Chat]:
        """Who calls, and their conversation. Raises Unauthorized, Forbidden, NotFound."""
        store = self._lab.store
        who = await caller(socket, store)
        chat_id = socket.path_params["chat_id"]
        return who, await asyncio.to_thread(store.open_chat, chat_id, user_id=who.user_id)

    async def _converse(self, socket: WebSocket) -> None:
        """Returns when the client is gone; raises what ends the conversation from this side."""
        inbox: asyncio.Queue[MessageIn] = asyncio.Queue(WAITING)
        tasks = [
            asyncio.create_task(self._listen(socket, inbox)),
            asyncio.create_task(self._answer(socket, inbox)),
            asyncio.create_task(self._look_again(socket)),
        ]
        try:
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)  # half an answer is kept by then
        for task in ended:
            task.result()

    async def _listen(self, socket: WebSocket, inbox: asyncio.Queue[MessageIn]) -> None:
        """Until the client is gone. It must go on at every moment, or nobody would notice that."""
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            try:
                inbox.put_nowait(self._said(message))
            except asyncio.QueueFull:
                await self._refuse(socket, TooManyAtOnce(limit=WAITING))
            except (PersonaLabError, ValidationError) as error:
                await self._refuse(socket, error)

    def _said(self, message: Message) -> MessageIn:
        """Raises InvalidRequest, MessageTooLong, ValidationError."""
        text = message.get("text")
        if text is None:
            raise InvalidRequest(why="not_text")
        if len(text) > self._longest:
            raise MessageTooLong(length=len(text), limit=self._lab.input_validator.max_length)
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as wrong:
            raise InvalidRequest(why="not_json") from wrong
        return MessageIn.model_validate(data)

    async def _answer(self, socket: WebSocket, inbox: asyncio.Queue[MessageIn]) -> None:
        """Answer one message after the other.

        Raises what :meth:`_admitted` raises: a token may have been revoked and a conversation
        deleted since.
        """
        while True:
            said = await inbox.get()
            try:
                who, chat = await self._admitted(socket)
            except StorageError as error:
                await self._refuse(socket, error)
                continue
            try:
                async with aclosing(stream_answer_events(self._lab, chat, said, who)) as steps:
                    async for step in steps:
                        await socket.send_text(as_json(step))
                        await asyncio.sleep(0)  # an answer that never waits lets others in
            except WebSocketDisconnect:
                raise
            except Exception as error:  # noqa: BLE001 - whatever it is, the client is told
                await self._refuse(socket, error)

    async def _look_again(self, socket: WebSocket) -> None:
        """Raises what :meth:`_admitted` does, also in the middle of an answer."""
        while True:
            await asyncio.sleep(AGAIN)
            with suppress(StorageError):
                await self._admitted(socket)

    async def _refuse(self, socket: WebSocket, error: Exception) -> None:
        said = error_response(ours(error), self._lab.error_handler, spoken(socket))
        await socket.send_text(as_json(said | {"fallback": False}))
