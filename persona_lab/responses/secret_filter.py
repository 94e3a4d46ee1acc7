"""Remove known secrets from a stream."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from persona_lab.redaction import (
    MASK,
    MIN_SECRET_LENGTH,
    PARTIAL_SECRET_SHARE,
    SECRET_CHARACTERS,
    redact,
)
from persona_lab.responses.changes import Change, Edit, compose, difference
from persona_lab.responses.filters import Filter


class RedactSecrets(Filter):
    """Masks secrets in a stream, as :func:`~persona_lab.redaction.redact` does in a text.

    The beginning of a secret at the end of the answer is masked if it is most of the secret.

    A run of characters without white space is held back until it ends, whether it may be a secret
    or not. So the timing of the output doesn't reveal parts of a secret to a user who guesses.

    Args:
        secrets: The secrets to mask. Short ones are ignored.
    """

    def __init__(self, secrets: Sequence[str]) -> None:
        self._secrets = [secret for secret in secrets if len(secret) >= MIN_SECRET_LENGTH]
        self._longest = max(map(len, self._secrets), default=0)
        self._held = ""

    def feed(self, text: str) -> str:
        """Read ``text``, and return the text that is finished."""
        if not self._secrets:
            return text
        text = redact(self._held + text, self._secrets)
        end = text[-self._longest :]
        begun = len(end) - len(end.rstrip(SECRET_CHARACTERS))
        self._held = text[len(text) - begun :]
        return text[: len(text) - begun]

    def finish(self) -> str:
        """End the input, and return the rest of the text."""
        held, self._held = self._held, ""
        for secret in self._secrets:
            begun = _overlap(held, secret)
            if begun >= PARTIAL_SECRET_SHARE * len(secret):
                return held[: len(held) - begun] + MASK
        return held

    def edits(self, before: str, after: str) -> list[Edit]:
        """Return the spans of the secrets.

        If the spans can't be found exactly, one span has all text from the first difference to
        the last.
        """
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
    """Yield each change with its start in the text before the changes."""
    shift = 0
    for change in changes:
        yield change, change.start + shift
        shift += len(change.was) - (change.end - change.start)


def _overlap(text: str, secret: str) -> int:
    """Return how many characters at the end of ``text`` are a beginning of ``secret``."""
    lengths = range(min(len(text), len(secret) - 1), 0, -1)
    same = (length for length in lengths if text[-length:].lower() == secret[:length].lower())
    return next(same, 0)
