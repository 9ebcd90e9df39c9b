from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from twisted.internet.task import Clock

from towerws.websocket.accept_throttle import BATCH, AcceptThrottle


@dataclass
class ListeningPort:
    """A port as Twisted has it: it accepts, in one turn, what waits, but no more than `numberAccepts`."""

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
        """One turn of the reactor; how many it accepted (twisted.internet.tcp.Port.doRead)."""
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
    """The time."""
    return Clock()


@pytest.fixture
def port(clock: Clock) -> Iterator[ListeningPort]:
    """A port with a doorman who lets in 1,000 a second."""
    accept_throttle = AcceptThrottle(1000, clock)
    port = ListeningPort(accept_throttle)
    accept_throttle.attach(port, backlog=False)
    with port.socket:
        yield port


def test_a_storm_comes_in_by_and_by(port: ListeningPort, clock: Clock) -> None:
    """Whatever waits, no turn accepts more than a batch, and no second more than the rate; all get in."""
    port.waiting = 5000
    in_first_second = 0
    while port.waiting:
        for _ in range(3):
            assert port.turn() <= BATCH
        clock.advance(0.001)
        if clock.seconds() <= 1:
            in_first_second = port.accepted
    assert port.accepted == 5000
    assert 900 <= in_first_second <= 1000 + 2 * BATCH
    assert port.accept_throttle.pauses >= 5000 / BATCH - 1
    clock.advance(1)
    assert port.reading


def test_a_trickle_meets_nobody(port: ListeningPort, clock: Clock) -> None:
    """Clients that come one by one, below the rate, are let in at once."""
    for _ in range(500):
        port.waiting += 1
        assert port.turn() == 1
        clock.advance(0.002)
    assert port.accept_throttle.pauses == 0
    assert clock.getDelayedCalls() == []


def test_no_turn_grows_where_the_rate_does_not_bind(clock: Clock) -> None:
    """However high the rate, a turn accepts a batch at most: Twisted alone would accept twenty more in each turn than before."""
    accept_throttle = AcceptThrottle(1_000_000, clock)
    port = ListeningPort(accept_throttle, waiting=5000)
    accept_throttle.attach(port, backlog=False)
    with port.socket:
        turns = 0
        while port.waiting:
            assert port.turn() <= BATCH
            turns += 1
            clock.advance(0.003)
        assert turns == 5000 / BATCH
        accept_throttle.detach()
    assert clock.getDelayedCalls() == []


def test_what_is_accepted_sends_at_once(clock: Clock) -> None:
    """No connection waits to fill a segment (TCP_NODELAY); a port that is no TCP port is served as well."""
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
    """Neither a doorman that has left nor a port that was closed meanwhile accepts anything any more, and no timer is left."""
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


def test_nobody_is_accepted_before_the_release(port: ListeningPort, clock: Clock) -> None:
    """Who connects meanwhile waits, and gets in at the release, or when the time is over. Nothing is left of either."""
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
def test_a_port_that_ends_while_nobody_is_accepted(port: ListeningPort, clock: Clock, end: str) -> None:
    """It is not opened again."""
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
    """A port made with Twisted's 50 takes more before anybody is accepted; one with a backlog of its own is left alone."""
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
