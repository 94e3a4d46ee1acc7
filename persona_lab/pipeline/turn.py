"""One turn, from its request to the stored answer, in the order of the steps.

start → context → models of the fallback chain → prompt → client → response steps → storage.

A turn yields "start", a "delta" for each text, and "done". Every failure of its own becomes an
answer in the persona's name. InputError and NotFound are raised.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeGuard

from persona_lab.clients.error_mapping import map_error
from persona_lab.clients.middleware.wrapper import CallContext, log_provider_event
from persona_lab.errors import (
    InputError,
    InvalidResponse,
    NotFound,
    OnlyThoughts,
    PersonaLabError,
    ProviderError,
    Refused,
)
from persona_lab.monitor.request_context import bind_fields
from persona_lab.pipeline.drafts import finish_despite_cancel
from persona_lab.pipeline.token_budget import build_fitting_prompt, is_long
from persona_lab.pipeline.turn_metadata import agent_language, message_metadata
from persona_lab.pipeline.turn_state import TurnRequest, TurnState
from persona_lab.redaction import MASK, redact
from persona_lab.responses.changes import MODERATION_STEP, Change
from persona_lab.types import Chunk, Completion, Event, Reply
from persona_lab.unicode_text import is_blank

if TYPE_CHECKING:
    from persona_lab.clients.catalog import ModelInfo
    from persona_lab.clients.middleware.stack import ClientStack
    from persona_lab.clients.pool import ClientPool
    from persona_lab.pipeline.context import ContextManager, Entry
    from persona_lab.pipeline.fallback import ErrorHandler
    from persona_lab.pipeline.turn_storage import TurnStorage
    from persona_lab.prompts.builder import PromptBuilder
    from persona_lab.responses.output_filter import OutputFilter
    from persona_lab.responses.processor import ReplyStream, ResponseProcessor


@dataclass(frozen=True, slots=True)
class TurnParts:
    """The parts of the service that a turn uses.

    Attributes:
        clients: Opens the clients of models.
        context_manager: Chooses the exchanges that are sent with a message.
        prompt_builder: Builds the prompt.
        response_processor: Processes the text of the model.
        error_handler: Writes the answer for an error.
        layers: Wraps the client of each call in middleware.
        output_filter: Reviews whole answers, if it has a moderator.
        storage: Stores the answer and the generation.
        clock: Counts seconds.
    """

    clients: ClientPool
    context_manager: ContextManager
    prompt_builder: PromptBuilder
    response_processor: ResponseProcessor
    error_handler: ErrorHandler
    layers: ClientStack | None
    output_filter: OutputFilter | None
    storage: TurnStorage
    clock: Callable[[], float]


class Turn:
    """Runs one turn. The object serves one request.

    Args:
        parts: The parts of the service.
        request: The input of the turn.
    """

    def __init__(self, parts: TurnParts, request: TurnRequest) -> None:
        self._parts = parts
        self._request = request
        self._clock = parts.clock
        self._state = TurnState(request.target.models[0], self._clock())

    async def run(self) -> AsyncGenerator[Event, None]:
        """Stream the events, and store the answer and the generation at the end."""
        request, state = self._request, self._state
        bind_fields(chat_id=request.chat_id, agent_id=request.agent.id, user_id=request.user_id)
        draft = self._parts.storage.draft(request)
        held_back = ""
        try:
            yield Event("start", metadata=message_metadata(request.question))
            state.started_at = self._clock()
            async with contextlib.aclosing(self._answer()) as texts:
                async for text in texts:
                    if state.first_shown_at is None:
                        state.first_shown_at = self._clock()
                    if draft is not None and text:
                        draft.append(state.text)
                    message_id = draft.message_id if draft else ""
                    yield Event(
                        "delta",
                        text,
                        message_id=message_id,
                        pending=state.pending,
                        raw=state.raw,
                    )
            state.status = "ok"
        except (InputError, NotFound) as error:
            state.status, state.error = "failed", error
            raise
        except Exception as error:  # noqa: BLE001 - the user gets an answer for any error
            state.status = "failed"
            state.error = map_error(error, provider=state.info.provider, model=state.info.name)
            held_back = state.finish()
            state.fallback_reply = await self._fallback_reply(error, state.error)
        finally:
            if state.stopped_before_text and request.regenerates:
                state.stream = None  # the previous answer is restored: drop this text
            state.finish()
            await finish_despite_cancel(self._parts.storage.save(request, state, draft))
        message_id = draft.message_id if draft else ""
        if held_back:
            yield Event("delta", held_back, message_id=message_id)
        if state.fallback_reply is not None:
            separator = "\n\n" if state.text else ""
            text = separator + state.fallback_reply.content
            yield Event("delta", text, metadata={"fallback": True})
        yield Event("done", state.content, state.metadata, message_id)

    @property
    def _secrets(self) -> tuple[str, ...]:
        return self._parts.clients.keys.all_secrets

    async def _fallback_reply(self, error: Exception, mapped: PersonaLabError) -> Reply:
        """Return the answer in the persona's name for ``error``."""
        request = self._request
        reply = await self._parts.error_handler.handle(
            # Pass on an unknown error unchanged: the log needs its traceback.
            error if type(mapped) is PersonaLabError else mapped,
            request.message,
            request.agent,
            language=request.language,
            begun=bool(self._state.text),
        )
        return Reply(
            redact(reply.content, self._secrets),
            reply.metadata | {"error": redact(reply.metadata["error"], self._secrets)},
        )

    async def _answer(self) -> AsyncGenerator[str, None]:
        """Stream the processed text of the answer, and keep the state up to date."""
        parts, request, state = self._parts, self._request, self._state
        context = await self._context()
        if parts.clients.keys.changing:  # redact a new key from the first answer that uses it
            await asyncio.to_thread(parts.clients.keys.refresh)
        stream = parts.response_processor.open_stream(
            request.agent, self._secrets, data=request.target.has_form
        )
        output_filter = parts.output_filter
        if output_filter is not None and output_filter.moderator is not None:
            texts = self._moderated(stream, context, output_filter)
        else:
            texts = self._streamed(stream, context)
        async with contextlib.aclosing(texts):
            async for text in texts:
                yield text
        state.finish_reason = state.finish_reason or "stop"
        if is_blank(state.text):
            thought = state.finish_reason == "length" or "model_markup" in state.applied
            error = OnlyThoughts if thought else InvalidResponse
            raise error(provider=state.info.provider, model=state.info.name)

    async def _context(self) -> Sequence[Entry]:
        request = self._request
        if request.chat_id is None or request.question is None:
            return request.context
        return await self._parts.context_manager.get_context(
            request.chat_id,
            user_id=request.user_id,
            before=request.question,
            language=agent_language(request.agent),
            state=request.chat_state,
        )

    async def _streamed(
        self, stream: ReplyStream, context: Sequence[Entry]
    ) -> AsyncGenerator[str, None]:
        """Yield each text as soon as it is processed, and "" where only pending text changed."""
        state = self._state
        state.stream = stream
        async with contextlib.aclosing(self._call_models(context)) as chunks:
            async for chunk in chunks:
                text = stream.feed(chunk.text)
                state.text += text
                pending = ""
                if self._request.pending:
                    pending, state.raw = stream.pending, stream.raw
                if text or pending != state.pending:
                    state.pending = pending
                    yield text
                if stream.ended:
                    break
        state.pending = ""
        if text := state.finish():
            yield text

    async def _moderated(
        self, stream: ReplyStream, context: Sequence[Entry], output_filter: OutputFilter
    ) -> AsyncGenerator[str, None]:
        """Yield the whole answer after its review. A turn that is stopped before has no text."""
        state, text = self._state, ""
        async with contextlib.aclosing(self._call_models(context)) as chunks:
            async for chunk in chunks:
                text += stream.feed(chunk.text)
                if stream.ended:
                    break
        rest, state.applied = stream.finish()
        state.blocked = stream.blocked
        state.changes = stream.changes()
        state.text, flagged = await output_filter.review(text + rest, self._request.agent)
        if flagged:
            state.blocked = "moderation"
            state.applied += tuple(f"block:{name}" for name in flagged)
            state.changes = [Change(0, len(state.text), MASK, MODERATION_STEP, masked=True)]
        if state.text:
            yield state.text

    async def _call_models(self, context: Sequence[Entry]) -> AsyncGenerator[Chunk, None]:
        """Stream the answer of the first model of the fallback chain that produces text.

        Chunks without visible text are held back until text arrives. The next model is called
        only while no text was yielded and time is left.

        Raises:
            ProviderError: No model produced text. It is the error of the first model.
        """
        request, state = self._request, self._state
        for info in request.target.models:
            if state.failed and self._time_left() <= 0:
                break
            has_text, held = False, []
            try:
                async with contextlib.aclosing(self._call_model(info, context)) as chunks:
                    async for chunk in chunks:
                        held.append(chunk)
                        has_text = has_text or not is_blank(chunk.text)
                        while has_text and held:
                            yield held.pop(0)
            except Exception as error:
                mapped = map_error(error, provider=info.provider, model=info.name)
                if has_text or not can_fall_back(mapped):
                    raise
                state.failed.append(mapped)
                log_provider_event(logging.WARNING, "passed_over", info, mapped)
            else:
                for chunk in held:
                    yield chunk
                return
        if state.info is not request.target.models[0]:
            state.info, state.model, state.usage = request.target.models[0], "", None
        raise state.failed[0]

    def _time_left(self) -> float:
        """Return the seconds of the turn's total time that a fallback model may use."""
        return self._request.target.options.total_timeout - self._state.elapsed(self._clock())

    async def _call_model(
        self, info: ModelInfo, context: Sequence[Entry]
    ) -> AsyncGenerator[Chunk, None]:
        """Build the prompt for one model, and stream the model's chunks."""
        parts, request, state = self._parts, self._request, self._state
        state.select_model(info)
        client = await parts.clients.open(info.spec)
        if parts.layers is not None:
            call = CallContext(
                request.user_id,
                bypass_cache=request.bypass_cache,
                user_key=parts.clients.user_pays(info),
                is_fallback=bool(state.failed),
            )
            client = parts.layers.wrap_for_call(client, call)
        state.client = client
        if not client.is_loaded:
            loading_since = self._clock()
            await client.load()
            state.load_time += self._clock() - loading_since
        options = request.target.options
        if state.failed:
            options = parts.clients.options(info, **request.target.overrides)
        if info.is_context_assumed and is_long(request.agent, request.message, context):
            info = await parts.clients.measure_context(info, client)
        state.prompt, state.context = await build_fitting_prompt(
            parts.prompt_builder,
            request.agent,
            request.message,
            context,
            info=info,
            max_tokens=options.max_tokens,
            count=client.count_tokens,
        )
        if left_out := len(context) - len(state.context):
            size = {"tokens": info.context, "is_assumed": info.is_context_assumed}
            state.client_metadata |= {"left_out": {"messages": left_out, **size}}
        if state.failed:
            options = replace(options, total_timeout=max(0.0, self._time_left()))
        text = ""
        async with contextlib.aclosing(client.stream(state.prompt, options)) as chunks:
            async for chunk in chunks:
                if chunk.text and state.first_token_at is None:
                    state.first_token_at = self._clock()
                text += chunk.text
                state.usage = chunk.usage or state.usage
                state.finish_reason = chunk.finish_reason or state.finish_reason
                state.model = redact(chunk.model, self._secrets) or state.model
                state.client_metadata |= chunk.metadata
                yield chunk
        state.finish_reason = state.finish_reason or "stop"
        model = state.model or info.name
        client.validate_response(
            Completion(text, model, state.usage_or_estimate, state.finish_reason)
        )


def can_fall_back(error: Exception) -> TypeGuard[ProviderError]:
    """Return whether the next model of the fallback chain may be called after ``error``.

    The chain continues after a failure of one provider. It stops at our own errors, at invalid
    input and at a refusal: a refused message must not go from model to model until one accepts it.
    """
    return isinstance(error, ProviderError) and not isinstance(error, Refused)
