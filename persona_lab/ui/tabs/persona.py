"""The persona tab: the editor, the prompt beside it, and a box to try one message.

Each change is saved as the visitor types. The first change of a demo creates the visitor's own
copy; the demo itself doesn't change.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from html import escape
from typing import Any, ClassVar

import gradio as gr
from cachetools import LRUCache
from gradio.components import Component

from persona_lab.clients.base import estimate_tokens
from persona_lab.clients.pricing import price_date, priced
from persona_lab.db.persona_rows import unsaved_agent
from persona_lab.db.tables import Agent
from persona_lab.errors import PersonaLabError
from persona_lab.lab import Lab
from persona_lab.personas.persona import PERSONA_FIELDS, Persona, clean_persona, persona_of
from persona_lab.responses.changes import restore
from persona_lab.types import Usage
from persona_lab.ui.events import PRIVATE_EVENT, Update
from persona_lab.ui.page_context import PageContext
from persona_lab.ui.persona_form import Form, build_section
from persona_lab.ui.render.answer import example_button_html, raw_answer_html
from persona_lab.ui.render.marks import marks_html, marks_of
from persona_lab.ui.render.persona import stopped_html
from persona_lab.ui.render.text import (
    answer_figures_html,
    price_with_date,
    prompt_html,
    waiting_html,
)
from persona_lab.ui.session import Visitor, Visitors
from persona_lab.ui.streaming import batch_events, waiting_text
from persona_lab.ui.version_panel import VersionPanel
from persona_lab.ui.visitor_keys import Page


class EditorActions:
    """The actions of the tab."""

    def __init__(self, lab: Lab, visitors: Visitors) -> None:
        self.lab = lab
        self.visitors = visitors
        self._shown_fields: LRUCache[tuple[Page, str], dict[str, Any]] = LRUCache(10_000)
        self._open_ids: LRUCache[Page, str] = LRUCache(10_000)
        self._filled_fields: LRUCache[Page, dict[str, Any]] = LRUCache(10_000)

    async def prompt_panel(self, agent: Agent, model: str, message: str, visitor: Visitor) -> str:
        """Return the prompt of ``agent`` for ``message`` as HTML, or an error message."""
        clients = visitor.service.clients
        try:
            prompt = await visitor.operations(self.lab).preview(agent, message, model=model)
            info = clients.info(model)
            client = await clients.open(model) if clients.available(info) else None
        except PersonaLabError as error:
            return f'<p class="warning" role="alert">{escape(visitor.error_text(error))}</p>'
        count = client.count_tokens if client else estimate_tokens
        tokens = await asyncio.to_thread(count, str(prompt))
        server = client.base_url if client else ""
        cost = await priced(info, Usage(tokens), server=server)
        return prompt_html(
            prompt,
            visitor,
            tokens=tokens,
            context=0 if info.is_context_assumed else info.context,
            about=not info.is_local or not client or not client.is_loaded,
            price=price_with_date(cost, price_date(info), visitor),
        )

    async def find_copy(
        self, demo: Agent, persona: Mapping[str, Any], visitor: Visitor
    ) -> Agent | None:
        """Return the visitor's copy of a demo that equals ``persona``, if there is one.

        It exists if the page was closed before it received the id of the copy.
        """
        if demo.owner_id is not None:
            return None
        fields = clean_persona(dict(persona))
        named = visitor.operations(self.lab).list_personas
        agents = await named(name=fields.get("name"))
        return next((a for a in agents if a.owner_id and persona_of(a) == fields), None)

    def record_shown(self, agent: Agent, visitor: Visitor) -> None:
        """Record that the visitor's form now shows ``agent``."""
        self._open_ids[visitor.page] = agent.id
        self._shown_fields[visitor.page, agent.id] = persona_of(agent)
        self._filled_fields[visitor.page] = persona_of(agent)

    def record_filled(self, persona: Mapping[str, Any], visitor: Visitor) -> None:
        """Record that the form is filled with ``persona``, which differs from the store."""
        self._filled_fields[visitor.page] = dict(persona)

    def filled_fields(self, visitor: Visitor) -> dict[str, Any] | None:
        """Return the fields that the form was last filled with, if known."""
        return self._filled_fields.get(visitor.page)

    def open_persona_id(self, visitor: Visitor) -> str | None:
        """Return the id of the persona in the visitor's form, if known."""
        return self._open_ids.get(visitor.page)

    def is_open(self, editing: str, visitor: Visitor) -> bool:
        """Return whether the visitor's form shows a persona; True if that is unknown."""
        return self._open_ids.get(visitor.page, editing) == editing

    async def save(
        self, editing: str, persona: Mapping[str, Any], visitor: Visitor
    ) -> tuple[Agent, bool]:
        """Save the changed fields of the form.

        Only fields that differ from the form's previous state are written, so two browser tabs
        with one persona don't overwrite each other's changes. A changed demo becomes the
        visitor's copy, whose row has a new id.

        Args:
            editing: The id of the persona in the form.
            persona: The fields of the form.
            visitor: The visitor.

        Returns:
            The row, and whether a field changed.
        """
        operations = visitor.operations(self.lab)
        fields = clean_persona(dict(persona))
        before = self._shown_fields.get((visitor.page, editing), {})
        changed = {name: v for name, v in fields.items() if name not in before or before[name] != v}
        agent = await operations.get_persona(editing, deleted=True)
        if not changed:
            return agent, False
        agent = await operations.update_persona(editing, **changed)
        self._shown_fields[visitor.page, agent.id] = fields
        if self.is_open(editing, visitor):
            self._open_ids[visitor.page] = agent.id
        return agent, True


