"""A log in which a storm of the same event is a few lines."""

from __future__ import annotations

from math import inf
from typing import Any, Final

from twisted.logger import Logger, LogLevel

FOLD_S: Final = 10.0


class FoldedLog:
    """Writes the first of a kind at once, and the next one `FOLD_S` later at the earliest, with the number of those between."""

    def __init__(self, log: Logger, clock: Any) -> None:
        self._log = log
        self._clock = clock
        self._said: dict[str, tuple[float, int]] = {}

    def info(self, text: str, **fields: object) -> None:
        """Say what clients do."""
        self._say(LogLevel.info, text, fields)

    def warning(self, text: str, **fields: object) -> None:
        """Say what an operator may have to act on."""
        self._say(LogLevel.warn, text, fields)

    def _say(self, level: Any, text: str, fields: dict[str, object]) -> None:
        now = self._clock.seconds()
        said_at, folded = self._said.get(text, (-inf, 0))
        if now - said_at < FOLD_S:
            self._said[text] = (said_at, folded + 1)
            return
        self._said[text] = (now, 0)
        if folded:
            text += " ({folded} more like it in the last {since_s:.0f} s)"
        self._log.emit(level, text, folded=folded, since_s=now - said_at, **fields)
