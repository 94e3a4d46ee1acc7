"""Answers that follow a grammar or a JSON schema."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support import tiny_gguf as tiny_gguf
from support.llama import (
    submit,
    tokenize,
)

from persona_lab.errors import (
    BadRequest,
)
from persona_lab.llama import (
    Engine,
    SamplerOptions,
)
from persona_lab.llama.sampling import grammar_from_schema


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_an_answer_by_a_grammar_is_one_of_its_words(engine: Engine, temperature: float) -> None:
    options = SamplerOptions(temperature, seed=1, grammar='root ::= ("yes" | "no") "!"')
    for number in range(5):
        answer = submit(engine, tokenize(engine, f"Question {number}?"), options=options)
        assert answer.wait().finish == "stop"
        assert answer.text in ("yes!", "no!")


def test_an_answer_by_a_schema_is_json_that_keeps_to_it(engine: Engine) -> None:
    schema = {
        "type": "object",
        "properties": {"polite": {"type": "boolean"}, "level": {"enum": [1, 2, 3, 4]}},
        "required": ["polite", "level"],
        "additionalProperties": False,
    }
    options = SamplerOptions(1.0, seed=3, grammar=grammar_from_schema(schema))
    answer = submit(engine, tokenize(engine, "How polite?"), options=options, max_tokens=200)
    assert answer.wait().finish == "stop"
    said = json.loads(answer.text)
    assert (type(said["polite"]), said["level"] in (1, 2, 3, 4), len(said)) == (bool, True, 2)


@pytest.mark.parametrize("grammar", ["root ::= (", "nonsense", 'other ::= "x"'])
def test_what_is_no_grammar_is_refused(engine: Engine, grammar: str) -> None:
    with pytest.raises(BadRequest):
        submit(engine, tokenize(engine, "Hello"), options=SamplerOptions(grammar=grammar))
    assert submit(engine, tokenize(engine, "Hello")).wait().finish


def _alike(depth: int) -> dict[str, Any]:
    """Arrays in arrays, each in two ways that begin alike."""
    ways = {f"a{depth}": {"type": "integer"}}
    for level in range(depth):
        inner = {"type": "array", "minItems": 1, "items": {"$ref": f"#/$defs/a{level + 1}"}}
        ways[f"a{level}"] = {"anyOf": [inner, dict(inner)]}
    return {"properties": {"x": {"$ref": "#/$defs/a0"}}, "required": ["x"], "$defs": ways}


def test_schema_is_refused_at_once_when_it_is_too_complex() -> None:
    assert grammar_from_schema(_alike(3))
    circle = {"$ref": "#/$defs/a0"}
    for schema in (
        _alike(20),
        _alike(1) | {"$defs": {"a0": {"anyOf": [{"items": circle}, circle]}}},
    ):
        with pytest.raises(BadRequest):
            grammar_from_schema(schema)


def test_what_is_no_schema_is_refused() -> None:
    with pytest.raises(BadRequest):
        grammar_from_schema({"$ref": "#/nowhere"})
