from __future__ import annotations

import select
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from twisted.internet import tcp
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from tests.kit.ws_kit import MemoryTransport
from towerws.websocket.send_buffer import SocketSendBuffer, TransportSendBuffer, open_send_buffer

BOUND = 256 * 1024


class HandReactor:
    """A reactor whose iterations the test makes."""

    def __init__(self) -> None:
        self.writers: set[Any] = set()
        self.readers: set[Any] = set()
        self._soon: list[Callable[[], None]] = []

    def addWriter(self, writer: Any) -> None:
        """The writer wants to write."""
        self.writers.add(writer)

    def removeWriter(self, writer: Any) -> None:
        """The writer has nothing to write."""
        self.writers.discard(writer)

    def addReader(self, reader: Any) -> None:
        """The reader wants to read."""
        self.readers.add(reader)

    def removeReader(self, reader: Any) -> None:
        """The reader stops reading."""
        self.readers.discard(reader)

    def soon(self, call: Callable[[], None]) -> None:
        """Call it in the next iteration."""
        self._soon.append(call)

    def turn(self) -> None:
        """One iteration: the deferred calls, then each writer that can write."""
        soon, self._soon = self._soon, []
        for call in soon:
            call()
        for writer in list(self.writers):
            writer.doWrite()


class Wire:
    """A Twisted TCP connection on one end of a real socket. The test reads the other end."""

    def __init__(self) -> None:
        self.reactor = HandReactor()
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.peer = socket.create_connection(server.getsockname())
            self._ours, _ = server.accept()
        ours = self._ours
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * 1024)
        self.connection: Any = tcp.Connection(ours, Protocol(), self.reactor)  # type: ignore[arg-type]
        self.connection.connected = 1
        self.send_buffer = SocketSendBuffer(self.connection, BOUND, self.reactor.soon)
        self.drained = 0
        self.sent = b""

    def send(self, data: bytes) -> bool:
        """Send through the send buffer, and remember what it accepted."""
        taken = self.send_buffer.send(data)
        if taken:
            self.sent += data
        return taken

    def fill(self) -> None:
        """Send until the socket is full and bytes are waiting."""
        for number in range(100_000):
            if self.send_buffer.waiting:
                return
            self.send(b"%08d" % number * 1000)
        raise AssertionError("the socket takes everything")

    def drain(self) -> None:
        """The send buffer's callback."""
        self.drained += 1

    def read_all(self, go_on: Callable[[], bool] = bool) -> bytes:
        """Read until everything that was accepted has arrived and `go_on` returns false."""
        received = bytearray()
        while len(received) < len(self.sent) or go_on():
            self.reactor.turn()
            writers = [self._ours] if self.reactor.writers else []
            if len(received) < len(self.sent):
                readable, _, _ = select.select([self.peer], writers, [], 10)
                if readable:
                    received += self.peer.recv(1024**2)
        return bytes(received)

    def end(self) -> None:
        """Close both ends."""
        self.peer.close()
        self._ours.close()


@pytest.fixture
def wire() -> Iterator[Wire]:
    """A connection of real sockets."""
    made = Wire()
    yield made
    made.end()


def test_direct_send(wire: Wire) -> None:
    """With nothing waiting, the bytes are on the wire when `send` returns. The transport is not used."""
    assert wire.send(b"hello")
    assert wire.peer.recv(100) == b"hello"
    assert wire.send_buffer.waiting == 0
    assert wire.reactor.writers == set()


def test_partial_send_keeps_order(wire: Wire) -> None:
    """Bytes that the socket refuses go to the transport. Later bytes go behind them, and nothing is lost or reordered."""
    wire.fill()
    assert 0 < wire.send_buffer.waiting <= 8000
    for number in range(10):
        assert wire.send(b"<%d>" % number)
    assert wire.read_all() == wire.sent
    assert wire.send_buffer.waiting == 0


