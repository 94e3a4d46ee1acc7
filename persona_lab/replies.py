"""ResponseProcessor: a stream of raw text in, a stream of finished text out.

A step opens a filter for each answer. Filters work by the character (or hold back what they
can't judge yet), so that the final text never depends on how a provider cut its stream. What a
filter has given out is never taken back.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from persona_lab.letters import is_visible, storable
from persona_lab.models import Agent

_MARKED = tuple("*_-+#【[「『")
USER_LABELS = ("ユーザー", "ユーザ", "あなた", "User", "Human", "You")
"""Names under which models write turns for the user."""

_BEFORE_NAMES = ("", "-", "*", "+", *("#" * level for level in range(1, 7)))
_AROUND_NAMES = (
    ("", ""), ("*", "*"), ("**", "**"), ("_", "_"), ("__", "__"),
    ("【", "】"), ("[", "]"), ("「", "」"), ("『", "』"),
)  # fmt: skip
_FRAMES: dict[str, tuple[str, ...]] = {}
for _before, (_left, _right) in itertools.product(_BEFORE_NAMES, _AROUND_NAMES):
    _head = _before + _left  # "*" begins an item and emphasis
    _FRAMES[_head] = (*_FRAMES.get(_head, ()), f"{_right}:", f":{_right}")
"""What stands before the name of who speaks → what may stand after it, as :func:`_key` has it:
``名前：``, ``**Name**:``, ``### Name:`` …"""
_LED = {"【": ("】", *_FRAMES["【"])}
_HEADED = {"###": ("\n", *_FRAMES["###"]), "<|": ("|>",), "<|im_start|>": ("\n",)}
"""Where no colon is needed: before the persona's own words, and for who speaks next."""


@dataclass(frozen=True, slots=True)
class Processed:
    """``applied`` names the steps that changed the text, in their order."""

    content: str
    applied: tuple[str, ...]


class Filter:
    """One step at work on one answer. This one lets everything pass."""

    ended = False
    """True once nothing more will come, whatever is fed."""
    blocked = ""
    """Why the answer was broken off for safety; "" while it wasn't."""

    @property
    def applied(self) -> tuple[str, ...]:
        """What it did, where the step's name alone doesn't say it."""
        return ()

    def feed(self, text: str) -> str:
        """Finished text so far unseen; "" while it can't be judged yet."""
        return text

    def finish(self) -> str:
        """What is left at the end."""
        return ""


@dataclass(frozen=True, slots=True)
class Step:
    """``name`` is what the metadata of a reply calls it; ``data``: it is for answers that are
    data (JSON), too, and not for words alone."""

    name: str
    open: Callable[[Agent], Filter]
    data: bool = False


class ReplyStream:
    """One answer on its way through all steps."""

    def __init__(self, steps: Sequence[Step], agent: Agent) -> None:
        self._names = [step.name for step in steps]
        self._filters = [step.open(agent) for step in steps]
        self._seen: list[list[str]] = [[] for _ in steps]
        self._given: list[list[str]] = [[] for _ in steps]
        self._returned = False
        """Whether the text so far ended in \\r: a \\n after it belongs to the same line end."""

    @property
    def ended(self) -> bool:
        """True when no further text can change the answer: the model may stop."""
        return any(step.ended for step in self._filters)

    @property
    def blocked(self) -> str:
        """Why the answer was broken off for safety; "" where it wasn't."""
        return next((step.blocked for step in self._filters if step.blocked), "")

    def feed(self, text: str) -> str:
        """New finished text, to be shown after what came before.

        What could not be stored goes first: no step may judge what is read otherwise later.
        """
        if text:
            half = self._returned and text[0] == "\n"
            self._returned = text[-1] == "\r"
            text = storable(text[half:])
        for number, step in enumerate(self._filters):
            self._seen[number].append(text)
            text = step.feed(text)
            self._given[number].append(text)
        return text

    def finish(self) -> tuple[str, tuple[str, ...]]:
        """The last finished text, and the names of the steps that changed something."""
        text = ""
        for number, step in enumerate(self._filters):
            self._seen[number].append(text)
            text = step.feed(text) + step.finish()
            self._given[number].append(text)
        applied: list[str] = []
        steps = zip(self._names, self._filters, self._seen, self._given, strict=True)
        for name, step, seen, given in steps:
            if "".join(seen) != "".join(given):
                applied += step.applied or (name,)
        return text, tuple(applied)


