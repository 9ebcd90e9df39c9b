"""The one deadline that something waiting for the broker has at a time."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet import interfaces


class Deadline:
    """Calls once, unless it is set anew or cleared before. What it belongs to may go at any time once it is cleared."""

    __slots__ = ("_reactor", "_timer")

    def __init__(self, reactor: interfaces.IReactorTime) -> None:
        self._reactor = reactor
        self._timer: interfaces.IDelayedCall | None = None

    def set(self, delay_s: float, call: Callable[[], None]) -> None:
        """Call this after so many seconds, in place of what was set before."""
        self.clear()
        self._timer = self._reactor.callLater(delay_s, call)

    def clear(self) -> None:
        """Call nothing."""
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
