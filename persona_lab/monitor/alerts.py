"""Alerts: too many errors, a provider's limit or the house's reached, answers that take too long,
a day that costs too much.

The first three look back over a window, the cost over the day (UTC). An alert is raised once, when
its threshold is reached, and ended once: when its figure has fallen well below it, so that one
which sways around the threshold doesn't ring at every turn. Fewer turns than a minimum tell
nothing of a rate; an alert that stands is only ended by what is better, or by silence.

Not counted are turns that the house itself turned away (a user's quota, a message that can't be),
what a model refused to say, and models that a visitor named and the house didn't: nothing is out of
order then. What those cost is.
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
from persona_lab.monitor.metrics import HOUSE_LIMITS
from persona_lab.translations import LANGUAGES

if TYPE_CHECKING:
    from persona_lab.db.generations import GenerationResult
    from persona_lab.settings import Settings
    from persona_lab.translations import Translations

log = logging.getLogger("persona_lab.monitor")

Kind = Literal["errors", "limits", "delay", "cost"]

ENDS = 0.8
"""Share of its threshold under which an alert is over."""
RANK = 0.95
"""The share of answers that may not take as long as the threshold of the delay."""
MOST = 50_000
"""Turns of a window that are remembered."""
TICK = 15.0
"""Seconds between two looks while an alert stands: also silence ends it."""

_LIMITS = frozenset({"rate_limit", "quota", "house_spent"})
_NO_FAULT = frozenset({ErrorType.INVALID_INPUT.value, ErrorType.REFUSED.value})


@dataclass(frozen=True, slots=True)
class Alert:
    """What is out of order, by how much, and since when.

    ``value`` and ``threshold``: a share of the turns, a number of refusals, seconds, US dollars.
    ``window`` in seconds.
    """

    kind: Kind
    value: float
    threshold: float
    window: float
    since: datetime

    @property
    def key(self) -> str:
        """Where its words stand in ``templates/ui.yaml``."""
        return f"alert.{self.kind}"

    @property
    def details(self) -> dict[str, str]:
        """What fills their blanks."""
        shown = {
            "errors": (f"{self.value:.0%}", f"{self.threshold:.0%}"),
            "limits": (f"{self.value:.0f}", f"{self.threshold:.0f}"),
            "delay": (f"{self.value:.1f}", f"{self.threshold:g}"),
            "cost": (f"{self.value:.2f}", f"{self.threshold:.2f}"),
        }[self.kind]
        return {"value": shown[0], "threshold": shown[1], "minutes": f"{self.window / 60:g}"}


class Change(NamedTuple):
    """An alert that was raised, or is over."""

    event: Literal["alert_raised", "alert_ended"]
    alert: Alert

    def as_message(self, words: Translations) -> dict[str, Any]:
        """What another program is told. Chat services show the ``text``."""
        alert = self.alert
        lines = (
            words(f"alert.{self.event}", tongue, what=words(alert.key, tongue, **alert.details))
            for tongue in LANGUAGES
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


class _Turn(NamedTuple):
    at: float
    counted: bool
    failed: bool
    limits: int
    seconds: float


class Alerts:
    """Looks at each generation that is over. From any thread.

    Thresholds are those of the settings, 0 switches one off. ``clock`` counts seconds since 1970;
    ``spent``: US dollars that today has cost already; ``watches``: whether a model, as
    ``provider:model``, is the house's concern. ``tell`` hear of each change. ``tick``: how often it
    looks by itself while an alert stands, 0 for never.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.time,
        spent: float = 0.0,
        watches: Callable[[str], bool] = lambda spec: True,
        tell: Sequence[Callable[[Change], None]] = (),
        tick: float = TICK,
    ) -> None:
        self.thresholds: dict[Kind, float] = {
            "errors": settings.alert_error_rate,
            "limits": settings.alert_limits,
            "delay": settings.alert_delay,
            "cost": settings.alert_cost,
        }
        self.window = settings.alert_window
        self._minimum = settings.alert_min_turns
        self._clock = clock
        self._watches = watches
        self._tell = (_logged, *tell)
        self._tick = tick
        self._lock = threading.RLock()
        self._turns: deque[_Turn] = deque()
        self._counted = self._failed = self._limits = self._slow = self._slowish = 0
        """Of the turns in the window; slow and slowish: over the delay, and over what ends it."""
        self._day = self._today()
        self._spent = spent
        self._standing: dict[Kind, Alert] = {}
        self._closing = threading.Event()
        self._looking: threading.Thread | None = None

    @property
    def current(self) -> tuple[Alert, ...]:
        """The alerts that stand now, with their figures of now, the oldest first."""
        with self._lock:
            self._judge()
            for kind, alert in self._standing.items():
                self._standing[kind] = replace(alert, value=self._value(kind))
            return tuple(sorted(self._standing.values(), key=lambda alert: alert.since))

    def observe(self, outcome: GenerationResult) -> None:
        record = outcome.record
        if record.user_key:  # their account's troubles and costs aren't the house's
            return
        asked = [(outcome.spec, outcome.code), *(each[:2] for each in outcome.failed_attempts)]
        turn = _Turn(
            at=self._clock(),
            counted=self._watches(outcome.spec)
            and outcome.code not in HOUSE_LIMITS
            and record.error_type not in _NO_FAULT,
            failed=record.status == "failed",
            limits=sum(code in _LIMITS and self._watches(spec) for spec, code in asked),
            seconds=record.total_ms / 1000,
        )
        with self._lock:
            self._roll_day()
            self._spent += record.cost or 0.0
            self._turns.append(turn)
            self._count(turn, 1)
            self._judge()

    def check(self) -> None:
        """Look whether anything is over by now."""
        with self._lock:
            self._judge()

    def close(self) -> None:
        """Look no more. What stands is ended: who has been told of it would wait for ever."""
        self._closing.set()
        with self._lock:
            while self._standing:
                kind, alert = self._standing.popitem()
                self._say(Change("alert_ended", replace(alert, value=self._value(kind))))

    # ── what has been ─────────────────────────────────────────────────────────────────────

    def _count(self, turn: _Turn, sign: int) -> None:
        self._limits += sign * turn.limits
        if turn.counted:
            delay = self.thresholds["delay"]
            self._counted += sign
            self._failed += sign * turn.failed
            self._slow += sign * (turn.seconds >= delay)
            self._slowish += sign * (turn.seconds >= ENDS * delay)

    def _forget(self) -> None:
        oldest = self._clock() - self.window
        while self._turns and (self._turns[0].at <= oldest or len(self._turns) > MOST):
            self._count(self._turns.popleft(), -1)

    def _today(self) -> date:
        return datetime.fromtimestamp(self._clock(), UTC).date()

    def _roll_day(self) -> None:
        today = self._today()
        if today != self._day:
            self._day, self._spent = today, 0.0

    # ── what that means ───────────────────────────────────────────────────────────────────

    def _judge(self) -> None:
        self._forget()
        self._roll_day()
        for kind, threshold in self.thresholds.items():
            if kind in self._standing:
                if self._is_over(kind):
                    over = replace(self._standing.pop(kind), value=self._value(kind))
                    self._say(Change("alert_ended", over))
            elif threshold and self._is_due(kind):
                since = datetime.fromtimestamp(self._clock(), UTC)
                alert = Alert(kind, self._value(kind), threshold, self.window, since)
                self._standing[kind] = alert
                self._say(Change("alert_raised", alert))
                self._look()

    def _is_due(self, kind: Kind) -> bool:
        if kind in ("errors", "delay") and self._counted < max(1, self._minimum):
            return False
        if kind == "delay":
            return self._ranks(self._slow)
        return self._value(kind) >= self.thresholds[kind]

    def _is_over(self, kind: Kind) -> bool:
        if kind == "delay":
            return not self._ranks(self._slowish)
        if kind == "limits":
            return self._limits == 0
        return self._value(kind) < ENDS * self.thresholds[kind]

    def _ranks(self, slow: int) -> bool:
        """Whether the percentile is among the ``slow`` turns, without sorting any."""
        return slow > self._counted - math.ceil(RANK * self._counted)

    def _value(self, kind: Kind) -> float:
        if kind == "errors":
            return self._failed / self._counted if self._counted else 0.0
        if kind == "limits":
            return float(self._limits)
        if kind == "cost":
            return self._spent
        seconds = sorted(turn.seconds for turn in self._turns if turn.counted)
        return seconds[math.ceil(RANK * len(seconds)) - 1] if seconds else 0.0

    def _say(self, change: Change) -> None:
        for tell in self._tell:
            try:
                tell(change)
            except Exception as error:  # noqa: BLE001 - it must not keep others from hearing of it
                about = {"event": "alert_untold", "error_class": type(error).__name__}
                log.warning("an alert wasn't told", extra=about)

    # ── while an alert stands ─────────────────────────────────────────────────────────────

    def _look(self) -> None:
        if self._tick and self._looking is None:
            self._looking = threading.Thread(target=self._go_on, name="alerts", daemon=True)
            self._looking.start()

    def _go_on(self) -> None:
        while not self._closing.wait(self._tick):
            with self._lock:
                self._judge()
                if not self._standing:
                    self._looking = None
                    return


def _logged(change: Change) -> None:
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
