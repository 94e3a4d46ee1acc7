"""CacheManager: an answer that was given once need not be paid for twice.

What an answer depends on is its key: the model, the sampling options, the whole prompt as it was
rendered (persona, conversation, images), and the message, normalised. So an edited persona, another
turn of the talk or another temperature never meets an old answer, and no user meets another's
words: who finds an answer has sent, to the byte, everything that it was made from, their own
message excepted, which may differ in width of letters and spacing.

Kept are whole answers alone (finish_reason "stop"): none that is partial, failed, refused or
stopped. A cache stands around one model, inside of a fallback: a stand-in's answer is the
stand-in's. What is kept is the model's raw text, so that steps of the processor which were changed
since apply to it too.

Only a chat asks here, and not for a regeneration. A trial beside the editor and the columns of a
comparison are there to show how a model varies: they are always asked anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
import time
import unicodedata
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING

from persona_lab.clients.middleware.wrapper import ClientWrapper
from persona_lab.db.redis import RedisLink, SharedCache
from persona_lab.types import Chunk, Completion, Options, Prompt, Usage
from persona_lab.unicode_text import is_blank

if TYPE_CHECKING:
    from persona_lab.clients.base import LLMClientInterface
    from persona_lab.clients.catalog import ModelInfo

SIZE = 2048
"""Answers that memory holds; the longest unused go first. Of 1,000 tokens each: some 10 MB."""
PIECE = 24
"""Characters of a piece, when an answer from the cache is streamed."""


class CacheManager:
    """Answers by what they depend on. ``ttl`` in seconds, 0 keeps none.

    ``hits`` and ``misses`` count what this process asked for.
    """

    def __init__(
        self,
        ttl: float = 3600,
        *,
        shared: RedisLink | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ttl = ttl
        self.hits = 0
        self.misses = 0
        self._counting = threading.Lock()
        self._answers = SharedCache("answer", ttl, size=SIZE, shared=shared, clock=clock)

    @property
    def hit_rate(self) -> float:
        """Share of the questions that were answered from here; 0 before the first."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else 0.0

    async def get_cached_response(
        self, info: ModelInfo, prompt: Prompt, options: Options, *, server: str = ""
    ) -> Completion | None:
        """The answer kept for the same question; ``server``: where the model is, if that varies."""
        if not self.ttl:
            return None
        found = await self._answers.get(_key(info, prompt, options, server))
        with self._counting:
            self.hits += found is not None
            self.misses += found is None
        if found is None:
            return None
        return Completion(found["content"], found["model"], Usage(), found["finish_reason"])

    async def cache_response(
        self,
        info: ModelInfo,
        prompt: Prompt,
        options: Options,
        response: Completion,
        *,
        server: str = "",
    ) -> None:
        """Keep ``response``, if it is whole."""
        if not self.ttl or response.finish_reason != "stop" or is_blank(response.content):
            return
        answer = {
            "content": response.content,
            "model": response.model,
            "finish_reason": response.finish_reason,
        }
        await self._answers.put(_key(info, prompt, options, server), answer)


def normalized(message: str) -> str:
    """``message`` with its letters in one width and, where it is one line, single spaces.

    Other forms that look alike (10², ①) mean something of their own, as do the spaces of several
    lines, which may be code.
    """
    text = _WIDTHS.sub(lambda part: unicodedata.normalize("NFKC", part[0]), message).strip()
    return text if "\n" in text else " ".join(text.split())


_WIDTHS = re.compile("[\u3000\uff01-\uffee]+")
"""Full-width Latin and half-width kana."""
_PATIENCE = ("timeout", "connect_timeout", "idle_timeout", "total_timeout", "retries")
"""Options that don't shape an answer."""


def _key(info: ModelInfo, prompt: Prompt, options: Options, server: str) -> str:
    sampling = [
        (name, getattr(options, name)) for name in Options.__slots__ if name not in _PATIENCE
    ]
    system, turns, last = prompt.system, prompt.turns, ""
    if turns and turns[-1].content == prompt.message:
        last, turns = repr(turns[-1]).replace(repr(prompt.message), ""), turns[:-1]
    elif prompt.message:  # a transcript has it in its text
        before, found, after = system.rpartition(prompt.message)
        system = f"{before}\0{after}" if found else system
    parts = (
        info.spec,
        server,
        sorted(sampling),
        prompt.kind,
        prompt.stop,
        system,
        turns,
        last,
        normalized(prompt.message),
    )
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()


class CachedClient(ClientWrapper):
    """A client that answers from the cache where it can. ``fresh``: it is asked in any case."""

    def __init__(
        self, client: LLMClientInterface, cache: CacheManager, *, fresh: bool = False
    ) -> None:
        super().__init__(client)
        self._cache = cache
        self._fresh = fresh

    async def stream(self, prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        if self._fresh:
            async with contextlib.aclosing(self.client.stream(prompt, options)) as chunks:
                async for chunk in chunks:
                    yield chunk
            return
        known = await self._cache.get_cached_response(
            self.info, prompt, options, server=self.base_url
        )
        if known is not None:
            for start in range(0, len(known.content), PIECE):
                yield Chunk(known.content[start : start + PIECE])
            yield Chunk(
                finish_reason=known.finish_reason,
                usage=known.usage,
                model=known.model,
                metadata={"cache_hit": True},
            )
            return
        text, last = "", Chunk()
        async with contextlib.aclosing(self.client.stream(prompt, options)) as chunks:
            async for chunk in chunks:
                text += chunk.text
                last = chunk
                yield chunk
        answer = Completion(
            text, last.model or self.info.name, last.usage or Usage(), last.finish_reason or ""
        )
        await self._cache.cache_response(self.info, prompt, options, answer, server=self.base_url)
