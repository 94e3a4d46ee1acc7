"""The compare tab: several models or personas answer one message side by side."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from html import escape
from typing import Any

import gradio as gr
from gradio.components import Component

from persona_lab.comparison.runner import MOST, Cell, Contestant
from persona_lab.errors import PersonaLabError
from persona_lab.lab import Lab
from persona_lab.ui.events import PRIVATE_EVENT
from persona_lab.ui.model_status import supports_language
from persona_lab.ui.render.text import figures, safe_markdown, waiting_html
from persona_lab.ui.session import Visitor, Visitors
from persona_lab.ui.streaming import waits_for

CURRENT = "current"
"""The value of a column's persona that is open in the editor. An empty value shows an empty box."""

FIRST = 2
"""Number of columns that are open at first."""


def open_columns(shown: float | None) -> int:
    """Return the number of open columns, within bounds for any number that a client sends."""
    return min(MOST, max(1, int(shown or FIRST)))


@dataclass(frozen=True)
class Column:
    """The components of one column."""

    frame: gr.Column
    model: gr.Dropdown
    persona: gr.Dropdown
    answer: gr.Markdown
    figures: gr.HTML
    again: gr.Button
    remove: gr.Button

    @property
    def held(self) -> list[Component]:
        """The components whose values move left when a column before this one is removed."""
        return [self.model, self.persona, self.answer, self.figures]


@dataclass(frozen=True)
class CompareTab:
    """What the workspace needs from this tab when a page loads."""

    columns: Sequence[Column]
    count: gr.Number
    add: gr.Button

    @property
    def layout(self) -> list[Component]:
        """The components that a browser stores: the count, the models, the personas."""
        models, personas = [c.model for c in self.columns], [c.persona for c in self.columns]
        return [self.count, *models, *personas]

    @property
    def arranged(self) -> list[Component]:
        """The components that change when a page sets up the columns."""
        return [*self.layout, *self.sized(FIRST)]

    def sized(self, shown: int) -> dict[Component, Any]:
        """Return values for ``shown`` open columns."""
        update: dict[Component, Any] = {
            self.count: shown,
            self.add: gr.update(interactive=shown < MOST),
        }
        for i, column in enumerate(self.columns):
            update[column.frame] = gr.update(visible=i < shown)
            update[column.remove] = gr.update(visible=shown > 1)
        return update


def kept_layout(text: str) -> tuple[int, list[str], list[str]] | None:
    """Parse the JSON of :attr:`CompareTab.layout` that a browser stored.

    Returns:
        The number of open columns, the models, and the personas; None if the JSON is invalid.
    """
    try:
        shown, *values = json.loads(text)
        open_ = open_columns(shown)
    except (ValueError, TypeError, OverflowError):
        return None
    if len(values) != 2 * MOST or not all(isinstance(value, str) for value in values[:open_]):
        return None
    models, personas = ([str(v or "") for v in part] for part in (values[:MOST], values[MOST:]))
    return open_, models, personas


def cell_values(cell: Cell, visitor: Visitor) -> tuple[str, str]:
    """Return a column's answer as Markdown, and the line under it as HTML.

    The ``error`` of a waiting cell says what it waits for.
    """
    text = safe_markdown(cell.text)
    if cell.state == "waiting":
        return "", waiting_html(cell.error, visitor)
    if cell.state == "failed":
        words = escape(cell.error)
        return text, f'<p class="warning" role="alert">{words}</p>{figures(cell.metadata, visitor)}'
    if cell.state == "stopped":
        stopped = f'<p class="quiet">{escape(visitor.translate("compare.stopped"))}</p>'
        return text, stopped + figures(cell.metadata, visitor)
    return text, figures(cell.metadata, visitor)


async def fellow(lab: Lab, taken: Collection[str], visitor: Visitor) -> str:
    """Pick another persona in the visitor's language, with a name that isn't used yet.

    Args:
        lab: The open lab.
        taken: The ids of the personas that are used.
        visitor: The visitor.

    Returns:
        The id of the persona; ``CURRENT`` if there is none.
    """
    agents = await visitor.operations(lab).list_persona_names()
    names = {agent.name for agent in agents if agent.id in taken}
    fellows = (a.id for a in agents if a.language == visitor.language and a.name not in names)
    return next(fellows, CURRENT)


async def first_comparison(lab: Lab, opened: str, visitor: Visitor) -> tuple[list[str], list[str]]:
    """Choose the first models and personas of the columns.

    Models are local ones that support the visitor's language. If there is only the default
    model, it answers as two personas.

    Args:
        lab: The open lab.
        opened: The id of the open persona.
        visitor: The visitor.

    Returns:
        A model and a persona for each column, as two lists.
    """
    default = lab.clients.info()
    others = [
        info.spec
        for info in lab.clients.listed()
        if info.provider == "local" and info.spec != default.spec
        if supports_language(info, visitor.language)
    ]
    personas = [CURRENT] * MOST
    if not others:
        personas[1] = await fellow(lab, [opened], visitor)
    return ([default.spec, *others[:1]] * MOST)[:MOST], personas


