"""Format log records as JSON lines, or as text for a terminal.

Modules log as usual: ``log.info("retry", extra={"event": "retry", …})``. Every JSON line has the
specification's :data:`FIELDS` (null where there is no value), then the other fields of the record.
The ``request_id`` is the same in all lines of a request.

A line never contains a key (in a message, a field, an exception or an address) or the local
variables of a frame. Unless ``LOG_MESSAGES`` is on, it contains no text of messages or answers. An
exception may quote such text, so its type and frames are logged and its text is not. Of a message
of another library only the first line is logged.

Lines go to standard error; Gradio prints on standard output. structlog takes 0.05 s to import and
is imported for the first line.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

from pydantic import SecretStr

from persona_lab.monitor.request_context import current_fields
from persona_lab.redaction import MASK, MIN_SECRET_LENGTH, redact, secret_pattern

if TYPE_CHECKING:
    from structlog.stdlib import ProcessorFormatter

    from persona_lab.db.generations import GenerationResult
    from persona_lab.settings import Settings

log = logging.getLogger("persona_lab.monitor")
_turn_log = logging.getLogger("persona_lab.service")

SERVICE = "persona-lab"
FIELDS = (
    "timestamp",
    "level",
    "service",
    "event",
    "request_id",
    "chat_id",
    "agent_id",
    "user_id",
    "model",
    "tokens",
    "latency_ms",
    "cache_hit",
    "error",
)
"""The first fields of every JSON line, in this order."""

MAX_NOTE_LENGTH = 500
"""Maximum number of characters of a message of another library."""
MAX_DEPTH = 6
"""Maximum depth of a nested field."""

_PACKAGE = "persona_lab"
_RECORD_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

_SECRET_FIELD_NAME = re.compile(
    r"(?i)(?:^|_)(?:api_?key|secret|passw(?:or)?d|token|authorization|cookie|credentials?)$"
)
"""Names of fields whose values are secret."""
_KEY_PATTERN = secret_pattern(r'[^"\\]|\\.')
"""Keys by their form; of a private key the part in one JSON value."""
_SECRET_AFTER_LABEL = re.compile(
    r"(?i)(\b(?:bearer|basic)\s+|[?&](?:api_?key|key|token|secret|password|sig|signature)="
    r"|://[^\s:/@\"]*:(?=[^\s/@\"]+@))[^\s&@\"\\]+"
)
"""A secret after one of these labels, in a query, or before the @ of an address."""


def configure(
    settings: Settings,
    *,
    secrets: Callable[[], Sequence[str]] | None = None,
    stream: TextIO | None = None,
) -> logging.Handler:
    """Format all log records of this process as ``settings`` say. A second call replaces the first.

    Loggers of Persona Lab log from ``LOG_LEVEL`` on. All others log from warnings on: below that,
    the SDKs log whole requests.

    Args:
        settings: Format, level, and whether text of messages is logged.
        secrets: Returns the secrets to redact, at each line; None takes those of the settings.
        stream: Where lines go; None is standard error.

    Returns:
        The handler that was added to the root logger.
    """
    own = [v.get_secret_value() for _, v in settings if isinstance(v, SecretStr)]
    handler = _Handler(stream)
    json_lines = settings.log_format == "json" or (
        settings.log_format == "auto" and not handler.stream.isatty()
    )
    handler.setFormatter(
        LogFormatter(
            json_lines=json_lines,
            colours=not json_lines and handler.stream.isatty(),
            messages=settings.log_messages,
            secrets=secrets if secrets is not None else lambda: own,
        )
    )
    root = logging.getLogger()
    for former in [h for h in root.handlers if isinstance(h, _Handler)]:
        root.removeHandler(former)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger(_PACKAGE).setLevel(settings.log_level.upper())
    logging.captureWarnings(True)
    return handler


def capture_uvicorn_logs() -> None:
    """Log uvicorn's lines and uncaught exceptions of threads; else both are printed unredacted."""
    from uvicorn.config import LOGGING_CONFIG

    LOGGING_CONFIG.update(handlers={}, loggers={})
    threading.excepthook = _log_thread_exception


def _log_thread_exception(died: threading.ExceptHookArgs) -> None:
    if died.exc_value is not None:
        error = (died.exc_type, died.exc_value, died.exc_traceback)
        log.critical("a thread died", exc_info=error, extra={"event": "thread_died"})


