"""What only the consumer itself can show: how it ends before its channel is open, what it keeps, and when it pauses the connection."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from pika import frame, spec
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock

from tests.kit.fake_amqp import FakeBroker, RecordingSink
from tests.kit.fakes import FakePeer
from tests.kit.rows import each_row
from towerws.broker import connection
from towerws.broker.connection import BrokerConnection
from towerws.broker.consumer import BATCH_DELIVERIES, Consumer, Scout
from towerws.broker.failures import ConnectionFailure
from towerws.broker.reader import ReadProgress
from towerws.broker.topology import Mode
from towerws.core.batch import PART_BYTES, WRITE_BYTES
from towerws.core.errors import BadDelivery
from towerws.core.history import History
from towerws.core.hub import Hub
from towerws.core.ingest import BATCH_BYTES, Ingest
from towerws.core.requests import Request
from towerws.core.settings import BrokerSettings, BrokerUrl, Secret
from towerws.core.wire import TOWER

SETTINGS = BrokerSettings(urls=(BrokerUrl("one", 5672, "towerws", Secret("canary"), "/", tls=False),))


class Owner:
    """The owner of the connection and of its consumer. It records what the consumer tells."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def connection_up(self) -> None:
        """Nothing to do."""

    def connection_open(self, server_properties: Mapping[str, Any]) -> None:
        """Nothing to do."""

    def connection_failed(self, failure: ConnectionFailure) -> None:
        """Nothing to do."""

    def connection_closed(self) -> None:
        """Nothing to do."""

    def consumer_ok(self) -> None:
        """Record it."""
        self.told.append("consumer ok")

    def consumer_unexpected(self, *_: object) -> None:
        """Record it."""
        self.told.append("unexpected")

    def consumer_marker(self, *_: object) -> None:
        """Record it."""
        self.told.append("marker")

    def consumer_failed(self, failure: ConnectionFailure) -> None:
        """Record it."""
        self.told.append(str(failure))


Make = Callable[[BrokerConnection, Owner, Clock], Consumer | Scout]


def consumer(connection: BrokerConnection, owner: Owner, clock: Clock) -> Consumer:
    """A consumer of a stream."""
    progress = ReadProgress(RecordingSink(), epoch="")
    return Consumer(connection, Mode.STREAM, lambda _: "s", "first", SETTINGS, progress, clock, owner)


def scout(connection: BrokerConnection, owner: Owner, _: Clock) -> Scout:
    """A scout of a stream."""
    return Scout(
        connection,
        "s",
        "first",
        max_body_bytes=0,
        ready=owner.consumer_ok,
        saw=owner.consumer_unexpected,
        failed=owner.consumer_failed,
    )


@each_row(
    ("answer", "methods"),
    [
        (spec.Channel.OpenOk(), ["Channel.Open", "Channel.Close"]),
        (spec.Channel.Close(504, "CHANNEL_ERROR", 0, 0), ["Channel.Open", "Channel.CloseOk"]),
        (None, ["Channel.Open"]),
    ],
    ids=["opens it", "closes it", "ends the connection"],
)
@each_row("make", [consumer, scout])
def test_a_channel_that_opens_too_late_is_closed(make: Make, answer: Any, methods: list[str]) -> None:
    """It does not stay open, nothing is consumed on it, and the owner is told nothing of it."""
    clock, owner = Clock(), Owner()
    broker = FakeBroker(clock)
    connection = BrokerConnection(SETTINGS.urls[0], SETTINGS, clock, owner)
    broker.connect(Factory.forProtocol(lambda: connection))
    broker.settle()
    broker.mute = spec.Channel.Open
    closed = make(connection, owner, clock)
    broker.settle()
    closed.close()
    closed.close()
    if answer is None:
        broker.cut()
    else:
        broker.peer.send(1, answer)
    broker.settle()
    assert [method.NAME for channel, method in broker.peer.methods if channel == 1] == methods
    assert owner.told == []
    connection.abort()
    broker.settle()
    assert clock.getDelayedCalls() == []


MIB = 1024**2


