"""The open persona: open, save, create, undo, delete it, and update all components that show it.

Opening a persona changes every tab: the form and its prompt, the dropdown of the bar, the columns'
dropdowns, the list of chats. The code is therefore here and not in a tab.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from cachetools import LRUCache
from gradio.components import Component

from persona_lab.clients.catalog import ModelInfo
from persona_lab.clients.error_mapping import map_error
from persona_lab.clients.pool import ClientPool
from persona_lab.db.store import AgentName
from persona_lab.db.tables import Agent
from persona_lab.errors import MissingKey, NotFound, PersonaLabError
from persona_lab.lab import Lab
from persona_lab.personas.demos import load_choices, load_messages
from persona_lab.personas.persona import TRAITS, persona_of
from persona_lab.types import Language
from persona_lab.ui.session import QUIET, Visitor, Visitors
from persona_lab.ui.tabs.chat import ChatTab, halt
from persona_lab.ui.tabs.compare import CURRENT, CompareTab, first_comparison, kept_layout, speaks
from persona_lab.ui.tabs.persona import (
    Editor,
    EditorActions,
    head_html,
    hints_html,
    saved_html,
    unsaved,
)
from persona_lab.ui.visitor_keys import Page

Update = dict[Component, Any]

LOOK = 0.5
"""Seconds between two updates of a model's load progress."""

OPENING: Mapping[str, Any] = {**QUIET, "js": "(...values) => personaLab.opening(values)"}
"""Locks the form until :data:`OPENED` (form_lock.js explains why)."""
REOPENING: Mapping[str, Any] = {**QUIET, "js": "(...values) => personaLab.reopening(values)"}
"""The same; the last value becomes the browser's unsaved draft of the persona in the first."""
OPENED = "() => personaLab.opened()"
NAMED = "() => personaLab.opened('name')"
"""The same, and selects the text of the name field."""
CHOSEN = "(id) => personaLab.chosen(id)"
"""Ignores the choice of the persona that is already open."""
KEPT = "(mark) => personaLab.kept(mark)"
"""Confirms to the page's script that the server has handled the fields that it sent."""
REGAINED = "(mark) => personaLab.regained(mark)"
"""The same, for the browser's unsaved draft."""


def model_choices(
    clients: ClientPool, say: Callable[[str], str], language: Language = "ja"
) -> list[tuple[str, str]]:
    """List the models as (label, spec). The label says when a model needs a key.

    Args:
        clients: The pool that lists the models.
        say: Translates a key of ``templates/ui.yaml``.
        language: The visitor's language; the label marks a model that doesn't support it.

    Returns:
        Choices for a dropdown, in the order of the pool.
    """

    def label(info: ModelInfo) -> str:
        name = info.label or Path(info.name).name
        if info.provider == "mock":
            return f"{name} · {say('model.practice')}"
        if not clients.available(info):
            return f"{name} · {say('model.needs_key')}"
        return name if speaks(info, language) else f"{name} · {say('model.english')}"

    return [(label(info), info.spec) for info in clients.listed()]


def persona_label(agent: AgentName, visitor: Visitor) -> str:
    """Return a persona's name for a dropdown, which marks a demo."""
    if agent.demo:
        return visitor.translate("persona.demo", name=agent.name)
    return agent.name


def shortened(name: str, most: int = 20) -> str:
    """Shorten ``name`` to at most ``most`` characters, with an ellipsis at the end."""
    return name if len(name) <= most else name[: most - 1].rstrip() + "…"


def ready_html(key: str, visitor: Visitor, detail: str = "", **blanks: object) -> str:
    """Return the state of the chosen model as HTML.

    Args:
        key: The state: ``ready``, ``loading``, ``failed`` or ``needs_key``.
        visitor: The visitor, whose language is used.
        detail: The tooltip.
        **blanks: Values for the state's text, such as ``percent``.
    """
    words = escape(visitor.translate("model.state." + key, **blanks))
    return (
        f'<p class="{key}" role="status" title="{escape(detail)}">'
        f'<span class="dot"></span>{words}</p>'
    )


