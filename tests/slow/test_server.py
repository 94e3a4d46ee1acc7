"""HTTP around the pages, and what a start says that can't be."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.datastructures import Headers
from starlette.routing import Mount, Route
from starlette.types import Message, Receive, Scope, Send
from support.app_process import APP, RunningApp, environment, run_app, run_failing_app

import app
from persona_lab.errors import ConfigurationError
from persona_lab.pipeline.fallback import ErrorHandler
from persona_lab.server import (
    COOKIE,
    AllowGradioRoutes,
    CheckGradioCalls,
    FrontPage,
    VisitorCookie,
    check_port,
    only_instance,
    visitor_secret,
)
from persona_lab.server.gradio_middleware import GRADIO_ROUTES, CallInput, is_allowed
from persona_lab.settings import ROOT
from persona_lab.translations import Translations
from persona_lab.ui import page as frame

SECRET = "s" * 43


# ── the visitor's cookie ──────────────────────────────────────────────────────────────────


async def page(scope: Scope, receive: Receive, send: Send) -> None:
    """An app whose every answer is one page, in two pieces."""
    headers = [(b"content-type", b"text/html"), (b"content-length", b"30")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"<html><head></hea", "more_body": True})
    await send({"type": "http.response.body", "body": b"d><p>A<p></p>"})


async def get(
    app: Callable[..., object], path: str = "/", method: str = "GET", **headers: str
) -> httpx.Response:
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app),  # type: ignore[arg-type]
        base_url="http://lab",
    ) as client:
        sent = {name.replace("_", "-"): value.encode() for name, value in headers.items()}
        return await client.request(method, path, headers=sent)


def given(response: httpx.Response) -> str:
    """The one cookie that a response sets."""
    (cookie,) = response.headers.get_list("set-cookie")
    assert isinstance(cookie, str)
    return cookie


def secret_of(cookie: str) -> str:
    return cookie.partition("=")[2].partition(";")[0]


async def test_new_visitor_gets_an_http_only_same_site_cookie() -> None:
    cookie = given(await get(VisitorCookie(page)))
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", secret_of(cookie))
    parts = set(cookie.split("; ")[1:])
    assert parts == {"Path=/", "Max-Age=31536000", "HttpOnly", "SameSite=Lax"}


async def test_two_visitors_get_two_secrets() -> None:
    one, two = [secret_of(given(await get(VisitorCookie(page)))) for _ in range(2)]
    assert one != two


async def test_cookie_is_secure_and_works_in_a_frame_over_https() -> None:
    cookie = given(await get(VisitorCookie(page), x_forwarded_proto="https"))
    assert cookie.endswith("; HttpOnly; SameSite=None; Secure; Partitioned")


async def test_cookie_is_kept_for_a_returning_visitor() -> None:
    cookie = given(await get(VisitorCookie(page), cookie=f"other=1; {COOKIE}={SECRET}"))
    assert secret_of(cookie) == SECRET


@pytest.mark.parametrize(
    "garbage",
    ["", "short", "s" * 42, "s" * 44, "s" * 42 + "é", "s" * 42 + "/", "' OR 1=1 --" + "s" * 32,
     f'"{SECRET}', "s" * 43 + "\x7f"],
)  # fmt: skip
async def test_a_forged_cookie_is_replaced_by_a_new_secret(garbage: str) -> None:
    response = await get(VisitorCookie(page), cookie=f"{COOKIE}={garbage}")
    new = secret_of(given(response))
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", new)
    assert new not in garbage


@pytest.mark.parametrize("header", ["=;=;", "a b c", f"{COOKIE}", ";" * 50, '{"x": [1]}'])
async def test_a_broken_cookie_header_still_gives_a_page_and_a_secret(header: str) -> None:
    response = await get(VisitorCookie(page), cookie=header)
    assert response.status_code == 200
    assert len(secret_of(given(response))) == 43


async def test_only_the_page_itself_gives_secrets() -> None:
    response = await get(VisitorCookie(page), "/assets/index.js")
    assert "set-cookie" not in response.headers


def test_secret_is_recognized_by_its_form() -> None:
    assert visitor_secret({COOKIE: SECRET}) == SECRET
    assert visitor_secret({COOKIE: SECRET + "\n"}) is None
    assert visitor_secret({"another": SECRET}) is None
    assert visitor_secret({}) is None


@pytest.mark.parametrize(
    ("sent", "known"),
    [
        ({}, True),  # a program
        ({"sec_fetch_site": "same-origin", "origin": "http://lab"}, True),
        ({"sec_fetch_site": "same-origin", "origin": "https://behind.a.proxy"}, True),
        ({"sec_fetch_site": "none"}, True),
        ({"sec_fetch_site": "cross-site", "origin": "http://evil.example"}, False),
        ({"sec_fetch_site": "cross-site"}, False),
        ({"sec_fetch_site": "same-site", "origin": "http://lab:9999"}, False),
        ({"origin": "http://lab"}, True),
        ({"origin": "https://front", "x_forwarded_host": "front"}, True),
        ({"origin": "http://evil.example"}, False),
        ({"origin": "http://lab:9999"}, False),
        ({"origin": "null"}, False),
        ({"origin": "http://["}, False),
        ({"origin": ""}, False),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_cookie_is_dropped_from_cross_site_calls(
    sent: dict[str, str], known: bool, method: str
) -> None:
    cookies: list[str | None] = []

    async def called(scope: Scope, receive: Receive, send: Send) -> None:
        cookies.append(Headers(scope=scope).get("cookie"))
        await page(scope, receive, send)

    cookie = f"{COOKIE}={SECRET}"
    await get(VisitorCookie(called), "/gradio_api/queue/join", method, cookie=cookie, **sent)
    assert cookies == [cookie if known else None]


async def test_navigation_from_another_site_keeps_the_visitor() -> None:
    response = await get(
        VisitorCookie(page), cookie=f"{COOKIE}={SECRET}", sec_fetch_site="cross-site"
    )
    assert secret_of(given(response)) == SECRET


# ── the front page and the allowed routes ───────────────────────────────────────────────────


async def test_head_begins_with_our_own_lines() -> None:
    response = await get(FrontPage(page, "<script>語</script>"))
    assert response.text == "<html><head><script>語</script></head><p>A<p></p>"
    assert int(response.headers["content-length"]) == len(response.content)


async def test_other_paths_and_methods_are_left_as_they_are() -> None:
    for path, method in (("/config", "GET"), ("/", "POST")):
        response = await get(FrontPage(page, "<script>"), path, method)
        assert response.text == "<html><head></head><p>A<p></p>"


OWN = [Route("/healthz", page, methods=["GET"]), Mount("/api/v1", page)]


LAB: Any = SimpleNamespace(
    error_handler=ErrorHandler(Translations(ROOT / "templates/fallbacks.yaml"))
)


@pytest.fixture(scope="module")
def allow_list() -> AllowGradioRoutes:
    return AllowGradioRoutes(page, LAB, OWN)


@functools.cache
def gradio_routes() -> list[tuple[str, str]]:
    """Method and path template of every route that Gradio registers."""
    code = "import gradio, json; app = gradio.routes.App.create_app(gradio.Blocks())"
    code += "; print(json.dumps(app.openapi()['paths']))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    paths: dict[str, dict[str, Any]] = json.loads(run.stdout) | {"/openapi.json": {"get": {}}}
    assert len(paths) > 60  # else the walk looks at nothing
    return [(method.upper(), path) for path, methods in paths.items() for method in methods]


def filled(template: str) -> str:
    """A path of the template."""
    return re.sub(r"{[^}]*}", "1", template)


async def test_gradios_routes_are_on_the_list_or_answer_404(allow_list: AllowGradioRoutes) -> None:
    for method, path in ((method, filled(path)) for method, path in gradio_routes()):
        response = await get(allow_list, path, method)
        if is_allowed(method, path):
            assert response.status_code == 200, (method, path)
        else:
            assert response.status_code == 404, (method, path)
            assert method == "HEAD" or response.json()["error"]["code"] == "invalid_request"


def test_every_entry_of_the_list_is_a_route_of_gradio() -> None:
    registered = [(method, re.sub(r"{[^}]*}", ".+", path)) for method, path in gradio_routes()]
    for (methods, path), reason in GRADIO_ROUTES.items():
        for method in methods.split():
            assert any(
                method == known and re.fullmatch(pattern, filled(path))
                for known, pattern in registered
            ), (method, path)
        assert reason


async def test_own_routes_are_allowed_for_every_method(allow_list: AllowGradioRoutes) -> None:
    for path in ("/api/v1/agents", "/api/v1/x/y"):
        for method in ("GET", "POST", "DELETE", "OPTIONS"):
            assert (await get(allow_list, path, method)).status_code == 200, (method, path)
    for path in ("/healthz", "/healthz/"):
        assert (await get(allow_list, path)).status_code == 200
        refused = await get(allow_list, path, "POST")
        assert refused.status_code == 405
        assert refused.json()["error"]["code"] == "invalid_request"
    assert (await get(allow_list, "/api/v2/agents")).status_code == 404


async def test_the_404_is_in_the_callers_language(allow_list: AllowGradioRoutes) -> None:
    texts = {
        language: (await get(allow_list, "/monitoring", accept_language=language)).json()["error"]
        for language in ("ja", "en")
    }
    assert texts["en"]["message"].isascii()
    assert not texts["ja"]["message"].isascii()


async def test_the_list_holds_under_a_root_path(allow_list: AllowGradioRoutes) -> None:
    transport = httpx.ASGITransport(app=allow_list, root_path="/lab")  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://lab") as client:
        for path, status in (("/lab/config", 200), ("/lab/", 200), ("/lab/monitoring", 404)):
            assert (await client.get(path)).status_code == status, path


@pytest.mark.parametrize(
    ("wanted", "status"), [("content-type, X-Forwarded-Host", 403), ("content-type", 200)]
)
async def test_preflight_refuses_forwarded_headers_of_another_site(
    allow_list: AllowGradioRoutes, wanted: str, status: int
) -> None:
    asked = {"access_control_request_headers": wanted, "origin": "http://lab:8000"}
    response = await get(allow_list, "/api/v1/tokens", "OPTIONS", **asked)
    assert response.status_code == status


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b'{"data": ["hello"], "fn_index": 0}', 200),
        (b'{"data": [{"path": "x", "meta": {"_type": "gradio.FileData"}}]}', 400),
        (b'{"data": {"a": [[{"meta": {"\\u005ftype": "gradio.FileData"}}]]}}', 400),
        (b'{"data": [{"meta": "a word"}], "fn_index": 0}', 200),
        (b"not JSON", 422),
        (b"[" * 100_000, 422),
        (b'["hello"]', 422),
        (b'{"data": "hello", "fn_index": 0}', 422),
        (b'{"data": [], "fn_index": 0}', 422),
        (b'{"data": ["hello"], "fn_index": 1}', 404),
        (b'{"data": ["hello"], "fn_index": Infinity}', 422),
        (b'"' + b"x" * CheckGradioCalls.MAX_BYTES + b'"', 413),
    ],
    ids=[
        "text",
        "file",
        "escaped",
        "meta",
        "no JSON",
        "deep",
        "list",
        "no data",
        "few inputs",
        "unknown",
        "no index",
        "large",
    ],
)
async def test_gradio_gets_only_calls_that_it_can_handle(sent: bytes, status: int) -> None:
    heard: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        heard.append((await receive())["body"])
        await page(scope, receive, send)

    def find(name: str, index: int | None) -> list[CallInput] | None:
        return [CallInput("message")] if index == 0 else None

    checked = CheckGradioCalls(app, LAB, find)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=checked), base_url="http://lab"
    ) as client:
        answer = await client.post("/gradio_api/queue/join", content=sent)
    assert answer.status_code == status
    assert heard == ([sent] if status == 200 else [])
    assert status == 200 or answer.json()["error"]["code"] == "invalid_request"


async def test_a_websocket_passes_every_middleware() -> None:
    passed: list[Scope] = []

    async def socket_app(scope: Scope, receive: Receive, send: Send) -> None:
        passed.append(scope)

    async def nothing() -> Message:
        return {}

    async def nowhere(message: Message) -> None: ...

    for layer in (
        AllowGradioRoutes(socket_app, None, OWN),  # type: ignore[arg-type]
        VisitorCookie(socket_app),
        FrontPage(socket_app, ""),
    ):
        await layer({"type": "websocket", "path": "/", "headers": []}, nothing, nowhere)
    assert len(passed) == 3
    headers = [(b"cookie", SECRET.encode()), (b"origin", b"http://evil.example"), (b"host", b"lab")]
    foreign = {"type": "websocket", "path": "/", "headers": headers}
    await VisitorCookie(socket_app)(foreign, nothing, nowhere)
    assert passed[-1]["headers"] == headers[1:]


# ── one instance ──────────────────────────────────────────────────────────────────────────


def test_a_port_that_is_taken_is_named_in_one_line() -> None:
    with closing(socket.socket()) as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigurationError, match=rf"^127\.0\.0\.1:{port} .*[^\n]$"):
            check_port("127.0.0.1", port)
    check_port("127.0.0.1", port)


def test_a_host_that_cannot_be_served_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"^192\.0\.2\.1:80 "):
        check_port("192.0.2.1", 80)


def test_a_database_is_locked_for_one_instance_until_it_ends(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'deep' / 'lab.db'}"
    with only_instance(url):
        with pytest.raises(ConfigurationError, match=r"already uses .*lab\.db"), only_instance(url):
            pass
        with only_instance(f"sqlite:///{tmp_path / 'other.db'}"):
            pass
    with only_instance(url):
        pass


def test_database_lock_holds_for_every_name_of_the_file(tmp_path: Path) -> None:
    file, link, folder = tmp_path / "la b.db", tmp_path / "link.db", tmp_path / "folder"
    link.symlink_to(file)  # dangling, until the first instance makes the file
    folder.symlink_to(tmp_path)
    urls = [
        f"sqlite:///{file}",
        f"sqlite:///{link}",
        f"sqlite:///{folder / file.name}",
        f"sqlite:///{tmp_path}/deep/../{file.name}",
        f"sqlite:///file:{file}?uri=true",
        f"sqlite:///file://{str(file).replace(' ', '%20')}?uri=true&mode=rwc",
        f"sqlite:///file:{link}?mode=rwc&uri=true",
    ]
    for held in urls:
        with only_instance(held):
            for other in urls:
                with pytest.raises(ConfigurationError, match="already uses"), only_instance(other):
                    pass
            assert set(tmp_path.glob("*.lock")) == {Path(f"{file}.lock")}


@pytest.mark.parametrize(
    "url",
    ["sqlite://", "sqlite:///:memory:", "postgresql://host/lab", "sqlite:///file::memory:?uri=true",
     "sqlite:///file:lab?mode=memory&uri=true", "sqlite:/no-url"],
)  # fmt: skip
def test_what_is_no_file_needs_no_lock(url: str) -> None:
    with only_instance(url), only_instance(url):
        pass


# ── the app as it is started ──────────────────────────────────────────────────────────────


def test_served_page_has_our_script_first_and_a_cookie(
    served: RunningApp,
) -> None:
    for encoding in ("identity", "gzip", "br"):
        response = httpx.get(served.url, headers={"accept-encoding": encoding})
        assert "personaLab" in response.text[: response.text.index('type="module"')]
        assert len(secret_of(given(response))) == 43


def test_the_served_page_names_no_other_host_to_fetch_from(served: RunningApp) -> None:
    text = httpx.get(served.url).text
    fetched = re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"'](//|https?://)", text)
    assert fetched == []


def test_the_served_app_answers_404_to_what_is_not_listed(served: RunningApp) -> None:
    with httpx.Client(base_url=served.url, timeout=30) as client:
        for method, path in ((method, filled(path)) for method, path in gradio_routes()):
            if not is_allowed(method, path):
                response = client.request(method, path)
                assert response.status_code == 404, (method, path)
                assert method == "HEAD" or response.json()["error"]["code"] == "invalid_request"


def test_the_served_app_keeps_what_a_share_link_and_a_space_ask(served: RunningApp) -> None:
    with httpx.Client(base_url=served.url, timeout=30) as client:
        assert client.head("/").status_code == 200
        for path in (
            "/config", "/theme.css", "/robots.txt", "/gradio_api/startup-events",
            "/gradio_api/info", "/gradio_api/app_id",
            "/static/js/iframeResizer.contentWindow.min.js",
        ):  # fmt: skip
            assert client.get(path).status_code == 200, path
        with client.stream("GET", "/gradio_api/heartbeat/anybody") as heartbeat:
            assert heartbeat.status_code == 200


@pytest.mark.parametrize(
    "path",
    ["/gradio_api/file=/etc/passwd", "/gradio_api/file=../data/lab.db", "/file=/etc/passwd",
     "/gradio_api/file=README.md", "/static/../../app.py", "/gradio_api/custom_component/x/y/z"],
)  # fmt: skip
def test_no_file_of_the_machine_is_given_away(served: RunningApp, path: str) -> None:
    response = httpx.get(served.url + path, timeout=30)
    assert response.status_code >= 400
    assert "root:" not in response.text


def test_files_that_the_environment_opens_to_visitors_stay_shut(tmp_path: Path) -> None:
    shown = tmp_path / "shown.txt"
    shown.write_text("ひみつ", "utf-8")
    opening = {name: str(tmp_path) for name in app.OPENING}
    with run_app(tmp_path, **opening, GRADIO_TEMP_DIR=str(tmp_path)) as lab:
        for path in ("/gradio_api/file=", "/gradio_api/file/", "/file="):
            response = httpx.get(f"{lab.url}{path}{shown}", timeout=30)
            assert response.status_code == 404, path
            assert "ひみつ" not in response.text
        assert lab.log.splitlines()[0] == (
            f"Persona Lab: no files are served: {', '.join(app.OPENING)} ignored"
        )


def test_cross_site_page_gets_no_data_of_the_visitor(served: RunningApp) -> None:
    secret = httpx.get(served.url).cookies[COOKIE]
    owner = served.store.user_for_secret(secret)
    served.store.create_agent(user_id=owner.id, name="ひみつの人")

    def listed(**headers: str) -> str:
        sent = {"cookie": f"{COOKIE}={secret}", **headers}
        call = f"{served.url}/gradio_api/call/list_personas"
        event = httpx.post(call, json={"data": []}, headers=sent, timeout=30).json()["event_id"]
        return (
            httpx.get(f"{call}/{event}", headers=sent, timeout=30)
            .text.encode()
            .decode("unicode_escape")
        )

    assert "ひみつの人" in listed()
    assert "ひみつの人" in listed(origin=served.url)
    for origin in ("http://evil.example", "http://localhost:1", "null"):
        assert "ひみつの人" not in listed(origin=origin)


def test_second_instance_on_a_port_ends_with_one_line(served: RunningApp, tmp_path: Path) -> None:
    port = served.url.rpartition(":")[2]
    told = run_failing_app(tmp_path, GRADIO_SERVER_PORT=port)
    assert one_line(told) == (
        f"127.0.0.1:{port} can't be served (Address already in use): is another Persona Lab open? "
        "Close it, or choose another port with GRADIO_SERVER_PORT."
    )
    assert httpx.get(served.url).status_code == 200


def test_second_instance_on_a_database_ends_with_one_line(
    served: RunningApp, tmp_path: Path
) -> None:
    told = run_failing_app(tmp_path, DATABASE_URL=served.database_url)
    assert re.fullmatch(
        r"another Persona Lab already uses /.*lab\.db: close it, .*", one_line(told)
    )
    assert httpx.get(served.url).status_code == 200


def one_line(told: subprocess.CompletedProcess[str]) -> str:
    """What a start that can't be says: one line and exit code 2."""
    assert told.returncode == 2, told.stderr
    assert "Traceback" not in told.stderr + told.stdout
    assert told.stdout == ""
    (line,) = told.stderr.splitlines()
    who, _, what = line.partition(": ")
    assert who == "Persona Lab"
    return what


