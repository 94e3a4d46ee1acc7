"""A chat as values of Gradio's chatbot, and the HTML under its answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from typing import Any

import gradio as gr

from persona_lab.db.tables import Agent, Chat, Message
from persona_lab.personas.persona import persona_of
from persona_lab.personas.versions import VersionInfo, persona_hash
from persona_lab.responses.changes import changed_sentences, restore
from persona_lab.types import now
from persona_lab.ui.render.answer import example_button_html
from persona_lab.ui.render.markdown import message_html
from persona_lab.ui.render.text import answer_figures_html, turn_html
from persona_lab.ui.session import Visitor

MAX_VISIBLE_MESSAGES = 8
"""Maximum number of messages that a window shows at a time."""
Thread = list[dict[str, Any]]
"""The value of gr.Chatbot: ``{"role": "user"|"assistant", "content": …}``. The content of a
finished answer is its HTML, and the HTML under it, which screen readers don't announce."""


def answer_footer_html(
    question: str, answer: str, details: dict[str, Any], visitor: Visitor
) -> str:
    """Return the HTML under an answer: latency and cost, buttons, the folded prompt."""
    translate = visitor.translate
    example = "" if details.get("fallback") else example_button_html(question, answer, visitor)
    copy = (
        f'<button type="button" class="copy" data-copy="{escape(answer)}">'
        f"{escape(translate('chat.copy'))}</button>"
    )
    prompt = details.get("prompt")
    turns = "".join(
        turn_html(turn["role"], turn["content"], visitor) for turn in details.get("sent") or ()
    )
    model = escape(str(details.get("model", "")))
    fold = (
        f"<details><summary>{escape(translate('chat.sent'))} · {model}"
        f"</summary><pre>{escape(prompt)}</pre>{turns}</details>"
        if prompt
        else ""
    )
    changes = details.get("changes") or ()
    raw = (
        f"<details><summary>{escape(translate('chat.raw'))}</summary>"
        f"<pre>{escape(restore(answer, changes))}</pre></details>"
        if changed_sentences(answer, changes)
        else ""
    )
    # An error without a fallback text: the answer is complete, but wasn't saved.
    unsaved = "" if details.get("fallback") else str(details.get("error", ""))
    warning = f'<p class="warning" role="alert">{escape(unsaved)}</p>' if unsaved else ""
    failed = " failed" if details.get("fallback") else ""
    line = answer_figures_html(details, visitor)
    return f'{warning}{line}<div class="under{failed}">{copy}{example}{raw}{fold}</div>'


def build_thread(
    messages: Sequence[Message],
    agent: Agent,
    visitor: Visitor,
    versions: Sequence[VersionInfo] = (),
) -> Thread:
    """Convert the rows of a chat to the value of gr.Chatbot.

    It begins with the greeting, which the prompt mentions too. A user's message without an
    answer gets a note that it has none.

    Args:
        messages: The rows.
        agent: The persona. Answers of another state of it say so.
        visitor: The visitor.
        versions: The versions of the persona, which the answers name.
    """
    thread: Thread = []
    question = ""
    present = persona_hash(persona_of(agent))
    numbers = {version.hash: version.number for version in reversed(versions)}
    if agent.greeting:
        thread.append({"role": "assistant", "content": message_html(agent.greeting)})
    for message, following in zip(messages, [*messages, None][1:], strict=True):
        role = "user" if message.sender == "user" else "assistant"
        question = message.content if role == "user" else question
        changed = changed_sentences(message.content, message.details.get("changes") or ())
        content: Any = message_html(message.content, changed=changed)
        if role == "assistant":
            # A failed answer already has its own text.
            if message.status in ("stopped", "interrupted"):
                status = escape(visitor.translate("chat.status." + message.status))
                content += f"\n\n<em>{status}</em>"
            footer = answer_footer_html(question, message.content, message.details, visitor)
            maker = maker_html(message.details, present, numbers, visitor)
            content = [content, gr.HTML(maker + footer)]
        thread.append({"role": role, "content": content})
        if role == "user" and (following is None or following.sender == "user"):
            unanswered = f"<em>{escape(visitor.translate('chat.status.unanswered'))}</em>"
            thread.append({"role": "assistant", "content": unanswered})
    return thread


def maker_html(
    details: Mapping[str, Any], present: str, versions: Mapping[str, int], visitor: Visitor
) -> str:
    """Return which version of the persona gave an answer, and whether it has changed since.

    Args:
        details: The metadata of the answer.
        present: The hash of the persona.
        versions: The numbers of the persona's versions by their hashes.
        visitor: The visitor.
    """
    maker = details.get("persona_hash", "")
    number = versions.get(maker)
    parts = [f"v{number}"] if number else []
    if maker and maker != present:
        parts.append(visitor.translate("chat.older_persona"))
    return f'<p class="maker">{escape(" · ".join(parts))}</p>' if parts else ""


def without_old_footers(thread: Thread) -> Thread:
    """Remove the footers from all but the last ``MAX_VISIBLE_MESSAGES`` of ``thread``.

    It is for redraws while an answer streams: Gradio needs milliseconds for each HTML component
    at each redraw.
    """
    return [
        {**turn, "content": turn["content"][0]} if isinstance(turn["content"], list) else turn
        for turn in thread[:-MAX_VISIBLE_MESSAGES]
    ] + thread[-MAX_VISIBLE_MESSAGES:]


def chat_title(chat: Chat, visitor: Visitor) -> str:
    """Return the title of a chat in the list: its first words, and its age."""
    return f"{chat.title or visitor.translate('chat.untitled')} · {_age(chat.updated_at, visitor)}"


def _age(time: datetime, visitor: Visitor) -> str:
    seconds = (now() - time).total_seconds()
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= length:
            return visitor.translate(f"chat.ago.{unit}", count=int(seconds // length))
    return visitor.translate("chat.ago.now")
