"""Versions of a persona as HTML: the line under the name, the list, and differences."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, tzinfo
from html import escape

from persona_lab.db.tables import Agent
from persona_lab.personas.diff import FieldChange, TextPart, diff_text
from persona_lab.personas.versions import DraftState, VersionDiff, VersionInfo
from persona_lab.ui.session import Visitor

MAX_UNCHANGED = 200
"""Length from which an unchanged part of a text is shortened, in characters."""


def version_line_html(agent: Agent, state: DraftState, visitor: Visitor) -> str:
    """Return the newest version and the number of changes since; "" for a demo."""
    if agent.owner_id is None:
        return ""
    if state.version is None:
        text = visitor.translate("versions.none")
    elif state.is_committed:
        text = visitor.translate("versions.unchanged", number=state.version.number)
    elif not state.changes:
        text = visitor.translate("versions.new_template", number=state.version.number)
    else:
        fields = visitor.translate("editor.between").join(field_labels(state.changes, visitor))
        count = len(state.changes)
        numbers = {"number": state.version.number, "count": count, "fields": fields}
        text = visitor.translate("versions.changed", **numbers)
    return f'<p class="version" role="status">{escape(text)}</p>'


def proposed_message(state: DraftState, visitor: Visitor) -> str:
    """Return a message for the next version, by the kinds of its changes."""
    if state.version is None:
        return visitor.translate("versions.first_message")
    groups: dict[str, list[FieldChange]] = {"added": [], "removed": [], "edited": []}
    for change in state.changes:
        kind = "added" if not change.before else "removed" if not change.after else "edited"
        groups[kind].append(change)
    return visitor.translate("versions.message_between").join(
        visitor.translate(
            f"versions.message_{kind}",
            fields=visitor.translate("editor.between").join(field_labels(changes, visitor)),
        )
        for kind, changes in groups.items()
        if changes
    )


def diff_html(diff: VersionDiff, visitor: Visitor) -> str:
    """Return the fields that differ and the difference of the prompts."""
    if not diff.changes and diff.prompts[0] == diff.prompts[1]:
        return f'<p class="quiet">{escape(visitor.translate("versions.same"))}</p>'
    fields = "".join(
        f"<dt>{escape(label)}</dt><dd>{_parts_html(change.parts())}</dd>"
        for label, change in zip(field_labels(diff.changes, visitor), diff.changes, strict=True)
    )
    prompt = _parts_html(diff_text(*diff.prompts))
    return (
        f'<dl class="diff">{fields}</dl>'
        f"<details open><summary>{escape(visitor.translate('versions.prompt'))}</summary>"
        f'<pre class="prompt diff">{prompt}</pre></details>'
    )


def history_html(
    versions: Sequence[VersionInfo], visitor: Visitor, zone: tzinfo | None = None
) -> str:
    """Return the list of versions, newest first."""
    if not versions:
        return f'<p class="empty">{escape(visitor.translate("versions.empty"))}</p>'
    rows = "".join(
        f"<li><b>v{version.number}</b> {escape(_message(version, visitor))}"
        f"<time>{version.created_at.astimezone(zone or UTC):%Y-%m-%d %H:%M}</time></li>"
        for version in versions
    )
    return f'<ol class="versions">{rows}</ol>'


def version_label(version: VersionInfo, visitor: Visitor) -> str:
    """Return the name of a version for a dropdown."""
    message = _message(version, visitor)
    return f"v{version.number} {message}".strip()


def field_labels(changes: Sequence[FieldChange], visitor: Visitor) -> list[str]:
    """Return the labels of the changed fields."""
    return [visitor.translate(f"field.{change.field}") for change in changes]


def _message(version: VersionInfo, visitor: Visitor) -> str:
    if version.restored_from is not None:
        return visitor.translate("versions.restored", number=version.restored_from)
    if not version.message and version.number == 1:
        return visitor.translate("versions.first_message")
    return version.message


def _parts_html(parts: Sequence[TextPart]) -> str:
    tags = {"added": "<ins>{}</ins>", "removed": "<del>{}</del>", "same": "{}"}
    last = len(parts) - 1
    return "".join(
        tags[part.kind].format(
            _shortened_html(part.text, is_first=not at, is_last=at == last)
            if part.kind == "same"
            else escape(part.text)
        )
        for at, part in enumerate(parts)
    )


def _shortened_html(text: str, *, is_first: bool, is_last: bool) -> str:
    """Return an unchanged text without its middle, or without the part far from a change."""
    if len(text) <= MAX_UNCHANGED:
        return escape(text)
    edge = MAX_UNCHANGED // 3
    start = "" if is_first else escape(text[:edge])
    end = "" if is_last else escape(text[-edge:])
    return f'{start}<span class="elided"> … </span>{end}'
