"""Somebody else's error has one place in our tree, found by its type and status."""

from __future__ import annotations

import errno
import json
import sqlite3
import ssl
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import anthropic
import anyio
import httpx
import httpx2
import openai
import pytest
import sqlalchemy
from sqlalchemy.exc import OperationalError

from persona_lab.clients.error_mapping import map_error
from persona_lab.errors import (
    BadKey,
    BadRequest,
    ContextTooLong,
    DiskFull,
    InvalidResponse,
    MissingKey,
    ModelNotFound,
    ModelTimeout,
    Offline,
    OptionRefused,
    Overloaded,
    PersonaLabError,
    ProviderError,
    QuotaExceeded,
    RateLimited,
    Refused,
    StorageError,
)

REQUEST = httpx2.Request("POST", "https://example.org/v1")


def openai_error(status: int, headers: dict[str, str] | None = None, **body: Any) -> Exception:
    """As the SDK raises it: the body is what stands under ``error``."""
    response = httpx2.Response(status, headers=headers or {}, request=REQUEST)
    return openai.APIStatusError("words that say 429 and timeout", response=response, body=body)


def anthropic_error(status: int, **error: Any) -> Exception:
    response = httpx2.Response(status, request=REQUEST)
    body = {"type": "error", "error": error}
    return anthropic.APIStatusError("words that say 429", response=response, body=body)


def openai_event(**body: Any) -> Exception:
    return openai.APIError("words", REQUEST, body=body)


def ours(error: BaseException) -> PersonaLabError:
    return map_error(error, provider="openai", model="some-model")


def test_an_error_of_ours_comes_back_as_it_is() -> None:
    error = MissingKey(variable="OPENAI_API_KEY")
    assert map_error(error, provider="other") is error


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, BadRequest),
        (401, BadKey),
        (402, QuotaExceeded),
        (403, BadKey),
        (404, ModelNotFound),
        (408, ModelTimeout),
        (413, ContextTooLong),
        (422, BadRequest),
        (429, RateLimited),
        (500, Overloaded),
        (503, Overloaded),
        (504, ModelTimeout),
        (529, Overloaded),
    ],
)
def test_a_status_alone_decides_when_nothing_narrower_is_said(
    status: int, kind: type[ProviderError]
) -> None:
    for error in (openai_error(status), anthropic_error(status)):
        found = ours(error)
        assert type(found) is kind
        assert isinstance(found, ProviderError)
        assert (found.provider, found.model, found.status) == ("openai", "some-model", status)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (openai_error(429, code="insufficient_quota"), QuotaExceeded),
        (openai_error(429, code=None, type="insufficient_quota"), QuotaExceeded),
        (openai_error(400, code="context_length_exceeded"), ContextTooLong),
        (openai_error(400, code=400, type="exceed_context_size_error"), ContextTooLong),
        (openai_error(400, code="content_filter"), Refused),
        (openai_error(403, code="model_not_found"), ModelNotFound),
        (openai_error(401, code="invalid_api_key", type="invalid_request_error"), BadKey),
        (openai_error(429, type="api_error"), RateLimited),
        (anthropic_error(400, type="billing_error"), QuotaExceeded),
        (anthropic_error(500, type="api_error"), Overloaded),
        (
            anthropic_error(
                429,
                type="rate_limit_error",
                details={"error_code": "enforced_spend_limit_reached"},
            ),
            QuotaExceeded,
        ),
    ],
)
def test_the_narrowest_name_that_a_provider_gives_decides(
    error: Exception, kind: type[ProviderError]
) -> None:
    assert type(ours(error)) is kind


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (anthropic_error(200, type="overloaded_error"), Overloaded),
        (anthropic_error(200, type="rate_limit_error"), RateLimited),
        (anthropic_error(200, type="api_error"), Overloaded),
        (anthropic_error(200), ProviderError),
        (openai_event(type="server_error", code=None), Overloaded),
        (openai_event(code=429), RateLimited),
        (openai_event(code=502), Overloaded),
        (openai_event(code="insufficient_quota"), QuotaExceeded),
        (openai_event(), ProviderError),
    ],
)
def test_an_event_in_a_stream_that_began_well_is_judged_by_what_it_says(
    error: Exception, kind: type[ProviderError]
) -> None:
    assert type(ours(error)) is kind


@pytest.mark.parametrize("body", [None, "text", [], {"error": "text"}, {"error": {"code": []}}])
def test_any_shape_of_body_leaves_the_status_to_decide(body: object) -> None:
    response = httpx2.Response(401, request=REQUEST)
    for sdk in (openai, anthropic):
        assert type(ours(sdk.APIStatusError("no", response=response, body=body))) is BadKey


@pytest.mark.parametrize(
    ("param", "kind"),
    [("temperature", OptionRefused), ("stop", OptionRefused), ("messages[1]", BadRequest),
     (None, BadRequest), (["stop"], BadRequest)],
)  # fmt: skip
def test_refused_option_is_named_when_the_body_names_it(param: object, kind: type) -> None:
    error = ours(openai_error(400, param=param, code="unsupported_value"))
    assert type(error) is kind
    assert error.details.get("option") == (param if kind is OptionRefused else None)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7.0), ("0.5", 0.5), ("-1", None), ("inf", None), ("nan", None), ("soon", None)],
)
def test_only_a_sensible_number_of_seconds_is_kept(header: str, seconds: float | None) -> None:
    error = ours(openai_error(429, {"retry-after": header}))
    assert isinstance(error, RateLimited)
    assert error.retry_after == seconds


