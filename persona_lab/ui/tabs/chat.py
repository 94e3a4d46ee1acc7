"""The chat tab: the open chat, the list of chats, and the prompt of each answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from html import escape
from typing import Any

import gradio as gr
from gradio.components import Component

from persona_lab.db.tables import Agent
from persona_lab.lab import Lab
from persona_lab.types import Event
from persona_lab.ui.events import PRIVATE_EVENT, noop_for_cancel
from persona_lab.ui.prefetch import PromptPrefetcher
from persona_lab.ui.render.chat import Thread, lean, thread_of, title_of, under_html
from persona_lab.ui.render.text import safe_markdown, waiting_html
from persona_lab.ui.session import Visitor, Visitors
from persona_lab.ui.streaming import paced, waits_for


class ChatActions:
    """The actions of the tab. Each checks that an id from the page belongs to the visitor."""

    def __init__(self, lab: Lab, visitors: Visitors) -> None:
        self.lab = lab
        self.visitors = visitors
        self._answering: dict[str, asyncio.Event] = {}

    async def settled(self, chat_id: str) -> None:
        """Wait until a stopped answer is saved; return at once if none is running."""
        over = self._answering.get(chat_id)
        if over is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), timeout=10)

    async def past(self, persona: str, visitor: Visitor) -> list[tuple[str, str]]:
        """Return the visitor's chats with a persona, newest first, as (title, id)."""
        chats = await visitor.operations(self.lab).list_chats(persona, limit=1000)
        return [(title_of(chat, visitor), chat.id) for chat in chats]

    async def thread(self, persona: str, chat_id: str, visitor: Visitor) -> Thread:
        """Return the messages of a chat; only the greeting where ``chat_id`` is empty."""
        operations = visitor.operations(self.lab)
        agent = await operations.get_persona(persona, deleted=True)
        if not chat_id:
            return thread_of([], agent, visitor)
        messages = await operations.list_messages(chat_id)
        return thread_of(messages, agent, visitor)

    async def show(self, persona: str, chat_id: str, visitor: Visitor) -> tuple[Any, ...]:
        """Return values for (chat_id, list, thread), with ``chat_id`` open, or a new chat."""
        past = await self.past(persona, visitor)
        if chat_id not in [id_ for _, id_ in past]:
            chat_id = ""
        return (
            chat_id,
            gr.update(choices=past, value=chat_id or None, visible=bool(past)),
            await self.thread(persona, chat_id, visitor),
        )

    async def send(
        self, message: str, persona: str, chat_id: str, model: str, visitor: Visitor
    ) -> AsyncGenerator[tuple[str, Thread, bool], None]:
        """Send a message, and stream the answer.

        Args:
            message: The user's message.
            persona: The id of the persona.
            chat_id: The chat; "" begins one.
            model: The model, as provider:name; "" is the default.
            visitor: The visitor.

        Yields:
            The chat's id, the thread, and whether the message is saved.
        """
        operations = visitor.operations(self.lab)
        message, chat = await operations.chat_for(message, chat_id, persona, model=model)
        # The chat's own persona: a changed demo moves its chats to the copy.
        chat_id, persona = chat.id, chat.agent_id
        await operations.get_persona(persona)
        thread = await self.thread(persona, chat_id, visitor)
        thread.append({"role": "user", "content": safe_markdown(message)})
        events = operations.send(message, chat_id, persona, model=model)
        async with aclosing(self._follow(events, thread, chat_id, model, visitor)) as steps:
            async for step in steps:
                yield step

    async def regenerate(
        self, persona: str, chat_id: str, model: str, visitor: Visitor
    ) -> AsyncGenerator[tuple[str, Thread, bool], None]:
        """Stream a new answer to the last message. The store keeps the previous answer.

        Yields:
            The same as :meth:`send`.
        """
        thread = await self.thread(persona, chat_id, visitor)
        while thread and thread[-1]["role"] == "assistant" and len(thread) > 1:
            thread.pop()
        events = visitor.operations(self.lab).regenerate(chat_id, model=model)
        failed = ""

        async def watched() -> AsyncGenerator[Event, None]:
            nonlocal failed
            async with aclosing(events) as stream:
                async for event in stream:
                    if event.type == "done" and "fallback" in event.metadata:
                        failed = event.content
                    yield event

        async with aclosing(self._follow(watched(), thread, chat_id, model, visitor)) as steps:
            async for step in steps:
                yield step
        if failed:  # show the previous answer again
            gr.Warning(escape(failed, quote=False), duration=6)
            yield chat_id, await self.thread(persona, chat_id, visitor), True

    async def _follow(
        self,
        events: AsyncGenerator[Event, None],
        thread: Thread,
        chat_id: str,
        model: str,
        visitor: Visitor,
    ) -> AsyncGenerator[tuple[str, Thread, bool], None]:
        over = self._answering[chat_id] = asyncio.Event()
        text, kept, thread = "", False, lean(thread)
        try:
            async with aclosing(paced(events)) as batches:
                async for batch in batches:
                    for event in batch:
                        kept |= event.type == "start"  # a heartbeat doesn't tell
                        text = event.content if event.type == "done" else text + event.content
                    shown: Any = safe_markdown(text)
                    if not text:
                        words = await waits_for(model, visitor)
                        shown = gr.HTML(waiting_html(words, visitor))
                    if batch and batch[-1].type == "done":
                        shown = [shown, gr.HTML(under_html(text, batch[-1].metadata, visitor))]
                    yield chat_id, [*thread, {"role": "assistant", "content": shown}], kept
        finally:
            over.set()
            if self._answering.get(chat_id) is over:
                del self._answering[chat_id]


