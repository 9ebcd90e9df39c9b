"""A RabbitMQ in memory that a test controls: built from pika's frame classes, driven by a `Clock`.

Bytes travel only in `FakeBroker.settle`. So no call re-enters another one, as on a real network.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from pika import frame, spec
from twisted.internet import error
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from towerws.core.deliveries import MARKER_TOPIC, Marker
from towerws.core.measurements import PublishedAt
from towerws.core.sources import Sink


class RecordingSink:
    """A `Sink` that records every call. It knows the deliveries that it got, as the real one does."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.held: dict[int, tuple[str, bytes]] = {}
        self.batches = 0
        self.published: list[PublishedAt | None] = []
        """When the first message of each batch was published."""
        self.confirmed_markers: list[str] = []
        self.marker_follows: list[bool] = []
        """For each hole: whether a marker will tell of it again."""
        self.broken = self.broken_batches = False
        self.holding = False
        self.writing: list[Callable[[int], None]] = []
        self.history_complete = False
        self.waiting = 0
        self.max_payload_bytes = 1024**2
        self.is_proven = False
        self.on_position_asked: Callable[[], None] = lambda: None

    @property
    def newest(self) -> int | None:
        """Return the newest offset."""
        return max(self.held, default=None)

    @property
    def oldest(self) -> int | None:
        """Return the oldest offset."""
        return min(self.held, default=None)

    def begin(self, log: str) -> None:
        """Record the call."""
        self.calls.append(("begin", log))

    def continue_log(self, log: str, floor: int) -> None:
        """Record the call."""
        self.calls.append(("continue_log", log, floor))

    def caught_up(self, *, replay: bool = False) -> None:
        """Record the first call."""
        if not self.history_complete:
            self.history_complete = True
            self.calls.append(("caught_up", "replay") if replay else ("caught_up",))

    def deliver(self, routing_key: str, body: bytes, offset: int, message_id: str | None) -> None:
        """Record and keep the delivery."""
        if self.broken:
            raise RuntimeError("a sink that breaks its promise")
        self.calls.append(("deliver", routing_key, body, offset, message_id))
        self.held[offset] = routing_key, body

    def marker(self, marker: Marker, body: bytes, offset: int, message_id: str | None, *, through_exchange: bool) -> None:
        """Keep the marker. Record it only if it tells of a hole."""
        self.held[offset] = MARKER_TOPIC, body
        if marker.hole is not None:
            self.calls.append(("hole_told", marker.hole))

    def end_batch(self, on_written: Callable[[int], None], published: PublishedAt | None = None) -> None:
        """Count the batch. Everything is written at once, unless the test holds it up."""
        self.batches += 1
        self.published.append(published)
        if self.broken_batches:
            raise RuntimeError("a sink that breaks its promise")
        if self.holding:
            self.writing.append(on_written)
        else:
            on_written(0)

    def gap(self, reason: str) -> None:
        """Record the call."""
        self.calls.append(("gap", reason))

    def compare(self, routing_key: str, body: bytes, offset: int) -> bool | None:
        """Compare with the deliveries that were kept."""
        held = self.held.get(offset)
        return None if held is None else held[1] == body and held[0] in {routing_key, MARKER_TOPIC}

    def hole(
        self, routing_key: str, body: bytes, offset: int, message_id: str | None, reason: str, *, marker_follows: bool = False
    ) -> None:
        """Record the call."""
        self.marker_follows.append(marker_follows)
        self.calls.append(("hole", offset))

    def rewind(self, offset: int | None) -> None:
        """Record the call, and forget later deliveries."""
        self.calls.append(("rewind", offset))
        self.held = {} if offset is None else {at: what for at, what in self.held.items() if at <= offset}

    def restart(self) -> None:
        """Record the call, and forget all deliveries."""
        self.calls.append(("restart",))
        self.held.clear()

    def proven(self, proven: bool) -> None:
        """Keep the value."""
        self.is_proven = proven

    def marker_sent(self, text: str) -> None:
        """No client waits here."""

    def marker_confirmed(self, text: str) -> None:
        """Keep the text."""
        self.confirmed_markers.append(text)

    @property
    def offsets(self) -> list[int]:
        """Return the delivered offsets, in order."""
        return [call[3] for call in self.calls if call[0] == "deliver" and isinstance(call[3], int)]

    def named(self, name: str) -> list[tuple[object, ...]]:
        """Return the calls with one name."""
        return [call for call in self.calls if call[0] == name]


