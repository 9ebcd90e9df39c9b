from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from tests.auth.tower_kit import logged, now
from tests.kit.rows import each_row
from towerws.control import ANSWER_S, INTRODUCE_EVERY_S, LEAVE_S, MAX_WAITING, REPORT_EVERY_S, Control
from towerws.core.control_messages import MAX_DAEMONS, PRESENT_S, ControlMarker, DaemonName, Done, Leaving, parse_control, revocation_id
from towerws.core.errors import BrokerError
from towerws.core.identity import Disconnection, Revocation

ME, OTHER, THIRD = DaemonName("a" * 16, "here:1"), DaemonName("b" * 16, "there:2"), DaemonName("c" * 16, "far:3")


class ControlRig:
    """A daemon's control that records its calls. There are always two connections to close."""

    def __init__(self, *, alone: bool = False, me: DaemonName = ME) -> None:
        self.clock = Clock()
        self.me = me
        self.done: list[object] = []
        self.announced: list[tuple[bytes, str, Deferred[None]]] = []
        self.closes = 2
        self.control = Control(
            self.disconnect,
            lambda: self.done.append("recheck_all"),
            None if alone else self.announce,
            self.clock,
            me.id,
            lambda text: ControlMarker(me, text).body,
        )

    def disconnect(self, revocation: Revocation) -> int:
        """Record the revocation."""
        self.done.append(revocation)
        return self.closes

    def announce(self, body: bytes, message_id: str) -> Deferred[None]:
        """Record the message. The test answers."""
        self.announced.append((body, message_id, Deferred()))
        return self.announced[-1][2]

    def hears(self, *messages: ControlMarker | Done | Leaving) -> None:
        """Deliver messages of other daemons."""
        for message in messages:
            self.control.control(message.body, f"{message.daemon}.1")

    def knows(self, *daemons: DaemonName) -> ControlRig:
        """Deliver markers of these daemons. Messages that it publishes in answer are put aside."""
        self.hears(*(ControlMarker(daemon, "x") for daemon in daemons))
        self.clock.advance(INTRODUCE_EVERY_S)
        self.announced.clear()
        return self

    def deliver(self, number: int = -1) -> str:
        """Confirm a message and deliver it, as the broker does to all. Returns its id."""
        body, message_id, told = self.announced[number]
        told.callback(None)
        self.control.control(body, message_id)
        return message_id

    @property
    def messages(self) -> list[object]:
        """The published messages, decoded as other daemons do."""
        return [parse_control(body) for body, _, _ in self.announced]

    def counted(self, **counts: int) -> bool:
        """Whether these are exactly the figures other than 0."""
        return {name: count for name, count in self.control.counts.items() if count} == counts


def test_a_revocation_from_here_is_followed_at_once_and_told_the_others() -> None:
    """Local connections end before the broker is asked. The answer waits until the others know, and the log reports both."""
    rig = ControlRig()
    with logged() as lines:
        asked = rig.control.revoke(Revocation(user="a\nb"))
        assert rig.done == [Revocation(user="a\nb")]
        (body, _, _) = rig.announced[0]
        assert body == b'{"user": "a\\nb"}'
        assert not asked.called
        rig.deliver()
    assert now(asked) == Disconnection(2, told=True)
    assert lines.texts == ["disconnect user a\\nb: 2 connections ended here; the other daemons were told"]
    assert rig.counted(received=1, own=1, announced=1)
    assert rig.clock.getDelayedCalls() == []


@each_row("error", [BrokerError("connecting: refused"), ValueError("a bug")])
def test_others_that_are_not_told(error: Exception) -> None:
    """The answer and the log have the reason, and local connections stay ended. Only a bug has a traceback."""
    rig = ControlRig().knows(OTHER)
    with logged() as lines:
        asked = rig.control.revoke(Revocation(session="5e55"))
        rig.announced[0][2].errback(error)
    assert now(asked) == Disconnection(2, told=False, reason=str(error))
    assert lines.texts[-1] == f"disconnect session 5e55: 2 connections ended here; the other daemons were not told: {error}"
    assert len(lines.texts) == (1 if isinstance(error, BrokerError) else 2)
    assert rig.counted(not_announced=1)
    assert rig.clock.getDelayedCalls() == []


