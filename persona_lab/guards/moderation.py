"""What a moderation model must be able to do; ``clients/moderation.py`` has a real one."""

from __future__ import annotations

from typing import Protocol


class Moderator(Protocol):
    """Looks at a whole answer before anybody sees it: with one, answers don't stream."""

    async def review(self, text: str) -> list[str]:
        """Names of what is wrong with ``text``; nothing for what may be shown.

        Raises ProviderError when it can't be told: then the answer isn't shown either.
        """
        ...
