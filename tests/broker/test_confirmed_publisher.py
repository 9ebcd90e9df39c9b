"""Publishing with confirms, against fake brokers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pika import spec
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from tests.auth.tower_kit import now
from tests.kit.fake_amqp import FakeBroker, Peer, Publication, ack, nack
from tests.kit.rows import each_row
from towerws.broker.confirmed_publisher import CONFIRM_S, MAX_WAITING, ROUNDS, ConfirmedPublisher
from towerws.broker.publishing_connection import CLOSE_S, IDLE_S
from towerws.core.errors import BrokerError
from towerws.core.settings import BrokerSettings, BrokerUrl, Secret


def url(host: str) -> BrokerUrl:
    """Return the URL of a broker with this host name."""
    return BrokerUrl(host, 5672, "towerws", Secret("canary"), "/", tls=False)


class PublisherRig:
    """A publisher with fake brokers by host name."""

    def __init__(self, *hosts: str, **settings: Any) -> None:
        self.clock = Clock()
        self.brokers = {host: FakeBroker(self.clock) for host in hosts or ("one",)}
        self.preferred: BrokerUrl | None = None
        self.publisher = ConfirmedPublisher(
            BrokerSettings(urls=tuple(map(url, self.brokers)), **settings),
            self.clock,
            prefer=lambda: self.preferred,
            endpoint=lambda broker_url: self.brokers[broker_url.host],
        )

    @property
    def broker(self) -> FakeBroker:
        """Return the first broker."""
        return next(iter(self.brokers.values()))

    def settle(self) -> None:
        """Let bytes travel, without letting time pass."""
        for broker in self.brokers.values():
            broker.settle()

    def advance(self, seconds: float, step: float = 0.05) -> None:
        """Let time pass, while bytes travel, and a step more: sums of floats are a little too small."""
        for _ in range(round(seconds / step) + 1):
            self.clock.advance(step)
            self.settle()

    def tell(self, name: str = "m", body: bytes = b"{}") -> Deferred[None]:
        """Announce a message, and let it get as far as it does at once."""
        told = self.publisher.announce(body, name)
        told.addErrback(lambda failure: failure)  # the test checks it
        self.settle()
        return told

    def attempts(self) -> int:
        """Return the number of connections that were asked for, at all brokers."""
        return sum(broker.attempts for broker in self.brokers.values())


def error(told: Deferred[None]) -> str:
    """Return why the message could not be published."""
    with pytest.raises(BrokerError) as raised:
        now(told)
    return str(raised.value)


def fired(told: Deferred[None]) -> bool:
    """Whether there is an answer."""
    return bool(told.called)


def silence(peer: Peer, publication: Publication) -> None:
    """A `FakeBroker.confirm` that never answers."""


def unroutable(peer: Peer, publication: Publication) -> None:
    """A `FakeBroker.confirm`: no queue is bound."""
    peer.give_back(publication)
    ack(peer, publication)


def test_a_message_is_published_and_confirmed() -> None:
    """To the control exchange, on a connection of its own with confirms, transient, with its id. Nothing is declared."""
    rig = PublisherRig(exchange="x")
    told = rig.tell("id-1", b'{"user": 7}')
    assert now(told) is None
    (publication,) = rig.broker.peer.published
    assert (publication.method.exchange, publication.method.routing_key, publication.body) == ("x.control", "", b'{"user": 7}')
    assert publication.method.mandatory
    properties = publication.properties
    assert (properties.message_id, properties.delivery_mode, properties.content_type) == ("id-1", 1, "application/json")
    methods = [type(method) for _, method in rig.broker.peer.methods]
    assert methods[-3:] == [spec.Channel.Open, spec.Confirm.Select, spec.Basic.Publish]
    name = rig.broker.peer.seen(spec.Connection.StartOk)[0].client_properties["connection_name"]
    assert name.startswith("towerws@")
    assert name.endswith(" control")


def test_it_is_not_told_before_the_confirm() -> None:
    """Several messages wait on one connection at the same time. One confirm may be for all up to it."""
    rig = PublisherRig()
    rig.broker.confirm = silence
    asked = [rig.tell(str(number)) for number in range(4)]
    assert not any(told.called for told in asked)
    channel = rig.broker.peer.published[0].channel
    rig.broker.peer.send(channel, spec.Basic.Ack(2))
    rig.settle()
    assert [told.called for told in asked] == [False, True, False, False]
    rig.broker.peer.send(channel, spec.Basic.Ack(3, multiple=True))
    rig.settle()
    assert [told.called for told in asked] == [True, True, True, False]
    rig.broker.peer.send(channel, spec.Basic.Nack(4))
    rig.broker.peer.send(channel, spec.Basic.Ack(99))
    rig.settle()
    assert "every queue" in error(asked[3])
    assert rig.attempts() == 1


def test_one_connection_for_a_burst_and_none_when_idle() -> None:
    """Messages within IDLE_S use the same connection. Then it is closed in order, and a new one is made when needed."""
    rig = PublisherRig(heartbeat_s=100, silence_s=300)
    for _ in range(3):
        assert now(rig.tell()) is None
        rig.advance(IDLE_S - 1, 0.5)
    assert rig.attempts() == 1
    rig.advance(2, 0.5)
    assert rig.broker.peer.seen(spec.Connection.Close)
    assert rig.clock.getDelayedCalls() == []
    assert now(rig.tell()) is None
    assert rig.attempts() == 2


@each_row(
    ("confirm", "reason"),
    [
        (nack, "the broker did not put it into every queue"),
        (unroutable, "no daemon listens to exchange towerws.control"),
    ],
)
def test_what_did_not_reach_everybody(confirm: Callable[[Peer, Publication], None], reason: str) -> None:
    """A queue that refused the message, or no queue: the caller gets a failure. The next message on the connection is not affected."""
    rig = PublisherRig()
    rig.broker.confirm = confirm
    assert reason in error(rig.tell("m1", b'{"user": 7}'))
    rig.broker.confirm = ack
    assert now(rig.tell("m2")) is None
    assert rig.attempts() == 1


def test_a_broker_that_is_down() -> None:
    """Nothing listens: the answer comes at once, with the host and the reason, and nothing goes on in the background."""
    rig = PublisherRig("one", "two")
    for broker in rig.brokers.values():
        broker.refuse = True
    reason = error(rig.tell())
    assert "connection refused" in reason
    assert "amqp://towerws:***@two:5672" in reason
    assert rig.attempts() == 2 * ROUNDS
    assert rig.clock.getDelayedCalls() == []
    for broker in rig.brokers.values():
        broker.refuse = False
    assert now(rig.tell()) is None


def test_the_host_that_works_is_asked_first() -> None:
    """The broker that events come from is tried first. If it is down, the next one is."""
    rig = PublisherRig("one", "two", "three")
    rig.preferred = url("two")
    assert now(rig.tell()) is None
    assert [broker.attempts for broker in rig.brokers.values()] == [0, 1, 0]
    rig.brokers["two"].refuse = True
    rig.brokers["two"].cut()
    assert now(rig.tell()) is None
    assert [broker.attempts for broker in rig.brokers.values()] == [1, 2, 0]


@each_row("step", ["tcp", "handshake", "channel", "confirms"])
def test_a_mute_broker(step: str) -> None:
    """Without an answer at any step, the caller gets one within CONFIRM_S. Another host is tried before that."""
    for hosts, fails in ((("one",), True), (("one", "two"), False)):
        rig = PublisherRig(*hosts)
        rig.preferred = url("one")
        if step == "tcp":
            rig.broker.connecting = []
        else:
            rig.broker.mute = {"handshake": spec.Connection.StartOk, "channel": spec.Channel.Open, "confirms": spec.Confirm.Select}[step]
        told = rig.tell()
        assert not fired(told)
        rig.advance(CONFIRM_S)
        assert fired(told)
        if fails:
            assert "connecting: no answer" in error(told)
            rig.advance(CLOSE_S)
            assert rig.clock.getDelayedCalls() == []
        else:
            assert now(told) is None


def test_a_broker_that_takes_and_does_not_confirm() -> None:
    """In a memory alarm: the deadline ends the wait and the connection, and the next message gets a new one."""
    rig = PublisherRig()
    rig.broker.confirm = silence
    told = rig.tell()
    rig.advance(CONFIRM_S)
    assert "publishing: no answer from the broker within 5 s (is it in a memory or disk alarm?)" in error(told)
    assert rig.broker.peer.transport.aborted
    assert rig.clock.getDelayedCalls() == []
    rig.broker.confirm = ack
    assert now(rig.tell()) is None


def test_one_that_is_late_does_not_end_the_wait_of_others() -> None:
    """Later messages are published again on a new connection, and answered there."""
    rig = PublisherRig()
    rig.broker.confirm = silence
    early = rig.tell("early")
    rig.advance(CONFIRM_S - 1)
    late = rig.tell("late")
    rig.broker.confirm = ack
    rig.advance(1)
    assert "no answer" in error(early)
    assert now(late) is None
    assert [publication.properties.message_id for publication in rig.broker.peer.published] == ["late"]


def test_a_connection_that_is_lost_while_it_waits() -> None:
    """An unconfirmed message is published again, with the same id, on the next connection."""
    rig = PublisherRig()
    rig.broker.confirm = silence
    told = rig.tell("m7")
    rig.broker.confirm = ack
    rig.broker.cut()
    rig.settle()
    assert now(told) is None
    assert [peer.published[0].properties.message_id for peer in rig.broker.peers] == ["m7", "m7"]


def test_an_idle_connection_that_died() -> None:
    """It is noticed when the connection fails. The next message gets a new one, even if all rounds were used up."""
    rig = PublisherRig()
    for connections in range(1, 6):
        assert now(rig.tell()) is None
        assert rig.attempts() == connections
        rig.broker.cut()


def test_a_connection_that_is_lost_again_and_again() -> None:
    """If each connection confirmed something before it failed, the waiting caller gets an answer on the next one."""
    rig = PublisherRig()
    for number in range(6):
        assert now(rig.tell()) is None
        rig.broker.confirm = silence
        told = rig.tell(str(number))
        rig.broker.confirm = ack
        rig.broker.cut()
        rig.settle()
        assert now(told) is None


@each_row(
    ("code", "text"),
    [
        (403, "ACCESS_REFUSED - access to exchange 'towerws.control' in vhost '/' refused for user 'towerws'"),
        (404, "NOT_FOUND - no exchange 'towerws.control' in vhost '/'"),
    ],
)
def test_a_refusal_is_told_once(code: int, text: str) -> None:
    """No permission, or no exchange: the caller gets the broker's own text, without a second attempt."""
    rig = PublisherRig()
    rig.broker.confirm = lambda peer, publication: peer.send(publication.channel, spec.Channel.Close(code, text, 60, 40))
    assert f"{code} {text}" in error(rig.tell())
    assert rig.attempts() == 1
    rig.advance(CLOSE_S)
    assert rig.clock.getDelayedCalls() == []


