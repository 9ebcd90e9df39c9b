"""The binding of the control queue is proven by markers. What was read decides, never silence."""

from __future__ import annotations

from pika import spec

from tests.auth.tower_kit import logged
from tests.broker.control_kit import ControlRig, is_control
from tests.kit.rows import each_row
from towerws.broker.control_watch import COME_S, LOG_AGAIN_S, MARKER_S, PROVEN_S, REFUSED_S, SILENT_S
from towerws.core.errors import BrokerError

RETURNED = BrokerError("no daemon listens to exchange towerws.control", 312)
NO_EXCHANGE = BrokerError("amqp://one: 404 NOT_FOUND - no exchange 'towerws.control' in vhost '/'", 404)
FORBIDDEN = BrokerError("amqp://one: 403 ACCESS_REFUSED - access to exchange 'towerws.control' in vhost '/' refused", 403)
ALARM = BrokerError("publishing: no answer from the broker within 5 s (is it in a memory or disk alarm?)")
NACK = BrokerError("the broker did not put it into every queue: a daemon's is full, or its node is down")


class Watched(ControlRig):
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
    rig = Watched()
    assert rig.status == ("listening", False, 0)
    assert "no marker has come back yet" in rig.reason
    for number in range(1, 6):
        assert len(rig.announced) == number
        rig.prove()
        assert rig.listener.status["reason"] is None
        rig.advance(MARKER_S, 0.5)
    assert rig.bindings == 1
    assert rig.heard.calls == ["listening"]
    assert len({text for text, _ in rig.announced}) == 6


def test_a_marker_may_come_before_or_after_its_confirm() -> None:
    """The order of the two does not matter, even with some time between them."""
    rig = Watched()
    rig.confirm()
    rig.advance(COME_S / 2)
    rig.come(rig.newest)
    rig.advance(MARKER_S, 0.5)
    rig.come(rig.newest)
    rig.advance(2 * COME_S)
    rig.confirm()
    rig.advance(2 * COME_S)
    assert rig.status == ("listening", True, 0)
    assert rig.bindings == 1


@each_row("error", [RETURNED, NO_EXCHANGE])
def test_unbound(error: BrokerError) -> None:
    """The broker returns the marker: bind again, re-check the credentials, log it once, and prove the binding again."""
    rig = Watched()
    rig.prove()
    with logged() as lines:
        rig.advance(MARKER_S, 0.5)
        rig.fail(error)
        assert rig.bindings == 2
        assert [is_control(method) for _, method in rig.broker.peer.methods].count(True) == 2
        assert rig.heard.calls == ["listening"] * 2
        assert len(rig.announced) == 3
        rig.prove()
    assert rig.status == ("listening", True, 1)
    (line,) = lines.texts
    assert "was not bound to it any more" in line
    assert str(error) in line
    rig.advance(MARKER_S, 0.5)
    rig.prove()
    assert rig.heard.calls == ["listening"] * 2


def test_only_this_daemon_is_unbound() -> None:
    """Other daemons' queues take the marker, so it is confirmed. A later one that comes proves that it is missing here."""
    rig = Watched()
    rig.prove()
    rig.advance(MARKER_S, 0.5)
    rig.confirm()
    with logged() as lines:
        rig.advance(COME_S + 0.1)
        assert rig.bindings == 2
        assert rig.heard.calls == ["listening"], "silence is no evidence"
        assert len(rig.announced) == 3
        rig.confirm()
        assert rig.heard.calls == ["listening"]
        rig.come(rig.newest)
    assert rig.status == ("listening", True, 1)
    assert rig.heard.calls == ["listening"] * 2
    (line,) = lines.texts
    assert "a later one did" in line


def test_a_slow_marker_is_not_a_missing_one() -> None:
    """It comes after the queue was bound again, and before the next one: nothing was missed, and nothing is re-checked."""
    rig = Watched()
    rig.confirm()
    rig.advance(COME_S + 0.1)
    rig.come(rig.announced[0][0])
    rig.come(rig.newest)
    rig.confirm()
    assert rig.status == ("listening", True, 0)
    assert rig.heard.calls == ["listening"]
    assert rig.bindings == 2