@dataclass(frozen=True)
class ChatTab:
    """What the workspace needs from this tab when it opens a persona."""

    actions: ChatActions
    ahead: PromptPrefetcher
    shown: list[Component]
    """The components that change with the open chat."""
    streams: list[Any] = field(default_factory=list)
    """The events that stream an answer. Leaving the chat cancels them."""

    async def open(self, persona: str, chat_id: str, visitor: Visitor) -> dict[Component, Any]:
        """Return values for :attr:`shown`: a chat, or a new one where ``chat_id`` is empty."""
        shown = await self.actions.show(persona, chat_id, visitor)
        gone = await asyncio.to_thread(
            self.actions.lab.store.deleted_chat, persona, user_id=visitor.user_id
        )
        begun = gr.update(visible=bool(shown[0]))
        undo, send, stop = (gr.update(visible=seen) for seen in (gone is not None, True, False))
        hint = visitor.translate("chat.message_hint" if shown[0] else "chat.first_hint")
        deleted = gone.id if gone else ""
        values = [*shown, begun, begun, undo, deleted, send, stop, gr.update(placeholder=hint)]
        return dict(zip(self.shown, values, strict=True))

    async def newest(self, agent: Agent, model: str, visitor: Visitor) -> dict[Component, Any]:
        """Open the newest chat with a persona, and let ``model`` prefill its prompt."""
        past = await self.actions.past(agent.id, visitor)
        chat_id = past[0][1] if past else ""
        self.ahead.soon(agent, model, visitor, chat_id)
        return await self.open(agent.id, chat_id, visitor)


