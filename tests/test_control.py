from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from tests.auth.tower_kit import logged, now
from tests.kit.rows import each_row
from towerws.control import ANSWER_S, INTRODUCE_EVERY_S, LEAVE_S, MAX_WAITING, REPORT_EVERY_S, Control
from towerws.core.control_messages import MAX_DAEMONS, PRESENT_S, ControlMarker, DaemonName, Done, Leaving, parse_control, revocation_id
from towerws.core.errors import BrokerError
from towerws.core.revocation import Disconnection, Revocation

ME, OTHER, THIRD = DaemonName("a" * 16, "here:1"), DaemonName("b" * 16, "there:2"), DaemonName("c" * 16, "far:3")


class House:
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

    def knows(self, *daemons: DaemonName) -> House:
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
    house = House()
    with logged() as lines:
        asked = house.control.revoke(Revocation(user="a\nb"))
        assert house.done == [Revocation(user="a\nb")]
        (body, _, _) = house.announced[0]
        assert body == b'{"user": "a\\nb"}'
        assert not asked.called
        house.deliver()
    assert now(asked) == Disconnection(2, told=True)
    assert lines.texts == ["disconnect user a\\nb: 2 connections ended here; the other daemons were told"]
    assert house.counted(received=1, own=1, announced=1)
    assert house.clock.getDelayedCalls() == []


@each_row("error", [BrokerError("connecting: refused"), ValueError("a bug")])
def test_others_that_are_not_told(error: Exception) -> None:
    """The answer and the log have the reason, and local connections stay ended. Only a bug has a traceback."""
    house = House().knows(OTHER)
    with logged() as lines:
        asked = house.control.revoke(Revocation(session="5e55"))
        house.announced[0][2].errback(error)
    assert now(asked) == Disconnection(2, told=False, reason=str(error))
    assert lines.texts[-1] == f"disconnect session 5e55: 2 connections ended here; the other daemons were not told: {error}"
    assert len(lines.texts) == (1 if isinstance(error, BrokerError) else 2)
    assert house.counted(not_announced=1)
    assert house.clock.getDelayedCalls() == []


EVIDENCE = ["confirm", "own", "other", "third"]


@each_row("order", [EVIDENCE, EVIDENCE[::-1], ["own", "other", "confirm", "third"], ["third", "confirm", "other", "own"]])
@each_row("missing", [None, *EVIDENCE])
def test_the_evidence_that_all_were_told(order: list[str], missing: str | None) -> None:
    """The confirm, the message itself and each daemon's answer, in any order. If one is missing, the result is false, with its name."""
    house = House().knows(OTHER, THIRD)
    asked = house.control.revoke(Revocation(user=7))
    body, message_id, told = house.announced[0]
    steps = {
        "confirm": lambda: told.callback(None),
        "own": lambda: house.control.control(body, message_id),
        "other": lambda: house.hears(Done(OTHER.id, message_id)),
        "third": lambda: house.hears(Done(THIRD.id, message_id)),
    }
    for step in order:
        assert not asked.called
        if step != missing:
            steps[step]()
    if missing == "confirm":  # the ControlPublisher reports that, in the same time
        house.clock.advance(ANSWER_S)
        told.errback(BrokerError("no answer"))
        assert now(asked) == Disconnection(2, told=False, reason="no answer")
    elif missing is None:
        assert now(asked) == Disconnection(2, told=True)
    else:
        house.clock.advance(ANSWER_S - 0.01)
        assert not asked.called
        house.clock.advance(0.01)
        done = now(asked)
        assert (done.told, done.closed) == (False, 2)
        if missing == "own":
            assert "doesn't hear the control exchange" in str(done.reason)
        else:
            silent = OTHER if missing == "other" else THIRD
            assert done.no_answer == ((silent.id, silent.name),)
            assert done.reason == f"no answer within 5 s from {silent.name}"
    assert house.clock.getDelayedCalls() == []
    assert house.control.counts["announced"] == (missing is None)
    for step in order:
        if step != "confirm":
            steps[step]()  # again, or late: harmless


def test_answers_that_count_for_nothing() -> None:
    """Answers to another message, from another daemon, or from one that is not waited for."""
    house = House().knows(OTHER)
    asked = house.control.revoke(Revocation(user=7))
    message_id = house.deliver()
    house.hears(Done(OTHER.id, message_id + "1"), Done(THIRD.id, message_id), Done(ME.id, message_id), Leaving(THIRD.id))
    assert not asked.called
    house.hears(Done(OTHER.id, message_id))
    assert now(asked).told


