"""The proxy of a request, from ``HTTP_PROXY``, ``HTTPS_PROXY``, ``ALL_PROXY`` and ``NO_PROXY``.

Libraries read these variables too, each with its own rules: one refuses ``socks://``, another
``::1/128``, and all of them send a request for this machine to the proxy. Clients of Persona Lab
therefore ask :meth:`Proxies.find`, and the program writes :meth:`Proxies.environment` for the
libraries that it can't ask.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

SCHEMES = ("http", "https", "socks5", "socks5h")
"""Protocols of proxies that HTTPX speaks."""

OWN_HOSTS = ("localhost", "127.0.0.1", "::1")
"""Names of this machine, which libraries must not look for behind a proxy."""

_SAFE_ENTRY = re.compile(r"[\w.-]+(:\d{1,5})?")
"""An entry of ``NO_PROXY`` that every library can read: a name or an IPv4 address."""


def normalize_proxy(value: str) -> str:
    """Return the address of a proxy in the form that HTTPX reads.

    GNOME writes ``socks://`` for ``socks5://``. An address without a scheme means ``http://``.

    Raises:
        ValueError: The address can't be used.
    """
    scheme, separator, rest = value.strip().partition("://")
    if not separator:
        scheme, rest = "http", scheme
    scheme = {"socks": "socks5"}.get(scheme.lower(), scheme.lower())
    if scheme not in SCHEMES:
        raise ValueError(f"must begin with {'://, '.join(SCHEMES)}://")
    try:
        parts = urlsplit(f"{scheme}://{rest}")
        usable = bool(parts.hostname) and parts.port != 0 and not re.search(r"\s", rest)
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("must be the address of a proxy, as http://host:port")
    if scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        raise ValueError("a SOCKS proxy needs the package socksio (pip install socksio)")
    return f"{scheme}://{rest.rstrip('/')}"


@dataclass(frozen=True, slots=True)
class Proxies:
    """The proxies of the settings.

    Attributes:
        http: The proxy for ``http://``, "" if there is none.
        https: The proxy for ``https://``, "" if there is none.
        other: The proxy for either, where its own is not set; "" if there is none.
        exceptions: Hosts without a proxy, as ``NO_PROXY`` lists them.
    """

    http: str = ""
    https: str = ""
    other: str = ""
    exceptions: str = ""

    def find(self, url: str) -> str | None:
        """Return the proxy of a request to ``url``, None if it has none.

        A request to this machine has none.
        """
        parts = urlsplit(url)
        host = (parts.hostname or "").rstrip(".")
        if is_own_host(host) or self._is_exception(host, parts.port):
            return None
        own = self.http if parts.scheme == "http" else self.https
        return own or self.other or None

    def _is_exception(self, host: str, port: int | None) -> bool:
        address = _address(host)
        return any(
            _matches(entry.lower(), host, address, port) for entry in _entries(self.exceptions)
        )

    def client_options(self, url: str) -> dict[str, Any]:
        """Return the arguments of an HTTPX client for requests to ``url``.

        The client doesn't read the environment, except for the certificates that it trusts.
        """
        import httpx2

        return {
            "proxy": self.find(url),
            "trust_env": False,
            "verify": httpx2.create_ssl_context(),
        }

    def environment(self, *hosts: str) -> dict[str, str]:
        """Return the variables for libraries that read the environment; "" means not set.

        Args:
            *hosts: Further names of this machine.
        """
        variables = {
            "http_proxy": self.http,
            "https_proxy": self.https,
            "all_proxy": self.other,
            "no_proxy": "",
        }
        if any(variables.values()):
            readable = [
                readable for entry in _entries(self.exceptions) if (readable := _readable(entry))
            ]
            named = [*OWN_HOSTS, *filter(None, hosts), *readable]
            variables["no_proxy"] = ",".join(dict.fromkeys(named))
        return variables


def is_own_host(host: str) -> bool:
    """Return whether ``host`` is a loopback name or address, or the unspecified address."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    address = _address(host)
    return address is not None and (address.is_loopback or address.is_unspecified)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _entries(text: str) -> list[str]:
    """Split ``NO_PROXY`` at commas and spaces, both of which people use."""
    return [entry for entry in re.split(r"[\s,;]+", text) if entry]


def _network(entry: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    """Return the network or address that an entry names, None if it names neither."""
    try:
        return ipaddress.ip_network(entry.replace("[", "").replace("]", ""), strict=False)
    except ValueError:
        return None


def _matches(
    entry: str,
    host: str,
    address: ipaddress.IPv4Address | ipaddress.IPv6Address | None,
    port: int | None,
) -> bool:
    if entry == "*":
        return True
    if (network := _network(entry)) is not None:
        return address is not None and address in network
    try:
        named = urlsplit(entry if "://" in entry else f"//{entry}")
        name, only = (named.hostname or "").strip(".*"), named.port
    except ValueError:
        return False
    if only is not None and only != port:
        return False
    if (of := _network(name)) is not None:
        return address is not None and address in of
    return bool(name) and (host == name or host.endswith(f".{name}"))


def _readable(entry: str) -> str:
    """Return an entry in a form that every library reads, "" if there is none."""
    if entry == "*":
        return entry
    network = _network(entry)
    if network is not None:
        return str(network.network_address) if network.num_addresses == 1 else ""
    entry = entry.removeprefix("*")
    return entry if _SAFE_ENTRY.fullmatch(entry) else ""
