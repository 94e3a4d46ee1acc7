"""Usage statistics, and their CSV: number of answers, how long they took, and what they cost.

They are computed at each call from the user's recorded generations, so a restart loses nothing.

- **Answers** are generations of a chat, a comparison or a trial, with any status. A summary of an
  old conversation is not an answer: only its tokens and its cost count.
- **Errors** are answers that failed. An answer that the user stopped is not an error.
- **Latencies** are those of the models. *First*: until the first token of each answer that has one,
  also of a stopped or failed one; without the loading of a local model. *Whole*: until the end of
  each complete answer. Answers from the cache count in neither.
- **Percentiles** are interpolated linearly, like PERCENTILE in a spreadsheet.
- **Cache hits** are a share of the answers in chats. Trials and comparisons don't use the cache.
- **Cost** is the sum of the known costs. ``unpriced`` counts the generations that used tokens at an
  unknown price. A generation without tokens costs nothing.
- **Days** begin at midnight in the requested time zone.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, time, timedelta, tzinfo
from typing import TYPE_CHECKING, Any, Literal
from zoneinfo import ZoneInfo

from persona_lab.db.generations import GenerationRow
from persona_lab.db.store import Store
from persona_lab.errors import InputError
from persona_lab.translations import Translations
from persona_lab.types import now

if TYPE_CHECKING:
    from pandas import DataFrame, Series

SPANS: Mapping[str, int | None] = {"today": 1, "7days": 7, "30days": 30, "all": None}
"""A span's name → its number of calendar days, today's the last; None has no beginning."""
DEFAULT_SPAN = "7days"
"""The default span."""

SUMMARY_KIND = "summary"
"""The kind of a generation that is not an answer."""

Step = Literal["hour", "day", "week", "month"]
MAX_STEPS = 62
"""Most steps of a chart; more steps become wider ones."""


@dataclass(frozen=True, slots=True)
class LatencyPercentiles:
    """Percentiles of a latency in milliseconds; None without a measured one."""

    p50: float | None = None
    p95: float | None = None
    p99: float | None = None


@dataclass(frozen=True, slots=True)
class UsageStats:
    """Statistics of some generations. The module's docstring defines them.

    ``prompt_tokens`` includes ``cached_tokens``, which came from a provider's cache. ``cost`` is in
    US dollars, and None if no price of the used tokens is known.
    """

    answers: int = 0
    stopped: int = 0
    errors: int = 0
    chats: int = 0
    cache_hits: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = 0.0
    unpriced: int = 0
    first: LatencyPercentiles = LatencyPercentiles()
    whole: LatencyPercentiles = LatencyPercentiles()

    @property
    def has_usage(self) -> bool:
        """Whether there is anything with a price: a complete answer, or a token."""
        whole = self.answers - self.errors - self.stopped
        return bool(whole or self.prompt_tokens or self.completion_tokens)

    @property
    def error_rate(self) -> float | None:
        """Share of answers that failed, 0 to 1; None without answers."""
        return self.errors / self.answers if self.answers else None

    @property
    def cache_hit_rate(self) -> float | None:
        """Share of chat answers from the cache, 0 to 1; None without chat answers."""
        return self.cache_hits / self.chats if self.chats else None


@dataclass(frozen=True, slots=True)
class UsageGroup:
    """The statistics of one persona, model or time.

    ``key`` is the persona's id, the model's ``provider:name``, or the first moment of the time in
    ISO form. ``name`` is the persona's; personas that were never saved have None and share the
    key "".
    """

    key: str
    stats: UsageStats
    name: str | None = None
    demo: bool = False


@dataclass(frozen=True, slots=True)
class Summary:
    """Statistics of a span: total, by persona and by model (most answers first), and by time.

    ``days`` has the days with at least one generation; ``timeline`` has every ``step`` of the span,
    empty ones too. ``kinds`` and ``error_types`` count answers and errors. ``since`` is None if the
    span has no beginning. ``has_history`` is whether there is a generation in or before the span.
    """

    span: str
    zone: str
    since: datetime | None
    until: datetime
    step: Step = "day"
    total: UsageStats = UsageStats()
    personas: Sequence[UsageGroup] = ()
    models: Sequence[UsageGroup] = ()
    days: Sequence[UsageGroup] = ()
    timeline: Sequence[UsageGroup] = ()
    kinds: Mapping[str, int] = field(default_factory=dict)
    error_types: Mapping[str, int] = field(default_factory=dict)
    has_history: bool = True

    @property
    def empty(self) -> bool:
        """Whether there is no generation at all, not even a summary."""
        return not self.models


def parse_time_zone(name: str) -> tzinfo:
    """Return the time zone with the IANA name ``name``, or UTC if there is none."""
    try:
        return ZoneInfo(name)
    except (LookupError, ValueError, OSError):  # a folder of the database, say
        return ZoneInfo("UTC")


class Insights:
    """Statistics of a user. Methods are synchronous: call them through ``asyncio.to_thread``."""

    def __init__(self, store: Store, *, clock: Callable[[], datetime] = now) -> None:
        self._store = store
        self._clock = clock

    def turns(
        self, *, user_id: str, span: str = DEFAULT_SPAN, zone: str = "UTC"
    ) -> list[GenerationRow]:
        """Return the user's generations in a span of :data:`SPANS`, oldest first.

        Raises:
            InputError: There is no such span.
            StorageError: The database failed.
        """
        since = _span_start(span, self._clock(), parse_time_zone(zone))
        return self._store.list_generation_rows(user_id=user_id, since=since)

    def summary(self, *, user_id: str, span: str = DEFAULT_SPAN, zone: str = "UTC") -> Summary:
        """Return the statistics of :meth:`turns`.

        Raises:
            InputError: There is no such span.
            StorageError: The database failed.
        """
        time_zone, moment = parse_time_zone(zone), self._clock()
        since = _span_start(span, moment, time_zone)
        turns = self._store.list_generation_rows(user_id=user_id, since=since)
        result = summarize(turns, span=span, since=since, until=moment, zone=time_zone)
        if turns:
            return result
        return replace(result, has_history=bool(self._store.list_generation_rows(user_id=user_id)))


def _span_start(span: str, moment: datetime, zone: tzinfo) -> datetime | None:
    """Return the first moment of a span that ends with the day of ``moment``, in UTC."""
    if span not in SPANS:
        raise InputError(f"{span!r} is none of {', '.join(SPANS)}")
    days = SPANS[span]
    if days is None:
        return None
    first = moment.astimezone(zone).date() - timedelta(days=days - 1)
    return datetime.combine(first, time.min, zone).astimezone(UTC)


def summarize(
    turns: Sequence[GenerationRow],
    *,
    span: str,
    since: datetime | None,
    until: datetime,
    zone: tzinfo,
) -> Summary:
    """Return the statistics of ``turns``, which are in order of time."""
    empty = Summary(span, str(zone), since, until)
    if not turns:
        return empty
    frame = _frame(turns, zone)
    start = frame["local"].iloc[0].to_pydatetime()
    end = max(until.astimezone(zone).replace(tzinfo=None), frame["local"].iloc[-1])
    if since is not None:
        start = since.astimezone(zone).replace(tzinfo=None)
    step = _choose_step(span, (end - start).days + 1)
    known = {turn.agent_id: turn for turn in turns if turn.agent_name is not None}
    personas = [
        UsageGroup(key, figures, known[key].agent_name, known[key].demo)
        if key
        else UsageGroup("", figures)
        for key, figures in _group_stats(frame, frame["persona"]).items()
    ]
    models = [
        UsageGroup(key, figures) for key, figures in _group_stats(frame, frame["spec"]).items()
    ]
    days = _group_stats(frame, _floor_to_step(frame["local"], "day"))
    failed = frame.loc[frame["error"], "error_type"].fillna("system_error")
    return replace(
        empty,
        step=step,
        total=next(iter(_group_stats(frame, frame["all"]).values())),
        personas=_sort_by_answers(personas),
        models=_sort_by_answers(models),
        days=[UsageGroup(_iso(at)[:10], figures) for at, figures in days.items()],
        timeline=_timeline(frame, step, start, end, span),
        kinds=frame.loc[frame["answer"], "kind"].value_counts().to_dict(),
        error_types=failed.value_counts().to_dict(),
    )


def _frame(turns: Sequence[GenerationRow], zone: tzinfo) -> DataFrame:
    """Return the turns with a column for each number that is counted or measured."""
    import pandas as pd

    frame = pd.DataFrame(turns, columns=list(GenerationRow._fields))
    answer = frame["kind"] != SUMMARY_KIND
    cache_hit = answer & frame["cache_hit"].astype(bool)
    cost = pd.to_numeric(frame["cost"])
    tokens = frame["prompt_tokens"] + frame["completion_tokens"]
    fresh = answer & ~cache_hit
    local = pd.to_datetime(frame["created_at"], utc=True).dt.tz_convert(zone).dt.tz_localize(None)
    return frame.assign(
        all=0,
        local=local,
        persona=frame["agent_id"].where(frame["agent_name"].notna(), ""),
        spec=frame["provider"] + ":" + frame["model"],
        answer=answer,
        stopped=answer & (frame["status"] == "stopped"),
        error=answer & (frame["status"] == "failed"),
        chat=frame["kind"] == "chat",
        hit=cache_hit & (frame["kind"] == "chat"),
        cost=cost.fillna(0.0),
        priced=cost.notna() & (tokens > 0),
        unpriced=cost.isna() & (tokens > 0),
        first=pd.to_numeric(frame["first_token_ms"]).where(fresh),
        whole=frame["total_ms"].where(fresh & (frame["status"] == "ok")),
    )


_SUMMED_COLUMNS = (
    "answer", "stopped", "error", "chat", "hit", "prompt_tokens", "cached_tokens",
    "completion_tokens", "cost", "priced", "unpriced",
)  # fmt: skip


def _group_stats(frame: DataFrame, by: Series[Any]) -> dict[Any, UsageStats]:
    """Return the statistics of each value of ``by``, in their order."""
    sums = frame.groupby(by)[list(_SUMMED_COLUMNS)].sum()
    waits = {
        name: frame[name].groupby(by).quantile([0.5, 0.95, 0.99]).unstack().to_numpy().tolist()
        for name in ("first", "whole")
    }
    rows = zip(sums.itertuples(), waits["first"], waits["whole"], strict=True)
    return {
        row.Index: UsageStats(
            answers=int(row.answer),
            stopped=int(row.stopped),
            errors=int(row.error),
            chats=int(row.chat),
            cache_hits=int(row.hit),
            prompt_tokens=int(row.prompt_tokens),
            cached_tokens=int(row.cached_tokens),
            completion_tokens=int(row.completion_tokens),
            cost=None if row.unpriced and not row.priced else float(row.cost),
            unpriced=int(row.unpriced),
            first=_percentiles(first),
            whole=_percentiles(whole),
        )
        for row, first, whole in rows
    }


def _percentiles(percentiles: Sequence[float]) -> LatencyPercentiles:
    return LatencyPercentiles(*(None if math.isnan(value) else value for value in percentiles))


def _sort_by_answers(groups: Sequence[UsageGroup]) -> list[UsageGroup]:
    return sorted(groups, key=lambda group: (-group.stats.answers, group.name or "", group.key))


def _choose_step(span: str, days: int) -> Step:
    if span == "today":
        return "hour"
    if days <= MAX_STEPS:
        return "day"
    return "week" if days <= 7 * MAX_STEPS else "month"


_PANDAS_FREQUENCIES: Mapping[Step, str] = {"hour": "h", "day": "D", "week": "W-MON", "month": "MS"}


def _floor_to_step(local: Series[Any], step: Step) -> Series[Any]:
    """Return the first moment of each moment's step. Weeks begin on Mondays."""
    if step == "hour":
        return local.dt.floor("h")
    period: Mapping[Step, str] = {"day": "D", "week": "W-SUN", "month": "M"}
    return local.dt.to_period(period[step]).dt.start_time


