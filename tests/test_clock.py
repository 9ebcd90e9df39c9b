from __future__ import annotations

import time

import pytest
from twisted.internet.base import ReactorBase
from twisted.internet.error import ConnectionDone
from twisted.internet.selectreactor import SelectReactor
from twisted.python.failure import Failure

from towerws.process import use_monotonic_clock


def test_monotonic_from_the_start() -> None:
    """A reactor's calls follow the monotonic clock, even if the wall clock is set. A second call changes nothing."""
    reactor = SelectReactor()
    try:
        assert reactor.seconds is not time.monotonic
        use_monotonic_clock(reactor)
        before = time.monotonic()
        call = reactor.callLater(5, int)
        assert before + 5 <= call.getTime() <= time.monotonic() + 5
        use_monotonic_clock(reactor)
        assert reactor.seconds is time.monotonic
        call.cancel()
    finally:
        close(reactor)


def test_too_late() -> None:
    """The change is refused after calls were scheduled by the wall clock: they would fire never, or all at once."""
    reactor = SelectReactor()
    try:
        call = reactor.callLater(5, int)
        with pytest.raises(RuntimeError, match="scheduled before"):
            use_monotonic_clock(reactor)
        call.cancel()
    finally:
        close(reactor)


def close(reactor: ReactorBase) -> None:
    """Close the descriptors that a new reactor opens."""
    for reader in reactor.removeAll():
        reader.connectionLost(Failure(ConnectionDone()))