EVIDENCE = ["confirm", "own", "other", "third"]


@each_row("order", [EVIDENCE, EVIDENCE[::-1], ["own", "other", "confirm", "third"], ["third", "confirm", "other", "own"]])
@each_row("missing", [None, *EVIDENCE])
def test_a_revocation_is_complete_after_the_confirm_and_every_answer(order: list[str], missing: str | None) -> None:
    """The confirm, the message itself and each daemon's answer, in any order. If one is missing, the result is false, with its name."""
    rig = ControlRig().knows(OTHER, THIRD)
    asked = rig.control.revoke(Revocation(user=7))
    body, message_id, told = rig.announced[0]
    steps = {
        "confirm": lambda: told.callback(None),
        "own": lambda: rig.control.control(body, message_id),
        "other": lambda: rig.hears(Done(OTHER.id, message_id)),
        "third": lambda: rig.hears(Done(THIRD.id, message_id)),
    }
    for step in order:
        assert not asked.called
        if step != missing:
            steps[step]()
    if missing == "confirm":  # the ControlPublisher reports that, in the same time
        rig.clock.advance(ANSWER_S)
        told.errback(BrokerError("no answer"))
        assert now(asked) == Disconnection(2, told=False, reason="no answer")
    elif missing is None:
        assert now(asked) == Disconnection(2, told=True)
    else:
        rig.clock.advance(ANSWER_S - 0.01)
        assert not asked.called
        rig.clock.advance(0.01)
        done = now(asked)
        assert (done.told, done.closed) == (False, 2)
        if missing == "own":
            assert "doesn't hear the control exchange" in str(done.reason)
        else:
            silent = OTHER if missing == "other" else THIRD
            assert done.no_answer == ((silent.id, silent.name),)
            assert done.reason == f"no answer within 5 s from {silent.name}"
    assert rig.clock.getDelayedCalls() == []
    assert rig.control.counts["announced"] == (missing is None)
    for step in order:
        if step != "confirm":
            steps[step]()  # again, or late: harmless


def test_answers_that_count_for_nothing() -> None:
    """Answers to another message, from another daemon, or from one that is not waited for."""
    rig = ControlRig().knows(OTHER)
    asked = rig.control.revoke(Revocation(user=7))
    message_id = rig.deliver()
    rig.hears(Done(OTHER.id, message_id + "1"), Done(THIRD.id, message_id), Done(ME.id, message_id), Leaving(THIRD.id))
    assert not asked.called
    rig.hears(Done(OTHER.id, message_id))
    assert now(asked).told


def test_a_daemon_that_stops_is_not_waited_for() -> None:
    """A pending revocation does not wait for it, and the next one does not either."""
    rig = ControlRig().knows(OTHER)
    first = rig.control.revoke(Revocation(user=7))
    rig.deliver()
    assert not first.called
    rig.hears(Leaving(OTHER.id))
    assert now(first).told
    second = rig.control.revoke(Revocation(user=8))
    rig.deliver()
    assert now(second).told


def test_a_daemon_that_died_is_waited_for_a_while() -> None:
    """Its clients may still be connected. After some time without a marker it counts as gone."""
    rig = ControlRig().knows(OTHER)
    asked = rig.control.revoke(Revocation(user=7))
    rig.deliver()
    rig.clock.advance(ANSWER_S)
    assert now(asked).no_answer == ((OTHER.id, OTHER.name),)
    assert [other["name"] for other in rig.control.others] == ["there:2"]
    rig.clock.advance(PRESENT_S)
    assert rig.control.others == []
    asked = rig.control.revoke(Revocation(user=7))
    rig.deliver()
    assert now(asked).told


