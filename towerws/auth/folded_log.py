"""A log that writes many equal lines as a few."""

from __future__ import annotations

from math import inf
from typing import Any, Final

from twisted.logger import Logger, LogLevel

FOLD_S: Final = 10.0


class FoldedLog:
    """Writes the first line of a kind at once. The next follows `FOLD_S` later at the earliest, with the number of lines left out."""

    def __init__(self, log: Logger, clock: Any) -> None:
        self._log = log
        self._clock = clock
        self._written: dict[str, tuple[float, int]] = {}

    def info(self, text: str, **fields: object) -> None:
        """Write what clients do."""
        self._write(LogLevel.info, text, fields)

    def warning(self, text: str, **fields: object) -> None:
        """Write what an operator may have to act on."""
        self._write(LogLevel.warn, text, fields)

    def _write(self, level: Any, text: str, fields: dict[str, object]) -> None:
        now = self._clock.seconds()
        written_at, folded = self._written.get(text, (-inf, 0))
        if now - written_at < FOLD_S:
            self._written[text] = (written_at, folded + 1)
            return
        self._written[text] = (now, 0)
        if folded:
            text += " ({folded} more like it in the last {since_s:.0f} s)"
        self._log.emit(level, text, folded=folded, since_s=now - written_at, **fields)
