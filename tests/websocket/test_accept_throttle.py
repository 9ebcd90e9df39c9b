from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from twisted.internet.task import Clock

from towerws.websocket.accept_throttle import ACCEPTS_AT_ONCE, AcceptThrottle


@dataclass
class ListeningPort:
    """A port that accepts as Twisted's does: waiting connections, at most `numberAccepts` of them in one iteration."""

    accept_throttle: AcceptThrottle
    waiting: int = 0
    connected: bool = True
    reading: bool = True
    numberAccepts: int = 100
    accepted: int = 0
    socket: socket.socket = field(default_factory=socket.socket)

    def startReading(self) -> None:
        """Accept."""
        self.reading = True

    def stopReading(self) -> None:
        """Accept nothing."""
        self.reading = False

    def turn(self) -> int:
        """One iteration of the reactor (twisted.internet.tcp.Port.doRead). Returns how many connections it accepted."""
        if not self.reading:
            return 0
        count = min(self.waiting, self.numberAccepts)
        for _ in range(count):
            self.waiting -= 1
            self.accepted += 1
            self.accept_throttle.accepted()
        self.numberAccepts = self.numberAccepts + 20 if count == self.numberAccepts else max(1, count)
        return count


@pytest.fixture
def clock() -> Clock:
    """A clock that the test moves."""
    return Clock()


@pytest.fixture
def port(clock: Clock) -> Iterator[ListeningPort]:
    """A port with a throttle of 1,000 connections per second."""
    accept_throttle = AcceptThrottle(1000, clock)
    port = ListeningPort(accept_throttle)
    accept_throttle.attach(port, backlog=False)
    with port.socket:
        yield port


def test_5000_connections_are_accepted_at_the_rate(port: ListeningPort, clock: Clock) -> None:
    """With 5,000 clients waiting, an iteration accepts at most a batch and a second at most the rate. All are accepted in the end."""
    port.waiting = 5000
    in_first_second = 0
    while port.waiting:
        for _ in range(3):
            assert port.turn() <= ACCEPTS_AT_ONCE
        clock.advance(0.001)
        if clock.seconds() <= 1:
            in_first_second = port.accepted
    assert port.accepted == 5000
    assert 900 <= in_first_second <= 1000 + 2 * ACCEPTS_AT_ONCE
    assert port.accept_throttle.pauses >= 5000 / ACCEPTS_AT_ONCE - 1
    clock.advance(1)
    assert port.reading


def test_connections_below_the_rate_are_accepted_at_once(port: ListeningPort, clock: Clock) -> None:
    """Clients that arrive one by one, below the rate, are accepted at once."""
    for _ in range(500):
        port.waiting += 1
        assert port.turn() == 1
        clock.advance(0.002)
    assert port.accept_throttle.pauses == 0
    assert clock.getDelayedCalls() == []


def test_no_turn_grows_where_the_rate_does_not_bind(clock: Clock) -> None:
    """At any rate an iteration accepts at most a batch. Twisted alone would accept twenty more in each iteration than in the one before."""
    accept_throttle = AcceptThrottle(1_000_000, clock)
    port = ListeningPort(accept_throttle, waiting=5000)
    accept_throttle.attach(port, backlog=False)
    with port.socket:
        turns = 0
        while port.waiting:
            assert port.turn() <= ACCEPTS_AT_ONCE
            turns += 1
            clock.advance(0.003)
        assert turns == 5000 / ACCEPTS_AT_ONCE
        accept_throttle.detach()
    assert clock.getDelayedCalls() == []


def test_what_is_accepted_sends_at_once(clock: Clock) -> None:
    """Accepted TCP connections have TCP_NODELAY. A port that is not TCP is served as well."""
    for family, address in ((socket.AF_INET, ("127.0.0.1", 0)), (socket.AF_UNIX, "")):
        accept_throttle = AcceptThrottle(1000, clock)
        port = ListeningPort(accept_throttle, socket=socket.socket(family))
        with port.socket:
            port.socket.bind(address)
            port.socket.listen()
            accept_throttle.attach(port, backlog=False)
            with socket.socket(family) as client:
                client.connect(port.socket.getsockname())
                with port.socket.accept()[0] as accepted:
                    if family == socket.AF_INET:
                        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_nothing_is_opened_again_after_the_end(port: ListeningPort, clock: Clock) -> None:
    """A detached throttle does not resume its port, and a closed port is not resumed. No timer is left."""
    port.waiting = 100
    port.turn()
    assert not port.reading
    port.connected = False
    clock.advance(1)
    assert not port.reading
    port.connected, port.reading = True, True
    port.turn()
    port.accept_throttle.detach()
    assert clock.getDelayedCalls() == []
    port.accept_throttle.accepted()
    assert clock.getDelayedCalls() == []


def test_connections_wait_for_the_release(port: ListeningPort, clock: Clock) -> None:
    """Clients that connect during the hold wait. They are accepted at the release or at the hold's timeout. No timer is left."""
    port.waiting = 5
    port.accept_throttle.hold(2.0)
    port.accept_throttle.hold(2.0)
    assert (port.turn(), port.accept_throttle.holding) == (0, True)
    clock.advance(1.9)
    assert port.turn() == 0
    port.accept_throttle.release()
    port.accept_throttle.release()
    assert (port.turn(), port.accept_throttle.holding) == (5, False)
    clock.advance(0)
    assert clock.getDelayedCalls() == []
    port.accept_throttle.hold(2.0)
    assert not port.reading
    clock.advance(2.0)
    assert (port.reading, port.accept_throttle.holding) == (True, False)


@pytest.mark.parametrize("end", ["leave", "closed"])
def test_a_port_that_closes_during_the_hold_is_not_resumed(port: ListeningPort, clock: Clock, end: str) -> None:
    """The throttle does not resume it."""
    port.accept_throttle.hold(2.0)
    if end == "leave":
        port.accept_throttle.detach()
    else:
        port.connected = False
    port.accept_throttle.release()
    clock.advance(3)
    assert not port.reading
    assert clock.getDelayedCalls() == []


def test_the_kernels_queue_is_made_longer(clock: Clock) -> None:
    """A port made with Twisted's backlog of 50 gets a longer one. A port with a backlog of its own keeps it."""
    for longer in (True, False):
        accept_throttle = AcceptThrottle(1000, clock)
        port = ListeningPort(accept_throttle)
        with port.socket:
            port.socket.bind(("127.0.0.1", 0))
            port.socket.listen(50)
            accept_throttle.attach(port, backlog=longer)
            clients = [socket.socket() for _ in range(80)]
            try:
                done = 0
                for client in clients:
                    client.settimeout(0.2)
                    try:
                        client.connect(port.socket.getsockname())
                    except TimeoutError:
                        break
                    done += 1
                assert (done == len(clients)) == longer
            finally:
                for client in clients:
                    client.close()


def test_a_pause_ends_only_with_its_own_word(port: ListeningPort, clock: Clock) -> None:
    """During a hand-over neither the throttle's own pause nor the end of a hold accepts anybody."""
    port.waiting = 5000
    port.turn()
    port.accept_throttle.pause()
    clock.advance(1)
    port.accept_throttle.hold(2.0)
    port.accept_throttle.release()
    assert (port.turn(), port.reading) == (0, False)
    port.accept_throttle.go_on()
    port.accept_throttle.go_on()
    assert port.turn() == ACCEPTS_AT_ONCE
    clock.advance(1)
