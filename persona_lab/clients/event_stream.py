"""Decode the body of a provider's answer: server-sent events, or JSON in place of them.

Providers and the proxies in front of them differ in details. The decoder passes over lines that
carry no event, so that one odd line doesn't cost the answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

MAX_EVENT_BYTES = 16 * 1024 * 1024
"""Maximum length of one event, in bytes."""

Event = dict[str, Any]
"""One event, as the server sent it. Any value may be missing or of another type."""

_TEXT_TYPES = ("text", "text_delta", "output_text")
"""The types of the parts of a message that are its text. Others are thoughts or tool calls."""

_JSON_START = (b"{", b"[")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class ErrorEvent(Exception):
    """An error that the server sent in place of an answer or of its rest.

    Attributes:
        body: What the server sent: an object, or text.
    """

    def __init__(self, body: object) -> None:
        super().__init__("the server sent an error in place of an event")
        self.body = body


class EventTooLong(ValueError):
    """An event is longer than :data:`MAX_EVENT_BYTES`."""


class EventDecoder:
    """Decodes one body. The pieces of the body may end anywhere, even inside a character.

    Attributes:
        is_ended: Whether the server marked the end of the answer.
    """

    def __init__(self) -> None:
        self.is_ended = False
        self._begun = False
        self._rest = b""
        self._document: bytearray | None = None
        self._name = ""
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> Iterator[Event]:
        """Yield the events that ``piece`` completes.

        Raises:
            ErrorEvent: The server sent an error.
            EventTooLong: An event is too long.
            ValueError: An event isn't valid JSON.
        """
        if not self._begun:
            piece = (self._rest + piece).lstrip(_BYTE_ORDER_MARK + b" \t\r\n")
            self._rest, self._begun = b"", bool(piece)
            if piece.startswith(_JSON_START):
                self._document = bytearray()
        if self._document is not None:
            self._document += piece
            self._check_length(len(self._document))
            return
        lines = (self._rest + piece).splitlines(keepends=True)
        # A "\r" at the end may be the first half of "\r\n".
        self._rest = lines.pop() if lines and not lines[-1].endswith(b"\n") else b""
        self._check_length(len(self._rest))
        for line in lines:
            yield from self._read_line(line.rstrip(b"\r\n"))

    def finish(self) -> Iterator[Event]:
        """Yield the events that the end of the body completes. It raises what :meth:`feed` does."""
        if self._document is not None:
            yield from _events(_documents(bytes(self._document).splitlines()))
            self.is_ended = True
            return
        for line in (*self._rest.splitlines(), b""):
            yield from self._read_line(line)

    def _read_line(self, line: bytes) -> Iterator[Event]:
        """Read a line of the event stream. An empty line ends an event."""
        if not line:
            yield from self._end_event()
        elif line.startswith(b"data:"):
            self._data.append(line[5:].strip())
        elif line.startswith(b"event:"):
            self._name = line[6:].strip().decode("ascii", "replace")
        elif line.startswith(_JSON_START):
            self._data.append(line)  # a proxy added an error to the stream

    def _end_event(self) -> Iterator[Event]:
        data, self._data = self._data, []
        name, self._name = self._name, ""
        if any(line.startswith(b"[DONE]") for line in data):
            self.is_ended = True
            data = [line for line in data if not line.startswith(b"[DONE]")]
        if name == "error" and data:
            text = b"\n".join(data)
            raise ErrorEvent(json.loads(text) if text.startswith(b"{") else text.decode())
        if data and data[0].startswith(_JSON_START):
            yield from _events(_documents(data), name)

    def _check_length(self, length: int) -> None:
        if length > MAX_EVENT_BYTES:
            raise EventTooLong


def _documents(lines: list[bytes]) -> list[Any]:
    """Parse the lines as one JSON document, otherwise each line as a document of its own."""
    try:
        return [json.loads(b"\n".join(lines))]
    except ValueError:
        if len(lines) == 1:
            raise
        return [json.loads(line) for line in lines if line]


def _events(documents: list[Any], name: str = "") -> Iterator[Event]:
    """Yield the objects among the documents and among the items of their lists, but no pings."""
    for document in documents:
        for event in document if isinstance(document, list) else [document]:
            if isinstance(event, dict):
                if (error := _error(event)) is not None:
                    raise ErrorEvent(error)
                if name:
                    event.setdefault("type", name)
                if event.get("type") != "ping":
                    yield event


def _error(event: Event) -> Event | None:
    """Return the error in ``event`` as an object with the key ``error``, None if it has none."""
    if event.get("error"):
        return event
    if "error" in (event.get("type"), event.get("object")):
        return {"error": event}
    if event.keys() & {"choices", "type", "usage", "content"}:
        return None
    status = event.get("code", event.get("status"))
    if event.get("detail") or (event.get("message") and status):
        return {"error": event}
    return None


def string(value: object) -> str:
    """Return ``value`` if it is text, otherwise ""."""
    return value if isinstance(value, str) else ""


def text_of(content: object) -> str:
    """Return the text of ``content``: text, or a list of parts, of which some may be thoughts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    return "".join(
        part if isinstance(part, str) else string(part.get("text"))
        for part in parts
        if isinstance(part, str)
        or (isinstance(part, dict) and part.get("type") in (None, *_TEXT_TYPES))
    )


def integers(fields: dict[str, Any]) -> dict[str, int]:
    """Return the fields that are whole numbers."""
    return {name: value for name, value in fields.items() if type(value) is int}
