"""Rates: a bucket of tokens, without a clock of its own."""

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
