"""The chat tab: the conversation, the past ones, and what was sent for each answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from datetime import datetime
from html import escape
from typing import Any

import gradio as gr
from gradio.components import Component

from persona_lab.db.tables import Agent, Chat, Message
from persona_lab.lab import Lab
from persona_lab.types import Event, now
from persona_lab.ui.prefetch import PromptPrefetcher
from persona_lab.ui.render.text import figures, safe_markdown, waiting_html
from persona_lab.ui.session import QUIET, Visitor, Visitors
from persona_lab.ui.streaming import paced, waits_for

IN_SIGHT = 8
"""Messages that a window shows at a time, at most."""
Thread = list[dict[str, Any]]
"""What gr.Chatbot shows: ``{"role": "user"|"assistant", "content": …}``. The content of a finished
answer is its Markdown and, apart from what a screen reader reads out, the HTML of its figures."""


def under_html(answer: str, details: dict[str, Any], visitor: Visitor) -> str:
    """What stands under an answer: its figures, a button to copy it, the prompt behind a fold."""
    say = visitor.translate
    copy = (
        f'<button type="button" class="copy" data-copy="{escape(answer)}">'
        f"{escape(say('chat.copy'))}</button>"
    )
    prompt = details.get("prompt")
    turns = "".join(
        f'<div class="turn turn-{turn["role"]}"><b>{escape(say("preview.turn." + turn["role"]))}'
        f"</b><pre>{escape(turn['content'])}</pre></div>"
        for turn in details.get("sent") or ()
    )
    fold = (
        f"<details><summary>{escape(say('chat.sent'))} · {escape(str(details.get('model', '')))}"
        f"</summary><pre>{escape(prompt)}</pre>{turns}</details>"
        if prompt
        else ""
    )
    # An error without a fallback: the answer is whole, but it couldn't be kept.
    unkept = "" if details.get("fallback") else str(details.get("error", ""))
    warning = f'<p class="warning" role="alert">{escape(unkept)}</p>' if unkept else ""
    failed = " failed" if details.get("fallback") else ""
    return f'{warning}{figures(details, visitor)}<div class="under{failed}">{copy}{fold}</div>'


def thread_of(messages: Sequence[Message], agent: Agent, visitor: Visitor) -> Thread:
    """A conversation from its rows. It begins with the greeting: the prompt says it was given.

    Where a message has no answer stands that it has none.
    """
    thread: Thread = []
    if agent.greeting:
        thread.append({"role": "assistant", "content": safe_markdown(agent.greeting)})
    for message, following in zip(messages, [*messages, None][1:], strict=True):
        role = "user" if message.sender == "user" else "assistant"
        content: Any = safe_markdown(message.content)
        if role == "assistant":
            if message.status in ("stopped", "interrupted"):  # what failed says so itself
                content += (
                    f"\n\n<em>{escape(visitor.translate('chat.status.' + message.status))}</em>"
                )
            content = [content, gr.HTML(under_html(message.content, message.details, visitor))]
        thread.append({"role": role, "content": content})
        if role == "user" and (following is None or following.sender == "user"):
            none = f"<em>{escape(visitor.translate('chat.status.unanswered'))}</em>"
            thread.append({"role": "assistant", "content": none})
    return thread


def lean(thread: Thread) -> Thread:
    """``thread`` as it stands above an answer that is being written: only the last answers, those
    in sight, have their figures. Each takes Gradio milliseconds at each redraw."""
    return [
        {**turn, "content": turn["content"][0]} if isinstance(turn["content"], list) else turn
        for turn in thread[:-IN_SIGHT]
    ] + thread[-IN_SIGHT:]


def title_of(chat: Chat, visitor: Visitor) -> str:
    """How long ago it was, and how it began: many begin alike."""
    return f"{_ago(chat.updated_at, visitor)} · {chat.title or visitor.translate('chat.untitled')}"


def _ago(moment: datetime, visitor: Visitor) -> str:
    seconds = (now() - moment).total_seconds()
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= length:
            return visitor.translate(f"chat.ago.{unit}", count=int(seconds // length))
    return visitor.translate("chat.ago.now")


def halt() -> None:
    """For events that cancel: Gradio cancels once the event has answered, so it must be quick, and
    whatever shows the end comes after it."""


class ChatActions:
    """What the tab does. Each takes ids from the page and checks them against the visitor's."""

    def __init__(self, lab: Lab, visitors: Visitors) -> None:
        self.lab = lab
        self.visitors = visitors
        self._answering: dict[str, asyncio.Event] = {}

    async def settled(self, chat_id: str) -> None:
        """Returns once a stopped answer is kept as it stands; at once where none is under way."""
        over = self._answering.get(chat_id)
        if over is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), timeout=10)

    async def past(self, persona: str, visitor: Visitor) -> list[tuple[str, str]]:
        """The visitor's conversations with a persona, newest first, as (title, id)."""
        chats = await visitor.operations(self.lab).list_chats(persona, limit=1000)
        return [(title_of(chat, visitor), chat.id) for chat in chats]

    async def thread(self, persona: str, chat_id: str, visitor: Visitor) -> Thread:
        operations = visitor.operations(self.lab)
        agent = await operations.get_persona(persona, deleted=True)
        if not chat_id:
            return thread_of([], agent, visitor)
        messages = await operations.list_messages(chat_id)
        return thread_of(messages, agent, visitor)

    async def show(self, persona: str, chat_id: str, visitor: Visitor) -> tuple[Any, ...]:
        """Values for (chat_id, list, thread) with ``chat_id`` open, or a new conversation."""
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
        """(chat id, thread, whether the message is kept and the box may be emptied) as it goes."""
        operations = visitor.operations(self.lab)
        message, chat = await operations.chat_for(message, chat_id, persona, model=model)
        # The chat's own persona: a demo that was changed elsewhere hands its chats on.
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
        """The last answer gives way to a new one; the old is kept in the store."""
        thread = await self.thread(persona, chat_id, visitor)
        while thread and thread[-1]["role"] == "assistant" and len(thread) > 1:
            thread.pop()
        events = visitor.operations(self.lab).regenerate(chat_id, model=model)
        failed = ""

        async def heard() -> AsyncGenerator[Event, None]:
            nonlocal failed
            async with aclosing(events) as said:
                async for event in said:
                    if event.type == "done" and "fallback" in event.metadata:
                        failed = event.content
                    yield event

        async with aclosing(self._follow(heard(), thread, chat_id, model, visitor)) as steps:
            async for step in steps:
                yield step
        if failed:  # the answer before stands again
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
                        kept |= event.type == "start"  # silence alone says nothing of it
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
    """What opening a persona needs of this tab."""

    actions: ChatActions
    ahead: PromptPrefetcher
    shown: list[Component]
    """What changes with the conversation that is open."""
    streams: list[Any] = field(default_factory=list)
    """Events that answer: leaving the conversation cancels them."""

    async def open(self, persona: str, chat_id: str, visitor: Visitor) -> dict[Component, Any]:
        """Values for :attr:`shown`: the conversation, or a new one where ``chat_id`` is empty."""
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
        """:meth:`open` for the newest conversation with a persona, which ``model`` reads ahead."""
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
    """Lays the tab out and wires it. ``both`` gives words inside HTML."""
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
            with gr.Row(elem_id="chat-foot"):  # it is there before the button is: nothing jumps
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

    def told(update: dict[Component, Any]) -> dict[Component, Any]:
        """After an answer. From the second on the box is left alone, whose hint stays as it is:
        somebody may be writing in it."""
        if sum(turn["role"] == "user" for turn in update[thread]) > 1:
            del update[message]
        return update

    async def answered(persona: str, chat: str, request: gr.Request) -> dict[Component, Any]:
        return told(await open_chat(persona, chat, request))

    async def stop_chat(persona: str, chat: str, request: gr.Request) -> dict[Component, Any]:
        visitor = await actions.visitors.of(request)
        with visitor.error_toasts():
            if chat:
                await visitor.operations(actions.lab).get_chat(chat)
                await actions.settled(chat)
            return told(await tab.open(persona, chat, visitor))

    async def new_chat(persona: str, request: gr.Request) -> dict[Component, Any]:
        return await open_chat(persona, "", request)

    async def send_message(
        text: str, persona: str, chat: str, spec: str, request: gr.Request
    ) -> AsyncGenerator[dict[Component, Any], None]:
        visitor = await actions.visitors.of(request)
        with visitor.error_toasts():
            begun = False
            if not (text or chat):  # the suggestion that stands in the empty box
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

    message.focus(about_to_write, [editing, chat_id, model], queue=False, **QUIET)
    asked = gr.on(
        [message.submit, send.click],
        send_message,
        [message, editing, chat_id, model],
        [taken, chat_id, thread, send, stop, again],
        concurrency_limit=None,
        **QUIET,
    )
    # What was sent leaves the box once it is kept, and what was typed meanwhile stays there.
    taken.change(None, [taken], [taken], js="(text) => personaLab.taken(text)", **QUIET)
    repeated = again.click(
        answer_again,
        [editing, chat_id, model],
        [thread, send, stop, again],
        concurrency_limit=None,
        **QUIET,
    )
    streams = [asked, repeated]
    for stream in streams:
        stream.success(answered, [editing, chat_id], tab.shown, **QUIET)
    stop.click(halt, cancels=streams, queue=False, **QUIET).then(
        stop_chat, [editing, chat_id], tab.shown, **QUIET
    )
    # Leaving a conversation stops the answer that was under way in it.
    for leave, act, takes, shows in (
        (new.click, new_chat, [editing], tab.shown),
        (listed.input, open_chat, [editing, listed], tab.shown),
        (delete.click, delete_chat, [editing, chat_id], tab.shown),
    ):
        leave(halt, cancels=streams, queue=False, **QUIET).then(act, takes, shows, **QUIET)
    tab.streams.extend(streams)
    undo.click(restore_chat, [editing, deleted], tab.shown, **QUIET)
    return tab
