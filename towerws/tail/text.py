"""How `towerws tail` prints an event: one line, or the text that a job printed.

Text from a producer must not control the terminal: it could set the title, move the cursor or type a command. On a terminal its
colours (SGR sequences) pass. In a pipe they are dropped. Any other control character is printed as an escape.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

OUTPUT_GROUPS: dict[object, str] = {
    "job": "job_events",
    "project_update": "project_update_events",
    "inventory_update": "inventory_update_events",
    "ad_hoc_command": "ad_hoc_command_events",
    "workflow_job": "workflow_events",
    None: "system_job_events",
}
"""The group of a job's output, by the `type` in the job's status message. System jobs have no type. Approvals have no output."""

TOPIC_COLUMNS = 30
"""The first width of the topics' column: `inventory_update_events.123456` fits. A longer topic widens it for all later lines."""

MAX_TOPIC_COLUMNS = 60
"""The largest width of the topics' column. On a terminal, the topics take at most half of the line."""

CLOCK_COLUMNS = 9
"""Width of the time and the space after it."""

MAX_COLOURS = 256
"""Most characters of colour codes that a line repeats from earlier lines. A text that never resets its colours would be quadratic."""

_colour = re.compile(r"(\x1b\[[0-9;]{0,64}m)")
# C0 except TAB, DEL, C1. Marks that change the direction of text or break a line. Lone surrogates, which can't be encoded.
_unsafe = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_banner = re.compile(r"(?P<title>[^\x1b]*? \*{3})\*+").fullmatch

_RESET = "\x1b[0m"
_DIM = "\x1b[2m"
_AWX = frozenset({"jobs", "schedules", "inventories", *OUTPUT_GROUPS.values()})
"""Groups whose payloads are AWX's. In other groups `status` and `stdout` may mean something else."""

_STATUS_COLOURS = {
    "pending": "\x1b[33m",
    "waiting": "\x1b[33m",
    "running": "\x1b[36m",
    "successful": "\x1b[32m",
    "failed": "\x1b[31m",
    "error": "\x1b[31m",
    "canceled": "\x1b[35m",
}


def shown(text: str) -> str:
    """Return `text` with an escape for every character that a terminal might obey."""
    return _unsafe.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def json_line(text: str) -> str:
    """Return equivalent JSON text on one line, with JSON's escape for every character that a terminal might obey."""
    # A producer may have put newlines between tokens. Strings in JSON contain no newlines.
    return _unsafe.sub(lambda match: f"\\u{ord(match[0]):04x}", text.replace("\r", " ").replace("\n", " "))


def output_lines(stdout: str, *, colour: bool) -> list[str]:
    """Split a job's text into lines that are safe to print. With `colour`, each line starts with the current colours and ends with none."""
    lines: list[str] = []
    current = ""
    for raw in stdout.removesuffix("\n").removesuffix("\r").split("\n"):
        line = current
        for index, part in enumerate(_colour.split(raw.removesuffix("\r"))):
            if index % 2 == 0:
                line += shown(part)
            elif colour:
                line += part
                fresh = part.startswith("\x1b[0;") or len(current) > MAX_COLOURS
                current = "" if part in {"\x1b[m", _RESET} else part if fresh else current + part
        lines.append(f"{line}{_RESET}" if colour and "\x1b" in line else line)
    return lines


class Printer:
    """Turns events into lines. `columns` returns the terminal's width, and is None for a pipe."""

    def __init__(self, *, colour: bool, columns: Callable[[], int] | None = None) -> None:
        self._colour = colour
        self._columns = columns
        self._width = TOPIC_COLUMNS

    def lines(self, clock: str, topic: str, payload: object) -> list[str]:
        """Return the lines of an event that arrived at `clock` (HH:MM:SS)."""
        head = f"{self._paint(_DIM, clock)} {self._paint(_DIM, self._column(shown(topic)))} "
        return [head + self._shorten_banner(line) for line in self._body(topic, payload)]

    def _shorten_banner(self, text: str) -> str:
        """Drop asterisks of Ansible's banners that don't fit on a terminal's line."""
        if self._columns is None or (banner := _banner(text)) is None:
            return text
        room = self._columns() - CLOCK_COLUMNS - self._width - 1
        return text[: max(banner.end("title"), room)]

    def _column(self, topic: str) -> str:
        """Pad the topic to the column's width. On a terminal, a topic that is too long loses its middle. In a pipe it stays whole."""
        most = MAX_TOPIC_COLUMNS
        if self._columns is not None:
            most = max(12, min(most, self._columns() // 2 - CLOCK_COLUMNS))
            if len(topic) > most:
                begin = most // 2
                topic = f"{topic[:begin]}…{topic[len(topic) - (most - begin - 1) :]}"
        self._width = max(self._width, min(len(topic), most))
        return f"{topic:<{min(self._width, most)}}"

    def _body(self, topic: str, payload: object) -> list[str]:
        if isinstance(payload, dict) and topic.partition(".")[0] in _AWX:
            if isinstance(stdout := payload.get("stdout"), str):
                if stdout:
                    return output_lines(stdout, colour=self._colour)
                return [self._paint(_DIM, f"({shown(str(payload.get('event', 'no output')))})")]
            if isinstance(status := payload.get("status"), str):
                return [f"{_subject(payload)} {self._paint(_STATUS_COLOURS.get(status, ''), shown(status))}"]
            if topic == "jobs.summary":
                count = payload.get("final_counter", "all")
                return [shown(f"job {payload.get('unified_job_id')} has made {count} events")]
            if topic == "schedules.changed":
                return [shown(f"schedule {payload.get('id')} changed")]
        return [shown(json.dumps(payload, ensure_ascii=False))]

    def _paint(self, code: str, text: str) -> str:
        return f"{code}{text}{_RESET}" if self._colour and code else text


def _subject(payload: dict[str, object]) -> str:
    if "inventory_id" in payload and "unified_job_id" not in payload:
        return shown(f"inventory {payload['inventory_id']}")
    kind = str(payload.get("type", "system_job")).replace("_", " ")
    within = f" of workflow {payload['workflow_job_id']}" if "workflow_job_id" in payload else ""
    return shown(f"{kind} {payload.get('unified_job_id')}{within}")
