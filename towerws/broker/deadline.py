"""A deadline for an answer of the broker."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet import interfaces


class Deadline:
    """Calls a function once after a delay, unless it is set again or cleared before that."""

    __slots__ = ("_reactor", "_timer")

    def __init__(self, reactor: interfaces.IReactorTime) -> None:
        self._reactor = reactor
        self._timer: interfaces.IDelayedCall | None = None

    def set(self, delay_s: float, call: Callable[[], None]) -> None:
        """Call `call` after `delay_s` seconds, and forget any earlier one."""
        self.clear()
        self._timer = self._reactor.callLater(delay_s, call)

    def clear(self) -> None:
        """Call nothing. A second call does nothing."""
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
