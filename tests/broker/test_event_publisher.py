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
        done = self.send(topic, message_id, payload)
        self.broker.settle()
        return done

    def send(self, topic: str, message_id: str = "id-1", payload: str = "{}") -> Deferred[Published]:
        """Publish an event, whose bytes do not travel yet."""
        body = f'{{"topic": "{topic}", "message_id": "{message_id}", "payload": {payload}}}'
        return self.publisher.publish(parse_publication(body.encode()))

    def outcomes(self, *topics: str) -> dict[str, tuple[Outcome, bool | None]]:
        """Publish events whose bytes travel together. Returns what became of each."""
        done = {topic: self.send(topic, f"id-{topic}") for topic in topics}
        self.advance(0.2)
        return {topic: what(each) for topic, each in done.items()}

    def advance(self, seconds: float) -> None:
        """Let time pass, while bytes travel."""
        for _ in range(round(seconds / 0.05) + 1):
            self.clock.advance(0.05)
            self.broker.settle()


def what(done: Deferred[Published]) -> tuple[Outcome, bool | None]:
    """What became of an event."""
    found = now(done)
    return found.outcome, found.published


def refused(peer: Peer, publication: Publication) -> None:
    """The broker closes the channel with 403."""
    peer.send(publication.channel, spec.Channel.Close(403, "ACCESS_REFUSED - access to exchange refused", 60, 40))


class Refusing:
    """A broker that refuses some topics, in RabbitMQ's way: it routes the events before that one, and sends no confirm for them."""

    def __init__(self, *topics: str, text: str = "403 ACCESS_REFUSED - access to topic '{}' in exchange 'x' in vhost '/' refused") -> None:
        self.topics = topics
        self.text = text
        self.routed: list[str] = []
        self._closed: list[Peer] = []
        self._unconfirmed: list[tuple[Peer, Publication]] = []

    def __call__(self, peer: Peer, publication: Publication) -> None:
        """A `FakeBroker.confirm`."""
        topic = publication.method.routing_key
        if peer in self._closed:
            return
        if topic in self.topics:
            code, _, text = self.text.format(topic).partition(" ")
            peer.send(publication.channel, spec.Channel.Close(int(code), text, 60, 40))
            self._closed.append(peer)
            self._unconfirmed.clear()
            return
        self.routed.append(topic)
        self._unconfirmed.append((peer, publication))
        peer.broker.clock.callLater(0, self._confirm)

    def _confirm(self) -> None:
        for each in self._unconfirmed:
            ack(*each)
        self._unconfirmed.clear()


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


def test_a_refused_event_of_a_batch() -> None:
    """It alone is refused. The broker may have routed those before it, so they are sent again, with their ids, as are those behind it."""
    for refused_topic in ("secret.1", "a.1", "a.4"):
        rig = Rig()
        rig.broker.confirm = refusing = Refusing(refused_topic)
        done = {topic: rig.send(topic, topic) for topic in ("a.1", "a.2", "secret.1", "a.3", "a.4")}
        rig.advance(0.2)
        found = {topic: what(each) for topic, each in done.items()}
        assert found == {topic: (Outcome.REFUSED, False) if topic == refused_topic else (Outcome.CONFIRMED, True) for topic in found}
        assert set(refusing.routed) == found.keys() - {refused_topic}
        assert rig.broker.attempts == 2


def test_two_refused_events_of_a_batch() -> None:
    """One after the other: the broker has not read the second one. With one topic for both, each may be the one that was refused."""
    rig = Rig()
    rig.broker.confirm = Refusing("secret.1", "secret.2")
    refused_topics = ("secret.1", "secret.2")
    assert rig.outcomes("a.1", *refused_topics) == {
        "a.1": (Outcome.CONFIRMED, True),
        **dict.fromkeys(refused_topics, (Outcome.REFUSED, False)),
    }
    first, second = rig.send("secret.1", "one"), rig.send("secret.1", "two")
    rig.broker.settle()
    assert what(first) == (Outcome.REFUSED, None)
    assert "may have been published then" in (now(second).error or "")


@each_row(
    "text",
    [
        "403 ACCESS_REFUSED - access to exchange 'x' in vhost '/' refused for user 'u'",
        "403 ACCESS_REFUSED - write access to exchange 'x' in vhost '/' refused for user 'u'",
        "404 NOT_FOUND - no exchange 'x' in vhost '/'",
    ],
)
def test_an_exchange_that_takes_nothing(text: str) -> None:
    """All that wait for it are refused at once, and not one by one."""
    rig = Rig()
    topics = [f"a.{number}" for number in range(100)]
    rig.broker.confirm = Refusing(*topics, text=text)
    assert set(rig.outcomes(*topics).values()) == {(Outcome.REFUSED, None)}
    assert rig.broker.attempts == 1


