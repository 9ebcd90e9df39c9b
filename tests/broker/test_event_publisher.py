"""What became of an event of `POST /publish`, against fake brokers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pika import spec
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from tests.auth.tower_kit import now
from tests.broker.test_confirmed_publisher import silence, unroutable, url
from tests.kit.fake_amqp import FakeBroker, Peer, Publication, ack, nack
from tests.kit.rows import each_row
from towerws.broker.confirmed_publisher import CONFIRM_S, MAX_EVENTS_BYTES, EventPublisher
from towerws.core.publication import Outcome, Published, parse_publication
from towerws.core.settings import BrokerSettings


class Rig:
    """A publisher of events with one fake broker."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.broker = FakeBroker(self.clock)
        settings = BrokerSettings(urls=(url("one"),), exchange="x")
        self.publisher = EventPublisher(settings, self.clock, prefer=lambda: None, max_payload_bytes=1024, endpoint=lambda _: self.broker)

    def publish(self, topic: str = "a.b", message_id: str = "id-1", payload: str = "{}") -> Deferred[Published]:
        """Publish an event, and let it get as far as it does at once."""
        body = f'{{"topic": "{topic}", "message_id": "{message_id}", "payload": {payload}}}'
        done = self.publisher.publish(parse_publication(body.encode()))
        self.broker.settle()
        return done

    def advance(self, seconds: float) -> None:
        """Let time pass, while bytes travel."""
        for _ in range(round(seconds / 0.05) + 1):
            self.clock.advance(0.05)
            self.broker.settle()


def refused(peer: Peer, publication: Publication) -> None:
    """The broker closes the channel with 403."""
    peer.send(publication.channel, spec.Channel.Close(403, "ACCESS_REFUSED - access to exchange refused", 60, 40))


def cut(peer: Peer, publication: Publication) -> None:
    """The connection is lost after the message was read, and no other is accepted."""
    peer.broker.refuse = True
    peer.broker.cut()


def in_alarm(peer: Peer, publication: Publication) -> None:
    """The broker reports an alarm, and confirms nothing."""
    peer.send(0, spec.Connection.Blocked("low on memory"))


@each_row(
    ("confirm", "outcome", "published", "word"),
    [
        (ack, Outcome.CONFIRMED, True, ""),
        (unroutable, Outcome.UNROUTABLE, False, "no queue is bound to the exchange x for this topic"),
        (nack, Outcome.NACKED, None, "did not put it into every queue"),
        (refused, Outcome.REFUSED, False, "403"),
        (silence, Outcome.UNKNOWN, None, "may have been published"),
        (cut, Outcome.UNKNOWN, None, "may have been published"),
        (in_alarm, Outcome.UNKNOWN, None, "alarm"),
    ],
)
def test_outcomes(confirm: Callable[[Peer, Publication], None], outcome: Outcome, published: bool | None, word: str) -> None:
    """An event that was sent is reported as not published only if the broker said so."""
    rig = Rig()
    rig.broker.confirm = confirm
    done = rig.publish()
    rig.advance(CONFIRM_S)
    found = now(done)
    assert (found.outcome, found.published, found.message_id) == (outcome, published, "id-1")
    assert word in (found.error or "")


@each_row("how", ["refuse", "silent"])
def test_a_broker_that_is_not_there(how: str) -> None:
    """Nothing was sent, so the answer is sure: not published."""
    rig = Rig()
    if how == "refuse":
        rig.broker.refuse = True
    else:
        rig.broker.connecting = []
    done = rig.publish()
    rig.advance(CONFIRM_S)
    found = now(done)
    assert (found.outcome, found.published) == (Outcome.UNAVAILABLE, False)


def test_in_an_alarm_further_events_are_not_sent() -> None:
    """They are answered at once, and nobody has to wonder about them. After the alarm publishing works."""
    rig = Rig()
    rig.broker.confirm = in_alarm
    first = rig.publish()
    rig.advance(0.1)
    second = now(rig.publish())
    assert (second.outcome, second.published) == (Outcome.BLOCKED, False)
    assert not first.called
    peer = rig.broker.peer
    assert len(peer.published) == 1
    rig.broker.confirm = ack
    peer.send(0, spec.Connection.Unblocked())
    ack(peer, peer.published[0])
    rig.broker.settle()
    assert now(first).outcome is Outcome.CONFIRMED
    assert now(rig.publish()).outcome is Outcome.CONFIRMED


def test_returned_messages_are_told_apart() -> None:
    """Two events with one id on two topics, of which one has no queue: only that one is unroutable."""
    rig = Rig()

    def one_has_none(peer: Peer, publication: Publication) -> None:
        if publication.method.routing_key == "a.lost":
            peer.give_back(publication)
        if len(peer.published) == 3:
            peer.send(publication.channel, spec.Basic.Ack(3, multiple=True))

    rig.broker.confirm = one_has_none
    kept, lost = rig.publish("a.kept"), rig.publish("a.lost")
    assert now(rig.publish("a.kept")).outcome is Outcome.CONFIRMED
    assert (now(lost).outcome, now(kept).outcome) == (Outcome.UNROUTABLE, Outcome.CONFIRMED)


def test_waiting_events_are_bounded_in_bytes() -> None:
    """Beyond the bound an event is refused at once, and not sent. When others are answered there is room again."""
    rig = Rig()
    rig.broker.confirm = silence
    large = '{"x": "' + "y" * (MAX_EVENTS_BYTES // 4 - 100) + '"}'
    waiting = [rig.publish(payload=large) for _ in range(4)]
    found = now(rig.publish(payload=large))
    assert (found.outcome, found.published) == (Outcome.FULL, False)
    peer = rig.broker.peer
    for publication in peer.published:
        ack(peer, publication)
    rig.broker.settle()
    assert [now(done).outcome for done in waiting] == [Outcome.CONFIRMED] * 4
    rig.broker.confirm = ack
    assert now(rig.publish(payload=large)).outcome is Outcome.CONFIRMED


def test_a_stop_answers_what_waits() -> None:
    """An event that was sent is unknown. One that comes later is not published."""
    rig = Rig()
    rig.broker.confirm = silence
    sent = rig.publish()
    stopped: Any = rig.publisher.stop()
    rig.advance(1)
    assert stopped.called
    assert now(sent).outcome is Outcome.UNKNOWN
    assert now(rig.publish()).outcome is Outcome.UNAVAILABLE
