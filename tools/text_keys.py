"""``python -m tools.text_keys``: writes persona_lab/text_keys.txt from the files of texts.

A line is a key: its file, the key and the placeholders of its text.
"""

from __future__ import annotations

from persona_lab.settings import ROOT
from persona_lab.translations import KEYS_FILE, Translations

FILES = ("cards.yaml", "fallbacks.yaml", "openai_api.yaml", "summary.yaml", "ui.yaml")


def render() -> str:
    """Return the text of text_keys.txt."""
    lines = []
    for file in FILES:
        texts = Translations(ROOT / "templates" / file)
        lines += [" ".join([file, key, *sorted(texts.placeholders(key))]) for key in texts]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    KEYS_FILE.write_text(render(), encoding="utf-8")
