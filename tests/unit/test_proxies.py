"""The proxy of a request, whatever the environment says about it."""

from __future__ import annotations

import httpx
import httpx2
import pytest
from pydantic import ValidationError

from persona_lab.proxies import Proxies, normalize_proxy
from persona_lab.settings import Settings

PROXY = "http://proxy.example:3128"


@pytest.fixture(autouse=True)
def _socks(monkeypatch: pytest.MonkeyPatch) -> None:
    """SOCKS is tested as if socksio were there; HTTPX imports it when it connects."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)


@pytest.mark.parametrize(
    ("given", "usable"),
    [
        ("socks://127.0.0.1:1080/", "socks5://127.0.0.1:1080"),
        ("SOCKS://user:word@proxy:1080", "socks5://user:word@proxy:1080"),
        ("socks5h://proxy:1080", "socks5h://proxy:1080"),
        ("proxy.example:3128", "http://proxy.example:3128"),
        (" http://proxy.example:3128/ \n", "http://proxy.example:3128"),
        ("http://[::1]:3128", "http://[::1]:3128"),
    ],
)
def test_proxy_is_normalized(given: str, usable: str) -> None:
    assert normalize_proxy(given) == usable


@pytest.mark.parametrize(
    "given",
    [
        "socks4://proxy:1",
        "ftp://proxy:1",
        "http://",
        "http://proxy:port",
        "http://a b:1",
        "http://[::1",
    ],
)
def test_unusable_proxy_is_refused_without_its_password(given: str) -> None:
    with pytest.raises(ValidationError) as wrong:
        Settings(https_proxy=given)
    assert "must be" in str(wrong.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:8080/v1",
        "http://LOCALHOST./v1",
        "http://api.localhost/v1",
        "http://127.0.0.1:9/v1",
        "http://127.8.9.10/v1",
        "https://[::1]:8443/v1",
        "http://[::ffff:127.0.0.1]/v1",
        "http://0.0.0.0:11434/v1",
    ],
)
def test_own_machine_has_no_proxy(url: str) -> None:
    assert Proxies(PROXY, PROXY, PROXY).find(url) is None


@pytest.mark.parametrize(
    ("exceptions", "url", "direct"),
    [
        ("localhost,127.0.0.0/8,::1/128", "http://example.org", False),
        ("10.0.0.0/8", "http://10.1.2.3:8000/v1", True),
        ("10.0.0.0/8", "http://11.1.2.3:8000/v1", False),
        ("10.0.0.0/8", "http://ten.example/v1", False),
        ("fd00::/8", "http://[fd12::1]/v1", True),
        ("[fd12::1]", "http://[fd12::1]/v1", True),
        ("192.168.1.5", "http://192.168.1.5/v1", True),
        ("192.168.1.5:8000", "http://192.168.1.5:8000/v1", True),
        ("192.168.1.5:8000", "http://192.168.1.5:9000/v1", False),
        ("example.org", "http://api.example.org", True),
        (".example.org", "http://api.example.org", True),
        ("*.example.org", "http://api.example.org", True),
        ("EXAMPLE.org", "http://example.ORG", True),
        ("example.org", "http://notexample.org", False),
        ("a.example b.example", "http://b.example", True),
        ("http://a.example", "http://a.example", True),
        ("*", "http://example.org", True),
        ("::1/999,[,:,a:b:c", "http://example.org", False),
        ("", "http://example.org", False),
    ],
)
def test_exceptions_have_no_proxy(exceptions: str, url: str, direct: bool) -> None:
    found = Proxies(http=PROXY, exceptions=exceptions).find(url)
    assert found == (None if direct else PROXY)


def test_each_scheme_has_its_proxy() -> None:
    proxies = Proxies(http="http://a:1", other="socks5://c:1")
    assert proxies.find("http://example.org") == "http://a:1"
    assert proxies.find("https://example.org") == "socks5://c:1"
    assert Proxies().find("https://example.org") is None


@pytest.mark.parametrize(
    "exceptions",
    ["localhost,127.0.0.0/8,::1/128", "*.corp,[::1]:8080,a:b:c", "10.0.0.0/8 fd00::/8", "[", "*"],
)
def test_libraries_can_read_the_environment(
    exceptions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = Proxies(http=PROXY, https=PROXY, exceptions=exceptions).environment("lab.local")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    httpx.Client().close()
    httpx2.Client().close()
    assert {"localhost", "127.0.0.1", "::1", "lab.local"} <= set(variables["no_proxy"].split(","))


def test_environment_without_proxies_stays_empty() -> None:
    assert not any(Proxies(exceptions="localhost").environment("lab.local").values())


def test_settings_read_either_spelling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "proxy.example:3128")
    monkeypatch.setenv("ALL_PROXY", "socks://proxy.example:1080")
    monkeypatch.setenv("no_proxy", "10.0.0.0/8")
    proxies = Settings().proxies
    assert proxies == Proxies(PROXY, "", "socks5://proxy.example:1080", "10.0.0.0/8")
