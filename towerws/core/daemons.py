"""Which other daemons exist: those whose markers came by lately."""

from __future__ import annotations

from math import inf
from typing import Final

from towerws.core.control_messages import DaemonName

PRESENT_S: Final = 30.0
"""Three markers, at one in 10 s: one or two may fail (a broker's alarm, another host)."""

MAX_DAEMONS: Final = 256


class Daemons:
    """The other daemons, by id. Times are monotonic seconds.

    At most `MAX_DAEMONS` are kept. While there were more, `crowded` says so: then nobody can say who all of them are.
    """

    def __init__(self) -> None:
        self._heard: dict[DaemonName, float] = {}
        self._turned_away_at = -inf

    def heard(self, daemon: DaemonName, now: float) -> bool:
        """A marker of this daemon came. True when it was not known."""
        self._forget(now)
        if daemon not in self._heard and len(self._heard) >= MAX_DAEMONS:
            self._turned_away_at = now
            return False
        new = daemon not in self._heard
        self._heard[daemon] = now
        return new

    def left(self, daemon: str) -> None:
        """A daemon said that it stops."""
        self._heard = {each: at for each, at in self._heard.items() if each.id != daemon}

    def was_deaf(self, now: float) -> None:
        """Nothing could be heard for a while until now. That counts against no daemon: each has the full time again."""
        self._heard = dict.fromkeys(self._heard, now)

    def present(self, now: float) -> dict[DaemonName, float]:
        """Those heard within `PRESENT_S`, each with the seconds since then."""
        self._forget(now)
        return {daemon: now - at for daemon, at in self._heard.items()}

    def too_many(self, now: float) -> bool:
        """Whether there were more than can be kept within `PRESENT_S`."""
        return now - self._turned_away_at <= PRESENT_S

    def _forget(self, now: float) -> None:
        for daemon in [daemon for daemon, at in self._heard.items() if now - at > PRESENT_S]:
            del self._heard[daemon]
