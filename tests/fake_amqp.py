"""A RabbitMQ that does what a test says, in memory: built from pika's frame classes, driven by a `Clock`.

Bytes travel when the test lets them (`FakeBroker.settle`), so nothing re-enters anything, as on a real network.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from pika import frame, spec
from twisted.internet import error
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from towerws.core.sources import Sink


class RecordingSink:
    """A `Sink` that writes down every call; it holds the newest delivery as the real one does."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.head: int | None = None
        self.turns = 0
        self.broken = self.broken_turns = False
        self.holding = False
        self.held: list[Callable[[int], None]] = []

    def resume_from(self) -> int | None:
        """The newest offset."""
        return self.head

    def attach(self, log: str | None, expect: int | None) -> None:
        """Written down."""
        self.calls.append(("attach", log, expect))

    def caught_up(self) -> None:
        """Written down."""
        self.calls.append(("caught_up",))

    def deliver(self, routing_key: str, body: bytes, offset: int, message_id: str | None) -> None:
        """Written down, and kept as head."""
        if self.broken:
            raise RuntimeError("a sink that breaks its promise")
        self.calls.append(("deliver", routing_key, body, offset, message_id))
        self.head = offset

    def end_turn(self, written: Callable[[int], None]) -> None:
        """Counted; all is written at once, unless that is held up."""
        self.turns += 1
        if self.broken_turns:
            raise RuntimeError("a sink that breaks its promise")
        if self.holding:
            self.held.append(written)
        else:
            written(0)

    def gap(self, reason: str) -> None:
        """Written down."""
        self.calls.append(("gap", reason))

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
        """Queue a delivery whose property flags and list are given as octets."""
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


@implementer(IStreamClientEndpoint)
class FakeBroker:
    """Answers every method as RabbitMQ does, but for those that a test overrides in `answers` or leaves out in `mute`.

    `stream_exists` and `last_chunk` say what the stream holds; `refuse` answers TCP with a refusal, `connecting` with silence.
    """

    def __init__(self, clock: Clock, version: str = "3.10.8") -> None:
        self.clock = clock
        self.version = version
        self.peers: list[Peer] = []
        self.mute: type | None = None
        self.answers: dict[type, Callable[[Peer, int, Any], None]] = {}
        self.confirm: Callable[[Peer, Publication], None] = ack
        self.refuse = False
        self.connecting: list[Deferred[IProtocol]] | None = None
        self.factory: IProtocolFactory | None = None
        self.stream_exists = True
        self.last_chunk: int | None = None
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

    def settle(self) -> None:
        """Let bytes travel until nothing moves any more; the clock stands still."""
        moving = True
        while moving:
            moving = False
            self.clock.advance(0)
            for peer in self.peers:
                if peer.sent_to_us:
                    moving = True
                    peer.receive()
                if peer.to_send and not peer.transport.aborted:
                    moving = True
                    data, peer.to_send = peer.to_send, b""
                    peer.protocol.dataReceived(data)

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
        if method.passive and not self.stream_exists:
            peer.send(channel, spec.Channel.Close(404, f"NOT_FOUND - no queue '{method.queue}' in vhost '/'", 50, 10))
            return
        self.stream_exists = True
        peer.send(channel, spec.Queue.DeclareOk(method.queue or "amq.gen-x", 0, 0))

    def consume(self, peer: Peer, channel: int, method: Any) -> None:
        """Basic.ConsumeOk; the probe of the last chunk is served at once."""
        if not self.stream_exists:
            peer.send(channel, spec.Channel.Close(404, f"NOT_FOUND - no queue '{method.queue}' in vhost '/'", 60, 20))
            return
        peer.consumers.pop(channel, None)
        peer.consumers[channel] = method.consumer_tag
        peer.tags[channel] = 0
        peer.send(channel, spec.Basic.ConsumeOk(method.consumer_tag))
        if method.arguments.get("x-stream-offset") == "last" and self.last_chunk is not None:
            peer.deliver(b"{}", self.last_chunk, channel=channel)


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
    spec.Exchange.Declare: _ok(spec.Exchange.DeclareOk),
    spec.Queue.Declare: FakeBroker.queue_declare,
    spec.Queue.Bind: _ok(spec.Queue.BindOk),
    spec.Basic.Qos: _ok(spec.Basic.QosOk),
    spec.Confirm.Select: _ok(spec.Confirm.SelectOk),
    spec.Basic.Consume: FakeBroker.consume,
}
