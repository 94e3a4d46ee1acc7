"""The page's scripts: ES modules in ``static/``, delivered as one inline script.

An inline classic script is the only kind that a browser runs before Gradio's own modules and
before it draws. It needs no further request, so a share link and a proxy with a path prefix serve
it too. The modules keep their ``import`` and ``export`` lines, for readers and for tests; here
they share one scope. A name at the top level of a module is therefore unique among all modules.
"""

from __future__ import annotations

import re
from pathlib import Path

STATIC = Path(__file__).parent / "static"

MODULES = (
    "storage",
    "address",
    "early",
    "dom",
    "connection",
    "keyboard",
    "focus",
    "preview",
    "chat_scroll",
    "draft",
    "form_lock",
    "message_boxes",
    "suggestions",
    "field_notes",
    "boxes",
    "tabs",
    "answers",
    "dialogs",
    "examples",
    "returning",
    "main",
)
"""The modules in the order in which they run: a module follows those that it imports."""

_IMPORT = re.compile(r"^import .*;\n", re.MULTILINE)
_EXPORT = re.compile(r"^export ", re.MULTILINE)


def bundle() -> str:
    """Return all modules as one script with its own scope."""
    sources = [(STATIC / f"{name}.js").read_text("utf-8") for name in MODULES]
    merged = "\n".join(_EXPORT.sub("", _IMPORT.sub("", source)) for source in sources)
    return f'(() => {{\n"use strict";\n{merged}}})();\n'