class CompareActions:
    """The actions of the tab."""

    def __init__(self, lab: Lab, visitors: Visitors) -> None:
        self.lab = lab
        self.visitors = visitors

    async def contestants(
        self, picks: Sequence[tuple[str, str]], current: str, visitor: Visitor
    ) -> list[Contestant | PersonaLabError]:
        """Return a contestant for each (model, persona id), or the error of that column."""
        found: list[Contestant | PersonaLabError] = []
        for model, persona in picks:
            try:
                visitor.service.clients.info(model)
                agent = await visitor.operations(self.lab).get_persona(
                    current if persona == CURRENT else persona
                )
            except PersonaLabError as wrong:
                found.append(wrong)
            else:
                found.append(Contestant(model=model, agent=agent))
        return found

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
        found = await self.contestants(picks, current, visitor)
        refused = {
            i: Cell(
                text="",
                state="failed",
                metadata={},
                error=visitor.error_text(result),
            )
            for i, result in enumerate(found)
            if isinstance(result, PersonaLabError)
        }
        active = [i for i in range(len(found)) if i not in refused]
        shown: dict[int, Cell] = dict(refused)
        yield [refused.get(i) for i in range(len(found))]
        if not active:
            return
        contestants = [result for result in found if isinstance(result, Contestant)]
        runs = visitor.operations(self.lab).compare(message, contestants)
        async with aclosing(runs) as snapshots:
            async for cells in snapshots:
                news: list[Cell | None] = [None] * len(found)
                for i, cell, contestant in zip(active, cells, contestants, strict=True):
                    if cell.state == "waiting":
                        words = await waits_for(contestant.model, visitor)
                        cell = replace(cell, error=words)
                    if shown.get(i) != cell:
                        shown[i] = news[i] = cell
                yield news


