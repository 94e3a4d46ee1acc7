"""Check at the start that the port is free and that no other instance uses the SQLite file."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from persona_lab.errors import ConfigurationError


def check_port(host: str, port: int) -> None:
    """Check that the app can listen at a port. Port 0 means any free port.

    Raises:
        ConfigurationError: ``host`` is no address of this machine, or the port is in use.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (socket.gaierror, UnicodeError) as error:
            raise ConfigurationError(
                f"GRADIO_SERVER_NAME: {host} is no address of this machine"
            ) from error
        except OSError as error:
            raise ConfigurationError(
                f"{host}:{port} can't be served ({error.strerror}): is another Persona Lab open? "
                "Close it, or choose another port with GRADIO_SERVER_PORT."
            ) from error


@contextmanager
def only_instance(database_url: str) -> Iterator[None]:
    """Hold a lock file beside a SQLite database, so that only one server uses it.

    Other databases need no lock.

    Raises:
        ConfigurationError: Another server holds the lock, or the folder is not writable.
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
