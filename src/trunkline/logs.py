"""
What the gateway tells its operator, one line per event, on stderr.

Log lines carry what strangers sent, so every line passes four stages here:
secrets are taken out, characters that could forge a line or steer a terminal
are escaped, fields are cut at 256 bytes, and storms of one event become a
count. Records of the standard library's `logging` take the same way.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from trunkline.config import LogConfig

FIELD_BYTES = 256
"""Bytes of UTF-8 that one field of a line may have."""

TRACEBACK_BYTES = 16 * 1024
"""Bytes of UTF-8 kept of a traceback: its end, which says what happened."""

LINES_PER_SECOND = 10
"""Lines of one event in one second; what is above is counted."""

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}

_SECRET_NAME = re.compile(
    r"token(?!s?_?(count|file))|passw|secret|authorization|cookie|api_?key|credential|private_?key",
    re.IGNORECASE,
)
_SECRET_TEXT = (
    re.compile(r"(?i)\b((?:bearer|basic)\s+)[^\s\"',;]+"),
    re.compile(r"(?i)([?&](?:code|auth|key|sig|signature|assertion)=)[^\s&#\"']+"),
    re.compile(r"(\b[A-Za-z][A-Za-z0-9+.-]*://)[^\s/@\"']+(?=@)"),  # user and password of a URL
    re.compile(r"()\btl_[A-Za-z0-9_-]{12,}"),
    re.compile(r"()\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"),  # a JWT
    re.compile(r"(?i)(\bcookie\s*[:=]\s*).+"),
    re.compile(
        r"(?i)(\b[\w-]*(?:token|password|passwd|secret|api_?key|authorization)"
        r"[\"']?\s*[=:]\s*[\"']?)(?!\s|bearer\s|basic\s)[^\s\"'&,;}]+"
    ),
)
_HIDDEN = "***"


def escape(text: str) -> str:
    """Make every character visible: controls, line ends, ANSI, bidi marks become escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def cut(text: str, limit: int = FIELD_BYTES) -> str:
    """Keep the first `limit` bytes of UTF-8, the mark of the cut included."""
    data = text.encode("utf-8", "backslashreplace")
    if len(data) <= limit:
        return text
    return data[: limit - 3].decode("utf-8", "ignore") + "…"


class Redactor:
    """
    Takes secrets out of events, by the name of the field and by what it says.

    Args:
        known: Values that must never appear, such as the gateway's own token.
    """

    def __init__(self, known: Iterable[str] = ()) -> None:
        # Below this length a value would hide ordinary words.
        self._known = sorted((k for k in known if len(k) >= 6), key=len, reverse=True)

    def __call__(self, _: WrappedLogger, __: str, event: EventDict) -> EventDict:
        """Redact one event; a structlog processor."""
        return {key: self.value(key, value) for key, value in event.items()}

    def value(self, name: str, value: Any) -> Any:
        """Return `value` as it may be shown under `name`."""
        if value is None or isinstance(value, bool | int | float):
            return value
        if _SECRET_NAME.search(name):
            return _HIDDEN
        if isinstance(value, Mapping):
            return {_shown(k): self.value(_shown(k), v) for k, v in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self._item(v) for v in value]
        return self.text(value if isinstance(value, str) else _shown(value))

    def _item(self, item: Any) -> Any:
        # Headers are lists of pairs, so the first of two is a name.
        match item:
            case (str() | bytes() as name, value):
                return [self.text(_shown(name)), self.value(_shown(name), value)]
        return self.value("", item)

    def text(self, text: str) -> str:
        """Return `text` without secrets."""
        for secret in self._known:
            text = text.replace(secret, _HIDDEN)
        for pattern in _SECRET_TEXT:
            text = pattern.sub(rf"\1{_HIDDEN}", text)
        return text


def _shown(value: Any) -> str:
    try:
        return str(value)
    except Exception as error:  # a broken __str__ must not take the line with it
        return f"<{type(value).__name__}: {type(error).__name__}>"


