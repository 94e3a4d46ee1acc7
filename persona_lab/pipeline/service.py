"""LLMService: the one path that a message takes, from the box it was typed in to the store.

validate → keep the user's message → context → prompt → client → processor → keep the answer.

What a caller can rely on:

- Errors that leave a method before its first event mean that nothing was stored; the "start"
  event says that the user's message is.
- InputError and NotFound are raised: the caller has something to choose again. Every other
  failure becomes an answer in the persona's name, with ``fallback`` in its metadata.
- However a turn ends (whole, stopped, failed) it leaves one :class:`TurnRecord`, and what had
  come of the answer stays in the chat. A crash keeps all but the last half second of it.
- A chat has one turn at a time: a second waits until the first is kept, so that the chat is a
  row of whole exchanges. (Within one process: replicas don't wait for one another.)
- In a chat, another model of ``LLM_FALLBACK`` answers when the chosen one gave no word; ``model``
  in the metadata says who answered, ``fallback_from`` whom it stands in for and why. A comparison
  or a trial looks at one model: there, nobody stands in for it.
- No key of the settings is in what comes out, even where a provider's answer repeats it.
- ``error`` in the metadata without ``fallback``: the answer is whole, the store didn't take it. It
  is tried again until it does.
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
from dataclasses import KW_ONLY, asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from persona_lab.clients.base import estimate_tokens
from persona_lab.clients.error_mapping import map_error
from persona_lab.clients.middleware.wrapper import CallContext
from persona_lab.clients.options import STRUCTURED_OUTPUT_OPTIONS, check_options
from persona_lab.clients.pricing import priced
from persona_lab.clients.registry import get_provider
from persona_lab.db.generations import FailedAttempt, GenerationResult
from persona_lab.db.tables import Agent, Generation, Message
from persona_lab.errors import (
    InputError,
    InvalidResponse,
    NotFound,
    PersonaLabError,
    ProviderError,
    RateLimitError,
    StorageError,
)
from persona_lab.monitor.request_context import bind_fields, request_id, with_request_context
from persona_lab.pipeline.drafts import Draft, finish_despite_cancel
from persona_lab.pipeline.fallback_chain import Fallback
from persona_lab.pipeline.write_retry import FailedWriteRetrier
from persona_lab.redaction import MASK, redact
from persona_lab.responses.changes import (
    FALLBACK_STEP,
    MODERATION_STEP,
    Change,
    Edit,
    compose,
    restore,
    stored_details,
)
from persona_lab.types import Chunk, Completion, Event, Language, Prompt, Reply, Status, Usage
from persona_lab.unicode_text import is_blank

if TYPE_CHECKING:
    from persona_lab.clients.base import LLMClientInterface
    from persona_lab.clients.catalog import ModelInfo
    from persona_lab.clients.middleware.stack import ClientStack
    from persona_lab.clients.pool import ClientPool
    from persona_lab.db.store import Store
    from persona_lab.pipeline.context import ContextManager, Entry
    from persona_lab.pipeline.fallback import ErrorHandler
    from persona_lab.pipeline.input import InputValidator
    from persona_lab.prompts.builder import PromptBuilder
    from persona_lab.responses.output_filter import OutputFilter
    from persona_lab.responses.processor import ReplyStream, ResponseProcessor

log = logging.getLogger("persona_lab.service")

Observer = Callable[[GenerationResult], None]
"""Called after each generation, on a thread of its own; what it raises is a line in the log."""

_UNLIKE = ("A", "ん")
"""Messages with nothing in common: what two prompts share has no message in it."""
_SUMMARY_TOKENS = 400
_PORTIONS = 3
"""Summaries that one turn has made at most."""
_MARKS = 8
"""Tokens that a chat's form puts around each turn, at most."""


