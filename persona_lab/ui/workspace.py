"""The workspace: the header and the tabs, connected by the events that open and edit a persona."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from persona_lab.errors import PersonaLabError
from persona_lab.ui.autosave import Autosave
from persona_lab.ui.events import PRIVATE_EVENT, Update, noop_for_cancel
from persona_lab.ui.example_dialog import ExampleDialog
from persona_lab.ui.model_status import ModelStatus, model_choices
from persona_lab.ui.page_context import PageContext
from persona_lab.ui.persona_actions import PersonaActions
from persona_lab.ui.persona_view import PersonaView
from persona_lab.ui.tabs import Tab, find_tab
from persona_lab.ui.tabs.chat import ChatTab
from persona_lab.ui.tabs.compare import CompareTab
from persona_lab.ui.tabs.connect import ConnectTab
from persona_lab.ui.tabs.persona import PersonaTab

# The functions of ``personaLab`` are in static/; form_lock.js and draft.js explain most of them.
LOCK_FORM: Mapping[str, Any] = {**PRIVATE_EVENT, "js": "(...values) => personaLab.opening(values)"}
"""Locks the form until :data:`UNLOCK_FORM`."""
LOCK_FORM_SEND_DRAFT: Mapping[str, Any] = {
    **PRIVATE_EVENT,
    "js": "(...values) => personaLab.reopening(values)",
}
"""The same; the last value becomes the browser's unsaved draft of the persona in the first."""
UNLOCK_FORM = "() => personaLab.opened()"
UNLOCK_FORM_SELECT_NAME = "() => personaLab.opened('name')"
"""The same, and selects the text of the name field."""
SKIP_OPEN_PERSONA = "(id) => personaLab.chosen(id)"
"""Ignores the choice of the persona that is already open."""
CONFIRM_EDIT = "(mark) => personaLab.kept(mark)"
"""Confirms to the page's script that the server has handled the fields that it sent."""
CONFIRM_DRAFT = "(mark) => personaLab.regained(mark)"
"""The same, for the browser's unsaved draft."""


