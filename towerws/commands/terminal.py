"""Messages of a command for a person, on standard error: lines that stay, and on a terminal one status line that changes."""

from __future__ import annotations

import time
from typing import TextIO

STATUS_S = 0.5
"""Seconds between two updates of the status line."""

_CLEAR_LINE = "\r\x1b[K"


class StatusLine:
    """Writes notices, with a status line below them on a terminal. A pipe or a log gets the notices only."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._next_s = 0.0
        self._shown = False

    def say(self, text: str) -> None:
        """Write a notice: a line that stays."""
        self.clear()
        self._write(f"{text}\n")

    def show(self, text: str) -> None:
        """Show the status, if the last update is `STATUS_S` old."""
        if self._live and time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + STATUS_S
            self._shown = True
            self._write(_CLEAR_LINE + text)

    def clear(self) -> None:
        """Remove the status line."""
        if self._shown:
            self._shown = False
            self._next_s = 0.0
            self._write(_CLEAR_LINE)

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except BrokenPipeError:
            return  # no one reads the notices any more, and the work goes on