def test_the_brokers_code_comes_with_the_error() -> None:
    """A returned message, a missing exchange and a missing permission can be told apart without reading the text."""
    rig = PublisherRig()
    codes = []
    for confirm in (unroutable, closing(404), closing(403), nack):
        rig.broker.confirm = confirm
        with pytest.raises(BrokerError) as raised:
            now(rig.tell())
        codes.append(raised.value.code)
    assert codes == [312, 404, 403, None]


def closing(code: int) -> Callable[[Peer, Publication], None]:
    """A `FakeBroker.confirm`: close the channel with this code."""
    return lambda peer, publication: peer.send(publication.channel, spec.Channel.Close(code, "x", 60, 40))


def test_a_broker_that_drops_every_connection() -> None:
    """There are as many attempts as rounds. They don't go on until the deadline."""
    rig = PublisherRig()
    rig.broker.confirm = lambda peer, _: peer.send(0, spec.Connection.Close(541, "INTERNAL_ERROR", 0, 0))
    assert "541 INTERNAL_ERROR" in error(rig.tell())
    assert rig.attempts() == ROUNDS


def test_settings_that_cannot_be_used() -> None:
    """A missing CA file is an answer, not an exception."""
    rig = PublisherRig()

    def broken(_: BrokerUrl) -> Any:
        raise ValueError("tls_ca /x holds no PEM certificate")

    rig.publisher._endpoint = broken
    assert "tls_ca /x" in error(rig.tell())