def test_bound(wire: Wire) -> None:
    """Never more bytes wait than the bound allows. A frame that does not fit is refused whole, and smaller frames still fit."""
    wire.fill()
    room = BOUND - wire.send_buffer.waiting
    assert not wire.send(b"x" * (room + 1))
    assert wire.send(b"x" * room)
    assert wire.send_buffer.waiting == BOUND
    assert not wire.send(b"x")
    assert wire.read_all() == wire.sent
    assert wire.send(b"again")


def test_empty_send_buffer_takes_anything(wire: Wire) -> None:
    """A frame larger than the bound is sent while nothing is waiting. Otherwise it could never be sent."""
    assert wire.send(b"x" * (BOUND * 16))
    assert not wire.send(b"x")
    assert wire.read_all() == wire.sent


def test_waiting_counts_both_of_the_transports_buffers(wire: Wire) -> None:
    """Bytes still count as waiting after the transport moves them from one of its buffers to the other."""
    wire.fill()
    assert wire.send(b"x" * 100_000)
    before = wire.send_buffer.waiting
    wire.reactor.turn()
    assert wire.connection.dataBuffer
    assert before - 64 * 1024 < wire.send_buffer.waiting <= before


def test_await_drain_with_nothing_waiting(wire: Wire) -> None:
    """The callback comes once, in a later iteration, and never within `await_drain`."""
    wire.send_buffer.await_drain(wire.drain)
    wire.send_buffer.await_drain(wire.drain)
    assert wire.drained == 0
    wire.reactor.turn()
    wire.reactor.turn()
    assert wire.drained == 1


def test_await_drain(wire: Wire) -> None:
    """The callback comes once, when the transport's buffer is empty, and not before."""
    wire.fill()
    wire.send(b"x" * 100_000)
    wire.send_buffer.await_drain(wire.drain)
    wire.send_buffer.await_drain(wire.drain)
    wire.reactor.turn()
    assert wire.drained == 0
    assert wire.read_all() == wire.sent
    assert wire.drained == 1
    wire.reactor.turn()
    assert wire.drained == 1
    assert wire.connection.producer is None


def test_drain_is_never_reentrant(wire: Wire) -> None:
    """A caller that sends and waits again within the callback is called in a later iteration, however much the socket takes."""
    depth = deepest = calls = 0

    def feed() -> None:
        nonlocal depth, deepest, calls
        depth += 1
        deepest = max(deepest, depth)
        calls += 1
        if calls < 200:
            wire.send(b"x" * (10 if calls % 2 else 50_000))
            wire.send_buffer.await_drain(feed)
        depth -= 1

    wire.fill()
    wire.send_buffer.await_drain(feed)
    assert calls == 0
    assert wire.read_all(lambda: calls < 200) == wire.sent
    assert deepest == 1


def test_broken_socket_never_raises(wire: Wire) -> None:
    """A connection that was reset accepts bytes like any other. The reactor detects the reset."""
    wire.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    wire.peer.close()
    for _ in range(10):
        assert wire.send_buffer.send(b"x" * 1000)
    assert wire.connection in wire.reactor.writers
    assert wire.connection.doWrite() is not None


def test_closed_send_buffer_drops(wire: Wire) -> None:
    """A closed send buffer accepts everything, sends nothing, and calls no callback."""
    wire.fill()
    wire.send_buffer.await_drain(wire.drain)
    wire.send_buffer.close()
    waiting = wire.send_buffer.waiting
    assert wire.send_buffer.send(b"x" * (2 * BOUND))
    assert wire.send_buffer.waiting == waiting
    assert wire.read_all() == wire.sent
    wire.reactor.turn()
    wire.send_buffer.await_drain(wire.drain)
    wire.reactor.turn()
    assert wire.drained == 0


def test_closed_before_the_call(wire: Wire) -> None:
    """Closing the send buffer cancels a callback that was scheduled for the next iteration."""
    wire.send_buffer.await_drain(wire.drain)
    wire.send_buffer.close()
    wire.reactor.turn()
    assert wire.drained == 0


def test_lost_connection_closes_it(wire: Wire) -> None:
    """When the connection is lost with bytes waiting, the callback is not called."""
    wire.fill()
    wire.send_buffer.await_drain(wire.drain)
    wire.connection.connectionLost(Failure(ConnectionDone()))
    assert wire.send_buffer.send(b"x")
    assert wire.drained == 0


