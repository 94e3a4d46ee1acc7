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
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from persona_lab.clients.base import estimate_tokens
from persona_lab.clients.error_mapping import map_error
from persona_lab.clients.middleware.wrapper import CallContext
from persona_lab.clients.options import STRUCTURED_OUTPUT_OPTIONS, check_options
from persona_lab.clients.registry import get_provider
from persona_lab.db.generations import FailedAttempt, GenerationResult
from persona_lab.db.tables import Agent, Generation, Message
from persona_lab.errors import (
    InputError,
    InvalidResponse,
    NotFound,
    PersonaLabError,
    ProviderError,
    StorageError,
)
from persona_lab.monitor.logs import log_turn
from persona_lab.monitor.request_context import bind_fields, with_request_context
from persona_lab.pipeline.drafts import Draft, finish_despite_cancel
from persona_lab.pipeline.fallback_chain import Fallback
from persona_lab.pipeline.prompt_size import TURN_MARKUP_TOKENS, prompt_tokens
from persona_lab.pipeline.summaries import Summarizer
from persona_lab.pipeline.turn import TurnRequest, TurnState
from persona_lab.pipeline.turn_metadata import (
    answer_metadata,
    cost_of,
    language_of,
    message_metadata,
)
from persona_lab.pipeline.write_retry import FailedWriteRetrier
from persona_lab.redaction import MASK, redact
from persona_lab.responses.changes import (
    MODERATION_STEP,
    Change,
    stored_details,
)
from persona_lab.types import Chunk, Completion, Event, Language, Prompt, Reply
from persona_lab.unicode_text import is_blank

if TYPE_CHECKING:
    from persona_lab.clients.catalog import ModelInfo
    from persona_lab.clients.middleware.stack import ClientStack
    from persona_lab.clients.pool import ClientPool
    from persona_lab.db.store import Store
    from persona_lab.pipeline.context import ContextManager, Entry
    from persona_lab.pipeline.fallback import ErrorHandler
    from persona_lab.pipeline.input import InputValidator
    from persona_lab.prompts.builder import PromptBuilder
    from persona_lab.responses.output_filter import OutputFilter
    from persona_lab.responses.processor import ResponseProcessor


log = logging.getLogger("persona_lab.service")