def bound_fields(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Make every field one short, visible piece of text; a structlog processor."""
    return {
        escape(str(key)): _traceback(value) if key == "exception" else _bounded(value)
        for key, value in event.items()
    }


def _bounded(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float) and abs(value) < 1 << 64:  # no NaN: it is not JSON
        return value
    if not isinstance(value, str):
        value = json.dumps(value, ensure_ascii=False, default=_shown)
    return cut(escape(value))


def _traceback(value: Any) -> str:
    lines = [escape(line) for line in str(value).split("\n")]
    data = "\n".join(lines).encode("utf-8", "backslashreplace")
    return data[-TRACEBACK_BYTES:].decode("utf-8", "ignore")


class StormLimiter:
    """
    Lets at most so many lines of one event pass per second, then counts.

    The count comes out as a line of its own, with the first event after that
    second or with `flush`, whichever is earlier.

    Args:
        report: Writes the line that tells of a count.
        limit: Lines of one event per second.
        clock: Seconds, growing.
    """

    def __init__(
        self,
        report: Callable[[EventDict], None],
        limit: int = LINES_PER_SECOND,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._report = report
        self._limit = limit
        self._clock = clock
        self._second = 0
        self._seen: dict[str, int] = {}

    def __call__(self, _: WrappedLogger, __: str, event: EventDict) -> EventDict:
        """Pass one event on, or drop it; a structlog processor."""
        self.flush()
        key = str(event.pop("template", event.get("event", "")))
        seen = self._seen[key] = self._seen.get(key, 0) + 1
        if seen > self._limit:
            raise structlog.DropEvent
        return event

    def flush(self) -> None:
        """Tell what was dropped in a second that has passed."""
        second = int(self._clock())
        if second == self._second:
            return
        self._second = second
        seen, self._seen = self._seen, {}
        for key, count in seen.items():
            if count > self._limit:
                self._report(
                    {"event": "repeated", "level": "warning", "of": key}
                    | {"dropped": count - self._limit}
                )


class TextRenderer:
    """Renders an event as a line for people, its traceback indented below."""

    def __call__(self, _: WrappedLogger, __: str, event: MutableMapping[str, Any]) -> str:
        """Render one event; a structlog processor."""
        exception = event.pop("exception", None)
        head = [event.pop("timestamp", ""), f"{event.pop('level', ''):<7}", event.pop("event", "")]
        pairs = [f"{key}={_quoted(value)}" for key, value in event.items()]
        below = "".join(f"\n    {line}" for line in (exception or "").splitlines())
        return " ".join(str(part) for part in head + pairs) + below


def _quoted(value: Any) -> str:
    if not isinstance(value, str):
        return json.dumps(value)
    plain = value and not any(c in ' "=' for c in value)
    return value if plain else json.dumps(value, ensure_ascii=False)


class _Forward(logging.Handler):
    """Hands records of the standard library's `logging` to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        level = max((known for known in _LEVELS.values() if known <= record.levelno), default=10)
        try:
            structlog.get_logger().log(
                level,
                record.getMessage(),
                template=record.msg,  # what a storm consists of, whatever its arguments
                logger=record.name,
                exc_info=record.exc_info,
            )
        except Exception:
            self.handleError(record)


class _Lines:
    """
    Writes lines to a stream, and never fails.

    A terminal that was closed or a disk that is full must not turn what is
    logged into a second failure.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def msg(self, line: str) -> None:
        """Write one line."""
        with suppress(OSError, ValueError):
            self._stream.write(line + "\n")
            self._stream.flush()

    log = debug = info = warn = warning = error = critical = exception = msg


class Logs:
    """The running set-up of the logs; see `configure_logs`."""

    def __init__(self, config: LogConfig, secrets: Iterable[str], stream: TextIO) -> None:
        self._stream = stream
        self._storms = StormLimiter(self._report)
        self.reconfigure(config, secrets)

    def reconfigure(self, config: LogConfig, secrets: Iterable[str]) -> None:
        """Write in another form, from another level on, or without other secrets from now on."""
        stream = self._stream
        render: Processor = TextRenderer() if config.format == "text" else _render_json
        self._write = _Lines(stream).msg
        self._finish: tuple[Processor, ...] = (
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            Redactor(secrets),
            bound_fields,
            render,
        )
        structlog.configure(
            processors=[
                structlog.contextvars.merge_contextvars,
                structlog.processors.add_log_level,
                self._storms,
                structlog.processors.format_exc_info,
                *self._finish,
            ],
            wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[config.level]),
            logger_factory=lambda *_: _Lines(stream),
        )
        logging.basicConfig(handlers=[_Forward()], level=_LEVELS[config.level], force=True)

    def flush(self) -> None:
        """Write the counts of storms that have ended; call it about once a second."""
        self._storms.flush()

    def _report(self, event: EventDict) -> None:
        line: Any = event
        for processor in self._finish:
            line = processor(None, "warning", line)
        self._write(line)


def _render_json(_: WrappedLogger, __: str, event: EventDict) -> str:
    return json.dumps(event, ensure_ascii=False)


def configure_logs(
    config: LogConfig, *, secrets: Iterable[str | None] = (), stream: TextIO | None = None
) -> Logs:
    """
    Send all logs of this process to `stream`, in the form that `config` asks for.

    Args:
        config: The form and the least important level.
        secrets: Values that must not appear in any line.
        stream: Where lines go; absent: stderr.
    """
    return Logs(config, [s for s in secrets if s], stream or sys.stderr)
