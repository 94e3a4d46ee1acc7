"""Alerts with a moved clock: raised once, ended once; and the webhook that tells of them."""

from __future__ import annotations

import json
import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pytest_httpserver import HTTPServer
from support.app_process import wait_until
from support.fakes import ChatUser, reply_with
from werkzeug import Request, Response

from persona_lab.db.generations import FailedAttempt, GenerationResult
from persona_lab.db.tables import Generation
from persona_lab.errors import ConfigurationError, Overloaded
from persona_lab.lab import Lab
from persona_lab.monitor.alerts import END_RATIO, Alert, Alerts, Change
from persona_lab.monitor.webhook import MAX_QUEUED, MAX_TRIES, Webhook
from persona_lab.settings import ROOT, Settings, load_settings
from persona_lab.translations import Translations
from persona_lab.types import LANGUAGES

MakeLab = Callable[..., Lab]

NOON = datetime(2026, 11, 25, 12, tzinfo=UTC).timestamp()
OFF: dict[str, Any] = {
    "alert_error_rate": 0,
    "alert_delay": 0,
    "alert_limits": 0,
    "alert_cost": 0,
    "alert_window": 60,
    "alert_min_turns": 5,
}
ASKED = "誰にも見せない言葉"


class Clock:
    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Watched:
    """Alerts, their clock, and what they told."""

    def __init__(
        self,
        *,
        spent: float = 0,
        now: float = NOON,
        tick: float = 0,
        is_watched: Callable[[str], bool] = lambda spec: True,
        **fields: Any,
    ):
        self.clock = Clock(now)
        self.told: list[Change] = []
        self.alerts = Alerts(
            Settings(**(OFF | fields)),
            clock=self.clock,
            cost_today=spent,
            is_watched=is_watched,
            receivers=[self.told.append],
            check_interval=tick,
        )

    def turns(
        self, number: int = 1, *, every: float = 1, code: str | None = None, **fields: Any
    ) -> None:
        passed = fields.pop("failed_attempts", ())
        about = {"user_id": "u", "agent_id": "a", "provider": "openai", "model": "m"}
        for _ in range(number):
            self.clock.now += every
            record = Generation(**(about | {"status": "ok"} | fields))
            self.alerts.observe(
                GenerationResult(record, "openai:m", code=code, failed_attempts=passed)
            )

    def fails(self, number: int = 1, code: str = "offline", **fields: Any) -> None:
        self.turns(number, code=code, status="failed", **({"error_type": code} | fields))

    @property
    def events(self) -> list[tuple[str, str]]:
        return [(change.event, change.alert.kind) for change in self.told]

    @property
    def current(self) -> list[str]:
        return [alert.kind for alert in self.alerts.current]


# ── errors ────────────────────────────────────────────────────────────────────────────────


def test_a_high_rate_of_errors_is_raised_once_and_ended_once() -> None:
    watched = Watched(alert_error_rate=0.5)
    watched.turns(5)
    assert watched.current == []
    watched.fails(20)
    assert watched.events == [("alert_raised", "errors")]
    assert watched.current == ["errors"]
    watched.turns(40)
    assert watched.current == []
    assert watched.events == [("alert_raised", "errors"), ("alert_ended", "errors")]


def test_active_alerts_are_ended_on_close() -> None:
    watched = Watched(alert_error_rate=0.5)
    watched.fails(20)
    for _ in range(2):
        watched.alerts.close()
    assert watched.events == [("alert_raised", "errors"), ("alert_ended", "errors")]


def test_a_rate_that_sways_around_the_threshold_rings_once() -> None:
    watched = Watched(alert_error_rate=0.5, alert_window=20)
    for _ in range(30):
        watched.fails()
        watched.turns()
    assert watched.events == [("alert_raised", "errors")]


def test_few_turns_tell_nothing_of_a_rate() -> None:
    watched = Watched(alert_error_rate=0.5, alert_min_turns=5)
    watched.fails(4)
    assert watched.events == []
    watched.fails(1)
    assert watched.events == [("alert_raised", "errors")]


def test_alert_stays_active_below_the_minimum_of_turns() -> None:
    watched = Watched(alert_error_rate=0.5, alert_window=60, alert_min_turns=5)
    watched.fails(5)
    watched.clock.now += 57
    assert watched.current == ["errors"]  # two are left, and both failed
    watched.clock.now += 10
    assert watched.current == []


def test_silence_ends_an_alert_without_another_turn() -> None:
    watched = Watched(alert_error_rate=0.5)
    watched.fails(9)
    watched.clock.now += 61
    watched.alerts.check()
    watched.alerts.check()
    assert watched.events == [("alert_raised", "errors"), ("alert_ended", "errors")]


