"""What one start takes for itself: a port, and a database that is a file."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from persona_lab.errors import ConfigurationError


def check_port(host: str, port: int) -> None:
    """Raises ConfigurationError when another program already serves there. Port 0 is any."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (socket.gaierror, UnicodeError) as wrong:
            raise ConfigurationError(
                f"GRADIO_SERVER_NAME: {host} is no address of this machine"
            ) from wrong
        except OSError as wrong:
            raise ConfigurationError(
                f"{host}:{port} can't be served ({wrong.strerror}): is another Persona Lab open? "
                "Close it, or choose another port with GRADIO_SERVER_PORT."
            ) from wrong


@contextmanager
def only_instance(database_url: str) -> Iterator[None]:
    """Holds a lock beside a SQLite file, so that two servers don't take turns with one database.

    Raises ConfigurationError when another holds it. Other databases need no such lock.
    """
    from filelock import FileLock, Timeout

    from persona_lab.db.engine import database_file

    file = database_file(database_url)
    if file is None:
        yield
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{file}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        if not Path(lock.lock_file).exists():
            raise ConfigurationError(f"DATABASE_URL: {file.parent} takes no files") from None
        raise ConfigurationError(
            f"another Persona Lab already uses {file}: close it, or give this one its own "
            "database with DATABASE_URL=sqlite:///other.db"
        ) from None
    try:
        yield
    finally:
        lock.release()