async def try_message(
    actions: EditorActions, persona: Mapping[str, Any], message: str, model: str, visitor: Visitor
) -> AsyncGenerator[str, None]:
    """Stream the answer of the form's persona to one message, without a chat.

    Args:
        actions: The actions of the tab.
        persona: The fields of the form.
        message: The user's message.
        model: The model, as provider:name; "" is the default.
        visitor: The visitor.

    Yields:
        The answer so far, as HTML.
    """
    agent = unsaved_agent(persona, actions.open_persona_id(visitor) or "")
    name = escape(agent.name)
    text = raw = ""
    stream = visitor.operations(actions.lab).answer(agent, message, model=model, pending=True)

    async def waiting() -> str:
        line = waiting_html(await waiting_text(model, visitor), visitor)
        return f'<div class="answer" aria-busy="true"><b>{name}</b>{line}</div>'

    yield await waiting()
    async with aclosing(batch_events(stream)) as batches:
        async for batch in batches:
            for event in batch:
                text = event.content if event.type == "done" else text + event.content
                if event.type == "delta":
                    raw = event.raw or raw
                elif event.metadata.get("fallback"):  # its text isn't the model's
                    raw = text
                elif event.type == "done":
                    raw = restore(text, event.metadata.get("changes") or ())
            if not text + raw:
                yield await waiting()
                continue
            metadata = batch[-1].metadata if batch else {}
            failed = " failed" if metadata.get("fallback") else ""
            under = ""
            if metadata and not failed:
                found = await marks_of(raw or text, Persona.from_agent(agent))
                button = example_button_html(message, text, visitor)
                under = f'{marks_html(found, visitor)}<div class="under">{button}</div>'
            yield (
                f'<div class="answer{failed}" aria-live="polite"><b>{name}</b>'
                f"{raw_answer_html(text, raw, metadata, visitor)}"
                f"{answer_figures_html(metadata, visitor)}{under}</div>"
            )