class _Handler(logging.StreamHandler[TextIO]):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Ignore a stream that fails: it must not break an answer.

        The default of :mod:`logging` would print the unredacted record.
        """


Line = dict[str, Any]


class LogFormatter(logging.Formatter):
    """Formats a record as one line, also a record that is faulty.

    Args:
        json_lines: Whether lines are JSON.
        colours: Whether text has a terminal's colours.
        messages: Whether text of messages is logged.
        secrets: Returns the secrets to redact.
    """

    def __init__(
        self,
        *,
        json_lines: bool,
        colours: bool = False,
        messages: bool = False,
        secrets: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        super().__init__()
        self._json = json_lines
        self._colours = colours
        self._messages = messages
        self._secrets = secrets

    def format(self, record: logging.LogRecord) -> str:
        """Return the redacted line for ``record``."""
        try:
            text = self._formatter.format(record)
        except Exception as error:  # noqa: BLE001 - a faulty record must not break a turn
            text = self._formatter.format(
                logging.makeLogRecord(
                    {
                        "name": _PACKAGE,
                        "levelno": record.levelno,
                        "levelname": record.levelname,
                        "created": record.created,
                        "msg": "line_failed",
                        "error_class": type(error).__name__,
                        "logger": record.name,
                    }
                )
            )
        return (
            self._redact(text).translate(_LINE_BREAKS).encode("utf-8", "backslashreplace").decode()
        )

    def _redact(self, text: str) -> str:
        known = [secret for secret in self._secrets() if len(secret) >= MIN_SECRET_LENGTH]
        text = redact(text, known + [json.dumps(s, ensure_ascii=False)[1:-1] for s in known])
        return _SECRET_AFTER_LABEL.sub(rf"\1{MASK}", _KEY_PATTERN.sub(MASK, text))

    @functools.cached_property
    def _formatter(self) -> ProcessorFormatter:
        import structlog

        render: list[Any]  # structlog's types are for any mapping; ours is a dict throughout
        if self._json:
            render = [structlog.processors.JSONRenderer(json.dumps, ensure_ascii=False)]
        else:
            console = structlog.dev.ConsoleRenderer(
                colors=self._colours,
                sort_keys=False,
                pad_event_to=14,
                exception_formatter=structlog.dev.plain_traceback,
            )
            render = [_for_terminal, console]
        # No values of local variables, and no rich, which shows them.
        frames = structlog.tracebacks.ExceptionDictTransformer(show_locals=False, use_rich=False)
        exceptions = functools.partial(_serialize_exception, frames=frames, texts=self._messages)
        fields = functools.partial(_collect_fields, texts=self._messages)
        return structlog.stdlib.ProcessorFormatter(processors=[exceptions, fields, *render])


# ── the steps from a record to a line ─────────────────────────────────────────────────────


def _serialize_exception(
    _: Any, __: str, line: Line, *, frames: Callable[..., Any], texts: bool
) -> Line:
    error = line.pop("exc_info", None)
    line.pop("stack_info", None)
    if isinstance(error, tuple) and error[0] is not None:
        line["exception"] = [_serialize_traceback(stack, texts) for stack in frames(error)]
    return line


def _serialize_traceback(stack: Mapping[str, Any], texts: bool) -> dict[str, Any]:
    where = [f"{at['filename']}:{at['lineno']} {at['name']}" for at in stack["frames"]]
    serialized: dict[str, Any] = {"type": stack["exc_type"], "frames": where}
    if texts:
        serialized["text"] = stack["exc_value"]
    if inner := stack.get("exceptions"):
        serialized["exceptions"] = [
            [_serialize_traceback(each, texts) for each in chain] for chain in inner
        ]
    return serialized


def _collect_fields(_: Any, __: str, line: Line, *, texts: bool) -> Line:
    """Return the line with all fields of the record, and :data:`FIELDS` first."""
    record: logging.LogRecord = line.pop("_record")
    del line["_from_structlog"]
    note = str(line.pop("event"))
    is_own = record.name == _PACKAGE or record.name.startswith(f"{_PACKAGE}.")
    # Other libraries attach anything to a record: a socket with its headers, a whole request.
    more = {k: v for k, v in vars(record).items() if k not in _RECORD_ATTRIBUTES} if is_own else {}
    if not is_own and not texts:
        note = note.partition("\n")[0][:MAX_NOTE_LENGTH]
    fields: Line = dict.fromkeys(FIELDS)
    fields |= current_fields()
    fields |= {name: _to_json_value(value, name) for name, value in more.items()}
    created = datetime.fromtimestamp(record.created, UTC)
    fields["timestamp"] = created.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    fields["level"] = record.levelname.lower()
    fields["service"] = SERVICE
    fields["event"] = str(more.get("event", note))
    if not note.startswith(fields["event"]):
        fields["note"] = note
    fields.setdefault("logger", record.name)
    return fields | line


def _to_json_value(value: Any, name: str = "", depth: int = 0) -> Any:
    """Return ``value`` as plain JSON data, redacted if ``name`` is that of a secret."""
    if value is None or isinstance(value, bool | int):
        return value
    if _SECRET_FIELD_NAME.search(name):
        return MASK
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return str(value)
    if depth < MAX_DEPTH and isinstance(value, Mapping):
        return {str(key): _to_json_value(each, str(key), depth + 1) for key, each in value.items()}
    if depth < MAX_DEPTH and isinstance(value, list | tuple | set | frozenset):
        return [_to_json_value(each, depth=depth + 1) for each in value]
    return str(value)


_LINE_BREAKS = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}
"""Characters that end a line for some readers, but not in JSON."""
_CONTROL_CHARACTERS = {
    code: "\ufffd" for code in (*range(32), *range(127, 160)) if code not in (9, 10)
}


_HIDDEN_IN_TERMINAL = frozenset({"service", "agent_id", "user_id", "provider", "spec", "retries"})
"""Fields that a terminal doesn't show."""


