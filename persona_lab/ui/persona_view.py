"""The view of the open persona: every component of the page that shows it.

Opening a persona changes several tabs: the form and its prompt, the dropdown of the header, the
columns' dropdowns, the list of chats. The updates are therefore computed here and not in a tab.
"""

from __future__ import annotations

import asyncio

import gradio as gr
from gradio.components import Component

from persona_lab.db.store import AgentName
from persona_lab.db.tables import Agent
from persona_lab.errors import NotFound
from persona_lab.personas.demos import load_choices, load_messages
from persona_lab.personas.persona import TRAITS, persona_of
from persona_lab.ui.comparison_columns import CURRENT
from persona_lab.ui.events import Update
from persona_lab.ui.page_context import PageContext
from persona_lab.ui.render.persona import head_html, hints_html, saved_html, suggestions_html
from persona_lab.ui.session import Visitor
from persona_lab.ui.tabs.chat import ChatTab
from persona_lab.ui.tabs.compare import CompareTab
from persona_lab.ui.tabs.persona import PersonaTab
from persona_lab.ui.undo_history import UndoHistory

MAX_BUTTON_NAME = 20
"""Maximum number of characters of a persona's name on a button."""


def persona_label(agent: AgentName, visitor: Visitor) -> str:
    """Return a persona's name for a dropdown, with its label or the mark of a demo."""
    if agent.demo:
        return visitor.translate("persona.demo", name=agent.name)
    return labelled_name(agent)


def labelled_name(agent: AgentName) -> str:
    """Return a persona's name with the label that tells copies apart."""
    return f"{agent.name} · {agent.label}" if agent.label else agent.name


def shorten(name: str, max_length: int = MAX_BUTTON_NAME) -> str:
    """Shorten ``name`` to at most ``max_length`` characters, with an ellipsis at the end."""
    return name if len(name) <= max_length else name[: max_length - 1].rstrip() + "…"


class PersonaView:
    """Finds personas, and computes the updates of the components that show one."""

    def __init__(
        self,
        *,
        page: PageContext,
        editor: PersonaTab,
        compare: CompareTab,
        chat: ChatTab,
    ) -> None:
        self.page = page
        self.lab = page.lab
        self.visitors = page.visitors
        self.header = page.header
        self.actions = editor.actions
        self.editor = editor
        self.compare = compare
        self.chat = chat
        self.undo_history = UndoHistory()
        demos = self.lab.settings.data_dir / "personas.yaml"
        self._trait_choices = load_choices(demos)
        self._suggested_messages = load_messages(demos)

    @property
    def persona_dropdowns(self) -> list[Component]:
        """Every dropdown of personas."""
        return [self.header.persona, *[column.persona for column in self.compare.columns]]

    @property
    def components(self) -> list[Component]:
        """The components that change when a persona is opened."""
        return [*self.persona_dropdowns, *self.editor.changed_by_open, *self.chat.components]

    # ── finding ───────────────────────────────────────────────────────────────────────────

    async def find(self, persona_id: str, visitor: Visitor) -> Agent:
        """Return the visitor's persona or a demo.

        If it doesn't exist, return the first persona in the visitor's language. Without any
        persona, create one.
        """
        operations = visitor.operations(self.lab)
        try:
            return await operations.get_persona(persona_id)
        except NotFound:
            agents = await operations.list_persona_names()
        if not agents:
            return await self.find_or_create_blank(visitor)
        first = min(agents, key=lambda agent: agent.language != visitor.language)
        return await operations.get_persona(first.id)

    async def find_or_create_blank(self, visitor: Visitor) -> Agent:
        """Return a persona of the visitor that has only a name.

        An unchanged one is used again; otherwise a new one is created.
        """
        operations = visitor.operations(self.lab)
        name, language = visitor.translate("editor.new_name"), visitor.language
        untouched = persona_of(Agent(name=name, language=language))
        for agent in await operations.list_personas(name=name):
            if agent.owner_id is not None and persona_of(agent) == untouched:
                return agent
        return await operations.create_persona(name=name, language=language)

    # ── updates ───────────────────────────────────────────────────────────────────────────

    async def update_dropdowns(self, visitor: Visitor, open_id: str) -> Update:
        """Return updates of the dropdowns of personas, with the persona ``open_id`` open.

        The visitor's own personas come first, then the demos in their language.
        """
        agents = await visitor.operations(self.lab).list_persona_names()
        agents.sort(key=lambda agent: (agent.demo, agent.language != visitor.language))
        listed = [(persona_label(agent, visitor), agent.id) for agent in agents]
        opened = next((agent for agent in agents if agent.id == open_id), None)
        name = labelled_name(opened) if opened else "…"
        current = (visitor.translate("compare.current", name=name), CURRENT)
        update: Update = {
            column.persona: gr.update(choices=[current, *listed]) for column in self.compare.columns
        }
        value = opened.id if opened else None
        return update | {self.header.persona: gr.update(choices=listed, value=value)}

    async def open(self, persona_id: str, model: str, visitor: Visitor) -> Update:
        """Return updates of all components for a persona, with its newest chat."""
        editor = self.editor
        agent = await self.find(persona_id, visitor)
        messages = self._suggested_messages.get(agent.seed or "") or [
            visitor.translations("compare.message_hint", agent.language)
        ]
        update = await self.show(agent, model, visitor)
        suggestions = suggestions_html(messages, fills="try-message")
        update |= {editor.tried: "", editor.suggestions: suggestions}
        return update | await self.chat.open_newest(agent, model, visitor)

    async def show(self, agent: Agent, model: str, visitor: Visitor) -> Update:
        """Return updates of the editor and the dropdowns for ``agent``."""
        editor, form, store = self.editor, self.editor.form, self.lab.store
        own = agent.owner_id is not None
        persona = persona_of(agent)
        self.actions.record_shown(agent, visitor)
        used = await asyncio.to_thread(store.choices, visitor.user_id, agent.language)
        can_undo = await asyncio.to_thread(store.can_undo, agent.id, user_id=visitor.user_id)
        deleted = await asyncio.to_thread(store.deleted_agent, user_id=visitor.user_id)
        update = await self.update_dropdowns(visitor, agent.id) | form.show(persona)
        for name in TRAITS:
            choices = [*self._trait_choices[agent.language][name], *used[name], *persona[name]]
            update[form.fields[name]] = gr.update(
                choices=list(dict.fromkeys(choices)), value=persona[name]
            )
        can_redo = bool(self.undo_history.redoable(agent, visitor))
        return update | {
            editor.persona_id: agent.id,
            editor.head: head_html(agent, visitor),
            editor.saved: saved_html(agent, visitor),
            editor.prompt: await self.actions.prompt_panel(agent, model, "", visitor),
            editor.hints: hints_html(persona, visitor),
            **dict.fromkeys(editor.own, gr.update(visible=own)),
            editor.buttons["revert"]: gr.update(visible=own, interactive=can_undo),
            editor.buttons["redo"]: gr.update(visible=can_redo),
            **self.update_restore_button(deleted, visitor),
            **await editor.versions.show(agent, visitor),
        }

    def update_restore_button(self, deleted: Agent | None, visitor: Visitor) -> Update:
        """Return updates of the button that restores ``deleted``, the last deleted persona."""
        name = shorten(deleted.name if deleted else "")
        label = visitor.translate("editor.restore_name", name=name)
        return {
            self.editor.deleted_id: deleted.id if deleted else "",
            self.editor.buttons["restore"]: gr.update(visible=deleted is not None, value=label),
        }
