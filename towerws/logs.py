"""Formats and writes the daemon's log lines: text, JSON, or lines with priorities for systemd's journal. Folds equal lines.

text     2026-11-26T11:20:07+0000 [broker#warn] connection lost: …      time, logger, level
journal  <4>[broker] connection lost: …                                 the journal has the time; <N> is sd-daemon(3)'s priority
json     {"time": "2026-11-26T11:20:07.123Z", "level": "warn", "logger": "broker", "message": "…", "fields": {…}}

All are UTF-8 in any locale. Text that can't be encoded is escaped, never lost. Control characters are escaped, too. They may come in texts
of a server or a library. A terminal would obey them, and the journal shows a line with some of them as `[42B blob data]`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from math import inf, isfinite
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from twisted.logger import (
    FilteringLogObserver,
    ILogObserver,
    LogEvent,
    Logger,
    LogLevel,
    LogLevelFilterPredicate,
    eventAsText,
)
from zope.interface import implementer

_PRIORITIES = {LogLevel.debug: 7, LogLevel.info: 6, LogLevel.warn: 4, LogLevel.error: 3, LogLevel.critical: 2}  # syslog(3)

_SHORT = {"amqp": "broker", "embedded": "broker", "protocol": "websocket"}
"""Modules that log under the name of a larger part. Other parts have the name of their module or package."""

_DAEMON = {"", "listening", "logs", "process", "reload", "service", "tap"}

_LIBRARIES = {"": "twisted", "-": "twisted", "log_legacy": "twisted"}

FOLD_S: Final = 10.0
"""Seconds between two equal lines of a `FoldedLog`."""

# C0 without TAB and LF, DEL, C1, and marks that change the direction of text or end a line.
_unsafe = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")

_Format = Callable[[LogEvent], str]


class Output(Protocol):
    """Standard output, or a file."""

    def write(self, data: bytes) -> object:
        """Write all of it."""


class Due(NamedTuple):
    """A line may be written. `folded` lines of its kind were left out in the `since_s` seconds since the last one."""

    folded: int
    since_s: float


class LineSpacing:
    """Lets one line of a kind through per `every_s` seconds, and counts the others. Kinds must be fixed words: they are never forgotten."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._written: dict[str, tuple[float, int]] = {}

    def due(self, kind: str, now: float) -> Due | None:
        """Return None if this line is to be left out. `now` is monotonic."""
        written_at, folded = self._written.get(kind, (-inf, 0))
        if now - written_at < self._every_s:
            self._written[kind] = (written_at, folded + 1)
            return None
        self._written[kind] = (now, 0)
        return Due(folded, now - written_at)


class FoldedLog:
    """Writes the first line of a kind at once. The next follows `FOLD_S` later at the earliest, with the number of lines left out."""

    def __init__(self, log: Logger, clock: Any) -> None:
        self._log = log
        self._clock = clock
        self._spacing = LineSpacing(FOLD_S)

    def info(self, text: str, **fields: object) -> None:
        """Write a line that needs no action. `text` is its kind."""
        self._write(LogLevel.info, text, fields)

    def warning(self, text: str, **fields: object) -> None:
        """Write a line on which an operator may have to act. `text` is its kind."""
        self._write(LogLevel.warn, text, fields)

    def _write(self, level: Any, text: str, fields: dict[str, object]) -> None:
        if (due := self._spacing.due(text, self._clock.seconds())) is None:
            return
        if due.folded:
            text += " ({folded} more like it in the last {since_s:.0f} s)"
        self._log.emit(level, text, folded=due.folded, since_s=due.since_s, **fields)


def logger_name(namespace: str) -> str:
    """Return a short logger name: `websocket`, `broker`, `auth`, `admin`, `daemon`, or the name of a library."""
    first, _, rest = namespace.partition(".")
    if first != "towerws":
        return _LIBRARIES.get(first, first)
    part = rest.partition(".")[0]
    return "daemon" if part in _DAEMON else _SHORT.get(part, part)


def as_text(event: LogEvent) -> str:
    """Format an event as text."""
    at = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(event.get("log_time", 0)))
    level = event.get("log_level", LogLevel.info).name
    return f"{at} [{_name(event)}#{level}] {_indented(_message(event))}\n"


def as_journal(event: LogEvent) -> str:
    """Format an event for the journal. Each line of the text gets the priority."""
    prefix = f"<{_PRIORITIES.get(event.get('log_level', LogLevel.info), 6)}>"
    return "".join(f"{prefix}{line}\n" for line in f"[{_name(event)}] {_indented(_message(event))}".split("\n"))


