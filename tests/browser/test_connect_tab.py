"""The connect tab: a visitor's own keys, and tokens for programs."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect
from pytest_httpserver import HTTPServer
from support.app_process import run_app
from support.browser import BrowserUser, PageOpener
from werkzeug import Request, Response

from persona_lab.ui.tabs.connect import MIN_KEY_LENGTH


@pytest.mark.core
def test_user_key_is_used_on_its_page_only_until_reload(
    open_page: PageOpener, tmp_path: Path, httpserver: HTTPServer
) -> None:
    shown: list[str] = []

    def answer(request: Request) -> Response:
        shown.append(request.headers["Authorization"].removeprefix("Bearer "))
        wrong = {"error": {"message": "no", "type": "x", "code": "invalid_api_key"}}
        return Response(json.dumps(wrong), 401, content_type="application/json")

    httpserver.expect_request("/v1/chat/completions").respond_with_handler(answer)
    key = "sk-visitors-own-0123456789"
    with run_app(tmp_path, OPENAI_BASE_URL=httpserver.url_for("/v1")) as app:
        user, other = open_page(app=app), open_page(app=app)
        user.open_tab("connect")
        state = user.locator("#key-openai-state")
        expect(state).to_contain_text(user.text("connect.key_state.none"))
        user.text_box("key-openai").fill(key)
        user.text_box("key-openai").press("Enter")
        expect(state).to_contain_text(user.text("connect.key_state.own", end=key[-4:]))
        expect(user.text_box("key-openai")).to_have_value("")
        for each in (user, other):
            each.open_tab("compare")
            each.enter("#column-0", "openai:somebodys-model")
            each.text_box("compare-message").fill("やあ")
            each.locator("#compare-run").click()
            expect(each.locator("#column-0 [role=alert]")).to_be_visible()
        assert shown[0] == key
        assert key not in shown[1:]
        assert len(shown) == 2
        assert key not in user.page.content()
        storage = user.page.evaluate("JSON.stringify([localStorage, sessionStorage])")
        assert key not in storage
        user.reload()
        user.open_tab("connect")
        expect(state).to_contain_text(user.text("connect.key_state.none"))
        wrong = state.locator("[role=alert]")
        for written, reason in (
            ("sk-short", user.text("connect.no_key", limit=MIN_KEY_LENGTH)),
            ("", user.text("connect.empty_key")),
        ):
            user.text_box("key-openai").fill(written)
            user.locator("#key-openai-use").click()
            expect(wrong).to_have_text(reason)
        user.text_box("key-openai").fill(key)
        user.locator("#key-openai-use").click()
        expect(state).to_contain_text(user.text("connect.key_state.own", end=key[-4:]))
        expect(wrong).to_have_count(0)
        assert key not in app.log
    assert all(key.encode() not in file.read_bytes() for file in tmp_path.iterdir())


@pytest.mark.core
def test_token_is_shown_once_used_and_revoked(user: BrowserUser) -> None:
    user.open_tab("connect")
    user.text_box("token-name").fill("案内ボット")
    user.locator("#token-make").click()
    token = user.locator("#token-made code").inner_text()
    about = {"Authorization": f"Bearer {token}"}

    def called() -> int:
        return httpx.get(f"{user.served.url}/api/v1/agents", headers=about).status_code

    assert called() == 200
    expect(user.locator("#token-list label")).to_contain_text("案内ボット")
    expect(user.locator("#token-revoke")).to_be_disabled()
    user.reload()
    user.open_tab("connect")
    expect(user.locator("#token-list label")).to_contain_text("案内ボット")
    assert token not in user.page.content()
    user.locator("#token-list label").click()
    user.locator("#token-revoke").click()
    expect(user.locator("#token-revoke")).to_have_text(user.text("connect.revoke_sure"))
    assert called() == 200
    user.locator("#token-revoke").click()
    expect(user.locator("#token-made")).to_have_text(
        user.text("connect.revoked", name="案内ボット")
    )
    expect(user.locator("#token-list")).to_be_hidden()
    assert called() == 401
    user.locator("#connect-example summary").click()
    expect(user.locator("#connect-example pre")).to_contain_text(f"{user.served.url}/v1")
    user.context.grant_permissions(["clipboard-read", "clipboard-write"])
    user.locator("#connect-example .copy").click()
    expect(user.locator("#connect-example .copied")).to_be_visible()
    example = user.page.evaluate("navigator.clipboard.readText()")
    compile(example, "example", "exec")
    assert f'api_key="{user.text("connect.token_here")}"' in example
    form = user.locator("#connect-example a").evaluate("link => link.href")
    assert "/agents" in httpx.get(form).text
