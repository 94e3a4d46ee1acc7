"""The client for local models: find a GGUF file, render its chat template, run its engine.

``info.source`` locates the weights: ``package:NAME`` (an installed package that contains them), a
path to a ``.gguf`` file, or ``owner/repo:file`` on the hub. For a file that isn't in
``data/models.yaml``, :func:`probe` reads the facts from its metadata.

:mod:`persona_lab.llama` manages sequences, cells and threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
from collections.abc import AsyncGenerator, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from persona_lab.clients.base import LLMClientInterface
from persona_lab.clients.catalog import ModelInfo
from persona_lab.clients.chat_template import TEMPLATE_ERRORS, ChatTemplate, chat_template
from persona_lab.clients.error_mapping import map_error
from persona_lab.clients.provider import Provider
from persona_lab.clients.weights import (
    HUB_FILE,
    find_file,
    find_weights,
    no_file_error,
    package_folders,
    weights_unavailable,
)
from persona_lab.errors import BadRequest, ModelTimeout, ModelUnavailable, ProviderError
from persona_lab.llama import (
    Engine,
    Generation,
    Model,
    SamplerOptions,
    Step,
    check_file,
    open_engine,
    release_engines,
)
from persona_lab.llama.generation import Listener
from persona_lab.llama.prefix_cache import common_prefix_length
from persona_lab.llama.sampling import MIN_P, TOP_K, TOP_P, grammar_from_schema
from persona_lab.types import Chunk, Options, Prompt, Usage

if TYPE_CHECKING:
    from persona_lab.settings import Settings

LONG_PROMPT_CHARACTERS = 10_000
"""Characters. A thread tokenizes a longer prompt, because unusual text may take seconds."""
PLAIN_STOP_STRINGS = ("\nUser:",)
"""Stop strings for a chat with a model that has no chat template."""


class LocalClient(LLMClientInterface):
    """A local model, usable from any event loop. Clients of the same file share its engine."""

    provider = Provider(
        name="local",
        free=True,
        is_local=True,
        structured_output=frozenset({"json_schema", "grammar"}),
    )
    bound: ClassVar[bool] = False

    def __init__(self, info: ModelInfo, settings: Settings) -> None:
        super().__init__(info, settings)
        self._engine: Engine | None = None
        self._loaded = 0.0
        self._closed = False
        self._opener = ThreadPoolExecutor(1, f"open-{info.name}")
        """Its single thread loads and releases the engine, one after the other."""

    @property
    def is_loaded(self) -> bool:
        """Whether the engine is in memory."""
        return self.engine is not None

    @property
    def load_progress(self) -> float:
        """The share of the weights that is loaded, from 0 to 1."""
        return 1.0 if self.is_loaded else self._loaded

    @property
    def waiting(self) -> int:
        """The number of requests in the queue of the engine."""
        engine = self.engine
        return 0 if engine is None else engine.waiting

    @property
    def engine(self) -> Engine | None:
        """The engine; None if it isn't loaded or was unloaded for another model."""
        engine = self._engine
        return None if engine is None or engine.unloaded else engine

    def check(self) -> None:
        """Check that the weights exist. Weights on the hub count as available.

        Raises:
            ModelUnavailable: There is no such file or package.
        """
        kind, _, name = self.info.source.partition(":")
        if self.is_loaded or HUB_FILE.fullmatch(self.info.source):
            return
        if kind == "package":
            package_folders(self.info, name)
        elif find_file(self.info.source) is None:
            raise no_file_error(self.info)

    async def load(self) -> None:
        """Load the engine.

        Raises:
            ProviderError: The weights can't be downloaded or loaded.
        """
        await self._get_engine()

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens in ``text``; an estimate if the engine isn't loaded."""
        engine = self.engine
        if engine is None:
            return super().count_tokens(text)
        try:
            return len(engine.model.tokenize(text, bos=True))
        except ModelUnavailable:
            if engine.unloaded:  # since the check above
                return super().count_tokens(text)
            raise

    async def prefill(self, prompts: Sequence[Prompt]) -> None:
        """Prefill the common prefix of ``prompts``, at low priority, if the engine is loaded."""
        engine = self.engine
        if engine is None:
            return

        def read() -> None:
            tokenized = [self.tokenize(engine.model, prompt)[0] for prompt in prompts]
            shared = min(common_prefix_length(tokenized[0], tokens) for tokens in tokenized)
            engine.prefill(tokenized[0][:shared])

        await asyncio.to_thread(read)

    async def stream(self, prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        """Stream an answer. See :meth:`LLMClientInterface.stream`."""
        self.check_images(prompt)
        loop = asyncio.get_running_loop()
        steps: asyncio.Queue[Step | Exception] = asyncio.Queue()

        def send(step: Step | Exception) -> None:
            loop.call_soon_threadsafe(steps.put_nowait, step)

        generation = await self._submit(prompt, options, send)
        template = self._template(prompt)
        form = template.form or "plain" if template is not None else "messages"
        # Some templates open a thought, and the model ends it. Its begin belongs to the answer.
        thought = template.open_thought if template is not None and template.form else ""
        end = loop.time() + options.total_timeout
        deadline = min(loop.time() + options.timeout, end)
        try:
            while True:
                try:
                    async with asyncio.timeout_at(deadline):
                        step = await steps.get()
                except TimeoutError:
                    raise ModelTimeout(provider="local", model=self.info.name) from None
                if isinstance(step, Exception):
                    raise self._map_error(step)
                if step.queue_position is not None:  # the wait in the queue doesn't count
                    deadline = min(loop.time() + options.timeout, end)
                    continue
                if step.finish is None:
                    given = loop.time()
                    yield Chunk(thought + step.text if step.text else "")
                    thought = "" if step.text else thought
                    end += loop.time() - given  # the reader's time doesn't count
                    deadline = min(loop.time() + options.idle, end)
                    continue
                yield Chunk(
                    thought + step.text if step.text else "",
                    step.finish,
                    Usage(step.prompt_tokens, step.completion_tokens, step.cached_tokens),
                    self.info.name,
                    {} if form == "messages" else {"prompt_form": form},
                )
                return
        finally:
            generation.cancel()

    def _template(self, prompt: Prompt) -> ChatTemplate | None:
        """Return the chat template that the prompt was rendered with, None if there is none."""
        engine = self.engine
        source = "" if engine is None else engine.model.metadata("tokenizer.chat_template")
        if engine is None or not source or prompt.kind == "transcript":
            return None
        return chat_template(source, engine.model.bos, engine.model.eos, self.info.name)

    def _map_error(self, error: Exception) -> ProviderError:
        """Map an exception of the engine to an error of a provider."""
        mapped = map_error(error, provider="local", model=self.info.name)
        if isinstance(mapped, ProviderError):
            return mapped
        return ProviderError(str(mapped), provider="local", model=self.info.name)

    async def _submit(self, prompt: Prompt, options: Options, listener: Listener) -> Generation:
        """Submit a generation. Load the engine again if it was unloaded in between."""
        while True:
            engine = await self._get_engine()
            try:
                if (
                    len(prompt.system) + sum(len(turn.content) for turn in prompt.turns)
                    > LONG_PROMPT_CHARACTERS
                ):
                    tokens, stop = await asyncio.to_thread(self.tokenize, engine.model, prompt)
                else:
                    tokens, stop = self.tokenize(engine.model, prompt)
                submit = functools.partial(
                    engine.submit,
                    tokens,
                    listener,
                    max_tokens=options.max_tokens,
                    stop=(*prompt.stop, *options.stop, *stop),
                )
                if not (options.grammar or options.json_schema):
                    return submit(options=_sampler_options(options))
                # Parsing a grammar takes time.
                sampling = await asyncio.to_thread(_sampler_options, options)
                return await _cancel_with_caller(asyncio.to_thread(submit, options=sampling))
            except ModelUnavailable:
                if not engine.unloaded:
                    raise

    async def aclose(self) -> None:
        """Release the engine, after a load in progress. The client can't be used afterwards."""
        if not self._closed:
            self._closed = True
            closing = self._opener.submit(self._release)
            self._opener.shutdown(wait=False)
            await asyncio.wrap_future(closing)

    def _release(self) -> None:
        self._engine = None
        release_engines(self)

    async def _get_engine(self) -> Engine:
        engine = self.engine
        if engine is not None:
            return engine
        if self._closed:
            raise weights_unavailable(self.info, "closed", "it was closed")
        return await asyncio.wrap_future(self._opener.submit(self._load_engine))

    def _load_engine(self) -> Engine:
        engine = self.engine
        if engine is None:
            self._loaded = 0.0
            path = find_weights(self.info, self.settings, self._set_progress)
            if not self.info.source.startswith("package:"):  # pip has verified a package
                check_file(path)
            engine = self._engine = open_engine(
                path,
                context=self.settings.local_context,
                threads=self.settings.local_threads or processors(),
                flash=self.settings.local_flash_attention,
                owner=self,
                name=self.info.name,
                max_bytes=self.settings.local_memory * 1_000_000,
                progress=self._set_progress,
            )
            source = engine.model.metadata("tokenizer.chat_template")
            if source:  # its proof takes a moment, and it may have something to log
                with contextlib.suppress(*TEMPLATE_ERRORS):
                    chat_template(source, engine.model.bos, engine.model.eos, self.info.name)
        return engine

    def _set_progress(self, share: float) -> None:
        self._loaded = share

    def tokenize(self, model: Model, prompt: Prompt) -> tuple[list[int], tuple[str, ...]]:
        """Return the tokens of the prompt and the stop strings that its format needs."""
        if prompt.kind == "transcript":
            return model.tokenize(prompt.system, bos=True), ()
        source = model.metadata("tokenizer.chat_template")
        text = self._render(source, prompt, model) if source else None
        if text is None:
            return model.tokenize(plain_transcript(prompt), bos=True), PLAIN_STOP_STRINGS
        begins = bool(model.bos) and text.startswith(model.bos)
        return model.tokenize(text, special=True, bos=not begins), ()

    def _render(self, source: str, prompt: Prompt, model: Model) -> str | None:
        """Render the chat template; None if it doesn't bring out all words of a prompt.

        Raises:
            BadRequest: The template refuses the conversation.
        """
        messages: list[dict[str, Any]] = [
            {**message, "content": neutralize_control_tokens(model, message["content"])}
            for message in prompt.messages()
        ]
        try:
            template = chat_template(source, model.bos, model.eos, self.info.name)
            return template.render(messages)
        except TEMPLATE_ERRORS as error:
            raise BadRequest(str(error), provider="local", model=self.info.name) from error


Client = LocalClient


def processors() -> int:
    """Return the number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def probe(path: Path) -> dict[str, Any]:
    """Read facts from the metadata of a GGUF file, without its weights.

    Args:
        path: The file.

    Returns:
        Fields of :class:`ModelInfo`.

    Raises:
        ModelUnavailable: The file isn't valid.
    """
    check_file(path)
    model = Model(path, vocab_only=True)
    try:
        templated = bool(model.metadata("tokenizer.chat_template"))
        return {
            "label": model.metadata("general.name") or path.stem,
            "prompt": "chat" if templated else "transcript",
            "licence": model.metadata("general.license"),
            **({"context": length} if (length := _trained_context(model)) else {}),
        }
    finally:
        model.close()


def _trained_context(model: Model) -> int:
    """Return the context length of the training, in tokens; 0 if the metadata has none."""
    kind = model.metadata("general.architecture")
    length = model.metadata(f"{kind}.context_length")
    return int(length) if length.isdecimal() else 0


# ── prompt formatting ─────────────────────────────────────────────────────────────────────


def neutralize_control_tokens(model: Model, text: str) -> str:
    """Change control tokens in ``text``, such as ``<|im_end|>``, to plain text.

    This inserts a zero-width space into the name of each control token. A user's text then can't
    end a turn.
    """
    control = set(model.tokenize(text, special=True)) - set(model.tokenize(text))
    for token in control:
        name = model.token_bytes(token, special=True).decode("utf-8", "replace")
        if model.is_control(token) and name:
            text = text.replace(name, f"{name[:1]}\u200b{name[1:]}")
    return text


def plain_transcript(prompt: Prompt) -> str:
    """Format a conversation as plain text, for a model without a chat template."""
    names = {"user": "User", "assistant": "Assistant"}
    turns = [f"{names[turn.role]}: {turn.content}" for turn in prompt.turns]
    return "\n".join([prompt.system, "", *turns, "Assistant:"])


async def _cancel_with_caller(submitting: Coroutine[Any, Any, Generation]) -> Generation:
    """Await ``submitting``. If the caller is cancelled, cancel the generation too."""
    task = asyncio.ensure_future(submitting)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_cancel_result)
        raise


def _cancel_result(done: asyncio.Future[Generation]) -> None:
    if not done.cancelled() and not done.exception():
        done.result().cancel()


def _sampler_options(options: Options) -> SamplerOptions:
    """Convert the options. A missing option gets the default of llama.cpp.

    Raises:
        BadRequest: The JSON schema isn't valid.
    """
    grammar = options.grammar
    if options.json_schema:
        grammar = grammar_from_schema(json.loads(options.json_schema))
    return SamplerOptions(
        temperature=0.8 if options.temperature is None else options.temperature,
        top_k=TOP_K if options.top_k is None else options.top_k,
        top_p=TOP_P if options.top_p is None else options.top_p,
        min_p=MIN_P if options.min_p is None else options.min_p,
        repeat_penalty=1.0 if options.repeat_penalty is None else options.repeat_penalty,
        seed=options.seed,
        grammar=grammar,
    )
