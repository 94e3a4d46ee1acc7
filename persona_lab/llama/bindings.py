"""What llama.cpp gives, owned and typed: a model, a context of many sequences, a sampler.

The only module that calls llama.cpp. Its objects belong to one thread at a time, except that
what only reads of a :class:`Model` may be called from any, and raises ModelUnavailable once the
model is closed.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import logging
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from persona_lab.errors import BadRequest, ModelUnavailable

log = logging.getLogger(__name__)

_LOG_LEVELS = {3: logging.DEBUG, 4: logging.INFO}
"""llama.cpp's words are notes to developers; what fails becomes an error of ours anyway."""
REPEAT_WINDOW = 64
"""Tokens of the answer that ``repeat_penalty`` looks back on, as in llama.cpp."""
TOP_K = 40
TOP_P = 0.95
MIN_P = 0.05
"""What llama.cpp takes when nothing is said."""


@functools.cache
def load_llama() -> Any:
    """llama_cpp, loaded when first used (0.2 s) and made quiet."""
    # OpenMP's threads spin where they wait for each other. As soon as anything else wants a
    # processor (a page, a second model) that made it five to ten times slower here. Not to spin at
    # all costs a third where nothing else does; a few microseconds cost next to nothing in either.
    for name, value in (("OMP_WAIT_POLICY", "passive"), ("GOMP_SPINCOUNT", "300")):
        os.environ.setdefault(name, value)
    import llama_cpp

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator, unused-ignore]
    def receive(level: int, text: bytes, _: object) -> None:
        if level in _LOG_LEVELS:
            log.log(_LOG_LEVELS[level], "%s", text.decode("utf-8", "replace").rstrip())

    _callbacks.append(receive)
    llama_cpp.llama_log_set(receive, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return llama_cpp


_callbacks: list[Any] = []
"""Callbacks that C code holds on to."""

Progress = Callable[[float], None]
"""Hears what share of a model is loaded, from 0 to 1, on the thread that loads it."""


class Model:
    """The weights of one GGUF file, its vocabulary and its metadata."""

    def __init__(
        self,
        path: Path,
        *,
        vocab_only: bool = False,
        low_memory: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """``lean``: no weights are copied into a form that is faster to compute with.

        Raises ModelUnavailable; ``reason`` says whether file, content or memory is at fault.
        """
        self.path = path
        self._using = threading.Condition()
        self._users = 0
        if not path.is_file():
            raise model_unavailable(path, "no_file", "there is no such file")
        llama = load_llama()
        self._pointer = _load(path, vocab_only, progress, low_memory=low_memory)
        if not self._pointer:
            whole = not vocab_only and _load(path, vocab_only=True)
            if whole:
                llama.llama_model_free(whole)
            if whole:
                raise model_unavailable(path, "no_memory", "not enough memory")
            raise model_unavailable(path, "damaged_file", "not a GGUF file, or a damaged one")
        self._vocab = llama.llama_model_get_vocab(self._pointer)
        self.vocabulary_size: int = llama.llama_vocab_n_tokens(self._vocab)
        self.trained_context: int = llama.llama_model_n_ctx_train(self._pointer)
        self.recurrent = bool(
            llama.llama_model_is_recurrent(self._pointer)
            or llama.llama_model_is_hybrid(self._pointer)
        )

    @contextlib.contextmanager
    def in_use(self) -> Iterator[Any]:
        """llama.cpp, while nobody can close the model. Raises ModelUnavailable if somebody has."""
        with self._using:
            if not self._pointer:
                raise model_closed(self.path)
            self._users += 1
        try:
            yield load_llama()
        finally:
            with self._using:
                self._users -= 1
                self._using.notify_all()

    def tokenize(self, text: str, *, special: bool = False, bos: bool = False) -> list[int]:
        """``special``: names of control tokens in ``text`` become them.

        ``bos``: begin as the model wants a text to begin.
        """
        data = text.encode("utf-8", "replace")
        room = len(data) + 8
        while True:
            tokens = (ctypes.c_int32 * room)()
            with self.in_use() as llama:
                count = llama.llama_tokenize(
                    self._vocab, data, len(data), tokens, room, bos, special
                )
            if count >= 0:
                return list(tokens[:count])
            room = -count

    def token_bytes(self, token: int, *, special: bool = False) -> bytes:
        """The bytes of a token; those of a control token only if ``special``."""
        for room in (64, 4096):
            buffer = ctypes.create_string_buffer(room)
            with self.in_use() as llama:
                count = llama.llama_token_to_piece(self._vocab, token, buffer, room, 0, special)
            if count >= 0:
                return buffer.raw[:count]
        return b""

    def is_end(self, token: int) -> bool:
        with self.in_use() as llama:
            return bool(llama.llama_vocab_is_eog(self._vocab, token))

    def is_control(self, token: int) -> bool:
        with self.in_use() as llama:
            return bool(llama.llama_vocab_is_control(self._vocab, token))

    @property
    def bos(self) -> str:
        with self.in_use() as llama:
            token = llama.llama_vocab_bos(self._vocab)
        return self._token_name(token)

    @property
    def eos(self) -> str:
        with self.in_use() as llama:
            token = llama.llama_vocab_eos(self._vocab)
        return self._token_name(token)

    def _token_name(self, token: int) -> str:
        return (
            self.token_bytes(token, special=True).decode("utf-8", "replace") if token >= 0 else ""
        )

    def metadata(self, key: str) -> str:
        """A value of the file's header, "" when it has none."""
        name = key.encode()
        with self.in_use() as llama:
            length = llama.llama_model_meta_val_str(self._pointer, name, None, 0)
            if length < 0:
                return ""
            buffer = ctypes.create_string_buffer(length + 1)
            llama.llama_model_meta_val_str(self._pointer, name, buffer, length + 1)
        return buffer.value.decode("utf-8", "replace")

    @property
    def cell_bytes(self) -> int:
        """Bytes that one token takes in a context: keys and values of each layer, two bytes each.

        By the file's header; 0 where it doesn't say, as a recurrent model's.
        """

        def number(key: str) -> int:
            text = self.metadata(f"{kind}.{key}")
            return int(text) if text.isdecimal() else 0

        kind = self.metadata("general.architecture")
        heads = number("attention.head_count")
        width = number("embedding_length") // heads if heads else 0
        keys = number("attention.key_length") or width
        values = number("attention.value_length") or width
        shared = number("attention.head_count_kv") or heads
        return 2 * number("block_count") * shared * (keys + values)

    def close(self) -> None:
        with self._using:
            self._using.wait_for(lambda: not self._users)
            if self._pointer:
                load_llama().llama_model_free(self._pointer)
                self._pointer = None


def model_unavailable(path: Path, why: str, reason: str, **details: Any) -> ModelUnavailable:
    return ModelUnavailable(
        f"{path}: {reason}",
        provider="local",
        model=path.stem,
        why=why,
        reason=reason,
        **{"path": str(path), **details},
    )


def model_closed(path: Path) -> ModelUnavailable:
    return model_unavailable(path, "closed", "it was closed")


def _load(
    path: Path, vocab_only: bool, progress: Progress | None = None, *, low_memory: bool = False
) -> Any:
    llama = load_llama()
    params = llama.llama_model_default_params()
    params.vocab_only = vocab_only
    params.use_extra_bufts = not low_memory
    if progress is not None:

        @llama.llama_progress_callback  # type: ignore[untyped-decorator, unused-ignore]
        def tell(share: float, _: object) -> bool:
            progress(share)
            return True

        params.progress_callback = tell
    return llama.llama_model_load_from_file(str(path).encode(), params)


class BatchEntry(NamedTuple):
    """One token of a batch: where it stands, whose it is, whether the next one is asked for."""

    token: int
    position: int
    sequence: int
    wants_logits: bool


class Context:
    """``cells`` of memory shared by ``sequences`` (numbered from 0)."""

    def __init__(
        self,
        model: Model,
        *,
        cells: int,
        sequences: int,
        batch: int,
        threads: int,
        flash: bool = False,
    ) -> None:
        """``batch``: most tokens of one :meth:`decode`; one next token a sequence may be wanted.
        ``flash``: attention passes over other sequences' cells, where else it computes them all
        and throws them away, but takes longer for those that it computes.

        Raises ModelUnavailable when memory is short.
        """
        llama = load_llama()
        params = llama.llama_context_default_params()
        params.n_ctx = cells
        params.n_seq_max = sequences + 1
        params.n_batch = params.n_ubatch = batch
        params.n_threads = params.n_threads_batch = threads
        params.n_outputs_max = params.n_seq_max  # by default ``batch``: 0.5 GB of logits for Gemma
        params.kv_unified = True  # sequences can share cells
        params.swa_full = True  # so can those of models with a sliding window
        params.flash_attn_type = -1 if flash else 0  # -1: where it can be had
        self._model = model
        self._pointer = llama.llama_init_from_model(model._pointer, params)
        if not self._pointer:
            raise model_unavailable(model.path, "no_memory", "not enough memory")
        self._memory = llama.llama_get_memory(self._pointer)
        self._scratch_sequence = sequences
        """A sequence for what is copied out of the context and into it."""
        self._window: int = llama.llama_model_n_swa(model._pointer)
        self._batch = llama.llama_batch_init(batch, 0, 1)
        self.cells: int = llama.llama_n_ctx(self._pointer)

    def decode(self, entries: Sequence[BatchEntry]) -> None:
        """Read the tokens. Raises ModelUnavailable when llama.cpp couldn't."""
        batch = self._batch
        batch.n_tokens = len(entries)
        for i, entry in enumerate(entries):
            batch.token[i] = entry.token
            batch.pos[i] = entry.position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = entry.sequence
            batch.logits[i] = entry.wants_logits
        status = load_llama().llama_decode(self._pointer, batch)
        if status != 0:
            raise model_unavailable(
                self._model.path, "decode", f"llama_decode returned {status}", code=status
            )

    def copy(self, source: int, target: int, length: int) -> None:
        """Let ``target`` begin with the first ``length`` cells of ``source``."""
        load_llama().llama_memory_seq_cp(self._memory, source, target, 0, length)

    def truncate(self, sequence: int, length: int = 0) -> bool:
        """Keep the first ``length`` cells of ``sequence``; False if its kind of memory can't."""
        return bool(load_llama().llama_memory_seq_rm(self._memory, sequence, length, -1))

    def intact(self, sequence: int, length: int) -> bool:
        """Whether what follows the first ``length`` tokens of ``sequence`` finds all it looks at.

        llama.cpp gives others the cells that a sliding window has passed. ``length`` 0: whether it
        has all of its cells still.
        """
        first = load_llama().llama_memory_seq_pos_min(self._memory, sequence)
        return bool(0 <= first <= max(0, length - self._window + 1 if self._window else 0))

    def save(self, sequence: int, begin: int, end: int, into: memoryview) -> int:
        """Copy the cells of tokens ``begin`` to ``end`` of ``sequence``; how many bytes those are.

        0, and nothing is copied, where ``into`` is too small. Of a sequence of their own, for of
        a longer one llama.cpp leaves out what a sliding window has passed.
        """
        llama = load_llama()
        llama.llama_memory_seq_cp(self._memory, sequence, self._scratch_sequence, begin, end)
        try:
            size = int(llama.llama_state_seq_get_size(self._pointer, self._scratch_sequence))
            if size > len(into):
                return 0
            room = (ctypes.c_uint8 * size).from_buffer(into)
            return int(
                llama.llama_state_seq_get_data(self._pointer, room, size, self._scratch_sequence)
            )
        finally:
            self.truncate(self._scratch_sequence)

    def load(self, sequence: int, begin: int, end: int, data: memoryview) -> bool:
        """Let ``sequence`` go on with what was saved of tokens ``begin`` to ``end``.

        False, and nothing is changed, where there aren't cells enough.
        """
        llama = load_llama()
        room = (ctypes.c_uint8 * len(data)).from_buffer(data)
        done = llama.llama_state_seq_set_data(
            self._pointer, room, len(data), self._scratch_sequence
        )
        if done:
            llama.llama_memory_seq_cp(self._memory, self._scratch_sequence, sequence, begin, end)
        self.truncate(self._scratch_sequence)
        return bool(done)

    def clear(self) -> None:
        load_llama().llama_memory_clear(self._memory, True)

    def rewind(self) -> None:
        """Let an empty context begin at its first cell again."""
        load_llama().llama_memory_clear(self._memory, False)

    def use_threads(self, threads: int) -> None:
        load_llama().llama_set_n_threads(self._pointer, threads, threads)

    def close(self) -> None:
        if self._pointer:
            load_llama().llama_batch_free(self._batch)
            load_llama().llama_free(self._pointer)
            self._pointer = None


@dataclass(frozen=True, slots=True)
class SamplerOptions:
    """Temperature 0 takes the likeliest token. ``seed`` None: another answer each time."""

    temperature: float = 0.8
    top_k: int = TOP_K
    top_p: float = TOP_P
    min_p: float = MIN_P
    repeat_penalty: float = 1.0
    seed: int | None = None
    grammar: str = ""
    """In llama.cpp's GBNF: what an answer must be, from its ``root``; "" for anything."""


class Sampler:
    """llama.cpp's own chain of samplers, with its memory of what it chose."""

    def __init__(self, model: Model, options: SamplerOptions) -> None:
        """Raises BadRequest for a grammar that is none."""
        llama = load_llama()
        self._model = model
        self._grammar = None
        if options.grammar:
            grammar = options.grammar.encode("utf-8", "replace")
            self._grammar = llama.llama_sampler_init_grammar(model._vocab, grammar, b"root")
            if not self._grammar:
                raise BadRequest("not a grammar", provider="local", model=model.path.stem)
        self._pointer = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        penalties = (
            [
                llama.llama_sampler_init_penalties(
                    model.vocabulary_size, REPEAT_WINDOW, options.repeat_penalty, 0.0, 0.0
                )
            ]
            if options.repeat_penalty != 1
            else []
        )
        if options.temperature <= 0:
            chain = [*penalties, llama.llama_sampler_init_greedy()]
        else:
            # Penalties after top-k: over a vocabulary of 262,144 they'd cost more than a step.
            seed = 0xFFFFFFFF if options.seed is None else options.seed % 0xFFFFFFFF
            chain = [
                llama.llama_sampler_init_top_k(options.top_k),
                *penalties,
                llama.llama_sampler_init_top_p(options.top_p, 1),
                llama.llama_sampler_init_min_p(options.min_p, 1),
                llama.llama_sampler_init_temp(options.temperature),
                llama.llama_sampler_init_dist(seed),
            ]
        for sampler in chain:
            llama.llama_sampler_chain_add(self._pointer, sampler)

    def sample(self, context: Context, index: int) -> int:
        """The token that follows entry ``index`` of the batch just decoded."""
        if self._grammar:
            return self._sample_with_grammar(context, index)
        return int(load_llama().llama_sampler_sample(self._pointer, context._pointer, index))

    def _sample_with_grammar(self, context: Context, index: int) -> int:
        """What the chain likes if the grammar allows it; else what it likes of all that is allowed.

        To ask the grammar about each word of a vocabulary takes longer than the model does, and
        the likeliest is nearly always right.
        """
        import numpy as np

        llama = load_llama()
        logits = llama.llama_get_logits_ith(context._pointer, index)
        candidates = np.zeros(self._model.vocabulary_size, _CANDIDATE)
        candidates["id"] = np.arange(self._model.vocabulary_size)
        candidates["logit"] = np.ctypeslib.as_array(logits, (self._model.vocabulary_size,))
        liked = self._apply(candidates.copy(), self._pointer)
        alone = candidates[liked["id"] : liked["id"] + 1].copy()
        if not self._allowed(self._apply(alone, self._grammar, choose=False)):
            self._apply(candidates, self._grammar, choose=False)
            liked = self._apply(candidates, self._pointer)
            if not self._allowed(liked):  # to accept it would end the process
                raise BadRequest(
                    "the grammar leads nowhere", provider="local", model=self._model.path.stem
                )
        token = int(liked["id"])
        for sampler in (self._grammar, self._pointer):
            llama.llama_sampler_accept(sampler, token)
        return token

    @staticmethod
    def _apply(candidates: Any, sampler: Any, *, choose: bool = True) -> Any:
        """The candidate that ``sampler`` chooses, else the first, after it has weighed them all."""
        llama = load_llama()
        pointer = candidates.ctypes.data_as(ctypes.POINTER(llama.llama_token_data))
        array = llama.llama_token_data_array(pointer, len(candidates), -1, False)
        llama.llama_sampler_apply(sampler, ctypes.byref(array))
        return candidates[array.selected if choose else 0]

    @staticmethod
    def _allowed(candidate: Any) -> bool:
        return math.isfinite(candidate["logit"])

    def close(self) -> None:
        if self._pointer:
            load_llama().llama_sampler_free(self._pointer)
            self._pointer = None
        if self._grammar:
            load_llama().llama_sampler_free(self._grammar)
            self._grammar = None


_CANDIDATE = [("id", "i4"), ("logit", "f4"), ("p", "f4")]
"""llama.cpp's ``llama_token_data``."""


MAX_REPETITIONS = 1000
"""Items or letters that a schema may ask for: each is a rule of its own in the grammar."""
MAX_SCHEMA_CHARACTERS = 32_000
"""Characters."""
MAX_SCHEMA_NODES = 5_000
"""Values of a schema with every reference written out. llama.cpp follows all of them that an answer
may stand at, and where alternatives begin alike they multiply with each letter."""


def grammar_from_schema(schema: Mapping[str, Any]) -> str:
    """A JSON schema as a grammar for :class:`SamplerOptions`. Raises BadRequest."""
    load_llama()
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    try:
        if (
            len(json.dumps(schema)) > MAX_SCHEMA_CHARACTERS
            or _max_repetitions(schema) > MAX_REPETITIONS
        ):
            raise ValueError("it would take too much work")
        _check_references(schema)
        return str(json_schema_to_gbnf(json.dumps(schema)))
    except Exception as wrong:  # it raises whatever it stumbles over
        raise BadRequest("not a JSON schema", provider="local") from wrong


def _max_repetitions(schema: Any) -> float:
    """The largest number of items, properties or letters that ``schema`` speaks of."""
    if isinstance(schema, list):
        return max(map(_max_repetitions, schema), default=0)
    if not isinstance(schema, Mapping):
        return 0
    counts = (
        n
        for key, n in schema.items()
        if key.startswith(("min", "max")) and key[3:] in _COUNT_SUFFIXES
    )
    numbers = [n for n in counts if isinstance(n, int | float)]
    if "pattern" in schema:  # llama.cpp writes it out, and has no bound for it
        return math.inf
    return max([*numbers, *map(_max_repetitions, schema.values())], default=0)


def _check_references(schema: Mapping[str, Any]) -> None:
    """Raises ValueError where references lead in a circle, or to more than MOST_PLACES."""
    places = 0
    waiting: list[tuple[Any, tuple[str, ...]]] = [(schema, ())]
    while waiting:
        value, through = waiting.pop()
        places += 1
        if places > MAX_SCHEMA_NODES:
            raise ValueError("it would take too much work")
        if isinstance(value, list):
            waiting += [(item, through) for item in value]
        elif isinstance(value, Mapping):
            waiting += [(item, through) for item in value.values()]
            reference = value.get("$ref")
            if isinstance(reference, str):
                if reference in through:
                    raise ValueError("it refers to itself")
                target: Any = schema
                for name in reference.removeprefix("#").strip("/").split("/"):
                    target = target[name] if name else target
                waiting.append((target, (*through, reference)))


_COUNT_SUFFIXES = ("Items", "Length", "Properties")
