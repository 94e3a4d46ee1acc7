"""What the response steps changed in an answer, and the model's text before it.

An answer is stored as it is shown. Beside it stand its changes: for each span of the shown text
that a step wrote, the model's own text in that place. :func:`restore` puts that text back, from the
last change to the first, and gives the raw answer. So nothing is stored twice.

Privacy: where a step removes something for safety (a secret, personal data, a listed word, a
refused or moderated answer), the removed text is neither kept nor sent. ``was`` is
:data:`~persona_lab.redaction.MASK` there, and so is the raw answer. What another step changed in
such a span or next to it is masked with it.

Raw text is what the model sent in a form that can be stored: line ends are ``\\n``, and control
characters and halves of surrogate pairs are left out. It ends where a step ended the answer.
The result doesn't depend on how the stream was cut.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from persona_lab.redaction import MASK

FALLBACK_STEP = "fallback"
"""The name under which the words of the error handler stand among the changes."""
MODERATION_STEP = "moderation"
"""The name of the review of a whole answer."""
_MAX_DIFF = 2000
"""Characters of a text that difflib compares; a longer difference is one span."""


class Edit(NamedTuple):
    """A step replaced ``before[start:end]`` with ``length`` characters."""

    start: int
    end: int
    length: int


@dataclass(frozen=True, slots=True)
class Change:
    """``step`` wrote ``content[start:end]``; the model's text there is ``was``.

    Offsets count characters (code points) of the finished content. ``masked``: the step removed
    something for safety, and ``was`` is a mask.
    """

    start: int
    end: int
    was: str
    step: str
    masked: bool = False

    def as_dict(self) -> dict[str, Any]:
        """The form that is stored and sent: start, end, was and step."""
        fields = asdict(self)
        del fields["masked"]
        return fields


def restore(content: str, changes: Iterable[Change | Mapping[str, Any]]) -> str:
    """The raw answer: ``content`` with the changes taken back.

    Args:
        content: The finished text.
        changes: Its changes in their order, as values or in the form that is stored.
    """
    parts: list[str] = []
    position = 0
    for change in changes:
        each = change.as_dict() if isinstance(change, Change) else change
        parts += [content[position : each["start"]], each["was"]]
        position = each["end"]
    return "".join([*parts, content[position:]])


def compose(
    changes: Sequence[Change],
    edits: Sequence[Edit],
    before: str,
    after: str,
    step: str,
    *,
    masks: bool = False,
) -> list[Change]:
    """The changes of ``after``, given those of ``before`` and what one more step did.

    Spans that overlap or touch become one.

    Args:
        changes: How ``before`` differs from the raw answer, in order.
        edits: How ``after`` differs from ``before``, in order.
        before: The text that the step read.
        after: The text that the step gave.
        step: The step's name.
        masks: Whether the step removes for safety: the text of its spans isn't kept.
    """
    found: list[Change] = []
    shift = 0
    one, two = list(reversed(changes)), list(reversed(edits))
    while one or two:
        start = min(each[-1].start for each in (one, two) if each)
        end = start
        old: list[Change] = []
        new: list[Edit] = []
        while (one and one[-1].start <= end) or (two and two[-1].start <= end):
            if one and one[-1].start <= end:
                old.append(one.pop())
                end = max(end, old[-1].end)
            else:
                new.append(two.pop())
                end = max(end, new[-1].end)
        was = restore(
            before[start:end],
            [Change(each.start - start, each.end - start, each.was, "") for each in old],
        )
        hidden = next((each.step for each in old if each.masked), "")
        masked = bool(hidden) or (masks and bool(new))
        if masks and new:
            was = MASK
        grown = sum(each.length - (each.end - each.start) for each in new)
        change = Change(
            start + shift,
            end + shift + grown,
            was,
            hidden or (step if new else old[-1].step),
            masked,
        )
        shift += grown
        if masked or after[change.start : change.end] != was:
            found.append(change)
    return found


def difference(before: str, after: str, *, masks: bool = False) -> list[Edit]:
    """How two texts differ, for a step that doesn't note its edits.

    The text between the common beginning and the common end is compared by difflib, or is one span
    where it is long. ``masks``: it is one span, so that no part of it is kept.
    """
    start, end, length = trim(0, before, after)
    if start == end and not length:
        return []
    if masks or max(end - start, length) > _MAX_DIFF:
        return [Edit(start, end, length)]
    matcher = difflib.SequenceMatcher(
        None, before[start:end], after[start : start + length], autojunk=False
    )
    return [
        Edit(start + first, start + last, to - begin)
        for kind, first, last, begin, to in matcher.get_opcodes()
        if kind != "equal"
    ]


def trim(start: int, before: str, after: str) -> Edit:
    """The edit that makes ``before``, which begins at ``start``, ``after``: without what both
    begin and end with."""
    shorter = min(len(before), len(after))
    head = next((at for at in range(shorter) if before[at] != after[at]), shorter)
    rest = shorter - head
    tail = next((at for at in range(rest) if before[-1 - at] != after[-1 - at]), rest)
    return Edit(start + head, start + len(before) - tail, len(after) - head - tail)


def stored_details(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """``metadata`` as a message's row has it: without the raw text, and with ``changes`` only
    where there are any."""
    return {
        key: value
        for key, value in metadata.items()
        if key != "raw" and (key != "changes" or value)
    }


def metadata_with_raw(content: str, details: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of a stored answer: its row's ``details``, with ``raw`` and ``changes``.

    The raw text of an answer that was stored before there were changes is its content.
    """
    changes = list(details.get("changes", ()))
    return {**details, "raw": restore(content, changes), "changes": changes}