@dataclass(frozen=True, slots=True)
class _Task:
    """What is to be answered. ``context`` is looked up where there is a chat."""

    kind: str
    user_id: str
    agent: Agent
    message: str
    _: KW_ONLY
    model: str
    options: Mapping[str, Any]
    language: Language | None
    context: Sequence[Entry] = ()
    chat_id: str | None = None
    asked: Message | None = None
    fresh: bool = False


@dataclass(slots=True)
class _Course:
    """How far a turn has come. Times are the clock's seconds."""

    began: float
    info: ModelInfo | None = None
    client: LLMClientInterface | None = None
    prompt: Prompt | None = None
    context: Sequence[Entry] = ()
    failed: Sequence[ProviderError] = ()
    told: dict[str, Any] = field(default_factory=dict)
    stream: ReplyStream | None = None
    text: str = ""
    applied: tuple[str, ...] = ()
    changes: Sequence[Change] = ()
    blocked: str = ""
    first: float | None = None
    shown: float | None = None
    load: float = 0
    usage: Usage | None = None
    finish_reason: str | None = None
    model: str = ""
    status: Status = "stopped"
    error: PersonaLabError | None = None
    excuse: Reply | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def finish(self) -> str:
        """What the processor still held back; "" when asked again."""
        if self.stream is None:
            return ""
        rest, self.applied = self.stream.finish()
        self.blocked = self.stream.blocked
        self.changes = self.stream.changes()
        self.stream = None
        self.text += rest
        return rest

    def since_began(self, moment: float | None) -> float | None:
        """Milliseconds, without those for loading the model."""
        return None if moment is None else _milliseconds(moment - self.began - self.load)

    @property
    def unseen(self) -> bool:
        """Whether it was stopped before a word was shown."""
        return self.status == "stopped" and self.shown is None

    @property
    def content(self) -> str:
        """The answer as it is shown and kept."""
        excuse = self.excuse.content if self.excuse else ""
        return "\n\n".join(filter(None, [self.text, excuse]))

    @property
    def content_changes(self) -> Sequence[Change]:
        """The changes of :attr:`content`: the error handler's words are one of them."""
        text, content = self.text, self.content
        if text == content:
            return self.changes
        added = Edit(len(text), len(text), len(content) - len(text))
        return compose(self.changes, [added], text, content, FALLBACK_STEP)

    @property
    def spent(self) -> Usage:
        """The provider's count, or an estimate where the answer ended before it came.

        One that failed before its first word is counted as nothing; who stopped it had it read.
        """
        read = self.first is not None or self.status == "stopped"
        if self.usage is not None or not (read and self.client and self.prompt):
            return self.usage or Usage()
        prompt = str(self.prompt)
        try:
            count = self.client.count_tokens
            return Usage(count(prompt), count(self.text), estimated=True)
        except Exception:  # noqa: BLE001 - an answer isn't lost for want of a number
            return Usage(estimate_tokens(prompt), estimate_tokens(self.text), estimated=True)