def test_waiting_messages_are_bounded() -> None:
    """Beyond the limit a message is refused at once. The others are not affected."""
    rig = PublisherRig()
    rig.broker.connecting = []
    waiting = [rig.publisher.announce(b"{}", "m") for _ in range(MAX_WAITING)]
    assert "wait for the broker already" in error(rig.publisher.announce(b"{}", "m"))
    assert not any(told.called for told in waiting)
    for told in waiting:
        told.addErrback(lambda _: None)
    rig.advance(CONFIRM_S)
    assert all(told.called for told in waiting)
    assert rig.clock.getDelayedCalls() == []


@each_row("when", ["never used", "connecting", "handshake", "publishing", "idle", "black hole"])
def test_stop(when: str) -> None:
    """In every state: waiting callers get an answer, and the connection ends within CLOSE_S. Later calls are refused."""
    rig = PublisherRig()
    waiting: list[Deferred[None]] = []
    if when == "connecting":
        rig.broker.connecting = []
    elif when == "handshake":
        rig.broker.mute = spec.Connection.StartOk
    elif when == "publishing":
        rig.broker.confirm = silence
    if when != "never used":
        waiting.append(rig.tell())
    if when == "black hole":
        rig.broker.mute = spec.Connection.Close
    stopped = rig.publisher.stop()
    if when in ("connecting", "handshake", "publishing"):
        assert error(waiting[0]) == "the daemon is stopping"
    rig.settle()
    if when == "idle":
        assert rig.broker.peer.seen(spec.Connection.Close)
        assert stopped.called
    rig.advance(CLOSE_S)
    assert stopped.called
    assert error(rig.publisher.announce(b"{}", "m")) == "the daemon is stopping"
    assert rig.clock.getDelayedCalls() == []


