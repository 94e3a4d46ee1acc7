"""The addresses of model servers, as people paste them."""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from collections.abc import Sequence
from urllib.parse import urlsplit, urlunsplit

_AROUND = "\"'`<>\u200b\ufeff\u2060"
"""Characters around a pasted address that don't belong to it."""

_LOCAL_SUFFIXES = (".local", ".lan", ".internal", ".localhost", ".home.arpa")
"""Endings of names in a local network, where servers have no certificate."""


def normalize_address(value: str, endpoints: Sequence[str] = ()) -> str:
    """Return the address of a server without what pasting added.

    Args:
        value: The address. It may have white space or quotation marks around it, full-width
            letters, no scheme, an endpoint at its end, or a query, which stays.
        endpoints: Paths that the client adds itself, for example ``/chat/completions``. They are
            removed from the end, the longest first.

    Returns:
        The address without a slash at its end and without a fragment.

    Raises:
        ValueError: The address can't be used.
    """
    text = re.sub(r"[\r\n\t]+", "", unicodedata.normalize("NFKC", value))
    text = text.strip().strip(_AROUND).strip()
    if not text:
        raise ValueError("must be an address, as https://host/v1")
    if "://" not in text:
        text = text.lstrip("/")
        text = f"{_scheme(text)}://{text}"
    try:
        parts = urlsplit(text)
        usable = bool(parts.hostname) and parts.port != 0 and not re.search(r"\s", text)
    except ValueError:
        usable = False
    else:
        if parts.scheme not in ("http", "https"):
            raise ValueError("must begin with http:// or https://")
    if not usable:
        raise ValueError("must be an address, as https://host/v1")
    path = re.sub("/{2,}", "/", parts.path).rstrip("/")
    for endpoint in sorted(endpoints, key=len, reverse=True):
        if path.lower().endswith(endpoint):
            path = path[: -len(endpoint)].rstrip("/")
            break
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def split_query(address: str) -> tuple[str, str]:
    """Return an address without its query, and the query."""
    parts = urlsplit(address)
    return urlunsplit(parts._replace(query="")), parts.query


def _scheme(text: str) -> str:
    """Return the likely scheme of an address that has none: ``http`` in a local network."""
    try:
        host = urlsplit(f"//{text}").hostname or ""
    except ValueError:
        return "https"
    if "." not in host or host.endswith(_LOCAL_SUFFIXES):
        return "http"
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return "https"
    return "http"
