"""The response cache: reuse an answer to the same prompt.

The key of an answer contains everything that the answer depends on: the model, the sampling
options, the rendered prompt (persona, conversation, images) and the normalized message. An edited
persona, another turn or another temperature therefore has another key. Two users share an answer
only if their prompts are equal byte by byte. Their messages may differ in the width of characters
and in spacing.

The cache stores only complete answers (finish_reason "stop"), not partial, failed, refused or
stopped ones. It wraps one model, inside of the fallback, so an answer of a fallback model is
stored under that model. It stores the raw text of the model, and the processing of a response
applies to cached text too.

Only a chat uses the cache, and a regeneration bypasses it. The trial in the editor and the columns
of a comparison show how a model varies, so they always call the model.
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

MAX_ENTRIES = 2048
"""Maximum number of answers in memory (LRU). At 1,000 tokens each they take about 10 MB."""
CHUNK_CHARACTERS = 24
"""Characters in a chunk of a cached answer."""


class CacheManager:
    """A cache of answers, in Redis or in memory.

    Args:
        ttl: Lifetime of an answer in seconds; 0 disables the cache.
        shared: The link to Redis.
        clock: Returns seconds.

    Attributes:
        hits: Number of lookups by this process that found an answer.
        misses: Number of lookups by this process that found none.
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
        self._answers = SharedCache("answer", ttl, size=MAX_ENTRIES, shared=shared, clock=clock)

    async def get_cached_response(
        self, info: ModelInfo, prompt: Prompt, options: Options, *, server: str = ""
    ) -> Completion | None:
        """Look up an answer.

        Args:
            info: The model.
            prompt: The prompt.
            options: The options of the call.
            server: The address of the server, if it can be configured.

        Returns:
            The answer, with a usage of 0 tokens; None if there is none.
        """
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
        """Store ``response`` if it is complete.

        Args:
            info: The model.
            prompt: The prompt.
            options: The options of the call.
            response: The answer.
            server: The address of the server, if it can be configured.
        """
        if not self.ttl or response.finish_reason != "stop" or is_blank(response.content):
            return
        answer = {
            "content": response.content,
            "model": response.model,
            "finish_reason": response.finish_reason,
        }
        await self._answers.put(_key(info, prompt, options, server), answer)


def normalize_message(message: str) -> str:
    """Normalize the width of characters in ``message`` and the spaces of a single line.

    Other compatibility characters (10², ①) stay, because they have a meaning. The spaces of
    several lines stay too, because the text may be code.
    """
    text = _WIDTHS.sub(lambda part: unicodedata.normalize("NFKC", part[0]), message).strip()
    return text if "\n" in text else " ".join(text.split())


_WIDTHS = re.compile("[\u3000\uff01-\uffee]+")
"""Full-width Latin and half-width kana."""
_TIMEOUT_OPTIONS = ("timeout", "connect_timeout", "idle_timeout", "total_timeout", "retries")
"""Options that don't change an answer."""


def _key(info: ModelInfo, prompt: Prompt, options: Options, server: str) -> str:
    """Return the cache key: a hash of everything that the answer depends on."""
    sampling = [
        (name, getattr(options, name)) for name in Options.__slots__ if name not in _TIMEOUT_OPTIONS
    ]
    system, turns, last = prompt.system, prompt.turns, ""
    if turns and turns[-1].content == prompt.message:
        last, turns = repr(turns[-1]).replace(repr(prompt.message), ""), turns[:-1]
    elif prompt.message:  # the text of a transcript contains the message
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
        normalize_message(prompt.message),
    )
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()


class CachedClient(ClientWrapper):
    """A client that uses a cached answer if there is one.

    Args:
        client: The wrapped client.
        cache: The cache.
        fresh: Whether to bypass the cache: always call the client and store nothing.
    """

    def __init__(
        self, client: LLMClientInterface, cache: CacheManager, *, fresh: bool = False
    ) -> None:
        super().__init__(client)
        self._cache = cache
        self._fresh = fresh

    async def stream(self, prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        """Stream an answer. See :meth:`LLMClientInterface.stream`."""
        if self._fresh:
            async with contextlib.aclosing(self.client.stream(prompt, options)) as chunks:
                async for chunk in chunks:
                    yield chunk
            return
        known = await self._cache.get_cached_response(
            self.info, prompt, options, server=self.base_url
        )
        if known is not None:
            for start in range(0, len(known.content), CHUNK_CHARACTERS):
                yield Chunk(known.content[start : start + CHUNK_CHARACTERS])
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