SAID = "Thu, 26 Nov 2026 10:00:00 GMT"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "2"}, 2.0),
        ({"retry-after": "Thu, 26 Nov 2026 10:00:20 GMT", "date": SAID}, 20.0),
        ({"retry-after": "Thursday, 26-Nov-26 10:00:20 GMT", "date": SAID}, 20.0),
        ({"retry-after": "Thu Nov 26 10:00:20 2026", "date": SAID}, 20.0),
        ({"retry-after": "Thu, 26 Nov 2026 09:00:00 GMT", "date": SAID}, 0.0),
        ({"retry-after": "Thu, 31 Nov 2026 10:00:00 GMT", "date": SAID}, None),
        ({"date": SAID}, None),
    ],
)
def test_a_pause_is_read_in_milliseconds_and_as_a_date(
    headers: dict[str, str], seconds: float | None
) -> None:
    error = ours(openai_error(429, headers))
    assert isinstance(error, RateLimited)
    assert error.retry_after == seconds


@pytest.mark.parametrize("said", [None, "yesterday"])
def test_a_date_is_read_by_our_clock_where_the_provider_tells_no_time(said: str | None) -> None:
    then = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    error = ours(openai_error(429, {"retry-after": then, **({"date": said} if said else {})}))
    assert isinstance(error, RateLimited)
    assert error.retry_after is not None
    assert 25 < error.retry_after <= 30


def test_a_provider_that_asks_for_no_pause_gets_none_of_ours() -> None:
    error = ours(openai_error(429))
    assert isinstance(error, RateLimited)
    assert error.retry_after is None


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (openai.APITimeoutError(REQUEST), ModelTimeout),
        (openai.APIConnectionError(request=REQUEST), Offline),
        (openai.OpenAIError("missing credentials"), ProviderError),
        (
            openai.APIResponseValidationError(httpx2.Response(200, request=REQUEST), None),
            InvalidResponse,
        ),
        (anthropic.APITimeoutError(REQUEST), ModelTimeout),
        (anthropic.APIConnectionError(request=REQUEST), Offline),
        (anthropic.AnthropicError("credentials"), ProviderError),
        (httpx2.ReadTimeout("slow"), ModelTimeout),
        (httpx2.RemoteProtocolError("peer closed"), Offline),
        (httpx2.DecodingError("gzip"), InvalidResponse),
        (httpx2.TooManyRedirects("round"), ProviderError),
        (httpx.ConnectTimeout("slow"), ModelTimeout),
        (httpx.ConnectError("refused"), Offline),
        (TimeoutError(), ModelTimeout),
        (ConnectionResetError(), Offline),
        (ssl.SSLError(), Offline),
        (anyio.EndOfStream(), Offline),
        (json.JSONDecodeError("no", "{", 0), InvalidResponse),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"), InvalidResponse),
    ],
)
def test_errors_of_the_wire_are_told_apart(error: Exception, kind: type[ProviderError]) -> None:
    assert type(ours(error)) is kind


def test_broken_json_is_no_models_fault_when_no_model_was_asked() -> None:
    assert type(map_error(json.JSONDecodeError("no", "{", 0))) is PersonaLabError


def full_database(path: Path) -> sqlalchemy.Engine:
    """A real SQLite file that may not grow beyond a few pages."""
    engine = sqlalchemy.create_engine(f"sqlite:///{path / 'full.db'}")

    @sqlalchemy.event.listens_for(engine, "connect")
    def _small(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("PRAGMA max_page_count = 4")

    return engine


def test_a_full_database_is_a_full_disk(tmp_path: Path) -> None:
    engine = full_database(tmp_path)
    with pytest.raises(OperationalError) as caught, engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE words (text TEXT)")
        connection.exec_driver_sql("INSERT INTO words VALUES (zeroblob(1000000))")
    engine.dispose()
    assert caught.value.orig is not None
    assert type(map_error(caught.value)) is DiskFull
    assert type(map_error(caught.value.orig)) is DiskFull


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_no_space_left_is_a_full_disk(number: int) -> None:
    error = OSError(number, "words")
    assert type(map_error(error)) is DiskFull
    assert type(map_error(OperationalError("INSERT", {}, error))) is DiskFull


def test_postgres_says_by_its_own_code_that_the_disk_is_full() -> None:
    class Full(Exception):
        sqlstate = "53100"

    assert type(map_error(OperationalError("INSERT", {}, Full()))) is DiskFull


def test_another_error_of_the_database_is_a_storage_error() -> None:
    engine = sqlalchemy.create_engine("sqlite://")
    with pytest.raises(OperationalError) as caught, engine.connect() as connection:
        connection.exec_driver_sql("SELECT * FROM nowhere")
    engine.dispose()
    assert type(map_error(caught.value)) is StorageError
    assert type(map_error(sqlite3.OperationalError("database is locked"))) is StorageError


def test_what_nobody_foresaw_keeps_its_name_and_loses_its_words() -> None:
    error = map_error(KeyError("sk-secret"), provider="openai")
    assert type(error) is PersonaLabError
    assert str(error) == "KeyError"


def test_the_words_of_a_foreign_error_do_not_travel() -> None:
    assert "words" not in f"{ours(openai_error(400))} {ours(openai_error(400))!r}"