def test_many_that_do_not_answer() -> None:
    """The text names a few of them, the answer all."""
    daemons = [DaemonName(f"{number:016x}", f"web\n{number}:1") for number in range(8)]
    rig = ControlRig().knows(*daemons)
    asked = rig.control.revoke(Revocation(user=7))
    rig.deliver()
    rig.clock.advance(ANSWER_S)
    done = now(asked)
    assert len(done.no_answer) == 8
    assert str(done.reason).endswith("web\\n4:1 and 3 more")


def test_more_daemons_than_can_be_known() -> None:
    """With too many daemons the answer can't say that all were told."""
    rig = ControlRig().knows(*(DaemonName(f"{number:016x}", "x") for number in range(MAX_DAEMONS + 1)))
    asked = rig.control.revoke(Revocation(user=7))
    message_id = rig.deliver()
    rig.hears(*(Done(f"{number:016x}", message_id) for number in range(MAX_DAEMONS)))
    assert now(asked) == Disconnection(2, told=False, reason=f"there are more than {MAX_DAEMONS} other daemons")


def test_those_that_wait_are_bounded() -> None:
    """Beyond the bound the answer is negative, at once. Local connections are still closed."""
    rig = ControlRig().knows(OTHER)
    waiting = [rig.control.revoke(Revocation(user=7)) for _ in range(MAX_WAITING)]
    done = now(rig.control.revoke(Revocation(user=8)))
    assert (done.told, rig.done[-1]) == (False, Revocation(user=8))
    assert len(rig.announced) == MAX_WAITING
    for body, message_id, told in rig.announced:
        told.callback(None)
        rig.control.control(body, message_id)
    rig.clock.advance(ANSWER_S)
    assert all(asked.called for asked in waiting)


def test_a_daemon_answers_to_daemons() -> None:
    """It answers after it has followed the revocation, through the same exchange. Other producers get no answer, with any message id."""
    rig = ControlRig(me=OTHER)
    message_id = revocation_id(ME.id, 3)
    rig.control.control(b'{"user": 7}', message_id)
    assert rig.done == [Revocation(user=7)]
    assert rig.messages == [Done(OTHER.id, message_id)]
    assert rig.counted(received=1)
    rig.announced[0][2].callback(None)
    assert rig.counted(received=1, answers=1)
    for other in (None, "m1", ME.id, OTHER.id):
        rig.control.control(b'{"user": 7}', other)
    assert len(rig.announced) == 1


def test_an_answer_that_can_not_be_published() -> None:
    """It is counted, and logged once a minute. The other daemon then reports false to its caller."""
    rig = ControlRig(me=OTHER)
    with logged() as lines:
        for number in range(3):
            rig.control.control(b'{"user": 7}', revocation_id(ME.id, number))
            rig.announced[-1][2].errback(BrokerError("403 ACCESS_REFUSED"))
    assert rig.control.counts["not_answered"] == 3
    assert [line for line in lines.texts if "403" in line] == [
        "a revocation was carried out, but the daemon that sent it could not be told: 403 ACCESS_REFUSED"
    ]


def test_a_new_daemon_is_greeted() -> None:
    """It must know the others before it can wait for them. They send it a marker now, at most one per second for all new daemons."""
    rig = ControlRig()
    rig.hears(ControlMarker(OTHER, "x"), ControlMarker(THIRD, "x"), ControlMarker(ME, "its own"))
    rig.clock.advance(0)
    assert [type(message) for message in rig.messages] == [ControlMarker]
    rig.announced[0][2].callback(None)
    rig.hears(ControlMarker(OTHER, "x"), ControlMarker(THIRD, "x"))
    rig.clock.advance(INTRODUCE_EVERY_S / 2)
    assert len(rig.announced) == 1
    rig.hears(*(ControlMarker(DaemonName(f"{number:016x}", "x"), "x") for number in range(20)))
    rig.clock.advance(0.1)
    assert len(rig.announced) == 1
    rig.clock.advance(INTRODUCE_EVERY_S)
    assert len(rig.announced) == 2
    rig.announced[1][2].errback(BrokerError("the next marker says it"))
    rig.clock.advance(5)
    assert len(rig.announced) == 2
    assert rig.clock.getDelayedCalls() == []
    assert rig.counted()


