"""The program starts and answers, whatever proxies the environment names."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from support.app_process import run_app, run_failing_app

REFUSING = "http://127.0.0.1:9"

ENVIRONMENTS = {
    "a proxy that refuses": {"http_proxy": REFUSING, "https_proxy": REFUSING},
    "capitals": {"HTTP_PROXY": REFUSING, "HTTPS_PROXY": REFUSING, "ALL_PROXY": REFUSING},
    "GNOME": {"all_proxy": "socks://127.0.0.1:9/", "no_proxy": "localhost,127.0.0.0/8,::1"},
    "Docker Desktop": {"HTTP_PROXY": REFUSING, "NO_PROXY": "localhost,127.0.0.0/8,::1/128"},
    "no scheme": {"http_proxy": "127.0.0.1:9", "no_proxy": "*.corp [::1]:80,[,a:b:c"},
    "all interfaces": {"http_proxy": REFUSING, "GRADIO_SERVER_NAME": "0.0.0.0"},  # noqa: S104
    "two spellings": {
        "http_proxy": "",
        "HTTP_PROXY": "socks4://proxy",
        "https_proxy": "http://a:1",
    },
    "exceptions alone": {"NO_PROXY": "::1/128,fe80::/10"},
    "logs of the SDKs": {"OPENAI_LOG": "debug", "ANTHROPIC_LOG": "debug"},
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_app_starts_in_each_environment(name: str, tmp_path: Path) -> None:
    with run_app(tmp_path, **ENVIRONMENTS[name]) as served:
        ready = httpx.get(f"{served.url}/readyz", trust_env=False)
        assert ready.json()["ready"] is True
        assert "Traceback" not in served.log


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("http_proxy", "socks4://127.0.0.1:9"),
        ("ALL_PROXY", "nonsense://proxy"),
        ("https_proxy", "http://proxy:port"),
        ("SSL_CERT_FILE", "/no/such/file.pem"),
        ("SSL_CERT_DIR", "/no/such/folder"),
        ("OPENAI_CUSTOM_HEADERS", "no header"),
        ("ANTHROPIC_BASE_URL", "ftp://host"),
    ],
)
def test_unusable_value_ends_the_start_with_one_line(
    variable: str, value: str, tmp_path: Path
) -> None:
    ended = run_failing_app(tmp_path, **{variable: value})
    (line,) = ended.stderr.splitlines()
    assert ended.returncode == 2
    assert line.startswith(f"Persona Lab: {variable.upper()}: ")
    assert value not in line or "no file" in line or "no folder" in line
