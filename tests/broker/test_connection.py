"""What only the connection itself can show. What it uses of pika's insides is in tests/insides."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from pika import frame, spec
from twisted.internet.interfaces import ITCPTransport
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from zope.interface import implementer

from tests.kit.rows import each_row
from towerws.broker.connection import BrokerConnection, quiet_pika
from towerws.broker.content import Content
from towerws.broker.failures import ConnectionFailure
from towerws.core.settings import BrokerSettings, BrokerUrl, Secret

KIB, MIB = 1024, 1024**2


class Events:
    """Records what a connection tells."""

    def __init__(self) -> None:
        self.told: list[object] = []
        self.on_read: Callable[[], object] = lambda: None

    def connection_up(self) -> None:
        """Record the call."""
        self.told.append("up")

    def connection_open(self, server_properties: Mapping[str, Any]) -> None:
        """Record the call."""
        self.told.append(("open", server_properties["version"]))

    def read(self) -> None:
        """Record the call."""
        self.told.append("read")
        self.on_read()

    def connection_failed(self, failure: ConnectionFailure) -> None:
        """Record the failure."""
        self.told.append(failure)

    def connection_closed(self) -> None:
        """Record the call."""
        self.told.append("gone")


@implementer(ITCPTransport)
class TcpTransport(StringTransport):  # type: ignore[misc]
    """A transport that provides TCP's interface, so its reads have a size."""

    bufferSize = 65536

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Nothing to do here."""


def opened(*, tls: bool = False, **settings: Any) -> tuple[BrokerConnection, Events, TcpTransport, Clock]:
    """Return a connection with the handshake done. With `tls` the returned transport is the one below TLS."""
    clock, events, transport = Clock(), Events(), TcpTransport()
    connection = BrokerConnection(
        BrokerUrl("h", 1, "u", Secret("canary"), "/", tls=tls), BrokerSettings(urls=(), **settings), clock, events
    )
    connection.on_read = events.read
    if tls:
        wrapper = ProtocolWrapper(WrappingFactory(Factory()), connection)
        wrapper.makeConnection(transport)
    else:
        connection.makeConnection(transport)
    connection.dataReceived(frame.Method(0, spec.Connection.Start(0, 9, {"version": "3.10.8"}, "PLAIN", "en_US")).marshal())
    connection.dataReceived(frame.Method(0, spec.Connection.Tune(2047, 131072, 60)).marshal())
    connection.dataReceived(frame.Method(0, spec.Connection.OpenOk()).marshal())
    clock.advance(0)
    return connection, events, transport, clock


@each_row(
    ("read", "written", "then"),
    [
        (256 * KIB, 256 * KIB, 256 * KIB),
        (256 * KIB, 512 * MIB, 256 * KIB),
        (256 * KIB, 1024 * MIB, 128 * KIB),
        (64 * KIB, 1024 * MIB, 32 * KIB),
        (256 * KIB, 256 * 10_000 * MIB, 16 * KIB),
        (256 * KIB, 0, 65536),
        (1 * KIB, 1, 256 * KIB),
    ],
)
def test_a_read_is_as_large_as_what_is_written_for_it_allows(read: int, written: int, then: int) -> None:
    """A read for which more than 512 MiB go to clients is followed by a smaller one. Other reads have 256 KiB."""
    connection, events, transport, _ = opened()
    events.on_read = lambda: connection.resume(written)
    connection.dataReceived(b"\x08\0\0\0\0\0\0\xce" * (read // 8))
    assert transport.bufferSize == then
    connection.abort()


RECORD = b"\x08\0\0\0\0\0\0\xce" * (16 * KIB // 8)
"""What TLS passes on at once: a record has at most 16 KiB (RFC 8446 section 5.1). These are heartbeats."""


def test_with_tls_a_read_has_many_records() -> None:
    """The records that TLS passes on in one turn of the reactor are one read: one `on_read`, and the size of all of them together."""
    connection, events, transport, clock = opened(tls=True)
    events.told.clear()
    events.on_read = lambda: connection.resume(1024 * MIB)
    for size in (64 * KIB, 128 * KIB):
        for _ in range(size // len(RECORD)):
            connection.dataReceived(RECORD)
        assert not events.told
        clock.advance(0)
        assert events.told == ["read"]
        assert transport.bufferSize == size // 2
        events.told.clear()
    connection.abort()
    assert not clock.getDelayedCalls()


def test_with_tls_nothing_comes_between_the_messages_of_a_read_and_its_end() -> None:
    """A client that subscribed in between would miss a message that its position includes."""
    connection, events, _, clock = opened(tls=True)
    connection.open_channel(lambda _: None, lambda _tag, _key, _content, body: events.told.append(body), max_body_bytes=KIB)
    connection.dataReceived(frame.Method(1, spec.Channel.OpenOk()).marshal())
    clock.advance(0)
    events.told.clear()
    for body in (b"one", b"two"):
        for part in (
            frame.Method(1, spec.Basic.Deliver("t", 9, False, "x", "jobs.x")),
            frame.Header(1, len(body), spec.BasicProperties()),
            frame.Body(1, body),
        ):
            connection.dataReceived(part.marshal())
    assert not events.told
    clock.advance(0)
    assert events.told == [b"one", b"two", "read"]
    connection.abort()


def test_with_tls_the_last_records_count() -> None:
    """They are read before the end is told. After an abort nothing is read."""
    connection, events, _, clock = opened(tls=True)
    events.told.clear()
    connection.dataReceived(RECORD)
    connection.connectionLost()
    assert [told if isinstance(told, str) else type(told).__name__ for told in events.told] == ["read", "ConnectionFailure", "gone"]
    connection, events, _, clock = opened(tls=True)
    events.told.clear()
    connection.dataReceived(RECORD)
    connection.abort()
    assert not clock.getDelayedCalls()
    connection.connectionLost()
    assert events.told == ["gone"]


def test_a_paused_connection_reads_nothing() -> None:
    """Pausing twice is pausing once. Resuming a connection that is not paused, or that ended, does nothing."""
    connection, _, transport, _ = opened()
    connection.pause()
    connection.pause()
    assert transport.producerState == "paused"
    connection.resume(1)
    connection.resume(1)
    assert transport.producerState == "producing"
    connection.pause()
    connection.abort()
    connection.resume(1)
    assert transport.producerState == "paused"


def test_a_pause_has_a_deadline() -> None:
    """A pause that ends in time counts as if something had been received. Another one ends the connection, with the reason."""
    connection, events, _, clock = opened(silence_s=20, heartbeat_s=60)
    connection.pause()
    clock.advance(15)
    connection.resume(1)
    clock.advance(15)
    assert not any(isinstance(told, ConnectionFailure) for told in events.told)
    connection.dataReceived(b"\x08\0\0\0\0\0\0\xce")
    connection.pause()
    for _ in range(21):
        clock.advance(1)
    assert "nothing read for 20 s, since a batch was still being written" in str(events.told[-1])


def test_client_properties_of_the_handshake() -> None:
    """The broker's operator sees product, version, host and process. Heartbeats are as configured."""
    _, events, transport, clock = opened(heartbeat_s=6, silence_s=60)
    assert events.told[:2] == ["up", "read"]
    sent = transport.value()
    assert sent.startswith(b"AMQP\x00\x00\x09\x01")
    _, start_ok = frame.decode_frame(sent[8:])
    assert isinstance(start_ok, frame.Method)
    properties = start_ok.method.client_properties
    assert properties["product"] == "towerws"
    assert properties["connection_name"].startswith("towerws@")
    assert properties["capabilities"]["consumer_cancel_notify"]
    transport.clear()
    clock.pump([1] * 4)
    assert transport.value() == frame.Heartbeat().marshal()