def build_chat(
    actions: ChatActions,
    i18n: gr.I18n,
    editing: gr.Textbox,
    model: gr.Dropdown,
    both: Callable[[str], str],
) -> ChatTab:
    """Build the tab and connect its events.

    Args:
        actions: The actions of the tab.
        i18n: The translations of labels.
        editing: The id of the open persona.
        model: The dropdown of the chosen model.
        both: Returns a text in both languages, for HTML.

    Returns:
        The parts that the workspace uses.
    """
    with gr.Row(equal_height=False):
        with gr.Column(elem_id="chats", elem_classes="sheet", scale=0, min_width=210):
            new = gr.Button(i18n("chat.new"), elem_id="chat-new", size="sm")
            listed = gr.Radio(
                [], label=i18n("chat.past"), elem_id="chat-list", interactive=True, visible=False
            )
            delete = gr.Button(i18n("chat.delete"), elem_id="chat-delete", size="sm", visible=False)
            undo = gr.Button(i18n("chat.undo"), elem_id="chat-undo", size="sm", visible=False)
        with gr.Column(scale=4, min_width=300, elem_classes="sheet"):
            thread = gr.Chatbot(
                elem_id="thread",
                label=i18n("chat.thread"),
                show_label=False,
                height="58vh",
                buttons=[],
                feedback_options=None,
                autoscroll=False,  # chat_scroll.js does
                placeholder=i18n("chat.empty"),
                allow_tags=False,
            )
            with gr.Row(elem_classes="writing"):
                message = gr.Textbox(
                    label=i18n("chat.message"),
                    placeholder=i18n("chat.message_hint"),
                    elem_id="chat-message",
                    lines=1,
                    max_lines=8,
                    scale=5,
                    container=False,
                )
                send = gr.Button(
                    i18n("chat.send"), variant="primary", elem_id="chat-send", scale=0, min_width=90
                )
                stop = gr.Button(
                    i18n("chat.stop"), elem_id="chat-stop", scale=0, min_width=90, visible=False
                )
            with gr.Row(
                elem_id="chat-foot"
            ):  # reserves the space of the button: the layout doesn't shift
                keys = "".join(f'<p class="{n}">{both("chat." + n)}</p>' for n in ("keys", "busy"))
                gr.HTML(keys, elem_id="chat-keys")
                again = gr.Button(
                    i18n("chat.again"),
                    elem_id="chat-again",
                    size="sm",
                    visible=False,
                    elem_classes="again",
                )
    chat_id = gr.Textbox(visible="hidden", elem_id="chat-id")
    deleted = gr.Textbox(visible="hidden", elem_id="chat-deleted")
    taken = gr.Textbox(visible="hidden", elem_id="chat-taken")
    ahead = PromptPrefetcher()
    tab = ChatTab(
        actions,
        ahead,
        [chat_id, listed, thread, again, delete, undo, deleted, send, stop, message],
    )

    async def open_chat(persona: str, chat: str, request: gr.Request) -> dict[Component, Any]:
        visitor = await actions.visitors.of(request)
        with visitor.error_toasts():
            return await tab.open(persona, chat or "", visitor)

    def after_answer(update: dict[Component, Any]) -> dict[Component, Any]:
        """Leave out the message box from the second answer on.

        Its placeholder no longer changes, and the visitor may be typing in it.
        """
        if sum(turn["role"] == "user" for turn in update[thread]) > 1:
            del update[message]
        return update

    async def answered(persona: str, chat: str, request: gr.Request) -> dict[Component, Any]:
        return after_answer(await open_chat(persona, chat, request))

    async def stop_chat(persona: str, chat: str, request: gr.Request) -> dict[Component, Any]:
        visitor = await actions.visitors.of(request)
        with visitor.error_toasts():
            if chat:
                await visitor.operations(actions.lab).get_chat(chat)
                await actions.settled(chat)
            return after_answer(await tab.open(persona, chat, visitor))

    async def new_chat(persona: str, request: gr.Request) -> dict[Component, Any]:
        return await open_chat(persona, "", request)

    async def send_message(
        text: str, persona: str, chat: str, spec: str, request: gr.Request
    ) -> AsyncGenerator[dict[Component, Any], None]:
        visitor = await actions.visitors.of(request)
        with visitor.error_toasts():
            begun = False
            if not (text or chat):  # the suggestion in the empty box
                text = visitor.translate("compare.message_hint")
            async with aclosing(actions.send(text, persona, chat, spec, visitor)) as steps:
                async for id_, shown, kept in steps:
                    update: dict[Component, Any] = {thread: shown}
                    if kept and not begun:
                        begun = True
                        update |= {
                            taken: text,
                            chat_id: id_,
                            send: gr.update(visible=False),
                            stop: gr.update(visible=True),
                            again: gr.update(visible=False),
                        }
                    yield update

    async def answer_again(
        persona: str, chat: str, spec: str, request: gr.Request
    ) -> AsyncGenerator[dict[Component, Any], None]:
        visitor = await actions.visitors.of(request)
        with visitor.error_toasts():
            async with aclosing(actions.regenerate(persona, chat, spec, visitor)) as steps:
                async for _, shown, _kept in steps:
                    yield {
                        thread: shown,
                        send: gr.update(visible=False),
                        stop: gr.update(visible=True),
                        again: gr.update(visible=False),
                    }

    async def delete_chat(persona: str, chat: str, request: gr.Request) -> dict[Component, Any]:
        visitor = await actions.visitors.of(request)
        with visitor.error_toasts():
            await visitor.operations(actions.lab).delete_chat(chat)
            return await tab.open(persona, "", visitor)

    async def restore_chat(persona: str, chat: str, request: gr.Request) -> dict[Component, Any]:
        visitor = await actions.visitors.of(request)
        with visitor.error_toasts():
            await visitor.operations(actions.lab).restore_chat(chat)
            return await tab.open(persona, chat, visitor)

    async def about_to_write(persona: str, chat: str, spec: str, request: gr.Request) -> None:
        visitor = await actions.visitors.of(request)
        with visitor.error_toasts():
            agent = await visitor.operations(actions.lab).get_persona(persona, deleted=True)
            ahead.soon(agent, spec or "", visitor, chat)

    message.focus(about_to_write, [editing, chat_id, model], queue=False, **PRIVATE_EVENT)
    asked = gr.on(
        [message.submit, send.click],
        send_message,
        [message, editing, chat_id, model],
        [taken, chat_id, thread, send, stop, again],
        concurrency_limit=None,
        **PRIVATE_EVENT,
    )
    # Remove a saved message from the box, and leave there what was typed meanwhile.
    taken.change(None, [taken], [taken], js="(text) => personaLab.taken(text)", **PRIVATE_EVENT)
    repeated = again.click(
        answer_again,
        [editing, chat_id, model],
        [thread, send, stop, again],
        concurrency_limit=None,
        **PRIVATE_EVENT,
    )
    streams = [asked, repeated]
    for stream in streams:
        stream.success(answered, [editing, chat_id], tab.shown, **PRIVATE_EVENT)
    stop.click(noop_for_cancel, cancels=streams, queue=False, **PRIVATE_EVENT).then(
        stop_chat, [editing, chat_id], tab.shown, **PRIVATE_EVENT
    )
    # Leaving a chat stops its running answer.
    for leave, act, takes, shows in (
        (new.click, new_chat, [editing], tab.shown),
        (listed.input, open_chat, [editing, listed], tab.shown),
        (delete.click, delete_chat, [editing, chat_id], tab.shown),
    ):
        leave(noop_for_cancel, cancels=streams, queue=False, **PRIVATE_EVENT).then(
            act, takes, shows, **PRIVATE_EVENT
        )
    tab.streams.extend(streams)
    undo.click(restore_chat, [editing, deleted], tab.shown, **PRIVATE_EVENT)
    return tab