class PersonaTab:
    """The tab: the form, the prompt beside it, and the box to try one message."""

    key: ClassVar[str] = "persona"

    def __init__(self, page: PageContext) -> None:
        self._page = page
        self.actions = EditorActions(page.lab, page.visitors)
        self.versions = VersionPanel(page)

    def build(self, frame: gr.Tab) -> None:
        """Create the components."""
        self.persona_id = self._page.persona_id
        self.buttons: dict[str, gr.Button] = {}
        """new, duplicate, revert, redo, delete, restore, try and try_stop."""
        with gr.Row(equal_height=False):
            with gr.Column(scale=6, min_width=320, elem_classes="sheet", elem_id="editor-form"):
                self._build_head()
                self._build_form()
            with gr.Column(scale=5, min_width=320, elem_id="prompt-side"):
                with (
                    gr.Column(elem_classes="sheet"),
                    gr.Accordion(self._page.i18n("preview.title"), elem_id="prompt-fold"),
                ):
                    self.prompt = gr.HTML(elem_id="prompt-preview")
                with gr.Column(elem_classes="sheet", elem_id="try"):
                    self._build_try_box()
        self.touched = gr.Textbox(visible="hidden", elem_id="touched")
        """Not empty after the visitor changed the form (draft.js explains how it detects that)."""
        self.deleted_id = gr.Textbox(visible="hidden", elem_id="removed")
        """The id of the last deleted persona, which "Undo delete" restores."""

    def _build_head(self) -> None:
        with gr.Row(elem_id="editor-head"):
            self.head = gr.HTML(elem_id="persona-head")
            self.saved = gr.HTML(elem_id="saved")
            for state in ("saving", "opening"):
                text = self._page.bilingual(f"editor.{state}")
                gr.HTML(f'<p class="saved" role="status">{text}</p>', elem_id=state)
        self.versions.build()
        with gr.Row(elem_classes="tools"):
            for name in ("new", "duplicate", "revert", "redo", "delete", "restore"):
                self.buttons[name] = gr.Button(
                    self._page.i18n(f"editor.{name}"),
                    elem_id=f"persona-{name}",
                    size="sm",
                    elem_classes="tool",
                    variant="stop" if name == "delete" else "secondary",
                    visible=name not in ("redo", "restore"),
                )

    def _build_form(self) -> None:
        i18n = self._page.i18n
        fields: dict[str, Component] = {}
        build_section("identity", fields, i18n)
        self.hints = gr.HTML(elem_id="hints")
        with gr.Accordion(i18n("editor.voice"), open=False, elem_id="fold-voice"):
            build_section("voice", fields, i18n)
        with gr.Accordion(i18n("editor.examples"), open=False, elem_id="fold-examples"):
            build_section("examples", fields, i18n)
        self.form = Form(fields)
        limits = {
            field.name: 0 if field.is_list else field.limit for field in PERSONA_FIELDS.values()
        }
        gr.HTML(f'<i hidden data-limits="{escape(json.dumps(limits))}"></i>', elem_id="limits")

    def _build_try_box(self) -> None:
        i18n = self._page.i18n
        with gr.Row(elem_classes="writing"):
            self.try_message = gr.Textbox(
                label=i18n("try.label"),
                placeholder=i18n("try.hint"),
                elem_id="try-message",
                lines=1,
                max_lines=6,
                scale=5,
            )
            self.buttons["try"] = gr.Button(
                i18n("try.run"), variant="primary", elem_id="try-run", scale=0, min_width=90
            )
            self.buttons["try_stop"] = gr.Button(
                i18n("chat.stop"), elem_id="try-stop", scale=0, min_width=90, visible=False
            )
        self.suggestions = gr.HTML(elem_id="try-suggestions")
        older = self._page.bilingual("try.older")
        gr.HTML(f'<p class="hint" role="status">{older}</p>', elem_id="tried-older")
        self.tried = gr.HTML(elem_id="tried")

    # ── groups of components ──────────────────────────────────────────────────────────────

    @property
    def own(self) -> list[Component]:
        """The buttons that are only for the visitor's own personas."""
        return [self.buttons["revert"], self.buttons["delete"]]

    @property
    def changed_by_edit(self) -> list[Component]:
        """The components that may change when the form does."""
        return [
            self.saved, self.head, self.prompt, self.hints, self.persona_id, self.deleted_id,
            self.buttons["restore"], self.buttons["redo"], *self.own, *self.versions.components,
        ]  # fmt: skip

    @property
    def changed_by_undo(self) -> list[Component]:
        """The components that change at undo and redo."""
        return [*self.changed_by_edit, *self.form.fields.values()]

    @property
    def changed_by_open(self) -> list[Component]:
        """The components that change when another persona is opened."""
        return [*self.changed_by_undo, self.tried, self.suggestions]

    @property
    def edit_inputs(self) -> set[Component]:
        """The components that the prompt and the saving depend on."""
        return {
            self.persona_id, self.touched, self.try_message, self._page.header.model,
            *self.form.fields.values(),
        }  # fmt: skip

    @property
    def edit_input_names(self) -> list[str]:
        """The names of :attr:`edit_inputs` in a script's order, for ``byHand`` in draft.js."""
        names: dict[Component, str] = {field: name for name, field in self.form.fields.items()}
        names |= {self.persona_id: "#persona", self.touched: "#touched"}
        ordered = sorted(self.edit_inputs, key=lambda component: component._id)
        return [names.get(component, "") for component in ordered]

    # ── the box to try one message ────────────────────────────────────────────────────────

    async def _on_try(
        self, values: dict[Component, Any], request: gr.Request
    ) -> AsyncGenerator[Update, None]:
        visitor = await self._page.visitors.from_request(request)
        buttons = self._show_try_buttons(running=True)
        with visitor.error_toasts():
            try:
                validator = self._page.lab.input_validator
                message = validator.validate_message(values[self.try_message] or "")
                persona = self.form.read(values)
                model = values[self._page.header.model] or ""
                stream = try_message(self.actions, persona, message, model, visitor)
                async with aclosing(stream) as answers:
                    async for shown in answers:
                        yield {self.tried: shown, **buttons}
                        buttons = {}
            except PersonaLabError as error:
                text = escape(visitor.error_text(error))
                yield {self.tried: f'<p class="warning" role="alert">{text}</p>'}

    async def _on_try_end(self, shown: str | None, request: gr.Request) -> Update:
        """Mark an incomplete answer as stopped, and reset the buttons."""
        visitor = await self._page.visitors.from_request(request)
        return {
            self.tried: stopped_html(shown or "", visitor),
            **self._show_try_buttons(running=False),
        }

    def _show_try_buttons(self, *, running: bool) -> Update:
        return {
            self.buttons["try"]: gr.update(visible=not running),
            self.buttons["try_stop"]: gr.update(visible=running),
        }

    def wire(self) -> None:
        """Connect the events of the box; ``workspace.py`` connects those of the form."""
        self.versions.wire()
        outputs = [self.tried, self.buttons["try"], self.buttons["try_stop"]]
        trying = gr.on(
            [self.try_message.submit, self.buttons["try"].click],
            self._on_try,
            self.edit_inputs,
            outputs,
            concurrency_limit=None,
            **PRIVATE_EVENT,
        )
        trying.then(self._on_try_end, [self.tried], outputs, queue=False, **PRIVATE_EVENT)
        self.buttons["try_stop"].click(
            self._on_try_end, [self.tried], outputs, cancels=[trying], queue=False, **PRIVATE_EVENT
        )