Observer = Callable[[GenerationResult], None]
"""Called after each generation, on a worker thread. An exception that it raises is logged."""

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
        log_messages: Whether the log line of a turn has its texts.
        clock: Counts seconds.
        save_every: Seconds between two writes of a growing answer.
        keep_again: Seconds before the first retry of a failed write.
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
        log_messages: bool = False,
        clock: Callable[[], float] = time.perf_counter,
        save_every: float = 0.5,
        keep_again: float = 1.0,
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
        self.log_messages = log_messages
        self.clock = clock
        self.save_every = save_every
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """The lock of each chat that has a turn. It lives as long as a turn holds it or waits."""
        self.summarizer = Summarizer(
            context_manager, layers=layers, clock=clock, record=self._record
        )
        self._failed_writes = FailedWriteRetrier(self._turns, keep_again)

    def with_clients(self, clients: ClientPool) -> LLMService:
        """Return a copy of the service that uses ``clients``, such as those with a visitor's keys.

        The copy shares the locks of the chats, so that a chat still has one turn at a time.
        """
        twin = copy.copy(self)
        twin.clients = clients
        return twin

    @property
    def _secrets(self) -> tuple[str, ...]:
        return self.clients.keys.all_secrets

    async def aclose(self) -> None:
        """Cancel the running summaries, and retry the failed writes once more."""
        await self.summarizer.aclose()
        await self._failed_writes.aclose()

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
            **options: Fields of :class:`~persona_lab.types.Options`.

        Yields:
            "start" with the stored message, "delta" for each text, and "done" with the answer.

        Raises:
            InputError: The message, the model or an option is invalid.
            NotFound: The user has no such chat, or ``agent_id`` isn't the agent of the chat.
            StorageError: The message can't be stored.
        """
        # Check the model and options before the message is stored.
        self.clients.options(self.clients.info(model), **options)
        text = self.input_validator.validate_message(message)

        def ask() -> Message:
            return self.store.add_message(chat_id, user_id=user_id, sender="user", content=text)

        events = self._chat_turn(
            ask, chat_id, user_id, agent_id, model=model, language=language, options=options
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
            **options: Fields of :class:`~persona_lab.types.Options`.

        Yields:
            The same events as :meth:`generate_streaming`.

        Raises:
            InputError: The model or an option is invalid.
            NotFound: The user has no such chat, or the chat has no message.
            StorageError: The store can't be read or written.
        """
        # Check the model and options before the previous answer is hidden.
        self.clients.options(self.clients.info(model), **options)

        asked: Message | None = None
        answered = False

        def ask() -> Message:
            nonlocal asked
            asked = self.store.supersede_answer(chat_id, user_id=user_id)
            return asked

        async def over() -> None:
            """Restore the previous answer if the new one has no text."""
            if asked is not None and not answered:
                try:
                    await asyncio.to_thread(self.store.restore_answer, asked.id, user_id=user_id)
                except StorageError:  # the next start of the app restores it
                    log.warning("an answer stays aside", extra={"event": "restore_failed"})

        events = self._chat_turn(
            ask,
            chat_id,
            user_id,
            over=over,
            model=model,
            language=language,
            options=options,
            fresh=True,
        )
        async with contextlib.aclosing(events):
            async for event in events:
                answered |= event.type == "delta" and "fallback" not in event.metadata
                yield event

    async def _chat_turn(
        self,
        ask: Callable[[], Message],
        chat_id: str,
        user_id: str,
        agent_id: str | None = None,
        over: Callable[[], Awaitable[None]] | None = None,
        **how: Any,
    ) -> AsyncGenerator[Event, None]:
        """Run one turn of a chat after the turns before it.

        ``ask`` returns the message to answer. ``over`` runs when the answer has ended in any way,
        before the next turn begins.
        """
        chat = await asyncio.to_thread(self.store.get_chat, chat_id, user_id=user_id)
        if agent_id not in (None, chat.agent_id):
            raise NotFound(kind="agent")
        async with contextlib.AsyncExitStack() as turn:
            await turn.enter_async_context(self._turns.setdefault(chat_id, asyncio.Lock()))
            await self._failed_writes.keep(chat_id)
            if over is not None:
                turn.push_async_callback(lambda: finish_despite_cancel(over()))
            # Read the persona first: without it, no message is stored.
            get = self.store.get_agent
            agent = await asyncio.to_thread(get, chat.agent_id, user_id=user_id)
            asked = await finish_despite_cancel(asyncio.to_thread(ask))
            request = TurnRequest(
                "chat", user_id, agent, asked.content, chat_id=chat_id, asked=asked, **how
            )
            async with contextlib.aclosing(self._turn(request)) as events:
                async for event in events:
                    if event.type == "done":  # the answer is stored: let the next turn begin
                        await turn.aclose()
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
            **options: Fields of :class:`~persona_lab.types.Options`.

        Yields:
            The same events as :meth:`generate_streaming`.

        Raises:
            InputError: The message, the model or an option is invalid.
        """
        check_options(options)
        text = self.input_validator.validate_message(message)
        request = TurnRequest(
            kind,
            user_id,
            agent,
            text,
            model=model,
            options=options,
            language=language,
            context=context,
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
                chat_id, user_id=user_id, language=language_of(agent)
            )
            if self.clients.available(info):
                count = (await self.clients.open(model)).count_tokens
        text = self.input_validator.clean(message)
        prompt, _ = await self._prompt(agent, text, context, info, count, {})
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

    # ── the turn ──────────────────────────────────────────────────────────────────────────

    async def _turn(self, request: TurnRequest) -> AsyncGenerator[Event, None]:
        """Run one turn: stream its events, and store the answer and the record at its end."""
        bind_fields(chat_id=request.chat_id, agent_id=request.agent.id, user_id=request.user_id)
        state = TurnState(began=self.clock())
        draft = None
        if request.chat_id is not None:
            draft = Draft(
                self.store,
                request.chat_id,
                request.user_id,
                self.clock,
                self.save_every,
                instead=request.fresh,
            )
        rest = ""
        try:
            yield Event("start", metadata=message_metadata(request.asked))
            state.began = self.clock()
            async with contextlib.aclosing(self._processed_text(request, state)) as pieces:
                async for piece in pieces:
                    if state.shown is None:
                        state.shown = self.clock()
                    if draft is not None:
                        draft.append(state.text)
                    yield Event(
                        "delta", piece, message_id=draft.message_id if draft is not None else ""
                    )
            state.status = "ok"
        except (InputError, NotFound) as error:
            state.status, state.error = "failed", error
            raise
        except Exception as error:  # noqa: BLE001 - the user gets an answer for any error
            state.status = "failed"
            state.error = map_error(
                error,
                provider=state.info.provider if state.info else "",
                model=state.info.name if state.info else "",
            )
            rest = state.finish()
            excuse = await self.error_handler.handle(
                # Pass on an unknown error unchanged: the log needs its traceback.
                error if type(state.error) is PersonaLabError else state.error,
                request.message,
                request.agent,
                language=request.language,
                begun=bool(state.text),
            )
            state.excuse = Reply(
                redact(excuse.content, self._secrets),
                excuse.metadata | {"error": redact(excuse.metadata["error"], self._secrets)},
            )
        finally:
            if state.unseen and request.fresh:
                state.stream = None  # the previous answer is restored: drop this text
            state.finish()
            await finish_despite_cancel(self._store_result(request, state, draft))
        if rest:
            yield Event("delta", rest, message_id=draft.message_id if draft else "")
        if state.excuse is not None:
            lead = "\n\n" if state.text else ""
            yield Event("delta", lead + state.excuse.content, metadata={"fallback": True})
        yield Event("done", state.content, state.metadata, draft.message_id if draft else "")

    async def _processed_text(
        self, request: TurnRequest, state: TurnState
    ) -> AsyncGenerator[str, None]:
        """Stream the processed text of the answer, and keep ``state`` up to date."""
        context, agent = request.context, request.agent
        state.info = info = self.clients.info(request.model)
        if request.chat_id is not None and request.asked is not None:
            context = await self.context_manager.get_context(
                request.chat_id,
                user_id=request.user_id,
                before=request.asked,
                language=language_of(agent),
            )
        models = (
            self.clients.fallback_chain(request.model) if request.chat_id is not None else [info]
        )
        self.clients.options(info, **request.options)  # raises for an invalid option
        forms = {form for form in STRUCTURED_OUTPUT_OPTIONS if request.options.get(form)}
        models = [each for each in models if forms <= get_provider(each.provider).structured_output]
        answers = Fallback(models, functools.partial(self._model_chunks, request, state, context))
        state.failed = answers.failed
        if self.clients.keys.changing:  # redact a new key from the first answer that uses it
            await asyncio.to_thread(self.clients.keys.refresh)
        stream = self.response_processor.open_stream(agent, self._secrets, data=bool(forms))
        filter_ = self.output_filter
        moderation = filter_ if filter_ is not None and filter_.moderator is not None else None
        held = ""
        if moderation is None:  # a stopped turn must not store text without its review
            state.stream = stream
        try:
            async with contextlib.aclosing(answers.stream()) as chunks:
                async for chunk in chunks:
                    text = stream.feed(chunk.text)
                    if moderation is not None:
                        held += text
                    elif text:
                        state.text += text
                        yield text
                    if stream.ended:
                        break
        except ProviderError as error:
            if error in state.failed and state.info is not info:  # no model of the chain answered
                state.info, state.model, state.usage = info, "", None
            raise
        if moderation is not None:
            rest, state.applied = stream.finish()
            state.blocked = stream.blocked
            state.changes = stream.changes()
            state.text, flagged = await moderation.review(held + rest, agent)
            if flagged:
                state.blocked = "moderation"
                state.applied += tuple(f"block:{name}" for name in flagged)
                state.changes = [Change(0, len(state.text), MASK, MODERATION_STEP, masked=True)]
            text = state.text
        else:
            text = state.finish()
        if text:
            yield text
        state.finish_reason = state.finish_reason or "stop"
        if is_blank(state.text):
            raise InvalidResponse(provider=state.info.provider, model=state.info.name)

    async def _model_chunks(
        self,
        request: TurnRequest,
        state: TurnState,
        context: Sequence[Entry],
        info: ModelInfo,
    ) -> AsyncGenerator[Chunk, None]:
        """Build the prompt for one model, and stream the model's chunks."""
        state.info, state.model, state.told = info, "", {}
        state.first = state.usage = state.finish_reason = None
        client = await self.clients.open(info.spec)
        if self.layers is not None:
            # Trials and comparisons show how the answers of a model vary: don't cache them.
            fresh = request.fresh or request.kind != "chat"
            own = self.clients.user_pays(info)
            again = bool(state.failed)
            asking = CallContext(
                request.user_id, bypass_cache=fresh, user_key=own, is_fallback=again
            )
            client = self.layers.wrap_for_call(client, asking)
        state.client = client
        if not client.is_loaded:
            loading = self.clock()
            await client.load()
            state.load += self.clock() - loading
        state.prompt, state.context = await self._prompt(
            request.agent, request.message, context, info, client.count_tokens, request.options
        )
        options = self.clients.options(info, **request.options)
        if state.failed:  # a fallback model gets the rest of the total time
            left = options.total_timeout - (self.clock() - state.began - state.load)
            if left <= 0:  # the model before used the whole time
                raise state.failed[-1]
            options = replace(options, total_timeout=left)
        said = ""
        async with contextlib.aclosing(client.stream(state.prompt, options)) as chunks:
            async for chunk in chunks:
                if chunk.text and state.first is None:
                    state.first = self.clock()
                said += chunk.text
                state.usage = chunk.usage or state.usage
                state.finish_reason = chunk.finish_reason or state.finish_reason
                state.model = redact(chunk.model, self._secrets) or state.model
                state.told |= chunk.metadata
                yield chunk
        state.finish_reason = state.finish_reason or "stop"
        model = state.model or info.name
        client.validate_response(Completion(said, model, state.spent, state.finish_reason))

    async def _prompt(
        self,
        agent: Agent,
        message: str,
        context: Sequence[Entry],
        info: ModelInfo,
        count: Callable[[str], int],
        options: Mapping[str, Any],
    ) -> tuple[Prompt, Sequence[Entry]]:
        """Build the prompt with the part of ``context`` that fits, and return both.

        The model's context window must hold the prompt and the answer.
        """
        build = self.prompt_builder.build
        prompt = await build(agent, message, context, info=info)
        answer = self.clients.options(info, **options).max_tokens
        room = info.context - min(answer, info.context // 2)
        # A token has at least one byte, so the byte count is an upper bound. An exact count can
        # take long: run it on a thread.
        if (
            context
            and prompt_tokens(prompt, lambda text: len(text.encode("utf-8", "replace"))) > room
            and await asyncio.to_thread(prompt_tokens, prompt, count) > room
        ):
            bare = await build(agent, message, (), info=info)
            context = await asyncio.to_thread(
                lambda: self.context_manager.fit(
                    context,
                    room - prompt_tokens(bare, count),
                    lambda text: count(text) + TURN_MARKUP_TOKENS,
                )
            )
            prompt = await build(agent, message, context, info=info)
        summary = context[0].get("summary", "") if context else ""
        if summary:
            prompt = replace(prompt, trace=replace(prompt.trace, summary=summary))
        return prompt, context

    async def _store_result(
        self, request: TurnRequest, state: TurnState, draft: Draft | None
    ) -> None:
        """Store the answer and the turn's record. Fill ``state.metadata``. Never raises."""
        record = await self._generation_of(request, state)
        state.metadata = answer_metadata(request, state, record)
        passed_over = [error for error in state.failed if error is not state.error]
        outcome = GenerationResult(
            record,
            state.metadata["spec"],
            code=state.error.code if state.error else None,
            attempts=state.metadata["attempts"],
            failed_attempts=tuple(
                FailedAttempt(f"{error.provider}:{error.model}", error.code, error.attempts)
                for error in passed_over
            ),
            message=request.message,
            answer=state.content,
        )
        settle = functools.partial(self._finalize_answer, request, state, draft)
        writes: list[Callable[[], Awaitable[object]]] = [
            settle,
            lambda: asyncio.to_thread(self._record, outcome),
        ]
        for write in writes:
            try:
                await write()
            except Exception as error:  # noqa: BLE001 - the next write runs even if one fails
                if write is settle and request.chat_id and isinstance(error, StorageError):
                    self._failed_writes.add(request.chat_id, settle)
                excuse = await self.error_handler.handle(
                    error, request.message, request.agent, language=request.language
                )
                noted = {k: v for k, v in excuse.metadata.items() if k != "fallback"}
                state.metadata = noted | state.metadata

    async def _generation_of(self, request: TurnRequest, state: TurnState) -> Generation:
        usage, info = state.spent, state.info
        provider, _, name = request.model.partition(":")
        return Generation(
            user_id=request.user_id,
            agent_id=request.agent.id,
            chat_id=request.chat_id,
            kind=request.kind,
            provider=info.provider if info else provider,
            model=info.name if info else name,
            status=state.status,
            error_type=state.error.type.value if state.error else None,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cached_tokens=usage.cached_tokens,
            first_token_ms=state.since_began(state.first),
            total_ms=state.since_began(self.clock()) or 0.0,
            cost=await cost_of(info, usage, state.client),
            cache_hit=bool(state.told.get("cache_hit")),
            user_key=info is not None and self.clients.user_pays(info),
        )

    def _record(self, outcome: GenerationResult) -> None:
        """Store the record of a generation. Notify the observers even if the write fails."""
        try:
            self.store.record(outcome.record)
        finally:
            self._notify_observers(outcome)

    def _notify_observers(self, outcome: GenerationResult) -> None:
        log_turn(outcome, texts=self.log_messages)
        for observe in self.observers:
            try:
                observe(outcome)
            except Exception as error:  # noqa: BLE001 - an observer must not fail a turn
                trace = traceback.extract_tb(error.__traceback__)
                log.warning(
                    "an observer failed",
                    extra={
                        "event": "observer_failed",
                        "error_class": type(error).__name__,
                        "trace": [f"{at.filename}:{at.lineno} {at.name}" for at in trace],
                    },
                )

    async def _finalize_answer(
        self, request: TurnRequest, state: TurnState, draft: Draft | None
    ) -> None:
        if draft is None:
            return
        answer = await draft.finalize(state.content, state.status, stored_details(state.metadata))
        if answer is not None and request.chat_id is not None and request.asked is not None:
            await self.context_manager.update_context(request.chat_id, request.asked, answer)
            if state.status == "ok":
                self.summarizer.start(request.chat_id, request, state, self.clients)
