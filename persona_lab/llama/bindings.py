"""Typed wrappers of llama.cpp: a model, and a context of many sequences.

Only this module and :mod:`persona_lab.llama.sampling` call llama.cpp. An object belongs to one
thread at a time. The methods of :class:`Model` that only read are thread-safe, and raise
ModelUnavailable once the model is closed.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from persona_lab.errors import ModelUnavailable

log = logging.getLogger(__name__)

_LOG_LEVELS = {3: logging.DEBUG, 4: logging.INFO}
"""llama.cpp's levels and ours. Its messages are for developers: failures raise errors here."""


@functools.cache
def load_llama() -> Any:
    """Import llama_cpp at the first use, which takes 0.2 s, and send its log to ours."""
    # OpenMP's threads spin while they wait for each other. If anything else needs a processor (a
    # page, a second model), that made decoding five to ten times slower here. Without spinning,
    # decoding alone is a third slower. Spinning for a few microseconds costs little in both cases.
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
"""Callbacks that C code refers to, kept from garbage collection."""

Progress = Callable[[float], None]
"""Receives the loaded share of a model, from 0 to 1, on the thread that loads it."""


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
        """Load a file.

        Args:
            path: A GGUF file.
            vocab_only: Load no weights.
            low_memory: Don't copy weights into a form that is faster to compute with.
            progress: Receives the loaded share.

        Raises:
            ModelUnavailable: ``reason`` says whether the file, its content or memory is at fault.
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
        """Yield llama.cpp, and keep the model open meanwhile.

        Raises:
            ModelUnavailable: It is closed.
        """
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
        """Return the tokens of ``text``.

        Args:
            text: Any text.
            special: Whether names of control tokens in ``text`` become these tokens.
            bos: Whether to add what the model wants at the beginning of a text.
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
        """Return the bytes of a token; of a control token only if ``special``."""
        for room in (64, 4096):
            buffer = ctypes.create_string_buffer(room)
            with self.in_use() as llama:
                count = llama.llama_token_to_piece(self._vocab, token, buffer, room, 0, special)
            if count >= 0:
                return buffer.raw[:count]
        return b""

    def is_end(self, token: int) -> bool:
        """Return whether ``token`` ends an answer."""
        with self.in_use() as llama:
            return bool(llama.llama_vocab_is_eog(self._vocab, token))

    def is_control(self, token: int) -> bool:
        """Return whether ``token`` is a control token."""
        with self.in_use() as llama:
            return bool(llama.llama_vocab_is_control(self._vocab, token))

    @property
    def bos(self) -> str:
        """The name of the token that begins a text; "" if there is none."""
        with self.in_use() as llama:
            token = llama.llama_vocab_bos(self._vocab)
        return self._token_name(token)

    @property
    def eos(self) -> str:
        """The name of the token that ends a text; "" if there is none."""
        with self.in_use() as llama:
            token = llama.llama_vocab_eos(self._vocab)
        return self._token_name(token)

    def _token_name(self, token: int) -> str:
        return (
            self.token_bytes(token, special=True).decode("utf-8", "replace") if token >= 0 else ""
        )

    def metadata(self, key: str) -> str:
        """Return a value of the file's header, "" if it has none."""
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
        """Bytes of one token in a context: keys and values of each layer, of two bytes each.

        Computed from the file's header; 0 if it lacks the numbers, as a recurrent model's does.
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
        """Free the weights, once no thread uses them."""
        with self._using:
            self._using.wait_for(lambda: not self._users)
            if self._pointer:
                load_llama().llama_model_free(self._pointer)
                self._pointer = None


def model_unavailable(path: Path, why: str, reason: str, **details: Any) -> ModelUnavailable:
    """Return the error for a file that can't be used; ``why`` is its code for translations."""
    return ModelUnavailable(
        f"{path}: {reason}",
        provider="local",
        model=path.stem,
        why=why,
        reason=reason,
        **{"path": str(path), **details},
    )


def model_closed(path: Path) -> ModelUnavailable:
    """Return the error for a model that is closed."""
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
        def report(share: float, _: object) -> bool:
            progress(share)
            return True

        params.progress_callback = report
    return llama.llama_model_load_from_file(str(path).encode(), params)


