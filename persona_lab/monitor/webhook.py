"""Post alerts to a webhook, in the background, with retries.

Messages go into a short queue. One thread, started for the first message, sends them in order. If
the receiver is unreachable, busy or faulty, the post is retried with growing pauses; if it refuses,
it is not. The address may contain a secret and is never logged.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from persona_lab.proxies import Proxies

if TYPE_CHECKING:
    import tenacity

log = logging.getLogger("persona_lab.monitor")

MAX_TRIES = 16
FIRST_PAUSE_S, MAX_PAUSE_S = 1.0, 60.0
"""Seconds. Pauses between tries double up to the longest, with a random part. All tries take at
least ten minutes, so a receiver can restart meanwhile."""
TIMEOUT_S = 10.0
"""Timeout of one try, in seconds."""
MAX_QUEUED = 100
"""Most messages in the queue; further ones are dropped."""

Message = Mapping[str, Any]

_RETRIED_STATUSES = frozenset({408, 425, 429})


class Webhook:
    """Posts JSON to a URL.

    Args:
        url: The URL.
        proxies: The proxies of the settings.
        sleep: Waits between two tries; None waits until :meth:`close`.
    """

    def __init__(
        self,
        url: str,
        *,
        proxies: Proxies = Proxies(),  # noqa: B008 - it is immutable
        sleep: Callable[[float], None] | None = None,
    ) -> None:
        self._url = url
        self._proxies = proxies
        self._closing = threading.Event()
        self.sleep = sleep or self._pause
        self._queue: queue.Queue[Callable[[], Message] | None] = queue.Queue(MAX_QUEUED)
        self._thread: threading.Thread | None = None
        self._start_lock = threading.Lock()

    def send(self, make_message: Callable[[], Message]) -> None:
        """Queue a message and return at once. May be called from any thread.

        ``make_message`` returns the message; it is called just before the message is sent.
        """
        try:
            self._queue.put_nowait(make_message)
        except queue.Full:
            log.warning("a webhook's queue is full", extra={"event": "webhook_dropped"})
            return
        with self._start_lock:
            if self._thread is None and not self._closing.is_set():
                self._thread = threading.Thread(target=self._run, name="webhook", daemon=True)
                self._thread.start()

    def close(self, timeout: float = 2.0) -> None:
        """Send the queued messages without pauses, for ``timeout`` seconds at most."""
        self._closing.set()
        with self._start_lock:
            thread = self._thread
        if thread is not None:
            try:
                self._queue.put_nowait(None)
            except queue.Full:
                return
            thread.join(timeout)

    def _pause(self, seconds: float) -> None:
        self._closing.wait(seconds)

    def _run(self) -> None:
        while (make_message := self._queue.get()) is not None:
            try:
                self._deliver(make_message())
            except Exception as error:  # noqa: BLE001 - the next message is worth another try
                _log_failure(error_class=type(error).__name__)

    def _deliver(self, message: Message) -> None:
        import httpx2
        import tenacity

        trying = tenacity.Retrying(
            sleep=self.sleep,
            stop=tenacity.stop_after_attempt(MAX_TRIES),
            wait=tenacity.wait_exponential(FIRST_PAUSE_S, MAX_PAUSE_S) + tenacity.wait_random(0, 1),
            retry=tenacity.retry_if_exception_type(httpx2.TransportError)
            | tenacity.retry_if_result(lambda status: status >= 500 or status in _RETRIED_STATUSES),
            retry_error_callback=_last_result,
        )
        options = self._proxies.client_options(self._url)
        with httpx2.Client(timeout=TIMEOUT_S, **options) as client:
            status = trying(lambda: client.post(self._url, json=message).status_code)
        if not 200 <= status < 300:
            _log_failure(status=status)


def _last_result(state: tenacity.RetryCallState) -> Any:
    """Return the status of the last try, or raise its error."""
    return state.outcome.result() if state.outcome is not None else 0


def _log_failure(**why: Any) -> None:
    log.warning("a webhook didn't take an alert", extra={"event": "webhook_failed", **why})
