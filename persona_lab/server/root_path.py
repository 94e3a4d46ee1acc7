"""The path under which a proxy serves the app: ``GRADIO_ROOT_PATH``, or the path of that URL.

Some proxies remove this prefix from a request, others don't. Starlette finds a route of a mounted
app only with the prefix, so :func:`with_root_path` adds it where it is missing. Everything behind
decides by :func:`route_path`.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.types import Scope


def with_root_path(scope: Scope) -> Scope:
    """Return ``scope`` with a root path that is a path, and with it at the start of the path."""
    root = urlsplit(scope.get("root_path", "")).path.strip("/")
    prefix = f"/{root}" if root else ""
    path: str = scope["path"]
    if path != prefix and not path.startswith(f"{prefix}/"):
        path = prefix + path
    return {**scope, "root_path": prefix, "path": path}


def route_path(scope: Scope) -> str:
    """Return the path of a request without the root path."""
    canonical = with_root_path(scope)
    return canonical["path"].removeprefix(canonical["root_path"]) or "/"
