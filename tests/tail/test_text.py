from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.kit.rows import each_row
from towerws.tail.text import Printer, json_line, output_lines, shown


@given(st.text(st.characters(codec=None)))
def test_nothing_that_a_terminal_obeys(text: str) -> None:
    """The printed text of any payload can be encoded, and has no control character except TAB."""
    for line in [shown(text), *output_lines(text, colour=False)]:
        line.encode()
        assert not [character for character in line if character != "\t" and (ord(character) < 32 or 127 <= ord(character) < 160)]


@each_row(
    ("stdout", "plain", "coloured"),
    [
        ("ok", ["ok"], ["ok"]),
        ("\r\nPLAY [x] **\r\n", ["", "PLAY [x] **"], ["", "PLAY [x] **"]),
        ("\x1b[0;32mok\x1b[0m", ["ok"], ["\x1b[0;32mok\x1b[0m\x1b[0m"]),
        ("\x1b[0;32ma\r\nb\x1b[0m c", ["a", "b c"], ["\x1b[0;32ma\x1b[0m", "\x1b[0;32mb\x1b[0m c\x1b[0m"]),
        ("\x1b]0;title\x07", [r"\x1b]0;title\x07"], [r"\x1b]0;title\x07"]),
        ("\x1b[2Jgone", [r"\x1b[2Jgone"], [r"\x1b[2Jgone"]),
        ("50 %\r100 %", [r"50 %\r100 %"], [r"50 %\r100 %"]),
        ("a\u202eb\ud800", [r"a\u202eb\ud800"], [r"a\u202eb\ud800"]),
    ],
)
def test_output(stdout: str, plain: list[str], coloured: list[str]) -> None:
    """Only colours pass, and only if asked for. They continue over line ends, and each line ends without them."""
    assert output_lines(stdout, colour=False) == plain
    assert output_lines(stdout, colour=True) == coloured


def test_colours_that_are_never_reset() -> None:
    """The lines of a text of any shape are at most a few hundred characters longer than the text's own."""
    rows: list[tuple[str, str, int]] = [
        ("bold in each line", "\x1b[1mx\n", 20_000),
        ("many colours in one line", "\x1b[31m\x1b[42m\x1b[1m", 20_000),
        ("long codes", "\x1b[" + "1;" * 30 + "1mx\n", 5_000),
        ("resets that are none", "\x1b[00mx\n", 20_000),
        ("a reset with more behind it", "\x1b[0;1mx\n", 20_000),
    ]
    for name, piece, times in rows:
        lines = output_lines(piece * times, colour=True)
        assert sum(map(len, lines)) <= len(piece) * times + len(lines) * 400, name
        assert lines == [*output_lines(piece * 3, colour=True)[:3], *lines[3:]] or "\n" not in piece, name


@each_row(
    ("topic", "payload", "line"),
    [
        ("jobs.status_changed", {"unified_job_id": 42, "status": "running", "type": "job"}, "job 42 running"),
        ("jobs.status_changed", {"unified_job_id": 45, "status": "failed"}, "system job 45 failed"),
        (
            "workflow_events.50",
            {"unified_job_id": 51, "status": "pending", "type": "job", "workflow_job_id": 50},
            "job 51 of workflow 50 pending",
        ),
        ("jobs.summary", {"unified_job_id": 42, "final_counter": 31}, "job 42 has made 31 events"),
        ("schedules.changed", {"id": 3}, "schedule 3 changed"),
        ("inventories.status_changed", {"inventory_id": 5, "status": "deleted"}, "inventory 5 deleted"),
        ("job_events.42", {"stdout": "", "event": "playbook_on_start"}, "(playbook_on_start)"),
        ("own.thing", {"ü": "\x1b[2J"}, r'{"ü": "\u001b[2J"}'),
        ("own.thing", [1], "[1]"),
        ("orders.paid", {"order": 7, "status": "paid"}, '{"order": 7, "status": "paid"}'),
        ("orders.paid", {"order": 7, "stdout": "text"}, '{"order": 7, "stdout": "text"}'),
        ("jobs.status_changed", {"status": "\x9bx", "type": "\x1b"}, r"\x1b None \x9bx"),
    ],
)
def test_lines(topic: str, payload: Any, line: str) -> None:
    """An event is a line: time, topic, text."""
    assert Printer(colour=False).lines("12:00:00", topic, payload) == [f"12:00:00 {topic:<30} {line}"]


LONG = "x" * 64 + "." + "y" * 128


@each_row(
    ("columns", "topic", "shown_as", "text_at"),
    [
        (None, "inventory_update_events.814123", "inventory_update_events.814123", 40),
        (None, LONG, LONG, 203),
        (80, "inventory_update_events.814123", "inventory_update_events.814123", 40),
        (80, "inventory_update_events.81412345", "inventory_updat\u2026events.81412345", 41),
        (200, "inventory_update_events.81412345", "inventory_update_events.81412345", 42),
        (200, LONG, "x" * 30 + "\u2026" + "y" * 29, 70),
        (10, "own.thing", "own.thing", 22),
        (10, "own.long-thing", "own.lo\u2026thing", 22),
    ],
)
def test_topic_column(columns: int | None, topic: str, shown_as: str, text_at: int) -> None:
    """A topic fits its column, which widens. On a terminal half of the line is left to the text (findings O14)."""
    printer = Printer(colour=False, columns=None if columns is None else lambda: columns)
    (line,) = printer.lines("12:00:00", topic, [1])
    assert (line.split()[1], line.index("[1]")) == (shown_as, text_at)
    (after,) = printer.lines("12:00:00", "own.thing", [1])
    assert after.index("[1]") == min(text_at, 70), "the column stays as wide as it was"


@each_row(
    ("columns", "text", "shown_as"),
    [
        (None, "PLAY [x] " + "*" * 70, "PLAY [x] " + "*" * 70),
        (80, "PLAY [x] " + "*" * 70, "PLAY [x] " + "*" * 31),
        (20, "PLAY [x] " + "*" * 70, "PLAY [x] ***"),
        (80, "no banner " * 7 + "**", "no banner " * 7 + "**"),
    ],
)
def test_banner(columns: int | None, text: str, shown_as: str) -> None:
    """The asterisks of Ansible's banners don't wrap on a terminal."""
    printer = Printer(colour=False, columns=None if columns is None else lambda: columns)
    (line,) = printer.lines("12:00:00", "job_events.42", {"stdout": text})
    assert line.split(None, 2)[2] == shown_as
    assert columns != 80 or len(line) == 80 or "no banner" in text


def test_status_has_a_colour_on_a_terminal() -> None:
    """A failed job is red."""
    [line] = Printer(colour=True).lines("12:00:00", "jobs.status_changed", {"unified_job_id": 1, "status": "failed", "type": "job"})
    assert line.endswith("job 1 \x1b[31mfailed\x1b[0m")


@each_row("character", ["\x07", "\x1b", "\x7f", "\x85", "\x9b", "\u061c", "\u200e", "\u2028", "\u202e", "\u2066"])
def test_json_line(character: str) -> None:
    """Characters that control a terminal are escaped, and the JSON means the same."""
    line = json_line(f'{{"a":\n "ü{character}"}}')
    assert character not in line
    assert "ü" in line
    assert json.loads(line) == {"a": f"ü{character}"}
