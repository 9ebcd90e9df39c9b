"""A RabbitMQ that does what a test says, in memory: built from pika's frame classes, driven by a `Clock`.

Bytes travel when the test lets them (`FakeBroker.settle`), so nothing re-enters anything, as on a real network.
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
from towerws.core.sources import Sink


class RecordingSink:
    """A `Sink` that writes down every call; it knows what it was handed as the real one does."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.held: dict[int, tuple[str, bytes]] = {}
        self.batches = 0
        self.broken = self.broken_batches = False
        self.holding = False
        self.writing: list[Callable[[int], None]] = []
        self.history_complete = False
        self.waiting = 0
        self.is_proven = False
        self.on_position_asked: Callable[[], None] = lambda: None

    @property
    def newest(self) -> int | None:
        """The newest offset."""
        return max(self.held, default=None)

    @property
    def oldest(self) -> int | None:
        """The oldest offset."""
        return min(self.held, default=None)

    def begin(self, log: str) -> None:
        """Written down."""
        self.calls.append(("begin", log))

    def caught_up(self, *, replay: bool = False) -> None:
        """Written down, the first time."""
        if not self.history_complete:
            self.history_complete = True
            self.calls.append(("caught_up", "replay") if replay else ("caught_up",))

    def deliver(self, routing_key: str, body: bytes, offset: int, message_id: str | None) -> None:
        """Written down, and kept."""
        if self.broken:
            raise RuntimeError("a sink that breaks its promise")
        self.calls.append(("deliver", routing_key, body, offset, message_id))
        self.held[offset] = routing_key, body

    def marker(self, marker: Marker, body: bytes, offset: int, message_id: str | None) -> None:
        """Kept; written down only where it tells of a hole."""
        self.held[offset] = MARKER_TOPIC, body
        if marker.hole is not None:
            self.calls.append(("hole_told", marker.hole))

    def end_batch(self, on_written: Callable[[int], None]) -> None:
        """Counted; all is written at once, unless that is held up."""
        self.batches += 1
        if self.broken_batches:
            raise RuntimeError("a sink that breaks its promise")
        if self.holding:
            self.writing.append(on_written)
        else:
            on_written(0)

    def gap(self, reason: str) -> None:
        """Written down."""
        self.calls.append(("gap", reason))

    def compare(self, routing_key: str, body: bytes, offset: int) -> bool | None:
        """By what was handed on."""
        held = self.held.get(offset)
        return None if held is None else held[1] == body and held[0] in {routing_key, MARKER_TOPIC}

    def hole(self, routing_key: str, body: bytes, offset: int, message_id: str | None, reason: str) -> None:
        """Written down."""
        self.calls.append(("hole", offset))

    def rewind(self, offset: int | None) -> None:
        """Written down, and forgotten."""
        self.calls.append(("rewind", offset))
        self.held = {} if offset is None else {at: what for at, what in self.held.items() if at <= offset}

    def restart(self) -> None:
        """Written down, and forgotten."""
        self.calls.append(("restart",))
        self.held.clear()

    def proven(self, proven: bool) -> None:
        """Kept."""
        self.is_proven = proven

    def marker_sent(self, text: str) -> None:
        """Nobody waits here."""

    def marker_confirmed(self, text: str) -> None:
        """Nobody waits here."""

    @property
    def offsets(self) -> list[int]:
        """The offsets delivered, in order."""
        return [call[3] for call in self.calls if call[0] == "deliver" and isinstance(call[3], int)]

    def named(self, name: str) -> list[tuple[object, ...]]:
        """The calls of one name."""
        return [call for call in self.calls if call[0] == name]


_: type[Sink] = RecordingSink


