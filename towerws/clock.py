"""The clock that everything runs on.

Twisted's timers follow the wall clock (`reactor.seconds` is `time.time`): a step forward fires every deadline at once, a
step back freezes them all, "reconnect in 5 s" among them (reproduced with libfaketime; twisted issue 2424).
"""

from __future__ import annotations

import time
from typing import Any


def use_monotonic_clock(reactor: Any) -> None:
    """Let the reactor's timers follow the monotonic clock. Must come before anything has scheduled a call."""
    if reactor.seconds is time.monotonic:
        return
    waiting = reactor.getDelayedCalls()
    if waiting:
        raise RuntimeError(f"calls were scheduled before the clock was set: {waiting}")
    reactor.seconds = time.monotonic
