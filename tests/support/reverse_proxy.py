"""A reverse proxy as operators set one up: it may change Host, remove a path, or drop cookies."""

from __future__ import annotations

import re
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from urllib.parse import urlsplit

Rewrite = Callable[[bytes], bytes]
"""Changes the head of a request or of a response."""


@contextmanager
def reverse_proxy(
    url: str,
    *,
    request: Rewrite = bytes,
    response: Rewrite = bytes,
    connections: set[socket.socket] | None = None,
) -> Iterator[str]:
    """Serve the app at ``url`` on another port until the block ends; yield the address.

    Args:
        url: The address of the app.
        request: Changes the head of each request.
        response: Changes the head of each response.
        connections: Receives the connections from the browser.
    """
    host, port = urlsplit(url).hostname, urlsplit(url).port

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError), closing(socket.create_connection((host, port))) as upstream:
                if connections is not None:
                    connections.add(self.request)
                head, rest = _read_head(self.request)
                closes = re.sub(rb"(?im)^connection:.*\r\n", b"", head)
                closes = closes.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
                upstream.sendall(request(closes) + rest)
                threading.Thread(target=_pump, args=(self.request, upstream), daemon=True).start()
                head, rest = _read_head(upstream)
                self.request.sendall(response(head) + rest)
                _pump(upstream, self.request)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, request: object, client_address: object) -> None:
            """Ignore a connection that the browser closed."""

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def change_host(head: bytes) -> bytes:
    """Send the app a Host of its own, as nginx does by default."""
    return re.sub(rb"(?im)^host:.*\r\n", b"Host: lab.internal:7860\r\n", head)


def strip_prefix(prefix: bytes) -> Rewrite:
    """Return what removes a prefix from the path of a request."""
    return lambda head: head.replace(b" " + prefix + b"/", b" /", 1)


def drop_cookies(head: bytes) -> bytes:
    """Drop the cookies of a response."""
    return re.sub(rb"(?im)^set-cookie:.*\r\n", b"", head)


def _read_head(source: socket.socket) -> tuple[bytes, bytes]:
    received = b""
    while b"\r\n\r\n" not in received:
        part = source.recv(65536)
        if not part:
            raise ConnectionError
        received += part
    head, _, rest = received.partition(b"\r\n\r\n")
    return head + b"\r\n\r\n", rest


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while part := source.recv(65536):
            target.sendall(part)
        target.shutdown(socket.SHUT_WR)