Start = Callable[..., str]


@pytest.fixture
def start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Start:
    """``start(NAME="value")``: the entry as it is run; the one line that it ends with."""

    def make(**settings: str) -> str:
        for name, value in {**environment(tmp_path), **settings}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["app.py"])
        monkeypatch.setattr(frame, "launch", lambda *_, **__: pytest.fail("it was served"))
        code = app.main()
        said = capsys.readouterr()
        return one_line(subprocess.CompletedProcess([], code, said.out, said.err))

    return make


def test_a_wrong_setting_ends_the_process_with_one_line(tmp_path: Path) -> None:
    assert one_line(run_failing_app(tmp_path, LLM_PROVIDER="foo")).startswith("LLM_PROVIDER: ")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LLM_PROVIDER", "foo"),
        ("LLM_TEMPERATURE", "hot"),
        ("LLM_TEMPERATURE", "3"),
        ("LLM_MAX_TOKENS", "0"),
        ("DATABASE_URL", "foo"),
        ("DATABASE_URL", "mysql://x/y"),
        ("DATABASE_URL", "sqlite:////proc/none/lab.db"),
        ("DATABASE_URL", "postgresql://somebody@host:port/lab"),
        ("DATABASE_URL", "sqlite:///LOOP/lab.db"),
        ("REDIS_URL", "localhost"),
        ("REDIS_URL", "redis://host:port"),
        ("SECRETS_DIR", "/no/such/folder"),
        ("TEMPLATES_DIR", "/no/such/folder"),
        ("OPENAI_API_KEY_FILE", "/no/such/file"),
        ("LLM_TIMEOUT", "inf"),
        ("KEYS_TTL", "nan"),
        ("OPENAI_BASE_URL", "ftp://localhost:1234"),
        ("GRADIO_SERVER_PORT", "70000"),
        ("GRADIO_SERVER_PORT", "http"),
        ("LOCAL_CONTEXT", "1"),
        ("MAX_MESSAGE_LENGTH", "-1"),
    ],
)
def test_a_wrong_setting_stops_the_start_and_is_named(
    start: Start, tmp_path: Path, name: str, value: str
) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    line = start(**{name: value.replace("LOOP", str(loop))})
    assert line.startswith(f"{name}: ")
    assert len(line) > len(name) + 10


