"""The binding of the control queue is proven by markers. What was read decides, never silence."""

from __future__ import annotations

from pika import spec

from tests.auth.tower_kit import logged
from tests.broker.control_kit import House, is_control
from tests.kit.rows import each_row
from towerws.broker.control_watch import COME_S, LOG_AGAIN_S, MARKER_S, PROVEN_S, REFUSED_S, SILENT_S
from towerws.core.errors import BrokerError

RETURNED = BrokerError("no daemon listens to exchange towerws.control", 312)
NO_EXCHANGE = BrokerError("amqp://one: 404 NOT_FOUND - no exchange 'towerws.control' in vhost '/'", 404)
FORBIDDEN = BrokerError("amqp://one: 403 ACCESS_REFUSED - access to exchange 'towerws.control' in vhost '/' refused", 403)
ALARM = BrokerError("publishing: no answer from the broker within 5 s (is it in a memory or disk alarm?)")
NACK = BrokerError("the broker did not put it into every queue: a daemon's is full, or its node is down")


class Watched(House):
    """A source whose first marker is on its way. The test answers for the broker."""

    def __init__(self, **settings: object) -> None:
        super().__init__(heartbeat_s=5000, silence_s=10_000, **settings)
        self.echo = False
        self.start()

    @property
    def newest(self) -> str:
        """Return the message id of the newest marker."""
        return self.announced[-1][0]

    @property
    def bindings(self) -> int:
        """Return how often the control queue was bound on the newest channel."""
        channel = self.channel
        return sum(number == channel and isinstance(method, spec.Queue.Bind) for number, method in self.broker.peer.methods)

    @property
    def status(self) -> tuple[object, object, object]:
        """Return the state, whether it is proven, and how often it was unbound."""
        status = self.listener.status
        return status["state"], status["proven"], status["unbound"]

    @property
    def reason(self) -> str:
        """Return why it is not listening, or not proven."""
        return str(self.listener.status["reason"])

    def prove(self) -> None:
        """The newest marker comes back and is confirmed."""
        self.come(self.newest)
        if not self.announced[-1][1].called:
            self.confirm()
        assert self.status[:2] == ("listening", True)


def test_a_marker_every_few_seconds() -> None:
    """The first marker goes out at once. Each one that comes back proves the binding. The sink gets none, and nothing is bound again."""
    house = Watched()
    assert house.status == ("listening", False, 0)
    assert "no marker has come back yet" in house.reason
    for number in range(1, 6):
        assert len(house.announced) == number
        house.prove()
        assert house.listener.status["reason"] is None
        house.advance(MARKER_S, 0.5)
    assert house.bindings == 1
    assert house.heard.calls == ["listening"]
    assert len({text for text, _ in house.announced}) == 6


def test_a_marker_may_come_before_or_after_its_confirm() -> None:
    """The order of the two does not matter, even with some time between them."""
    house = Watched()
    house.confirm()
    house.advance(COME_S / 2)
    house.come(house.newest)
    house.advance(MARKER_S, 0.5)
    house.come(house.newest)
    house.advance(2 * COME_S)
    house.confirm()
    house.advance(2 * COME_S)
    assert house.status == ("listening", True, 0)
    assert house.bindings == 1


@each_row("error", [RETURNED, NO_EXCHANGE])
def test_unbound(error: BrokerError) -> None:
    """The broker returns the marker: bind again, re-check the credentials, log it once, and prove the binding again."""
    house = Watched()
    house.prove()
    with logged() as lines:
        house.advance(MARKER_S, 0.5)
        house.fail(error)
        assert house.bindings == 2
        assert [is_control(method) for _, method in house.broker.peer.methods].count(True) == 2
        assert house.heard.calls == ["listening"] * 2
        assert len(house.announced) == 3
        house.prove()
    assert house.status == ("listening", True, 1)
    (line,) = lines.texts
    assert "was not bound to it any more" in line
    assert str(error) in line
    house.advance(MARKER_S, 0.5)
    house.prove()
    assert house.heard.calls == ["listening"] * 2


