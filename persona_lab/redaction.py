"""What secrets look like, and their removal from text."""

from __future__ import annotations

import re
from collections.abc import Sequence

MASK = "••••••"
MOST_OF_IT = 0.75
"""Share of a secret that is hidden like all of it, at the end of an answer."""
_ROW = "".join(map(chr, range(ord("!"), ord("~") + 1)))
"""What secrets are written with."""
SECRET_LENGTH = 8
"""Characters that a secret has at least: compatible servers are given "none" or "ollama" for a
key, which are words that an answer may hold."""


def redact(text: str, secrets: Sequence[str]) -> str:
    """``text`` with dots in the place of ``secrets``, in capitals or not."""
    for secret in secrets:
        if len(secret) >= SECRET_LENGTH:
            text = re.sub(re.escape(secret), MASK, text, flags=re.IGNORECASE)
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


def secret_pattern(body: str = ".") -> re.Pattern[str]:
    """Finds keys by their look. ``body`` is a character that may stand in a private key, which is
    the only one of several lines; without its end it goes on as far as there are any."""
    edge = "-----{} [A-Z0-9 ]*PRIVATE KEY-----".format
    block = f"{edge('BEGIN')}(?:(?:{body})*?{edge('END')}|(?:{body})*)"
    word = rf"(?:(?<![A-Za-z0-9_-])|(?<=\\[nrt]))(?:{'|'.join(_KEYS)})"  # an escape ends a word
    return re.compile(f"{block}|{word}", re.DOTALL | re.ASCII)