@pytest.mark.parametrize("provider", ["mock", "local"])
def test_an_unknown_default_model_stops_the_start(start: Start, provider: str) -> None:
    line = start(LLM_PROVIDER=provider, LLM_MODEL="nothing-of-that-name")
    assert "nothing-of-that-name" in line


def test_a_model_file_that_is_not_there_stops_the_start(start: Start) -> None:
    line = start(LLM_PROVIDER="local", LLM_MODEL="", LOCAL_MODEL="/no/where/model.gguf")
    assert "/no/where/model.gguf" in line


@pytest.mark.parametrize(
    ("file", "text", "named"),
    [
        ("templates/rules.yaml", "rules: [", "rules.yaml: line "),
        ("templates/rules.yaml", "rules:\n  - {template: teacher, wen: {}}", "rules.yaml: rule 1"),
        ("templates/ui.yaml", "bar: {line: {ja: はい}}", "ui.yaml: bar.line: en"),
        ("templates/fallbacks.yaml", "timeout: {ja: はい}", "fallbacks.yaml: timeout"),
        ("templates/prompts/default.ja.j2", "{{ nothing", "default.ja.j2"),
        ("templates/prompts/default.ja.j2", "{% if %}", "default.ja.j2"),
        ("data/models.yaml", "models: [{provider: nobody, name: x}]", "models.yaml: model 1"),
        ("data/models.yaml", "models:\n - [", "models.yaml"),
        ("data/personas.yaml", "personas: [{id: x}]", "personas"),
    ],
)
def test_start_fails_with_file_and_place_when_a_file_is_broken(
    start: Start, broken_copy: Callable[[str, str], Path], file: str, text: str, named: str
) -> None:
    folder = broken_copy(file, text)
    line = start(**{f"{folder.name.upper()}_DIR": str(folder)})
    assert line.startswith(named), line