def test_a_connection_that_comes_too_late() -> None:
    """TCP that connects after its connection was given up is closed at once, and publishes nothing."""
    rig = PublisherRig()
    rig.broker.connecting = []
    told = rig.tell()
    rig.advance(CONFIRM_S)
    assert isinstance(told.result, Failure)
    error(told)
    rig.broker.accept()
    rig.settle()
    assert rig.broker.peer.transport.aborted
    assert rig.broker.peer.published == []
    assert rig.clock.getDelayedCalls() == []


def test_a_refusal_of_a_message_is_final() -> None:
    """Another host of the cluster would say the same."""
    rig = PublisherRig("one", "two")
    rig.broker.confirm = closing(403)
    assert "403" in error(rig.tell())
    assert rig.attempts() == 1


def test_in_an_alarm_nothing_more_is_written() -> None:
    """The broker would read it all after the alarm. What still waits then is published, once."""
    rig = PublisherRig()
    rig.broker.confirm = lambda peer, publication: peer.send(0, spec.Connection.Blocked("low on memory"))
    first = rig.tell("first")
    for number in range(2):
        assert "alarm" in error_after(rig, rig.tell(f"late-{number}"), CONFIRM_S)
    assert "alarm" in error_after(rig, first, 0)
    waiting = rig.tell("waiting")
    peer = rig.broker.peer
    assert len(peer.published) == 1
    assert rig.attempts() == 1
    rig.broker.confirm = ack
    peer.send(0, spec.Connection.Unblocked())
    rig.settle()
    assert now(waiting) is None
    assert len(peer.published) == 2
    rig.advance(2 * IDLE_S)
    assert rig.clock.getDelayedCalls() == []


def error_after(rig: PublisherRig, told: Deferred[None], seconds: float) -> str:
    """Return why the message could not be published, after this time."""
    rig.advance(seconds)
    return error(told)


def test_a_message_that_is_sent_at_the_answer_of_a_refused_one() -> None:
    """The markers do so. One connection serves both, and it ends when it is idle."""
    rig = PublisherRig()
    rig.broker.confirm = closing(403)
    answers: list[object] = []

    def sent_again(failure: Failure) -> None:
        rig.broker.confirm = ack
        rig.publisher.announce(b"{}", "again").addBoth(answers.append)

    rig.publisher.announce(b"{}", "first").addErrback(sent_again)
    rig.settle()
    assert answers == [None]
    assert rig.attempts() == 2
    rig.advance(2 * IDLE_S)
    assert rig.clock.getDelayedCalls() == []


def test_a_vhost_with_too_many_connections() -> None:
    """530 says nothing of the messages. The publisher of events alone takes it for a refusal."""
    rig = PublisherRig()
    rig.broker.answers[spec.Connection.Open] = lambda peer, channel, method: peer.send(
        0, spec.Connection.Close(530, "NOT_ALLOWED - access to vhost '/' refused: connection limit (2) is reached", 10, 40)
    )
    with pytest.raises(BrokerError) as raised:
        now(rig.tell())
    assert type(raised.value) is BrokerError
    assert raised.value.code == 530
