"""Usage statistics against a count in plain Python, by user, span and time zone."""

from __future__ import annotations

import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from sqlmodel import Session

from persona_lab.db.store import Store
from persona_lab.db.tables import Agent, Generation
from persona_lab.errors import InputError, NotFound
from persona_lab.insights import (
    SPANS,
    Insights,
    LatencyPercentiles,
    Summary,
    UsageStats,
    parse_time_zone,
)

NOW = datetime(2026, 11, 23, 3, 30, tzinfo=UTC)
"""12:30 in Tokyo; 22:30 of the day before in New York."""
ZONES = ["UTC", "Asia/Tokyo", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"]


@pytest.fixture
def store(tmp_path: Path) -> Iterable[Store]:
    opened = Store(f"sqlite:///{tmp_path / 'lab.db'}")
    yield opened
    opened.close()


@pytest.fixture
def user(store: Store) -> str:
    return store.create_user().id


def turn(user: str, **fields: Any) -> Generation:
    defaults = {
        "agent_id": "a",
        "provider": "mock",
        "model": "echo",
        "status": "ok",
        "total_ms": 9.0,
    }
    return Generation(**{"user_id": user, "created_at": NOW, **defaults, **fields})


def save(store: Store, turns: Sequence[Generation]) -> None:
    """Save the turns in one transaction."""
    with Session(store.engine) as session, session.begin():
        session.add_all([Generation(**t.model_dump()) for t in turns])


def seen(
    store: Store, user: str, span: str = "all", zone: str = "UTC", *, at: datetime = NOW
) -> Summary:
    return Insights(store, clock=lambda: at).summary(user_id=user, span=span, zone=zone)


# ── beside another count ──────────────────────────────────────────────────────────────────


def any_turn(chance: random.Random, user: str, agents: Sequence[str]) -> Generation:
    kind = chance.choices(["chat", "compare", "try", "summary"], [5, 3, 1, 1])[0]
    status = chance.choices(["ok", "stopped", "failed"], [8, 1, 1])[0]
    hit = kind == "chat" and status == "ok" and chance.random() < 0.2
    silent = (status == "failed" and chance.random() < 0.7) or kind == "summary"
    asked, said = (0, 0) if hit or status == "failed" else chance.choices(range(900), k=2)
    free, unknown = chance.random() < 0.2, chance.random() < 0.2
    return turn(
        user,
        agent_id=chance.choice(agents),
        kind=kind,
        provider=chance.choice(["local", "openai", "anthropic"]),
        model=chance.choice(["small", "large"]),
        status=status,
        error_type=chance.choice(["timeout", "rate_limit"]) if status == "failed" else None,
        prompt_tokens=asked,
        cached_tokens=chance.randint(0, asked),
        completion_tokens=said,
        first_token_ms=None if silent else chance.lognormvariate(6, 1),
        total_ms=chance.lognormvariate(8, 1),
        cost=0.0 if free else None if unknown else (asked + 5 * said) / 1e6,
        cache_hit=hit,
        created_at=NOW - timedelta(seconds=chance.uniform(0, 45 * 86_400)),
    )


def percentile(values: Sequence[float], share: float) -> float | None:
    """Interpolate linearly between the two neighbours, as a spreadsheet does."""
    if not values:
        return None
    ordered, place = sorted(values), share * (len(values) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def counted(turns: Sequence[Generation]) -> UsageStats:
    """Compute :class:`UsageStats` turn by turn."""
    answers = [t for t in turns if t.kind != "summary"]
    models_own = [t for t in answers if not t.cache_hit]
    first = [t.first_token_ms for t in models_own if t.first_token_ms is not None]
    whole = [t.total_ms for t in models_own if t.status == "ok"]
    used = [t for t in turns if t.prompt_tokens + t.completion_tokens > 0]
    known = [t.cost for t in used if t.cost is not None]
    return UsageStats(
        answers=len(answers),
        stopped=sum(t.status == "stopped" for t in answers),
        errors=sum(t.status == "failed" for t in answers),
        chats=sum(t.kind == "chat" for t in turns),
        cache_hits=sum(t.kind == "chat" and t.cache_hit for t in turns),
        prompt_tokens=sum(t.prompt_tokens for t in turns),
        cached_tokens=sum(t.cached_tokens for t in turns),
        completion_tokens=sum(t.completion_tokens for t in turns),
        cost=None if used and not known else sum(known),
        unpriced=len(used) - len(known),
        first=LatencyPercentiles(*(percentile(first, p) for p in (0.5, 0.95, 0.99))),
        whole=LatencyPercentiles(*(percentile(whole, p) for p in (0.5, 0.95, 0.99))),
    )


def by(turns: Iterable[Generation], key: Callable[[Generation], str]) -> dict[str, UsageStats]:
    groups: dict[str, list[Generation]] = defaultdict(list)
    for one in turns:
        groups[key(one)].append(one)
    return {key: counted(group) for key, group in groups.items()}


def flat(figures: UsageStats) -> dict[str, Any]:
    defaults = asdict(figures)
    return defaults | {
        f"{name}_{p}": v for name in ("first", "whole") for p, v in defaults.pop(name).items()
    }


def alike(figures: UsageStats) -> dict[str, Any]:
    """Compare with a tolerance: sums of floats may differ in their last digits."""
    return {
        name: pytest.approx(value, rel=1e-9) if isinstance(value, float) else value
        for name, value in flat(figures).items()
    }


@pytest.fixture(scope="module")
def crowd(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterable[tuple[Store, str, list[Generation]]]:
    """Return a store with 10,000 turns of three users, one user's id, and that user's turns."""
    store = Store(f"sqlite:///{tmp_path_factory.mktemp('crowd') / 'lab.db'}")
    chance = random.Random(6)
    users = [store.create_user().id for _ in range(3)]
    demo = store.create_agent(user_id=None, name="案内人").id
    own = [store.create_agent(user_id=users[0], name=name).id for name in ("さくら", "さくら")]
    store.delete_agent(own[1], user_id=users[0])
    theirs = store.create_agent(user_id=users[1], name="他人の人").id
    agents = [demo, *own, theirs, "never-kept"]
    turns = [any_turn(chance, chance.choice(users), agents) for _ in range(10_000)]
    save(store, turns)
    yield store, users[0], [t for t in turns if t.user_id == users[0]]
    store.close()


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("span", SPANS)
def test_summary_equals_count_by_hand(
    crowd: tuple[Store, str, list[Generation]], span: str, zone: str
) -> None:
    store, user, everything = crowd
    place = ZoneInfo(zone)

    def day(one: Generation) -> str:
        return one.created_at.astimezone(place).date().isoformat()

    days = SPANS[span]
    last = NOW.astimezone(place).date()
    first = "" if days is None else (last - timedelta(days=days - 1)).isoformat()
    turns = [one for one in everything if day(one) >= first]
    agents = {one.agent_id for one in turns}
    names = {id_: agent.name for id_ in agents if (agent := readable(store, id_, user))}

    found = seen(store, user, span, zone)
    assert flat(found.total) == alike(counted(turns))
    for got, want in (
        (found.personas, by(turns, lambda t: t.agent_id if t.agent_id in names else "")),
        (found.models, by(turns, lambda t: f"{t.provider}:{t.model}")),
        (found.days, by(turns, day)),
    ):
        assert {part.key: flat(part.stats) for part in got} == {
            key: alike(figures) for key, figures in want.items()
        }
    assert {part.key: part.name for part in found.personas if part.key} == names
    answers = [t for t in turns if t.kind != "summary"]
    assert found.kinds == Counter(t.kind for t in answers)
    assert found.error_types == Counter(t.error_type for t in answers if t.status == "failed")
    for counts in (
        [part.stats.answers for part in found.personas],
        [part.stats.answers for part in found.models],
    ):
        assert counts == sorted(counts, reverse=True)
    for ordered in (found.days, found.timeline):
        assert [part.key for part in ordered] == sorted(part.key for part in ordered)
    assert sum(part.stats.answers for part in found.timeline) == len(answers)


def readable(store: Store, agent_id: str, user: str) -> Agent | None:
    try:
        return store.get_agent(agent_id, user_id=user, deleted=True)
    except NotFound:
        return None


def test_summary_of_ten_thousand_turns_is_fast(store: Store, user: str) -> None:
    chance = random.Random(1)
    save(store, [any_turn(chance, user, ["a", "b"]) for _ in range(10_000)])
    seen(store, user)  # imports pandas
    began = time.process_time()
    assert seen(store, user).total.answers > 8_000
    assert time.process_time() - began < 2


# ── what counts as what ───────────────────────────────────────────────────────────────────


def test_summary_is_empty_when_user_has_no_turns(store: Store, user: str) -> None:
    store.record(turn(store.create_user().id))
    for span in SPANS:
        found = seen(store, user, span)
        assert found.empty
        assert found.total == UsageStats()
        assert (found.total.error_rate, found.total.cache_hit_rate) == (None, None)
        assert (found.personas, found.models, found.days, found.timeline) == ((), (), (), ())


def test_summary_counts_unpriced_generations(store: Store, user: str) -> None:
    used = {"prompt_tokens": 10, "completion_tokens": 5}
    save(
        store,
        [
            turn(user, model="new", cost=None, **used),
            turn(user, model="new", cost=None, **used),
            turn(user, model="new", cost=None, status="failed", error_type="timeout"),
            turn(user, model="old", cost=0.25, **used),
            turn(user, model="home", cost=0.0, **used),
            turn(user, model="gone", cost=None, status="failed", error_type="timeout"),
        ],
    )
    found = seen(store, user)
    costs = {part.key: (part.stats.cost, part.stats.unpriced) for part in found.models}
    assert costs == {
        "mock:new": (None, 2),
        "mock:old": (0.25, 0),
        "mock:home": (0.0, 0),
        "mock:gone": (0.0, 0),
    }
    assert (found.total.cost, found.total.unpriced) == (0.25, 2)


def test_stopped_answer_is_no_error_and_has_no_total_latency(store: Store, user: str) -> None:
    save(
        store,
        [
            turn(user, first_token_ms=100, total_ms=1000),
            turn(user, first_token_ms=300, total_ms=9000, status="stopped"),
            turn(user, first_token_ms=None, total_ms=30_000, status="failed", error_type="timeout"),
        ],
    )
    total = seen(store, user).total
    assert (total.answers, total.stopped, total.errors) == (3, 1, 1)
    assert total.error_rate == pytest.approx(1 / 3)
    assert total.first == LatencyPercentiles(200, 290, 298)
    assert total.whole == LatencyPercentiles(1000, 1000, 1000)


def test_cache_hits_count_in_chats_and_not_in_latencies(store: Store, user: str) -> None:
    save(
        store,
        [
            turn(user, first_token_ms=400, total_ms=800),
            turn(user, first_token_ms=1, total_ms=2, cache_hit=True, cost=None),
            turn(user, first_token_ms=400, total_ms=800, kind="compare"),
        ],
    )
    total = seen(store, user).total
    assert (total.answers, total.cache_hits, total.cache_hit_rate) == (3, 1, 0.5)
    assert total.first == LatencyPercentiles(400, 400, 400)
    assert total.whole == LatencyPercentiles(800, 800, 800)
    assert (total.cost, total.unpriced) == (0.0, 0)


def test_chat_summary_costs_but_is_no_answer(store: Store, user: str) -> None:
    store.record(turn(user, kind="summary", prompt_tokens=90, completion_tokens=9, cost=0.5))
    found = seen(store, user)
    assert not found.empty
    assert (found.total.answers, found.total.error_rate) == (0, None)
    assert (found.total.prompt_tokens, found.total.cost) == (90, 0.5)
    assert found.kinds == {}


def test_summary_raises_when_span_is_unknown(store: Store, user: str) -> None:
    with pytest.raises(InputError):
        seen(store, user, "yesterday")


# ── where days end ────────────────────────────────────────────────────────────────────────


def test_day_ends_at_midnight_in_visitor_time_zone(store: Store, user: str) -> None:
    for hour in (14, 15):  # 23:00 and 00:00 in Tokyo
        store.record(turn(user, created_at=datetime(2026, 11, 22, hour, tzinfo=UTC)))
    assert [p.key for p in seen(store, user).days] == ["2026-11-22"]
    tokyo = seen(store, user, zone="Asia/Tokyo")
    assert [(p.key, p.stats.answers) for p in tokyo.days] == [
        ("2026-11-22", 1),
        ("2026-11-23", 1),
    ]
    assert tokyo.zone == "Asia/Tokyo"
    assert seen(store, user, "today", "Asia/Tokyo").total.answers == 1
    assert seen(store, user, "today", "UTC").total.answers == 0


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("America/New_York", (2026, 3, 8), 23),
        ("America/New_York", (2026, 11, 1), 25),
        ("Australia/Lord_Howe", (2026, 4, 5), 24.5),
        ("America/Santiago", (2026, 9, 6), 23),  # its midnight doesn't exist
    ],
)
def test_day_has_its_hours_when_clocks_change(
    store: Store, user: str, zone: str, day: tuple[int, int, int], hours: float
) -> None:
    place = ZoneInfo(zone)
    begin = datetime(*day, tzinfo=place).astimezone(UTC)
    end = begin + timedelta(hours=hours)
    second = timedelta(seconds=1)
    moments = [begin - second, begin, begin + (end - begin) / 2, end - second, end]
    save(store, [turn(user, created_at=moment) for moment in moments])
    for at in (begin, end - second):
        today = seen(store, user, "today", zone, at=at)
        assert today.since == begin
        assert (today.days[0].key, today.days[0].stats.answers) == (
            f"{day[0]}-{day[1]:02}-{day[2]:02}", 3,
        )  # fmt: skip
    found = seen(store, user, "7days", zone, at=end + timedelta(days=2))
    assert [part.stats.answers for part in found.days] == [1, 3, 1]
    assert len(found.timeline) == 7
    assert sum(part.stats.answers for part in found.timeline) == 5


@pytest.mark.parametrize(
    "name",
    [
        "",
        "Mars/Olympus",
        "America",
        "../../etc/passwd",
        "/etc/passwd",
        "\x00",
        "\ud800",
        "あ" * 999,
    ],
)
def test_time_zone_is_utc_when_unknown(name: str) -> None:
    assert str(parse_time_zone(name)) == "UTC"


def test_timeline_has_every_hour_or_day(store: Store, user: str) -> None:
    store.record(turn(user))
    today = seen(store, user, "today", "Asia/Tokyo")
    assert today.step == "hour"
    assert [part.key for part in today.timeline] == [
        f"2026-11-23T{hour:02}:00" for hour in range(24)
    ]
    assert today.timeline[12].stats.answers == 1
    week = seen(store, user, "7days", "Asia/Tokyo")
    assert [part.key[:10] for part in week.timeline] == [f"2026-11-{day}" for day in range(17, 24)]
    assert [part.stats.answers for part in week.timeline] == [0] * 6 + [1]


@pytest.mark.parametrize(
    ("ago", "step", "count", "first"),
    [
        (0, "day", 1, "2026-11-23"),
        (61, "day", 62, "2026-09-23"),
        (62, "week", 10, "2026-09-21"),
        (430, "week", 63, "2025-09-15"),
        (1000, "month", 34, "2024-02-01"),
    ],
)
def test_timeline_uses_weeks_or_months_when_long(
    store: Store, user: str, ago: int, step: str, count: int, first: str
) -> None:
    save(store, [turn(user, created_at=NOW - timedelta(days=days)) for days in {0, ago}])
    found = seen(store, user)
    assert (found.step, len(found.timeline), found.timeline[0].key[:10]) == (step, count, first)
    assert found.timeline[0].stats.answers == found.timeline[-1].stats.answers == 1