def test_start_fails_with_the_folder_when_templates_are_missing(
    start: Start, tmp_path: Path
) -> None:
    line = start(TEMPLATES_DIR=str(tmp_path / "none"))
    assert str(tmp_path / "none") in line


def test_unknown_argument_is_refused_and_help_is_shown(tmp_path: Path) -> None:
    for argument, code in (("--nothing", 2), ("--help", 0)):
        told = subprocess.run(
            [*APP, argument], cwd=tmp_path, env=environment(tmp_path), capture_output=True,
            text=True, timeout=60, check=False,
        )  # fmt: skip
        assert told.returncode == code
        assert "--share" in told.stdout + told.stderr


def test_stopping_the_app_keeps_data_and_releases_the_database(tmp_path: Path) -> None:
    with run_app(tmp_path) as lab:
        user = lab.store.create_user().id
        agent = lab.store.create_agent(user_id=user, name="のこる人")
    assert "Traceback" not in lab.log
    with run_app(tmp_path) as lab:
        assert lab.store.get_agent(agent.id, user_id=user).name == "のこる人"


def test_start_fetches_nothing_and_loads_no_model(tmp_path: Path) -> None:
    sdks = "import sys; print(*sys.modules)"
    started = subprocess.run(
        [sys.executable, "-c", f"import app, persona_lab.ui.page; {sdks}"],
        cwd=Path(APP[1]).parent, env=environment(tmp_path), capture_output=True, text=True,
        timeout=60, check=True,
    )  # fmt: skip
    assert not {"openai", "anthropic", "llama_cpp"} & set(started.stdout.split())