class Workspace:
    """Connects the components that show the open persona to the handlers that change it."""

    def __init__(self, page: PageContext, tabs: Sequence[Tab]) -> None:
        self._view = view = PersonaView(
            page=page,
            editor=find_tab(tabs, PersonaTab),
            compare=find_tab(tabs, CompareTab),
            chat=find_tab(tabs, ChatTab),
        )
        self._lab = page.lab
        self._visitors = page.visitors
        self._examples = ExampleDialog(page)
        self._actions = PersonaActions(view, self._examples)
        self._autosave = Autosave(view)
        self._key_events = find_tab(tabs, ConnectTab).key_events
        self._model_status = ModelStatus(page.visitors, page.prefetcher)

    async def on_load(
        self, persona_id: str, model: str, draft: str, layout: str, request: gr.Request
    ) -> Update:
        """Handle the load of a page.

        Args:
            persona_id: The persona that this browser had open last.
            model: The model that this browser used last, as provider:name.
            draft: The browser's unsaved draft, as JSON; see :meth:`Autosave.restore_draft`.
            layout: The columns that this browser tab had, as JSON; see ``CompareTab.layout``.
            request: The request, which identifies the visitor.

        Returns:
            Updates of all components.
        """
        view = self._view
        visitor = await self._visitors.from_request(request)
        with visitor.error_toasts():
            choices = model_choices(visitor.service.clients, visitor.translate, visitor.language)
            try:
                model = self._lab.clients.info(model or "").spec
            except PersonaLabError:  # a wrong name, or a model that this deployment no longer has
                model = self._lab.clients.info().spec
            update = await view.open(persona_id or "", model, visitor)
            update |= await self._autosave.restore_draft(draft, update, model, visitor)
            update |= await view.compare.load_columns(layout or "", update, choices, visitor)
            return update | {
                view.header.model: gr.update(choices=choices, value=model),
                view.header.no_cookie: gr.update(visible=not visitor.has_cookie),
            }

    async def on_select(
        self, persona_id: str, model: str, draft: str, request: gr.Request
    ) -> Update:
        """Open the persona that the visitor chose. ``draft`` is as in :meth:`on_load`."""
        view = self._view
        visitor = await self._visitors.from_request(request)
        with visitor.error_toasts():
            if view.actions.open_persona_id(visitor) == persona_id:
                # The dropdown was opened and closed without a choice.
                return {view.header.persona: gr.skip()}
            update = await view.open(persona_id or "", model, visitor)
            return update | await self._autosave.restore_draft(draft, update, model, visitor)

    # ── wiring ────────────────────────────────────────────────────────────────────────────

    def wire(self, page: gr.Blocks) -> None:
        """Connect the events to the components. Call it inside the Blocks."""
        draft = self._wire_load(page)
        self._wire_buttons(draft)
        self._wire_examples()
        self._wire_form()

    def _wire_load(self, page: gr.Blocks) -> gr.Textbox:
        """Connect the load of the page; return the box of the browser's unsaved draft."""
        view, model = self._view, self._view.header.model
        changed_in_header = [model, view.header.no_cookie]
        stored = [gr.Textbox(visible="hidden") for _ in ("persona", "model", "draft", "columns")]
        loaded = page.load(
            self.on_load,
            stored,
            list(
                dict.fromkeys([*view.components, *changed_in_header, *view.compare.changed_by_load])
            ),
            **{**LOCK_FORM, "js": "() => personaLab.opening(personaLab.last())"},
        )
        loaded.then(None, js=UNLOCK_FORM)
        loaded.success(None, [view.editor.saved], js=CONFIRM_DRAFT)
        self._model_status.wire(model, view.header.model_status, [loaded, *self._key_events])
        for name, component in (("persona", view.editor.persona_id), ("model", model)):
            component.change(
                None, [component], None, js=f"(id) => personaLab.remember('{name}', id)"
            )
        return stored[2]

    def _wire_buttons(self, draft: gr.Textbox) -> None:
        """Connect the dropdown of personas and the editor's buttons."""
        view, editor, actions = self._view, self._view.editor, self._actions
        model = view.header.model
        chosen = gr.Textbox(visible="hidden", elem_id="chosen")
        view.header.persona.input(None, [view.header.persona], [chosen], js=SKIP_OPEN_PERSONA)
        # A running answer is stopped first: it belongs to the persona that was open before.
        # Of two choices, the last counts. Of two presses of a button, the first counts.
        stopped = chosen.change(
            noop_for_cancel,
            cancels=view.chat.streams,
            queue=False,
            trigger_mode="always_last",
            **PRIVATE_EVENT,
        )
        opened = stopped.then(
            self.on_select,
            [view.header.persona, model, draft],
            view.components,
            **LOCK_FORM_SEND_DRAFT,
        )
        opened.success(None, [editor.saved], js=CONFIRM_DRAFT)
        opened.then(None, js=UNLOCK_FORM)
        for button, handler, subject, unlock in (
            ("new", actions.create, [], UNLOCK_FORM_SELECT_NAME),
            ("duplicate", actions.duplicate, [editor.persona_id], UNLOCK_FORM),
            ("delete", actions.delete, [editor.persona_id], UNLOCK_FORM),
            ("restore", actions.restore, [editor.deleted_id], UNLOCK_FORM),
        ):
            stopped = editor.buttons[button].click(
                noop_for_cancel,
                cancels=view.chat.streams,
                queue=False,
                trigger_mode="once",
                **PRIVATE_EVENT,
            )
            opened = stopped.then(handler, [*subject, model], view.components, **LOCK_FORM)
            opened.then(None, js=unlock)
        for button, handler in (("revert", actions.undo), ("redo", actions.redo)):
            stepped = editor.buttons[button].click(
                handler,
                [editor.persona_id, model],
                [*view.persona_dropdowns, *editor.changed_by_undo],
                **LOCK_FORM,
            )
            stepped.then(None, js=UNLOCK_FORM)
        restored = editor.versions.restore_button.click(
            actions.restore_version,
            editor.versions.restore_inputs,
            [*view.persona_dropdowns, *editor.changed_by_undo, editor.versions.history_dialog],
            **LOCK_FORM,
        )
        restored.then(None, js=UNLOCK_FORM)

    def _wire_examples(self) -> None:
        """Create the dialog of examples, and connect its button."""
        self._examples.build()
        self._examples.wire()
        example = self._examples.confirm.click(
            self._actions.add_example,
            self._examples.confirm_inputs,
            [
                *self._view.persona_dropdowns,
                *self._view.editor.changed_by_undo,
                self._examples.box,
                self._examples.problem,
            ],
            trigger_mode="once",
            **LOCK_FORM,
        )
        example.then(None, js=UNLOCK_FORM)
        example.then(None, js="() => personaLab.closeDialog('example-dialog')")

    def _wire_form(self) -> None:
        """Connect the fields of the form, the message to try, and the model."""
        view, editor, model = self._view, self._view.editor, self._view.header.model
        fields = editor.form.fields
        names = json.dumps(editor.edit_input_names)
        edit = gr.on(
            [field.change for field in (*fields.values(), editor.try_message, model)],
            self._autosave.on_edit,
            editor.edit_inputs,
            [*view.persona_dropdowns, *editor.changed_by_edit],
            queue=False,
            trigger_mode="always_last",
            js=f"(...values) => personaLab.byHand(values, {names})",
            **PRIVATE_EVENT,
        )
        edit.success(None, [editor.saved], js=CONFIRM_EDIT)
        fields["name"].blur(
            self._actions.show_new_name,
            [editor.persona_id],
            view.persona_dropdowns,
            queue=False,
            **PRIVATE_EVENT,
        )