def test_only_this_daemon_is_unbound() -> None:
    """Other daemons' queues take the marker, so it is confirmed. A later one that comes proves that it is missing here."""
    house = Watched()
    house.prove()
    house.advance(MARKER_S, 0.5)
    house.confirm()
    with logged() as lines:
        house.advance(COME_S + 0.1)
        assert house.bindings == 2
        assert house.heard.calls == ["listening"], "silence is no evidence"
        assert len(house.announced) == 3
        house.confirm()
        assert house.heard.calls == ["listening"]
        house.come(house.newest)
    assert house.status == ("listening", True, 1)
    assert house.heard.calls == ["listening"] * 2
    (line,) = lines.texts
    assert "a later one did" in line


def test_a_slow_marker_is_not_a_missing_one() -> None:
    """It comes after the queue was bound again, and before the next one: nothing was missed, and nothing is re-checked."""
    house = Watched()
    house.confirm()
    house.advance(COME_S + 0.1)
    house.come(house.announced[0][0])
    house.come(house.newest)
    house.confirm()
    assert house.status == ("listening", True, 0)
    assert house.heard.calls == ["listening"]
    assert house.bindings == 2


@each_row("late", ["one after the other", "the first one never"])
def test_a_slow_connection(late: str) -> None:
    """Nothing comes for a while: not proven, with the reason, and no conclusion until something is read."""
    house = Watched()
    house.prove()
    with logged() as lines:
        for _ in range(4):
            house.advance(MARKER_S, 0.5)
            if not house.announced[-1][1].called:
                house.confirm()
        assert house.status == ("listening", False, 0)
        assert "has not come back" in house.reason
        assert house.heard.calls == ["listening"]
        assert [("binding not proven" in line) for line in lines.texts] == [True]
        missing = [text for text, answer in house.announced[1:] if answer.called]
        for text in missing[1:] if late == "the first one never" else missing:
            house.come(text)
        house.prove()
    unbound = late == "the first one never"
    assert house.status == ("listening", True, unbound)
    assert house.heard.calls.count("listening") == 1 + unbound
    assert any("proven again" in line for line in lines.texts)


@each_row("error", [ALARM, NACK, BrokerError("connecting: connection refused"), ValueError("a bug")])
def test_a_marker_that_says_nothing(error: Exception) -> None:
    """An alarm, a full queue, no connection: not proven after a while, with the reason. Nothing is bound, re-checked or restarted."""
    house = Watched()
    house.prove()
    with logged() as lines:
        for _ in range(12):
            house.advance(MARKER_S, 0.5)
            house.fail(error)
    assert house.status == ("listening", False, 0)
    assert str(error) in house.reason
    assert house.bindings == 1
    assert house.heard.calls == ["listening"]
    assert sum("binding not proven" in line for line in lines.texts) == 1
    house.advance(MARKER_S, 0.5)
    house.prove()


def test_it_counts_as_proven_for_a_while() -> None:
    """One or two markers may fail."""
    house = Watched()
    house.prove()
    house.advance(MARKER_S, 0.5)
    house.fail(ALARM)
    house.advance(PROVEN_S - MARKER_S - 1, 0.5)
    assert house.listener.status["proven"]
    house.advance(2, 0.5)
    assert not house.listener.status["proven"]


def test_a_daemon_that_may_not_publish() -> None:
    """It reports that, binds again at each interval, and publishes once a minute. Other daemons' messages prove its binding."""
    house = Watched()
    with logged() as lines:
        house.fail(FORBIDDEN)
        assert "403 ACCESS_REFUSED" in house.reason
        house.advance(REFUSED_S - 1, 0.5)
        assert len(house.announced) == 1
        assert house.bindings == 1 + 1 + 5
        assert house.heard.calls == ["listening"]
        assert house.status == ("listening", False, 0)
        house.come("of another daemon", b'{"daemon": "0123456789abcdef"}')
        assert house.status == ("listening", True, 0)
        house.advance(2, 0.5)
        assert len(house.announced) == 2
        house.fail(FORBIDDEN)
        assert len(lines.texts) == 1
        house.advance(LOG_AGAIN_S + REFUSED_S, 0.5)
        for _ in range(2):
            house.advance(REFUSED_S + MARKER_S, 0.5)
            if not house.announced[-1][1].called:
                house.prove()
    assert house.status == ("listening", True, 0)
    count = len(house.announced)
    house.advance(MARKER_S, 0.5)
    assert len(house.announced) == count + 1