def test_a_daemon_that_stops_is_not_waited_for() -> None:
    """A pending revocation does not wait for it, and the next one does not either."""
    house = House().knows(OTHER)
    first = house.control.revoke(Revocation(user=7))
    house.deliver()
    assert not first.called
    house.hears(Leaving(OTHER.id))
    assert now(first).told
    second = house.control.revoke(Revocation(user=8))
    house.deliver()
    assert now(second).told


def test_a_daemon_that_died_is_waited_for_a_while() -> None:
    """Its clients may still be connected. After some time without a marker it counts as gone."""
    house = House().knows(OTHER)
    asked = house.control.revoke(Revocation(user=7))
    house.deliver()
    house.clock.advance(ANSWER_S)
    assert now(asked).no_answer == ((OTHER.id, OTHER.name),)
    assert [other["name"] for other in house.control.others] == ["there:2"]
    house.clock.advance(PRESENT_S)
    assert house.control.others == []
    asked = house.control.revoke(Revocation(user=7))
    house.deliver()
    assert now(asked).told


def test_many_that_do_not_answer() -> None:
    """The text names a few of them, the answer all."""
    daemons = [DaemonName(f"{number:016x}", f"web\n{number}:1") for number in range(8)]
    house = House().knows(*daemons)
    asked = house.control.revoke(Revocation(user=7))
    house.deliver()
    house.clock.advance(ANSWER_S)
    done = now(asked)
    assert len(done.no_answer) == 8
    assert str(done.reason).endswith("web\\n4:1 and 3 more")


def test_more_daemons_than_can_be_known() -> None:
    """With too many daemons the answer can't say that all were told."""
    house = House().knows(*(DaemonName(f"{number:016x}", "x") for number in range(MAX_DAEMONS + 1)))
    asked = house.control.revoke(Revocation(user=7))
    message_id = house.deliver()
    house.hears(*(Done(f"{number:016x}", message_id) for number in range(MAX_DAEMONS)))
    assert now(asked) == Disconnection(2, told=False, reason=f"there are more than {MAX_DAEMONS} other daemons")


def test_those_that_wait_are_bounded() -> None:
    """Beyond the bound the answer is negative, at once. Local connections are still closed."""
    house = House().knows(OTHER)
    waiting = [house.control.revoke(Revocation(user=7)) for _ in range(MAX_WAITING)]
    done = now(house.control.revoke(Revocation(user=8)))
    assert (done.told, house.done[-1]) == (False, Revocation(user=8))
    assert len(house.announced) == MAX_WAITING
    for body, message_id, told in house.announced:
        told.callback(None)
        house.control.control(body, message_id)
    house.clock.advance(ANSWER_S)
    assert all(asked.called for asked in waiting)


def test_a_daemon_answers_to_daemons() -> None:
    """It answers after it has followed the revocation, through the same exchange. Other producers get no answer, with any message id."""
    house = House(me=OTHER)
    message_id = revocation_id(ME.id, 3)
    house.control.control(b'{"user": 7}', message_id)
    assert house.done == [Revocation(user=7)]
    assert house.messages == [Done(OTHER.id, message_id)]
    assert house.counted(received=1)
    house.announced[0][2].callback(None)
    assert house.counted(received=1, answers=1)
    for other in (None, "m1", ME.id, OTHER.id):
        house.control.control(b'{"user": 7}', other)
    assert len(house.announced) == 1


def test_an_answer_that_can_not_be_published() -> None:
    """It is counted, and logged once a minute. The other daemon then reports false to its caller."""
    house = House(me=OTHER)
    with logged() as lines:
        for number in range(3):
            house.control.control(b'{"user": 7}', revocation_id(ME.id, number))
            house.announced[-1][2].errback(BrokerError("403 ACCESS_REFUSED"))
    assert house.control.counts["not_answered"] == 3
    assert [line for line in lines.texts if "403" in line] == [
        "a revocation was followed, and the daemon that sent it could not be told: 403 ACCESS_REFUSED"
    ]