def unsaved_html(wrong: PersonaLabError, visitor: Visitor) -> str:
    """Return HTML that says why the form wasn't saved, and names the invalid field."""
    why = escape(visitor.error_text(wrong))
    field = escape(str(wrong.details.get("field", "")))
    return f'<p class="saved warning" role="alert" data-wrong="{field}">{why}</p>'


@dataclass(frozen=True, kw_only=True)
class Bar:
    """The components of the top bar: dropdowns of persona and model, and the model's state."""

    who: gr.Dropdown
    model: gr.Dropdown
    ready: gr.HTML


@dataclass(frozen=True)
class Undone:
    """An undo step: the persona before and after it. Redo restores ``before``."""

    before: dict[str, Any]
    after: dict[str, Any]


class Desk:
    """The components that show the open persona, and the events that change it."""

    def __init__(
        self,
        *,
        actions: EditorActions,
        bar: Bar,
        editor: Editor,
        compare: CompareTab,
        chat: ChatTab,
    ) -> None:
        self.actions = actions
        self.lab: Lab = actions.lab
        self.visitors: Visitors = actions.visitors
        self.bar = bar
        self.editor = editor
        self.compare = compare
        self.columns = compare.columns
        self.chat = chat
        seeds = self.lab.settings.data_dir / "personas.yaml"
        self.presets = load_choices(seeds)
        self.ahead = chat.ahead
        self.suggestions = load_messages(seeds)
        self._undone: LRUCache[tuple[Page, str], list[Undone]] = LRUCache(1000)

    @property
    def lists(self) -> list[Component]:
        """Every dropdown of personas."""
        return [self.bar.who, *[column.persona for column in self.columns]]

    @property
    def everything(self) -> list[Component]:
        """The components that change when a persona is opened."""
        return [*self.lists, *self.editor.opened, *self.chat.shown]

    # ── updates ───────────────────────────────────────────────────────────────────────────

    async def listing(self, visitor: Visitor, chosen: str) -> Update:
        """Return updates of the dropdowns, with ``chosen`` open.

        The visitor's own personas come first, then the demos in their language.
        """
        agents = await visitor.operations(self.lab).list_persona_names()
        agents.sort(key=lambda agent: (agent.demo, agent.language != visitor.language))
        listed = [(persona_label(agent, visitor), agent.id) for agent in agents]
        name = next((agent.name for agent in agents if agent.id == chosen), "…")
        current = (visitor.translate("compare.current", name=name), CURRENT)
        update: Update = {
            column.persona: gr.update(choices=[current, *listed]) for column in self.columns
        }
        return update | {self.bar.who: gr.update(choices=listed, value=chosen)}

    async def find(self, persona: str, visitor: Visitor) -> Agent:
        """Return the visitor's persona or a demo.

        If it doesn't exist, return the first persona in the visitor's language. Without any
        persona, create one.
        """
        operations = visitor.operations(self.lab)
        try:
            return await operations.get_persona(persona)
        except NotFound:
            agents = await operations.list_persona_names()
        if not agents:
            return await self.blank(visitor)
        first = min(agents, key=lambda agent: agent.language != visitor.language)
        return await operations.get_persona(first.id)

    async def blank(self, visitor: Visitor) -> Agent:
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

    async def open(self, persona: str, model: str, visitor: Visitor) -> Update:
        """Return updates of all components for ``persona``, with its newest chat."""
        editor = self.editor
        agent = await self.find(persona, visitor)
        return (
            await self.shown(agent, model, visitor)
            | {
                editor.tried: "",
                editor.try_message: next(
                    iter(self.suggestions.get(agent.seed or "", [])),
                    visitor.translate("compare.message_hint"),
                ),
            }
            | await self.chat.newest(agent, model, visitor)
        )

    async def shown(self, agent: Agent, model: str, visitor: Visitor) -> Update:
        """Return updates of the editor and the dropdowns for ``agent``."""
        editor, form, store = self.editor, self.editor.form, self.lab.store
        own = agent.owner_id is not None
        kept = persona_of(agent)
        self.actions.shown(agent, visitor)
        used = await asyncio.to_thread(store.choices, visitor.user_id, agent.language)
        back = await asyncio.to_thread(store.can_undo, agent.id, user_id=visitor.user_id)
        gone = await asyncio.to_thread(store.deleted_agent, user_id=visitor.user_id)
        update = await self.listing(visitor, agent.id) | form.show(kept)
        for name in TRAITS:
            offered = [*self.presets[agent.language][name], *used[name], *kept[name]]
            update[form.fields[name]] = gr.update(
                choices=list(dict.fromkeys(offered)), value=kept[name]
            )
        return update | {
            editor.editing: agent.id,
            editor.head: head_html(agent, visitor),
            editor.saved: saved_html(agent, visitor),
            editor.prompt: await self.actions.prompt_panel(agent, model, "", visitor),
            editor.hints: hints_html(kept, visitor),
            **dict.fromkeys(editor.own, gr.update(visible=own)),
            editor.buttons["revert"]: gr.update(visible=own, interactive=back),
            editor.buttons["redo"]: gr.update(visible=bool(self.again(agent, visitor))),
            **self.restorable(gone, visitor),
        }

    def restorable(self, gone: Agent | None, visitor: Visitor) -> Update:
        """Return updates of the button that restores ``gone``, the last deleted persona."""
        name = gone.name if gone else ""
        words = visitor.translate("editor.restore_name", name=shortened(name))
        return {
            self.editor.removed: gone.id if gone else "",
            self.editor.buttons["restore"]: gr.update(visible=gone is not None, value=words),
        }

    def again(self, agent: Agent, visitor: Visitor) -> list[Undone]:
        """Return the steps that redo can apply to ``agent``, the next one last."""
        steps = self._undone.get((visitor.page, agent.id), [])
        return steps if steps and steps[-1].after == persona_of(agent) else []

    # ── events ────────────────────────────────────────────────────────────────────────────

    async def arrive(
        self, persona: str, model: str, unsaved: str, layout: str, request: gr.Request
    ) -> Update:
        """Handle the load of a page.

        Args:
            persona: The persona that this browser had open last.
            model: The model that this browser used last, as provider:name.
            unsaved: The browser's unsaved draft, as JSON; see :meth:`regain`.
            layout: The columns that this browser tab had, as JSON; see :func:`kept_layout`.
            request: The request, which identifies the visitor.

        Returns:
            Updates of all components.
        """
        visitor = await self.visitors.of(request)
        with visitor.error_toasts():
            offered = model_choices(visitor.service.clients, visitor.translate, visitor.language)
            try:
                model = self.lab.clients.info(model or "").spec
            except PersonaLabError:  # a wrong name, or a model that this deployment no longer has
                model = self.lab.clients.info().spec
            update = await self.open(persona or "", model, visitor)
            update |= await self.regain(unsaved, update, model, visitor)
            models, personas = await first_comparison(
                self.lab, update[self.editor.editing], visitor
            )
            if (kept := kept_layout(layout or "")) is not None:
                shown, former, speakers = kept
                listed = {id_ for _, id_ in update[self.columns[0].persona]["choices"]}
                models = [had or new for had, new in zip(former, models, strict=True)]
                personas = [
                    had if had in listed else new
                    for had, new in zip(speakers, personas, strict=True)
                ]
                update |= self.compare.sized(shown)
            for column, spec, who in zip(self.columns, models, personas, strict=True):
                update[column.model] = gr.update(choices=offered, value=spec)
                update[column.persona] = {**update[column.persona], "value": who}
            return update | {self.bar.model: gr.update(choices=offered, value=model)}

    async def regain(self, unsaved: str, update: Update, model: str, visitor: Visitor) -> Update:
        """Save and show the browser's unsaved draft of the persona that ``update`` opens.

        Args:
            unsaved: JSON: the persona's id, and fields by name as the form has them.
            update: The updates that open the persona.
            model: The model, as provider:name.
            visitor: The visitor.

        Returns:
            More updates; none where the draft is invalid or belongs to another persona.
        """
        form, opened = self.editor.form, update[self.editor.editing]
        try:
            kept = json.loads(unsaved)
            written = {form.fields[name]: value for name, value in kept["fields"].items()}
            known = await self.find(opened, visitor)
            persona = form.read(form.show(persona_of(known)) | written)
        except (ValueError, LookupError, TypeError, AttributeError):
            return {}  # this page didn't write it
        if kept["persona"] != opened:
            return {}
        try:
            agent = await self.actions.copied(known, persona, visitor)
            if agent is None:
                agent, _ = await self.actions.save(opened, persona, visitor)
        except PersonaLabError as wrong:
            shown = form.show(persona)
            for name in TRAITS:  # with their suggested choices
                field = form.fields[name]
                shown[field] = {**update[field], "value": persona[name]}
            self.actions.fills(persona, visitor)
            return shown | {self.editor.saved: unsaved_html(wrong, visitor)}
        return await self.open(agent.id, model, visitor)

    async def choose(self, persona: str, model: str, unsaved: str, request: gr.Request) -> Update:
        """Open the persona that the visitor chose. ``unsaved`` is as in :meth:`arrive`."""
        visitor = await self.visitors.of(request)
        with visitor.error_toasts():
            if self.actions.holds(visitor) == persona:
                return {self.bar.who: gr.skip()}  # the list was opened and closed without a choice
            update = await self.open(persona or "", model, visitor)
            return update | await self.regain(unsaved, update, model, visitor)

    async def edited(self, values: dict[Component, Any], request: gr.Request) -> Update:
        """Handle a change of the form: save it, and show its prompt."""
        editor = self.editor
        visitor = await self.visitors.of(request)
        persona = editor.form.read(values)
        if not values[editor.touched]:  # fields arrive one by one and may mix two personas
            persona = self.actions.filled(visitor) or persona
        agent, update = unsaved(persona), {}
        editing = values[editor.editing]
        if values[editor.touched]:
            try:
                agent, changed = await self.actions.save(editing, persona, visitor)
            except PersonaLabError as wrong:
                update[editor.saved] = unsaved_html(wrong, visitor)
            else:
                update[editor.saved] = saved_html(agent, visitor)
                if changed:
                    update |= await self.kept(agent, persona, editing, visitor)
        if not self.actions.is_open(agent.id if agent.owner_id else editing, visitor):
            # Another persona was opened meanwhile: this update is too late.
            return {editor.prompt: gr.skip()}
        model = values[self.bar.model] or ""
        update[editor.prompt] = await self.actions.prompt_panel(
            agent, model, values[editor.try_message] or "", visitor
        )
        self.ahead.soon(agent, model, visitor)
        return update

    async def kept(
        self, agent: Agent, persona: Mapping[str, Any], former: str, visitor: Visitor
    ) -> Update:
        """Return updates after a saved change.

        Args:
            agent: The saved persona.
            persona: Its fields.
            former: The id that was edited. It differs from the agent's for a demo's new copy.
            visitor: The visitor.
        """
        editor = self.editor
        update: Update = {
            editor.head: head_html(agent, visitor),
            editor.hints: hints_html(persona, visitor),
            editor.buttons["revert"]: gr.update(visible=True, interactive=True),
            editor.buttons["redo"]: gr.update(visible=False),
        }
        if agent.deleted_at is not None:
            update |= self.restorable(agent, visitor)
            update[editor.buttons["delete"]] = gr.update(visible=False)
        if agent.id != former:
            update |= await self.listing(visitor, agent.id)
            update |= {
                editor.editing: agent.id,
                editor.buttons["delete"]: gr.update(visible=True),
            }
        return update

    async def renamed(self, persona: str, request: gr.Request) -> Update:
        """Handle a change of the name: update the dropdowns."""
        visitor = await self.visitors.of(request)
        with visitor.error_toasts():
            return await self.listing(visitor, persona)

    async def create(self, model: str, request: gr.Request) -> Update:
        """Create a persona and open it."""
        visitor = await self.visitors.of(request)
        with visitor.error_toasts():
            agent = await self.blank(visitor)
            return await self.open(agent.id, model, visitor)

    async def duplicate(self, persona: str, model: str, request: gr.Request) -> Update:
        """Copy a persona and open the copy."""
        visitor = await self.visitors.of(request)
        operations = visitor.operations(self.lab)
        with visitor.error_toasts():
            agent = await operations.get_persona(persona)
            name = visitor.translate("editor.copy_name", name=agent.name)
            copy = await operations.duplicate_persona(persona, name)
            return await self.open(copy.id, model, visitor)

    async def revert(self, persona: str, model: str, request: gr.Request) -> Update:
        """Undo the last change of a persona."""
        visitor = await self.visitors.of(request)
        operations = visitor.operations(self.lab)
        with visitor.error_toasts():
            agent = await operations.get_persona(persona, deleted=True)
            back = await operations.undo_persona(persona)
            if back is None:  # another tab has undone the last step
                return {self.editor.buttons["revert"]: gr.update(interactive=False)}
            step = Undone(persona_of(agent), persona_of(back))
            self._undone[visitor.page, persona] = [*self.again(agent, visitor), step]
            return await self.stepped(back, "editor.undone", step, model, visitor)

    async def redo(self, persona: str, model: str, request: gr.Request) -> Update:
        """Redo the change that was undone last, unless the persona has changed since."""
        visitor = await self.visitors.of(request)
        operations = visitor.operations(self.lab)
        with visitor.error_toasts():
            agent = await operations.get_persona(persona, deleted=True)
            steps = self.again(agent, visitor)
            if not steps:
                return {self.editor.buttons["redo"]: gr.update(visible=False)}
            step = steps.pop()
            agent = await operations.update_persona(persona, **step.before)
            return await self.stepped(agent, "editor.redone", step, model, visitor)

    async def stepped(
        self, agent: Agent, words: str, step: Undone, model: str, visitor: Visitor
    ) -> Update:
        """Return updates after an undo or redo. The chat and the tried message stay."""
        changed = [name for name, value in step.after.items() if step.before[name] != value]
        fields = visitor.translate("editor.between").join(
            visitor.translate(f"field.{n}") for n in changed
        )
        status = escape(visitor.translate(words, fields=fields))
        update = await self.shown(agent, model, visitor)
        return update | {self.editor.saved: f'<p class="saved" role="status">{status}</p>'}

    async def delete(self, persona: str, model: str, request: gr.Request) -> Update:
        """Delete a persona and open another one."""
        visitor = await self.visitors.of(request)
        operations = visitor.operations(self.lab)
        with visitor.error_toasts():
            agent = await operations.get_persona(persona, deleted=True)
            await operations.delete_persona(persona)
            words = escape(visitor.translate("editor.deleted", name=agent.name))
            return await self.open("", model, visitor) | {
                self.editor.saved: f'<p class="saved" role="status">{words}</p>',
            }

    async def restore(self, persona: str, model: str, request: gr.Request) -> Update:
        """Restore a deleted persona and open it."""
        visitor = await self.visitors.of(request)
        with visitor.error_toasts():
            await visitor.operations(self.lab).restore_persona(persona)
            return await self.open(persona, model, visitor)

    async def warm(self, model: str, request: gr.Request) -> AsyncGenerator[str, None]:
        """Load the chosen model, and yield its state as HTML."""
        visitor = await self.visitors.of(request)
        try:
            client = await visitor.service.clients.open(model or "")
            if not client.is_loaded:
                loading = asyncio.create_task(client.load())
                try:
                    while not loading.done():
                        yield ready_html(
                            "loading", visitor, percent=round(100 * client.load_progress)
                        )
                        await asyncio.wait([loading], timeout=LOOK)
                    await loading
                finally:
                    loading.cancel()  # a closed page needs no further progress
        except Exception as wrong:  # noqa: BLE001 - any error is shown as the model's state
            ours = map_error(wrong)
            state = "needs_key" if isinstance(ours, MissingKey) else "failed"
            yield ready_html(state, visitor, visitor.error_text(ours))
            return
        self.ahead.again(visitor)
        yield ready_html("ready", visitor)

    # ── wiring ────────────────────────────────────────────────────────────────────────────

    def wire(self, page: gr.Blocks) -> None:
        """Connect the events to the components. Call it inside the Blocks."""
        editor, model, ready = self.editor, self.bar.model, self.bar.ready
        fields = editor.form.fields
        last = [gr.Textbox(visible="hidden") for _ in ("persona", "model", "unsaved", "columns")]
        kept = last[2]
        arrival = page.load(
            self.arrive,
            last,
            list(dict.fromkeys([*self.everything, model, *self.compare.arranged])),
            **{**OPENING, "js": "() => personaLab.opening(personaLab.last())"},
        )
        arrival.then(None, js=OPENED)
        arrival.success(None, [editor.saved], js=REGAINED)
        arrival.then(self.warm, [model], [ready], concurrency_limit=None, **QUIET)
        model.input(
            self.warm, [model], [ready], concurrency_limit=None, trigger_mode="always_last", **QUIET
        )
        for name, component in (("persona", editor.editing), ("model", model)):
            component.change(
                None, [component], None, js=f"(id) => personaLab.remember('{name}', id)"
            )
        chosen = gr.Textbox(visible="hidden", elem_id="chosen")
        self.bar.who.input(None, [self.bar.who], [chosen], js=CHOSEN)
        for trigger, act, subject in (
            (chosen.change, self.choose, [self.bar.who]),
            (editor.buttons["new"].click, self.create, []),
            (editor.buttons["duplicate"].click, self.duplicate, [editor.editing]),
            (editor.buttons["delete"].click, self.delete, [editor.editing]),
            (editor.buttons["restore"].click, self.restore, [editor.removed]),
        ):
            # Of two choices, the last counts. Of two presses of a button, the first counts.
            mode = "always_last" if act == self.choose else "once"
            # A running answer is stopped first: it belongs to the persona that was open before.
            halted = trigger(
                halt, cancels=self.chat.streams, queue=False, trigger_mode=mode, **QUIET
            )
            if act == self.choose:
                opened = halted.then(act, [*subject, model, kept], self.everything, **REOPENING)
                opened.success(None, [editor.saved], js=REGAINED)
            else:
                opened = halted.then(act, [*subject, model], self.everything, **OPENING)
            opened.then(None, js=NAMED if act == self.create else OPENED)
        for name, step in (("revert", self.revert), ("redo", self.redo)):
            stepped = editor.buttons[name].click(
                step, [editor.editing, model], [*self.lists, *editor.stepped], **OPENING
            )
            stepped.then(None, js=OPENED)
        names = json.dumps(editor.watched_names(model))
        edit = gr.on(
            [field.change for field in (*fields.values(), editor.try_message, model)],
            self.edited,
            editor.watched(model),
            [*self.lists, *editor.edited],
            queue=False,
            trigger_mode="always_last",
            js=f"(...values) => personaLab.byHand(values, {names})",
            **QUIET,
        )
        edit.success(None, [editor.saved], js=KEPT)
        fields["name"].blur(self.renamed, [editor.editing], self.lists, queue=False, **QUIET)
