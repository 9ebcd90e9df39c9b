"""What a command says to a person beside its output: lines on standard error, and one that is rewritten in place on a terminal."""

from __future__ import annotations

import time
from typing import TextIO

STATUS_S = 0.5
_REWRITE = "\r\x1b[K"  # to the line's begin, and clear it


class StatusLine:
    """Notices, and a status below them. In a pipe or a log there are only the notices."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._next_s = 0.0
        self._shown = False

    def say(self, text: str) -> None:
        """A line that stays."""
        self.clear()
        self._write(f"{text}\n")

    def show(self, text: str) -> None:
        """The status, at most twice a second."""
        if self._live and time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + STATUS_S
            self._shown = True
            self._write(_REWRITE + text)

    def clear(self) -> None:
        """Take the status away."""
        if self._shown:
            self._shown = False
            self._next_s = 0.0
            self._write(_REWRITE)

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except BrokenPipeError:
            return  # nobody reads what is said; the work goes on
