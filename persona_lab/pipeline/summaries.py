"""Summarize the exchanges of a chat that are too old to be sent.

A summary is made in the background after a turn, by the model that answered.
:class:`~persona_lab.pipeline.context.ContextManager` chooses the exchanges, writes the prompt and
stores the summary.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

from persona_lab.clients.error_mapping import map_error
from persona_lab.clients.middleware.wrapper import CallContext
from persona_lab.db.generations import GenerationResult
from persona_lab.db.tables import Generation
from persona_lab.errors import OnlyThoughts
from persona_lab.pipeline.token_budget import prompt_tokens
from persona_lab.pipeline.turn_metadata import agent_language, cost_of
from persona_lab.pipeline.turn_state import TurnRequest, TurnState, milliseconds
from persona_lab.redaction import redact
from persona_lab.responses.model_markup import strip_model_markup
from persona_lab.types import Prompt

if TYPE_CHECKING:
    from persona_lab.clients.catalog import ModelInfo
    from persona_lab.clients.middleware.stack import ClientStack
    from persona_lab.clients.pool import ClientPool
    from persona_lab.pipeline.context import ContextManager

log = logging.getLogger("persona_lab.service")

_MAX_SUMMARY_TOKENS = 400
_MAX_CALLS = 3
"""Summary calls that one turn makes, at most."""


class Summarizer:
    """Runs the summary tasks of all chats, at most one for each chat.

    Args:
        context_manager: Chooses the exchanges, and stores the summary.
        layers: Wraps the client of each call in middleware.
        clock: Counts seconds.
        record: Stores the record of a call. It is called on a thread.
    """

    def __init__(
        self,
        context_manager: ContextManager,
        *,
        layers: ClientStack | None,
        clock: Callable[[], float],
        record: Callable[[GenerationResult], None],
    ) -> None:
        self._context_manager = context_manager
        self._layers = layers
        self._clock = clock
        self._record = record
        self._tasks: dict[str, asyncio.Task[None]] = {}
        """The running tasks, by chat id."""

    def start(
        self, chat_id: str, request: TurnRequest, state: TurnState, clients: ClientPool
    ) -> None:
        """Start a summary of a chat after a turn, unless summaries are off or one is running.

        The next task takes the exchanges that are trimmed meanwhile.

        Args:
            chat_id: The chat.
            request: The request of the turn.
            state: The state of the turn. Its model makes the summary.
            clients: The clients of the turn.
        """
        if self._context_manager.summarizes and chat_id not in self._tasks:
            task = self._tasks[chat_id] = asyncio.create_task(
                self._summarize(chat_id, request, state, clients)
            )
            task.add_done_callback(lambda _: self._tasks.pop(chat_id))

    async def wait(self) -> None:
        """Wait until the running tasks have ended."""
        await asyncio.gather(*self._tasks.values())

    async def aclose(self) -> None:
        """Cancel the tasks of the running event loop."""
        loop = asyncio.get_running_loop()
        tasks = [task for task in self._tasks.values() if task.get_loop() is loop]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _summarize(
        self, chat_id: str, request: TurnRequest, state: TurnState, clients: ClientPool
    ) -> None:
        """Summarize the trimmed exchanges with the model that answered.

        The calls use the user's quota. A task makes a few calls when many exchanges were trimmed,
        for example after summaries were enabled. After a failure the next turn tries again.
        """
        info, question = state.info, request.question
        if question is None:
            return
        positions = (entry["position"] for entry in state.context if "position" in entry)
        sent_from = min(positions, default=question.position)
        try:
            for _ in range(_MAX_CALLS):
                if not await self._summarize_next(info, request, chat_id, sent_from, clients):
                    return
        except Exception as error:  # noqa: BLE001 - the chat works without a summary
            log.warning(
                "no summary: %s",
                map_error(error).code,
                extra={"event": "summary_failed", "chat_id": chat_id},
            )

    async def _summarize_next(
        self,
        info: ModelInfo,
        request: TurnRequest,
        chat_id: str,
        sent_from: int,
        clients: ClientPool,
    ) -> bool:
        """Add the next exchanges to the summary. Return False if there are none."""
        started_at, agent, user_id = self._clock(), request.agent, request.user_id
        client = await clients.open(info.spec)
        to_summarize = await self._context_manager.to_summarize(
            chat_id,
            user_id=user_id,
            language=agent_language(agent),
            sent_from=sent_from,
            fits=lambda prompt: (
                prompt_tokens(prompt, client.count_tokens) + _MAX_SUMMARY_TOKENS <= info.context
            ),
        )
        if to_summarize is None:
            return False
        user_pays = clients.user_pays(info)
        if self._layers is not None:
            client = self._layers.wrap_for_call(
                client, CallContext(user_id, bypass_cache=True, user_key=user_pays)
            )
        options = clients.options(info, max_tokens=_MAX_SUMMARY_TOKENS)
        prompt = to_summarize.prompt
        if info.prompt == "transcript":
            prompt = Prompt(f"{prompt}\n\n", kind="transcript", stop=("\n\n",))
        completion = await client.generate(prompt, **asdict(options))
        summary = strip_model_markup(completion.content, agent).strip()
        if not summary:
            raise OnlyThoughts(provider=info.provider, model=info.name)
        summary = redact(summary, clients.keys.all_secrets)
        await self._context_manager.store_summary(
            chat_id, user_id=user_id, summary=summary, until=to_summarize.until
        )
        record = Generation(
            user_id=user_id,
            agent_id=agent.id,
            chat_id=chat_id,
            kind="summary",
            provider=info.provider,
            model=info.name,
            status="ok",
            prompt_tokens=completion.usage.prompt_tokens,
            completion_tokens=completion.usage.completion_tokens,
            cached_tokens=completion.usage.cached_tokens,
            total_ms=milliseconds(self._clock() - started_at),
            cost=await cost_of(info, completion.usage, client),
            user_key=user_pays,
        )
        await asyncio.to_thread(self._record, GenerationResult(record, info.spec))
        return True
