"""A consumer and a scout that are closed before the broker has opened their channel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pika import spec
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock

from tests.kit.fake_amqp import FakeBroker, RecordingSink
from tests.kit.rows import each_row
from towerws.broker.connection import BrokerConnection
from towerws.broker.consumer import Consumer, Scout
from towerws.broker.failures import ConnectionFailure
from towerws.broker.reader import ReadProgress
from towerws.broker.topology import Mode
from towerws.core.settings import BrokerSettings, BrokerUrl, Secret

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
