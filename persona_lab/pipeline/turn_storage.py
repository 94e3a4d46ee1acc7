"""Store what a turn leaves: the answer, its metadata and the generation."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from persona_lab.db.generations import FailedAttempt, GenerationResult
from persona_lab.db.tables import Generation, Message
from persona_lab.errors import StorageError
from persona_lab.pipeline.drafts import Draft, finish_despite_cancel
from persona_lab.pipeline.observers import Observer, store_and_notify
from persona_lab.pipeline.turn_metadata import answer_metadata, cost_of
from persona_lab.responses.changes import stored_details

if TYPE_CHECKING:
    from persona_lab.clients.pool import ClientPool
    from persona_lab.db.store import Store
    from persona_lab.pipeline.context import ContextManager
    from persona_lab.pipeline.fallback import ErrorHandler
    from persona_lab.pipeline.summaries import Summarizer
    from persona_lab.pipeline.turn_state import TurnRequest, TurnState
    from persona_lab.pipeline.write_retry import FailedWriteRetrier


@dataclass(frozen=True, slots=True)
class TurnStorage:
    """Stores the results of turns.

    Attributes:
        store: The database.
        clients: Knows who pays for a call.
        context_manager: Caches the exchange that has ended.
        summarizer: Summarizes the exchanges that aren't sent any more.
        error_handler: Writes the text for a failed write.
        failed_writes: Retries the writes of answers.
        observers: Called after each generation.
        clock: Counts seconds.
        save_every: Seconds between two writes of a growing answer.
    """

    store: Store
    clients: ClientPool
    context_manager: ContextManager
    summarizer: Summarizer
    error_handler: ErrorHandler
    failed_writes: FailedWriteRetrier
    observers: Sequence[Observer]
    clock: Callable[[], float]
    save_every: float

    def draft(self, request: TurnRequest) -> Draft | None:
        """Return the draft of the answer to ``request``; None for a turn without a chat."""
        if request.chat_id is None:
            return None
        return Draft(
            self.store,
            request.chat_id,
            request.user_id,
            self.save_every,
            replaces_answer=request.regenerates,
        )

    async def save(self, request: TurnRequest, state: TurnState, draft: Draft | None) -> None:
        """Store the answer and the generation, and set ``state.metadata``. Never raises.

        An answer that the store can't take is stored later, by a retry.
        """
        state.usage = state.usage_or_estimate
        generation = await self._generation(request, state)
        state.metadata = answer_metadata(request.agent, state, generation)
        result = _result(request, state, generation)
        store: Callable[[], Message | None] = functools.partial(self.store.record, generation)
        has_answer = draft is not None and bool(state.content)
        try:
            if draft is not None and has_answer:
                details = stored_details(state.metadata)
                store = functools.partial(
                    draft.finalize, generation, state.content, state.status, details
                )
                await draft.wait()
            await self._store(
                request, state, functools.partial(store_and_notify, store, self.observers, result)
            )
        except Exception as error:  # noqa: BLE001 - the answer is shown even if it isn't stored
            if has_answer and request.chat_id and isinstance(error, StorageError):
                self.failed_writes.add(
                    request.chat_id, functools.partial(self._store, request, state, store)
                )
            reply = await self.error_handler.handle(
                error, request.message, request.agent, language=request.language
            )
            error_metadata = {k: v for k, v in reply.metadata.items() if k != "fallback"}
            state.metadata = error_metadata | state.metadata

    async def _store(
        self, request: TurnRequest, state: TurnState, store: Callable[[], Message | None]
    ) -> None:
        """Call ``store`` on a thread. Add the answer that it returns to the cached context."""
        answer = await finish_despite_cancel(asyncio.to_thread(store))
        if answer is not None and request.chat_id is not None and request.question is not None:
            await self.context_manager.update_context(request.chat_id, request.question, answer)
            if state.status == "ok":
                self.summarizer.start(request.chat_id, request, state, self.clients)

    async def _generation(self, request: TurnRequest, state: TurnState) -> Generation:
        usage, info = state.usage_or_estimate, state.info
        return Generation(
            user_id=request.user_id,
            agent_id=request.agent.id,
            chat_id=request.chat_id,
            kind=request.kind,
            provider=info.provider,
            model=info.name,
            status=state.status,
            error_type=state.error.type.value if state.error else None,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cached_tokens=usage.cached_tokens,
            first_token_ms=state.elapsed_ms(state.first_token_at),
            total_ms=state.elapsed_ms(self.clock()) or 0.0,
            cost=await cost_of(info, usage, state.client),
            cache_hit=bool(state.client_metadata.get("cache_hit")),
            user_key=self.clients.user_pays(info),
        )


def _result(request: TurnRequest, state: TurnState, generation: Generation) -> GenerationResult:
    """Return the turn's result for the observers."""
    return GenerationResult(
        generation,
        state.metadata["spec"],
        code=state.error.code if state.error else None,
        attempts=state.metadata["attempts"],
        failed_attempts=tuple(
            FailedAttempt(f"{error.provider}:{error.model}", error.code, error.attempts)
            for error in state.failed
            if error is not state.error
        ),
        message=request.message,
        answer=state.content,
    )