class ResponseProcessor:
    """Runs ``steps`` over answers, in their order. Without steps given, those that need neither
    words nor rules from a file."""

    def __init__(self, steps: Sequence[Step] | None = None) -> None:
        self.steps = tuple((*STEPS, *LAST_STEPS) if steps is None else steps)

    def open_stream(
        self, agent: Agent, secrets: Sequence[str] = (), *, data: bool = False
    ) -> ReplyStream:
        """``secrets`` are hidden before any other step could cut them in two. ``data``: what is
        told is no words but JSON, say."""
        hiding = Step("hidden_secrets", lambda _: HiddenSecrets(secrets))
        steps = [step for step in self.steps if step.data or not data]
        return ReplyStream([hiding, *steps], agent)

    def process(self, raw: str, agent: Agent) -> Processed:
        """A whole raw answer, finished: the same text as through a stream."""
        stream = self.open_stream(agent)
        text = stream.feed(raw)
        rest, applied = stream.finish()
        return Processed(text + rest, applied)


# ── the steps ─────────────────────────────────────────────────────────────────────────────


HIDDEN = "••••••"
MOST_OF_IT = 0.75
"""Share of a secret that is hidden like all of it, at the end of an answer."""
_ROW = "".join(map(chr, range(ord("!"), ord("~") + 1)))
"""What secrets are written with."""
SECRET_LENGTH = 8
"""Characters that a secret has at least: compatible servers are given "none" or "ollama" for a
key, which are words that an answer may hold."""


def hide(text: str, secrets: Sequence[str]) -> str:
    """``text`` with dots in the place of ``secrets``, in capitals or not."""
    for secret in secrets:
        if len(secret) >= SECRET_LENGTH:
            text = re.sub(re.escape(secret), HIDDEN, text, flags=re.IGNORECASE)
    return text


_KEYS = (
    r"(?:sk|pk|rk)(?:-|_(?:live|test)_)[A-Za-z0-9_-]{12,}",  # OpenAI, Anthropic, Stripe …
    r"(?:AKIA|ASIA)[A-Z0-9]{16}",  # AWS
    r"gh[pousr]_[A-Za-z0-9]{20,}",  # GitHub
    r"github_pat_[A-Za-z0-9_]{22,}",
    r"glpat-[A-Za-z0-9_-]{20,}",  # GitLab
    r"xox(?:o-(?=\d)|[abcdeprs]-)[A-Za-z0-9-]{10,}",  # Slack
    r"xapp-\d-[A-Za-z0-9-]{10,}",
    r"AIza[A-Za-z0-9_-]{30,}",  # Google
    r"ya29\.[A-Za-z0-9_-]{20,}",
    r"GOCSPX-[A-Za-z0-9_-]{20,}",
    r"hf_[A-Za-z0-9]{16,}",  # Hugging Face
    r"gsk_[A-Za-z0-9]{16,}",  # Groq
    r"xai-[A-Za-z0-9]{16,}",
    r"pplx-[A-Za-z0-9]{16,}",
    r"nvapi-[A-Za-z0-9_-]{20,}",
    r"r8_[A-Za-z0-9]{20,}",  # Replicate
    r"hv[sbr]\.[A-Za-z0-9_-]{12,}",  # Vault
    r"npm_[A-Za-z0-9]{20,}",
    r"pypi-[A-Za-z0-9_-]{20,}",
    r"dckr_pat_[A-Za-z0-9_-]{20,}",
    r"SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}",  # SendGrid
    r"whsec_[A-Za-z0-9+/=]{20,}",
    r"pl_[A-Za-z0-9_-]{40,}",  # ours
    r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?",  # JSON Web Tokens
)
"""The look of keys that nobody told us of. None has a blank in it, nor begins within a word."""


def keys(body: str = ".") -> re.Pattern[str]:
    """Finds keys by their look. ``body`` is a character that may stand in a private key, which is
    the only one of several lines; without its end it goes on as far as there are any."""
    edge = "-----{} [A-Z0-9 ]*PRIVATE KEY-----".format
    block = f"{edge('BEGIN')}(?:(?:{body})*?{edge('END')}|(?:{body})*)"
    word = rf"(?:(?<![A-Za-z0-9_-])|(?<=\\[nrt]))(?:{'|'.join(_KEYS)})"  # an escape ends a word
    return re.compile(f"{block}|{word}", re.DOTALL | re.ASCII)


class HiddenSecrets(Filter):
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
        text = hide(self._held + text, self._secrets)
        end = text[-self._longest :]
        begun = len(end) - len(end.rstrip(_ROW))
        self._held = text[len(text) - begun :]
        return text[: len(text) - begun]

    def finish(self) -> str:
        held, self._held = self._held, ""
        for secret in self._secrets:
            begun = _overlap(held, secret)
            if begun >= MOST_OF_IT * len(secret):
                return held[: len(held) - begun] + HIDDEN
        return held


