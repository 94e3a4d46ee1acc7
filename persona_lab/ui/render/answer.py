"""Answers of trials and comparisons as HTML, and the button that makes one an example."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from persona_lab.responses.changes import changed_sentences
from persona_lab.ui.render.markdown import message_html
from persona_lab.ui.session import Visitor


def raw_answer_html(text: str, raw: str, metadata: Mapping[str, Any], visitor: Visitor) -> str:
    """Return an answer as HTML: the model's words, and folded the text that a chat shows.

    Args:
        text: The text that a chat shows.
        raw: The text as the model wrote it; "" if it isn't known.
        metadata: The metadata of the answer.
        visitor: The visitor, whose language is used.
    """
    changed = changed_sentences(text, metadata.get("changes") or ())
    html = message_html(raw or text)
    if not changed:
        return html
    finished = escape(visitor.translate("answer.finished"))
    return (
        f'{html}\n\n<details class="finished"><summary>{finished}</summary>'
        f"{message_html(text, changed=changed)}</details>"
    )


def example_button_html(question: str, answer: str, visitor: Visitor) -> str:
    """Return the button that makes a question and its answer an example."""
    return (
        f'<button type="button" class="copy example" data-question="{escape(question)}"'
        f' data-answer="{escape(answer)}">{escape(visitor.translate("example.open"))}</button>'
    )
