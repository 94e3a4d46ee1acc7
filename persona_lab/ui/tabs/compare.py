"""The compare tab: several models or personas answer one message side by side."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from html import escape
from typing import Any, ClassVar

import gradio as gr
from gradio.components import Component

from persona_lab.comparison.runner import MAX_COLUMNS, Cell, Contestant
from persona_lab.errors import PersonaLabError
from persona_lab.lab import Lab
from persona_lab.ui.comparison_columns import (
    CURRENT,
    INITIAL_COLUMNS,
    first_comparison,
    open_columns,
    parse_layout,
    pick_unused_persona,
)
from persona_lab.ui.events import PRIVATE_EVENT, Update
from persona_lab.ui.page_context import PageContext
from persona_lab.ui.render.comparison import render_cell
from persona_lab.ui.session import Visitor, Visitors
from persona_lab.ui.streaming import waiting_text


@dataclass(frozen=True)
class Column:
    """The components of one column."""

    frame: gr.Column
    model: gr.Dropdown
    persona: gr.Dropdown
    answer: gr.Markdown
    status: gr.HTML
    """The figures of the answer, or why there is none."""
    rerun: gr.Button
    remove: gr.Button

    @property
    def movable(self) -> list[Component]:
        """The components whose values move left when a column before this one is removed."""
        return [self.model, self.persona, self.answer, self.status]


class CompareActions:
    """The actions of the tab."""

    def __init__(self, lab: Lab, visitors: Visitors) -> None:
        self.lab = lab
        self.visitors = visitors

    async def contestants(
        self, picks: Sequence[tuple[str, str]], current: str, visitor: Visitor
    ) -> list[Contestant | PersonaLabError]:
        """Return a contestant for each (model, persona id), or the error of that column."""
        results: list[Contestant | PersonaLabError] = []
        for model, persona in picks:
            try:
                visitor.service.clients.info(model)
                agent = await visitor.operations(self.lab).get_persona(
                    current if persona == CURRENT else persona
                )
            except PersonaLabError as error:
                results.append(error)
            else:
                results.append(Contestant(model=model, agent=agent))
        return results

    async def run(
        self, message: str, picks: Sequence[tuple[str, str]], current: str, visitor: Visitor
    ) -> AsyncGenerator[list[Cell | None], None]:
        """Stream the answers of all columns. Closing the generator stops them all.

        Args:
            message: The user's message.
            picks: (model, persona id) of each column.
            current: The id of the open persona, for ``CURRENT``.
            visitor: The visitor.

        Yields:
            A cell for each column; None where it hasn't changed.
        """
        message = self.lab.input_validator.validate_message(message)
        results = await self.contestants(picks, current, visitor)
        refused = {
            i: Cell(
                text="",
                state="failed",
                metadata={},
                error=visitor.error_text(result),
            )
            for i, result in enumerate(results)
            if isinstance(result, PersonaLabError)
        }
        active = [i for i in range(len(results)) if i not in refused]
        shown: dict[int, Cell] = dict(refused)
        yield [refused.get(i) for i in range(len(results))]
        if not active:
            return
        contestants = [result for result in results if isinstance(result, Contestant)]
        runs = visitor.operations(self.lab).compare(message, contestants)
        async with aclosing(runs) as snapshots:
            async for cells in snapshots:
                changed: list[Cell | None] = [None] * len(results)
                for i, cell, contestant in zip(active, cells, contestants, strict=True):
                    if cell.state == "waiting":
                        words = await waiting_text(contestant.model, visitor)
                        cell = replace(cell, error=words)
                    if shown.get(i) != cell:
                        shown[i] = changed[i] = cell
                yield changed


class CompareTab:
    """The tab: one message, and a column for each answer."""

    key: ClassVar[str] = "compare"

    def __init__(self, page: PageContext) -> None:
        self._page = page
        self._actions = CompareActions(page.lab, page.visitors)

    def build(self, frame: gr.Tab) -> None:
        """Create the components."""
        i18n = self._page.i18n
        with gr.Row(elem_classes="writing sheet"):
            self._message = gr.Textbox(
                label=i18n("compare.message"),
                placeholder=i18n("compare.first_hint"),
                elem_id="compare-message",
                lines=1,
                max_lines=6,
                scale=5,
            )
            self._run = gr.Button(
                i18n("compare.run"),
                variant="primary",
                elem_id="compare-run",
                scale=0,
                min_width=110,
            )
            self._stop = gr.Button(
                i18n("compare.stop"),
                elem_id="compare-stop",
                scale=0,
                min_width=110,
                visible=False,
            )
        with gr.Row(elem_classes="tools"):
            self._add = gr.Button(
                i18n("compare.add"), size="sm", elem_id="compare-add", elem_classes="tool"
            )
        self._count = gr.Number(
            INITIAL_COLUMNS, visible="hidden", precision=0, elem_id="compare-count"
        )
        with gr.Row(elem_id="columns"):
            self.columns = [self._build_column(number) for number in range(MAX_COLUMNS)]
        self._page.model_dropdowns.extend(column.model for column in self.columns)

    def _build_column(self, number: int) -> Column:
        i18n = self._page.i18n
        with gr.Column(
            visible=number < INITIAL_COLUMNS,
            elem_id=f"column-{number}",
            elem_classes="sheet contestant",
        ) as frame:
            remove = gr.Button(
                i18n("compare.remove"),
                size="sm",
                elem_classes="remove",
                elem_id=f"column-{number}-remove",
            )
            with gr.Row(elem_classes="choosers"):
                model = gr.Dropdown(
                    list(self._page.model_choices),
                    value=self._page.default_model,
                    label=i18n("compare.model"),
                    allow_custom_value=True,
                    min_width=130,
                )
                persona = gr.Dropdown(
                    [("…", CURRENT)], value=CURRENT, label=i18n("compare.persona"), min_width=130
                )
            answer = gr.Markdown("", elem_classes="answer", latex_delimiters=[], show_label=False)
            empty = f'<p class="empty">{self._page.bilingual("compare.empty")}</p>'
            status = gr.HTML(empty if number == 0 else "", elem_classes="result")
            rerun = gr.Button(
                i18n("compare.again"), size="sm", visible=False, elem_classes="tool rerun"
            )
        return Column(frame, model, persona, answer, status, rerun, remove)

    # ── groups of components ──────────────────────────────────────────────────────────────

    @property
    def layout(self) -> list[Component]:
        """The components that a browser stores: the count, the models, the personas."""
        models = [column.model for column in self.columns]
        personas = [column.persona for column in self.columns]
        return [self._count, *models, *personas]

    @property
    def changed_by_load(self) -> list[Component]:
        """The components that change when a page sets up the columns."""
        return [*self.layout, *self.show_columns(INITIAL_COLUMNS)]

    @property
    def _inputs(self) -> set[Component]:
        choices = {c for column in self.columns for c in (column.model, column.persona)}
        return {self._message, self._page.persona_id, self._count, *choices}

    @property
    def _run_outputs(self) -> list[Component]:
        outputs: list[Component] = [self._run, self._stop, self._add]
        for column in self.columns:
            outputs += [column.answer, column.status, column.rerun, column.remove]
        return outputs

    @property
    def _movable(self) -> list[Component]:
        return [component for column in self.columns for component in column.movable]

    # ── updates ───────────────────────────────────────────────────────────────────────────

    def show_columns(self, count: int) -> Update:
        """Return updates that show the first ``count`` columns."""
        update: Update = {
            self._count: count,
            self._add: gr.update(interactive=count < MAX_COLUMNS),
        }
        for number, column in enumerate(self.columns):
            update[column.frame] = gr.update(visible=number < count)
            update[column.remove] = gr.update(visible=count > 1)
        return update

    async def load_columns(
        self,
        layout: str,
        opened: Update,
        model_choices: Sequence[tuple[str, str]],
        visitor: Visitor,
    ) -> Update:
        """Return updates of the columns of a page that loads.

        Args:
            layout: The values of :attr:`layout` that the browser stored, as JSON.
            opened: The updates that open a persona. They have the choices of personas.
            model_choices: The models as (label, spec).
            visitor: The visitor.
        """
        update: Update = {}
        models, personas = await first_comparison(
            self._page.lab, opened[self._page.persona_id], visitor
        )
        if (stored := parse_layout(layout)) is not None:
            count, stored_models, stored_personas = stored
            known = {id_ for _, id_ in opened[self.columns[0].persona]["choices"]}
            models = [old or new for old, new in zip(stored_models, models, strict=True)]
            personas = [
                old if old in known else new
                for old, new in zip(stored_personas, personas, strict=True)
            ]
            update |= self.show_columns(count)
        for column, spec, persona in zip(self.columns, models, personas, strict=True):
            update[column.model] = gr.update(choices=list(model_choices), value=spec)
            update[column.persona] = {**opened[column.persona], "value": persona}
        return update

    def _show_end(self, count: float | None) -> Update:
        """Return updates of the buttons after a run."""
        open_ = open_columns(count)
        update: Update = {
            self._run: gr.update(visible=True),
            self._stop: gr.update(visible=False),
            self._add: gr.update(interactive=open_ < MAX_COLUMNS),
        }
        for number, column in enumerate(self.columns):
            update[column.rerun] = gr.update(visible=number < open_)
            update[column.remove] = gr.update(visible=open_ > 1)
        return update

    def _show_start(self, chosen: Sequence[Column]) -> Update:
        """Return updates of the buttons at the start of a run, and of the chosen columns."""
        update: Update = {
            self._run: gr.update(visible=False),
            self._stop: gr.update(visible=True),
            self._add: gr.update(interactive=False),
        }
        for column in chosen:
            update |= {column.answer: "", column.status: ""}
        for column in self.columns:
            update[column.rerun] = update[column.remove] = gr.update(visible=False)
        return update

    async def _stream_run(
        self, values: Mapping[Component, Any], chosen: Sequence[Column], request: gr.Request
    ) -> AsyncGenerator[Update, None]:
        """Run the message over the columns ``chosen``."""
        visitor = await self._page.visitors.from_request(request)
        picks = [(values[c.model] or "", values[c.persona] or CURRENT) for c in chosen]
        with visitor.error_toasts():
            started = False
            message = values[self._message] or ""
            stream = self._actions.run(message, picks, values[self._page.persona_id], visitor)
            async with aclosing(stream) as steps:
                async for cells in steps:
                    update: Update = {}
                    if not started:
                        started = True
                        update = self._show_start(chosen)
                    for column, cell in zip(chosen, cells, strict=True):
                        if cell is not None:
                            answer, status = render_cell(cell, visitor)
                            update |= {column.answer: answer, column.status: status}
                    yield update or {self._run: gr.skip()}

    # ── handlers ──────────────────────────────────────────────────────────────────────────

    async def _on_run(
        self, values: dict[Component, Any], request: gr.Request
    ) -> AsyncGenerator[Update, None]:
        chosen = self.columns[: open_columns(values[self._count])]
        async with aclosing(self._stream_run(values, chosen, request)) as updates:
            async for update in updates:
                yield update

    def _rerun_handler(self, column: Column) -> Callable[..., AsyncGenerator[Update, None]]:
        async def on_rerun(
            values: dict[Component, Any], request: gr.Request
        ) -> AsyncGenerator[Update, None]:
            async with aclosing(self._stream_run(values, [column], request)) as updates:
                async for update in updates:
                    yield update

        return on_rerun

    async def _on_stop(self, count: float | None, request: gr.Request, *lines: str) -> Update:
        """Mark the columns that were waiting or streaming as stopped."""
        visitor = await self._page.visitors.from_request(request)
        stopped = f'<p class="quiet">{escape(visitor.translate("compare.stopped"))}</p>'
        ended = ("figures", "warning", "empty")
        update = self._show_end(count)
        for column, line in zip(self.columns[: open_columns(count)], lines, strict=False):
            if not any(mark in (line or "") for mark in ended):
                update[column.status] = stopped
        return update

    async def _on_add(self, values: dict[Component, Any], request: gr.Request) -> Update:
        """Add a column, if possible with a persona that no other column has."""
        visitor = await self._page.visitors.from_request(request)
        count = open_columns(values[self._count])
        if count == MAX_COLUMNS:
            return {self._count: count}
        used = {values[column.persona] for column in self.columns[:count]}
        if CURRENT in used:
            used.add(values[self._page.persona_id])
        new = self.columns[count]
        return self.show_columns(count + 1) | {
            new.persona: await pick_unused_persona(self._page.lab, used, visitor),
            new.answer: "",
            new.status: "",
        }

    def _remove_handler(self, number: int) -> Callable[..., Update]:
        def on_remove(count: float | None, *values: Any) -> Update:
            """Move the columns after the removed one to the left."""
            left = max(1, open_columns(count) - 1)
            size = len(self.columns[0].movable)
            targets = self._movable[number * size :]
            moved = values[(number + 1) * size :]
            return self.show_columns(left) | dict(zip(targets, moved, strict=False))

        return on_remove

    def wire(self) -> None:
        """Connect the events."""
        outputs, buttons = self._run_outputs, list(self._show_end(INITIAL_COLUMNS))
        running = gr.on(
            [self._message.submit, self._run.click],
            self._on_run,
            self._inputs,
            outputs,
            concurrency_limit=None,
            **PRIVATE_EVENT,
        )
        streams = [running]
        for column in self.columns:
            streams.append(
                column.rerun.click(
                    self._rerun_handler(column),
                    self._inputs,
                    outputs,
                    concurrency_limit=None,
                    **PRIVATE_EVENT,
                )
            )
        for stream in streams:
            stream.then(self._show_end, [self._count], buttons, queue=False, **PRIVATE_EVENT)
        status_lines = [column.status for column in self.columns]
        self._stop.click(
            self._on_stop,
            [self._count, *status_lines],
            [*buttons, *status_lines],
            cancels=streams,
            queue=False,
            **PRIVATE_EVENT,
        )
        arranged = [*self.show_columns(INITIAL_COLUMNS), *self._movable]
        self._add.click(self._on_add, self._inputs, arranged, queue=False, **PRIVATE_EVENT)
        for number, column in enumerate(self.columns):
            column.remove.click(
                self._remove_handler(number),
                [self._count, *self._movable],
                arranged,
                queue=False,
                **PRIVATE_EVENT,
            )
        gr.on(
            [component.change for component in self.layout],
            None,
            self.layout,
            js="(...values) => personaLab.columns(values)",
        )
