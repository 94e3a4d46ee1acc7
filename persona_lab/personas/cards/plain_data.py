"""Read JSON and YAML from strangers: bounded, without references, and without loss of values.

Both readers return plain data of JSON. A repeated key doesn't lose a value: later values get the
key with ``#2``, ``#3`` and so on. Half surrogates, which no encoding holds, become U+FFFD. Numbers
that no float holds stay text.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any

import yaml

from persona_lab.errors import CardError
from persona_lab.personas.cards.model import MAX_DEPTH, MAX_TEXT_BYTES, MAX_VALUES

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SafeDumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_HALF_SURROGATE = re.compile("[\ud800-\udfff]")
_NUMBER = re.compile(r"-?(0|[1-9]\d{0,300})(\.\d+)?([eE][-+]?\d+)?")
_YAML_WORDS = {"true": True, "false": False, "null": None, "~": None, "": None}
_NO_YAML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
"""Characters that no YAML file may have as they are."""


class _Dumper(_SafeDumper):  # type: ignore[misc]
    """Write no aliases, and quote text that :func:`read_yaml` would take for a number."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: Any, text: str) -> Any:
    is_word = text.lower() in _YAML_WORDS or _NUMBER.fullmatch(text)
    style = '"' if is_word else "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def decode(data: bytes) -> str:
    """Return the text of ``data``: UTF-8, UTF-16 with a mark, or the encoding of Japanese Windows.

    Raises:
        CardError: It is too large, or its encoding is unknown.
    """
    if len(data) > MAX_TEXT_BYTES:
        raise CardError("card_text_size", limit=MAX_TEXT_BYTES // 1_000_000)
    marked = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    for encoding in ("utf-16",) if marked else ("utf-8-sig", "cp932"):
        try:
            return _HALF_SURROGATE.sub("\ufffd", data.decode(encoding))
        except UnicodeDecodeError:
            continue
    raise CardError("card_encoding")


def read_json(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        CardError: It isn't JSON, or exceeds a bound.
    """
    if sum(map(text.count, ",[{")) > MAX_VALUES:
        raise CardError("card_values", limit=MAX_VALUES)
    try:
        value = json.loads(
            text,
            object_pairs_hook=_to_mapping,
            parse_int=_to_number,
            parse_float=_to_number,
            parse_constant=str,
        )
    except json.JSONDecodeError as error:
        raise CardError("card_json", line=error.lineno) from None
    except RecursionError:
        raise CardError("card_depth", limit=MAX_DEPTH) from None
    return _checked(value)


def write_json(value: Any) -> bytes:
    """Return ``value`` as JSON in UTF-8."""
    return (json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2) + "\n").encode()


def read_yaml(text: str) -> Any:
    """Return the value of a YAML text. Only words of JSON are special: ``no`` and dates are text.

    Raises:
        CardError: It isn't YAML, has aliases, or exceeds a bound.
    """
    try:
        return _checked(_build(text))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise CardError("card_yaml", line=mark.line + 1 if mark else 1) from None
    except ValueError:  # an escape that names no character
        raise CardError("card_yaml", line=1) from None


def write_yaml(value: Any) -> bytes:
    """Return ``value`` as YAML in UTF-8."""
    written: bytes = yaml.dump(
        value, Dumper=_Dumper, allow_unicode=True, sort_keys=False, encoding="utf-8", width=100
    )
    return written


def _build(text: str) -> Any:
    """Build the value from events, so that depth and size are known before memory is used."""
    root: list[Any] = []
    open_: list[list[Any]] = [root]
    kinds: list[bool] = [False]
    for count, event in enumerate(yaml.parse(_NO_YAML.sub("\ufffd", text), Loader=_Loader)):
        if count > MAX_VALUES:
            raise CardError("card_values", limit=MAX_VALUES)
        if isinstance(event, yaml.AliasEvent):
            raise CardError("card_aliases")
        if isinstance(event, yaml.ScalarEvent):
            open_[-1].append(_scalar(event))
        elif isinstance(event, yaml.CollectionStartEvent):
            if len(open_) > MAX_DEPTH:
                raise CardError("card_depth", limit=MAX_DEPTH)
            open_.append([])
            kinds.append(isinstance(event, yaml.MappingStartEvent))
        elif isinstance(event, yaml.CollectionEndEvent):
            items, is_mapping = open_.pop(), kinds.pop()
            if is_mapping:
                keys = [key if isinstance(key, str) else json.dumps(key) for key in items[::2]]
                open_[-1].append(_to_mapping(zip(keys, items[1::2], strict=True)))
            else:
                open_[-1].append(items)
    return root[0] if root else None


def _scalar(event: yaml.ScalarEvent) -> Any:
    text: str = event.value
    if not event.style and event.implicit[0]:
        if text.lower() in _YAML_WORDS:
            return _YAML_WORDS[text.lower()]
        if _NUMBER.fullmatch(text):
            return _to_number(text)
    return text


def _to_number(text: str) -> Any:
    """Return the number, or the text if that is shorter than what a float makes of it."""
    if len(text) > 300:
        return text
    if text.lstrip("-").isdigit():
        return int(text)
    number = float(text)
    return number if math.isfinite(number) else text


def _to_mapping(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    repeats: dict[str, int] = {}
    for key, value in pairs:
        name = key
        if key in found:
            if found[key] == value:
                continue
            while name in found:
                repeats[key] = repeats.get(key, 1) + 1
                name = f"{key}#{repeats[key]}"
        found[name] = value
    return found


def _checked(value: Any) -> Any:
    """Return ``value`` without half surrogates.

    Raises:
        CardError: It is nested too deeply.
    """
    return _clean(value, MAX_DEPTH)


def _clean(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return value if value.isascii() else _HALF_SURROGATE.sub("\ufffd", value)
    if not isinstance(value, dict | list):
        return value
    if not depth:
        raise CardError("card_depth", limit=MAX_DEPTH)
    if isinstance(value, list):
        return [_clean(item, depth - 1) for item in value]
    return {_clean(key, 1): _clean(item, depth - 1) for key, item in value.items()}
