r"""How `towerws tail` shows an event: a line each, a job's output as the job's text.

Whatever comes from a producer is data: on a terminal its colours (SGR sequences) pass, in a pipe they are dropped, and every
other control character is shown as an escape. A terminal obeys some of them (it may retitle itself, move the cursor, type).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from towerws.commands.tail_topics import OUTPUT_GROUPS

TOPIC_COLUMNS = 30
"""How wide the topics' column is to begin with: `inventory_update_events.123456`. It grows with longer topics, and stays so."""

MAX_TOPIC_COLUMNS = 60
"""As wide as it grows. On a terminal also no wider than leaves half of it to the text."""

CLOCK_COLUMNS = 9

_colour = re.compile(r"(\x1b\[[0-9;]{0,64}m)")
# C0 but TAB, DEL, C1; marks that turn the direction of text or break a line; halves of surrogate pairs, which can't be encoded
_unsafe = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_banner = re.compile(r"(?P<title>[^\x1b]*? \*{3})\*+").fullmatch

_RESET = "\x1b[0m"
_DIM = "\x1b[2m"
_AWX = frozenset({"jobs", "schedules", "inventories", *OUTPUT_GROUPS.values()})
"""Groups whose payloads are read as AWX's. Others may have a `status` or `stdout` that means something else."""

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
    """`text` with every character that a terminal might obey written as an escape."""
    return _unsafe.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def json_line(text: str) -> str:
    """JSON text on one line, every character that a terminal might obey written as JSON's own escape: it means the same."""
    # Between tokens a producer may have written newlines; inside strings JSON has none.
    return _unsafe.sub(lambda match: f"\\u{ord(match[0]):04x}", text.replace("\r", " ").replace("\n", " "))


def output_lines(stdout: str, *, colour: bool) -> list[str]:
    """A job's text, line by line, safe to print. With `colour` each line begins with the colours in force and ends without any."""
    lines: list[str] = []
    in_force = ""
    for raw in stdout.removesuffix("\n").removesuffix("\r").split("\n"):
        line = in_force
        for index, part in enumerate(_colour.split(raw.removesuffix("\r"))):
            if index % 2 == 0:
                line += shown(part)
            elif colour:
                line += part
                in_force = "" if part in {"\x1b[m", _RESET} else part if part.startswith("\x1b[0;") else in_force + part
        lines.append(f"{line}{_RESET}" if colour and "\x1b" in line else line)
    return lines


class Printer:
    """Makes lines of events. `colour` for a terminal, whose width `columns` tells; None for a pipe."""

    def __init__(self, *, colour: bool, columns: Callable[[], int] | None = None) -> None:
        self._colour = colour
        self._columns = columns
        self._width = TOPIC_COLUMNS

    def lines(self, clock: str, topic: str, payload: object) -> list[str]:
        """The lines of an event that came at `clock`."""
        head = f"{self._paint(_DIM, clock)} {self._paint(_DIM, self._column(shown(topic)))} "
        return [head + self._without_wrap(line) for line in self._body(topic, payload)]

    def _without_wrap(self, text: str) -> str:
        """On a terminal, fewer of the asterisks that fill a line of Ansible's, if they don't fit."""
        if self._columns is None or (banner := _banner(text)) is None:
            return text
        room = self._columns() - CLOCK_COLUMNS - self._width - 1
        return text[: max(banner.end("title"), room)]

    def _column(self, topic: str) -> str:
        """The topic, as wide as the column. On a terminal one that is too long loses its middle; a script gets it whole."""
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
