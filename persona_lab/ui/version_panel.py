"""The versions of the open persona: the line under its name and two dialogs.

One dialog commits the draft and shows what is new. The other lists the versions, compares two of
them, and restores one.
"""

from __future__ import annotations

from html import escape

import gradio as gr
from gradio.components import Component

from persona_lab.db.tables import Agent
from persona_lab.errors import InputError
from persona_lab.insights import parse_time_zone
from persona_lab.lab import Lab
from persona_lab.personas.versions import MESSAGE_LENGTH
from persona_lab.ui.events import PRIVATE_EVENT, WITH_TIME_ZONE, Update
from persona_lab.ui.page_context import PageContext
from persona_lab.ui.render.versions import (
    diff_html,
    history_html,
    proposed_message,
    version_label,
    version_line_html,
)
from persona_lab.ui.session import Visitor

DRAFT = 0
"""Stands for the draft in the dropdowns of versions."""


class VersionPanel:
    """The components of versions and their handlers."""

    def __init__(self, page: PageContext) -> None:
        self._page = page
        self._lab: Lab = page.lab

    def build(self) -> None:
        """Create the line under the name, and the dialogs."""
        i18n = self._page.i18n
        with gr.Row(elem_id="version-bar"):
            self.line = gr.HTML(elem_id="version-line")
            self.commit = gr.Button(
                i18n("versions.commit"), elem_id="version-commit", size="sm", elem_classes="tool"
            )
            self.history = gr.Button(
                i18n("versions.history"), elem_id="version-history", size="sm", elem_classes="tool"
            )
        with gr.Column(visible=False, elem_id="commit-dialog", elem_classes="dialog") as box:
            self._commit_box = box
            gr.HTML(f"<h3>{self._page.bilingual('versions.commit_title')}</h3>")
            self._message = gr.Textbox(
                label=i18n("versions.message"), max_length=MESSAGE_LENGTH, elem_id="commit-message"
            )
            with gr.Row(elem_classes="dialog-buttons"):
                self._confirm = gr.Button(
                    i18n("versions.confirm"), variant="primary", elem_id="commit-confirm"
                )
                self._cancel = gr.Button(i18n("versions.cancel"), elem_classes="dialog-close")
            self._news = gr.HTML(elem_id="commit-diff")
        with gr.Column(visible=False, elem_id="history-dialog", elem_classes="dialog") as box:
            self._history_box = box
            gr.HTML(f"<h3>{self._page.bilingual('versions.history_title')}</h3>")
            self._list = gr.HTML(elem_id="history-list")
            with gr.Row() as choosers:
                self._choosers = choosers
                self._version = gr.Dropdown(
                    label=i18n("versions.version"), elem_id="history-version"
                )
                self._other = gr.Dropdown(label=i18n("versions.other"), elem_id="history-other")
            self._difference = gr.HTML(elem_id="history-diff")
            with gr.Row(elem_classes="dialog-buttons"):
                self._restore = gr.Button(i18n("versions.restore"), elem_id="history-restore")
                self._close = gr.Button(i18n("versions.close"), elem_classes="dialog-close")
        self._zone = gr.Textbox(visible="hidden")

    @property
    def components(self) -> list[Component]:
        """The components that change with the open persona."""
        return [self.line, self.commit, self.history]

    async def show(self, agent: Agent, visitor: Visitor) -> Update:
        """Return updates of the line for a persona."""
        state = await visitor.operations(self._lab).draft_state(agent)
        is_own = agent.owner_id is not None
        return {
            self.line: version_line_html(agent, state, visitor),
            self.commit: gr.update(visible=is_own, interactive=not state.is_committed),
            self.history: gr.update(visible=is_own),
        }

    # ── the dialog that commits ───────────────────────────────────────────────────────────

    async def _open_commit(self, persona_id: str, model: str, request: gr.Request) -> Update:
        visitor = await self._page.visitors.from_request(request)
        operations = visitor.operations(self._lab)
        with visitor.error_toasts():
            agent = await operations.get_persona(persona_id, deleted=True)
            state = await operations.draft_state(agent)
            before = state.version.number if state.version else 0
            diff = await operations.diff_versions(persona_id, before, model=model)
            return {
                self._commit_box: gr.update(visible=True),
                self._message: proposed_message(state, visitor),
                self._news: diff_html(diff, visitor),
            }

    async def _commit(self, persona_id: str, message: str, request: gr.Request) -> Update:
        visitor = await self._page.visitors.from_request(request)
        operations = visitor.operations(self._lab)
        with visitor.error_toasts():
            agent = await operations.get_persona(persona_id, deleted=True)
            try:
                await operations.commit_version(persona_id, message or "")
            except InputError as error:
                text = escape(visitor.error_text(error))
                return {self._news: f'<p class="warning" role="alert">{text}</p>'}
            return await self.show(agent, visitor) | {self._commit_box: gr.update(visible=False)}

    # ── the dialog of versions ────────────────────────────────────────────────────────────

    async def _open_history(
        self, persona_id: str, model: str, zone: str, request: gr.Request
    ) -> Update:
        visitor = await self._page.visitors.from_request(request)
        operations = visitor.operations(self._lab)
        with visitor.error_toasts():
            versions = await operations.list_versions(persona_id)
            choices = [(version_label(version, visitor), version.number) for version in versions]
            draft = (visitor.translate("versions.draft"), DRAFT)
            update: Update = {
                self._history_box: gr.update(visible=True),
                self._list: history_html(versions, visitor, parse_time_zone(zone or "")),
                self._choosers: gr.update(visible=bool(versions)),
                self._restore: gr.update(visible=bool(versions)),
                self._difference: "",
            }
            if versions:
                newest = versions[0].number
                update |= {
                    self._version: gr.update(choices=choices, value=newest),
                    self._other: gr.update(choices=[draft, *choices], value=DRAFT),
                    self._difference: await self._diff(persona_id, newest, DRAFT, model, visitor),
                }
            return update

    async def _compare(
        self,
        persona_id: str,
        version: int | None,
        other: int | None,
        model: str,
        request: gr.Request,
    ) -> Update:
        visitor = await self._page.visitors.from_request(request)
        with visitor.error_toasts():
            if version is None or other is None:
                return {self._difference: ""}
            return {self._difference: await self._diff(persona_id, version, other, model, visitor)}

    async def _diff(
        self, persona_id: str, version: int, other: int, model: str, visitor: Visitor
    ) -> str:
        """Return the difference from the older state to the newer one as HTML."""
        if other != DRAFT and other < version:
            version, other = other, version
        operations = visitor.operations(self._lab)
        after = None if other == DRAFT else other
        diff = await operations.diff_versions(persona_id, version, after, model=model)
        return diff_html(diff, visitor)

    async def restore(self, persona_id: str, number: int, visitor: Visitor) -> Agent:
        """Restore a version and return the persona. A changed draft becomes a version first."""
        message = visitor.translate("versions.draft_message", number=number)
        operations = visitor.operations(self._lab)
        agent, _ = await operations.restore_version(persona_id, number, message)
        return agent

    # ── wiring ────────────────────────────────────────────────────────────────────────────

    @property
    def restore_inputs(self) -> list[Component]:
        """The inputs of the event that restores: the persona, the version and the model."""
        return [self._page.persona_id, self._version, self._page.header.model]

    @property
    def restore_button(self) -> gr.Button:
        """The button that restores a version; the workspace connects it."""
        return self._restore

    @property
    def history_dialog(self) -> gr.Column:
        """The dialog of versions, which closes after a version was restored."""
        return self._history_box

    def wire(self) -> None:
        """Connect the events of the dialogs."""
        persona, model = self._page.persona_id, self._page.header.model
        self.commit.click(
            self._open_commit,
            [persona, model],
            [self._commit_box, self._message, self._news],
            **PRIVATE_EVENT,
        ).then(None, js="() => personaLab.openDialog('commit-dialog')")
        gr.on(
            [self._confirm.click, self._message.submit],
            self._commit,
            [persona, self._message],
            [*self.components, self._commit_box, self._news],
            trigger_mode="once",
            **PRIVATE_EVENT,
        ).then(None, js="() => personaLab.closeDialog('commit-dialog', 'version-history')")
        self.history.click(
            self._open_history,
            [persona, model, self._zone],
            [
                self._history_box,
                self._list,
                self._choosers,
                self._version,
                self._other,
                self._difference,
                self._restore,
            ],
            js=WITH_TIME_ZONE,
            **PRIVATE_EVENT,
        ).then(None, js="() => personaLab.openDialog('history-dialog')")
        gr.on(
            [self._version.input, self._other.input],
            self._compare,
            [persona, self._version, self._other, model],
            [self._difference],
            trigger_mode="always_last",
            **PRIVATE_EVENT,
        )
        for button, box, dialog, opener in (
            (self._cancel, self._commit_box, "commit-dialog", "version-commit"),
            (self._close, self._history_box, "history-dialog", "version-history"),
        ):
            button.click(
                lambda: gr.update(visible=False), None, [box], queue=False, **PRIVATE_EVENT
            ).then(None, js=f"() => personaLab.closeDialog('{dialog}', '{opener}')")
