"""The dialog that makes an answer an example of the persona, as it is or corrected.

Buttons under answers open it; ``static/examples.js`` passes the question and the answer of the
pressed button.
"""

from __future__ import annotations

import gradio as gr
from gradio.components import Component

from persona_lab.db.tables import Agent
from persona_lab.lab import Lab
from persona_lab.personas.persona import persona_of
from persona_lab.ui.events import PRIVATE_EVENT
from persona_lab.ui.page_context import PageContext
from persona_lab.ui.session import Visitor


class ExampleDialog:
    """The components of the dialog and the handlers that open and close it."""

    def __init__(self, page: PageContext) -> None:
        self._page = page
        self._lab: Lab = page.lab

    def build(self) -> None:
        """Create the components."""
        i18n = self._page.i18n
        self._open = gr.Button(visible="hidden", elem_id="example-open")
        with gr.Column(visible=False, elem_id="example-dialog", elem_classes="dialog") as box:
            self.box = box
            gr.HTML(f"<h3>{self._page.bilingual('example.title')}</h3>")
            self._question = gr.Textbox(
                label=i18n("example.question"), lines=2, max_lines=6, elem_id="example-question"
            )
            self._answer = gr.Textbox(
                label=i18n("example.answer"), lines=4, max_lines=14, elem_id="example-answer"
            )
            self.problem = gr.HTML(elem_id="example-problem")
            with gr.Row(elem_classes="dialog-buttons"):
                self.confirm = gr.Button(
                    i18n("example.confirm"), variant="primary", elem_id="example-confirm"
                )
                self._cancel = gr.Button(i18n("versions.cancel"), elem_classes="dialog-close")

    @property
    def confirm_inputs(self) -> list[Component]:
        """The inputs of the event that adds the example; the workspace connects it."""
        model = self._page.header.model
        return [self._page.persona_id, self._question, self._answer, model]

    async def add(self, persona_id: str, question: str, answer: str, visitor: Visitor) -> Agent:
        """Add an example to a persona, and return the persona.

        Raises:
            InvalidPersona: There are too many examples, or one is too long.
        """
        operations = visitor.operations(self._lab)
        agent = await operations.get_persona(persona_id, deleted=True)
        examples = persona_of(agent)["examples"]
        added = {"user": question.strip(), "ai": answer.strip()}
        return await operations.update_persona(persona_id, examples=[*examples, added])

    def wire(self) -> None:
        """Connect the events that open and close the dialog."""
        self._open.click(
            _show,
            [self._question, self._answer],
            [self.box, self._question, self._answer, self.problem],
            js="() => personaLab.pressedExample()",
            **PRIVATE_EVENT,
        ).then(None, js="() => personaLab.openDialog('example-dialog')")
        self._cancel.click(_hide, None, [self.box], queue=False, **PRIVATE_EVENT).then(
            None, js="() => personaLab.closeDialog('example-dialog')"
        )


def _show(question: str, answer: str) -> tuple[object, str, str, str]:
    return gr.update(visible=True), question, answer, ""


def _hide() -> object:
    return gr.update(visible=False)
