"""Raise and end alerts: many errors, a rate limit reached, slow answers, an expensive day.

The first three look back over a window, the cost over the day (UTC). An alert is raised once, when
its value reaches the threshold. It is ended once, when its value is well below the threshold, so
that a value near the threshold doesn't raise it again and again. With fewer turns than a minimum,
rates and delays raise no alert; an active alert ends by better values or by an empty window.

These turns don't count, because the server works as it should: turns that the server itself
refused (a user's quota, an invalid message), refusals of a model, and turns with a model that only
a visitor has named. Their cost counts.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from persona_lab.errors import ErrorType
from persona_lab.monitor.metrics import SERVER_LIMITS
from persona_lab.types import LANGUAGES

if TYPE_CHECKING:
    from persona_lab.db.generations import GenerationResult
    from persona_lab.settings import Settings
    from persona_lab.translations import Translations

log = logging.getLogger("persona_lab.monitor")

Kind = Literal["errors", "limits", "delay", "cost"]

END_RATIO = 0.8
"""Share of the threshold below which an alert ends."""
PERCENTILE = 0.95
"""The percentile of the delay, as a share: 95 of 100 answers."""
MAX_TURNS = 50_000
"""Maximum number of turns that are kept of a window."""
CHECK_INTERVAL_S = 15.0
"""Seconds between two checks while an alert is active: an empty window ends it too."""

_LIMITS = frozenset({"rate_limit", "quota", "house_spent"})
_UNCOUNTED_ERRORS = frozenset({ErrorType.INVALID_INPUT.value, ErrorType.REFUSED.value})


@dataclass(frozen=True, slots=True)
class Alert:
    """An exceeded threshold.

    The unit of ``value`` and ``threshold`` depends on ``kind``: a share of the turns ("errors"), a
    number of refusals ("limits"), seconds ("delay"), US dollars ("cost"). ``window`` is in seconds.
    """

    kind: Kind
    value: float
    threshold: float
    window: float
    since: datetime

    @property
    def key(self) -> str:
        """The key of its text in ``templates/ui.yaml``."""
        return f"alert.{self.kind}"

    @property
    def details(self) -> dict[str, str]:
        """The values of the placeholders in its text."""
        shown = {
            "errors": (f"{self.value:.0%}", f"{self.threshold:.0%}"),
            "limits": (f"{self.value:.0f}", f"{self.threshold:.0f}"),
            "delay": (f"{self.value:.1f}", f"{self.threshold:g}"),
            "cost": (f"{self.value:.2f}", f"{self.threshold:.2f}"),
        }[self.kind]
        return {"value": shown[0], "threshold": shown[1], "minutes": f"{self.window / 60:g}"}


class Change(NamedTuple):
    """An alert that was raised or ended."""

    event: Literal["alert_raised", "alert_ended"]
    alert: Alert

    def as_message(self, translations: Translations) -> dict[str, Any]:
        """Return the JSON for a webhook. Chat services show its ``text``."""
        alert = self.alert
        lines = (
            translations(
                f"alert.{self.event}",
                language,
                what=translations(alert.key, language, **alert.details),
            )
            for language in LANGUAGES
        )
        return {
            "service": "persona-lab",
            "event": self.event,
            "alert": alert.kind,
            "value": alert.value,
            "threshold": alert.threshold,
            "window_seconds": alert.window,
            "since": alert.since.isoformat(),
            "text": "\n".join(lines),
        }


class _TurnSample(NamedTuple):
    at: float
    counted: bool
    failed: bool
    limits: int
    seconds: float


class Alerts:
    """Observes each finished generation. Methods may be called from any thread.

    Args:
        settings: The thresholds; 0 switches an alert off.
        clock: Returns the seconds since 1970.
        cost_today: The cost of this day until now, in US dollars.
        is_watched: Returns whether a model, as ``provider:model``, counts.
        receivers: Called with each change.
        check_interval: Seconds between checks while an alert is active; 0 checks only at turns.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.time,
        cost_today: float = 0.0,
        is_watched: Callable[[str], bool] = lambda spec: True,
        receivers: Sequence[Callable[[Change], None]] = (),
        check_interval: float = CHECK_INTERVAL_S,
    ) -> None:
        self.thresholds: dict[Kind, float] = {
            "errors": settings.alert_error_rate,
            "limits": settings.alert_limits,
            "delay": settings.alert_delay,
            "cost": settings.alert_cost,
        }
        self.window = settings.alert_window
        self._min_turns = settings.alert_min_turns
        self._clock = clock
        self._is_watched = is_watched
        self._receivers = (_log_change, *receivers)
        self._check_interval = check_interval
        self._lock = threading.RLock()
        self._turns: deque[_TurnSample] = deque()
        self._counted = self._failed = self._limits = self._above_delay = self._above_end_delay = 0
        """Numbers of turns in the window. A delay below the end delay ends the alert."""
        self._day = self._today()
        self._cost_today = cost_today
        self._active: dict[Kind, Alert] = {}
        self._closing = threading.Event()
        self._checker: threading.Thread | None = None

    @property
    def current(self) -> tuple[Alert, ...]:
        """The active alerts with their present values, the oldest first."""
        with self._lock:
            self._evaluate()
            for kind, alert in self._active.items():
                self._active[kind] = replace(alert, value=self._value(kind))
            return tuple(sorted(self._active.values(), key=lambda alert: alert.since))

    def observe(self, outcome: GenerationResult) -> None:
        """Count a finished generation, and raise or end alerts."""
        record = outcome.record
        if record.user_key:  # faults and costs of a visitor's own account don't count
            return
        attempts = [(outcome.spec, outcome.code), *(each[:2] for each in outcome.failed_attempts)]
        turn = _TurnSample(
            at=self._clock(),
            counted=self._is_watched(outcome.spec)
            and outcome.code not in SERVER_LIMITS
            and record.error_type not in _UNCOUNTED_ERRORS,
            failed=record.status == "failed",
            limits=sum(code in _LIMITS and self._is_watched(spec) for spec, code in attempts),
            seconds=record.total_ms / 1000,
        )
        with self._lock:
            self._roll_day()
            self._cost_today += record.cost or 0.0
            self._turns.append(turn)
            self._count(turn, 1)
            self._evaluate()

    def check(self) -> None:
        """Raise or end alerts by the present time."""
        with self._lock:
            self._evaluate()

    def close(self) -> None:
        """End the active alerts, so that no receiver waits for their end, and stop checking."""
        self._closing.set()
        with self._lock:
            while self._active:
                kind, alert = self._active.popitem()
                self._notify(Change("alert_ended", replace(alert, value=self._value(kind))))

    # ── the window ────────────────────────────────────────────────────────────────────────

    def _count(self, turn: _TurnSample, sign: int) -> None:
        self._limits += sign * turn.limits
        if turn.counted:
            delay = self.thresholds["delay"]
            self._counted += sign
            self._failed += sign * turn.failed
            self._above_delay += sign * (turn.seconds >= delay)
            self._above_end_delay += sign * (turn.seconds >= END_RATIO * delay)

    def _drop_old_turns(self) -> None:
        oldest = self._clock() - self.window
        while self._turns and (self._turns[0].at <= oldest or len(self._turns) > MAX_TURNS):
            self._count(self._turns.popleft(), -1)

    def _today(self) -> date:
        return datetime.fromtimestamp(self._clock(), UTC).date()

    def _roll_day(self) -> None:
        today = self._today()
        if today != self._day:
            self._day, self._cost_today = today, 0.0

    # ── the thresholds ────────────────────────────────────────────────────────────────────

    def _evaluate(self) -> None:
        """Raise and end alerts by the turns in the window."""
        self._drop_old_turns()
        self._roll_day()
        for kind, threshold in self.thresholds.items():
            if kind in self._active:
                if self._has_ended(kind):
                    over = replace(self._active.pop(kind), value=self._value(kind))
                    self._notify(Change("alert_ended", over))
            elif threshold and self._is_due(kind):
                since = datetime.fromtimestamp(self._clock(), UTC)
                alert = Alert(kind, self._value(kind), threshold, self.window, since)
                self._active[kind] = alert
                self._notify(Change("alert_raised", alert))
                self._start_checker()

    def _is_due(self, kind: Kind) -> bool:
        if kind in ("errors", "delay") and self._counted < max(1, self._min_turns):
            return False
        if kind == "delay":
            return self._includes_percentile(self._above_delay)
        return self._value(kind) >= self.thresholds[kind]

    def _has_ended(self, kind: Kind) -> bool:
        if kind == "delay":
            return not self._includes_percentile(self._above_end_delay)
        if kind == "limits":
            return self._limits == 0
        return self._value(kind) < END_RATIO * self.thresholds[kind]

    def _includes_percentile(self, slow: int) -> bool:
        """Return whether the percentile is one of the ``slow`` slowest turns, without sorting."""
        return slow > self._counted - math.ceil(PERCENTILE * self._counted)

    def _value(self, kind: Kind) -> float:
        if kind == "errors":
            return self._failed / self._counted if self._counted else 0.0
        if kind == "limits":
            return float(self._limits)
        if kind == "cost":
            return self._cost_today
        seconds = sorted(turn.seconds for turn in self._turns if turn.counted)
        return seconds[math.ceil(PERCENTILE * len(seconds)) - 1] if seconds else 0.0

    def _notify(self, change: Change) -> None:
        for receive in self._receivers:
            try:
                receive(change)
            except Exception as error:  # noqa: BLE001 - the other receivers must still get it
                about = {"event": "alert_untold", "error_class": type(error).__name__}
                log.warning("an alert wasn't told", extra=about)

    # ── checks while an alert is active ───────────────────────────────────────────────────

    def _start_checker(self) -> None:
        if self._check_interval and self._checker is None:
            self._checker = threading.Thread(
                target=self._check_while_active, name="alerts", daemon=True
            )
            self._checker.start()

    def _check_while_active(self) -> None:
        while not self._closing.wait(self._check_interval):
            with self._lock:
                self._evaluate()
                if not self._active:
                    self._checker = None
                    return


def _log_change(change: Change) -> None:
    alert = change.alert
    about: dict[str, Any] = {
        "event": change.event,
        "alert": alert.kind,
        "value": round(alert.value, 4),
        "threshold": alert.threshold,
        "since": alert.since.isoformat(),
    }
    level = logging.WARNING if change.event == "alert_raised" else logging.INFO
    log.log(level, "%s: %s", change.event, alert.kind, extra=about)
