"""How the next token is chosen: llama.cpp's samplers, and grammars that constrain them."""

from __future__ import annotations

import ctypes
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from persona_lab.errors import BadRequest
from persona_lab.llama.bindings import Context, Model, load_llama

REPEAT_WINDOW = 64
"""Tokens of the answer that ``repeat_penalty`` looks back at, as in llama.cpp."""
TOP_K = 40
TOP_P = 0.95
MIN_P = 0.05
"""llama.cpp's defaults."""


@dataclass(frozen=True, slots=True)
class SamplerOptions:
    """Options of llama.cpp's samplers.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_k: Number of the likeliest tokens to choose from.
        top_p: Total probability of the tokens to choose from.
        min_p: Smallest probability, relative to that of the likeliest token.
        repeat_penalty: Penalty for tokens of the last :data:`REPEAT_WINDOW`; 1 is none.
        seed: None gives another answer each time.
        grammar: In llama.cpp's GBNF, the form of the answer, from its ``root``; "" for any.
    """

    temperature: float = 0.8
    top_k: int = TOP_K
    top_p: float = TOP_P
    min_p: float = MIN_P
    repeat_penalty: float = 1.0
    seed: int | None = None
    grammar: str = ""


class Sampler:
    """llama.cpp's chain of samplers for one answer, with its memory of the chosen tokens."""

    def __init__(self, model: Model, options: SamplerOptions) -> None:
        """Create the chain.

        Raises:
            BadRequest: The grammar isn't valid.
        """
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
            # Penalties come after top-k: over a vocabulary of 262,144 they cost more than a step.
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
        """Return the token after entry ``index`` of the batch that was just decoded."""
        if self._grammar:
            return self._sample_with_grammar(context, index)
        return int(load_llama().llama_sampler_sample(self._pointer, context._pointer, index))

    def _sample_with_grammar(self, context: Context, index: int) -> int:
        """Choose a token; if the grammar forbids it, choose again among those that it allows.

        To check the whole vocabulary against the grammar takes longer than the model's step, and
        the first choice is nearly always allowed.
        """
        import numpy as np

        llama = load_llama()
        logits = llama.llama_get_logits_ith(context._pointer, index)
        candidates = np.zeros(self._model.vocabulary_size, _CandidateToken)
        candidates["id"] = np.arange(self._model.vocabulary_size)
        candidates["logit"] = np.ctypeslib.as_array(logits, (self._model.vocabulary_size,))
        chosen = self._apply(candidates.copy(), self._pointer)
        alone = candidates[chosen["id"] : chosen["id"] + 1].copy()
        if not self._allowed(self._apply(alone, self._grammar, choose=False)):
            self._apply(candidates, self._grammar, choose=False)
            chosen = self._apply(candidates, self._pointer)
            if not self._allowed(chosen):  # llama.cpp would end the process on it
                raise BadRequest(
                    "the grammar leads nowhere", provider="local", model=self._model.path.stem
                )
        token = int(chosen["id"])
        for sampler in (self._grammar, self._pointer):
            llama.llama_sampler_accept(sampler, token)
        return token

    @staticmethod
    def _apply(candidates: Any, sampler: Any, *, choose: bool = True) -> Any:
        """Let ``sampler`` weigh all candidates; return its choice, or the first candidate."""
        llama = load_llama()
        pointer = candidates.ctypes.data_as(ctypes.POINTER(llama.llama_token_data))
        array = llama.llama_token_data_array(pointer, len(candidates), -1, False)
        llama.llama_sampler_apply(sampler, ctypes.byref(array))
        return candidates[array.selected if choose else 0]

    @staticmethod
    def _allowed(candidate: Any) -> bool:
        return math.isfinite(candidate["logit"])

    def close(self) -> None:
        """Free the samplers."""
        if self._pointer:
            load_llama().llama_sampler_free(self._pointer)
            self._pointer = None
        if self._grammar:
            load_llama().llama_sampler_free(self._grammar)
            self._grammar = None


_CandidateToken = [("id", "i4"), ("logit", "f4"), ("p", "f4")]
"""llama.cpp's ``llama_token_data``."""


MAX_REPETITIONS = 1000
"""Items or characters that a schema may require: each becomes a rule of the grammar."""
MAX_SCHEMA_CHARACTERS = 32_000
"""Characters."""
MAX_SCHEMA_NODES = 5_000
"""Values of a schema with all references expanded. llama.cpp follows every one that the answer may
be at. If alternatives begin alike, these multiply with each character."""


def grammar_from_schema(schema: Mapping[str, Any]) -> str:
    """Return a JSON schema as a grammar for :class:`SamplerOptions`.

    Raises:
        BadRequest: It isn't a schema, or it would take too much work.
    """
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
    except Exception as error:  # the converter raises errors of any type
        raise BadRequest("not a JSON schema", provider="local") from error


def _max_repetitions(schema: Any) -> float:
    """Return the largest count of items, properties or characters in ``schema``."""
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
    if "pattern" in schema:  # llama.cpp expands it without a limit
        return math.inf
    return max([*numbers, *map(_max_repetitions, schema.values())], default=0)


def _check_references(schema: Mapping[str, Any]) -> None:
    """Raise ValueError if references are circular or expand to too many values."""
    nodes = 0
    waiting: list[tuple[Any, tuple[str, ...]]] = [(schema, ())]
    while waiting:
        value, path = waiting.pop()
        nodes += 1
        if nodes > MAX_SCHEMA_NODES:
            raise ValueError("it would take too much work")
        if isinstance(value, list):
            waiting += [(item, path) for item in value]
        elif isinstance(value, Mapping):
            waiting += [(item, path) for item in value.values()]
            reference = value.get("$ref")
            if isinstance(reference, str):
                if reference in path:
                    raise ValueError("it refers to itself")
                target: Any = schema
                for name in reference.removeprefix("#").strip("/").split("/"):
                    target = target[name] if name else target
                waiting.append((target, (*path, reference)))


_COUNT_SUFFIXES = ("Items", "Length", "Properties")
