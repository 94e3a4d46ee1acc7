"""Autosave: each edit of the form is saved, and an unsaved draft of the browser is restored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

import gradio as gr
from gradio.components import Component

from persona_lab.db.persona_rows import unsaved_agent
from persona_lab.db.tables import Agent
from persona_lab.errors import PersonaLabError
from persona_lab.personas.persona import TRAITS, persona_of
from persona_lab.ui.events import Update
from persona_lab.ui.persona_view import PersonaView
from persona_lab.ui.render.persona import head_html, hints_html, saved_html
from persona_lab.ui.session import Visitor


def not_saved_html(error: PersonaLabError, visitor: Visitor) -> str:
    """Return HTML that says why the form wasn't saved, and names the invalid field."""
    reason = escape(visitor.error_text(error))
    field = escape(str(error.details.get("field", "")))
    return f'<p class="saved warning" role="alert" data-wrong="{field}">{reason}</p>'


class Autosave:
    """Saves the form while the visitor types."""

    def __init__(self, view: PersonaView) -> None:
        self._view = view
        self._actions = view.actions
        self._visitors = view.visitors
        self._editor = view.editor

    async def on_edit(self, values: dict[Component, Any], request: gr.Request) -> Update:
        """Handle a change of the form: save it, and show its prompt."""
        editor = self._editor
        visitor = await self._visitors.from_request(request)
        persona = editor.form.read(values)
        if not values[editor.touched]:  # fields arrive one by one and may mix two personas
            persona = self._actions.filled_fields(visitor) or persona
        agent, update = unsaved_agent(persona), Update()
        editing = values[editor.persona_id]
        if values[editor.touched]:
            try:
                agent, changed = await self._actions.save(editing, persona, visitor)
            except PersonaLabError as error:
                update[editor.saved] = not_saved_html(error, visitor)
            else:
                update[editor.saved] = saved_html(agent, visitor)
                if changed:
                    update |= await self._show_saved(agent, persona, editing, visitor)
        if not self._actions.is_open(agent.id if agent.owner_id else editing, visitor):
            # Another persona was opened meanwhile: this update is too late.
            return {editor.prompt: gr.skip()}
        model = values[self._view.header.model] or ""
        message = values[editor.try_message] or ""
        update[editor.prompt] = await self._actions.prompt_panel(agent, model, message, visitor)
        self._view.page.prefetcher.schedule(agent, model, visitor)
        return update

    async def _show_saved(
        self, agent: Agent, persona: Mapping[str, Any], edited_id: str, visitor: Visitor
    ) -> Update:
        """Return updates after a saved change.

        Args:
            agent: The saved persona.
            persona: Its fields.
            edited_id: The id that was edited. It differs from the agent's for a demo's new copy.
            visitor: The visitor.
        """
        editor = self._editor
        update: Update = {
            editor.head: head_html(agent, visitor),
            editor.hints: hints_html(persona, visitor),
            editor.buttons["revert"]: gr.update(visible=True, interactive=True),
            editor.buttons["redo"]: gr.update(visible=False),
        }
        update |= await editor.versions.show(agent, visitor)
        if agent.deleted_at is not None:
            update |= self._view.update_restore_button(agent, visitor)
            update[editor.buttons["delete"]] = gr.update(visible=False)
        if agent.id != edited_id:
            update |= await self._view.update_dropdowns(visitor, agent.id)
            update |= {
                editor.persona_id: agent.id,
                editor.buttons["delete"]: gr.update(visible=True),
            }
        return update

    async def restore_draft(
        self, draft: str, update: Update, model: str, visitor: Visitor
    ) -> Update:
        """Save and show the browser's unsaved draft of the persona that ``update`` opens.

        Args:
            draft: JSON: the persona's id, and fields by name as the form has them.
            update: The updates that open the persona.
            model: The model, as provider:name.
            visitor: The visitor.

        Returns:
            More updates; none where the draft is invalid or belongs to another persona.
        """
        form, open_id = self._editor.form, update[self._editor.persona_id]
        try:
            written = json.loads(draft)
            fields = {form.fields[name]: value for name, value in written["fields"].items()}
            known = await self._view.find(open_id, visitor)
            persona = form.read(form.show(persona_of(known)) | fields)
        except (ValueError, LookupError, TypeError, AttributeError):
            return {}  # this page didn't write it
        if written["persona"] != open_id:
            return {}
        try:
            agent = await self._actions.find_copy(known, persona, visitor)
            if agent is None:
                agent, _ = await self._actions.save(open_id, persona, visitor)
        except PersonaLabError as error:
            shown = form.show(persona)
            for name in TRAITS:  # with their suggested choices
                field = form.fields[name]
                shown[field] = {**update[field], "value": persona[name]}
            self._actions.record_filled(persona, visitor)
            return shown | {self._editor.saved: not_saved_html(error, visitor)}
        return await self._view.open(agent.id, model, visitor)
