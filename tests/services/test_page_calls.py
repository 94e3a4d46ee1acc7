"""Calls of the page's events and endpoints with values that no page sends."""

from __future__ import annotations

import asyncio
import logging
from itertools import product
from typing import Any

import gradio as gr
import pytest
from gradio.state_holder import SessionState
from support.texts import FALLBACKS

from persona_lab.lab import Lab
from persona_lab.ui.gradio_api import input_finder
from persona_lab.ui.page import build

TYPED = "ひみつの文章"


WRONG_VALUES: list[Any] = [TYPED, [[TYPED]], [{"role": TYPED}], {"a": TYPED}, 1.5]


async def test_page_calls_log_no_value_of_a_wrong_type(
    lab: Lab, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    page, _ = build(lab)
    request = gr.Request(session_hash="one", cookies={}, headers={"accept-language": "ja"})
    events = [event for event in page.fns.values() if event.fn]
    state, refused = SessionState(page), 0
    for value, event in product(WRONG_VALUES, events):
        call = page.process_api(event, [value for _ in event.inputs], state, request)
        try:
            await asyncio.create_task(call)  # a task has a context of its own, as a request has
        except gr.Error as error:
            assert not error.print_exception
            refused += 1
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()  # the prefill of an opened persona waits
    assert refused > len(events)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert TYPED not in caplog.text + capsys.readouterr().err


async def test_input_finder_leaves_out_events_without_a_function(lab: Lab) -> None:
    page, _ = build(lab)
    find = input_finder(page)
    in_browser = [i for i, event in page.fns.items() if not event.fn]
    assert in_browser
    assert all(find("", index) is None for index in in_browser)


async def test_empty_message_sends_nothing(lab: Lab) -> None:
    page, _ = build(lab)
    [send] = [event for event in page.fns.values() if event.name == "_on_send"]
    request = gr.Request(session_hash="one", cookies={}, headers={"accept-language": "ja"})
    agent = lab.store.list_agents(user_id="")[0]
    with pytest.raises(gr.Error) as refused:
        async for _ in send.fn("", agent.id, "", "mock:echo", request):
            pass
    assert refused.value.message == FALLBACKS("empty_message", "ja")


async def test_opening_a_persona_leaves_the_message_boxes_alone(lab: Lab) -> None:
    page, _ = build(lab)
    boxes = {"try-message", "chat-message", "compare-message"}
    written = {
        (event.name, component.elem_id)
        for event in page.fns.values()
        for component in event.outputs
        if component.elem_id in boxes
    }
    assert written == set()