class BatchEntry(NamedTuple):
    """One token of a batch, and whether the next one will be sampled."""

    token: int
    position: int
    sequence: int
    wants_logits: bool


class Context:
    """A KV cache that several sequences share, and the computation with it."""

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
        """Allocate the memory.

        Args:
            model: The model.
            cells: Tokens that all sequences together can have.
            sequences: Number of sequences, which are numbered from 0.
            batch: Largest number of tokens of one :meth:`decode`. Each sequence can have one
                token in it whose successor will be sampled.
            threads: Threads to compute with.
            flash: Use flash attention where it is available. It skips the cells of other
                sequences, which are else computed and discarded, but is slower for the rest.

        Raises:
            ModelUnavailable: Memory is short.
        """
        llama = load_llama()
        params = llama.llama_context_default_params()
        params.n_ctx = cells
        params.n_seq_max = sequences + 1
        params.n_batch = params.n_ubatch = batch
        params.n_threads = params.n_threads_batch = threads
        params.n_outputs_max = params.n_seq_max  # by default ``batch``: 0.5 GB of logits for Gemma
        params.kv_unified = True  # sequences can share cells
        params.swa_full = True  # also in models with a sliding window
        params.flash_attn_type = -1 if flash else 0  # -1: where it is available
        self._model = model
        self._pointer = llama.llama_init_from_model(model._pointer, params)
        if not self._pointer:
            raise model_unavailable(model.path, "no_memory", "not enough memory")
        self._memory = llama.llama_get_memory(self._pointer)
        self._scratch_sequence = sequences
        """A sequence to copy cells from and to memory."""
        self._window: int = llama.llama_model_n_swa(model._pointer)
        self._batch = llama.llama_batch_init(batch, 0, 1)
        self.cells: int = llama.llama_n_ctx(self._pointer)

    def decode(self, entries: Sequence[BatchEntry]) -> None:
        """Evaluate a batch.

        Raises:
            ModelUnavailable: llama.cpp reports a failure.
        """
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
        """Share the first ``length`` cells of ``source`` with the empty ``target``."""
        load_llama().llama_memory_seq_cp(self._memory, source, target, 0, length)

    def truncate(self, sequence: int, length: int = 0) -> bool:
        """Keep the first ``length`` cells; return whether this kind of memory can."""
        return bool(load_llama().llama_memory_seq_rm(self._memory, sequence, length, -1))

    def length(self, sequence: int) -> int:
        """Return how many tokens the sequence holds."""
        return int(load_llama().llama_memory_seq_pos_max(self._memory, sequence)) + 1

    def intact(self, sequence: int, length: int) -> bool:
        """Return whether the token after the first ``length`` has every cell that it looks at.

        llama.cpp frees the cells that a sliding window has passed. With a ``length`` of 0: return
        whether the sequence still has all of its cells.
        """
        first = load_llama().llama_memory_seq_pos_min(self._memory, sequence)
        return bool(0 <= first <= max(0, length - self._window + 1 if self._window else 0))

    def save(self, sequence: int, begin: int, end: int, into: memoryview) -> int:
        """Copy the cells of the tokens from ``begin`` to ``end`` into memory.

        The cells go through a sequence of their own. From a longer one, llama.cpp omits the cells
        that a sliding window has passed.

        Returns:
            How many bytes they have; 0, and nothing is copied, if ``into`` is too small.
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
        """Append the saved cells of the tokens from ``begin`` to ``end`` to ``sequence``.

        Returns:
            Whether enough cells were free; if not, nothing changes.
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
        """Remove all cells."""
        load_llama().llama_memory_clear(self._memory, True)

    def rewind(self) -> None:
        """Let an empty context begin at its first cell again."""
        load_llama().llama_memory_clear(self._memory, False)

    def use_threads(self, threads: int) -> None:
        """Compute with so many threads from now on."""
        load_llama().llama_set_n_threads(self._pointer, threads, threads)

    def close(self) -> None:
        """Free the memory."""
        if self._pointer:
            load_llama().llama_batch_free(self._batch)
            load_llama().llama_free(self._pointer)
            self._pointer = None