# Any other transport


@pytest.fixture
def clock() -> Clock:
    """The clock of the transports in memory."""
    return Clock()


def send_buffer_on(clock: Clock) -> tuple[TransportSendBuffer, MemoryTransport]:
    """A send buffer on a transport in memory."""
    transport = MemoryTransport(clock, Protocol())
    send_buffer = open_send_buffer(transport, BOUND, lambda call: clock.callLater(0, call))
    assert isinstance(send_buffer, TransportSendBuffer)
    return send_buffer, transport


def test_fitting_send_buffer(wire: Wire) -> None:
    """Plain TCP gets the direct send buffer. TLS does not."""
    assert isinstance(open_send_buffer(wire.connection, BOUND, wire.reactor.soon), SocketSendBuffer)
    wire.connection.TLS, wire.connection.protocol = True, MemoryTransport(Clock(), Protocol())
    assert isinstance(open_send_buffer(wire.connection, BOUND, wire.reactor.soon), TransportSendBuffer)


def test_transport_send_buffer_is_bounded(clock: Clock) -> None:
    """After the transport pauses its producer, at most the bound is added until it drains, in however many pieces."""
    send_buffer, transport = send_buffer_on(clock)
    transport.stalled = True
    taken = 0
    while send_buffer.send(b"x" * 10_000):
        taken += 10_000
        assert taken < 10 * BOUND
    assert taken + 10_000 >= BOUND
    assert len(transport.waiting) <= BOUND + 64 * 1024 + 10_000
    transport.drain()
    assert send_buffer.send(b"x" * 10_000)


def test_transport_send_buffer_drain(clock: Clock) -> None:
    """The callback comes when the transport resumes, or in the next iteration if it never paused. It comes once."""
    send_buffer, transport = send_buffer_on(clock)
    calls: list[int] = []
    send_buffer.await_drain(lambda: calls.append(len(transport.waiting)))
    assert calls == []
    clock.advance(0)
    assert calls == [0]
    transport.stalled = True
    send_buffer.send(b"x" * 100_000)
    send_buffer.await_drain(lambda: calls.append(len(transport.waiting)))
    send_buffer.await_drain(lambda: calls.append(len(transport.waiting)))
    clock.advance(1)
    assert calls == [0]
    transport.drain()
    clock.advance(1)
    assert calls == [0, 0]


def test_transport_paused_before_the_call(clock: Clock) -> None:
    """If the transport fills up before the scheduled callback, the callback waits for the drain."""
    send_buffer, transport = send_buffer_on(clock)
    calls: list[int] = []
    send_buffer.await_drain(lambda: calls.append(1))
    transport.stalled = True
    send_buffer.send(b"x" * 100_000)
    clock.advance(0)
    assert calls == []
    transport.drain()
    assert calls == [1]


def test_transport_drain_is_never_reentrant(clock: Clock) -> None:
    """A caller that fills the transport again within the callback is called after the next drain."""
    send_buffer, transport = send_buffer_on(clock)
    transport.stalled = True
    depth: list[int] = [0, 0]

    def feed() -> None:
        depth[0] += 1
        depth[1] += 1
        assert depth[0] == 1
        if depth[1] < 5:
            send_buffer.send(b"x" * 100_000)
            send_buffer.await_drain(feed)
        depth[0] -= 1

    send_buffer.await_drain(feed)
    for _ in range(10):
        clock.advance(0)
        transport.drain()
    assert depth == [0, 5]


def test_transport_closed(clock: Clock) -> None:
    """A closed send buffer, or one with a lost connection, accepts everything, sends nothing, and calls no callback."""
    send_buffer, transport = send_buffer_on(clock)
    send_buffer.await_drain(lambda: pytest.fail("called"))
    transport.lose(ConnectionDone())
    assert send_buffer.send(b"x")
    send_buffer.await_drain(lambda: pytest.fail("called"))
    clock.advance(1)
    assert transport.received == b""