@each_row("late", ["one after the other", "the first one never"])
def test_a_slow_connection(late: str) -> None:
    """Nothing comes for a while: not proven, with the reason, and no conclusion until something is read."""
    rig = Watched()
    rig.prove()
    with logged() as lines:
        for _ in range(4):
            rig.advance(MARKER_S, 0.5)
            if not rig.announced[-1][1].called:
                rig.confirm()
        assert rig.status == ("listening", False, 0)
        assert "has not come back" in rig.reason
        assert rig.heard.calls == ["listening"]
        assert [("binding not proven" in line) for line in lines.texts] == [True]
        missing = [text for text, answer in rig.announced[1:] if answer.called]
        for text in missing[1:] if late == "the first one never" else missing:
            rig.come(text)
        rig.prove()
    unbound = late == "the first one never"
    assert rig.status == ("listening", True, unbound)
    assert rig.heard.calls.count("listening") == 1 + unbound
    assert any("proven again" in line for line in lines.texts)


@each_row("error", [ALARM, NACK, BrokerError("connecting: connection refused"), ValueError("a bug")])
def test_a_marker_that_says_nothing(error: Exception) -> None:
    """An alarm, a full queue, no connection: not proven after a while, with the reason. Nothing is bound, re-checked or restarted."""
    rig = Watched()
    rig.prove()
    with logged() as lines:
        for _ in range(12):
            rig.advance(MARKER_S, 0.5)
            rig.fail(error)
    assert rig.status == ("listening", False, 0)
    assert str(error) in rig.reason
    assert rig.bindings == 1
    assert rig.heard.calls == ["listening"]
    assert sum("binding not proven" in line for line in lines.texts) == 1
    rig.advance(MARKER_S, 0.5)
    rig.prove()


def test_it_counts_as_proven_for_a_while() -> None:
    """One or two markers may fail."""
    rig = Watched()
    rig.prove()
    rig.advance(MARKER_S, 0.5)
    rig.fail(ALARM)
    rig.advance(PROVEN_S - MARKER_S - 1, 0.5)
    assert rig.listener.status["proven"]
    rig.advance(2, 0.5)
    assert not rig.listener.status["proven"]


def test_a_daemon_that_may_not_publish() -> None:
    """It reports that, binds again at each interval, and publishes once a minute. Other daemons' messages prove its binding."""
    rig = Watched()
    with logged() as lines:
        rig.fail(FORBIDDEN)
        assert "403 ACCESS_REFUSED" in rig.reason
        rig.advance(REFUSED_S - 1, 0.5)
        assert len(rig.announced) == 1
        assert rig.bindings == 1 + 1 + 5
        assert rig.heard.calls == ["listening"]
        assert rig.status == ("listening", False, 0)
        rig.come("of another daemon", b'{"daemon": "0123456789abcdef"}')
        assert rig.status == ("listening", True, 0)
        rig.advance(2, 0.5)
        assert len(rig.announced) == 2
        rig.fail(FORBIDDEN)
        assert len(lines.texts) == 1
        rig.advance(LOG_AGAIN_S + REFUSED_S, 0.5)
        for _ in range(2):
            rig.advance(REFUSED_S + MARKER_S, 0.5)
            if not rig.announced[-1][1].called:
                rig.prove()
    assert rig.status == ("listening", True, 0)
    count = len(rig.announced)
    rig.advance(MARKER_S, 0.5)
    assert len(rig.announced) == count + 1


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
    rig = Watched(passive=passive)
    rig.prove()
    rig.advance(MARKER_S, 0.5)
    rig.refuse(code, text)
    rig.fail(RETURNED)
    assert rig.state() == "paused"
    assert rig.reason.startswith(f"{code} {text}")
    rig.allow()
    rig.advance(1.1)
    assert rig.state() == "listening"
    assert rig.heard.calls == ["listening"] * 2
    rig.prove()


