"""The webhook: tells another program of alerts, beside everything else and as often as it takes.

Nobody waits for it: what is to be told is put into a short queue, and one thread, which is started
for the first of it, sends it in order. A receiver that is away, busy or at fault is tried again,
with growing pauses; one that says no isn't. Its address may have a secret in it and is told nobody.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tenacity

log = logging.getLogger("persona_lab.monitor")

TRIES = 16
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds: the pauses between tries double from one to the other, and are partly chance. In all
that is ten minutes at least: a receiver may be restarted meanwhile."""
PATIENCE = 10.0
"""Seconds for one try."""
WAITING = 100
"""Messages that may wait; further ones are dropped."""

Message = Mapping[str, Any]

_TRIED_AGAIN = frozenset({408, 425, 429})


class Webhook:
    """Posts JSON to ``url``. ``sleep`` waits between two tries."""

    def __init__(self, url: str, *, sleep: Callable[[float], None] | None = None) -> None:
        self._url = url
        self._closing = threading.Event()
        self._sleep = sleep or self._pause
        self._waiting: queue.Queue[Callable[[], Message] | None] = queue.Queue(WAITING)
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def send(self, word: Callable[[], Message]) -> None:
        """Have a message sent, which ``word`` gives when it is its turn. Returns at once; from any
        thread."""
        try:
            self._waiting.put_nowait(word)
        except queue.Full:
            log.warning("a webhook's queue is full", extra={"event": "webhook_dropped"})
            return
        with self._starting:
            if self._thread is None and not self._closing.is_set():
                self._thread = threading.Thread(target=self._work, name="webhook", daemon=True)
                self._thread.start()

    def close(self, patience: float = 2.0) -> None:
        """Let it send what waits, without pauses, for so many seconds at most."""
        self._closing.set()
        with self._starting:
            thread = self._thread
        if thread is not None:
            try:
                self._waiting.put_nowait(None)
            except queue.Full:
                return
            thread.join(patience)

    def _pause(self, seconds: float) -> None:
        self._closing.wait(seconds)

    def _work(self) -> None:
        while (word := self._waiting.get()) is not None:
            try:
                self._deliver(word())
            except Exception as wrong:  # noqa: BLE001 - the next message is worth another try
                _failed(error_class=type(wrong).__name__)

    def _deliver(self, message: Message) -> None:
        import httpx2
        import tenacity

        trying = tenacity.Retrying(
            sleep=self._sleep,
            stop=tenacity.stop_after_attempt(TRIES),
            wait=tenacity.wait_exponential(FIRST_PAUSE, LONGEST_PAUSE) + tenacity.wait_random(0, 1),
            retry=tenacity.retry_if_exception_type(httpx2.TransportError)
            | tenacity.retry_if_result(lambda status: status >= 500 or status in _TRIED_AGAIN),
            retry_error_callback=_last,
        )
        status = trying(lambda: httpx2.post(self._url, json=message, timeout=PATIENCE).status_code)
        if not 200 <= status < 300:
            _failed(status=status)


def _last(state: tenacity.RetryCallState) -> Any:
    """What came of the last try: its status, or its error raised."""
    return state.outcome.result() if state.outcome is not None else 0


def _failed(**why: Any) -> None:
    log.warning("a webhook didn't take an alert", extra={"event": "webhook_failed", **why})