def test_frames_cut_anywhere() -> None:
    """A delivery that arrives byte by byte is the same delivery."""
    connection, events, _, _ = opened()
    got: list[tuple[int, str, int | None, bytes]] = []

    def on_delivery(tag: int, key: str, content: Content, body: bytes) -> None:
        got.append((tag, key, content.offset, body))

    connection.open_channel(lambda _: None, on_delivery, max_body_bytes=KIB)
    data = b"".join(
        part.marshal()
        for part in (
            frame.Method(1, spec.Channel.OpenOk()),
            frame.Method(1, spec.Basic.Deliver("t", 9, False, "x", "jobs.x")),
            frame.Header(1, 5, spec.BasicProperties(headers={"x-stream-offset": 3})),
            frame.Body(1, b"ab"),
            frame.Body(1, b"cde"),
        )
    )
    for at in range(len(data)):
        connection.dataReceived(data[at : at + 1])
    assert got == [(9, "jobs.x", 3, b"abcde")]
    assert not any(isinstance(told, ConnectionFailure) for told in events.told)


@each_row(
    ("parts", "kept"),
    [
        ((60, 40), True),
        ((60, 41), False),
        ((60, 40, 1), False),
        ((101,), True),
        ((1,) * 100, True),
        ((1,) * 101, False),
        ((), True),
    ],
)
@each_row("method", [spec.Basic.Deliver("t", 9, False, "x", "jobs.x"), spec.Basic.Return(312, "NO_ROUTE", "x", "jobs.x")])
def test_a_body_larger_than_the_channel_keeps(parts: tuple[int, ...], kept: bool, method: Any) -> None:
    """Its size is told and its bytes are not. A body in one frame is in memory already. The next message is whole again."""
    connection, _, _, _ = opened()
    got: list[tuple[int, bytes]] = []
    connection.open_channel(lambda _: None, lambda _tag, _key, _content, body: got.append((len(body), bytes(body))), max_body_bytes=100)
    connection.dataReceived(frame.Method(1, spec.Channel.OpenOk()).marshal())
    size = sum(parts)
    for sizes in (parts, (30, 30)):
        connection.dataReceived(frame.Method(1, method).marshal())
        connection.dataReceived(frame.Header(1, sum(sizes), spec.BasicProperties()).marshal())
        for part in sizes:
            connection.dataReceived(frame.Body(1, b"x" * part).marshal())
    assert got == [(size, b"x" * size if kept else b"%d" % size), (60, b"x" * 60)]
    connection.abort()


