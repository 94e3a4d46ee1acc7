"""The app behind proxies: prefixes of the path, changed hosts and lists of forwarded values."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route
from support.app_process import run_app

from persona_lab.pipeline.fallback import ErrorHandler
from persona_lab.server import (
    COOKIE,
    AllowGradioRoutes,
    CheckGradioCalls,
    FrontPage,
    RequestIdHeader,
    VisitorCookie,
)
from persona_lab.settings import ROOT
from persona_lab.translations import Translations

SECRET = "s" * 43
LAB: Any = SimpleNamespace(
    error_handler=ErrorHandler(Translations(ROOT / "templates/fallbacks.yaml"))
)
ROOT_PATHS = ["", "/lab", "/lab/", "lab", "/a/b", "https://proxy.example/lab", "https://x.example/"]


def prefix_of(root_path: str) -> str:
    return {"": "", "/a/b": "/a/b", "https://x.example/": ""}.get(root_path, "/lab")


async def _echo(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"{request.url.path} {request.headers.get('cookie', '')}<head>")


async def _stream(request: Request) -> StreamingResponse:
    return StreamingResponse(iter(["data: 1\n\n"]), media_type="text/event-stream")


def app(root_path: str) -> httpx.AsyncClient:
    """An app with the page's middleware, and a Gradio that serves everything."""
    own = [
        Route("/healthz", _echo),
        Mount("/v1", Starlette(routes=[Route("/models", _echo)])),
    ]
    rest = [
        Route("/gradio_api/queue/data", _stream),
        Route("/{path:path}", _echo, methods=["GET", "POST", "PUT", "DELETE", "HEAD"]),
    ]
    served = Starlette(
        routes=[*own, *rest],
        middleware=[
            Middleware(RequestIdHeader),
            Middleware(AllowGradioRoutes, lab=LAB, own=own),
            Middleware(CheckGradioCalls, lab=LAB, find_inputs=lambda name, index: None),
            Middleware(VisitorCookie),
            Middleware(FrontPage, head="HEAD"),
        ],
    )
    transport = httpx.ASGITransport(app=served, root_path=root_path)
    return httpx.AsyncClient(transport=transport, base_url="http://lab")


@pytest.mark.parametrize("stripped", [True, False])
@pytest.mark.parametrize("root_path", ROOT_PATHS)
async def test_routes_are_the_same_under_any_prefix(root_path: str, stripped: bool) -> None:
    prefix = "" if stripped else prefix_of(root_path)
    async with app(root_path) as client:
        for path in ("/config", "/healthz", "/v1/models", "/gradio_api/queue/data"):
            assert (await client.get(prefix + path)).status_code == 200, path
        for method, path in (
            ("POST", "/gradio_api/upload"), ("GET", "/gradio_api/file=/etc/passwd"),
            ("GET", "/gradio_api/deep_link"), ("GET", "/monitoring"), ("POST", "/"),
            ("GET", "//gradio_api/deep_link"), ("POST", "/gradio_api/upload/"),
            ("GET", "/lab/lab/config"), ("GET", "/xlab/config"), ("GET", "/labconfig"),
        ):  # fmt: skip
            assert (await client.request(method, prefix + path)).status_code == 404, path
        refused = await client.post(f"{prefix}/gradio_api/run/unknown", json={"data": []})
        assert refused.status_code == 404
        page = await client.get(f"{prefix}/")
        assert page.text.endswith("<head>HEAD")
        assert page.headers["set-cookie"].startswith(COOKIE)
        assert "content-security-policy" in page.headers
        stream = await client.get(f"{prefix}/gradio_api/queue/data")
        assert stream.headers["x-accel-buffering"] == "no"
        foreign = {"sec-fetch-site": "cross-site", "cookie": f"{COOKIE}={SECRET}"}
        assert SECRET not in (await client.get(f"{prefix}/config", headers=foreign)).text


async def test_root_path_without_a_slash_leads_to_the_page() -> None:
    async with app("/lab") as client:
        moved = await client.get("/lab?x=1")
        assert (moved.status_code, moved.headers["location"]) == (307, "/lab/?x=1")


@pytest.mark.parametrize(
    ("sent", "secure"),
    [
        ({"x-forwarded-proto": "https"}, True),
        ({"x-forwarded-proto": "https,http"}, True),
        ({"x-forwarded-proto": " HTTPS , http, http"}, True),
        ({"x-forwarded-proto": "http,https"}, False),
        ({"x-forwarded-proto": ""}, False),
        ({}, False),
    ],
)
async def test_cookie_is_for_the_scheme_of_the_browser(sent: dict[str, str], secure: bool) -> None:
    async with app("/lab") as client:
        cookie = (await client.get("/lab/", headers=sent)).headers["set-cookie"]
    assert ("; Secure" in cookie) is secure


@pytest.mark.parametrize(
    ("forwarded", "known"),
    [("front", True), ("front, inner", True), ("inner, front", False), (",front", False)],
)
async def test_origin_is_compared_with_the_first_forwarded_host(
    forwarded: str, known: bool
) -> None:
    sent = {"origin": "https://front", "x-forwarded-host": forwarded}
    async with app("") as client:
        answer = await client.get("/config", headers=sent | {"cookie": f"{COOKIE}={SECRET}"})
    assert (SECRET in answer.text) is known


@pytest.mark.parametrize("root_path", ["/lab", "https://proxy.example/lab/"])
def test_whole_app_answers_with_and_without_its_prefix(tmp_path: Path, root_path: str) -> None:
    with run_app(tmp_path, GRADIO_ROOT_PATH=root_path) as served:
        for prefix in ("", "/lab"):
            with httpx.Client(base_url=served.url + prefix) as client:
                page = client.get("/")
                assert COOKIE in client.cookies
                assert "personaLab" in page.text
                assert "content-security-policy" in page.headers
                for path in ("/api/v1/models", "/v1/models", "/healthz", "/config"):
                    assert client.get(path).status_code == 200, prefix + path
                upload = client.post("/gradio_api/upload", files={"files": b"x"})
                assert upload.status_code == 404
                servers = client.get("/api/v1/openapi.json").json()["servers"]
                assert servers == [{"url": "/lab/api/v1"}]
