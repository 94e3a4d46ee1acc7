"""The chat tab: the open chat, the list of chats, and the prompt of each answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from html import escape
from typing import Any, ClassVar

import gradio as gr
from gradio.components import Component

from persona_lab.db.tables import Agent
from persona_lab.lab import Lab
from persona_lab.responses.changes import changed_sentences
from persona_lab.types import Event, new_id
from persona_lab.ui.events import PRIVATE_EVENT, Update, noop_for_cancel
from persona_lab.ui.page_context import PageContext
from persona_lab.ui.render.chat import (
    Thread,
    answer_footer_html,
    build_thread,
    chat_title,
    without_old_footers,
)
from persona_lab.ui.render.markdown import message_html
from persona_lab.ui.render.persona import suggestions_html
from persona_lab.ui.render.text import waiting_html
from persona_lab.ui.session import Visitor, Visitors
from persona_lab.ui.streaming import batch_events, waiting_text


class ChatActions:
    """The actions of the tab. Each checks that an id from the page belongs to the visitor."""

    def __init__(self, lab: Lab, visitors: Visitors) -> None:
        self.lab = lab
        self.visitors = visitors
        self.answers = visitors.answers

    async def list_chats(self, persona: str, visitor: Visitor) -> list[tuple[str, str]]:
        """Return the visitor's chats with a persona, newest first, as (title, id)."""
        chats = await visitor.operations(self.lab).list_chats(persona, limit=1000)
        return [(chat_title(chat, visitor), chat.id) for chat in chats]

    async def load_thread(self, persona: str, chat_id: str, visitor: Visitor) -> Thread:
        """Return the messages of a chat; only the greeting where ``chat_id`` is empty."""
        operations = visitor.operations(self.lab)
        agent = await operations.get_persona(persona, deleted=True)
        if not chat_id:
            return build_thread([], agent, visitor)
        messages = await operations.list_messages(chat_id)
        versions = await operations.list_versions(agent.id)
        return build_thread(messages, agent, visitor, versions)

    async def open_chat(self, persona: str, chat_id: str, visitor: Visitor) -> tuple[Any, ...]:
        """Return values for (chat_id, list, thread), with ``chat_id`` open, or a new chat."""
        chats = await self.list_chats(persona, visitor)
        if chat_id not in [id_ for _, id_ in chats]:
            chat_id = ""
        return (
            chat_id,
            gr.update(choices=chats, value=chat_id or None, visible=bool(chats)),
            await self.load_thread(persona, chat_id, visitor),
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
        thread = await self.load_thread(persona, chat_id, visitor)
        thread.append({"role": "user", "content": message_html(message)})
        answer = self.answers.start(
            chat_id,
            visitor.page,
            operations.send(message, chat_id, persona, model=model, pending=True),
        )
        steps = self._stream_thread(answer.follow(), thread, chat_id, model, visitor)
        async with aclosing(steps):
            async for step in steps:
                yield step

    async def resume(
        self, persona: str, chat_id: str, model: str, visitor: Visitor
    ) -> AsyncGenerator[tuple[str, Thread, bool], None]:
        """Stream the answer that runs in a chat, from its start. It belongs to this page now.

        Yields:
            The same as :meth:`send`; nothing if no answer runs.
        """
        thread = await self._load_thread_to_answer(persona, chat_id, visitor)  # checks the owner
        answer = self.answers.get(chat_id)
        if answer is None:
            return
        answer.page = visitor.page
        steps = self._stream_thread(answer.follow(), thread, chat_id, model, visitor)
        async with aclosing(steps):
            async for step in steps:
                yield step

    async def _load_thread_to_answer(self, persona: str, chat_id: str, visitor: Visitor) -> Thread:
        """Return the messages of a chat up to the user's last one."""
        thread = await self.load_thread(persona, chat_id, visitor)
        while thread and thread[-1]["role"] == "assistant" and len(thread) > 1:
            thread.pop()
        return thread

    async def regenerate(
        self, persona: str, chat_id: str, model: str, visitor: Visitor
    ) -> AsyncGenerator[tuple[str, Thread, bool], None]:
        """Stream a new answer to the last message. The store keeps the previous answer.

        Yields:
            The same as :meth:`send`.
        """
        thread = await self._load_thread_to_answer(persona, chat_id, visitor)
        answer = self.answers.start(
            chat_id,
            visitor.page,
            visitor.operations(self.lab).regenerate(chat_id, model=model, pending=True),
        )
        failed = ""

        async def watched() -> AsyncGenerator[Event, None]:
            nonlocal failed
            async with aclosing(answer.follow()) as stream:
                async for event in stream:
                    if event.type == "done" and "fallback" in event.metadata:
                        failed = event.content
                    yield event

        async with aclosing(
            self._stream_thread(watched(), thread, chat_id, model, visitor)
        ) as steps:
            async for step in steps:
                yield step
        if failed:  # show the previous answer again
            gr.Warning(escape(failed, quote=False), duration=6)
            yield chat_id, await self.load_thread(persona, chat_id, visitor), True

    async def _last_question(self, chat_id: str, visitor: Visitor) -> str:
        messages = await visitor.operations(self.lab).list_messages(chat_id, limit=10)
        return next((m.content for m in reversed(messages) if m.sender == "user"), "")

    async def _stream_thread(
        self,
        events: AsyncGenerator[Event, None],
        thread: Thread,
        chat_id: str,
        model: str,
        visitor: Visitor,
    ) -> AsyncGenerator[tuple[str, Thread, bool], None]:
        text, pending, saved = "", "", False
        thread = without_old_footers(thread)
        async with aclosing(batch_events(events)) as batches:
            async for batch in batches:
                for event in batch:
                    saved |= event.type == "start"  # a heartbeat doesn't tell
                    text = event.content if event.type == "done" else text + event.content
                    pending = event.pending
                answer: Any = message_html(text, pending=pending)
                if not text + pending:
                    words = await waiting_text(model, visitor)
                    answer = gr.HTML(waiting_html(words, visitor))
                if batch and batch[-1].type == "done":
                    metadata = batch[-1].metadata
                    changed = changed_sentences(text, metadata.get("changes") or ())
                    question = await self._last_question(chat_id, visitor)
                    footer = answer_footer_html(question, text, metadata, visitor)
                    answer = [message_html(text, changed=changed), gr.HTML(footer)]
                yield chat_id, [*thread, {"role": "assistant", "content": answer}], saved


class ChatTab:
    """The tab: the list of chats, the messages of the open one, and the box to write."""

    key: ClassVar[str] = "chat"

    def __init__(self, page: PageContext) -> None:
        self._page = page
        self.actions = ChatActions(page.lab, page.visitors)
        self.streams: list[Any] = []
        """The events that stream an answer. Leaving the chat cancels them."""

    def build(self, frame: gr.Tab) -> None:
        """Create the components."""
        i18n = self._page.i18n
        with gr.Row(equal_height=False):
            with gr.Column(elem_id="chats", elem_classes="sheet", scale=0, min_width=210):
                self._new = gr.Button(i18n("chat.new"), elem_id="chat-new", size="sm")
                self._list = gr.Radio(
                    [],
                    label=i18n("chat.past"),
                    elem_id="chat-list",
                    interactive=True,
                    visible=False,
                )
                self._delete = gr.Button(
                    i18n("chat.delete"), elem_id="chat-delete", size="sm", visible=False
                )
                self._undo = gr.Button(
                    i18n("chat.undo"), elem_id="chat-undo", size="sm", visible=False
                )
            with gr.Column(scale=4, min_width=300, elem_classes="sheet"):
                self._thread = gr.Chatbot(
                    elem_id="thread",
                    label=i18n("chat.thread"),
                    show_label=False,
                    height="58vh",
                    buttons=[],
                    feedback_options=None,
                    autoscroll=False,  # chat_scroll.js does
                    placeholder=i18n("chat.empty"),
                    allow_tags=False,
                    latex_delimiters=[],
                )
                gr.HTML(suggestions_html(fills="chat-message"), elem_id="chat-suggestions")
                self._build_message_box()
        self._chat_id = gr.Textbox(visible="hidden", elem_id="chat-id")
        self._deleted_id = gr.Textbox(visible="hidden", elem_id="chat-deleted")
        self._sent = gr.Textbox(visible="hidden", elem_id="chat-taken")
        self._running = gr.Textbox(visible="hidden")
        """A new value makes the page follow the answer that runs in the open chat."""
        self._return = gr.Button(visible="hidden", elem_id="chat-return")
        """returning.js presses it when the page is visible again."""

    def _build_message_box(self) -> None:
        i18n = self._page.i18n
        with gr.Row(elem_classes="writing"):
            self._message = gr.Textbox(
                label=i18n("chat.message"),
                placeholder=i18n("chat.message_hint"),
                elem_id="chat-message",
                lines=1,
                max_lines=8,
                scale=5,
                container=False,
            )
            self._send = gr.Button(
                i18n("chat.send"), variant="primary", elem_id="chat-send", scale=0, min_width=90
            )
            self._stop = gr.Button(
                i18n("chat.stop"), elem_id="chat-stop", scale=0, min_width=90, visible=False
            )
        # The row reserves the space of the button: the layout doesn't shift.
        with gr.Row(elem_id="chat-foot"):
            hints = "".join(
                f'<p class="{name}">{self._page.bilingual("chat." + name)}</p>'
                for name in ("keys", "busy")
            )
            gr.HTML(hints, elem_id="chat-keys")
            self._regenerate = gr.Button(
                i18n("chat.again"),
                elem_id="chat-again",
                size="sm",
                visible=False,
                elem_classes="rerun",
            )

    @property
    def components(self) -> list[Component]:
        """The components that change with the open chat.

        The message box isn't one of them: an update of any of its properties can undo what the
        visitor is typing.
        """
        return [
            self._chat_id, self._list, self._thread, self._regenerate, self._delete, self._undo,
            self._deleted_id, self._send, self._stop, self._running,
        ]  # fmt: skip

    # ── updates ───────────────────────────────────────────────────────────────────────────

    async def open_chat(self, persona_id: str, chat_id: str, visitor: Visitor) -> Update:
        """Return updates that open a chat, or a new one where ``chat_id`` is empty.

        An answer that runs in the chat goes on, and is followed. Those in the chats that the page
        had open before are stopped.
        """
        lab = self._page.lab
        await self.actions.answers.stop_others(visitor.page, chat_id)
        chat_id, listed, thread = await self.actions.open_chat(persona_id, chat_id, visitor)
        deleted = await asyncio.to_thread(
            lab.store.deleted_chat, persona_id, user_id=visitor.user_id
        )
        running = bool(chat_id) and self.actions.answers.get(chat_id) is not None
        started = gr.update(visible=bool(chat_id) and not running)
        return {
            self._chat_id: chat_id,
            self._list: listed,
            self._thread: thread,
            self._regenerate: started,
            self._delete: gr.update(visible=bool(chat_id)),
            self._undo: gr.update(visible=deleted is not None),
            self._deleted_id: deleted.id if deleted else "",
            self._send: gr.update(visible=not running),
            self._stop: gr.update(visible=running),
            self._running: new_id() if running else gr.skip(),
        }

    async def open_newest(self, agent: Agent, model: str, visitor: Visitor) -> Update:
        """Open the newest chat with a persona, and let ``model`` prefill its prompt."""
        chats = await self.actions.list_chats(agent.id, visitor)
        chat_id = chats[0][1] if chats else ""
        self._page.prefetcher.schedule(agent, model, visitor, chat_id)
        return await self.open_chat(agent.id, chat_id, visitor)

    def _show_stop_button(self) -> Update:
        return {
            self._send: gr.update(visible=False),
            self._stop: gr.update(visible=True),
            self._regenerate: gr.update(visible=False),
        }

    # ── handlers ──────────────────────────────────────────────────────────────────────────

    async def _on_select(self, persona_id: str, chat_id: str, request: gr.Request) -> Update:
        visitor = await self._page.visitors.from_request(request)
        with visitor.error_toasts():
            return await self.open_chat(persona_id, chat_id or "", visitor)

    async def _on_answered(self, persona_id: str, chat_id: str, request: gr.Request) -> Update:
        visitor = await self._page.visitors.from_request(request)
        with visitor.error_toasts():
            if chat_id:  # a demo that was changed meanwhile has moved its chats to the copy
                chat = await visitor.operations(self._page.lab).get_chat(chat_id)
                persona_id = chat.agent_id
            return await self.open_chat(persona_id, chat_id, visitor)

    async def _on_stop(self, persona_id: str, chat_id: str, request: gr.Request) -> Update:
        visitor = await self._page.visitors.from_request(request)
        with visitor.error_toasts():
            if chat_id:
                await visitor.operations(self._page.lab).get_chat(chat_id)
                await self.actions.answers.stop(chat_id)
            return await self.open_chat(persona_id, chat_id, visitor)

    async def _on_new(self, persona_id: str, request: gr.Request) -> Update:
        return await self._on_select(persona_id, "", request)

    async def _on_send(
        self, text: str, persona_id: str, chat_id: str, model: str, request: gr.Request
    ) -> AsyncGenerator[Update, None]:
        visitor = await self._page.visitors.from_request(request)
        with visitor.error_toasts():
            started = False
            stream = self.actions.send(text, persona_id, chat_id, model, visitor)
            async with aclosing(stream) as steps:
                async for saved_id, thread, saved in steps:
                    update: Update = {self._thread: thread}
                    if saved and not started:
                        started = True
                        update |= {self._sent: text, self._chat_id: saved_id}
                        update |= self._show_stop_button()
                    yield update

    async def _on_regenerate(
        self, persona_id: str, chat_id: str, model: str, request: gr.Request
    ) -> AsyncGenerator[Update, None]:
        visitor = await self._page.visitors.from_request(request)
        with visitor.error_toasts():
            stream = self.actions.regenerate(persona_id, chat_id, model, visitor)
            async with aclosing(stream) as steps:
                async for _, thread, _saved in steps:
                    yield {self._thread: thread, **self._show_stop_button()}

    async def _on_resume(
        self, persona_id: str, chat_id: str, model: str, request: gr.Request
    ) -> AsyncGenerator[Update, None]:
        visitor = await self._page.visitors.from_request(request)
        with visitor.error_toasts():
            stream = self.actions.resume(persona_id, chat_id, model, visitor)
            async with aclosing(stream) as steps:
                async for _, thread, _saved in steps:
                    yield {self._thread: thread, **self._show_stop_button()}

    async def _on_delete(self, persona_id: str, chat_id: str, request: gr.Request) -> Update:
        visitor = await self._page.visitors.from_request(request)
        with visitor.error_toasts():
            await self.actions.answers.stop_others(visitor.page, "")
            await visitor.operations(self._page.lab).delete_chat(chat_id)
            return await self.open_chat(persona_id, "", visitor)

    async def _on_restore(self, persona_id: str, chat_id: str, request: gr.Request) -> Update:
        visitor = await self._page.visitors.from_request(request)
        with visitor.error_toasts():
            await visitor.operations(self._page.lab).restore_chat(chat_id)
            return await self.open_chat(persona_id, chat_id, visitor)

    async def _on_focus(
        self, persona_id: str, chat_id: str, model: str, request: gr.Request
    ) -> None:
        visitor = await self._page.visitors.from_request(request)
        with visitor.error_toasts():
            operations = visitor.operations(self._page.lab)
            agent = await operations.get_persona(persona_id, deleted=True)
            self._page.prefetcher.schedule(agent, model or "", visitor, chat_id)

    def wire(self) -> None:
        """Connect the events."""
        persona_id, model = self._page.persona_id, self._page.header.model
        open_chat: list[Component] = [persona_id, self._chat_id]
        self._message.focus(self._on_focus, [*open_chat, model], queue=False, **PRIVATE_EVENT)
        sending = gr.on(
            [self._message.submit, self._send.click],
            self._on_send,
            [self._message, *open_chat, model],
            [self._sent, self._chat_id, self._thread, self._send, self._stop, self._regenerate],
            concurrency_limit=None,
            **PRIVATE_EVENT,
        )
        # Remove a saved message from the box, and leave there what was typed meanwhile.
        self._sent.change(
            None, [self._sent], [self._sent], js="(text) => personaLab.taken(text)",
            **PRIVATE_EVENT,
        )  # fmt: skip
        regenerating = self._regenerate.click(
            self._on_regenerate,
            [*open_chat, model],
            [self._thread, self._send, self._stop, self._regenerate],
            concurrency_limit=None,
            **PRIVATE_EVENT,
        )
        resuming = self._running.change(
            self._on_resume,
            [*open_chat, model],
            [self._thread, self._send, self._stop, self._regenerate],
            concurrency_limit=None,
            **PRIVATE_EVENT,
        )
        self.streams = [sending, regenerating, resuming]
        for stream in self.streams:
            stream.success(self._on_answered, open_chat, self.components, **PRIVATE_EVENT)
        # Leaving a chat stops its running answer. After a return to the page, the same chat is
        # opened again: its answer goes on.
        for leave, handler, inputs in (
            (self._stop.click, self._on_stop, open_chat),
            (self._new.click, self._on_new, [persona_id]),
            (self._list.input, self._on_select, [persona_id, self._list]),
            (self._delete.click, self._on_delete, open_chat),
            (self._return.click, self._on_select, open_chat),
        ):
            stopped = leave(noop_for_cancel, cancels=self.streams, queue=False, **PRIVATE_EVENT)
            stopped.then(handler, inputs, self.components, **PRIVATE_EVENT)
        self._undo.click(
            self._on_restore, [persona_id, self._deleted_id], self.components, **PRIVATE_EVENT
        )
