"""Rates: a bucket of tokens, without a clock of its own.

Slowing down what fails again and again: a bucket for each name that leaks at a steady rate. No clock of its own.
"""

from __future__ import annotations

_ROUNDING = 1e-9
"""Who waited as long as told gets its token, though the sum of the parts may be a hair less than one."""


class TokenBucket:
    """Allows `burst` at once and `rate` a second in the long run. Times are monotonic seconds."""

    __slots__ = ("_burst", "_rate", "_since", "_tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._since = now

    def take(self, now: float) -> float:
        """Take one token and give 0; or take none, and give the seconds until there will be one."""
        self._tokens = min(self._burst, self._tokens + (now - self._since) * self._rate)
        self._since = now
        if self._tokens > 1 - _ROUNDING:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) / self._rate


class Throttle:
    """Each name may fail `burst` times at once, and `rate` times a second in the long run. Times are monotonic seconds.

    A try may be counted before it is made, and given back if it did not fail. Of more than `names` the one that was counted least
    recently is forgotten.
    """

    def __init__(self, rate: float, burst: int, names: int = 10_000) -> None:
        self._rate = rate
        self._burst = burst
        self._names = names
        self._levels: dict[str, tuple[float, float]] = {}  # name -> tries that count, when; from the oldest to the newest

    def __len__(self) -> int:
        return len(self._levels)

    def delay(self, name: str, now: float) -> float:
        """How many seconds a try of this name has to wait."""
        return max(0.0, (self._level(name, now) + 1 - self._burst) / self._rate)

    def count(self, name: str, now: float, amount: float = 1) -> None:
        """Count a try that failed, or may; or so many at once."""
        self._set(name, self._level(name, now) + amount, now)
        if len(self._levels) > self._names:
            del self._levels[next(iter(self._levels))]

    def give_back(self, name: str, now: float) -> None:
        """A try that was counted did not fail, or was not made."""
        if name in self._levels:
            self._set(name, self._level(name, now) - 1, now)

    def _level(self, name: str, now: float) -> float:
        level, at = self._levels.get(name, (0.0, now))
        return max(0.0, level - (now - at) * self._rate)

    def _set(self, name: str, level: float, now: float) -> None:
        self._levels.pop(name, None)
        if level > 0:
            self._levels[name] = (level, now)
