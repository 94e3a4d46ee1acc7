"""Remove known secrets from a stream."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from persona_lab.redaction import _ROW, MASK, MOST_OF_IT, SECRET_LENGTH, redact
from persona_lab.responses.changes import Change, Edit, compose, difference
from persona_lab.responses.filters import Filter


class RedactSecrets(Filter):
    """:func:`hide` for a stream. Most of a secret that is broken off at the end is hidden as well.

    A row of letters without a blank is held back until it ends, whatever the secrets are: what is
    held, and what becomes of a few letters that begin a secret, must not tell who tries letters.
    """

    def __init__(self, secrets: Sequence[str]) -> None:
        self._secrets = [secret for secret in secrets if len(secret) >= SECRET_LENGTH]
        self._longest = max(map(len, self._secrets), default=0)
        self._held = ""

    def feed(self, text: str) -> str:
        if not self._secrets:
            return text
        text = redact(self._held + text, self._secrets)
        end = text[-self._longest :]
        begun = len(end) - len(end.rstrip(_ROW))
        self._held = text[len(text) - begun :]
        return text[: len(text) - begun]

    def finish(self) -> str:
        held, self._held = self._held, ""
        for secret in self._secrets:
            begun = _overlap(held, secret)
            if begun >= MOST_OF_IT * len(secret):
                return held[: len(held) - begun] + MASK
        return held

    def edits(self, before: str, after: str) -> list[Edit]:
        """The places of the secrets. Where they can't be told exactly, all from the first
        difference to the last."""
        text, changes = before, list[Change]()
        for secret in self._secrets:
            found = [
                Edit(*match.span(), len(MASK))
                for match in re.finditer(re.escape(secret), text, re.IGNORECASE)
            ]
            if found:
                masked = redact(text, [secret])
                changes = compose(changes, found, text, masked, "")
                text = masked
        if text != after:
            tail = difference(text, after, masks=True)
            if len(text) - tail[0].end or tail[0].length != len(MASK):
                return difference(before, after, masks=True)
            changes = compose(changes, tail, text, after, "")
        return [
            Edit(start, start + len(change.was), change.end - change.start)
            for change, start in _starts(changes)
        ]


def _starts(changes: Sequence[Change]) -> Iterator[tuple[Change, int]]:
    """Each change with its place in the text before."""
    shift = 0
    for change in changes:
        yield change, change.start + shift
        shift += len(change.was) - (change.end - change.start)


def _overlap(text: str, secret: str) -> int:
    """How many characters at the end of ``text`` begin ``secret``."""
    lengths = range(min(len(text), len(secret) - 1), 0, -1)
    same = (length for length in lengths if text[-length:].lower() == secret[:length].lower())
    return next(same, 0)