def test_a_body_that_does_not_come_to_its_end() -> None:
    """A header may announce 2^64 bytes. Then nothing is kept either. A body that is not whole when the next one begins is dropped."""
    connection, events, _, _ = opened()
    got: list[bytes] = []
    connection.open_channel(lambda _: None, lambda _tag, _key, _content, body: got.append(body), max_body_bytes=100)
    for size in (2**64 - 1, 4):
        connection.dataReceived(frame.Header(1, size, spec.BasicProperties()).marshal())
        connection.dataReceived(frame.Body(1, b"ab").marshal() * 2)
    assert got == [b"abab"]
    assert not any(isinstance(told, ConnectionFailure) for told in events.told)
    connection.abort()


@each_row(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"AMQP\x00\x00\x09\x01",
        frame.Heartbeat().marshal()[:-1] + b"\x00",
        b"\x09\x00\x00\x00\x00\x00\x00\xce",
        b"\x01\x00\x01\x00\x00\x00\x04\xff\xff\xff\xff\xce",
    ],
)
def test_bytes_that_are_not_amqp_end_the_connection(data: bytes) -> None:
    """Bytes that are not AMQP end this connection with one reason, and dataReceived raises nothing."""
    connection, events, transport, clock = opened()
    connection.dataReceived(data)
    assert transport.disconnecting
    failures = [told for told in events.told if isinstance(told, ConnectionFailure)]
    assert len(failures) == 1
    told = len(events.told)
    connection.dataReceived(frame.Heartbeat().marshal())
    assert len(events.told) == told
    assert clock.getDelayedCalls() == []


@each_row(("size", "parts"), [(1, [b"ab"]), (3, [b"ab", b"cd"])])
@each_row("limit", [KIB, 0])
def test_a_body_too_long_ends_the_connection(size: int, parts: list[bytes], limit: int) -> None:
    """A body that is longer than its header says is an error of the peer, also if nothing of it is kept."""
    connection, events, _, _ = opened()
    connection.open_channel(lambda _: None, lambda *_: None, max_body_bytes=limit)
    connection.dataReceived(frame.Header(1, size, spec.BasicProperties()).marshal())
    connection.dataReceived(b"".join(frame.Body(1, part).marshal() for part in parts))
    assert "a body is longer than its header says" in str(events.told[-1])


def test_frames_on_a_closed_channel_are_ignored() -> None:
    """Frames on a channel that is not open change nothing."""
    connection, events, _, _ = opened()
    data = frame.Method(7, spec.Basic.Deliver("t", 1, False, "x", "k")).marshal()
    connection.dataReceived(data + frame.Header(7, 1, spec.BasicProperties()).marshal() + frame.Body(7, b"a").marshal())
    assert events.told[-1] == "read"


def test_pika_logs_nothing_below_warning() -> None:
    """Frames and bodies, which pika logs at DEBUG and INFO, stay out of every log."""
    quiet_pika()
    assert logging.getLogger("pika.connection").getEffectiveLevel() >= logging.WARNING