@pytest.mark.parametrize(
    ("code", "error_type"),
    [
        ("too_many_requests", "rate_limit"),
        ("tokens_spent", "rate_limit"),
        ("not_found", "invalid_input"),
        ("refused", "refused"),
    ],
)
def test_error_rate_ignores_refusals_of_the_server(code: str, error_type: str) -> None:
    watched = Watched(alert_error_rate=0.1, alert_limits=1)
    watched.fails(20, code, error_type=error_type)
    assert watched.events == []


def test_a_threshold_of_zero_switches_an_alert_off() -> None:
    watched = Watched()
    watched.fails(50, "rate_limit", total_ms=1e6, cost=1e6)
    assert watched.events == []


# ── limits, delay, cost ───────────────────────────────────────────────────────────────────


def test_limit_alert_counts_a_model_replaced_by_a_fallback() -> None:
    watched = Watched(alert_limits=2)
    passed = (FailedAttempt("openai:m", "quota"), FailedAttempt("anthropic:n", "offline"))
    watched.turns(1, failed_attempts=passed)
    assert watched.events == []
    watched.fails(1, "rate_limit")
    watched.turns(20)
    assert watched.events == [("alert_raised", "limits")]
    assert watched.alerts.current[0].value == 2
    watched.turns(41)
    assert watched.events == [("alert_raised", "limits"), ("alert_ended", "limits")]


def test_a_delay_is_that_of_95_answers_of_100() -> None:
    watched = Watched(alert_delay=10, alert_window=1000)
    watched.turns(95, total_ms=100)
    watched.turns(5, total_ms=10_000)
    assert watched.events == []  # the 95th of 100 was quick
    watched.turns(1, total_ms=10_000)
    assert watched.events == [("alert_raised", "delay")]
    assert watched.alerts.current[0].value == 10
    watched.turns(15, total_ms=9000)  # better, and not well
    assert watched.current == ["delay"]
    watched.turns(400, total_ms=100)
    assert watched.events[1:] == [("alert_ended", "delay")]


def test_delay_is_the_percentile_of_the_sorted_window() -> None:
    import random

    dice = random.Random(3)
    watched = Watched(alert_delay=5, alert_window=50, alert_min_turns=1)
    window: deque[float] = deque(maxlen=50)  # a turn a second
    events, active = [], False
    for _ in range(2000):
        window.extend(dice.choices([100, 3900, 4000, 5000, 9000], [60, 35, 2, 2, 1]))
        watched.turns(total_ms=window[-1])
        delay = sorted(window)[math.ceil(0.95 * len(window)) - 1] / 1000
        if (delay < END_RATIO * 5) if active else (delay >= 5):
            active = not active
            events.append(("alert_raised" if active else "alert_ended", "delay"))
        assert watched.events == events
        assert [alert.value for alert in watched.alerts.current] == [delay] * active
    assert len(events) > 10


def test_a_day_that_costs_too_much_ends_at_midnight() -> None:
    watched = Watched(alert_cost=10, spent=9)
    watched.turns(1, cost=None)
    watched.turns(1, cost=0.5)
    assert watched.events == []
    watched.turns(3, cost=0.5)
    assert watched.events == [("alert_raised", "cost")]
    watched.clock.now += timedelta(hours=11).total_seconds()
    assert watched.current == ["cost"]
    watched.clock.now += timedelta(hours=1).total_seconds()
    assert watched.current == []
    watched.turns(1, cost=9.5)
    assert watched.events == [("alert_raised", "cost"), ("alert_ended", "cost")]


