"""``python -m tools.settings_table``: writes docs/settings.md from ``Settings``.

A row is a field: its variable, its values (from its type and bounds), its default, and its meaning
(the text below it in the source).
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from persona_lab.settings import PROVIDER_NAMES, ROOT, Settings

TARGET = ROOT / "docs" / "settings.md"

SECTIONS = {
    "llm_provider": "Default model",
    "openai_api_key": "Providers and keys",
    "http_proxy": "Proxies and certificates",
    "llm_timeout": "Time limits, retries and circuit breaker",
    "local_model": "Local models",
    "database_url": "Database and Redis",
    "requests_per_minute": "Limits and cache of answers",
    "max_message_length": "Messages and context",
    "tone_adjustment": "Tone and safety",
    "metrics_token": "Metrics and log",
    "alert_window": "Alerts",
    "gradio_server_name": "Server and folders",
}
"""The first field of each section, in the order of :class:`Settings`, and the section's title."""

INTRODUCTION = """\
# Settings

<!-- `make docs` writes this file from persona_lab/settings.py. Change it there. -->

Every setting is an environment variable. A wrong value stops the start with one line that names the
variable. An empty variable counts as not set. `–` means that there is no default.
"""

NUMBERS = {int: "integer", float: "number"}
BOUNDS = {Ge: ("ge", "≥"), Gt: ("gt", ">"), Le: ("le", "≤"), Lt: ("lt", "<")}


def field_texts() -> dict[str, str]:
    """Return the text below each field of ``Settings``, as one line; "" where there is none."""
    source = ast.parse(textwrap.dedent(inspect.getsource(Settings)))
    body = next(node.body for node in source.body if isinstance(node, ast.ClassDef))
    texts = dict.fromkeys(Settings.model_fields, "")
    for field, below in pairwise(body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
        ):
            texts[field.target.id] = " ".join(str(below.value.value).split())
    return texts


def values(name: str, info: FieldInfo) -> str:
    """Describe what a field takes, from its type and its bounds."""
    kind: Any = info.annotation
    if get_origin(kind) in (Union, UnionType):
        (kind,) = (part for part in get_args(kind) if part is not type(None))
    if name == "llm_provider":
        return ", ".join(f"`{provider}`" for provider in PROVIDER_NAMES)
    if get_origin(kind) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(kind))
    if kind is bool:
        return "`true`, `false`"
    if kind in NUMBERS:
        bounds = {
            sign: getattr(bound, attribute)
            for bound in info.metadata
            for type_, (attribute, sign) in BOUNDS.items()
            if isinstance(bound, type_)
        }
        if bounds.keys() == {"≥", "≤"}:
            return f"{NUMBERS[kind]} from {bounds['≥']} to {bounds['≤']}"
        return " ".join([NUMBERS[kind], *(f"{sign} {limit}" for sign, limit in bounds.items())])
    if kind is SecretStr:
        return "secret text"
    return "path" if kind is Path else "text"


def default(info: FieldInfo) -> str:
    """Return a field's default as one would write it in the environment."""
    value = info.default
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return f"`{str(value).replace(f'{ROOT}/', '')}`"


def render() -> str:
    """Return the text of docs/settings.md."""
    texts = field_texts()
    lines = [INTRODUCTION.rstrip()]
    for name, info in Settings.model_fields.items():
        if name in SECTIONS:
            lines += ["", f"## {SECTIONS[name]}", ""]
            lines += ["| variable | values | default | meaning |", "|---|---|---|---|"]
        meaning = texts[name].replace("|", "\\|")
        row = (f"`{name.upper()}`", values(name, info), default(info), meaning)
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
