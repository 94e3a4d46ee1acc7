"""The marks: their published error rates are those of the verdicts."""

from __future__ import annotations

import json
from typing import get_args

import pytest

from bench import fidelity as measured
from persona_lab.personas.fidelity import RULES, ErrorRate, RuleName, assess, marks
from persona_lab.personas.fidelity import rules as rules_module
from persona_lab.personas.fidelity.error_rates import ERROR_RATES
from persona_lab.personas.persona import Persona


def test_every_rule_has_a_name_and_an_error_rate():
    assert set(RULES) == set(get_args(RuleName)) == set(ERROR_RATES)


def test_error_rates_are_those_of_the_verdicts():
    assert measured.rates() == ERROR_RATES


def test_docs_have_the_table_of_the_error_rates():
    text = measured.DOCS.read_text(encoding="utf-8")
    assert f"{measured.TABLE_START}\n{measured.table()}\n{measured.TABLE_END}" in text
    assert all(f"| `{rule}` |" in text for rule in RULES)


@pytest.mark.parametrize("rule", RULES)
def test_samples_are_read_and_quote_what_was_marked(rule):
    rows = measured.rows_of(rule)
    assert len({(row["source"], row["start"], row["end"]) for row in rows}) == len(rows)
    for row in rows:
        assert isinstance(row["right"], bool)
        assert len(row["quote"]) == min(200, row["end"] - row["start"])


def test_personas_of_the_samples_are_valid():
    lines = (measured.FOLDER / "personas.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(measured.personas()) == len(lines) == 30
    assert all(set(json.loads(line)) == {"id", "persona"} for line in lines)


def test_precision_and_recall_are_shares():
    rate = ErrorRate(judged=80, wrong=8, seeded=50, found=40)
    assert (rate.precision, rate.recall) == (0.9, 0.8)
    nothing = ErrorRate(0, 0, 0, 0)
    assert (nothing.precision, nothing.recall) == (None, None)


def test_an_imprecise_rule_does_not_judge(monkeypatch):
    persona = Persona(name="みさき", first_person="私")
    assert [mark.rule for mark in marks("俺です。", persona)] == ["first_person"]
    imprecise = {**ERROR_RATES, "first_person": ErrorRate(100, 11, 100, 100)}
    monkeypatch.setattr(rules_module, "ERROR_RATES", imprecise)
    assert marks("俺です。", persona) == []
    unmeasured = [(each.rule, each.reason) for each in assess("俺です。", persona).unmeasured]
    assert ("first_person", "unreliable") in unmeasured