def test_an_event_that_is_too_large_for_the_broker() -> None:
    """`max_message_size` of RabbitMQ. Only this one is refused."""
    rig = Rig()
    size = len('{"x": 1}')
    rig.broker.confirm = Refusing("a.2", text=f"406 PRECONDITION_FAILED - message size {size} is larger than configured max size 5")
    done = [rig.send("a.1"), rig.send("a.2", "large", '{"x": 1}'), rig.send("a.3")]
    rig.advance(0.1)
    assert [what(each) for each in done] == [
        (Outcome.CONFIRMED, True),
        (Outcome.REFUSED, False),
        (Outcome.CONFIRMED, True),
    ]


def test_a_late_event_that_is_too_large_for_the_broker() -> None:
    """Nobody waits for it any more. The others are sent again still."""
    rig = Rig()
    rig.broker.confirm = ack
    assert now(rig.publish()).outcome is Outcome.CONFIRMED
    rig.broker.confirm = silence
    late = rig.publish("a.large", "large", '{"x": 1}')
    for number in range(8):  # the connection stays, because it answers others
        rig.advance(CONFIRM_S / 8)
        rig.broker.confirm = ack
        assert now(rig.publish(message_id=f"id-{number}")).outcome is Outcome.CONFIRMED
        rig.broker.confirm = silence
    assert now(late).outcome is Outcome.UNKNOWN
    others = [rig.publish("a.1", "one"), rig.publish("a.2", "two")]
    rig.broker.confirm = ack
    size = len('{"x": 1}')
    text = f"PRECONDITION_FAILED - message size {size} is larger than configured max size 5"
    peer = rig.broker.peer
    peer.send(peer.published[-1].channel, spec.Channel.Close(406, text, 60, 40))
    rig.advance(0.2)
    assert [what(each) for each in others] == [(Outcome.CONFIRMED, True)] * 2


def test_a_refusal_on_a_connection_that_worked() -> None:
    """The answer is as clear as on a new one."""
    rig = Rig()
    assert now(rig.publish()).outcome is Outcome.CONFIRMED
    rig.broker.confirm = refused
    found = now(rig.publish(message_id="id-2"))
    assert (found.outcome, found.published) == (Outcome.REFUSED, False)


def test_a_topic_that_is_cut_off_in_the_refusal() -> None:
    """RabbitMQ cuts its text to 255 bytes."""
    rig = Rig()
    topic = "a." + "t" * 128
    text = "403 ACCESS_REFUSED - access to topic '" + topic[:100] + "..."
    rig.broker.confirm = Refusing(topic, text=text)
    done = [rig.send("a.1"), rig.send(topic), rig.send("a.2")]
    rig.advance(0.1)
    assert [now(each).outcome for each in done] == [Outcome.CONFIRMED, Outcome.REFUSED, Outcome.CONFIRMED]


def test_sent_again_and_returned() -> None:
    """The first copy got no answer, and the second came back. The first one may have been published."""
    rig = Rig()
    rig.broker.confirm = silence
    done = rig.publish()
    rig.broker.confirm = unroutable
    rig.broker.cut()
    rig.advance(0.2)
    assert [len(peer.published) for peer in rig.broker.peers] == [1, 1]
    assert what(done) == (Outcome.UNROUTABLE, None)


def test_a_vhost_that_is_missing() -> None:
    """An operator must change that, too."""
    rig = Rig()
    rig.broker.answers[spec.Connection.Open] = lambda peer, channel, method: peer.send(
        0, spec.Connection.Close(530, "NOT_ALLOWED - vhost x not found", 10, 40)
    )
    found = now(rig.publish())
    assert (found.outcome, found.published) == (Outcome.REFUSED, False)


def test_bodies_are_dropped_with_the_last_wait() -> None:
    """A queue that confirms nothing doesn't keep the bodies of its events in memory, while others are confirmed on the connection."""
    rig = Rig()
    rig.broker.confirm = lambda peer, publication: None if publication.method.routing_key == "a.stuck" else ack(peer, publication)
    for number in range(40):
        late = rig.publish("a.stuck", f"stuck-{number}", '{"x": "' + "y" * 100_000 + '"}')
        for _ in range(6):
            assert now(rig.publish("a.1", "fine")).outcome is Outcome.CONFIRMED
            rig.advance(1)
    assert now(late).outcome is Outcome.UNKNOWN
    connection = rig.publisher._publisher._connection
    assert connection is not None
    assert connection.unanswered == 40
    assert sum(len(message.body) for message in connection._sent.values()) == 0
    assert rig.broker.attempts == 1


def test_messages_without_an_answer_are_bounded() -> None:
    """When too many have none, a new connection forgets them."""
    rig = Rig()
    rig.publisher._publisher._max_waiting = 10
    rig.broker.confirm = lambda peer, publication: None if publication.method.routing_key == "a.stuck" else ack(peer, publication)
    for number in range(50):
        rig.publish("a.stuck", f"stuck-{number}")
        for _ in range(2):
            assert now(rig.publish("a.1", "fine")).outcome is Outcome.CONFIRMED
            rig.advance(0.5)
    connection = rig.publisher._publisher._connection
    assert connection is not None
    assert connection.unanswered < 30
    assert rig.broker.attempts > 1
