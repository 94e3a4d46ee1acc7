"""The persona tab as HTML: the head of the editor, its state, warnings, the tried answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import gradio as gr

from persona_lab.db.tables import Agent
from persona_lab.ui.session import Visitor


def head_html(agent: Agent, visitor: Visitor) -> str:
    """Return avatar, name and state as HTML: a demo, the visitor's own, or deleted elsewhere."""
    hue = sum(map(ord, agent.name)) * 47 % 360
    state = "demo" if agent.owner_id is None else "deleted" if agent.deleted_at else "own"
    label = f'<span class="label">{escape(agent.label)}</span>' if agent.label else ""
    return (
        f'<div class="face" style="--hue:{hue}" aria-hidden="true">{escape(agent.name[:1])}</div>'
        f'<div><h2>{escape(agent.name)}</h2>{label}<p class="{state}">'
        f"{escape(visitor.translate('editor.state.' + state))}</p></div>"
    )


def suggestions_html(messages: Sequence[str] = (), *, fills: str) -> str:
    """Return chips as HTML that fill the message box with the id ``fills``.

    Boxes other than the trial's get their chips from suggestions.js.
    """
    chips = "".join(
        f'<button type="button" data-suggest="{escape(text)}">{escape(text)}</button>'
        for text in messages
    )
    return f'<div class="chips" data-fills="{fills}">{chips}</div>'


def saved_html(agent: Agent, visitor: Visitor) -> str:
    """Return the save state of the form as HTML: saved, an unchanged demo, or deleted elsewhere."""
    deleted = agent.deleted_at is not None
    saved = "saved" if visitor.has_cookie else "saved_in_page"
    state = "deleted_elsewhere" if deleted else saved if agent.owner_id else "demo"
    return (
        f'<p class="saved{" warning" * deleted}" role="status">'
        f"{escape(visitor.translate('editor.' + state))}</p>"
    )


def hints_html(persona: Mapping[str, Any], visitor: Visitor) -> str:
    """Return warnings about contradictions in a persona as HTML."""
    tones = {str(t).casefold() for t in persona["tones"]}
    traits = tones | {str(p).casefold() for p in persona["personalities"]}
    hints = []
    if tones & {"敬語", "polite", "formal"} and traits & {"カジュアル", "casual", "タメ口"}:
        hints.append(visitor.translate("hint.polite_and_casual"))
    clash = set(persona["forbidden_words"]) & set(
        persona["catchphrases"] + persona["sentence_endings"]
    )
    if clash:
        hints.append(visitor.translate("hint.forbidden_catchphrase", word="、".join(sorted(clash))))
    answers = "\n".join(example["ai"] for example in persona["examples"])
    for word in persona["forbidden_words"]:
        if word and word in answers:
            hints.append(visitor.translate("hint.forbidden_in_example", word=word))
    incomplete = (e["user"] or e["ai"] for e in persona["examples"] if not (e["user"] and e["ai"]))
    if (half := next(incomplete, "")) != "":
        hints.append(visitor.translate("hint.half_example", text=half[:20]))
    return "".join(f'<p class="hint">{escape(h)}</p>' for h in hints)


def stopped_html(shown: str, visitor: Visitor) -> Any:
    """Add a note to ``shown`` that it was stopped; change nothing if it is complete."""
    if not shown or any(end in shown for end in ("figures", "warning", "stopped")):
        return gr.skip()
    note = f'<p class="quiet stopped">{escape(visitor.translate("compare.stopped"))}</p>'
    return note if "waiting" in shown else shown + note
