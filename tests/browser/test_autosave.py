"""Saving while a visitor types: errors, two tabs, a lost server and a reload."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from playwright.sync_api import expect
from support.app_process import wait_until
from support.browser import BrowserUser, PageOpener

from persona_lab.personas.persona import persona_of


@pytest.mark.core
def test_invalid_persona_shows_an_error_and_keeps_the_input(user: BrowserUser) -> None:
    agent = user.create_persona("名のある人")
    user.open_persona(agent)
    user.text_box("field-name").fill("")
    expect(user.locator("#saved [role=alert]")).to_be_visible()
    expect(user.locator("#editor-form [aria-invalid=true]")).to_have_count(1)
    expect(user.text_box("field-name")).to_have_attribute("aria-invalid", "true")
    user.text_box("field-background").fill("灯台で育った。")
    expect(user.preview).to_contain_text("灯台で育った。")
    user.reload()
    expect(user.text_box("field-background")).to_have_value("灯台で育った。")
    expect(user.locator("#saved [role=alert]")).to_be_visible()
    assert [(a.name, a.background) for a in user.own_personas()] == [("名のある人", "")]
    user.text_box("field-name").fill("また名のある人")
    expect(user.locator("#saved")).to_contain_text(user.text("editor.saved"))
    expect(user.text_box("field-name")).to_have_attribute("aria-invalid", "false")
    wait_until(lambda: [a.name for a in user.own_personas()] == ["また名のある人"])
    for name in ("", "また名のある人"):  # back to what is saved, the warning goes
        user.text_box("field-name").fill(name)
        expect(user.locator("#saved [role=alert]")).to_have_count(0 if name else 1)


def test_edit_is_kept_when_persona_is_deleted_in_another_tab(user: BrowserUser) -> None:
    agent = user.create_persona("ふたつの窓")
    user.open_persona(agent)
    user.store.delete_agent(agent.id, user_id=user.user_id)
    user.text_box("field-description").fill("消されたあとに書いた")
    expect(user.locator("#saved")).to_contain_text(user.text("editor.deleted_elsewhere"))
    user.locator("#persona-restore").click()
    expect(user.locator("#persona-restore")).to_be_hidden()
    expect(user.text_box("field-description")).to_have_value("消されたあとに書いた")
    assert [(a.id, a.description) for a in user.own_personas()] == [
        (agent.id, "消されたあとに書いた")
    ]


@pytest.mark.core
def test_two_tabs_keep_each_others_fields(user: BrowserUser) -> None:
    agent = user.create_persona("ふたつの窓")
    user.open_persona(agent)
    first, second = user.page, user.context.new_page()
    user.page = second
    user.open()
    expect(user.text_box("field-name")).to_have_value(agent.name)
    user.text_box("field-description").fill("右の窓で書いた")
    wait_until(lambda: user.own_personas()[0].description == "右の窓で書いた")
    user.page = first
    user.text_box("field-background").fill("左の窓で書いた")
    wait_until(lambda: user.own_personas()[0].background == "左の窓で書いた")
    assert [(a.id, a.description) for a in user.own_personas()] == [(agent.id, "右の窓で書いた")]


def test_saved_mark_appears_only_after_the_server_answers(user: BrowserUser) -> None:
    held: list[Any] = []
    user.page.route("**/run/predict*", lambda route: held.append(route))
    user.text_box("field-description").press("End")
    user.page.keyboard.type("！")
    expect(user.locator("#saving")).to_have_text(re.compile(user.text("editor.saving")))
    expect(user.locator("#saved")).to_be_hidden()
    # Playwright hands a request over only while it is asked for something.
    wait_until(lambda: user.page.wait_for_timeout(20) or held)
    expect(user.locator("#saved")).to_be_hidden()
    user.page.unroute("**/run/predict*")  # lets go on what was held
    expect(user.locator("#saved")).to_have_text(user.text("editor.saved"))
    expect(user.locator("#saving")).to_be_hidden()
    assert "！" in user.own_personas()[0].description


@pytest.mark.parametrize("language", ["ja", "en"])
def test_input_is_saved_on_reconnect_when_server_was_lost(
    open_page: PageOpener, language: str
) -> None:
    user = open_page(language)
    agent = user.create_persona("Ada")
    user.open_persona(agent)
    expect(user.locator("#lost")).to_be_hidden()
    user.context.set_offline(True)
    user.text_box("field-background").fill("灯台で育った。")
    expect(user.locator("#lost")).to_be_visible()
    assert user.text("bar.lost") in user.locator("#lost").inner_text()
    expect(user.locator("#saving")).to_be_visible()
    user.enter("#field-tones", "小声")
    user.text_box("field-description").fill("灯台守")
    assert user.own_personas()[0].background == ""
    # Another tab opens another persona meanwhile.
    user.page.evaluate(
        "id => localStorage.setItem('persona_lab.persona', id)", user.demo_personas()[0].id
    )
    user.context.set_offline(False)
    expect(user.locator("#lost")).to_be_hidden()  # the page opens anew by itself
    user.wait_until_ready()
    expect(user.text_box("field-background")).to_have_value("灯台で育った。")
    expect(user.text_box("field-description")).to_have_value("灯台守")
    expect(user.chips("tones")).to_have_text(["小声"])
    expect(user.locator("#saved")).to_have_text(user.text("editor.saved"))
    wait_until(lambda: not user.page.evaluate("sessionStorage['persona_lab.unsaved'] || ''"))
    (kept,) = map(persona_of, user.own_personas())
    assert (kept["background"], kept["description"], kept["tones"]) == (
        "灯台で育った。", "灯台守", ["小声"],
    )  # fmt: skip


def test_invalid_input_returns_when_its_persona_is_reopened(user: BrowserUser) -> None:
    agent = user.create_persona("Grace")
    user.open_persona(agent)
    user.text_box("field-name").fill("")
    expect(user.locator("#saved [role=alert]")).to_be_visible()
    user.text_box("field-background").fill("船の上で育った。")
    wait_until(
        lambda: "船の上" in (user.page.evaluate("sessionStorage['persona_lab.unsaved']") or "")
    )
    expect(user.locator("#saved [role=alert]")).to_be_visible()
    demo = user.demo_personas()[0].name
    user.choose("#who", user.text("persona.demo", name=demo))
    expect(user.text_box("field-name")).to_have_value(demo)
    user.wait_until_ready()
    user.choose("#who", agent.name)
    expect(user.text_box("field-background")).to_have_value("船の上で育った。")
    expect(user.text_box("field-name")).to_have_value("")
    expect(user.locator("#saved [role=alert]")).to_be_visible()
    user.wait_until_ready()
    user.text_box("field-name").fill("Hopper")
    expect(user.locator("#saved")).to_have_text(user.text("editor.saved"))
    wait_until(lambda: not user.page.evaluate("sessionStorage['persona_lab.unsaved'] || ''"))
    assert [(a.name, a.background) for a in user.own_personas()] == [("Hopper", "船の上で育った。")]


def test_persona_is_saved_when_browser_storage_is_full(user: BrowserUser) -> None:
    user.page.evaluate(
        """() => {
          for (let size = 1 << 22, n = 0; size >= 1; n++)
            try { sessionStorage.setItem(`full${n}`, "x".repeat(size)); } catch { size >>= 1; }
        }"""
    )
    user.text_box("field-description").fill("満杯でも残る")
    wait_until(lambda: [agent.description for agent in user.own_personas()] == ["満杯でも残る"])
    expect(user.locator("#saved")).to_have_text(user.text("editor.saved"))


def test_demo_is_not_copied_twice_when_the_answer_was_lost(user: BrowserUser) -> None:
    demo = user.text_box("editing").input_value()
    text = user.text_box("field-description").input_value() + "！"
    user.text_box("field-description").fill(text)
    wait_until(lambda: [a.description for a in user.own_personas()] == [text])
    expect(user.locator("#saved")).to_have_text(user.text("editor.saved"))
    user.page.evaluate(
        "unsaved => sessionStorage.setItem('persona_lab.unsaved', unsaved)",
        json.dumps({demo: {"description": text}}),
    )
    user.reload()
    expect(user.text_box("field-description")).to_have_value(text)
    wait_until(lambda: not user.page.evaluate("sessionStorage['persona_lab.unsaved'] || ''"))
    assert [a.id for a in user.own_personas()] == [user.text_box("editing").input_value()]