@each_row("passive", [False, True])
@each_row(
    ("code", "text"),
    [
        (406, "PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'towerws.control' in vhost '/': x but current is 'topic'"),
        (404, "NOT_FOUND - no exchange 'towerws.control' in vhost '/'"),
        (403, "ACCESS_REFUSED - access to exchange 'towerws.control' in vhost '/' refused"),
    ],
)
def test_what_can_not_be_bound_again(code: int, text: str, passive: bool) -> None:
    """Another type, a missing exchange with passive, no permission: the status has the broker's text. Once cured, it listens."""
    house = Watched(passive=passive)
    house.prove()
    house.advance(MARKER_S, 0.5)
    house.refuse(code, text)
    house.fail(RETURNED)
    assert house.state() == "paused"
    assert house.reason.startswith(f"{code} {text}")
    house.allow()
    house.advance(1.1)
    assert house.state() == "listening"
    assert house.heard.calls == ["listening"] * 2
    house.prove()


def test_bound_again_and_still_returned() -> None:
    """It is tried once per interval, not in a loop. Credentials are re-checked once. The status and one log line give the reason."""
    house = Watched()
    with logged() as lines:
        for _ in range(5):
            house.fail(RETURNED)
            house.fail(RETURNED)
            house.advance(MARKER_S, 0.5)
    assert house.bindings == 1 + 5
    assert len(house.announced) == 11
    assert house.heard.calls == ["listening"] * 2
    assert house.status == ("listening", False, 1)
    assert sum("bound again, and still" in line for line in lines.texts) == 1
    house.prove()
    house.advance(MARKER_S, 0.5)
    house.fail(RETURNED)
    assert house.listener.status["unbound"] == 2


def test_a_channel_on_which_nothing_comes() -> None:
    """The broker confirms all markers and delivers none: after a minute another channel and queue replace them."""
    house = Watched()
    house.prove()
    with logged() as lines:
        for _ in range(round(SILENT_S / MARKER_S)):
            house.advance(MARKER_S, 0.5)
            if not house.announced[-1][1].called:
                house.confirm()
            assert house.heard.calls == ["listening"]
        house.advance(2 * MARKER_S, 0.5)
    assert house.listener.status["failures"] == 1
    assert house.state() == "listening"
    assert house.heard.calls == ["listening"] * 2
    assert len(house.broker.peers) == 1
    assert "nothing arrived for 60 s" in "".join(lines.texts)
    house.prove()


def test_no_answer_to_the_binding() -> None:
    """It has a deadline, as the set-up has. Events flow meanwhile."""
    house = Watched(attempt_s=5)
    house.prove()
    house.advance(MARKER_S, 0.5)
    house.answer(lambda *_: None)
    house.fail(RETURNED)
    house.advance(6, 0.5)
    assert "no answer within 5 s" in house.reason
    assert house.events_flow


@each_row("answer", ["confirmed", "returned", "refused", "comes"])
@each_row("how", ["cut", "cancelled"])
def test_an_answer_that_comes_too_late(how: str, answer: str) -> None:
    """A marker of a closed channel says nothing about the next one."""
    house = Watched()
    text = house.newest
    if how == "cut":
        house.broker.cut()
        house.advance(2)
    else:
        peer, channel = house.broker.peer, house.channel
        peer.send(channel, spec.Basic.Cancel(peer.consumers[channel]))
        house.broker.settle()
        house.advance(1.1)
    assert house.status == ("listening", False, 0)
    heard, bindings = list(house.heard.calls), house.bindings
    if answer == "comes":
        house.come(text)
        assert house.heard.calls.pop() == (b"{}", text)
    elif answer == "confirmed":
        house.confirm(0)
    else:
        house.announced[0][1].errback(RETURNED if answer == "returned" else FORBIDDEN)
    house.advance(COME_S + 1)
    assert house.heard.calls == heard
    assert (house.bindings, house.status[2]) == (bindings, 0)
    house.prove()


@each_row("when", ["on its way", "confirmed", "binding", "refused", "proven"])
def test_stop(when: str) -> None:
    """No timer is left."""
    house = Watched()
    if when == "confirmed":
        house.confirm()
    elif when == "binding":
        house.answer(lambda *_: None)
        house.fail(RETURNED)
    elif when == "refused":
        house.fail(FORBIDDEN)
    elif when == "proven":
        house.prove()
    house.source.stop()
    house.advance(3)
    assert house.clock.getDelayedCalls() == []
    if not house.announced[0][1].called:
        house.announced[0][1].errback(BrokerError("the daemon is stopping"))
    assert house.clock.getDelayedCalls() == []
