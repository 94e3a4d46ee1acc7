"""An answer of a comparison as HTML."""

from __future__ import annotations

from html import escape

from persona_lab.comparison.runner import Cell
from persona_lab.ui.render.answer import raw_answer_html
from persona_lab.ui.render.text import answer_figures_html, waiting_html
from persona_lab.ui.session import Visitor


def render_cell(cell: Cell, visitor: Visitor) -> tuple[str, str]:
    """Return a column's answer and the line under it, both as HTML.

    The ``error`` of a waiting cell says what it waits for.
    """
    line = answer_figures_html(cell.metadata, visitor)
    text = raw_answer_html(cell.text, cell.raw, cell.metadata, visitor)
    if cell.state == "waiting":
        return "", waiting_html(cell.error, visitor)
    if cell.state == "failed":
        return text, f'<p class="warning" role="alert">{escape(cell.error)}</p>{line}'
    if cell.state == "stopped":
        stopped = escape(visitor.translate("compare.stopped"))
        return text, f'<p class="quiet">{stopped}</p>{line}'
    return text, line
