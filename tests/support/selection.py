"""Which cases of a parametrized test belong to the fast selection."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def slow_after(count: int, cases: Iterable[Any]) -> list[Any]:
    """Mark the cases after the first ``count`` as slow.

    Args:
        count: How many cases ``make test`` runs.
        cases: What ``pytest.mark.parametrize`` would be given: values, or tuples of values.

    Returns:
        The cases in the same order, for ``pytest.mark.parametrize``.
    """
    marked = []
    for number, case in enumerate(cases):
        values = case if isinstance(case, tuple) else (case,)
        marked.append(pytest.param(*values, marks=[pytest.mark.slow] if number >= count else []))
    return marked