class StreamRig:
    """A consumer of a stream with the real ingest and hub, and a broker in memory. Offset 0 comes first."""

    def __init__(self, *, part_bytes: int = PART_BYTES, **settings: Any) -> None:
        self.clock = Clock()
        self.reports: list[BadDelivery] = []
        self.history = History(10**9, 10**9)
        self.hub = Hub(self.history, lambda call: self.clock.callLater(0, call), part_bytes=part_bytes)
        self.ingest = Ingest(
            self.history,
            self.hub,
            max_payload_bytes=MIB,
            clock=self.clock.seconds,
            wall_clock=self.clock.seconds,
            report=self.reports.append,
            new_epoch=lambda: "mark",
        )
        self.ingest.proven(True)
        self.ingest.caught_up()
        self.progress = ReadProgress(self.ingest, epoch="")
        owner = Owner()
        self.broker = FakeBroker(self.clock)
        self.connection = BrokerConnection(SETTINGS.urls[0], SETTINGS, self.clock, owner)
        self.broker.connect(Factory.forProtocol(lambda: self.connection))
        self.broker.settle()
        own = BrokerSettings(urls=SETTINGS.urls, **settings)
        self.consumer = Consumer(self.connection, Mode.STREAM, lambda _: "s", "first", own, self.progress, self.clock, owner)
        self.connection.on_read = self.consumer.end_read
        self.consumer.expected = 0
        self.broker.stream.silent.add("first")  # the tests send the deliveries themselves
        self.broker.settle()
        self.peer = self.broker.peer

    def join(self, topic: str) -> FakePeer:
        """Add a subscriber."""
        client = FakePeer()
        self.hub.subscribe(self.hub.join(client, TOWER), Request((topic,)))
        return client

    def read(self) -> None:
        """The connection reads everything that the broker has queued, at once. No turn of the reactor passes."""
        data, self.peer.to_send = self.peer.to_send, b""
        self.connection.dataReceived(data)

    def deliver_large(self, size: int, offset: int) -> None:
        """The connection reads a delivery of zeros, frame by frame."""
        tag = self.peer.tags[1] = self.peer.tags[1] + 1
        header = spec.BasicProperties(headers={"x-stream-offset": offset})
        self.peer.send(1, spec.Basic.Deliver("t", tag, False, "towerws", "jobs.x"))
        self.peer.to_send += frame.Header(1, size, header).marshal()
        self.read()
        part = frame.Body(1, bytes(min(size, 131064))).marshal()
        while size >= 131064:
            self.connection.dataReceived(part)
            size -= 131064
        if size:
            self.connection.dataReceived(frame.Body(1, bytes(size)).marshal())


def test_a_body_above_the_limit_is_not_kept() -> None:
    """A body that is larger than `max_payload_bytes` takes no memory. It is refused with its size, and counted and acknowledged."""
    rig = StreamRig(prefetch=2)
    client = rig.join("jobs.x")
    size = 64 * MIB
    tracemalloc.start()
    try:
        rig.deliver_large(size, 0)
        kept = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert kept < MIB
    assert [str(report) for report in rig.reports] == [f"{size} bytes on jobs.x: more than max_payload_bytes = {MIB}"]
    assert (rig.ingest.bad, rig.ingest.received) == ({"too_large": 1}, 1)
    assert (rig.progress.deliveries, rig.progress.received_bytes, rig.progress.acks) == (1, size, 1)
    rig.broker.settle()
    (acknowledged,) = rig.peer.seen(spec.Basic.Ack)
    assert acknowledged.delivery_tag == 1
    rig.peer.deliver(b'{"n":1}', 1)
    rig.broker.settle()
    assert client.take() == [b'{"n":1}']
    rig.connection.abort()


@each_row("deliveries", [BATCH_DELIVERIES, BATCH_DELIVERIES + 1, 2 * BATCH_DELIVERIES, 3 * BATCH_DELIVERIES + 1])
def test_the_connection_pauses_until_all_batches_of_a_read_are_written(deliveries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read may have several batches. Each one makes the hub write the rest of the one before, and that does not resume the connection.

    The size of the next read follows from the bytes of all of them.
    """
    rig = StreamRig(part_bytes=WRITE_BYTES, prefetch=65535)
    resume, resumed = rig.connection.resume, []

    def note(written: int) -> None:
        resumed.append((written, rig.peer.transport.paused))
        resume(written)

    monkeypatch.setattr(rig.connection, "resume", note)
    clients = [rig.join("jobs.x") for _ in range(3)]
    for offset in range(deliveries):
        rig.peer.deliver(b'{"n":%d}' % offset, offset, channel=1)
    rig.read()
    batches = -(-deliveries // BATCH_DELIVERIES)
    assert [len(client.writes) for client in clients] == [batches, batches - 1, batches - 1]
    assert resumed == []
    rig.clock.advance(0)
    assert resumed == [(rig.hub.counters.bytes_out, True)]
    assert not rig.peer.transport.paused
    assert [len(client.take()) for client in clients] == [deliveries] * 3
    rig.connection.abort()


def test_a_large_event_is_written_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A payload above `BATCH_BYTES` is flushed before the read ends. The end of the read does not write the rest of it at once."""
    rig = StreamRig(part_bytes=WRITE_BYTES)
    clients = [rig.join("jobs.x") for _ in range(3)]
    body = b'{"a": "%b"}' % (b"x" * BATCH_BYTES)
    rig.peer.deliver(body, 0, channel=1)
    monkeypatch.setattr(connection, "_LONGEST_FRAME", 2 * BATCH_BYTES)  # the broker in memory sends each body in one frame
    rig.read()
    assert [len(client.writes) for client in clients] == [1, 0, 0]
    paused = [rig.peer.transport.paused]
    rig.clock.advance(0)
    assert [client.take() for client in clients] == [[body]] * 3
    paused.append(rig.peer.transport.paused)
    assert paused == [True, False]
    rig.connection.abort()