_: type[Sink] = RecordingSink


class FakeTransport:
    """One end of a TCP connection. A black hole does not close, unless it is aborted."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.aborted = False
        self.losing = False
        self.paused = False

    def pauseProducing(self) -> None:
        """Read nothing for now."""
        self.paused = True

    def resumeProducing(self) -> None:
        """Read on."""
        self.paused = False

    def write(self, data: bytes) -> None:
        """Queue bytes for the peer."""
        self.peer.sent_to_us += data

    def loseConnection(self) -> None:
        """Wait for a flush that never comes, as Twisted does with a dead peer."""
        self.losing = True

    def abortConnection(self) -> None:
        """Close at once."""
        if not self.aborted:
            self.aborted = True
            self.peer.broker.clock.callLater(0, self.peer.protocol.connectionLost, Failure(error.ConnectionAborted()))


class Publication:
    """A published message: the method, and the content as far as it has arrived."""

    def __init__(self, channel: int, method: Any, number: int) -> None:
        self.channel, self.method, self.number = channel, method, number
        self.properties: Any = None
        self.size = 0
        self.body = b""

    @property
    def whole(self) -> bool:
        """Whether the message is complete."""
        return self.properties is not None and len(self.body) >= self.size


class Peer:
    """The broker's side of one connection."""

    def __init__(self, broker: FakeBroker, protocol: Any) -> None:
        self.broker = broker
        self.protocol = protocol
        self.transport = FakeTransport(self)
        self.sent_to_us = b""
        self.to_send = b""
        self.buffer = b""
        self.methods: list[tuple[int, Any]] = []
        self.published: list[Publication] = []
        self.consumers: dict[int, str] = {}
        self.tags: dict[int, int] = {}

    @property
    def channel(self) -> int:
        """Return the channel of the newest consumer."""
        return next(reversed(self.consumers))

    def seen(self, kind: type) -> list[Any]:
        """Return the received methods of one class, in order."""
        return [method for _, method in self.methods if isinstance(method, kind)]

    def send(self, channel: int, method: Any) -> None:
        """Queue a method frame."""
        self.to_send += frame.Method(channel, method).marshal()

    def deliver(
        self, body: bytes, offset: int | None = None, *, channel: int | None = None, key: str = "jobs.x", **properties: Any
    ) -> None:
        """Queue a delivery to the consumer of a channel (default: the newest one)."""
        headers = {} if offset is None else {"x-stream-offset": offset}
        header = frame.Header(0, len(body), spec.BasicProperties(headers=headers, **properties)).marshal()
        self.deliver_raw(header[19:-1], body, channel=channel, key=key.encode())

    def deliver_raw(self, properties: bytes, body: bytes, *, channel: int | None = None, key: bytes = b"jobs.x") -> None:
        """Queue a delivery whose property flags and list are given as bytes."""
        channel = self.channel if channel is None else channel
        tag = self.tags[channel] = self.tags.get(channel, 0) + 1
        self.to_send += frame.Method(channel, spec.Basic.Deliver(self.consumers[channel], tag, False, "towerws", key)).marshal()
        payload = struct.pack(">HHQ", 60, 0, len(body)) + properties
        self.to_send += struct.pack(">BHI", 2, channel, len(payload)) + payload + b"\xce"
        if body:
            self.to_send += frame.Body(channel, body).marshal()

    def receive(self) -> None:
        """Handle what arrived."""
        self.buffer += self.sent_to_us
        self.sent_to_us = b""
        while self.buffer:
            size, value = frame.decode_frame(self.buffer)
            if value is None:
                return
            self.buffer = self.buffer[size:]
            if isinstance(value, frame.ProtocolHeader):
                self.broker.answer(self, 0, value)
            elif isinstance(value, frame.Method):
                self.methods.append((value.channel_number, value.method))
                if isinstance(value.method, spec.Basic.Publish):
                    self.published.append(Publication(value.channel_number, value.method, len(self.published) + 1))
                else:
                    self.broker.answer(self, value.channel_number, value.method)
            elif isinstance(value, (frame.Header, frame.Body)):
                self.receive_content(value)

    def receive_content(self, value: Any) -> None:
        """Add a piece of a message that is being published. `FakeBroker.confirm` answers the complete message."""
        publication = self.published[-1]
        if isinstance(value, frame.Header):
            publication.properties, publication.size = value.properties, value.body_size
        else:
            publication.body += value.fragment
        if publication.whole:
            self.broker.confirm(self, publication)

    def give_back(self, publication: Publication) -> None:
        """Queue a Basic.Return: no queue was bound for the message."""
        exchange, key = publication.method.exchange, publication.method.routing_key
        self.send(publication.channel, spec.Basic.Return(312, "NO_ROUTE", exchange, key))
        self.to_send += frame.Header(publication.channel, len(publication.body), publication.properties).marshal()
        self.to_send += frame.Body(publication.channel, publication.body).marshal()