class FakeTransport:
    """One end of a TCP connection: a black hole does not even close, unless it is aborted."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.aborted = False
        self.losing = False
        self.paused = False

    def pauseProducing(self) -> None:
        """Nothing is read for now."""
        self.paused = True

    def resumeProducing(self) -> None:
        """Read on."""
        self.paused = False

    def write(self, data: bytes) -> None:
        """Queue for the peer."""
        self.peer.sent_to_us += data

    def loseConnection(self) -> None:
        """Waits for a flush that never comes, as Twisted does with a peer that is gone."""
        self.losing = True

    def abortConnection(self) -> None:
        """At once."""
        if not self.aborted:
            self.aborted = True
            self.peer.broker.clock.callLater(0, self.peer.protocol.connectionLost, Failure(error.ConnectionAborted()))


class Publication:
    """A message that was published: the method, and its content as far as it has come."""

    def __init__(self, channel: int, method: Any, number: int) -> None:
        self.channel, self.method, self.number = channel, method, number
        self.properties: Any = None
        self.size = 0
        self.body = b""

    @property
    def whole(self) -> bool:
        """Whether all of it is there."""
        return self.properties is not None and len(self.body) >= self.size


class Peer:
    """One connection to the fake broker, from its side."""

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
        """The channel of the newest consumer."""
        return next(reversed(self.consumers))

    def seen(self, kind: type) -> list[Any]:
        """The methods of one class that were received, in order."""
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
        """A piece of what is being published; `FakeBroker.confirm` answers the whole."""
        publication = self.published[-1]
        if isinstance(value, frame.Header):
            publication.properties, publication.size = value.properties, value.body_size
        else:
            publication.body += value.fragment
        if publication.whole:
            self.broker.confirm(self, publication)

    def give_back(self, publication: Publication) -> None:
        """Queue a Basic.Return: no queue was bound for it."""
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
    """A consumer of the stream: `next` is the offset that it waits for, None for what is written from now on."""

    peer: Peer
    channel: int
    next: int


class FakeStream:
    """The stream behind a broker, or behind several: entries with their offsets, and where each consumer begins.

    As RabbitMQ does it (3.10 and 4.0, by experiment): a number inside is that message, one beyond the end waits for it, `first` is what
    is left, `next` what comes. `unreadable` is an offset at which the broker ends the connection.
    """

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.next = 0
        self.exists = True
        self.bound = True
        self.unreadable: int | None = None
        self.clock_is_wrong = False
        """An interval delivers nothing of what was written before."""
        self.young: dict[str, int] = {}
        """By interval: the offset of the oldest entry that is young enough, where that is not the first."""
        self.silent: set[str] = set()
        """Starts, as text, that get nothing: the broker's answer is on its way."""

    def write(self, body: bytes, key: str = "jobs.x", message_id: str | None = None) -> int:
        """Append; the offset."""
        self.entries.append(Entry(self.next, key, body, message_id))
        self.next += 1
        return self.next - 1

    def skip(self, offsets: int = 1) -> None:
        """Internal entries take offsets that no message has."""
        self.next += offsets

    def trim(self, first: int) -> None:
        """Retention: nothing before this offset is left."""
        self.entries = [entry for entry in self.entries if entry.offset >= first]

    def cut(self, last: int) -> None:
        """A power loss: nothing behind this offset is left, and the offsets are given again."""
        self.entries = [entry for entry in self.entries if entry.offset <= last]
        self.next = last + 1

    def start(self, asked: object) -> int:
        """Where a consumer that asks for this begins."""
        if asked == "first":
            return 0
        if isinstance(asked, int):
            return asked
        if asked in (None, "next") or self.clock_is_wrong:
            return self.next
        return self.young.get(str(asked), 0)  # an interval