async def test_what_today_has_cost_survives_a_restart(make_lab: MakeLab) -> None:
    lab = make_lab()
    now = datetime.now(UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    about = {"agent_id": "a", "provider": "openai", "model": "m", "status": "ok"}
    for user in (lab.store.create_user().id, lab.store.create_user().id):
        for cost, when in ((0.5, now), (None, now), (2.0, midnight - timedelta(seconds=1))):
            lab.store.record(Generation(user_id=user, cost=cost, created_at=when, **about))
        lab.store.record(Generation(user_id=user, cost=8.0, created_at=now, user_key=True, **about))
    assert lab.store.total_cost(midnight) == 1.0
    assert lab.store.total_cost(now + timedelta(days=1)) == 0.0


def test_unwatched_model_raises_only_the_cost_alert() -> None:
    watched = Watched(
        alert_error_rate=0.5,
        alert_limits=1,
        alert_delay=1,
        alert_cost=5,
        is_watched=lambda spec: spec == "anthropic:n",
    )
    watched.fails(20, "rate_limit", total_ms=9000.0)
    assert watched.events == []
    watched.turns(1, failed_attempts=(FailedAttempt("anthropic:n", "quota"),))
    watched.turns(1, cost=5.0)
    assert watched.events == [("alert_raised", "limits"), ("alert_raised", "cost")]


async def test_lab_watches_only_models_of_the_settings(make_lab: MakeLab) -> None:
    lab = make_lab(alert_limits=1, llm_retries=0)
    visitor = ChatUser(lab)
    ask = lab.service.generate_response
    await ask("やあ", **visitor.ids, model="mock:echo?fail=rate_limit")
    assert lab.monitor.alerts.current == ()


def test_what_a_model_refused_says_nothing_of_the_rate() -> None:
    watched = Watched(alert_error_rate=0.5, alert_min_turns=4)
    watched.fails(20, "refused", error_type="refused")
    watched.fails(4)
    assert watched.events == [("alert_raised", "errors")]


# ── what is told ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["errors", "limits", "delay", "cost"])
def test_every_alert_has_words_in_both_languages(kind: Any) -> None:
    words = Translations(ROOT / "templates" / "ui.yaml")
    alert = Alert(kind, 0.5, 0.25, 300, datetime.now(UTC))
    for language in LANGUAGES:
        said = words(alert.key, language, **alert.details)
        assert words.placeholders(alert.key) <= alert.details.keys()
        assert "{" not in said
    message = Change("alert_raised", alert).as_message(words)
    assert (message["alert"], message["value"], message["threshold"]) == (kind, 0.5, 0.25)
    assert message["text"].count("\n") == 1
    json.dumps(message)


def test_alert_changes_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="persona_lab")
    watched = Watched(alert_error_rate=0.5)
    watched.fails(5)
    watched.clock.now += 100
    watched.alerts.check()
    raised, ended = caplog.records
    assert (raised.__dict__["event"], raised.levelname) == ("alert_raised", "WARNING")
    assert (ended.__dict__["event"], ended.levelname) == ("alert_ended", "INFO")
    assert raised.__dict__["alert"] == "errors"


def test_failing_receiver_does_not_block_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(change: Change) -> None:
        raise RuntimeError("sk-canary")

    told: list[Change] = []
    settings = Settings(**(OFF | {"alert_limits": 1}))
    alerts = Alerts(settings, clock=Clock(), receivers=[broken, told.append], check_interval=0)
    record = Generation(user_id="u", agent_id="a", provider="p", model="m", status="failed")
    alerts.observe(GenerationResult(record, "p:m", code="quota"))
    assert len(told) == 1
    assert [r.__dict__["event"] for r in caplog.records] == ["alert_raised", "alert_untold"]
    assert "sk-canary" not in caplog.text


def test_checks_run_only_while_an_alert_is_active() -> None:
    before = set(threading.enumerate())
    watched = Watched(alert_limits=1, tick=0.01)
    watched.fails(1, "quota")
    [looking] = set(threading.enumerate()) - before
    watched.clock.now += 61
    wait_until(lambda: watched.events == [("alert_raised", "limits"), ("alert_ended", "limits")])
    looking.join(10)
    assert not looking.is_alive()
    watched.fails(1, "quota")
    watched.alerts.close()
    assert watched.current == ["limits"]