# ── a full disk ───────────────────────────────────────────────────────────────────────────


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    options = ["-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    done = subprocess.run([mount, *options], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"a file system can't be mounted here: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while filler.write(b"x" * 4096):
            pass


@pytest.mark.parametrize("language", ["ja", "en"])
def test_full_disk_is_reported_and_stored_data_stays(
    tmp_path: Path, small_disk: Path, language: str
) -> None:
    from gradio_client import Client
    from gradio_client.exceptions import AppError

    from persona_lab.settings import ROOT
    from persona_lab.translations import Translations

    words = Translations(ROOT / "templates" / "fallbacks.yaml")
    with run_app(tmp_path, DATABASE_URL=f"sqlite:///{small_disk / 'lab.db'}") as lab:
        client = Client(lab.url, verbose=False, headers={"accept-language": language})
        kept = client.predict({"name": "さきの人"}, api_name="/save_persona")
        chat = client.predict("さきの話", kept["id"], api_name="/chat")["chat_id"]
        fill(small_disk)
        with pytest.raises(AppError) as told:
            for number in range(200):  # what SQLite has in hand may still take a few
                big = {"name": f"人{number}", "background": "長" * 9000}
                client.predict(big, api_name="/save_persona")
        assert str(told.value) == words("disk_full", language)
        before = client.predict(chat, api_name="/get_chat")
        with pytest.raises(AppError) as told:
            for _ in range(200):
                client.predict("長" * 1900, kept["id"], chat, api_name="/chat")
        assert str(told.value) == words("disk_full", language)
        assert client.predict(chat, api_name="/get_chat")[: len(before)] == before
        (small_disk / "filler").unlink()
        client.predict("あとの話", kept["id"], chat, api_name="/chat")
        said = [m["content"] for m in client.predict(chat, api_name="/get_chat")]
        assert "さきの話" in said
        assert "あとの話" in said
        client.close()


def test_a_disk_that_is_full_at_the_start_stops_it_in_one_line(
    tmp_path: Path, small_disk: Path
) -> None:
    fill(small_disk)
    assert one_line(run_failing_app(tmp_path, DATABASE_URL=f"sqlite:///{small_disk / 'lab.db'}"))
