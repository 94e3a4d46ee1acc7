"""Record the changes of the response steps, and restore the model's raw text.

An answer is stored as it is shown, with its changes. A change has a span of the shown text that a
step wrote, and the model's text in its place. :func:`restore` puts the model's text back and
returns the raw answer. So no text is stored twice.

Privacy: a step can remove text for safety (a secret, personal data, a listed word, a refused or
moderated answer). The removed text is neither stored nor sent. ``was`` and the raw answer have
:data:`~persona_lab.redaction.MASK` in its place. The mask also covers adjacent and overlapping
changes of other steps.

Raw text is the model's text in a form that can be stored: line ends are LF, without control
characters and lone surrogates. It ends where a step ended the answer. The result doesn't depend on
how a provider splits its stream.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from persona_lab.redaction import MASK

FALLBACK_STEP = "fallback"
"""The step name of a change that has the text of the error handler."""
MODERATION_STEP = "moderation"
"""The step name of a change that the review of a whole answer made."""
_MAX_DIFF = 2000
"""Characters that difflib compares, at most. A longer difference becomes one span."""


class Edit(NamedTuple):
    """A replacement of ``before[start:end]`` by ``length`` characters."""

    start: int
    end: int
    length: int


@dataclass(frozen=True, slots=True)
class Change:
    """A span of the finished text that a step wrote.

    Attributes:
        start: The start of the span, in characters (code points) of the finished content.
        end: The end of the span.
        was: The model's text in place of the span.
        step: The name of the step.
        masked: Whether the step removed text for safety. ``was`` is a mask then.
    """

    start: int
    end: int
    was: str
    step: str
    masked: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return the change as it is stored and sent: start, end, was and step."""
        fields = asdict(self)
        del fields["masked"]
        return fields


def restore(content: str, changes: Iterable[Change | Mapping[str, Any]]) -> str:
    """Return the raw answer: ``content`` with its changes undone.

    Args:
        content: The finished text.
        changes: Its changes in order, as values or in the stored form.
    """
    parts: list[str] = []
    position = 0
    for change in changes:
        each = change.as_dict() if isinstance(change, Change) else change
        parts += [content[position : each["start"]], each["was"]]
        position = each["end"]
    return "".join([*parts, content[position:]])


class ChangedSentence(NamedTuple):
    """A sentence of the finished text that differs from the model's.

    Attributes:
        start: The start of the sentence in the finished text.
        end: Its end.
        was: The model's text in its place.
    """

    start: int
    end: int
    was: str


def changed_sentences(content: str, changes: Iterable[Mapping[str, Any]]) -> list[ChangedSentence]:
    """Return the sentences of ``content`` that a step reworded, in order.

    Changes of white space don't count, nor does text that was added to an answer: the text of the
    error handler, and the end of a code block.

    Args:
        content: The finished text.
        changes: Its changes in order, in the stored form.
    """
    found: list[ChangedSentence] = []
    for change in changes:
        if change["step"] in _ADDING_STEPS:
            continue
        start, end = change["start"], change["end"]
        first = max(content.rfind(mark, 0, start) for mark in _SENTENCE_ENDS) + 1
        # A change at the end of a sentence is part of it, also if it wrote the mark.
        closed = end > start and content[end - 1] in _SENTENCE_ENDS
        ends = [at for mark in _SENTENCE_ENDS if (at := content.find(mark, end)) >= 0]
        last = end if closed else min(ends, default=len(content) - 1) + 1
        while last < len(content) and content[last] in _SENTENCE_ENDS.strip("\n"):
            last += 1
        text = [content[first:start], change["was"], content[end:last]]
        if found and first < found[-1].end:
            # Two changes of one sentence: the first one's text has the content of the second.
            before = found.pop()
            text = [before.was[: len(before.was) - (before.end - start)], *text[1:]]
            first = before.start
        found.append(ChangedSentence(first, last, "".join(text)))
    return [each for each in found if each.was.strip() != content[each.start : each.end].strip()]


_ADDING_STEPS = (FALLBACK_STEP, "close_fence")
_SENTENCE_ENDS = "。！？!?…\n"


def compose(
    changes: Sequence[Change],
    edits: Sequence[Edit],
    before: str,
    after: str,
    step: str,
    *,
    masks: bool = False,
) -> list[Change]:
    """Combine the changes of ``before`` with the edits of one more step.

    Overlapping and adjacent spans become one.

    Args:
        changes: How ``before`` differs from the raw answer, in order.
        edits: How ``after`` differs from ``before``, in order.
        before: The text that the step read.
        after: The text that the step returned.
        step: The name of the step.
        masks: Whether the step removes text for safety. The text of its spans isn't kept.

    Returns:
        The changes of ``after``, in order.
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
    """Return the edits between two texts, for a step that doesn't record its edits.

    difflib compares the text between the common beginning and the common end. A long text is one
    span instead.

    Args:
        before: The text that the step read.
        after: The text that the step returned.
        masks: Return one span, so that no part of the text inside is kept.
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
    """Return the smallest single edit that turns ``before`` into ``after``.

    Args:
        start: The offset of ``before`` in the whole text.
        before: The text that is replaced.
        after: The new text.
    """
    shorter = min(len(before), len(after))
    head = next((at for at in range(shorter) if before[at] != after[at]), shorter)
    rest = shorter - head
    tail = next((at for at in range(rest) if before[-1 - at] != after[-1 - at]), rest)
    return Edit(start + head, start + len(before) - tail, len(after) - head - tail)


def stored_details(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of ``metadata`` that a message's row stores.

    It has no raw text, and no ``changes`` if the list is empty.
    """
    return {
        key: value
        for key, value in metadata.items()
        if key != "raw" and (key != "changes" or value)
    }


def metadata_with_raw(content: str, details: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of a stored answer: its row's ``details`` with ``raw`` and ``changes``.

    Old rows have no changes. Their raw text is their content.
    """
    changes = list(details.get("changes", ()))
    return {**details, "raw": restore(content, changes), "changes": changes}