def test_leaving() -> None:
    """The others are told, and waiting callers get an answer. Then it greets and answers no daemon. It takes at most LEAVE_S."""
    for answer in ("confirmed", "refused", "never"):
        rig = ControlRig().knows(OTHER)
        asked = rig.control.revoke(Revocation(user=7))
        rig.hears(ControlMarker(THIRD, "x"))
        left = rig.control.leave()
        assert now(asked) == Disconnection(2, told=False, reason="the daemon is stopping")
        rig.control.control(b'{"user": 8}', revocation_id(OTHER.id, 1))
        assert rig.done[-1] == Revocation(user=8)
        assert rig.messages[1:] == [Leaving(ME.id)]
        assert not left.called
        told = rig.announced[-1][2]
        if answer == "confirmed":
            told.callback(None)
        elif answer == "refused":
            told.errback(BrokerError("connecting: connection refused"))
        else:
            rig.clock.advance(LEAVE_S)
        assert now(left) is None
        assert rig.clock.getDelayedCalls() == []
        rig.announced[0][2].errback(BrokerError("the daemon is stopping"))
        if answer == "never":
            told.errback(BrokerError("the daemon is stopping"))
    assert now(ControlRig(alone=True).control.leave()) is None


def test_without_a_broker_the_answer_comes_at_once() -> None:
    """Without a broker the answer comes at once."""
    assert now(ControlRig(alone=True).control.revoke(Revocation(user=7))) == Disconnection(2)


def test_ones_own_message_is_not_followed_again() -> None:
    """It comes back like every other, and a user who logged in since then stays. Another daemon's equal message is followed."""
    rig, other = ControlRig(), ControlRig(me=OTHER)
    rig.control.revoke(Revocation(user=7))
    (body, message_id, _) = rig.announced[0]
    rig.control.control(body, message_id)
    assert rig.done == [Revocation(user=7)]
    other.control.control(body, message_id)
    assert other.done == [Revocation(user=7)]
    assert (rig.control.counts["own"], other.control.counts["own"]) == (1, 0)
    rig.control.revoke(Revocation(user=7))
    assert rig.announced[1][1] != message_id


def test_messages_of_any_producer() -> None:
    """A message needs no id. It is logged if it closed a connection."""
    rig = ControlRig()
    with logged() as lines:
        rig.control.control(b'{"session":"5e55"}', None)
        rig.closes = 0
        rig.control.control(b'{"user":8}', "theirs")
    assert rig.done == [Revocation(session="5e55"), Revocation(user=8)]
    assert lines.texts == ["disconnect session 5e55, by a control message: 2 connections ended here"]


@each_row("body", [b"", b"canary", b"{}", b'{"user": 7, "canary": 1}', b"\xff", b"[" * 8000, b'{"user": 7}' + b" " * 9000])
def test_garbage_is_counted_and_harmless(body: bytes) -> None:
    """One line in a minute gives the length and the rule, and repeats none of it. The next valid message is followed."""
    rig = ControlRig()
    with logged() as lines:
        for _ in range(50):
            rig.control.control(body, None)
        rig.clock.advance(REPORT_EVERY_S)
        rig.control.control(body, None)
    assert len(lines.texts) == 2
    assert lines.texts[0].startswith(f"control message of {len(body)} bytes skipped: ")
    assert "canary" not in lines.everything()
    assert rig.done == []
    assert rig.control.counts["bad"] == 51
    rig.control.control(b'{"user": 7}', None)
    assert rig.done == [Revocation(user=7)]


def test_what_may_have_been_missed() -> None:
    """Whenever delivery starts, earlier messages may have been missed."""
    rig = ControlRig()
    rig.control.listening()
    assert rig.done == ["recheck_all"]