def _for_terminal(_: Any, __: str, line: Line) -> Line:
    """Shorten a line for a terminal.

    Empty fields go; times are local; ids are cut; control characters are replaced.
    """
    created = datetime.fromisoformat(line["timestamp"]).astimezone()
    line["timestamp"] = f"{created:%H:%M:%S}"
    for name in ("request_id", "chat_id"):
        line[name] = line[name] and str(line[name])[:8]
    tokens = line.get("tokens")
    if isinstance(tokens, dict):
        line["tokens"] = f"{tokens.get('prompt')}+{tokens.get('completion')}"
    if isinstance(line.get("exception"), list):
        line["exception"] = "\n".join(_exception_lines(line["exception"]))
    if str(line["logger"]).startswith(_PACKAGE):
        del line["logger"]
    shown = {k: v for k, v in line.items() if v and k not in _HIDDEN_IN_TERMINAL}
    return {
        k: v.translate(_CONTROL_CHARACTERS) if isinstance(v, str) else v for k, v in shown.items()
    }


def _exception_lines(stacks: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        text
        for stack in stacks
        for text in (
            f"{stack['type']}: {stack['text']}" if stack.get("text") else stack["type"],
            *(f"    {frame}" for frame in stack["frames"]),
            *(part for chain in stack.get("exceptions", ()) for part in _exception_lines(chain)),
        )
    ]


# ── the line of a turn ──


def log_turn(outcome: GenerationResult, *, texts: bool) -> None:
    """Write the log line of a finished generation.

    Args:
        outcome: The generation.
        texts: Whether the line has the message and the answer.
    """
    record = outcome.record
    messages = {"message_text": outcome.message, "answer_text": outcome.answer}
    _turn_log.info(
        "turn",
        extra={
            "event": "turn",
            "kind": record.kind,
            "chat_id": record.chat_id,
            "agent_id": record.agent_id,
            "user_id": record.user_id,
            "provider": record.provider,
            "model": outcome.spec,
            "status": record.status,
            "error": record.error_type,
            "code": outcome.code,
            "attempts": outcome.attempts,
            "retries": outcome.attempts - 1,
            "fallback_from": [
                {"model": each.spec, "code": each.code, "attempts": each.attempts}
                for each in outcome.failed_attempts
            ],
            "tokens": {
                "prompt": record.prompt_tokens,
                "completion": record.completion_tokens,
                "total": record.prompt_tokens + record.completion_tokens,
                "cached": record.cached_tokens,
            },
            "first_token_ms": record.first_token_ms,
            "latency_ms": record.total_ms,
            "cost": record.cost,
            "cache_hit": record.cache_hit,
            **(messages if texts else {}),
        },
    )
