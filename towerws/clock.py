"""Makes the reactor use the monotonic clock.

Twisted's timers follow the wall clock (`reactor.seconds` is `time.time`). A step forward fires every deadline at once. A step back
freezes all timers, "reconnect in 5 s" among them (reproduced with libfaketime; twisted issue 2424).
"""

from __future__ import annotations

import time
from typing import Any


def use_monotonic_clock(reactor: Any) -> None:
    """Make the reactor's timers follow the monotonic clock. Raises `RuntimeError` if a call is scheduled already."""
    if reactor.seconds is time.monotonic:
        return
    waiting = reactor.getDelayedCalls()
    if waiting:
        raise RuntimeError(f"calls were scheduled before the clock was set: {waiting}")
    reactor.seconds = time.monotonic
