"""Tell the observers of finished generations: the log, the metrics and the alerts."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterable
from typing import TypeVar

from persona_lab.db.generations import GenerationResult

log = logging.getLogger("persona_lab.service")

Observer = Callable[[GenerationResult], None]
"""Called after each generation, on a worker thread. An exception that it raises is logged."""

_T = TypeVar("_T")


def store_and_notify(
    store: Callable[[], _T], observers: Iterable[Observer], result: GenerationResult
) -> _T:
    """Call ``store``, which writes the generation, and return what it returns.

    The observers are called even if the write fails.
    """
    try:
        return store()
    finally:
        for observe in observers:
            try:
                observe(result)
            except Exception as error:  # noqa: BLE001 - an observer must not fail a turn
                _log_failure(error)


def _log_failure(error: Exception) -> None:
    trace = traceback.extract_tb(error.__traceback__)
    log.warning(
        "an observer failed",
        extra={
            "event": "observer_failed",
            "error_class": type(error).__name__,
            "trace": [f"{at.filename}:{at.lineno} {at.name}" for at in trace],
        },
    )
