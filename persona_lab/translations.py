"""Texts that people read, by key and language. They are in YAML, never in code.

A file maps keys to ``{ja: …, en: …}``; groups nest, and a nested key is written with dots::

    chat:
      send: {ja: 送る, en: Send}
      waiting: {ja: "{name}が考えています…", en: "{name} is thinking…"}

    translations("chat.waiting", "en", name="Sakura")

Loading is strict: a missing translation stops the start, so no reader of the page finds it.
:func:`load_texts` also checks that the file has each key of ``text_keys.txt``, which ``make docs``
writes.
"""

from __future__ import annotations

import difflib
import string
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from persona_lab.errors import ConfigurationError
from persona_lab.types import LANGUAGES
from persona_lab.yaml_config import read_yaml, unfold

KEYS_FILE = Path(__file__).with_name("text_keys.txt")
"""The keys of each file of texts: ``file key placeholder placeholder …`` a line."""


class _InvalidKeyError(Exception):
    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key}: {reason}")


class Translations:
    """The texts of one file. Call it with a key, a language and the values of placeholders."""

    def __init__(self, path: Path) -> None:
        """Load ``path``.

        Raises:
            ConfigurationError: A key is wrong; the message names the file and the key.
        """
        self._texts: dict[str, dict[str, str]] = {}
        self._blanks: dict[str, frozenset[str]] = {}
        try:
            tree = read_yaml(path)
            if not isinstance(tree, dict):
                raise _InvalidKeyError("top level", "must be a mapping of keys to texts")
            for key, texts in _leaves(tree):
                self._texts[key] = texts
                self._blanks[key] = _placeholders_of(key, texts)
        except _InvalidKeyError as error:
            raise ConfigurationError(f"{path.name}: {error}") from error

    def __call__(self, key: str, language: str, /, **details: Any) -> str:
        """Return the text for ``key``, in Japanese for every language but "en".

        Raises:
            KeyError: The key doesn't exist, or a placeholder has no value.
        """
        text = self._texts[key]["en" if language == "en" else "ja"]
        return text.format_map(details) if self._blanks[key] else text.format()

    def __contains__(self, key: str) -> bool:
        """Return whether there is a text for ``key``."""
        return key in self._texts

    def __iter__(self) -> Iterator[str]:
        """Iterate over the keys."""
        return iter(self._texts)

    def placeholders(self, key: str) -> frozenset[str]:
        """Return the names of the placeholders in the text for ``key``."""
        return self._blanks[key]


def load_texts(folder: Path, name: str) -> Translations:
    """Load the file ``name`` of ``folder``, and check that no key is missing.

    Raises:
        ConfigurationError: A key is wrong or missing; the message names the file and the key.
    """
    texts = Translations(folder / name)
    known = _known_keys()[name]
    for key, placeholders in known.items():
        if key not in texts:
            others = [other for other in texts if other not in known]
            similar = difflib.get_close_matches(key, others, n=1)
            hint = f" ({similar[0]} is an unknown key)" if similar else ""
            raise ConfigurationError(f"{name}: {key}: is missing{hint}")
        if unknown := sorted(texts.placeholders(key) - placeholders):
            raise ConfigurationError(f"{name}: {key}: {{{unknown[0]}}} is an unknown placeholder")
    return texts


@cache
def _known_keys() -> dict[str, dict[str, frozenset[str]]]:
    known: dict[str, dict[str, frozenset[str]]] = {}
    for line in KEYS_FILE.read_text("utf-8").splitlines():
        file, key, *placeholders = line.split()
        known.setdefault(file, {})[key] = frozenset(placeholders)
    return known


def _leaves(tree: dict[str, Any], above: str = "") -> Iterator[tuple[str, dict[str, str]]]:
    for name, value in tree.items():
        key = f"{above}{name}"
        if not isinstance(value, dict) or not value:
            raise _InvalidKeyError(key, "must hold ja and en, or further keys")
        if not set(value) & set(LANGUAGES):
            yield from _leaves(value, f"{key}.")
            continue
        for language in LANGUAGES:
            if language not in value:
                raise _InvalidKeyError(key, f"{language} is missing")
            if not isinstance(value[language], str) or not value[language].strip():
                raise _InvalidKeyError(key, f"{language} must be text (put quotes around it)")
        if extra := sorted(set(value) - set(LANGUAGES)):
            raise _InvalidKeyError(key, f"{extra[0]} stands among the languages")
        yield key, {"ja": unfold(value["ja"].strip()), "en": value["en"].strip("\n")}


def _placeholders_of(key: str, texts: dict[str, str]) -> frozenset[str]:
    found: dict[str, frozenset[str]] = {}
    for language, text in texts.items():
        try:
            parts = list(string.Formatter().parse(text))
        except ValueError as error:
            raise _InvalidKeyError(key, f"{language}: {error}") from error
        names = [name for _, name, _, _ in parts if name is not None]
        for name in names:
            if not name.isidentifier():
                raise _InvalidKeyError(key, f"{language}: {{{name}}} is not the name of a blank")
        found[language] = frozenset(names)
    if found["ja"] != found["en"]:
        only = sorted(found["ja"] ^ found["en"])[0]
        raise _InvalidKeyError(key, f"{{{only}}} stands in one language and not in the other")
    return found["ja"]