class Entry(NamedTuple):
    """A message of the stream."""

    offset: int
    key: str
    body: bytes
    message_id: str | None


@dataclass
class Reader:
    """A consumer of the stream. `next` is the offset that it waits for. None: it waits for the next message written."""

    peer: Peer
    channel: int
    next: int


class FakeStream:
    """The stream behind a broker, or behind several: entries with their offsets, and where each consumer begins.

    It begins as RabbitMQ does (3.10 and 4.0, by experiment). An offset in the stream is that message. One beyond the end waits.
    `first` is the oldest message left, `next` the next one written. If a consumer begins before an offset of `unreadable`, the broker
    delivers nothing, and ends the connection.
    """

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.next = 0
        self.exists = True
        self.bound = True
        self.unreadable: set[int] = set()
        self.clock_is_wrong = False
        """An interval delivers no message that was written before."""
        self.young: dict[str, int] = {}
        """For each interval, the offset of the oldest entry that is young enough, if that is not the first."""
        self.silent: set[str] = set()
        """Starts, as text, that get no delivery: the broker's answer is on its way."""

    def write(self, body: bytes, key: str = "jobs.x", message_id: str | None = None) -> int:
        """Append a message, and return its offset."""
        self.entries.append(Entry(self.next, key, body, message_id))
        self.next += 1
        return self.next - 1

    def skip(self, offsets: int = 1) -> None:
        """Append internal entries. They take offsets that no message has."""
        self.next += offsets

    def trim(self, first: int) -> None:
        """Retention: delete everything before this offset."""
        self.entries = [entry for entry in self.entries if entry.offset >= first]

    def cut(self, last: int) -> None:
        """A power failure: everything after this offset is lost, and its offsets are used again."""
        self.entries = [entry for entry in self.entries if entry.offset <= last]
        self.next = last + 1

    def start(self, asked: object) -> int:
        """Return the offset where a consumer with this start begins."""
        if asked == "first":
            return 0
        if isinstance(asked, int):
            return asked
        if asked in (None, "next") or self.clock_is_wrong:
            return self.next
        return self.young.get(str(asked), 0)  # an interval


