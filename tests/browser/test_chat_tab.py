"""The chat tab: sending, stopping, regenerating, past chats and messages that fail."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect
from support.app_process import wait_until
from support.browser import ECHO, MUTE, SLOW, BrowserUser, Ime, PageOpener


@pytest.mark.core
def test_chat_draft_and_persona_return_after_a_reload(user: BrowserUser) -> None:
    user.choose("#who", user.text("persona.demo", name=user.demo_personas()[2].name))
    expect(user.text_box("field-name")).to_have_value(user.demo_personas()[2].name)
    user.open_tab("chat")
    for count, text in enumerate(("一つめの話", "二つめの話"), 1):
        user.send(text)
        expect(user.text_box("chat-message")).to_have_value("")
        user.wait_for_answers(count)
    user.text_box("chat-message").fill("まだ送っていない")
    said = user.locator("#thread [data-testid=user]").all_inner_texts()
    assert said == ["一つめの話", "二つめの話"]
    user.reload()
    user.open_tab("chat")
    user.wait_for_answers(2)
    assert user.locator("#thread [data-testid=user]").all_inner_texts() == said
    expect(user.text_box("chat-message")).to_have_value("まだ送っていない")
    expect(user.text_box("field-name")).to_have_value(user.demo_personas()[2].name)
    assert [m.sender for m in user.messages()] == ["user", "ai", "user", "ai"]


def test_message_shows_every_character_and_lines_of_code(user: BrowserUser) -> None:
    text = (
        "5~7時、2*3=6、4*5=20\n[状態]: 空腹\n¯\\_(ツ)_/¯ (*^_^*) __init__.py \\( x \\) $$y$$\n"
        "&lt; <b>x</b> https://example.com/だ"
    )
    code = "\n\n- 手順\n  ```\n  if x:\n  \ty = 1\n\n  z\n  ```\n\n終わり"
    user.open_tab("chat")
    user.send(text + code)
    user.wait_for_answers(1)
    message = user.locator("#thread [data-testid=user]")
    assert message.locator("p").first.inner_text() == text
    assert message.locator("pre").text_content() == "if x:\n\ty = 1\n\nz\n"
    assert message.locator("a").get_attribute("href") == "https://example.com/"
    answer = user.answers().last
    assert answer.locator("p").first.inner_text() == "「" + text
    assert answer.locator("pre").text_content() == "if x:\n\ty = 1\n\nz\n"


def test_sent_prompt_is_shown_verbatim(user: BrowserUser) -> None:
    user.open_tab("chat")
    user.send("やあ")
    user.wait_for_answers(1)
    user.locator("#thread summary").click()
    shown = user.page.evaluate(
        "[...document.querySelectorAll('#thread details pre')].map((each) => each.textContent)"
    )
    assert shown == [user.messages()[-1].details["prompt"], "やあ"]


@pytest.mark.core
def test_partial_answer_is_kept_and_marked_when_stopped(user: BrowserUser) -> None:
    user.use_model(SLOW)
    user.open_tab("chat")
    user.send("長い話をして")
    expect(user.answers().last).to_contain_text("練習用")
    user.locator("#chat-stop").click()
    expect(user.answers().last).to_contain_text(user.text("chat.status.stopped"))
    expect(user.locator("#chat-send")).to_be_visible()
    kept = user.messages()[-1]
    assert (kept.sender, kept.status) == ("ai", "stopped")
    assert "練習用" in kept.content
    user.reload()
    user.open_tab("chat")
    expect(user.answers().last).to_contain_text(user.text("chat.status.stopped"))
    expect(user.answers().last).to_contain_text(kept.content[:10])


def test_wait_shows_reason_and_seconds_and_stop_leaves_a_note(user: BrowserUser) -> None:
    user.use_model(MUTE)
    user.open_tab("chat")
    user.send("だまっている人へ")
    waiting = user.locator("#thread .waiting")
    expect(waiting).to_have_text(user.text("waiting.answer"))
    user.page.wait_for_function(
        "() => /2秒/.test(getComputedStyle(document.querySelector('#thread .waiting'),"
        " '::after').content)"
    )
    user.locator("#chat-stop").click()
    expect(user.answers().last).to_have_text(user.text("chat.status.unanswered"))
    expect(waiting).to_have_count(0)
    user.use_model(ECHO)
    user.locator("#chat-again").click()
    user.wait_for_answers(1)
    expect(user.locator("#thread")).not_to_contain_text(user.text("chat.status.unanswered"))


@pytest.mark.core
def test_regenerated_answer_replaces_the_last(user: BrowserUser) -> None:
    user.open_tab("chat")
    user.send("やあ")
    user.wait_for_answers(1)
    first = user.messages()[-1]
    user.locator("#chat-again").click()
    wait_until(lambda: user.messages()[-1].id != first.id and user.messages()[-1].status == "ok")
    user.wait_for_answers(1)
    assert [m.sender for m in user.messages()] == ["user", "ai"]


def test_thread_scrolls_to_a_sent_message_but_not_under_a_reader(user: BrowserUser) -> None:
    user.use_model(ECHO)
    user.open_tab("chat")
    for number in range(2):
        user.send("長い話" * 150)
        user.wait_for_answers(number + 1)
    thread = user.locator("#thread .bubble-wrap")
    rest = "thread => thread.scrollHeight - thread.scrollTop - thread.clientHeight"
    wait_until(lambda: thread.evaluate(rest) < 2)
    thread.evaluate("thread => thread.scrollTo(0, 0)")
    user.send("ここにいます")
    expect(user.locator("#thread [data-testid=user]").last).to_be_in_viewport()
    user.wait_for_answers(3)
    expect(user.answers().last).to_be_in_viewport()
    thread.evaluate("thread => thread.scrollTo(0, 0)")
    user.use_model(SLOW)
    user.locator("#chat-again").click()
    expect(user.answers().last).to_contain_text("練習用")
    expect(user.answers().last).to_be_in_viewport()
    thread.hover()
    user.page.mouse.wheel(0, -300)
    wait_until(lambda: thread.evaluate(rest) > 200)
    length = len(user.answers().last.inner_text())
    stood = thread.evaluate("thread => thread.scrollTop")
    wait_until(lambda: len(user.answers().last.inner_text()) > length + 20)
    assert thread.evaluate("thread => thread.scrollTop") == stood


@pytest.mark.core
def test_deleted_chat_is_restored_by_undo(user: BrowserUser) -> None:
    user.open_tab("chat")
    user.send("消える話")
    user.wait_for_answers(1)
    user.locator("#chat-delete").click()
    expect(user.locator("#thread")).not_to_contain_text("消える話")
    assert user.messages() == []
    user.locator("#chat-undo").click()
    expect(user.locator("#thread")).to_contain_text("消える話")
    assert [m.content for m in user.messages()][:1] == ["消える話"]


@pytest.mark.core
def test_chat_begins_with_the_greeting_and_keeps_it(user: BrowserUser) -> None:
    greeting = user.demo_personas()[0].greeting
    user.open_tab("chat")
    expect(user.answers()).to_have_text([greeting])
    user.send("やあ")
    user.wait_for_answers(1)
    expect(user.answers().first).to_have_text(greeting)
    user.reload()
    user.open_tab("chat")
    user.wait_for_answers(1)
    expect(user.answers().first).to_have_text(greeting)


def test_text_typed_right_after_sending_stays_in_the_box(user: BrowserUser) -> None:
    user.open_tab("chat")
    message = user.text_box("chat-message")
    drafts = ("次に言うこと", "その次", "three", "four letters", "その次の次")
    for turn, (draft, delay) in enumerate(zip(drafts, (15, 0, 40, 5, 25), strict=True), start=1):
        message.fill("はい")  # the same words again are news, too
        message.press("Enter")
        message.press_sequentially(draft, delay=delay)
        expect(user.locator("#thread [data-testid=user]")).to_have_count(turn)
        # Gradio reads the box a moment after Enter: a letter of that moment goes along.
        said = user.locator("#thread [data-testid=user]").last.inner_text().strip()
        left = f"はい{draft}".removeprefix(said)
        assert len(left) >= len(draft) - 1
        expect(message).to_have_value(left)
        user.wait_for_answers(turn)
        expect(message).to_have_value(left)
    user.reload()
    expect(message).to_have_value(left)


@pytest.mark.core
def test_past_chat_is_reopened_and_continued(user: BrowserUser) -> None:
    user.open_tab("chat")
    for text in ("春の話", "秋の話"):
        user.locator("#chat-new").click()
        expect(user.locator("#thread [data-testid=user]")).to_have_count(0)
        user.send(text)
        user.wait_for_answers(1)
    user.locator("#chat-list label").filter(has_text="春の話").click()
    expect(user.locator("#thread")).to_contain_text("春の話")
    expect(user.locator("#thread")).not_to_contain_text("秋の話")
    user.send("続き")
    expect(user.locator("#thread [data-testid=user]")).to_have_text(["春の話", "続き"])


def test_message_is_kept_when_persona_is_deleted_in_another_tab(user: BrowserUser) -> None:
    agent = user.create_persona("いない人")
    user.reload()
    user.choose("#who", agent.name)
    expect(user.text_box("field-name")).to_have_value(agent.name)
    user.open_tab("chat")
    user.store.delete_agent(agent.id, user_id=user.user_id)
    user.send("だいじな話")
    expect(user.toast).to_have_text(user.error_text("not_found"))
    text = user.text_box("chat-message").input_value()
    assert "だいじな話" in (text, *[m.content for m in user.messages()])


@pytest.mark.core
def test_enter_sends_nothing_when_composing(user: BrowserUser) -> None:
    ime = Ime(user.page)
    boxes = (("persona", "try"), ("compare", "compare"), ("chat", "chat"))
    for number, (tab, box) in enumerate(boxes):
        user.open_tab(tab)
        message = user.text_box(f"{box}-message")
        message.fill("")
        message.focus()
        ime.compose("にほんご")
        ime.press_enter()
        ime.commit("日本語で話そう")
        expect(message).to_have_value("日本語で話そう")
        kinds = [r.kind for r in user.store.records(user_id=user.user_id)]
        assert "".join(kinds) == "".join(["try", "compare" * 2][:number]), f"{box} was sent"
        user.page.keyboard.press("Enter")
        if box == "try":
            expect(user.locator("#tried .figures")).to_be_visible()
        elif box == "compare":
            for column in (0, 1):
                expect(user.locator(f"#column-{column} .figures span").first).to_be_visible()
        else:
            user.wait_for_answers(1)
    assert [m.content for m in user.messages() if m.sender == "user"] == ["日本語で話そう"]


def test_chat_continues_when_its_demo_changes_in_another_tab(user: BrowserUser) -> None:
    user.open_tab("chat")
    user.send("一つめ")
    user.wait_for_answers(1)
    (chat,) = user.store.list_chats(user_id=user.user_id)
    user.store.update_agent(chat.agent_id, user_id=user.user_id, description="別の窓で変えた")
    user.send("二つめ")
    user.wait_for_answers(2)
    assert [m.content for m in user.messages() if m.sender == "user"] == ["一つめ", "二つめ"]


def test_empty_box_sends_nothing_and_chips_fill_it(user: BrowserUser) -> None:
    user.open_tab("chat")
    user.locator("#chat-send").click()
    expect(user.toast).to_have_text(user.error_text("empty_message"))
    assert user.messages() == []
    chip = user.locator("#chat-suggestions button").first
    text = chip.inner_text()
    chip.click()
    expect(user.text_box("chat-message")).to_have_value(text)
    user.locator("#chat-send").click()
    user.wait_for_answers(1)
    expect(user.locator("#thread [data-testid=user]")).to_have_text([text])
    expect(user.locator("#chat-suggestions")).to_be_hidden()


@pytest.mark.parametrize("language", ["ja", "en"])
def test_message_is_kept_when_the_model_is_unknown(open_page: PageOpener, language: str) -> None:
    user = open_page(language)
    user.enter("#model", "nobody:x")
    expect(user.locator("#ready")).to_contain_text(user.text("model.state.failed"))
    user.open_tab("chat")
    user.send("大切な話")
    expect(user.toast).to_have_text(user.error_text("unknown_model", model="nobody:x"))
    kept = [m.content for m in user.messages()]
    assert "大切な話" in (user.text_box("chat-message").input_value(), *kept)


def test_message_is_kept_when_the_model_has_no_key(user: BrowserUser) -> None:
    user.enter("#model", "openai:gpt-x")
    expect(user.locator("#ready")).to_contain_text(user.text("model.state.needs_key"))
    user.open_tab("chat")
    user.send("大切な話")
    user.wait_for_answers(1)
    expect(user.answers().last).to_contain_text("OPENAI_API_KEY")
    expect(user.locator("#thread .under.failed")).to_be_visible()
    assert next(m.content for m in user.messages()) == "大切な話"