def as_json(event: LogEvent, worker: int = 0) -> str:
    """Format an event as one line of ASCII JSON. A worker's lines have its number."""
    at = datetime.fromtimestamp(event.get("log_time", 0), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    line: dict[str, object] = {
        "time": at,
        "level": event.get("log_level", LogLevel.info).name,
        "logger": _name(event),
        "message": _message(event),
    }
    if worker:
        line["worker"] = worker
    if event.get("log_namespace", "").startswith("towerws") and (fields := _fields(event)):
        line["fields"] = fields
    return json.dumps(line) + "\n"


def is_journal(descriptor: int, environ: Mapping[str, str]) -> bool:
    """Whether a descriptor is connected to the journal (systemd.exec(5), JOURNAL_STREAM)."""
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


class LevelFilter(LogLevelFilterPredicate):
    """Lets events of at least `level` through."""

    def __init__(self, level: str) -> None:
        super().__init__(defaultLogLevel=LogLevel.levelWithName(level))

    def set(self, level: str) -> None:
        """Let events of at least `level` through, instead of the level before."""
        self.setLogLevelForNamespace("", LogLevel.levelWithName(level))


def make_observer(log_format: str, level: LevelFilter, output: Output, *, journal: bool, worker: int = 0) -> ILogObserver:
    """Make an observer that writes events that `level` lets through to `output`. `auto` means journal lines if `journal`, else text.

    `worker` is this process's number among several workers, 0 if it is none.
    """
    formats: dict[str, _Format] = {"json": partial(as_json, worker=worker), "text": as_text}
    make = formats.get(log_format, as_journal if journal else as_text)
    observer: ILogObserver = FilteringLogObserver(_Writer(output, make), [level])
    return observer


class Opened(NamedTuple):
    """An output. `journal`: it is the journal. `reopen`: see `_File`, None if it is no file."""

    output: Output
    journal: bool
    reopen: Callable[[], None] | None


def open_output(logfile: str) -> Opened:
    """Open the output for twistd's `--logfile`. `-` is standard output."""
    if logfile == "-":
        return Opened(_Descriptor(1), is_journal(1, os.environ), None)
    file = _File(logfile)
    return Opened(file, journal=False, reopen=file.reopen)


def forward_library_logs() -> None:
    """Send the records of the standard library's `logging`, which pika uses, to the same log."""
    logging.getLogger().addHandler(_Forwarder())


@implementer(ILogObserver)
class _Writer:
    """Formats and writes events. A line that can't be written is dropped: there is nowhere to report that."""

    def __init__(self, output: Output, make: _Format) -> None:
        self._output = output
        self._make = make

    def __call__(self, event: LogEvent) -> None:
        try:
            self._output.write(self._make(event).encode("utf-8", "backslashreplace"))
        except OSError:
            return


class _Descriptor:
    """Writes to a descriptor without a buffer, so that no line is lost in a crash."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, data: bytes) -> None:
        """Write all of it."""
        while data:
            data = data[os.write(self._descriptor, data) :]


class _File(_Descriptor):
    """Appends to a file, so that two processes can write to it during a hand-over."""

    def __init__(self, path: str) -> None:
        self._path = Path(path).absolute()  # twistd may change to another folder
        super().__init__(self._open())

    def reopen(self) -> None:
        """Open the file of this name again, because logrotate has moved it. Raises `OSError`: then the moved file stays in use."""
        before, self._descriptor = self._descriptor, self._open()
        os.close(before)

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)


class _Forwarder(logging.Handler):
    """Turns records of `logging` into Twisted's events."""

    _levels = ((logging.CRITICAL, LogLevel.critical), (logging.ERROR, LogLevel.error), (logging.WARNING, LogLevel.warn))

    def emit(self, record: logging.LogRecord) -> None:
        """Emit the record as an event, with its traceback. A mistake in its format must not raise in the library's code."""
        level = next((ours for theirs, ours in self._levels if record.levelno >= theirs), LogLevel.info)
        try:
            text = self.format(record)
        except Exception as error:  # noqa: BLE001 - a format may call any `__str__`
            text = f"{record.msg!r} can't be formatted with its arguments: {type(error).__name__}"
        Logger(namespace=record.name).emit(level, "{text}", text=text)


def _name(event: LogEvent) -> str:
    return logger_name(event.get("log_namespace") or event.get("log_system") or "")


def _message(event: LogEvent) -> str:
    return _encodable(eventAsText(event, includeTraceback=True, includeTimestamp=False, includeSystem=False).rstrip("\n"))


def _encodable(text: str) -> str:
    """Escape lone surrogates: UTF-8 can't encode them, and many JSON parsers refuse them."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _indented(text: str) -> str:
    shown = _unsafe.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)
    return shown.replace("\n", "\n\t")


def _fields(event: LogEvent) -> dict[str, object]:
    """Return the event's fields that are text, numbers or None. Others are left out: the message has their text."""
    fields: dict[str, object] = {}
    for name, value in event.items():
        if name.startswith("log_"):
            continue
        if isinstance(value, str):
            fields[name] = _encodable(value)
        elif isinstance(value, int) and abs(value) >= 2**63:
            fields[name] = hex(value)  # Python writes no decimal of more than 4,300 digits, and few readers of JSON take it
        elif isinstance(value, float):
            fields[name] = value if isfinite(value) else str(value)
        elif value is None or isinstance(value, int):
            fields[name] = value
    return fields