@implementer(IStreamClientEndpoint)
class FakeBroker:
    """Answers every method as RabbitMQ does, except those that a test overrides in `answers` or mutes with `mute`.

    `stream` has the messages. `refuse` makes it refuse TCP, `connecting` makes it keep silent.
    """

    def __init__(self, clock: Clock, version: str = "3.10.8") -> None:
        self.clock = clock
        self.version = version
        self.peers: list[Peer] = []
        self.mute: type | None = None
        self.answers: dict[type, Callable[[Peer, int, Any], None]] = {}
        self.confirm: Callable[[Peer, Publication], None] = self.route
        self.refuse = False
        self.connecting: list[Deferred[IProtocol]] | None = None
        self.factory: IProtocolFactory | None = None
        self.stream = FakeStream()
        self.readers: list[Reader] = []
        self.exchange_exists = True
        self.may_publish = True
        self.swallow = False
        """Markers vanish on their way, without an answer."""
        self.attempts = 0

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """IStreamClientEndpoint."""
        self.attempts += 1
        self.factory = protocolFactory
        if self.refuse:
            return fail(error.ConnectionRefusedError())
        if self.connecting is not None:
            waiting: Deferred[IProtocol] = Deferred()
            self.connecting.append(waiting)
            return waiting
        fired: Deferred[IProtocol] = Deferred()
        fired.callback(self.accept())
        return fired

    def accept(self) -> Any:
        """Open a new TCP connection to our protocol."""
        assert self.factory is not None
        protocol = self.factory.buildProtocol(None)  # type: ignore[arg-type]  # no address in memory
        peer = Peer(self, protocol)
        self.peers.append(peer)
        protocol.makeConnection(peer.transport)  # type: ignore[union-attr, arg-type]
        return protocol

    @property
    def peer(self) -> Peer:
        """Return the newest connection."""
        return self.peers[-1]

    @property
    def markers(self) -> list[Publication]:
        """Return all published markers, in order."""
        return [publication for peer in self.peers for publication in peer.published]

    def settle(self) -> bool:
        """Let bytes travel until nothing moves, without letting time pass. Returns whether anything moved."""
        moved = False
        moving = True
        while moving:
            moving = self.serve()
            moved = moved or moving
            self.clock.advance(0)
            for peer in self.peers:
                if peer.sent_to_us:
                    moving = moved = True
                    peer.receive()
                if peer.to_send and not peer.transport.aborted:
                    moving = moved = True
                    data, peer.to_send = peer.to_send, b""
                    peer.protocol.dataReceived(data)
        return moved

    def serve(self) -> bool:
        """Deliver to the consumers of the stream. Returns whether there was anything to deliver."""
        served = False
        for reader in list(self.readers):
            if reader.peer.transport.aborted or reader.channel not in reader.peer.consumers:
                self.readers.remove(reader)
                continue
            if any(reader.next <= unreadable < self.stream.next for unreadable in self.stream.unreadable):
                self.readers.remove(reader)
                reader.peer.send(0, spec.Connection.Close(541, "INTERNAL_ERROR", 0, 0))
                continue
            for entry in self.stream.entries:
                if entry.offset < reader.next:
                    continue
                served = True
                reader.next = entry.offset + 1
                reader.peer.deliver(entry.body, entry.offset, channel=reader.channel, key=entry.key, message_id=entry.message_id)
        return served

    def write(self, *bodies: bytes, key: str = "jobs.x", message_id: str | None = None) -> None:
        """A producer publishes these bodies, and they are delivered."""
        for body in bodies:
            self.stream.write(body, key, message_id)
        self.settle()

    def delete_stream(self) -> None:
        """Delete the stream with its bindings, and cancel its consumers."""
        self.stream.exists = self.stream.bound = False
        self.stream.entries, self.stream.next = [], 0
        for reader in self.readers:
            if not reader.peer.transport.aborted and (tag := reader.peer.consumers.pop(reader.channel, None)):
                reader.peer.send(reader.channel, spec.Basic.Cancel(tag))
        self.readers.clear()

    def route(self, peer: Peer, publication: Publication) -> None:
        """A `confirm`: put the message into the stream, return it, or refuse it."""
        if self.swallow:
            return
        method = publication.method
        if not self.may_publish:
            peer.send(publication.channel, spec.Channel.Close(403, "ACCESS_REFUSED - write access refused", 60, 40))
        elif method.exchange and not self.exchange_exists:
            peer.send(publication.channel, spec.Channel.Close(404, f"NOT_FOUND - no exchange '{method.exchange}' in vhost '/'", 60, 40))
        else:
            if self.stream.exists and (self.stream.bound or not method.exchange):
                self.stream.write(publication.body, method.routing_key, publication.properties.message_id)
            else:
                peer.give_back(publication)
            ack(peer, publication)

    def cut(self) -> None:
        """The peer resets the newest connection."""
        self.peer.transport.aborted = True
        self.peer.protocol.connectionLost(Failure(error.ConnectionLost()))

    def answer(self, peer: Peer, channel: int, method: Any) -> None:
        """Do what RabbitMQ does with this method."""
        if self.mute is not None and isinstance(method, self.mute):
            return
        if override := self.answers.get(type(method)):
            override(peer, channel, method)
        elif reply := _REPLIES.get(type(method)):
            reply(self, peer, channel, method)

    def close_connection(self, code: int, text: str) -> Callable[[Peer, int, Any], None]:
        """An answer for `answers`: close the whole connection."""
        return lambda peer, channel, method: peer.send(0, spec.Connection.Close(code, text, 0, 0))

    def close_channel(self, code: int, text: str) -> Callable[[Peer, int, Any], None]:
        """An answer for `answers`: close the channel."""
        return lambda peer, channel, method: peer.send(channel, spec.Channel.Close(code, text, 0, 0))

    def hello(self, peer: Peer, _: int, __: Any) -> None:
        """Connection.Start."""
        capabilities = {"publisher_confirms": True, "basic.nack": True, "consumer_cancel_notify": True}
        properties = {"product": "RabbitMQ", "version": self.version, "capabilities": capabilities}
        peer.send(0, spec.Connection.Start(0, 9, properties, "PLAIN AMQPLAIN", "en_US"))

    def channel_close(self, peer: Peer, channel: int, _: Any) -> None:
        """Channel.CloseOk, and the end of its consumer."""
        peer.consumers.pop(channel, None)
        peer.send(channel, spec.Channel.CloseOk())

    def queue_declare(self, peer: Peer, channel: int, method: Any) -> None:
        """Queue.DeclareOk, or 404 for a passive declaration of a missing queue."""
        if method.queue and not self.stream.exists:
            if method.passive:
                peer.send(channel, spec.Channel.Close(404, f"NOT_FOUND - no queue '{method.queue}' in vhost '/'", 50, 10))
                return
            self.stream.exists = True
        peer.send(channel, spec.Queue.DeclareOk(method.queue or "amq.gen-x", 0, 0))

    def exchange_declare(self, peer: Peer, channel: int, method: Any) -> None:
        """Exchange.DeclareOk, or 404 for a passive declaration of a missing exchange."""
        if not self.exchange_exists and method.passive:
            peer.send(channel, spec.Channel.Close(404, f"NOT_FOUND - no exchange '{method.exchange}' in vhost '/'", 40, 10))
            return
        self.exchange_exists = True
        peer.send(channel, spec.Exchange.DeclareOk())

    def queue_bind(self, peer: Peer, channel: int, method: Any) -> None:
        """Queue.BindOk."""
        self.stream.bound = True
        peer.send(channel, spec.Queue.BindOk())

    def consume(self, peer: Peer, channel: int, method: Any) -> None:
        """Basic.ConsumeOk, and the deliveries from there on."""
        if method.queue and not self.stream.exists:
            peer.send(channel, spec.Channel.Close(404, f"NOT_FOUND - no queue '{method.queue}' in vhost '/'", 60, 20))
            return
        peer.consumers.pop(channel, None)
        peer.consumers[channel] = method.consumer_tag
        peer.tags[channel] = 0
        peer.send(channel, spec.Basic.ConsumeOk(method.consumer_tag))
        start = method.arguments.get("x-stream-offset")
        if method.queue and str(start) not in self.stream.silent:
            self.readers.append(Reader(peer, channel, self.stream.start(start)))


