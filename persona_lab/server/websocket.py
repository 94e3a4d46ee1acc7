"""The WebSocket ``/ws/{chat_id}``: one chat over one socket.

The client sends ``{"content": …}``, optionally with ``model`` and sampling options. The server
sends the events of :mod:`persona_lab.server.answer_events`. A message that can't be used gets an
error in the form of :mod:`persona_lab.server.error_responses`; the socket stays open.

Close codes:
    4401: the caller is unknown, or the token has been revoked.
    4403: the chat belongs to another user.
    4404: the chat doesn't exist.
    4429: the user has too many open sockets.

One message is answered at a time; at most :data:`MAX_QUEUED_MESSAGES` more wait. An event is sent
only after the client accepted the one before it. A client that disconnects stops the answer.
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
from persona_lab.server.auth import Caller, authenticate, choose_subprotocol, client_language
from persona_lab.server.error_responses import error_response, to_lab_error
from persona_lab.server.sse import to_json_line

MAX_QUEUED_MESSAGES = 4
"""Messages that can wait while one is answered."""
MAX_SOCKETS_PER_USER = 50
"""Sockets that one user can have open at a time."""
REAUTHORIZE_INTERVAL_S = 5.0
"""Seconds between two checks that the caller still has access."""
CLOSE_CODES: dict[type[PersonaLabError], int] = {
    Unauthorized: 4401,
    Forbidden: 4403,
    NotFound: 4404,
    TooManyAtOnce: 4429,
}
"""The close code of each error that refuses or ends a connection."""
CLOSE_INTERNAL_ERROR = 1011
"""The close code of every other error."""


class ChatSocket:
    """The WebSocket of a lab's chats. :meth:`handle` is the endpoint."""

    def __init__(self, lab: Lab) -> None:
        """Make the endpoint of a lab."""
        self._lab = lab
        self._open_sockets: Counter[str] = Counter()
        # An escaped character outside the BMP is 12 characters of JSON; 4096 are for the options.
        self._max_frame_length = 12 * lab.input_validator.max_length + 4096

    async def handle(self, socket: WebSocket) -> None:
        """Serve one socket until it is closed."""
        # A client sees a close code only after the socket was accepted.
        await socket.accept(choose_subprotocol(socket))
        user_id = ""
        try:
            user_id = (await self._authorize(socket))[0].user_id
            self._open_sockets[user_id] += 1
            if self._open_sockets[user_id] > MAX_SOCKETS_PER_USER:
                raise TooManyAtOnce(limit=MAX_SOCKETS_PER_USER)
            await self._run(socket)
        except WebSocketDisconnect:
            return
        except Exception as error:  # noqa: BLE001 - the client gets a close code for every error
            lab_error = to_lab_error(error)
            code = CLOSE_CODES.get(type(lab_error), CLOSE_INTERNAL_ERROR)
            with suppress(WebSocketDisconnect):
                await socket.close(code, lab_error.code)
        finally:
            if user_id:
                self._open_sockets[user_id] -= 1
                self._open_sockets += Counter()  # removes users without open sockets

    async def _authorize(self, socket: WebSocket) -> tuple[Caller, Chat]:
        """Return the caller and the chat.

        Raises:
            Unauthorized: The caller is unknown.
            Forbidden: The chat belongs to another user.
            NotFound: The chat doesn't exist.
            StorageError: The database failed.
        """
        store = self._lab.store
        caller = await authenticate(socket, store)
        chat_id = socket.path_params["chat_id"]
        return caller, await asyncio.to_thread(store.open_chat, chat_id, user_id=caller.user_id)

    async def _run(self, socket: WebSocket) -> None:
        """Receive and answer messages until the client disconnects or access ends."""
        queue: asyncio.Queue[MessageIn] = asyncio.Queue(MAX_QUEUED_MESSAGES)
        tasks = [
            asyncio.create_task(self._receive_messages(socket, queue)),
            asyncio.create_task(self._answer_messages(socket, queue)),
            asyncio.create_task(self._reauthorize(socket)),
        ]
        try:
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)  # stores an unfinished answer
        for task in ended:
            task.result()

    async def _receive_messages(self, socket: WebSocket, queue: asyncio.Queue[MessageIn]) -> None:
        """Queue messages until the client disconnects.

        It must never wait for an answer: a disconnect is noticed only here.
        """
        while True:
            frame = await socket.receive()
            if frame["type"] == "websocket.disconnect":
                return
            try:
                queue.put_nowait(self._parse(frame))
            except asyncio.QueueFull:
                await self._send_error(socket, TooManyAtOnce(limit=MAX_QUEUED_MESSAGES))
            except (PersonaLabError, ValidationError) as error:
                await self._send_error(socket, error)

    def _parse(self, frame: Message) -> MessageIn:
        """Return the message of a frame.

        Raises:
            InvalidRequest: The frame isn't JSON text.
            MessageTooLong: The frame is longer than any valid message.
            ValidationError: A field is missing or invalid.
        """
        text = frame.get("text")
        if text is None:
            raise InvalidRequest(why="not_text")
        if len(text) > self._max_frame_length:
            raise MessageTooLong(length=len(text), limit=self._lab.input_validator.max_length)
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(why="not_json") from error
        return MessageIn.model_validate(data)

    async def _answer_messages(self, socket: WebSocket, queue: asyncio.Queue[MessageIn]) -> None:
        """Answer the queued messages one after the other.

        Access is checked before each answer: the token may have been revoked or the chat deleted.
        """
        while True:
            message = await queue.get()
            try:
                caller, chat = await self._authorize(socket)
            except StorageError as error:
                await self._send_error(socket, error)
                continue
            try:
                events = stream_answer_events(self._lab, chat, message, caller)
                async with aclosing(events):
                    async for event in events:
                        await socket.send_text(to_json_line(event))
                        await asyncio.sleep(0)  # lets other tasks run if nothing is awaited
            except WebSocketDisconnect:
                raise
            except Exception as error:  # noqa: BLE001 - the client is told of every error
                await self._send_error(socket, error)

    async def _reauthorize(self, socket: WebSocket) -> None:
        """Check access at intervals, also during an answer.

        Raises:
            Unauthorized: The token was revoked.
            NotFound: The chat was deleted.
        """
        while True:
            await asyncio.sleep(REAUTHORIZE_INTERVAL_S)
            with suppress(StorageError):
                await self._authorize(socket)

    async def _send_error(self, socket: WebSocket, error: Exception) -> None:
        body = error_response(to_lab_error(error), self._lab.error_handler, client_language(socket))
        await socket.send_text(to_json_line(body | {"fallback": False}))