def test_a_new_daemon_is_greeted() -> None:
    """It must know the others before it can wait for them. They send it a marker now, at most one per second for all new daemons."""
    house = House()
    house.hears(ControlMarker(OTHER, "x"), ControlMarker(THIRD, "x"), ControlMarker(ME, "its own"))
    house.clock.advance(0)
    assert [type(message) for message in house.messages] == [ControlMarker]
    house.announced[0][2].callback(None)
    house.hears(ControlMarker(OTHER, "x"), ControlMarker(THIRD, "x"))
    house.clock.advance(INTRODUCE_EVERY_S / 2)
    assert len(house.announced) == 1
    house.hears(*(ControlMarker(DaemonName(f"{number:016x}", "x"), "x") for number in range(20)))
    house.clock.advance(0.1)
    assert len(house.announced) == 1
    house.clock.advance(INTRODUCE_EVERY_S)
    assert len(house.announced) == 2
    house.announced[1][2].errback(BrokerError("the next marker says it"))
    house.clock.advance(5)
    assert len(house.announced) == 2
    assert house.clock.getDelayedCalls() == []
    assert house.counted()


def test_leaving() -> None:
    """The others are told, and waiting callers get an answer. Then it greets and answers no daemon. It takes at most LEAVE_S."""
    for answer in ("confirmed", "refused", "never"):
        house = House().knows(OTHER)
        asked = house.control.revoke(Revocation(user=7))
        house.hears(ControlMarker(THIRD, "x"))
        left = house.control.leave()
        assert now(asked) == Disconnection(2, told=False, reason="the daemon is stopping")
        house.control.control(b'{"user": 8}', revocation_id(OTHER.id, 1))
        assert house.done[-1] == Revocation(user=8)
        assert house.messages[1:] == [Leaving(ME.id)]
        assert not left.called
        told = house.announced[-1][2]
        if answer == "confirmed":
            told.callback(None)
        elif answer == "refused":
            told.errback(BrokerError("connecting: connection refused"))
        else:
            house.clock.advance(LEAVE_S)
        assert now(left) is None
        assert house.clock.getDelayedCalls() == []
        house.announced[0][2].errback(BrokerError("the daemon is stopping"))
        if answer == "never":
            told.errback(BrokerError("the daemon is stopping"))
    assert now(House(alone=True).control.leave()) is None


def test_alone_there_is_nobody_to_tell() -> None:
    """Without a broker the answer comes at once."""
    assert now(House(alone=True).control.revoke(Revocation(user=7))) == Disconnection(2)


def test_ones_own_message_is_not_followed_again() -> None:
    """It comes back like every other, and a user who logged in since then stays. Another daemon's equal message is followed."""
    house, other = House(), House(me=OTHER)
    house.control.revoke(Revocation(user=7))
    (body, message_id, _) = house.announced[0]
    house.control.control(body, message_id)
    assert house.done == [Revocation(user=7)]
    other.control.control(body, message_id)
    assert other.done == [Revocation(user=7)]
    assert (house.control.counts["own"], other.control.counts["own"]) == (1, 0)
    house.control.revoke(Revocation(user=7))
    assert house.announced[1][1] != message_id


def test_messages_of_any_producer() -> None:
    """A message needs no id. It is logged if it closed a connection."""
    house = House()
    with logged() as lines:
        house.control.control(b'{"session":"5e55"}', None)
        house.closes = 0
        house.control.control(b'{"user":8}', "theirs")
    assert house.done == [Revocation(session="5e55"), Revocation(user=8)]
    assert lines.texts == ["disconnect session 5e55, by a control message: 2 connections ended here"]


@each_row("body", [b"", b"canary", b"{}", b'{"user": 7, "canary": 1}', b"\xff", b"[" * 8000, b'{"user": 7}' + b" " * 9000])
def test_garbage_is_counted_and_harmless(body: bytes) -> None:
    """One line in a minute gives the length and the rule, and repeats none of it. The next valid message is followed."""
    house = House()
    with logged() as lines:
        for _ in range(50):
            house.control.control(body, None)
        house.clock.advance(REPORT_EVERY_S)
        house.control.control(body, None)
    assert len(lines.texts) == 2
    assert lines.texts[0].startswith(f"control message of {len(body)} bytes skipped: ")
    assert "canary" not in lines.everything()
    assert house.done == []
    assert house.control.counts["bad"] == 51
    house.control.control(b'{"user": 7}', None)
    assert house.done == [Revocation(user=7)]


def test_what_may_have_been_missed() -> None:
    """Whenever delivery starts, earlier messages may have been missed."""
    house = House()
    house.control.listening()
    assert house.done == ["recheck_all"]
