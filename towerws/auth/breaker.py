"""A circuit breaker: a service that fails again and again is left alone, but for a probe now and then."""

from __future__ import annotations


class Breaker:
    """Closed, all calls are admitted. After `failures` in a row it is open: one call per `probe_s` is admitted, until one succeeds.

    No clock of its own: times are monotonic seconds.
    """

    def __init__(self, failures: int, probe_s: float) -> None:
        self._limit = failures
        self._probe_s = probe_s
        self._failed = 0
        self._probe_at = 0.0

    @property
    def state(self) -> str:
        """`closed`, or `open` until a probe has succeeded."""
        return "closed" if self._failed < self._limit else "open"

    def is_open(self, now: float) -> bool:
        """Whether a call made now would fail at once."""
        return self._failed >= self._limit and now < self._probe_at

    def admit(self, now: float) -> bool:
        """Whether this call may be made. While open, the call admitted is the probe."""
        if self._failed < self._limit:
            return True
        if now < self._probe_at:
            return False
        self._probe_at = now + self._probe_s
        return True

    def succeeded(self) -> bool:
        """A call got an answer. Whether that closed an open breaker."""
        closed = self._failed >= self._limit
        self._failed = 0
        return closed

    def failed(self, now: float) -> bool:
        """A call got none. Whether that opened the breaker; the failures of calls made before that change nothing more."""
        self._failed += 1
        if self._failed != self._limit:
            return False
        self._probe_at = now + self._probe_s
        return True