def _timeline(
    frame: DataFrame, step: Step, start: datetime, end: datetime, span: str
) -> list[UsageGroup]:
    """Return every step from ``start`` to ``end``, empty ones too; "today" ends at midnight."""
    import pandas as pd

    if span == "today":
        end = datetime.combine(end.date(), time(23))
    first, last = _floor_to_step(pd.Series([start, end]), step)
    result = _group_stats(frame, _floor_to_step(frame["local"], step))
    return [
        UsageGroup(_iso(at), result.get(at, UsageStats()))
        for at in pd.date_range(first, last, freq=_PANDAS_FREQUENCIES[step])
    ]


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="minutes")


# ── CSV ───────────────────────────────────────────────────────────────────────────────────

BYTE_ORDER_MARK = "\ufeff"
"""Excel needs it to detect UTF-8."""

CSV_COLUMNS = (
    "time", "kind", "persona", "provider", "model", "status", "error", "prompt_tokens",
    "cached_tokens", "completion_tokens", "first_token_ms", "total_ms", "cost", "cache_hit",
)  # fmt: skip
_FORMULA_STARTS = ("=", "+", "-", "@", "＝", "＋", "－", "＠")


def generations_to_csv(
    generations: Sequence[GenerationRow], zone: tzinfo, words: Translations, language: str
) -> str:
    """Write generations as CSV that Excel opens directly, without message texts.

    Times are ISO 8601 with their offset, latencies are in milliseconds, and costs in US dollars.
    An unknown value is an empty cell.

    Args:
        generations: One for each line, in the order of the lines.
        zone: The time zone of the times.
        words: The texts of ``templates/ui.yaml``.
        language: The language of headings and values.

    Returns:
        The text of the file, with a byte order mark.
    """

    def label(group: str, value: str) -> str:
        key = f"sheet.{group}.{value}"
        return words(key, language) if key in words else escape_formula(value)

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(words(f"sheet.{column}", language) for column in CSV_COLUMNS)
    for row in generations:
        persona = row.agent_name or ""
        if row.demo:
            persona = words("persona.demo", language, name=persona)
        writer.writerow(
            (
                row.created_at.astimezone(zone).isoformat(timespec="seconds"),
                label("kinds", row.kind),
                escape_formula(persona),
                escape_formula(row.provider),
                escape_formula(row.model),
                label("statuses", row.status),
                error_label(row.error_type, words, language) if row.error_type else "",
                row.prompt_tokens,
                row.cached_tokens,
                row.completion_tokens,
                row.first_token_ms,
                row.total_ms,
                row.cost,
                int(row.cache_hit),
            )
        )
    return BYTE_ORDER_MARK + text.getvalue()


def error_label(error_type: str, words: Translations, language: str) -> str:
    """Return a short text for an ``ErrorType``; an unknown one is a system error."""
    key = f"insights.error_type.{error_type}"
    return words(key if key in words else "insights.error_type.system_error", language)


def escape_formula(text: str) -> str:
    """Escape ``text`` so that a spreadsheet shows it and doesn't evaluate it as a formula.

    Full-width signs also begin a formula where the keyboard is Japanese.
    """
    line = " ".join(text.split())
    return f"'{line}" if line.startswith(_FORMULA_STARTS) else line