def _overlap(text: str, secret: str) -> int:
    """How many characters at the end of ``text`` begin ``secret``."""
    lengths = range(min(len(text), len(secret) - 1), 0, -1)
    same = (length for length in lengths if text[-length:].lower() == secret[:length].lower())
    return next(same, 0)


class Fences:
    """Knows whether the line at hand stands inside a fenced block of code (CommonMark).

    A block in a list belongs to its item: it is indented as that is, and ends with it. Quotations
    (``>``) end by themselves, what is fenced in them with them: they are lines as any others.
    Not followed: a line that goes on with an item's words without being indented.
    """

    _FENCE = re.compile(r"(`{3,}|~{3,})(.*)")
    _ITEM = re.compile(r"(?:[-+*]|\d{1,9}[.)])(?= |$)")
    _INDENTED = 4
    """Columns from which on a line is code without a fence, or goes on with what was before."""

    def __init__(self) -> None:
        self.open = ""
        """The line that would close the block; "" outside."""
        self._line = ""
        self._items: list[int] = []
        """At which columns the text of the list's items begins, the outermost first."""

    def feed(self, text: str) -> None:
        if "\n" not in text:
            self._line += text
            return
        *lines, rest = text.split("\n")
        for line in lines:
            self._line += line
            self.end_line()
        self._line = rest

    def end_line(self) -> None:
        line, self._line = self._line.rstrip("\r").expandtabs(4), ""
        text = line.lstrip(" ")
        column = len(line) - len(text)
        if not text:
            return
        while self._items and column < self._items[-1]:
            self._items.pop()
            if len(self.open) - len(self.open.lstrip(" ")) > self._start:
                self.open = ""
        if self.open:
            if column < self._start + self._INDENTED and self._closes(text):
                self.open = ""
            return
        while column < self._start + self._INDENTED and (item := self._ITEM.match(text)):
            text = text[item.end() :]
            blanks = len(text) - len(text.lstrip(" "))
            self._items.append(column + item.end() + (blanks if blanks < 5 and text.strip() else 1))
            column += item.end() + blanks
            text = text.lstrip(" ")
        fence = self._FENCE.match(text)
        # Backticks after the opening ones make it code within a line.
        if (
            fence is not None
            and column < self._start + self._INDENTED
            and (fence[1][0] == "~" or "`" not in fence[2])
        ):
            self.open = " " * self._start + fence[1]

    @property
    def _start(self) -> int:
        """The column at which the innermost item's text begins."""
        return self._items[-1] if self._items else 0

    def _closes(self, text: str) -> bool:
        """Whether it is marks of the same kind alone, as many as the opening ones at least."""
        fence = self._FENCE.match(text)
        return (
            fence is not None
            and fence[1].startswith(self.open.lstrip(" "))
            and not fence[2].strip(" ")
        )


@lru_cache(maxsize=4096)
def _key(character: str) -> str:
    """How it is compared in labels; "" for blanks and what shows nothing. A line end stays."""
    if character == "\n" or is_visible(character):
        return unicodedata.normalize("NFKC", character).casefold()
    return ""


class _Labels:
    """Tells whether a text is one of ``names`` in a frame, or the beginning of that: both as
    :func:`_key` has them. ``frames`` are those beside :data:`_FRAMES`."""

    def __init__(self, names: Sequence[str], frames: Mapping[str, Sequence[str]]) -> None:
        self._names = [key for name in names if (key := "".join(map(_key, name)))]
        self._frames = {**_FRAMES, **frames} if self._names else {}
        self._firsts = {text[0] for text in (*self._frames, *self._names) if text}

    def is_one(self, text: str) -> bool:
        return any(rest in tails for rest, tails in self._after_names(text))

    def may_become_one(self, text: str) -> bool:
        if not text or text[0] not in self._firsts:
            return not text and bool(self._names)
        return (
            any(head.startswith(text) for head in self._frames)
            or any(name.startswith(rest) for rest, _ in self._after_heads(text)
                   for name in self._names)
            or any(tail.startswith(rest) for rest, tails in self._after_names(text)
                   for tail in tails)
        )  # fmt: skip

    def _after_heads(self, text: str) -> Iterator[tuple[str, Sequence[str]]]:
        for head, tails in self._frames.items():
            if text.startswith(head):
                yield text[len(head) :], tails

    def _after_names(self, text: str) -> Iterator[tuple[str, Sequence[str]]]:
        for rest, tails in self._after_heads(text):
            for name in self._names:
                if rest.startswith(name):
                    yield rest[len(name) :], tails