class LLMService:
    """Answers messages. Holds no state of any user: each turn's is local to it.

    ``layers`` puts those of a call around its client. ``observers`` hear of each generation when
    it is over. ``log_messages``: whether the log's line of a turn has its words. ``clock`` counts
    seconds; ``save_every`` is how often a growing answer is written down, ``keep_again`` the first
    pause before one that the store didn't take is tried again.
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
        """The turn of each chat that has one; those who wait for it keep it here."""
        self._jobs: dict[str, asyncio.Task[None]] = {}
        """Summaries that are being made, by their chats."""
        self._unkept = FailedWriteRetrier(self._turns, keep_again)

    def with_clients(self, clients: ClientPool) -> LLMService:
        """This service, which asks other clients: those with a visitor's own keys, say.

        A copy that shares all it remembers: chats take turns whoever asks.
        """
        twin = copy.copy(self)
        twin.clients = clients
        return twin

    @property
    def _secrets(self) -> tuple[str, ...]:
        return self.clients.keys.all_secrets

    async def aclose(self) -> None:
        """Break off what goes on beside the answers, and try once more to keep what isn't kept."""
        here = asyncio.get_running_loop()
        jobs = [job for job in self._jobs.values() if job.get_loop() is here]
        for job in jobs:
            job.cancel()
        if jobs:
            await asyncio.wait(jobs)
        await self._unkept.aclose()

    # ── with a chat ───────────────────────────────────────────────────────────────────────

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
        """The whole answer of :meth:`generate_streaming`, which see."""
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
        """The answer as it comes: "start" with the message as it is kept, "delta" …, "done".

        ``model``: ``provider:name``, the default's where empty. ``language``: of the words shown
        on failure, the persona's where None. ``options`` are fields of
        :class:`~persona_lab.types.Options`. Closing the generator stops the model and keeps
        what has come.

        Raises InputError, NotFound (also for an ``agent_id`` that isn't the chat's), and
        StorageError when the message itself can't be kept.
        """
        # Whoever must choose again still has their message: none of this is kept.
        self.clients.options(self.clients.info(model), **options)
        text = self.input_validator.validate_message(message)

        def ask() -> Message:
            return self.store.add_message(chat_id, user_id=user_id, sender="user", content=text)

        events = self._in_chat(
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
        """Another answer to the chat's last message; the one before is kept, out of sight, and
        stands again where no word of a new one came.

        Raises NotFound when nothing was asked yet, InputError and StorageError.
        """
        # An unknown model or option must not cost the answer that stands.
        self.clients.options(self.clients.info(model), **options)

        asked: Message | None = None
        answered = False

        def ask() -> Message:
            nonlocal asked
            asked = self.store.supersede_answer(chat_id, user_id=user_id)
            return asked

        async def over() -> None:
            """The answer that stood before stands again, where no word of another came."""
            if asked is not None and not answered:
                try:
                    await asyncio.to_thread(self.store.restore_answer, asked.id, user_id=user_id)
                except StorageError:  # the next start does it; who waits hears of their answer
                    log.warning("an answer stays aside", extra={"event": "restore_failed"})

        events = self._in_chat(
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

    async def _in_chat(
        self,
        ask: Callable[[], Message],
        chat_id: str,
        user_id: str,
        agent_id: str | None = None,
        over: Callable[[], Awaitable[None]] | None = None,
        **how: Any,
    ) -> AsyncGenerator[Event, None]:
        """One turn of a chat, after those before it: ``ask`` gives the message to be answered.

        ``over`` is done when the answer has ended in whatever way, before the next turn begins.
        """
        chat = await asyncio.to_thread(self.store.get_chat, chat_id, user_id=user_id)
        if agent_id not in (None, chat.agent_id):
            raise NotFound(kind="agent")
        async with contextlib.AsyncExitStack() as turn:
            await turn.enter_async_context(self._turns.setdefault(chat_id, asyncio.Lock()))
            await self._unkept.keep(chat_id)
            if over is not None:
                turn.push_async_callback(lambda: finish_despite_cancel(over()))
            # A persona that is gone costs no message.
            get = self.store.get_agent
            agent = await asyncio.to_thread(get, chat.agent_id, user_id=user_id)
            asked = await finish_despite_cancel(asyncio.to_thread(ask))
            task = _Task("chat", user_id, agent, asked.content, chat_id=chat_id, asked=asked, **how)
            async with contextlib.aclosing(self._turn(task)) as events:
                async for event in events:
                    if event.type == "done":  # it is kept, and may be read at leisure
                        await turn.aclose()
                    yield event

    # ── without a chat ────────────────────────────────────────────────────────────────────

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
        """The path without a chat: ``agent`` may be unsaved, and no message is kept.

        ``kind`` is what the turn's record calls it. Raises InputError.
        """
        check_options(options)
        text = self.input_validator.validate_message(message)
        task = _Task(
            kind,
            user_id,
            agent,
            text,
            model=model,
            options=options,
            language=language,
            context=context,
        )
        async with contextlib.aclosing(self._turn(task)) as events:
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
        """What would be sent, to the byte. An empty message is fine here.

        With ``chat_id``, one of the user's, the conversation so far stands in it. Raises
        InputError, NotFound and TemplateError.
        """
        info = self.clients.info(model)
        context: Sequence[Entry] = ()
        count: Callable[[str], int] = estimate_tokens
        if chat_id is not None:
            context = await self.context_manager.get_context(
                chat_id, user_id=user_id, language=_language(agent)
            )
            if self.clients.available(info):
                count = (await self.clients.open(model)).count_tokens
        text = self.input_validator.clean(message)
        prompt, _ = await self._prompt(agent, text, context, info, count, {})
        return prompt

    async def prefill(
        self, agent: Agent, *, chat_id: str | None = None, user_id: str = "", model: str = ""
    ) -> None:
        """Let a model of this machine read the persona, and the conversation so far, before the
        next message comes. It does so when it has nothing else to do, once it is loaded.

        Raises as :meth:`preview` does, and ProviderError.
        """
        client = await self.clients.open(model)
        if client.is_loaded:
            either = [
                await self.preview(agent, text, chat_id=chat_id, user_id=user_id, model=model)
                for text in _UNLIKE
            ]
            await client.prefill(either)

    # ── the path ──────────────────────────────────────────────────────────────────────────

    async def _turn(self, task: _Task) -> AsyncGenerator[Event, None]:
        bind_fields(chat_id=task.chat_id, agent_id=task.agent.id, user_id=task.user_id)
        course = _Course(began=self.clock())
        draft = None
        if task.chat_id is not None:
            draft = Draft(
                self.store,
                task.chat_id,
                task.user_id,
                self.clock,
                self.save_every,
                instead=task.fresh,
            )
        rest = ""
        try:
            yield Event("start", metadata=_asked(task.asked))
            course.began = self.clock()
            async with contextlib.aclosing(self._pieces(task, course)) as pieces:
                async for piece in pieces:
                    if course.shown is None:
                        course.shown = self.clock()
                    if draft is not None:
                        draft.append(course.text)
                    yield Event(
                        "delta", piece, message_id=draft.message_id if draft is not None else ""
                    )
            course.status = "ok"
        except (InputError, NotFound) as error:
            course.status, course.error = "failed", error
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the user gets an answer
            course.status = "failed"
            course.error = map_error(
                error,
                provider=course.info.provider if course.info else "",
                model=course.info.name if course.info else "",
            )
            rest = course.finish()
            excuse = await self.error_handler.handle(
                # An error that stays unknown is passed on as it was: the log wants its trace.
                error if type(course.error) is PersonaLabError else course.error,
                task.message,
                task.agent,
                language=task.language,
                begun=bool(course.text),
            )
            course.excuse = Reply(
                redact(excuse.content, self._secrets),
                excuse.metadata | {"error": redact(excuse.metadata["error"], self._secrets)},
            )
        finally:
            if course.unseen and task.fresh:
                course.stream = None  # the answer before stands again: nobody saw a word of this
            course.finish()
            await finish_despite_cancel(self._keep(task, course, draft))
        if rest:
            yield Event("delta", rest, message_id=draft.message_id if draft else "")
        if course.excuse is not None:
            lead = "\n\n" if course.text else ""
            yield Event("delta", lead + course.excuse.content, metadata={"fallback": True})
        yield Event("done", course.content, course.metadata, draft.message_id if draft else "")

    async def _pieces(self, task: _Task, course: _Course) -> AsyncGenerator[str, None]:
        """Steps 4 to 7: finished text as it comes, with ``course`` kept up to date."""
        context, agent = task.context, task.agent
        course.info = info = self.clients.info(task.model)
        if task.chat_id is not None and task.asked is not None:
            context = await self.context_manager.get_context(
                task.chat_id, user_id=task.user_id, before=task.asked, language=_language(agent)
            )
        models = self.clients.fallback_chain(task.model) if task.chat_id is not None else [info]
        self.clients.options(info, **task.options)  # one that it can't keep to is told now
        forms = {form for form in STRUCTURED_OUTPUT_OPTIONS if task.options.get(form)}
        models = [each for each in models if forms <= get_provider(each.provider).structured_output]
        answers = Fallback(models, functools.partial(self._ask, task, course, context))
        course.failed = answers.failed
        if self.clients.keys.changing:  # a key is hidden from the first answer on that it pays for
            await asyncio.to_thread(self.clients.keys.refresh)
        stream = self.response_processor.open_stream(agent, self._secrets, data=bool(forms))
        filter_ = self.output_filter
        moderation = filter_ if filter_ is not None and filter_.moderator is not None else None
        held = ""
        if moderation is None:  # what nobody has looked at isn't kept when the turn breaks off
            course.stream = stream
        try:
            async with contextlib.aclosing(answers.stream()) as chunks:
                async for chunk in chunks:
                    text = stream.feed(chunk.text)
                    if moderation is not None:
                        held += text
                    elif text:
                        course.text += text
                        yield text
                    if stream.ended:
                        break
        except ProviderError as error:
            if error in course.failed and course.info is not info:  # nobody could stand in
                course.info, course.model, course.usage = info, "", None
            raise
        if moderation is not None:
            rest, course.applied = stream.finish()
            course.blocked = stream.blocked
            course.changes = stream.changes()
            course.text, flagged = await moderation.review(held + rest, agent)
            if flagged:
                course.blocked = "moderation"
                course.applied += tuple(f"block:{name}" for name in flagged)
                course.changes = [Change(0, len(course.text), MASK, MODERATION_STEP, masked=True)]
            text = course.text
        else:
            text = course.finish()
        if text:
            yield text
        course.finish_reason = course.finish_reason or "stop"
        if is_blank(course.text):
            raise InvalidResponse(provider=course.info.provider, model=course.info.name)

    async def _ask(
        self,
        task: _Task,
        course: _Course,
        context: Sequence[Entry],
        info: ModelInfo,
    ) -> AsyncGenerator[Chunk, None]:
        """Steps 5 and 6 with one model: a prompt made for it, and what it says."""
        course.info, course.model, course.told = info, "", {}
        course.first = course.usage = course.finish_reason = None
        client = await self.clients.open(info.spec)
        if self.layers is not None:
            fresh = task.fresh or task.kind != "chat"  # elsewhere people look how a model varies
            own = self.clients.user_pays(info)
            again = bool(course.failed)
            asking = CallContext(task.user_id, bypass_cache=fresh, user_key=own, is_fallback=again)
            client = self.layers.wrap_for_call(client, asking)
        course.client = client
        if not client.is_loaded:
            loading = self.clock()
            await client.load()
            course.load += self.clock() - loading
        course.prompt, course.context = await self._prompt(
            task.agent, task.message, context, info, client.count_tokens, task.options
        )
        options = self.clients.options(info, **task.options)
        if course.failed:  # who stands in has what is left of the time for the whole answer
            left = options.total_timeout - (self.clock() - course.began - course.load)
            if left <= 0:  # not this one's fault
                raise course.failed[-1]
            options = replace(options, total_timeout=left)
        said = ""
        async with contextlib.aclosing(client.stream(course.prompt, options)) as chunks:
            async for chunk in chunks:
                if chunk.text and course.first is None:
                    course.first = self.clock()
                said += chunk.text
                course.usage = chunk.usage or course.usage
                course.finish_reason = chunk.finish_reason or course.finish_reason
                course.model = redact(chunk.model, self._secrets) or course.model
                course.told |= chunk.metadata
                yield chunk
        course.finish_reason = course.finish_reason or "stop"
        model = course.model or info.name
        client.validate_response(Completion(said, model, course.spent, course.finish_reason))

    async def _prompt(
        self,
        agent: Agent,
        message: str,
        context: Sequence[Entry],
        info: ModelInfo,
        count: Callable[[str], int],
        options: Mapping[str, Any],
    ) -> tuple[Prompt, Sequence[Entry]]:
        """The prompt with as much of ``context`` as leaves the model room to answer, and that."""
        build = self.prompt_builder.build
        prompt = await build(agent, message, context, info=info)
        answer = self.clients.options(info, **options).max_tokens
        room = info.context - min(answer, info.context // 2)
        # A token is a byte at least. Odd text takes long to count: off the loop.
        if (
            context
            and _tokens(prompt, lambda text: len(text.encode("utf-8", "replace"))) > room
            and await asyncio.to_thread(_tokens, prompt, count) > room
        ):
            bare = await build(agent, message, (), info=info)
            context = await asyncio.to_thread(
                lambda: self.context_manager.fit(
                    context, room - _tokens(bare, count), lambda text: count(text) + _MARKS
                )
            )
            prompt = await build(agent, message, context, info=info)
        summary = context[0].get("summary", "") if context else ""
        if summary:
            prompt = replace(prompt, trace=replace(prompt.trace, summary=summary))
        return prompt, context

    async def _keep(self, task: _Task, course: _Course, draft: Draft | None) -> None:
        """Step 8: the answer and the turn's record. Fills ``course.metadata``; never raises."""
        record = await self._record_of(task, course)
        course.metadata = _metadata(task, course, record)
        passed_over = [error for error in course.failed if error is not course.error]
        outcome = GenerationResult(
            record,
            course.metadata["spec"],
            code=course.error.code if course.error else None,
            attempts=course.metadata["attempts"],
            failed_attempts=tuple(
                FailedAttempt(f"{error.provider}:{error.model}", error.code, error.attempts)
                for error in passed_over
            ),
            message=task.message,
            answer=course.content,
        )
        settle = functools.partial(self._settle, task, course, draft)
        writes: list[Callable[[], Awaitable[object]]] = [
            settle,
            lambda: asyncio.to_thread(self._record, outcome),
        ]
        for write in writes:
            try:
                await write()
            except Exception as error:  # noqa: BLE001 - one failed write must not cost the next
                if write is settle and task.chat_id and isinstance(error, StorageError):
                    self._unkept.add(task.chat_id, settle)
                excuse = await self.error_handler.handle(
                    error, task.message, task.agent, language=task.language
                )
                noted = {k: v for k, v in excuse.metadata.items() if k != "fallback"}
                course.metadata = noted | course.metadata

    async def _record_of(self, task: _Task, course: _Course) -> Generation:
        usage, info = course.spent, course.info
        provider, _, name = task.model.partition(":")
        return Generation(
            user_id=task.user_id,
            agent_id=task.agent.id,
            chat_id=task.chat_id,
            kind=task.kind,
            provider=info.provider if info else provider,
            model=info.name if info else name,
            status=course.status,
            error_type=course.error.type.value if course.error else None,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cached_tokens=usage.cached_tokens,
            first_token_ms=course.since_began(course.first),
            total_ms=course.since_began(self.clock()) or 0.0,
            cost=await _cost(info, usage, course.client),
            cache_hit=bool(course.told.get("cache_hit")),
            user_key=info is not None and self.clients.user_pays(info),
        )

    def _record(self, outcome: GenerationResult) -> None:
        """Keep the record of a generation, and tell of it whether that could be done or not."""
        try:
            self.store.record(outcome.record)
        finally:
            self._announce(outcome)

    def _announce(self, outcome: GenerationResult) -> None:
        record = outcome.record
        words = {"message_text": outcome.message, "answer_text": outcome.answer}
        log.info(
            "turn",
            extra={
                "event": "turn",
                "kind": record.kind,
                "chat_id": record.chat_id,
                "agent_id": record.agent_id,
                "user_id": record.user_id,
                "provider": record.provider,
                "model": outcome.spec,
                "status": record.status,
                "error": record.error_type,
                "code": outcome.code,
                "attempts": outcome.attempts,
                "retries": outcome.attempts - 1,
                "fallback_from": [
                    {"model": each.spec, "code": each.code, "attempts": each.attempts}
                    for each in outcome.failed_attempts
                ],
                "tokens": {
                    "prompt": record.prompt_tokens,
                    "completion": record.completion_tokens,
                    "total": record.prompt_tokens + record.completion_tokens,
                    "cached": record.cached_tokens,
                },
                "first_token_ms": record.first_token_ms,
                "latency_ms": record.total_ms,
                "cost": record.cost,
                "cache_hit": record.cache_hit,
                **(words if self.log_messages else {}),
            },
        )
        for observe in self.observers:
            try:
                observe(outcome)
            except Exception as error:  # noqa: BLE001 - who watches must not cost who is watched
                trace = traceback.extract_tb(error.__traceback__)
                log.warning(
                    "an observer failed",
                    extra={
                        "event": "observer_failed",
                        "error_class": type(error).__name__,
                        "trace": [f"{at.filename}:{at.lineno} {at.name}" for at in trace],
                    },
                )

    async def _settle(self, task: _Task, course: _Course, draft: Draft | None) -> None:
        if draft is None:
            return
        answer = await draft.finalize(
            course.content, course.status, stored_details(course.metadata)
        )
        if answer is not None and task.chat_id is not None and task.asked is not None:
            await self.context_manager.update_context(task.chat_id, task.asked, answer)
            if course.status == "ok" and self.context_manager.summarizes:
                self._begin_summary(task.chat_id, task, course)

    def _begin_summary(self, chat_id: str, task: _Task, course: _Course) -> None:
        """One at a time: what falls out meanwhile is in the next."""
        if chat_id not in self._jobs:
            job = self._jobs[chat_id] = asyncio.create_task(self._summarize(chat_id, task, course))
            job.add_done_callback(lambda _: self._jobs.pop(chat_id))

    async def _summarize(self, chat_id: str, task: _Task, course: _Course) -> None:
        """Have the model that answered put in short what fell out of the conversation.

        It goes on beside the talk, on the user's quota, a few portions a turn where much fell out
        (the summary was switched on later, say). Where it fails the next turn tries again.
        """
        info, asked = course.info, task.asked
        if info is None or asked is None:
            return
        sent = (entry["position"] for entry in course.context if "position" in entry)
        sent_from = min(sent, default=asked.position)
        try:
            for _ in range(_PORTIONS):
                if not await self._sum_up(info, task, chat_id, sent_from):
                    return
        except Exception as error:  # noqa: BLE001 - the talk goes on without
            log.warning(
                "no summary: %s",
                map_error(error).code,
                extra={"event": "summary_failed", "chat_id": chat_id},
            )

    async def _sum_up(self, info: ModelInfo, task: _Task, chat_id: str, sent_from: int) -> bool:
        """Fold the next portion into the summary; False where there is none."""
        began, agent, user_id = self.clock(), task.agent, task.user_id
        client = await self.clients.open(info.spec)
        wanted = await self.context_manager.to_summarize(
            chat_id,
            user_id=user_id,
            language=_language(agent),
            sent_from=sent_from,
            fits=lambda prompt: (
                _tokens(prompt, client.count_tokens) + _SUMMARY_TOKENS <= info.context
            ),
        )
        if wanted is None:
            return False
        own = self.clients.user_pays(info)
        if self.layers is not None:
            client = self.layers.wrap_for_call(
                client, CallContext(user_id, bypass_cache=True, user_key=own)
            )
        options = self.clients.options(info, max_tokens=_SUMMARY_TOKENS)
        prompt = wanted.prompt
        if info.prompt == "transcript":
            prompt = Prompt(f"{prompt}\n\n", kind="transcript", stop=("\n\n",))
        made = await client.generate(prompt, **asdict(options))
        summary = redact(made.content.strip(), self._secrets)
        await self.context_manager.keep_summary(
            chat_id, user_id=user_id, summary=summary, until=wanted.until
        )
        record = Generation(
            user_id=user_id,
            agent_id=agent.id,
            chat_id=chat_id,
            kind="summary",
            provider=info.provider,
            model=info.name,
            status="ok",
            prompt_tokens=made.usage.prompt_tokens,
            completion_tokens=made.usage.completion_tokens,
            cached_tokens=made.usage.cached_tokens,
            total_ms=_milliseconds(self.clock() - began),
            cost=await _cost(info, made.usage, client),
            user_key=own,
        )
        await asyncio.to_thread(self._record, GenerationResult(record, info.spec))
        return True


def _tokens(prompt: Prompt, count: Callable[[str], int]) -> int:
    turns = sum(count(turn.content) + _MARKS for turn in prompt.turns)
    return count(prompt.system) + _MARKS + turns


async def _cost(
    info: ModelInfo | None, usage: Usage, client: LLMClientInterface | None
) -> float | None:
    """In US dollars; None where nobody knows."""
    if info is None:
        return None
    try:
        return await priced(info, usage, server=client.base_url if client else "")
    except Exception as error:  # noqa: BLE001 - an answer isn't lost for want of a price
        about = {"event": "price_failed", "model": info.spec, "error_class": type(error).__name__}
        log.warning("no price: %s", info.spec, extra=about)
        return None


def _metadata(task: _Task, course: _Course, record: Generation) -> dict[str, Any]:
    """What an answer tells of itself. ``model`` is the provider's own name of it."""
    info, usage = course.info, course.spent
    # Who is turned away for asking too much doesn't fill the store with what wasn't sent.
    sent = None if isinstance(course.error, RateLimitError) else course.prompt
    changes = course.content_changes
    about = {
        "model": course.model or record.model,
        "provider": record.provider,
        "spec": info.spec if info else task.model,
        "usage": usage.as_dict(),
        "cached_tokens": usage.cached_tokens,
        "estimated": usage.estimated,
        "processing_applied": list(course.applied),
        "finish_reason": course.finish_reason,
        "first_token_ms": record.first_token_ms,
        "first_shown_ms": course.since_began(course.shown),
        "total_ms": record.total_ms,
        "load_ms": _milliseconds(course.load),
        "cost": record.cost,
        "status": course.status,
        **({"blocked": course.blocked} if course.blocked else {}),
        "prompt": sent.system if sent else "",
        "turns": len(sent.turns) if sent else 0,
        "sent": _sent(sent),
        "summary": course.prompt.trace.summary if course.prompt else "",
        "cache_hit": False,
        "attempts": 1,
        "request_id": request_id(),
        **course.told,
        "raw": restore(course.content, changes),
        "changes": [change.as_dict() for change in changes],
    }
    if isinstance(course.error, ProviderError):
        about["attempts"] = course.error.attempts
    if any(error is not course.error for error in course.failed):
        about["fallback_from"] = [_failure(error) for error in course.failed]
    return about | (course.excuse.metadata if course.excuse is not None else {})


def _sent(prompt: Prompt | None) -> list[dict[str, str]]:
    """The conversation as it went along with the persona, in the form that travels."""
    turns = prompt.turns if prompt else ()
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def _asked(message: Message | None) -> dict[str, Any]:
    """The user's message as it is kept."""
    if message is None:
        return {"user_message_id": ""}
    moment = message.created_at.isoformat()
    return {"user_message_id": message.id, "content": message.content, "timestamp": moment}


def _failure(error: ProviderError) -> dict[str, Any]:
    """Of a model that gave no word: who, why, and how often it was asked."""
    return {
        "model": f"{error.provider}:{error.model}",
        "error_type": error.type.value,
        "code": error.code,
        "status": error.status,
        "attempts": error.attempts,
    }


def _language(agent: Agent) -> Language:
    return "en" if agent.language == "en" else "ja"


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 1)
