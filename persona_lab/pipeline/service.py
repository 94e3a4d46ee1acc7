"""LLMService: the pipeline of a turn, from the user's message to the stored answer.

validate → store the message → context → prompt → client → processor → store the answer.

Guarantees for callers:

- A method that raises before its first event has stored nothing. After the "start" event the
  user's message is stored.
- InputError and NotFound are raised, since the caller can correct the request. Every other failure
  becomes an answer in the persona's name, with ``fallback`` in its metadata.
- Each turn (complete, stopped or failed) leaves one :class:`~persona_lab.db.tables.Generation`.
  A partial answer stays in the chat. A crash loses at most the last half second of it.
- A chat has one turn at a time. A second turn waits until the first is stored, so that a chat has
  whole exchanges. This holds within one process: replicas don't wait for one another.
- In a chat, the next model of ``LLM_FALLBACK`` answers when the chosen model produced no text.
  ``model`` in the metadata names the model that answered. ``fallback_from`` lists the models that
  failed and their errors. A comparison or a trial has no fallback, since it tests one model.
- The output has no key of the settings, even if a provider's answer repeats one.
- ``error`` without ``fallback`` in the metadata: the answer is complete, but the store failed. The
  write is retried until it succeeds.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TYPE_CHECKING, Any

from persona_lab.clients.base import estimate_tokens
from persona_lab.db.generations import GenerationResult
from persona_lab.db.tables import Agent
from persona_lab.deprecated import former_method
from persona_lab.errors import StorageError
from persona_lab.monitor.request_context import with_request_context
from persona_lab.pipeline.chat_turns import ChatTurns
from persona_lab.pipeline.observers import Observer, store_and_notify
from persona_lab.pipeline.summaries import Summarizer
from persona_lab.pipeline.target import Target, resolve_target
from persona_lab.pipeline.token_budget import build_fitting_prompt
from persona_lab.pipeline.turn import Turn, TurnParts
from persona_lab.pipeline.turn_metadata import agent_language
from persona_lab.pipeline.turn_state import TurnRequest
from persona_lab.pipeline.turn_storage import TurnStorage
from persona_lab.types import Event, Language, Prompt, Reply

if TYPE_CHECKING:
    from persona_lab.clients.middleware.stack import ClientStack
    from persona_lab.clients.pool import ClientPool
    from persona_lab.db.store import Store
    from persona_lab.db.turns import TurnStart
    from persona_lab.pipeline.context import ContextManager, Entry
    from persona_lab.pipeline.fallback import ErrorHandler
    from persona_lab.pipeline.input import InputValidator
    from persona_lab.prompts.builder import PromptBuilder
    from persona_lab.responses.output_filter import OutputFilter
    from persona_lab.responses.processor import ResponseProcessor


log = logging.getLogger("persona_lab.service")

_PREFILL_MESSAGES = ("A", "ん")
"""Messages without a common prefix. The common prefix of their prompts is the part to prefill."""


class LLMService:
    """Answers messages. The state of a turn is local to the turn.

    Args:
        store: The store of chats, messages and generations.
        clients: Opens the clients of models.
        input_validator: Cleans and checks messages.
        context_manager: Chooses the exchanges that are sent with a message.
        prompt_builder: Builds the prompt.
        response_processor: Processes the text of the model.
        error_handler: Writes the answer for an error.
        layers: Wraps the client of each call in middleware.
        output_filter: Reviews whole answers, if it has a moderator.
        observers: Called after each generation.
        clock: Counts seconds.
        save_every: Seconds between two writes of a growing answer.
        retry_pause: Seconds before the first retry of a failed write.
    """

    def __init__(
        self,
        *,
        store: Store,
        clients: ClientPool,
        input_validator: InputValidator,
        context_manager: ContextManager,
        prompt_builder: PromptBuilder,
        response_processor: ResponseProcessor,
        error_handler: ErrorHandler,
        layers: ClientStack | None = None,
        output_filter: OutputFilter | None = None,
        observers: Sequence[Observer] = (),
        clock: Callable[[], float] = time.perf_counter,
        save_every: float = 0.5,
        retry_pause: float = 1.0,
    ) -> None:
        self.store = store
        self.clients = clients
        self.input_validator = input_validator
        self.context_manager = context_manager
        self.prompt_builder = prompt_builder
        self.response_processor = response_processor
        self.error_handler = error_handler
        self.layers = layers
        self.output_filter = output_filter
        self.observers = tuple(observers)
        self.clock = clock
        self.save_every = save_every
        self.chat_turns = ChatTurns(store, retry_pause)
        self.summarizer = Summarizer(
            context_manager, layers=layers, clock=clock, record=self._record_summary
        )

    def with_clients(self, clients: ClientPool) -> LLMService:
        """Return a copy of the service that uses ``clients``, such as those with a visitor's keys.

        The copy shares the locks of the chats, so that a chat still has one turn at a time.
        """
        service = copy.copy(self)
        service.clients = clients
        return service

    async def aclose(self) -> None:
        """Cancel the running summaries, and retry the failed writes once more."""
        await self.summarizer.aclose()
        await self.chat_turns.failed_writes.aclose()

    # ── turns with a chat ─────────────────────────────────────────────────────────────────

    async def generate_response(
        self,
        message: str,
        agent_id: str,
        chat_id: str,
        user_id: str,
        *,
        model: str = "",
        language: Language | None = None,
        **options: Any,
    ) -> Reply:
        """Answer a message, and return the whole answer. See :meth:`generate_streaming`."""
        events = self.generate_streaming(
            message, agent_id, chat_id, user_id, model=model, language=language, **options
        )
        async with contextlib.aclosing(events):
            async for event in events:
                if event.type == "done":
                    raw = event.metadata["raw"]
                    return Reply(event.content, event.metadata, event.message_id, raw)
        raise AssertionError("a stream ends with done or an error")

    @with_request_context
    async def generate_streaming(
        self,
        message: str,
        agent_id: str,
        chat_id: str,
        user_id: str,
        *,
        model: str = "",
        language: Language | None = None,
        pending: bool = False,
        **options: Any,
    ) -> AsyncGenerator[Event, None]:
        """Answer a message in a chat, and stream the answer.

        Closing the generator stops the model and stores the partial answer.

        Args:
            message: The user's message.
            agent_id: The agent of the chat.
            chat_id: The chat.
            user_id: The owner of the chat.
            model: ``provider:name``, or "" for the default model.
            language: The language of error texts; None for the persona's language.
            pending: Whether "delta" events have the unfinished text too. See
                :class:`~persona_lab.types.Event`.
            **options: Fields of :class:`~persona_lab.types.Options`.

        Yields:
            "start" with the stored message, "delta" for each text, and "done" with the answer.

        Raises:
            InputError: The message, the model or an option is invalid.
            NotFound: The user has no such chat, or ``agent_id`` isn't the agent of the chat.
            StorageError: The message can't be stored.
        """
        target = resolve_target(self.clients, model, options, with_fallback=True)
        text = self.input_validator.validate_message(message)

        def begin(agent_id: str | None) -> TurnStart:
            return self.store.begin_turn(chat_id, user_id=user_id, content=text, agent_id=agent_id)

        events = self.chat_turns.run(
            chat_id,
            user_id,
            agent_id,
            begin=begin,
            answer=lambda start: self._chat_turn(start, user_id, target, language, pending=pending),
        )
        async with contextlib.aclosing(events):
            async for event in events:
                yield event

    @with_request_context
    async def regenerate_streaming(
        self,
        chat_id: str,
        user_id: str,
        *,
        model: str = "",
        language: Language | None = None,
        pending: bool = False,
        **options: Any,
    ) -> AsyncGenerator[Event, None]:
        """Answer the last message of a chat again, and stream the answer.

        The previous answer stays in the store, hidden. It is restored when the new answer ends
        without text.

        Args:
            chat_id: The chat.
            user_id: The owner of the chat.
            model: ``provider:name``, or "" for the default model.
            language: The language of error texts; None for the persona's language.
            pending: Whether "delta" events have the unfinished text too. See
                :class:`~persona_lab.types.Event`.
            **options: Fields of :class:`~persona_lab.types.Options`.

        Yields:
            The same events as :meth:`generate_streaming`.

        Raises:
            InputError: The model or an option is invalid.
            NotFound: The user has no such chat, or the chat has no message.
            StorageError: The store can't be read or written.
        """
        target = resolve_target(self.clients, model, options, with_fallback=True)
        start: TurnStart | None = None
        has_text = False

        def begin(_: str | None) -> TurnStart:
            nonlocal start
            start = self.store.begin_regeneration(chat_id, user_id=user_id)
            return start

        async def restore() -> None:
            """Restore the previous answer if the new one has no text."""
            if start is None or has_text:
                return
            try:
                await asyncio.to_thread(
                    self.store.restore_answer, start.question.id, user_id=user_id
                )
            except StorageError:  # the next start of the app restores it
                log.warning("a previous answer isn't restored", extra={"event": "restore_failed"})

        events = self.chat_turns.run(
            chat_id,
            user_id,
            None,
            begin=begin,
            answer=lambda start: self._chat_turn(
                start, user_id, target, language, regenerates=True, pending=pending
            ),
            restore=restore,
        )
        async with contextlib.aclosing(events):
            async for event in events:
                is_text = event.type == "delta" and "fallback" not in event.metadata
                has_text |= is_text and bool(event.content)
                yield event

    # ── turns without a chat ──────────────────────────────────────────────────────────────

    @with_request_context
    async def answer(
        self,
        agent: Agent,
        message: str,
        *,
        user_id: str,
        context: Sequence[Entry] = (),
        model: str = "",
        kind: str = "try",
        language: Language | None = None,
        pending: bool = False,
        validator: InputValidator | None = None,
        **options: Any,
    ) -> AsyncGenerator[Event, None]:
        """Answer a message without a chat, and stream the answer. No message is stored.

        Args:
            agent: The persona. It may be unsaved.
            message: The user's message.
            user_id: The user whose quota the turn uses.
            context: The exchanges before the message.
            model: ``provider:name``, or "" for the default model.
            kind: The kind of the generation's record.
            language: The language of error texts; None for the persona's language.
            pending: Whether "delta" events have the unfinished text too. See
                :class:`~persona_lab.types.Event`.
            validator: Checks the message; None for the service's own.
            **options: Fields of :class:`~persona_lab.types.Options`.

        Yields:
            The same events as :meth:`generate_streaming`.

        Raises:
            InputError: The message, the model or an option is invalid.
        """
        target = resolve_target(self.clients, model, options, with_fallback=False)
        text = (validator or self.input_validator).validate_message(message)
        request = TurnRequest(
            kind,
            user_id,
            agent,
            text,
            target=target,
            language=language,
            context=context,
            pending=pending,
        )
        async with contextlib.aclosing(self._turn(request)) as events:
            async for event in events:
                yield event

    async def preview(
        self,
        agent: Agent,
        message: str,
        *,
        chat_id: str | None = None,
        user_id: str = "",
        model: str = "",
    ) -> Prompt:
        """Return the prompt that would be sent, to the byte.

        Args:
            agent: The persona. It may be unsaved.
            message: The user's message. It may be empty.
            chat_id: A chat of the user. Its exchanges become part of the prompt.
            user_id: The owner of the chat.
            model: ``provider:name``, or "" for the default model.

        Raises:
            InputError: The message or the model is invalid.
            NotFound: The user has no such chat.
            TemplateError: The template of the prompt fails.
        """
        info = self.clients.info(model)
        context: Sequence[Entry] = ()
        count: Callable[[str], int] = estimate_tokens
        if chat_id is not None:
            context = await self.context_manager.get_context(
                chat_id, user_id=user_id, language=agent_language(agent)
            )
            if self.clients.available(info):
                count = (await self.clients.open(model)).count_tokens
        text = self.input_validator.clean(message)
        prompt, _ = await build_fitting_prompt(
            self.prompt_builder,
            agent,
            text,
            context,
            info=info,
            max_tokens=self.clients.options(info).max_tokens,
            count=count,
        )
        return prompt

    async def prefill(
        self, agent: Agent, *, chat_id: str | None = None, user_id: str = "", model: str = ""
    ) -> None:
        """Prefill a local model with the persona and the context, before the next message.

        Nothing happens while the model isn't loaded. The model prefills when it is idle.

        Args:
            agent: The persona.
            chat_id: A chat of the user, whose exchanges are prefilled too.
            user_id: The owner of the chat.
            model: ``provider:name``, or "" for the default model.

        Raises:
            InputError: The model is invalid.
            NotFound: The user has no such chat.
            ProviderError: The client can't be opened.
            TemplateError: The template of the prompt fails.
        """
        client = await self.clients.open(model)
        if client.is_loaded:
            either = [
                await self.preview(agent, text, chat_id=chat_id, user_id=user_id, model=model)
                for text in _PREFILL_MESSAGES
            ]
            await client.prefill(either)

    read_ahead = former_method("LLMService", "read_ahead", "prefill")

    # ── the parts of a turn ───────────────────────────────────────────────────────────────

    def _chat_turn(
        self,
        start: TurnStart,
        user_id: str,
        target: Target,
        language: Language | None,
        *,
        regenerates: bool = False,
        pending: bool = False,
    ) -> AsyncGenerator[Event, None]:
        """Run one turn of a chat."""
        request = TurnRequest(
            "chat",
            user_id,
            start.agent,
            start.question.content,
            target=target,
            language=language,
            chat_id=start.question.chat_id,
            question=start.question,
            chat_state=start.state,
            regenerates=regenerates,
            pending=pending,
        )
        return self._turn(request)

    def _turn(self, request: TurnRequest) -> AsyncGenerator[Event, None]:
        """Run one turn with the present parts of the service."""
        storage = TurnStorage(
            store=self.store,
            clients=self.clients,
            context_manager=self.context_manager,
            summarizer=self.summarizer,
            error_handler=self.error_handler,
            failed_writes=self.chat_turns.failed_writes,
            observers=self.observers,
            clock=self.clock,
            save_every=self.save_every,
        )
        parts = TurnParts(
            clients=self.clients,
            context_manager=self.context_manager,
            prompt_builder=self.prompt_builder,
            response_processor=self.response_processor,
            error_handler=self.error_handler,
            layers=self.layers,
            output_filter=self.output_filter,
            storage=storage,
            clock=self.clock,
        )
        return Turn(parts, request).run()

    def _record_summary(self, result: GenerationResult) -> None:
        """Store the generation of a summary, and notify the observers."""
        store = functools.partial(self.store.record, result.record)
        store_and_notify(store, self.observers, result)
