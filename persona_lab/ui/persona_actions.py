"""The actions on a whole persona: create, duplicate, rename, delete, restore, undo, redo.

Each is the handler of an event. It calls one operation, and shows the result in every tab.
"""

from __future__ import annotations

import itertools
from html import escape

import gradio as gr

from persona_lab.db.tables import Agent
from persona_lab.errors import InputError
from persona_lab.ui.events import Update
from persona_lab.ui.example_dialog import ExampleDialog
from persona_lab.ui.persona_view import PersonaView
from persona_lab.ui.session import Visitor
from persona_lab.ui.undo_history import UndoStep


def status_html(text: str) -> str:
    """Return a text for the editor's status line as HTML."""
    return f'<p class="saved" role="status">{escape(text)}</p>'


class PersonaActions:
    """Handlers of the editor's buttons. Ids from the page are checked by the operations."""

    def __init__(self, view: PersonaView, examples: ExampleDialog) -> None:
        self._view = view
        self._examples = examples
        self._lab = view.lab
        self._visitors = view.visitors
        self._editor = view.editor

    async def create(self, model: str, request: gr.Request) -> Update:
        """Create a persona and open it."""
        visitor = await self._visitors.from_request(request)
        with visitor.error_toasts():
            agent = await self._view.find_or_create_blank(visitor)
            return await self._view.open(agent.id, model, visitor)

    async def duplicate(self, persona_id: str, model: str, request: gr.Request) -> Update:
        """Copy a persona and open the copy."""
        visitor = await self._visitors.from_request(request)
        operations = visitor.operations(self._lab)
        with visitor.error_toasts():
            agent = await operations.get_persona(persona_id)
            label = await self._next_label(agent.name, visitor)
            copy = await operations.duplicate_persona(persona_id, agent.name, label)
            return await self._view.open(copy.id, model, visitor)

    async def _next_label(self, name: str, visitor: Visitor) -> str:
        """Return the first label that no persona called ``name`` has."""
        agents = await visitor.operations(self._lab).list_persona_names()
        used = {agent.label for agent in agents if agent.name == name}
        labels = (visitor.translate("editor.copy_label", number=n) for n in itertools.count(1))
        return next(label for label in labels if label not in used)

    async def show_new_name(self, persona_id: str, request: gr.Request) -> Update:
        """Update the dropdowns of personas after a change of the name."""
        visitor = await self._visitors.from_request(request)
        with visitor.error_toasts():
            return await self._view.update_dropdowns(visitor, persona_id)

    async def delete(self, persona_id: str, model: str, request: gr.Request) -> Update:
        """Delete a persona and open another one."""
        visitor = await self._visitors.from_request(request)
        operations = visitor.operations(self._lab)
        with visitor.error_toasts():
            agent = await operations.get_persona(persona_id, deleted=True)
            await operations.delete_persona(persona_id)
            text = visitor.translate("editor.deleted", name=agent.name)
            update = await self._view.open("", model, visitor)
            return update | {self._editor.saved: status_html(text)}

    async def restore(self, persona_id: str, model: str, request: gr.Request) -> Update:
        """Restore a deleted persona and open it."""
        visitor = await self._visitors.from_request(request)
        with visitor.error_toasts():
            await visitor.operations(self._lab).restore_persona(persona_id)
            return await self._view.open(persona_id, model, visitor)

    async def undo(self, persona_id: str, model: str, request: gr.Request) -> Update:
        """Undo the last change of a persona."""
        visitor = await self._visitors.from_request(request)
        operations = visitor.operations(self._lab)
        with visitor.error_toasts():
            before = await operations.get_persona(persona_id, deleted=True)
            after = await operations.undo_persona(persona_id)
            if after is None:  # another browser tab has undone the last change
                return {self._editor.buttons["revert"]: gr.update(interactive=False)}
            step = self._view.undo_history.add(before, after, visitor)
            return await self._show_step(after, "editor.undone", step, model, visitor)

    async def redo(self, persona_id: str, model: str, request: gr.Request) -> Update:
        """Redo the change that was undone last, unless the persona has changed since."""
        visitor = await self._visitors.from_request(request)
        operations = visitor.operations(self._lab)
        with visitor.error_toasts():
            agent = await operations.get_persona(persona_id, deleted=True)
            step = self._view.undo_history.pop(agent, visitor)
            if step is None:
                return {self._editor.buttons["redo"]: gr.update(visible=False)}
            agent = await operations.update_persona(persona_id, **step.before)
            return await self._show_step(agent, "editor.redone", step, model, visitor)

    async def restore_version(
        self, persona_id: str, number: int | None, model: str, request: gr.Request
    ) -> Update:
        """Restore a version. The chat and the tried message stay."""
        visitor = await self._visitors.from_request(request)
        versions = self._editor.versions
        with visitor.error_toasts():
            if number is None:
                return {versions.history_dialog: gr.skip()}
            agent = await versions.restore(persona_id, number, visitor)
            update = await self._view.show(agent, model, visitor)
            text = visitor.translate("versions.restored", number=number)
            return update | {
                self._editor.saved: status_html(text),
                versions.history_dialog: gr.update(visible=False),
            }

    async def add_example(
        self, persona_id: str, question: str, answer: str, model: str, request: gr.Request
    ) -> Update:
        """Make a question and its answer an example. The chat and the tried message stay."""
        visitor = await self._visitors.from_request(request)
        dialog = self._examples
        with visitor.error_toasts():
            try:
                agent = await dialog.add(persona_id, question or "", answer or "", visitor)
            except InputError as error:
                text = escape(visitor.error_text(error))
                return {dialog.problem: f'<p class="warning" role="alert">{text}</p>'}
            update = await self._view.show(agent, model, visitor)
            return update | {
                self._editor.saved: status_html(visitor.translate("example.added")),
                dialog.box: gr.update(visible=False),
            }

    async def _show_step(
        self, agent: Agent, text_key: str, step: UndoStep, model: str, visitor: Visitor
    ) -> Update:
        """Return updates after an undo or redo. The chat and the tried message stay."""
        labels = [visitor.translate(f"field.{name}") for name in step.changed_fields]
        fields = visitor.translate("editor.between").join(labels)
        update = await self._view.show(agent, model, visitor)
        text = visitor.translate(text_key, fields=fields)
        return update | {self._editor.saved: status_html(text)}