@implementer(IStreamClientEndpoint)
class FakeBroker:
    """Answers every method as RabbitMQ does, but for those that a test overrides in `answers` or leaves out in `mute`.

    `stream` is what it holds; `refuse` answers TCP with a refusal, `connecting` with silence.
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
        """A new TCP connection to our protocol."""
        assert self.factory is not None
        protocol = self.factory.buildProtocol(None)  # type: ignore[arg-type]  # no address in memory
        peer = Peer(self, protocol)
        self.peers.append(peer)
        protocol.makeConnection(peer.transport)  # type: ignore[union-attr, arg-type]
        return protocol

    @property
    def peer(self) -> Peer:
        """The newest connection."""
        return self.peers[-1]

    @property
    def markers(self) -> list[Publication]:
        """All markers that were published, in order."""
        return [publication for peer in self.peers for publication in peer.published]

    def settle(self) -> bool:
        """Let bytes travel until nothing moves any more; the clock stands still. Whether anything moved."""
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
        """Send the consumers of the stream what is there for them; whether anything was."""
        served = False
        for reader in list(self.readers):
            if reader.peer.transport.aborted or reader.channel not in reader.peer.consumers:
                self.readers.remove(reader)
                continue
            for entry in self.stream.entries:
                if entry.offset < reader.next:
                    continue
                if self.stream.unreadable is not None and reader.next <= self.stream.unreadable <= entry.offset:
                    reader.peer.send(0, spec.Connection.Close(541, "INTERNAL_ERROR", 0, 0))
                    break
                served = True
                reader.next = entry.offset + 1
                reader.peer.deliver(entry.body, entry.offset, channel=reader.channel, key=entry.key, message_id=entry.message_id)
        return served

    def write(self, *bodies: bytes, key: str = "jobs.x", message_id: str | None = None) -> None:
        """A producer publishes these; all that is due travels."""
        for body in bodies:
            self.stream.write(body, key, message_id)
        self.settle()

    def delete_stream(self) -> None:
        """The stream goes, its bindings with it; consumers are told."""
        self.stream.exists = self.stream.bound = False
        self.stream.entries, self.stream.next = [], 0
        for reader in self.readers:
            if not reader.peer.transport.aborted and (tag := reader.peer.consumers.pop(reader.channel, None)):
                reader.peer.send(reader.channel, spec.Basic.Cancel(tag))
        self.readers.clear()

    def route(self, peer: Peer, publication: Publication) -> None:
        """A `confirm`: into the stream, or back, or refused."""
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
        """The newest connection is reset by the peer."""
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
        """An answer for `answers`: the whole connection is closed."""
        return lambda peer, channel, method: peer.send(0, spec.Connection.Close(code, text, 0, 0))

    def close_channel(self, code: int, text: str) -> Callable[[Peer, int, Any], None]:
        """An answer for `answers`: the channel is closed."""
        return lambda peer, channel, method: peer.send(channel, spec.Channel.Close(code, text, 0, 0))

    def hello(self, peer: Peer, _: int, __: Any) -> None:
        """Connection.Start."""
        capabilities = {"publisher_confirms": True, "basic.nack": True, "consumer_cancel_notify": True}
        properties = {"product": "RabbitMQ", "version": self.version, "capabilities": capabilities}
        peer.send(0, spec.Connection.Start(0, 9, properties, "PLAIN AMQPLAIN", "en_US"))

    def channel_close(self, peer: Peer, channel: int, _: Any) -> None:
        """Channel.CloseOk; its consumer is gone."""
        peer.consumers.pop(channel, None)
        peer.send(channel, spec.Channel.CloseOk())

    def queue_declare(self, peer: Peer, channel: int, method: Any) -> None:
        """Queue.DeclareOk, or 404 for a passive one of what is not there."""
        if method.queue and not self.stream.exists:
            if method.passive:
                peer.send(channel, spec.Channel.Close(404, f"NOT_FOUND - no queue '{method.queue}' in vhost '/'", 50, 10))
                return
            self.stream.exists = True
        peer.send(channel, spec.Queue.DeclareOk(method.queue or "amq.gen-x", 0, 0))

    def exchange_declare(self, peer: Peer, channel: int, method: Any) -> None:
        """Exchange.DeclareOk, or 404 for a passive one of what is not there."""
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
        """Basic.ConsumeOk, and what there is from there on."""
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
    """A `FakeBroker.confirm`: every queue has it."""
    peer.send(publication.channel, spec.Basic.Ack(publication.number))


def nack(peer: Peer, publication: Publication) -> None:
    """A `FakeBroker.confirm`: a queue has refused it."""
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