def test_bound_again_and_still_returned() -> None:
    """It is tried once per interval, not in a loop. Credentials are re-checked once. The status and one log line give the reason."""
    rig = Watched()
    with logged() as lines:
        for _ in range(5):
            rig.fail(RETURNED)
            rig.fail(RETURNED)
            rig.advance(MARKER_S, 0.5)
    assert rig.bindings == 1 + 5
    assert len(rig.announced) == 11
    assert rig.heard.calls == ["listening"] * 2
    assert rig.status == ("listening", False, 1)
    assert sum("bound again, and still" in line for line in lines.texts) == 1
    rig.prove()
    rig.advance(MARKER_S, 0.5)
    rig.fail(RETURNED)
    assert rig.listener.status["unbound"] == 2


def test_a_channel_on_which_nothing_comes() -> None:
    """The broker confirms all markers and delivers none: after a minute another channel and queue replace them."""
    rig = Watched()
    rig.prove()
    with logged() as lines:
        for _ in range(round(SILENT_S / MARKER_S)):
            rig.advance(MARKER_S, 0.5)
            if not rig.announced[-1][1].called:
                rig.confirm()
            assert rig.heard.calls == ["listening"]
        rig.advance(2 * MARKER_S, 0.5)
    assert rig.listener.status["failures"] == 1
    assert rig.state() == "listening"
    assert rig.heard.calls == ["listening"] * 2
    assert len(rig.broker.peers) == 1
    assert "nothing arrived for 60 s" in "".join(lines.texts)
    rig.prove()


def test_no_answer_to_the_binding() -> None:
    """It has a deadline, as the set-up has. Events flow meanwhile."""
    rig = Watched(attempt_s=5)
    rig.prove()
    rig.advance(MARKER_S, 0.5)
    rig.answer(lambda *_: None)
    rig.fail(RETURNED)
    rig.advance(6, 0.5)
    assert "no answer within 5 s" in rig.reason
    assert rig.events_flow


def test_no_answer_to_the_binding_while_markers_are_refused() -> None:
    """It is bound again at each interval then. A deadline that is longer than the interval still ends, and only one binding waits."""
    rig = Watched(attempt_s=2 * MARKER_S + 1)
    rig.answer(lambda *_: None)
    before = rig.set_ups()
    rig.fail(FORBIDDEN)
    rig.advance(2 * MARKER_S, 0.5)
    assert (rig.state(), rig.set_ups() - before) == ("listening", 1)
    rig.advance(2, 0.5)
    assert "no answer within 21 s" in rig.reason
    assert rig.events_flow


@each_row("answer", ["confirmed", "returned", "refused", "comes"])
@each_row("how", ["cut", "cancelled"])
def test_an_answer_that_comes_too_late(how: str, answer: str) -> None:
    """A marker of a closed channel says nothing about the next one."""
    rig = Watched()
    text = rig.newest
    if how == "cut":
        rig.broker.cut()
        rig.advance(2)
    else:
        peer, channel = rig.broker.peer, rig.channel
        peer.send(channel, spec.Basic.Cancel(peer.consumers[channel]))
        rig.broker.settle()
        rig.advance(1.1)
    assert rig.status == ("listening", False, 0)
    heard, bindings = list(rig.heard.calls), rig.bindings
    if answer == "comes":
        rig.come(text)
        assert rig.heard.calls.pop() == (b"{}", text)
    elif answer == "confirmed":
        rig.confirm(0)
    else:
        rig.announced[0][1].errback(RETURNED if answer == "returned" else FORBIDDEN)
    rig.advance(COME_S + 1)
    assert rig.heard.calls == heard
    assert (rig.bindings, rig.status[2]) == (bindings, 0)
    rig.prove()


@each_row("when", ["on its way", "confirmed", "binding", "refused", "proven"])
def test_stop(when: str) -> None:
    """No timer is left."""
    rig = Watched()
    if when == "confirmed":
        rig.confirm()
    elif when == "binding":
        rig.answer(lambda *_: None)
        rig.fail(RETURNED)
    elif when == "refused":
        rig.fail(FORBIDDEN)
    elif when == "proven":
        rig.prove()
    rig.source.stop()
    rig.advance(3)
    assert rig.clock.getDelayedCalls() == []
    if not rig.announced[0][1].called:
        rig.announced[0][1].errback(BrokerError("the daemon is stopping"))
    assert rig.clock.getDelayedCalls() == []
