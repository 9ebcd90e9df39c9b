"""Timers of many connections."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher

from towerws.websocket.autobahn_parts import GRAIN_S, MAX_CALLS, Timer, Timers


def timers(clock: Clock) -> Timers:
    """Timers that follow this clock."""
    return Timers(cast("IReactorTime", clock))


def turn(clock: Clock) -> None:
    """One iteration of the reactor. Calls scheduled meanwhile for "now" come in the next one (`Clock.advance` runs them all)."""
    (due,) = cast("list[Any]", clock.getDelayedCalls())
    clock.rightNow = due.getTime()
    clock.calls.remove(due)
    due.called = 1
    due.func(*due.args)


@pytest.fixture
def failures() -> Iterator[list[LogEvent]]:
    """Failures that are logged meanwhile."""
    events: list[LogEvent] = []

    def note(event: LogEvent) -> None:
        if "log_failure" in event:
            events.append(event)

    observer = cast("ILogObserver", note)
    globalLogPublisher.addObserver(observer)
    yield events
    globalLogPublisher.removeObserver(observer)


@given(start=st.floats(0, 1e6), delay=st.floats(0, 3600))
def test_never_early_and_a_grain_late_at_most(start: float, delay: float) -> None:
    """A timer fires no earlier than asked, and at most `GRAIN_S` later."""
    clock = Clock()
    clock.advance(start)
    called: list[float] = []
    timers(clock).call_later(delay, lambda: called.append(clock.seconds()))
    (waits,) = clock.getDelayedCalls()
    due = waits.getTime()
    assert start + delay - 1e-6 <= due <= start + delay + GRAIN_S + 1e-6
    clock.advance(waits.getTime() - clock.seconds())
    assert len(called) == 1
    assert clock.getDelayedCalls() == []


def test_one_call_of_the_reactor_for_all_that_are_due_together() -> None:
    """A thousand timers for the same moment use one delayed call of the reactor."""
    clock = Clock()
    mine = timers(clock)
    for _ in range(1000):
        mine.call_later(10, lambda: None)
    assert len(clock.getDelayedCalls()) == 1


def test_a_turn_calls_only_so_many() -> None:
    """An iteration of the reactor fires at most `MAX_CALLS` of them, in order. The next iteration continues."""
    clock = Clock()
    mine = timers(clock)
    called: list[int] = []
    for number in range(2 * MAX_CALLS + 1):
        mine.call_later(1, lambda number=number: called.append(number))  # type: ignore[misc]
    counts = []
    while clock.getDelayedCalls():
        turn(clock)
        counts.append(len(called))
    assert counts == [MAX_CALLS, 2 * MAX_CALLS, 2 * MAX_CALLS + 1]
    assert called == sorted(called)


def test_what_is_cancelled_is_never_called() -> None:
    """A timer can be cancelled before it is due and between two iterations that fire. Cancelling twice is allowed."""
    clock = Clock()
    mine = timers(clock)
    called: list[int] = []
    made = [mine.call_later(1, lambda number=number: called.append(number)) for number in range(MAX_CALLS + 5)]  # type: ignore[misc]
    made[0].cancel()
    made[0].cancel()
    turn(clock)
    made[1].cancel()  # has fired
    made[-1].cancel()  # waits for the next iteration
    turn(clock)
    assert called == list(range(1, MAX_CALLS + 4))
    assert clock.getDelayedCalls() == []


def test_the_last_one_cancelled_leaves_nothing() -> None:
    """When all timers of a moment are cancelled, the reactor has no delayed call. That moment can be used again."""
    clock = Clock()
    mine = timers(clock)
    called: list[int] = []
    for timer in [mine.call_later(1, lambda: called.append(1)) for _ in range(3)]:
        timer.cancel()
    assert clock.getDelayedCalls() == []
    mine.call_later(1, lambda: called.append(2))
    clock.advance(1 + GRAIN_S)
    assert called == [2]


def test_a_failure_is_logged_and_stops_no_other(failures: list[LogEvent]) -> None:
    """An exception in one call is logged. The later calls still run."""
    clock = Clock()
    mine = timers(clock)
    called: list[int] = []
    mine.call_later(1, lambda: 1 // 0)
    mine.call_later(1, lambda: called.append(1))
    clock.advance(1 + GRAIN_S)
    assert called == [1]
    assert [event["log_failure"].type for event in failures] == [ZeroDivisionError]


def test_one_may_cancel_another_and_make_new_ones() -> None:
    """A call may cancel another that is due with it, and add new ones. Under random use each timer fires once or was cancelled."""
    clock, dice = Clock(), random.Random(7)
    mine = timers(clock)
    made: dict[int, Timer] = {}
    called: list[int] = []
    cancelled: set[int] = set()

    def act(number: int) -> Callable[[], None]:
        def go() -> None:
            called.append(number)
            other = dice.randrange(len(made))
            if other not in called:
                cancelled.add(other)
            made[other].cancel()
            if len(made) < 2000:
                add()

        return go

    def add() -> None:
        number = len(made)
        made[number] = mine.call_later(dice.choice((0, 0.1, 1, 5)), act(number))

    for _ in range(500):
        add()
    while clock.getDelayedCalls():
        clock.advance(GRAIN_S)
    assert len(called) == len(set(called))
    assert set(called) | cancelled == set(range(len(made)))
    assert not set(called) & cancelled
