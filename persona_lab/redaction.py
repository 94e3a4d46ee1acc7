"""Patterns of secrets, and their removal from text."""

from __future__ import annotations

import re
from collections.abc import Sequence

MASK = "••••••"
PARTIAL_SECRET_SHARE = 0.75
"""Share of a secret from which on its beginning, at the end of an answer, is masked too."""
SECRET_CHARACTERS = "".join(map(chr, range(ord("!"), ord("~") + 1)))
"""The characters of secrets."""
MIN_SECRET_LENGTH = 8
"""Minimum length of a secret, in characters.

Servers without authentication get keys like "none" or "ollama", which are words of answers too.
"""


def redact(text: str, secrets: Sequence[str]) -> str:
    """Replace each of ``secrets`` in ``text`` by dots, in upper or lower case."""
    for secret in secrets:
        if len(secret) >= MIN_SECRET_LENGTH:
            text = re.sub(re.escape(secret), MASK, text, flags=re.IGNORECASE)
    return text


_KEY_PATTERNS = (
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
    r"pl_[A-Za-z0-9_-]{40,}",  # an API token of Persona Lab
    r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?",  # JSON Web Tokens
)
"""Patterns of keys that are not in the settings. No key contains a space or starts in a word."""


def secret_pattern(body: str = ".") -> re.Pattern[str]:
    """Return a pattern that finds keys by their form.

    ``body`` matches one character of a private key, the only secret with several lines. A private
    key without its end line extends as far as ``body`` matches.
    """
    edge = "-----{} [A-Z0-9 ]*PRIVATE KEY-----".format
    block = f"{edge('BEGIN')}(?:(?:{body})*?{edge('END')}|(?:{body})*)"
    # A word also begins after an escape, as in "\\nsk-…".
    word = rf"(?:(?<![A-Za-z0-9_-])|(?<=\\[nrt]))(?:{'|'.join(_KEY_PATTERNS)})"
    return re.compile(f"{block}|{word}", re.DOTALL | re.ASCII)
