"""Rate limits: a token bucket, and a leaky bucket for each of many names. All times are monotonic seconds of the caller's clock."""

from __future__ import annotations

_ROUNDING = 1e-9
"""Rounding tolerance: after the promised wait the bucket may hold 0.999… tokens. Count that as one."""


class TokenBucket:
    """Allows `burst` events at once, and `rate` per second in the long run."""

    __slots__ = ("_burst", "_rate", "_since", "_tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._since = now

    @property
    def level(self) -> tuple[float, float]:
        """The tokens in it, and when they were counted."""
        return self._tokens, self._since

    def restore(self, level: tuple[float, float]) -> None:
        """Continue with the `level` of another bucket. Its tokens count up to this bucket's `burst`."""
        self._tokens, self._since = min(level[0], self._burst), level[1]

    def take(self, now: float) -> float:
        """Take one token and return 0. If there is none, return the seconds until there will be one."""
        self._tokens = min(self._burst, self._tokens + (now - self._since) * self._rate)
        self._since = now
        if self._tokens > 1 - _ROUNDING:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) / self._rate


class Throttle:
    """A leaky bucket for each name: it may fail `burst` times at once, and `rate` times per second in the long run.

    A try may be counted before it is made, and given back if it did not fail. Beyond `names` the name that was counted least
    recently is forgotten.
    """

    def __init__(self, rate: float, burst: int, names: int = 10_000) -> None:
        self._rate = rate
        self._burst = burst
        self._names = names
        self._levels: dict[str, tuple[float, float]] = {}  # name -> the tries in its bucket, and when that was; oldest first

    def __len__(self) -> int:
        return len(self._levels)

    def set_rate(self, rate: float) -> None:
        """Use another rate from now on."""
        self._rate = rate

    def delay(self, name: str, now: float) -> float:
        """Return the seconds that the next try of this name must wait."""
        return max(0.0, (self._level(name, now) + 1 - self._burst) / self._rate)

    def count(self, name: str, now: float, amount: float = 1) -> None:
        """Count a try that failed, or that may fail. `amount`: so many tries at once."""
        self._set(name, self._level(name, now) + amount, now)
        if len(self._levels) > self._names:
            del self._levels[next(iter(self._levels))]

    def give_back(self, name: str, now: float) -> None:
        """Take back the count of a try that did not fail, or was not made."""
        if name in self._levels:
            self._set(name, self._level(name, now) - 1, now)

    def _level(self, name: str, now: float) -> float:
        level, at = self._levels.get(name, (0.0, now))
        return max(0.0, level - (now - at) * self._rate)

    def _set(self, name: str, level: float, now: float) -> None:
        self._levels.pop(name, None)
        if level > 0:
            self._levels[name] = (level, now)
