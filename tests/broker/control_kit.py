"""Shared by the tests of the control exchange: a source with a listener, against a fake broker."""

from __future__ import annotations

import random
from typing import Any

from pika import spec
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from tests.kit.fake_amqp import FakeBroker, Peer, RecordingSink
from towerws.amqp import AmqpSource
from towerws.broker.confirmed_publisher import ConfirmedPublisher
from towerws.broker.control import ControlListener
from towerws.core.settings import BrokerSettings, BrokerUrl, Secret
from towerws.core.sources import SourceState

URL = BrokerUrl("one", 5672, "towerws", Secret("canary"), "/", tls=False)


class RecordingControlSink:
    """A `ControlSink` that records its calls."""

    def __init__(self) -> None:
        self.calls: list[object] = []
        self.broken = False

    def listening(self) -> None:
        """Record the call."""
        self.calls.append("listening")

    def control(self, body: bytes, message_id: str | None) -> None:
        """Record the message."""
        if self.broken:
            raise RuntimeError("a sink that breaks its promise")
        self.calls.append((body, message_id))


class ControlRig:
    """A source with a listener, and a fake broker. Markers come back at once, until a test sets `echo` to false and answers itself."""

    def __init__(self, **settings: Any) -> None:
        self.clock = Clock()
        self.broker = FakeBroker(self.clock)
        self.side = FakeBroker(self.clock)  # where markers go
        self.side.stream = self.broker.stream
        self.settings = BrokerSettings(urls=(URL,), **settings)
        self.heard, self.sink = RecordingControlSink(), RecordingSink()
        self.echo = True
        self.announced: list[tuple[str, Deferred[None]]] = []
        self.listener = ControlListener(self.settings, self.heard, self.clock, marker=str.encode, announce=self.announce)
        self.source = AmqpSource(
            self.settings,
            self.sink,
            self.clock,
            control=self.listener,
            endpoint=lambda url: self.broker,
            publisher=ConfirmedPublisher(self.settings, self.clock, prefer=lambda: None, endpoint=lambda _: self.side),
            rng=random.Random(1),
        )

    def settle(self) -> None:
        """Let bytes travel on both connections."""
        moving = True
        while moving:
            moving = self.broker.settle()
            moving = self.side.settle() or moving

    def announce(self, body: bytes, message_id: str) -> Deferred[None]:
        """Publish a marker. Returns a Deferred of the broker's answer."""
        assert body == message_id.encode()
        answer: Deferred[None] = succeed(None) if self.echo else Deferred()
        self.announced.append((message_id, answer))
        if self.echo:
            self.come(message_id)
        return answer

    def come(self, message_id: str, body: bytes = b"{}") -> None:
        """Deliver a message through the control exchange."""
        self.broker.peer.deliver(body, channel=self.channel, key="", message_id=message_id)
        if not self.echo:
            self.settle()

    def confirm(self, number: int = -1) -> None:
        """Confirm the newest marker: the broker put it into every bound queue."""
        self.announced[number][1].callback(None)
        self.settle()

    def fail(self, error: Exception) -> None:
        """Fail the newest marker."""
        self.announced[-1][1].errback(error)
        self.settle()

    def advance(self, seconds: float, step: float = 0.05) -> None:
        """Let time pass, while bytes travel."""
        for _ in range(round(seconds / step)):
            self.clock.advance(step)
            self.settle()

    def start(self) -> ControlRig:
        """Start the source, until it consumes events."""
        self.source.start()
        self.settle()
        self.advance(0.4)
        assert self.events_flow
        return self

    @property
    def events_flow(self) -> bool:
        """Whether the source consumes."""
        return self.source.status().state is SourceState.CONSUMING

    def state(self) -> object:
        """Return the listener's state."""
        return self.listener.status["state"]

    @property
    def channel(self) -> int:
        """Return the number of the newest channel on which a fanout exchange was declared."""
        return [channel for channel, method in self.broker.peer.methods if is_control(method)][-1]

    def set_ups(self) -> int:
        """Return how often the control exchange was declared, on all connections."""
        return sum(is_control(method) for peer in self.broker.peers for _, method in peer.methods)

    def refuse(self, code: int, text: str) -> None:
        """Close the channel when the control exchange is declared."""
        self.answer(self.broker.close_channel(code, text))

    def answer(self, call: Any) -> None:
        """Set what the broker does when the control exchange is declared."""

        def declared(peer: Peer, channel: int, method: Any) -> None:
            if is_control(method):
                call(peer, channel, method)
            else:
                peer.send(channel, spec.Exchange.DeclareOk())

        self.broker.answers[spec.Exchange.Declare] = declared

    def allow(self) -> None:
        """Answer normally again."""
        self.broker.answers.clear()


def is_control(method: Any) -> bool:
    """Whether this declares a fanout exchange."""
    return isinstance(method, spec.Exchange.Declare) and method.type == "fanout"
