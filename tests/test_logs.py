from __future__ import annotations

import json
import logging
import os
from math import inf
from pathlib import Path
from typing import Any

from twisted.internet.task import Clock
from twisted.logger import LogLevel

from tests.auth.tower_kit import logged
from towerws.logs import LevelFilter, _Forwarder, as_journal, as_json, as_text, make_observer, open_output
from towerws.process import Signals

TEXTS: list[tuple[str, object, str]] = [
    # name, the text of a server or a library, what the log has
    ("a carriage return that hides the line", "gone\r[auth#info] all is well", r"gone\r[auth#info] all is well"),
    ("a new title for the terminal", "\x1b]0;owned\x07", r"\x1b]0;owned\x07"),
    ("a cleared screen", "\x9b2J", r"\x9b2J"),
    ("a NUL, which the journal shows as blob data", "a\0b", r"a\x00b"),
    ("a backspace", "no\b\byes", r"no\x08\x08yes"),
    ("line ends of Unicode", "a\x85b\u2028c\u2029d", r"a\x85b\u2028c\u2029d"),
    ("marks of direction", "\u202egnp.exe\u2066", r"\u202egnp.exe\u2066"),
    ("half a surrogate pair", "\ud800", r"\ud800"),
    ("braces", "{text} {nope} {", "{text} {nope} {"),
    ("a percent sign", "100% %s", "100% %s"),
    ("letters of any script", "M\u00fcnchen \u65e5\u672c", "M\u00fcnchen \u65e5\u672c"),
    ("bytes", b"\xff\r", r"b'\xff\r'"),
    ("TAB and two lines", "a\tb\nc", "a\tb\n\tc"),
]


def event(**fields: object) -> dict[str, Any]:
    """Return an event of the broker's logger."""
    return {"log_format": "{text}", "log_level": LogLevel.info, "log_namespace": "towerws.broker.session", "log_time": 0.0, **fields}


def test_no_text_controls_the_terminal_or_forges_a_line() -> None:
    """Control characters are escaped in text and in the journal. Every line keeps its prefix. JSON has its own escapes."""
    for name, text, shown in TEXTS:
        assert as_text(event(text=text)).endswith(f"[broker#info] {shown}\n"), name
        assert as_journal(event(text=text)) == "".join(f"<6>{line}\n" for line in f"[broker] {shown}".split("\n")), name
        line = as_json(event(text=text))
        assert line.isascii(), name
        assert line.count("\n") == 1, name
        assert json.loads(line)["logger"] == "broker", name


def test_any_number_is_json() -> None:
    """A field of any size costs no line."""
    rows: list[tuple[object, object]] = [
        (1, 1), (2**63 - 1, 2**63 - 1), (-(2**70), hex(-(2**70))), (10**5000, hex(10**5000)), (inf, "inf"), (None, None), (True, True)
    ]  # fmt: skip
    for value, written in rows:
        assert json.loads(as_json(event(text="x", value=value)))["fields"]["value"] == written


def test_a_worker_names_itself() -> None:
    """A JSON line of one of several workers has its number. Other lines have no such key."""
    lines: list[bytes] = []
    for worker in (2, 0):
        make_observer("json", LevelFilter("info"), Lines(lines), journal=False, worker=worker)(event(text="x"))
    assert [json.loads(line).get("worker") for line in lines] == [2, None]
    assert b"worker" not in lines[1]


def test_a_log_file_that_can_not_be_opened_again(tmp_path: Path) -> None:
    """One line names the file and the reason, and the log goes on in the file that was open."""
    folder, moved = tmp_path / "log", tmp_path / "moved"
    folder.mkdir()
    opened = open_output(str(folder / "own.log"))
    signals = Signals(Clock(), lambda: None, lambda by: None)
    signals.reopen_log = opened.reopen
    folder.rename(moved)
    with logged() as lines:
        signals._reopen_log("SIGUSR1")
    (text,) = lines.texts
    assert text.startswith(f"SIGUSR1: {folder}/own.log can't be opened: No such file or directory; ")
    opened.output.write(b"still here\n")
    assert (moved / "own.log").read_bytes() == b"still here\n"
    os.close(opened.output._descriptor)  # type: ignore[attr-defined]


def test_two_processes_share_a_log_file(tmp_path: Path) -> None:
    """During a hand-over two processes write to the file. No line overwrites another one, at any size of the file."""
    file = tmp_path / "own.log"
    outputs = [open_output(str(file)).output for _ in range(2)]
    for _ in range(3):
        for output in outputs:
            output.write(b"x" * 10**6)
    assert [each.stat().st_size for each in tmp_path.iterdir()] == [6 * 10**6]
    for output in outputs:
        os.close(output._descriptor)  # type: ignore[attr-defined]


class Lines:
    """Keeps what is written."""

    def __init__(self, lines: list[bytes]) -> None:
        self._lines = lines

    def write(self, data: bytes) -> None:
        """Keep a line."""
        self._lines.append(data)


class _Broken:
    def __str__(self) -> str:
        raise RuntimeError("broken")


RECORDS: list[tuple[str, tuple[Any, ...], str]] = [
    # name, the message and its arguments, what the log has
    ("plain", ("closed by %s", "peer"), "closed by peer"),
    ("a wrong type", ("bad %d", "x"), "'bad %d' can't be formatted with its arguments: TypeError"),
    ("a format that is none", ("100% {sure}", "x"), "'100% {sure}' can't be formatted with its arguments: ValueError"),
    ("too few arguments", ("%s %s", "x"), "'%s %s' can't be formatted with its arguments: TypeError"),
    ("an object whose text fails", ("%s", _Broken()), "'%s' can't be formatted with its arguments: RuntimeError"),
    ("no text", ({"a": 1},), "{'a': 1}"),
]


def forwarded(message: object, *arguments: object, error: BaseException | None = None) -> str:
    """Return the line of a record that a library writes."""
    exc_info = None if error is None else (type(error), error, error.__traceback__)
    with logged() as lines:
        _Forwarder().handle(logging.LogRecord("pika.adapters", logging.ERROR, "module.py", 1, message, arguments, exc_info))
    (text,) = lines.texts
    return text


def test_a_library_s_records() -> None:
    """Each record becomes a line. A mistake in one raises nothing in the library that wrote it."""
    for name, written, shown in RECORDS:
        assert forwarded(*written) == shown, name


def test_a_library_s_traceback() -> None:
    """A record with an exception has its traceback, which names the cause."""
    try:
        raise OSError("the cause")
    except OSError as error:
        text = forwarded("a callback failed", error=error)
    assert text.startswith("a callback failed\nTraceback (most recent call last):\n")
    assert text.endswith("OSError: the cause")