def ack(peer: Peer, publication: Publication) -> None:
    """A `FakeBroker.confirm`: every queue has the message."""
    peer.send(publication.channel, spec.Basic.Ack(publication.number))


def nack(peer: Peer, publication: Publication) -> None:
    """A `FakeBroker.confirm`: a queue refused the message."""
    peer.send(publication.channel, spec.Basic.Nack(publication.number))


def _tune(_broker: FakeBroker, peer: Peer, _channel: int, _method: Any) -> None:
    peer.send(0, spec.Connection.Tune(2047, 131072, 60))


def _ok(reply: Callable[[], Any]) -> Callable[[FakeBroker, Peer, int, Any], None]:
    return lambda _broker, peer, channel, _method: peer.send(channel, reply())


_REPLIES: dict[type, Callable[[FakeBroker, Peer, int, Any], None]] = {
    frame.ProtocolHeader: FakeBroker.hello,
    spec.Connection.StartOk: _tune,
    spec.Connection.Open: _ok(spec.Connection.OpenOk),
    spec.Connection.Close: _ok(spec.Connection.CloseOk),
    spec.Channel.Open: _ok(spec.Channel.OpenOk),
    spec.Channel.Close: FakeBroker.channel_close,
    spec.Exchange.Declare: FakeBroker.exchange_declare,
    spec.Queue.Declare: FakeBroker.queue_declare,
    spec.Queue.Bind: FakeBroker.queue_bind,
    spec.Basic.Qos: _ok(spec.Basic.QosOk),
    spec.Confirm.Select: _ok(spec.Confirm.SelectOk),
    spec.Basic.Consume: FakeBroker.consume,
}