def build_compare(
    actions: CompareActions,
    i18n: gr.I18n,
    editing: gr.Textbox,
    models: Sequence[tuple[str, str]],
    default: str,
    both: Callable[[str], str],
) -> CompareTab:
    """Build the tab and connect its events.

    Args:
        actions: The actions of the tab.
        i18n: The translations of labels.
        editing: The id of the open persona.
        models: The choices of models, as (label, spec).
        default: The model that a column has at first.
        both: Returns a text in both languages, for HTML.

    Returns:
        The parts that the workspace uses.
    """
    with gr.Row(elem_classes="writing sheet"):
        message = gr.Textbox(
            label=i18n("compare.message"),
            placeholder=i18n("compare.first_hint"),
            elem_id="compare-message",
            lines=1,
            max_lines=6,
            scale=5,
        )
        run = gr.Button(
            i18n("compare.run"), variant="primary", elem_id="compare-run", scale=0, min_width=110
        )
        stop = gr.Button(
            i18n("compare.stop"), elem_id="compare-stop", scale=0, min_width=110, visible=False
        )
    with gr.Row(elem_classes="tools"):
        add = gr.Button(i18n("compare.add"), size="sm", elem_id="compare-add", elem_classes="tool")
    empty = f'<p class="empty">{both("compare.empty")}</p>'
    count = gr.Number(FIRST, visible="hidden", precision=0, elem_id="compare-count")
    columns: list[Column] = []
    with gr.Row(elem_id="columns"):
        for i in range(MOST):
            with gr.Column(
                visible=i < FIRST, elem_id=f"column-{i}", elem_classes="sheet contestant"
            ) as frame:
                remove = gr.Button(
                    i18n("compare.remove"),
                    size="sm",
                    elem_classes="remove",
                    elem_id=f"column-{i}-remove",
                )
                with gr.Row(elem_classes="choosers"):
                    model = gr.Dropdown(
                        list(models),
                        value=default,
                        label=i18n("compare.model"),
                        allow_custom_value=True,
                        min_width=130,
                    )
                    persona = gr.Dropdown(
                        [("…", CURRENT)],
                        value=CURRENT,
                        label=i18n("compare.persona"),
                        min_width=130,
                    )
                answer = gr.Markdown("", elem_classes="answer", line_breaks=True, show_label=False)
                line = gr.HTML(
                    empty if i == 0 else "",
                    elem_classes="result",
                )
                again = gr.Button(
                    i18n("compare.again"), size="sm", visible=False, elem_classes="tool again"
                )
            columns.append(Column(frame, model, persona, answer, line, again, remove))

    inputs: set[Component] = {message, editing, count}
    for column in columns:
        inputs |= {column.model, column.persona}
    everything: list[Component] = [run, stop, add, message]
    for column in columns:
        everything += [column.answer, column.figures, column.again, column.remove]

    def news(
        cells: Sequence[Cell | None], chosen: Sequence[Column], visitor: Visitor
    ) -> dict[Component, Any]:
        update: dict[Component, Any] = {}
        for column, cell in zip(chosen, cells, strict=True):
            if cell is not None:
                update[column.answer], update[column.figures] = cell_values(cell, visitor)
        return update

    async def play(
        values: Mapping[Component, Any], chosen: Sequence[Column], request: gr.Request
    ) -> AsyncGenerator[dict[Component, Any], None]:
        visitor = await actions.visitors.of(request)
        picks = [(values[c.model] or "", values[c.persona] or CURRENT) for c in chosen]
        with visitor.error_toasts():
            started = False
            said = values[message] or visitor.translate("compare.message_hint")
            runs = actions.run(said, picks, values[editing], visitor)
            async with aclosing(runs) as steps:
                async for cells in steps:
                    update = news(cells, chosen, visitor)
                    if not started:
                        started = True
                        update |= {run: gr.update(visible=False), stop: gr.update(visible=True)}
                        update[add] = gr.update(interactive=False)
                        if not values[message]:
                            update[message] = said
                        for column in chosen:
                            update.setdefault(column.answer, "")
                            update.setdefault(column.figures, "")
                        for column in columns:
                            update[column.again] = update[column.remove] = gr.update(visible=False)
                    yield update or {run: gr.skip()}

    async def run_all(
        values: dict[Component, Any], request: gr.Request
    ) -> AsyncGenerator[dict[Component, Any], None]:
        async with aclosing(play(values, columns[: open_columns(values[count])], request)) as steps:
            async for update in steps:
                yield update

    def settle(shown: float | None) -> list[Any]:
        open_ = open_columns(shown)
        update: list[Any] = [gr.update(visible=True), gr.update(visible=False)]
        update.append(gr.update(interactive=open_ < MOST))
        update += [gr.update(visible=i < open_) for i in range(MOST)]
        return update + [gr.update(visible=open_ > 1) for _ in range(MOST)]

    stream = gr.on(
        [message.submit, run.click],
        run_all,
        inputs,
        everything,
        concurrency_limit=None,
        **PRIVATE_EVENT,
    )
    settled = [run, stop, add, *[c.again for c in columns], *[c.remove for c in columns]]
    stream.then(settle, [count], settled, queue=False, **PRIVATE_EVENT)
    streams = [stream]
    for column in columns:

        async def run_one(
            values: dict[Component, Any], request: gr.Request, column: Column = column
        ) -> AsyncGenerator[dict[Component, Any], None]:
            async with aclosing(play(values, [column], request)) as steps:
                async for update in steps:
                    yield update

        one = column.again.click(
            run_one, inputs, everything, concurrency_limit=None, **PRIVATE_EVENT
        )
        one.then(settle, [count], settled, queue=False, **PRIVATE_EVENT)
        streams.append(one)

    async def halt(shown: float | None, request: gr.Request, *lines: str) -> list[Any]:
        """Mark the columns that were waiting or streaming as stopped."""
        visitor = await actions.visitors.of(request)
        stopped = f'<p class="quiet">{escape(visitor.translate("compare.stopped"))}</p>'
        ended = ("figures", "warning", "empty")
        running = [
            i < open_columns(shown) and not any(e in (line or "") for e in ended)
            for i, line in enumerate(lines)
        ]
        return [*settle(shown), *[stopped if r else gr.skip() for r in running]]

    lines_of = [column.figures for column in columns]
    stop.click(
        halt,
        [count, *lines_of],
        [*settled, *lines_of],
        cancels=streams,
        queue=False,
        **PRIVATE_EVENT,
    )

    tab = CompareTab(columns, count, add)
    size = list(tab.sized(FIRST))

    async def add_column(values: dict[Component, Any], request: gr.Request) -> dict[Component, Any]:
        """Add a column, if possible with a persona that no other column has."""
        visitor = await actions.visitors.of(request)
        shown = open_columns(values[count])
        if shown == MOST:
            return {count: shown}
        taken = {values[column.persona] for column in columns[:shown]}
        if CURRENT in taken:
            taken.add(values[editing])
        new = columns[shown]
        return tab.sized(shown + 1) | {
            new.persona: await fellow(actions.lab, taken, visitor),
            new.answer: "",
            new.figures: "",
        }

    held = [component for column in columns for component in column.held]
    add.click(add_column, inputs, [*size, *held], queue=False, **PRIVATE_EVENT)

    def remove_column(number: int) -> Callable[..., list[Any]]:
        def remove(shown: float | None, *values: Any) -> list[Any]:
            left = max(1, open_columns(shown) - 1)
            each = len(columns[0].held)
            begin = number * each
            moved = [*values[begin + each :], *[gr.skip()] * each]
            return [*tab.sized(left).values(), *[gr.skip()] * begin, *moved]

        return remove

    for number, column in enumerate(columns):
        column.remove.click(
            remove_column(number), [count, *held], [*size, *held], queue=False, **PRIVATE_EVENT
        )
    gr.on(
        [component.change for component in tab.layout],
        None,
        tab.layout,
        js="(...values) => personaLab.columns(values)",
    )
    return tab