def test_turns_on_many_threads_raise_one_alert() -> None:
    watched = Watched(alert_limits=1, alert_error_rate=0.1)
    threads = [threading.Thread(target=watched.fails, args=(50, "quota")) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(kind for _, kind in watched.events) == ["errors", "limits"]


# ── the webhook ───────────────────────────────────────────────────────────────────────────


class Receiver:
    """Answers with ``statuses`` in turn, and with 200 after them."""

    def __init__(self, server: HTTPServer, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.got: list[dict[str, Any]] = []
        self.tries = 0
        server.expect_request("/hook/secret-in-the-path").respond_with_handler(self._answer)
        self.url = server.url_for("/hook/secret-in-the-path")

    def _answer(self, request: Request) -> Response:
        self.tries += 1
        status = self.statuses.pop(0) if self.statuses else 200
        if status == 200:
            self.got.append(request.get_json())
        return Response(status=status)


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def hook(pauses: list[float]) -> Iterator[Callable[[str], Webhook]]:
    made: list[Webhook] = []

    def make(url: str) -> Webhook:
        made.append(Webhook(url, sleep=pauses.append))
        return made[-1]

    yield make
    for webhook in made:
        webhook.close()


def test_a_webhook_that_fails_at_first_gets_its_alert_once(
    httpserver: HTTPServer, hook: Callable[[str], Webhook], pauses: list[float]
) -> None:
    receiver = Receiver(httpserver, 500, 429, 503)
    webhook = hook(receiver.url)
    webhook.send(lambda: {"number": 1})
    webhook.send(lambda: {"number": 2})
    wait_until(lambda: len(receiver.got) == 2)
    assert [message["number"] for message in receiver.got] == [1, 2]
    assert (receiver.tries, len(pauses)) == (5, 3)


def test_a_webhook_that_says_no_is_not_asked_again(
    httpserver: HTTPServer,
    hook: Callable[[str], Webhook],
    pauses: list[float],
    caplog: pytest.LogCaptureFixture,
) -> None:
    receiver = Receiver(httpserver, 404, 302)
    webhook = hook(receiver.url)
    for number in range(3):
        webhook.send(lambda number=number: {"number": number})  # type: ignore[misc]
    wait_until(lambda: receiver.got == [{"number": 2}])
    assert pauses == []
    ours = [record for record in caplog.records if record.name == "persona_lab.monitor"]
    assert [record.__dict__["status"] for record in ours] == [404, 302]


def test_unreachable_webhook_is_given_up_and_its_url_not_logged(
    hook: Callable[[str], Webhook], pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    webhook = hook("http://127.0.0.1:9/hook/secret-in-the-path")
    webhook.send(lambda: {"number": 1})
    wait_until(lambda: any(r.__dict__.get("event") == "webhook_failed" for r in caplog.records))
    assert len(pauses) == MAX_TRIES - 1
    assert all(1 <= seconds <= 61 for seconds in pauses)
    assert sum(pauses) > 600
    [failed] = [r for r in caplog.records if r.__dict__.get("event") == "webhook_failed"]
    assert failed.__dict__["error_class"] == "ConnectError"
    assert "secret-in-the-path" not in "".join(str(vars(r)) for r in caplog.records)


def test_webhook_does_not_block_and_its_queue_is_bounded(
    hook: Callable[[str], Webhook], caplog: pytest.LogCaptureFixture
) -> None:
    webhook = hook("http://127.0.0.1:9/")
    there, go = threading.Event(), threading.Event()

    def held() -> dict[str, Any]:
        there.set()
        assert go.wait(60)
        raise RuntimeError

    webhook.send(held)
    assert there.wait(60)
    for _ in range(MAX_QUEUED + 2):
        webhook.send(held)
    events = [record.__dict__["event"] for record in caplog.records]
    assert events == ["webhook_dropped"] * 2
    go.set()


def test_closing_sends_what_waits_without_pauses(httpserver: HTTPServer) -> None:
    receiver = Receiver(httpserver, 503)
    webhook = Webhook(receiver.url)
    webhook.send(lambda: {"number": 1})
    wait_until(lambda: receiver.tries == 1)
    webhook.close(timeout=30)
    assert receiver.got == [{"number": 1}]


async def test_webhook_gets_alerts_without_user_text_or_keys(
    make_lab: MakeLab, httpserver: HTTPServer
) -> None:
    receiver = Receiver(httpserver, 500)
    error = Overloaded("sk-canary-0123456789", provider="mock", model="scripted")
    lab = make_lab(
        reply_with("は", error=error),
        alert_webhook=receiver.url,
        alert_min_turns=2,
        openai_api_key="sk-canary-0123456789",
    )
    lab.monitor.webhook.sleep = lambda seconds: None  # type: ignore[union-attr]
    visitor = ChatUser(lab)
    for _ in range(4):
        await lab.service.generate_response(message=ASKED, **visitor.ids)
    wait_until(lambda: len(receiver.got) == 1)
    [alert] = lab.monitor.alerts.current
    assert (alert.kind, alert.value) == ("errors", 1.0)
    told = json.dumps(receiver.got, ensure_ascii=False)
    assert receiver.got[0]["event"] == "alert_raised"
    for private in (ASKED, "canary", visitor.user_id, visitor.chat.id, "secret-in-the-path"):
        assert private not in told


@pytest.mark.parametrize("wrong", ["ftp://x/secret", "secret", "http://", "//x/secret"])
def test_start_fails_without_the_value_when_webhook_is_invalid(
    monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    monkeypatch.setenv("ALERT_WEBHOOK", wrong)
    with pytest.raises(ConfigurationError, match=r"ALERT_WEBHOOK: .*must be") as stopped:
        load_settings()
    assert "secret" not in str(stopped.value)
