"""A mock model. Its answer repeats the message and states that no model was called.

It serves practice without a key, demonstrations of latency and errors, and tests. The name sets
its behaviour: ``mock:echo?rate=100&first=5&tokens=200&fail=rate_limit&after=3``.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import time
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from persona_lab.clients.base import LLMClientInterface, estimate_tokens
from persona_lab.clients.catalog import ModelInfo
from persona_lab.clients.provider import Provider
from persona_lab.errors import ModelTimeout, ProviderError, UnknownModel, errors_by_code
from persona_lab.types import Chunk, Language, Options, Prompt, Usage
from persona_lab.unicode_text import has_japanese

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from persona_lab.settings import Settings

ANSWERS: dict[Language, str] = {
    "ja": "「{message}」ですね。これは練習用の返事で、どのモデルにも尋ねていません。",
    "en": "You said “{message}”. This is a practice answer: no model was asked. ",
}

_TOKEN = re.compile(r"[\u2e80-\uffef]{1,2}|[^\u2e80-\uffef]{1,4}")


class Behaviour(BaseModel):
    """The behaviour of the mock, from the query part of its name.

    Attributes:
        rate: Tokens per second; None for no delay.
        first: Seconds before the first token.
        tokens: Length of the answer in tokens; the text repeats to reach it.
        fail: Code of an error to raise; "" for none.
        after: Number of tokens before the error.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    rate: float | None = Field(default=None, gt=0)
    first: float = Field(default=0, ge=0)
    tokens: int | None = Field(default=None, ge=0, le=100_000)
    fail: str = ""
    after: int = Field(default=0, ge=0)

    @field_validator("fail")
    @classmethod
    def _is_an_error(cls, code: str) -> str:
        if code not in errors_by_code(ProviderError):
            raise ValueError("no such error")
        return code


class MockClient(LLMClientInterface):
    """The client for ``mock:echo``. The same message always gets the same answer."""

    provider = Provider(name="mock", free=True, is_practice=True, structured_output=frozenset())

    def __init__(
        self,
        info: ModelInfo,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """Parse the name.

        Args:
            info: The model.
            settings: The settings.
            clock: Returns seconds.
            sleep: Sleeps for a number of seconds.

        Raises:
            UnknownModel: The name isn't echo, or its query isn't valid.
        """
        super().__init__(info, settings)
        self._clock = clock
        self._sleep = sleep
        name, _, query = info.name.partition("?")
        try:
            options = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
            self.behaviour = Behaviour.model_validate(options)
        except (ValidationError, ValueError) as error:
            raise UnknownModel(model=info.spec) from error
        if name != "echo":
            raise UnknownModel(model=info.spec)

    def for_model(self, info: ModelInfo) -> MockClient:
        """Return a new mock with the behaviour in the name of ``info``."""
        return MockClient(info, self.settings, clock=self._clock, sleep=self._sleep)

    async def stream(self, prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        """Stream the answer. See :meth:`LLMClientInterface.stream`."""
        self.check_images(prompt)
        how = self.behaviour
        tokens = self._tokens(prompt)
        finish = "stop" if len(tokens) <= options.max_tokens else "length"
        tokens = tokens[: options.max_tokens]
        start = self._clock()
        for number, token in enumerate(tokens):
            if how.fail and number >= how.after:
                break
            await self._until_due(start, number, options)
            yield Chunk(token)
            await asyncio.sleep(0)  # let other tasks run
        if how.fail:
            await self._until_due(start, min(how.after, len(tokens)), options)
            raise errors_by_code(ProviderError)[how.fail](
                provider=self.info.provider, model=self.info.name
            )
        yield Chunk(
            finish_reason=finish,
            usage=Usage(estimate_tokens(str(prompt)), len(tokens), estimated=True),
            model=self.info.name,
        )

    async def _until_due(self, start: float, number: int, options: Options) -> None:
        """Sleep until token ``number`` is due.

        Its time counts from the start of the answer, so delays don't add up.

        Raises:
            ModelTimeout: A timeout of the options ran out.
        """
        how = self.behaviour
        if how.rate is None and (number or not how.first):
            return
        due = start + how.first + (number / how.rate if how.rate else 0)
        delay = max(0.0, due - self._clock())
        until_end = start + options.total_timeout - self._clock()
        timeout = max(0.0, min(options.idle if number else options.timeout, until_end))
        await self._sleep(min(delay, timeout))
        if delay > timeout:
            raise ModelTimeout(provider=self.info.provider, model=self.info.name)

    def _tokens(self, prompt: Prompt) -> list[str]:
        users = [turn.content for turn in prompt.turns if turn.role == "user"]
        message = prompt.message or (users[-1] if users else "")
        # A message without letters gets the language of the persona.
        language = message if any(map(str.isalpha, message)) else prompt.system
        answer = ANSWERS["ja" if has_japanese(language) else "en"].format(message=message)
        length = self.behaviour.tokens
        if length is None:
            return _TOKEN.findall(answer.strip())
        return list(itertools.islice(itertools.cycle(_TOKEN.findall(answer)), length))


Client = MockClient
