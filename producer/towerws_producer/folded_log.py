"""Folds repeated log lines: writes the first one, counts those of the next minute, and adds their number to the next line."""

import logging
import time
from typing import Callable, Dict, Tuple

EVERY_S = 60.0

log = logging.getLogger("towerws_producer")
log.addHandler(logging.NullHandler())


class FoldedLog:
    """Writes at most one line per kind and minute, with the number of those that were left out."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._written: Dict[str, Tuple[float, int]] = {}

    def fold(self, kind: str, text: str, level: int = logging.WARNING) -> None:
        """Write the text, or count it. It never raises, because a broken log handler must not affect the caller of `emit`."""
        now = self._clock()
        last, left_out = self._written.get(kind, (now - EVERY_S, 0))
        if now - last < EVERY_S:
            self._written[kind] = (last, left_out + 1)
            return
        self._written[kind] = (now, 0)
        say(level, f"{text} ({left_out} more of this kind since the last such line)" if left_out else text)


def say(level: int, text: str) -> None:
    """Write one line. It never raises."""
    try:
        log.log(level, "%s", text)
    except Exception:  # noqa: BLE001 - an application's handler may raise anything, and an event's caller must not notice
        return
