"""The straightforward server: Autobahn and pika as their documentation uses them. `python -m benchmarks.plain BROKER EXCHANGE PORT`.

It keeps who listens to what, and calls `sendMessage` for each of them. No history, no limits, no positions.
It compresses for those who ask.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import pika
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.compress import PerMessageDeflateOffer, PerMessageDeflateOfferAccept
from pika.adapters.twisted_connection import TwistedProtocolConnection
from twisted.internet import defer, protocol, reactor

LISTENERS: dict[str, set[Any]] = {}


class Client(WebSocketServerProtocol):
    """One browser."""

    topics: Sequence[str] = ()

    def onOpen(self) -> None:
        """Greet it."""
        self.sendMessage(b'{"accept": true, "user": 0}')

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """Subscribe it."""
        self.topics = [f"{group}.{event}" for group, events in json.loads(payload)["groups"].items() for event in events]
        for topic in self.topics:
            LISTENERS.setdefault(topic, set()).add(self)
        self.sendMessage(json.dumps({"groups_current": self.topics}).encode())

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        """Forget it."""
        for topic in self.topics:
            LISTENERS[topic].discard(self)


@defer.inlineCallbacks
def consume(connection: Any, exchange: str) -> Any:
    """Hand each message to everyone who listens to its topic."""
    yield connection.ready
    channel = yield connection.channel()
    yield channel.exchange_declare(exchange, "topic", durable=True)
    queue = yield channel.queue_declare("", exclusive=True)
    yield channel.queue_bind(queue.method.queue, exchange, "#")
    messages, _ = yield channel.basic_consume(queue.method.queue, auto_ack=True)
    print("ready", flush=True)
    while True:
        _, deliver, _, body = yield messages.get()
        for client in LISTENERS.get(deliver.routing_key, ()):
            client.sendMessage(body)


def accept(offers: list[Any]) -> Any:
    """Compress without taking over a context, where that is offered."""
    for offer in offers:
        if isinstance(offer, PerMessageDeflateOffer) and offer.request_no_context_takeover:
            return PerMessageDeflateOfferAccept(offer, request_no_context_takeover=True)
    return None


def main(broker: str, exchange: str, port: str) -> None:
    """Serve until killed."""
    factory = WebSocketServerFactory()
    factory.protocol = Client
    factory.setProtocolOptions(tcpNoDelay=True, perMessageCompressionAccept=accept)
    reactor.listenTCP(int(port), factory, backlog=4096, interface="127.0.0.1")
    parameters = pika.URLParameters(broker)
    creator = protocol.ClientCreator(reactor, TwistedProtocolConnection, parameters)
    started = creator.connectTCP(parameters.host, parameters.port).addCallback(consume, exchange)
    started.addErrback(lambda failure: failure.printTraceback())
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
