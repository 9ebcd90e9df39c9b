"""Where the daemon's log lines go, and how they look: text, JSON, or lines with priorities for systemd's journal.

text     2026-11-26T11:20:07+0000 [broker#warn] connection lost: …      time, logger, level
journal  <4>[broker] connection lost: …                                 the journal has the time; <N> is sd-daemon(3)'s priority
json     {"time": "2026-11-26T11:20:07.123Z", "level": "warn", "logger": "broker", "message": "…", "fields": {…}}

All are UTF-8 whatever the locale says. A log line that can't be encoded is escaped, never lost.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from math import isfinite
from typing import Any, Protocol

from twisted.logger import (
    FilteringLogObserver,
    ILogObserver,
    LogEvent,
    Logger,
    LogLevel,
    LogLevelFilterPredicate,
    eventAsText,
)
from twisted.python.logfile import LogFile
from zope.interface import implementer

_PRIORITIES = {LogLevel.debug: 7, LogLevel.info: 6, LogLevel.warn: 4, LogLevel.error: 3, LogLevel.critical: 2}  # syslog(3)

_SHORT = {"amqp": "broker", "embedded": "broker", "protocol": "websocket"}
"""Modules whose lines belong to a larger part. Every other part is called what its module or package is called."""

_DAEMON = {"", "clock", "collector", "listening", "logs", "methods", "service", "signals", "tap"}

_LIBRARIES = {"": "twisted", "-": "twisted", "log_legacy": "twisted"}

_Format = Callable[[LogEvent], str]


class Output(Protocol):
    """Where lines go: standard output, or a file."""

    def write(self, data: bytes) -> object:
        """Write all of it."""


def logger_name(namespace: str) -> str:
    """A short name for a logger: `websocket`, `broker`, `auth`, `admin`, `daemon`; a library's is the library's."""
    first, _, rest = namespace.partition(".")
    if first != "towerws":
        return _LIBRARIES.get(first, first)
    part = rest.partition(".")[0]
    return "daemon" if part in _DAEMON else _SHORT.get(part, part)


def as_text(event: LogEvent) -> str:
    """One event as lines for a person."""
    at = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(event.get("log_time", 0)))
    level = event.get("log_level", LogLevel.info).name
    return f"{at} [{_name(event)}#{level}] {_indented(_message(event))}\n"


def as_journal(event: LogEvent) -> str:
    """One event for the journal, every line of it with its priority."""
    prefix = f"<{_PRIORITIES.get(event.get('log_level', LogLevel.info), 6)}>"
    return "".join(f"{prefix}{line}\n" for line in f"[{_name(event)}] {_indented(_message(event))}".split("\n"))


def as_json(event: LogEvent) -> str:
    """One event as one line of JSON, ASCII only."""
    at = datetime.fromtimestamp(event.get("log_time", 0), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    line: dict[str, object] = {
        "time": at,
        "level": event.get("log_level", LogLevel.info).name,
        "logger": _name(event),
        "message": _message(event),
    }
    if event.get("log_namespace", "").startswith("towerws") and (fields := _fields(event)):
        line["fields"] = fields
    return json.dumps(line) + "\n"


def is_journal(descriptor: int, environ: Mapping[str, str]) -> bool:
    """Whether a descriptor leads to the journal: systemd.exec(5), JOURNAL_STREAM."""
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def make_observer(log_format: str, level: str, output: Output, *, journal: bool) -> ILogObserver:
    """Writes events of at least `level` to `output`. `auto` is for the journal where `journal` says so, else text."""
    make: _Format = {"json": as_json, "text": as_text}.get(log_format, as_journal if journal else as_text)
    predicate = LogLevelFilterPredicate(defaultLogLevel=LogLevel.levelWithName(level))
    observer: ILogObserver = FilteringLogObserver(_Writer(output, make), [predicate])
    return observer


def open_output(logfile: str, reactor: Any) -> tuple[Output, bool]:
    """Standard output (`-`), and whether that is the journal; or a file, which is rotated as twistd does, also by SIGUSR1."""
    if logfile == "-":
        return _Descriptor(1), is_journal(1, os.environ)
    file: Any = LogFile.fromFullPath(logfile)
    if not signal.getsignal(signal.SIGUSR1):
        signal.signal(signal.SIGUSR1, lambda _number, _frame: reactor.callFromThread(file.rotate))
    return file, False


def forward_library_logs() -> None:
    """Send what libraries log with the standard library (pika) to the same log."""
    logging.getLogger().addHandler(_Forwarder())


@implementer(ILogObserver)
class _Writer:
    """Formats and writes. A line that can't be written is given up: there is nowhere to say so."""

    def __init__(self, output: Output, make: _Format) -> None:
        self._output = output
        self._make = make

    def __call__(self, event: LogEvent) -> None:
        try:
            self._output.write(self._make(event).encode("utf-8", "backslashreplace"))
        except OSError:
            return


class _Descriptor:
    """Unbuffered, so that a line is out before whatever follows it, a crash included."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, data: bytes) -> None:
        """Write all of it."""
        while data:
            data = data[os.write(self._descriptor, data) :]


class _Forwarder(logging.Handler):
    """The standard library's records, as events."""

    _levels = ((logging.CRITICAL, LogLevel.critical), (logging.ERROR, LogLevel.error), (logging.WARNING, LogLevel.warn))

    def emit(self, record: logging.LogRecord) -> None:
        """Pass one on."""
        level = next((ours for theirs, ours in self._levels if record.levelno >= theirs), LogLevel.info)
        Logger(namespace=record.name).emit(level, "{text}", text=record.getMessage())


def _name(event: LogEvent) -> str:
    return logger_name(event.get("log_namespace") or event.get("log_system") or "")


def _message(event: LogEvent) -> str:
    return _encodable(eventAsText(event, includeTraceback=True, includeTimestamp=False, includeSystem=False).rstrip("\n"))


def _encodable(text: str) -> str:
    """Halves of surrogate pairs as escapes: UTF-8 has none, and many readers of JSON refuse them."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _indented(text: str) -> str:
    return text.replace("\n", "\n\t")


def _fields(event: LogEvent) -> dict[str, object]:
    """What the line was made of; what is not plain is left out, since it stands in the message if it was meant to be read."""
    fields: dict[str, object] = {}
    for name, value in event.items():
        if name.startswith("log_"):
            continue
        if isinstance(value, str):
            fields[name] = _encodable(value)
        elif isinstance(value, float):
            fields[name] = value if isfinite(value) else str(value)
        elif value is None or isinstance(value, int):
            fields[name] = value
    return fields