class LeadingName(Filter):
    """Takes away the persona's own name before its words, however often (``さくら：はい``)."""

    def __init__(self, agent: Agent) -> None:
        self._labels = _Labels([agent.name], {**_HEADED, **_LED})
        self._held = ""
        self._key = ""
        self._labelled = False
        self._through = False

    def feed(self, text: str) -> str:
        if self._through:
            return text
        for position, character in enumerate(text):
            if self._held and not _key(character):
                self._held += character
                continue
            grown = self._grown(character)
            if not self._labels.may_become_one(grown) and self._labels.is_one(self._key):
                self._held, self._key, self._labelled = "", "", True
                grown = self._grown(character)
            if not self._labels.may_become_one(grown):
                self._through = True
                return self._release() + text[position:]
            self._held += character
            self._key = grown
        return ""

    def finish(self) -> str:
        return "" if self._labels.is_one(self._key) else self._release()

    def _grown(self, character: str) -> str:
        return (self._key + _key(character)).lstrip("\n")

    def _release(self) -> str:
        held, self._held, self._key = self._held, "", ""
        return held.lstrip() if self._labelled else held


class SpokenForUser(Filter):
    """Ends the answer where a line begins a further turn, the user's or the persona's own.

    Models that continue a transcript write on for both sides. Code is left alone, and so is a first
    line whose label is set off: it explains what a user is, say.
    """

    def __init__(self, agent: Agent) -> None:
        self._labels = _Labels([*USER_LABELS, agent.name], _HEADED)
        self._fences = Fences()
        self._held = ""
        self._key = ""
        self._at_line_start = True
        self._begun = False

    def feed(self, text: str) -> str:
        out = ""
        for character in text:
            if self.ended:
                break
            if not self._at_line_start:
                out += self._pass(character)
                continue
            self._held += character
            key = _key(character)
            self._key += key
            if not key and not self._fences.open:
                continue
            if self._fences.open or (self._key[:1] in _MARKED and not self._begun):
                out += self._release()
            elif self._labels.is_one(self._key):
                self._held, self.ended = "", True
            elif character == "\n" or not self._labels.may_become_one(self._key):
                out += self._release()
        return out

    def finish(self) -> str:
        if self._labels.is_one(self._key + "\n"):  # its line ends with the answer
            self._held = ""
        held, self._held = self._held, ""
        return held

    def _release(self) -> str:
        held, self._held, self._key = self._held, "", ""
        return self._pass(held)

    def _pass(self, text: str) -> str:
        self._begun |= bool(text.strip())
        self._fences.feed(text)
        self._at_line_start = text.endswith("\n")
        return text


class Strip(Filter):
    """Takes away white space at both ends."""

    def __init__(self, agent: Agent) -> None:
        self._begun = False
        self._held = ""

    def feed(self, text: str) -> str:
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        text = self._held + text
        kept = text.rstrip()
        self._held = text[len(kept) :]
        return kept


class BlankLines(Filter):
    """Leaves at most one blank line between paragraphs. Code keeps its own."""

    def __init__(self, agent: Agent) -> None:
        self._fences = Fences()
        self._held = ""
        """White space from the first line end on, outside code."""

    def feed(self, text: str) -> str:
        out = ""
        for character in text:
            if self._fences.open:
                self._fences.feed(character)
                if self._fences.open:
                    out += character
                else:  # a closing fence's line end is the first of those to be counted
                    self._held = character
            elif character == "\n" or (self._held and character.isspace()):
                if not self._held:
                    self._fences.feed("\n")
                    if self._fences.open:  # this very line end opened the block
                        out += character
                        continue
                self._held += character
            else:
                out += self.finish() + character
                self._fences.feed(character)
        return out

    def finish(self) -> str:
        held, self._held = self._held, ""
        lines = held.split("\n")
        out = "\n" * min(len(lines) - 1, 2) + lines[-1]
        self._fences.feed(lines[-1])
        return out


class CloseFence(Filter):
    """Closes a block of code that the answer left open."""

    def __init__(self, agent: Agent) -> None:
        self._fences = Fences()
        self._last = ""

    def feed(self, text: str) -> str:
        self._fences.feed(text)
        self._last = text[-1:] or self._last
        return text

    def finish(self) -> str:
        self._fences.end_line()
        if not self._fences.open:
            return ""
        return ("" if self._last == "\n" else "\n") + self._fences.open


STEPS = (
    Step("leading_name", LeadingName),
    Step("spoken_for_user", SpokenForUser),
    Step("strip", Strip, data=True),
    Step("blank_lines", BlankLines),
)
"""What every answer goes through first."""
LAST_STEPS = (Step("close_fence", CloseFence),)
"""What closes every answer, after tone and safety."""
