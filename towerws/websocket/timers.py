"""Timers for many connections at once: pings, pongs and handshakes.

They replace txaio's batched timer, which Autobahn uses. That timer fires up to a second early. It makes up to a thousand calls in
one iteration of the reactor, and beyond those it calls cancelled timers, too. To cancel one it scans all timers of a second.
A timer of this module is never early, and at most `GRAIN_S` late. One iteration makes at most `MAX_CALLS` calls. Cancelling has a
constant cost: to make and cancel a timer takes 2 µs instead of 7, and each connection does it once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

GRAIN_S = 0.25
"""Timers that are due within the same span of this length fire together, at its end."""

MAX_CALLS = 100
"""Timers that fire in one iteration of the reactor. A ping costs about 50 µs."""


class Timer:
    """A scheduled call.

    It knows its bucket by number only. A reference would be a cycle, which stays until a full collection: 5.7 MiB a minute
    with pings to 18,000 connections.
    """

    __slots__ = ("_call", "_grain", "_timers")

    def __init__(self, timers: Timers, grain: int, call: Callable[[], object]) -> None:
        self._timers = timers
        self._grain = grain
        self._call: Callable[[], object] | None = call

    def cancel(self) -> None:
        """Cancel the call. Does nothing after the call, or a second time."""
        if self._call is not None:
            self._call = None
            self._timers.drop(self, self._grain)

    def fire(self) -> None:
        """Make the call, unless it was cancelled."""
        call, self._call = self._call, None
        if call is not None:
            call()


class Bucket:
    """Timers that fire together."""

    __slots__ = ("grain", "reactor_call", "timers")

    def __init__(self, grain: int, reactor_call: Any) -> None:
        self.grain = grain
        self.reactor_call = reactor_call
        """The reactor's delayed call for all of them."""
        self.timers: dict[Timer, None] = {}


class Timers:
    """The timers of one factory."""

    _log = Logger()

    def __init__(self, reactor: IReactorTime) -> None:
        self._reactor = reactor
        self._buckets: dict[int, Bucket] = {}  # by the number of the time span before which they are due

    def call_later(self, delay_s: float, call: Callable[[], object]) -> Timer:
        """Call this after `delay_s` seconds, or up to `GRAIN_S` later. An exception in the call is logged, and other timers go on."""
        now = self._reactor.seconds()
        grain = int((now + delay_s) / GRAIN_S) + 1
        if (bucket := self._buckets.get(grain)) is None:
            delayed = self._reactor.callLater(grain * GRAIN_S - now, self._fire, grain)
            bucket = self._buckets[grain] = Bucket(grain, delayed)
        timer = Timer(self, bucket.grain, call)  # the bucket's own int object, shared by all its timers
        bucket.timers[timer] = None
        return timer

    def drop(self, timer: Timer, grain: int) -> None:
        """Remove a cancelled timer. With the last timer of a bucket, cancel the reactor's call."""
        bucket = self._buckets.get(grain)
        if bucket is not None and bucket.timers.pop(timer, timer) is None and not bucket.timers:
            del self._buckets[grain]
            bucket.reactor_call.cancel()

    def _fire(self, grain: int) -> None:
        self._fire_some(deque(self._buckets.pop(grain).timers))

    def _fire_some(self, due: deque[Timer]) -> None:
        for _ in range(min(MAX_CALLS, len(due))):
            try:
                due.popleft().fire()
            except Exception:  # noqa: BLE001 - one connection's failure must not stop the others' timers
                self._log.failure("a timer of a connection failed")
        if due:
            self._reactor.callLater(0, self._fire_some, due)
