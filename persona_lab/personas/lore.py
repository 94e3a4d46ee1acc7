"""Lorebooks: texts that enter the prompt when a key stands in the conversation.

:func:`scan` decides which entries are used, and says for each at which word it fired or why it
didn't. A key fires as a whole word only. Words of Latin and similar scripts end at other
characters; Japanese words end where the tokenizer ends them, so 京都 doesn't fire in 東京都. Width
(NFKC) and the two kana scripts make no difference; case makes one only in entries that ask for it.

What isn't run: regular expressions, since one from a stranger can take hours. Such entries are
reported, as are all others. Conditions by chance or by the number of turns count as met.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Literal

from persona_lab.japanese.morphology import words_of

MAX_SCANNED = 100_000
"""Characters of the conversation that are looked at, the newest ones."""
MAX_ROUNDS = 5
"""Rounds in which used entries may make further entries fire."""
MAX_KEY_LENGTH = 200
MAX_KEYS = 200

Logic = Literal["any", "not_all", "not_any", "all"]
_LOGIC: tuple[Logic, ...] = ("any", "not_all", "not_any", "all")
"""SillyTavern's numbers for what secondary keys must do."""
_REGEX = re.compile(r"/.+/[a-z]*", re.DOTALL)
_REGEX_MARKS = re.compile(r"[\\^$*+?{}\[\]|()]")
_DECORATOR = re.compile(r"(@{2,3})([a-z_]+)(?:[ \t]+(.*))?")
_CLUSTER = re.compile("(?s).[\u0300-\u036f\u3099\u309a\uff9e\uff9f]{0,4}")
_TO_HIRAGANA = {code: code - 0x60 for code in [*range(0x30A1, 0x30F7), 0x30FD, 0x30FE]}
_JAPANESE = re.compile(
    "[\u3005-\u3007\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
_HIRAGANA_NAME = re.compile("[\u3041-\u309f\u30fc]{3,}")
_AFTER_NAME = re.compile(
    "(?:さん|ちゃん|くん|さま|たん|せんぱい|は|が|を|に|と|も|の|へ|で|や|って|だ|です)?(?![\u3041-\u309f\u30fc])"
    "|(?:さん|ちゃん|くん|さま|は|が|を|に|も|の)"
)


@dataclass(frozen=True, slots=True)
class LoreEntry:
    """One entry of a lorebook.

    Attributes:
        number: Its position in the book, from 0.
        name: Its title, for people.
        keys: Any of them makes it fire.
        secondary_keys: Further keys, if it is ``selective``; ``logic`` says how they count.
        content: The text for the prompt.
        order: The place among used entries: lower stands earlier.
        rank: What is left out first when the budget is short: the lowest.
        position: Whether it stands before or after the persona.
        depth: The number of newest messages that are looked at; None for the book's.
        needed_keys: At least one must be there too.
        excluded_keys: None may be there.
        whole_words: Whether a key must be a whole word.
        forced: Whether it always or never fires, whatever the keys; None for neither.
        by_lore: Whether the text of other entries can make it fire.
        wakes_others: Whether its own text can make others fire.
    """

    number: int
    name: str = ""
    keys: tuple[str, ...] = ()
    secondary_keys: tuple[str, ...] = ()
    content: str = ""
    enabled: bool = True
    constant: bool = False
    selective: bool = False
    logic: Logic = "any"
    case_sensitive: bool = False
    use_regex: bool = False
    order: float = 100
    rank: float = 100
    position: Literal["before_char", "after_char"] = "before_char"
    depth: int | None = None
    needed_keys: tuple[str, ...] = ()
    excluded_keys: tuple[str, ...] = ()
    whole_words: bool = True
    forced: bool | None = None
    by_lore: bool = True
    wakes_others: bool = True


@dataclass(frozen=True, slots=True)
class Lorebook:
    """The entries of a persona's lorebook, and how they are searched for."""

    entries: tuple[LoreEntry, ...] = ()
    name: str = ""
    depth: int | None = None
    budget: int | None = None
    recursive: bool = False


@dataclass(frozen=True, slots=True)
class Match:
    """Where a key stands.

    Attributes:
        key: The key.
        word: The text at that place, as it was written.
        message: The position of the message, from 0; None in the text of another entry.
        start: The position in the message.
        end: The position after it.
    """

    key: str
    word: str
    message: int | None
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What happened with an entry, and why.

    Attributes:
        entry: The entry.
        fired: Whether it is used.
        key: The key of the reason's text in ``templates/cards.yaml``.
        match: Where its key stands, or the nearest thing to it: the longer word around a key, or
            the key in another case.
        details: The values of the text's placeholders.
        tokens: The tokens of a used entry.
    """

    entry: LoreEntry
    fired: bool
    key: str
    match: Match | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Scan:
    """The result for a conversation.

    Attributes:
        outcomes: One for each entry, in the order of the book.
        used: The entries for the prompt, in their order.
        tokens: Their tokens together.
    """

    outcomes: tuple[Outcome, ...]
    used: tuple[LoreEntry, ...]
    tokens: int


# ── reading ───────────────────────────────────────────────────────────────────────────────


def read_lorebook(book: Mapping[str, Any] | None) -> Lorebook:
    """Return the lorebook of a card's ``character_book``, as ``read_card`` repaired it."""
    if not book:
        return Lorebook()
    entries = tuple(_entry(number, entry) for number, entry in enumerate(book.get("entries", ())))
    budget = book.get("token_budget")
    return Lorebook(
        entries,
        str(book.get("name", "")),
        _whole(book.get("scan_depth")),
        _whole(budget) or None,
        book.get("recursive_scanning") is True,
    )


def _whole(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return max(0, int(min(value, 1e9)))


def _entry(number: int, entry: Mapping[str, Any]) -> LoreEntry:
    extensions = entry.get("extensions", {})
    decorators, content = _decorators(entry.get("content", ""))
    order = entry.get("insertion_order", 100)
    depth = decorators.get("scan_depth", extensions.get("scan_depth"))
    logic = extensions.get("selectiveLogic")
    case = entry.get("case_sensitive", extensions.get("case_sensitive"))
    return LoreEntry(
        number,
        name=entry.get("name") or entry.get("comment") or "",
        keys=tuple(entry.get("keys", ())[:MAX_KEYS]),
        secondary_keys=tuple(entry.get("secondary_keys", ())[:MAX_KEYS]),
        content=content,
        enabled=entry.get("enabled") is not False,
        constant=entry.get("constant") is True,
        selective=entry.get("selective") is True,
        logic=_LOGIC[logic] if logic in range(4) and isinstance(logic, int) else "any",
        case_sensitive=case is True,
        use_regex=entry.get("use_regex") is True,
        order=order,
        rank=entry.get("priority", order),
        position="after_char" if entry.get("position") == "after_char" else "before_char",
        depth=int(depth) if str(depth).isascii() and str(depth).isdigit() else None,
        needed_keys=_listed(decorators.get("additional_keys")),
        excluded_keys=_listed(decorators.get("exclude_keys")),
        whole_words=extensions.get("match_whole_words") is not False,
        forced=_forced(decorators),
        by_lore=extensions.get("exclude_recursion") is not True,
        wakes_others=extensions.get("prevent_recursion") is not True,
    )


def _forced(decorators: Mapping[str, str]) -> bool | None:
    return True if "activate" in decorators else False if "dont_activate" in decorators else None


def _listed(value: str | None) -> tuple[str, ...]:
    return tuple(key.strip() for key in (value or "").split(",") if key.strip())


_KNOWN_DECORATORS = {"activate", "dont_activate", "scan_depth", "additional_keys", "exclude_keys"}


def _decorators(content: str) -> tuple[dict[str, str], str]:
    """Return the decorators at the beginning of a content, and the text after them.

    A line with ``@@@`` is used if the line above it is unknown.
    """
    found: dict[str, str] = {}
    lines = content.split("\n")
    count = 0
    understood = False
    for line in lines:
        match = _DECORATOR.fullmatch(line.strip())
        if match is None:
            break
        count += 1
        if match[1] == "@@@" and understood:
            continue
        understood = match[2] in _KNOWN_DECORATORS
        if understood:
            found.setdefault(match[2], match[3] or "")
    return found, "\n".join(lines[count:]).strip("\n") if count else content


# ── text ──────────────────────────────────────────────────────────────────────────────────


@lru_cache(maxsize=20_000)
def _fold(cluster: str) -> tuple[str, str, str]:
    """Return a character in NFKC, the same in hiragana, and that without case."""
    if unicodedata.category(cluster[0]) == "Cf":
        return "", "", ""
    normal = unicodedata.normalize("NFKC", cluster)
    kana = " " if normal.isspace() else normal.translate(_TO_HIRAGANA)
    return normal, kana, kana.casefold()


class _Layer:
    """One form of a text, with the place of each character in the original."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.places: list[int] = []

    def add(self, part: str, place: int) -> None:
        self.parts.append(part)
        self.places.extend([place] * len(part))

    @cached_property
    def text(self) -> str:
        return "".join(self.parts)


class _Text:
    """A message in the forms in which keys are looked for."""

    def __init__(self, original: str, message: int | None) -> None:
        self.original = original
        self.message = message
        self._normal, self._cased, self._folded = _Layer(), _Layer(), _Layer()
        for match in _CLUSTER.finditer(original):
            normal, cased, folded = _fold(match[0])
            self._normal.add(normal, match.start())
            if cased == " " and self._cased.parts[-1:] == [" "]:
                continue
            self._cased.add(cased, match.start())
            self._folded.add(folded, match.start())

    def layer(self, case_sensitive: bool) -> _Layer:
        return self._cased if case_sensitive else self._folded

    @cached_property
    def borders(self) -> list[int]:
        """The places in the original where a token begins or ends, sorted."""
        places = [*self._normal.places, len(self.original)]
        at, found = 0, [0]
        for word in words_of(self._normal.text):
            at += len(word.surface)
            found.append(places[min(at, len(places) - 1)])
        return found

    def find(
        self, key: str, *, case_sensitive: bool, whole: bool
    ) -> tuple[Match | None, Match | None]:
        """Return where ``key`` stands as a word, and where it stands inside a longer word."""
        layer = self.layer(case_sensitive)
        needle = _folded_key(key, case_sensitive)
        inside: Match | None = None
        at = layer.text.find(needle) if needle else -1
        while at >= 0:
            end = at + len(needle)
            start, stop = layer.places[at], self._place(layer, end)
            if not whole or self._is_word(layer.text, at, end, start, stop):
                return self._match(key, start, stop), inside
            inside = inside or self._longer(key, start, stop)
            at = layer.text.find(needle, at + 1)
        return None, inside

    def _place(self, layer: _Layer, at: int) -> int:
        return layer.places[at] if at < len(layer.places) else len(self.original.rstrip()) or 0

    def _is_word(self, text: str, at: int, end: int, start: int, stop: int) -> bool:
        before, after = text[at - 1 : at], text[end : end + 1]
        if not self._is_border(text[at], before, start):
            return False
        if self._is_border(text[end - 1], after, stop):
            return True
        # The tokenizer doesn't know names that someone made up, and cuts those in hiragana.
        is_name = _HIRAGANA_NAME.fullmatch(text, at, end)
        return bool(is_name and _AFTER_NAME.match(text, end))

    def _is_border(self, inner: str, outer: str, place: int) -> bool:
        if not outer:
            return True
        if _JAPANESE.match(inner):
            return not _JAPANESE.match(outer) or self._is_token_border(place)
        return not _is_letter(inner) or not _is_letter(outer)

    def _is_token_border(self, place: int) -> bool:
        at = bisect_left(self.borders, place)
        return at < len(self.borders) and self.borders[at] == place

    def _match(self, key: str, start: int, stop: int) -> Match:
        return Match(key, self.original[start:stop].strip(), self.message, start, stop)

    def _longer(self, key: str, start: int, stop: int) -> Match:
        """Return the longer word around a key."""
        if _JAPANESE.search(unicodedata.normalize("NFKC", self.original[start:stop])):
            start = self.borders[max(0, bisect_right(self.borders, start) - 1)]
            stop = self.borders[min(len(self.borders) - 1, bisect_left(self.borders, stop))]
        else:
            while start and _is_letter(self.original[start - 1]):
                start -= 1
            while stop < len(self.original) and _is_letter(self.original[stop]):
                stop += 1
        return self._match(key, start, stop)


def _is_letter(character: str) -> bool:
    return (character.isalnum() or character == "_") and not _JAPANESE.match(character)


@lru_cache(maxsize=20_000)
def _folded_key(key: str, case_sensitive: bool) -> str:
    text = _Text(key[:MAX_KEY_LENGTH], None).layer(case_sensitive).text
    return text.strip()


def _is_regex(key: str, entry: LoreEntry) -> bool:
    delimited = len(key) > 2 and _REGEX.fullmatch(key) is not None
    return delimited or (entry.use_regex and _REGEX_MARKS.search(key) is not None)


# ── scanning ──────────────────────────────────────────────────────────────────────────────


def scan(
    book: Lorebook,
    messages: Sequence[str],
    *,
    count_tokens: Callable[[str], int],
    budget: int | None = None,
    fill: Callable[[str], str] = str,
) -> Scan:
    """Say which entries of ``book`` a conversation uses, and why the others aren't used.

    When the budget is short, entries with a higher priority (or insertion order) come first, and
    constant ones before others. An entry that doesn't fit is left out, and smaller ones may still
    fit.

    Args:
        book: The lorebook.
        messages: The messages, oldest first.
        count_tokens: Counts tokens of a text.
        budget: The most tokens; None for the book's own.
        fill: Fills in macros of keys and contents.
    """
    texts = _newest(messages)
    limit = book.budget if budget is None else budget
    everything = _joined(texts)
    outcomes = {
        entry.number: _judge(entry, book, texts, everything, fill) for entry in book.entries
    }
    if book.recursive:
        _wake(book, outcomes, fill)
    used = _within_budget(outcomes, count_tokens, limit, fill)
    ordered = sorted(used, key=lambda entry: (entry.order, entry.number))
    return Scan(
        tuple(outcomes[entry.number] for entry in book.entries),
        tuple(ordered),
        sum(outcomes[entry.number].tokens for entry in ordered),
    )


def _newest(messages: Sequence[str]) -> list[_Text]:
    """Return the newest messages, the newest first."""
    found: list[_Text] = []
    left = MAX_SCANNED
    for number in range(len(messages) - 1, -1, -1):
        message = messages[number]
        if len(message) > left:
            break
        left -= len(message)
        found.append(_Text(message, number))
    if messages and not found:
        found.append(_Text(messages[-1][:MAX_SCANNED], len(messages) - 1))
    return found


def _joined(texts: Sequence[_Text]) -> str:
    """Return all texts as one, in which a key is either absent or worth a closer look."""
    return "\0".join(text.layer(False).text for text in texts)


def _judge(
    entry: LoreEntry,
    book: Lorebook,
    texts: Sequence[_Text],
    everything: str,
    fill: Callable[[str], str],
) -> Outcome:
    """Return the outcome of ``entry`` before the budget; ``everything`` is ``texts`` joined."""
    if not entry.enabled:
        return Outcome(entry, False, "lore.disabled")
    if not entry.content.strip():
        return Outcome(entry, False, "lore.empty")
    if entry.forced is not None:
        return Outcome(entry, entry.forced, "lore.always" if entry.forced else "lore.never")
    if entry.constant:
        return Outcome(entry, True, "lore.constant")
    keys = [fill(key) for key in entry.keys if key.strip()]
    if not keys:
        return Outcome(entry, False, "lore.no_keys")
    plain = [key for key in keys if not _is_regex(key, entry)]
    present = [key for key in plain if _folded_key(key, False) in everything]
    if not present:
        return Outcome(entry, False, "lore.not_found" if plain == keys else "lore.regex")
    depth = entry.depth if entry.depth is not None else book.depth
    near = texts if depth is None else texts[:depth]
    match, inside = _first(entry, present, near)
    if match is None:
        return _why_not(entry, present, near, texts, inside)
    return _conditions(entry, match, near, fill)


def _first(
    entry: LoreEntry,
    keys: Sequence[str],
    texts: Sequence[_Text],
    case_sensitive: bool | None = None,
) -> tuple[Match | None, Match | None]:
    """Return the first place of a key as a word, and the first one inside a longer word."""
    case = entry.case_sensitive if case_sensitive is None else case_sensitive
    first_inside: Match | None = None
    for text in texts:
        for key in keys:
            match, inside = text.find(key, case_sensitive=case, whole=entry.whole_words)
            if match is not None:
                return match, None
            first_inside = first_inside or inside
    return None, first_inside


def _why_not(
    entry: LoreEntry,
    keys: Sequence[str],
    near: Sequence[_Text],
    texts: Sequence[_Text],
    inside: Match | None,
) -> Outcome:
    if inside is not None:
        details = {"key": inside.key, "word": inside.word}
        return Outcome(entry, False, "lore.inside_word", inside, details)
    if entry.case_sensitive:
        other, _ = _first(entry, keys, near, case_sensitive=False)
        if other is not None:
            details = {"key": other.key, "word": other.word}
            return Outcome(entry, False, "lore.case", other, details)
    far, _ = _first(entry, keys, texts[len(near) :])
    if far is not None:
        distance = {"key": far.key, "depth": len(near)}
        return Outcome(entry, False, "lore.too_far", far, distance)
    return Outcome(entry, False, "lore.not_found")


def _conditions(
    entry: LoreEntry, match: Match, texts: Sequence[_Text], fill: Callable[[str], str]
) -> Outcome:
    """Return the outcome of an entry whose key was found at ``match``."""
    excluded, _ = _first(entry, [fill(key) for key in entry.excluded_keys], texts)
    if excluded is not None:
        return Outcome(entry, False, "lore.excluded", match, {"key": excluded.key})
    if entry.needed_keys:
        needed, _ = _first(entry, [fill(key) for key in entry.needed_keys], texts)
        if needed is None:
            details = {"keys": ", ".join(entry.needed_keys)}
            return Outcome(entry, False, "lore.secondary", match, details)
    secondary = [fill(key) for key in entry.secondary_keys if key.strip()]
    if entry.selective and secondary:
        there = [_first(entry, [key], texts)[0] is not None for key in secondary]
        met = {
            "any": any(there),
            "all": all(there),
            "not_any": not any(there),
            "not_all": not all(there),
        }[entry.logic]
        if not met:
            negative = entry.logic in ("not_any", "not_all")
            details = {"keys": ", ".join(secondary)}
            key = "lore.secondary_there" if negative else "lore.secondary"
            return Outcome(entry, False, key, match, details)
    return Outcome(entry, True, "lore.fired", match, {"key": match.key, "word": match.word})


def _wake(book: Lorebook, outcomes: dict[int, Outcome], fill: Callable[[str], str]) -> None:
    """Let the texts of used entries make further entries fire."""
    woken = {number for number, outcome in outcomes.items() if outcome.fired}
    left = MAX_SCANNED
    for _ in range(MAX_ROUNDS):
        texts = []
        for number in sorted(woken):
            entry = outcomes[number].entry
            if entry.wakes_others and len(entry.content) <= left:
                left -= len(entry.content)
                texts.append(_Text(fill(entry.content), None))
        woken = set()
        everything = _joined(texts)
        for number, outcome in outcomes.items():
            if outcome.fired or not outcome.entry.by_lore or not texts:
                continue
            again = _judge(outcome.entry, Lorebook(), texts, everything, fill)
            if again.fired:
                outcomes[number] = Outcome(
                    outcome.entry, True, "lore.fired_by_lore", again.match, again.details
                )
                woken.add(number)
        if not woken:
            return


def _within_budget(
    outcomes: dict[int, Outcome],
    count_tokens: Callable[[str], int],
    budget: int | None,
    fill: Callable[[str], str],
) -> Iterator[LoreEntry]:
    """Yield the entries that fit, the most important first; the others get their outcome."""
    fired = [outcome for outcome in outcomes.values() if outcome.fired]
    fired.sort(key=lambda o: (not o.entry.constant, -o.entry.rank, o.entry.number))
    seen: dict[str, int] = {}
    left = budget
    for outcome in fired:
        entry = outcome.entry
        content = entry.content.strip()
        if content in seen:
            equal = {"first": seen[content] + 1}
            outcomes[entry.number] = Outcome(entry, False, "lore.equal", outcome.match, equal)
            continue
        tokens = count_tokens(fill(entry.content))
        if left is not None and tokens > left:
            short = {"tokens": tokens, "left": left}
            outcomes[entry.number] = Outcome(entry, False, "lore.budget", outcome.match, short)
            continue
        left = None if left is None else left - tokens
        seen[content] = entry.number
        outcomes[entry.number] = Outcome(
            entry, True, outcome.key, outcome.match, outcome.details, tokens
        )
        yield entry
