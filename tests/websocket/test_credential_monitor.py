from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher

from tests.kit.rows import each_row
from tests.kit.ws_kit import WALL, Client, Edge, Edges, edges, request
from towerws.auth.base import Refused, Unavailable
from towerws.core.deliveries import Marker
from towerws.core.errors import CloseReason
from towerws.core.http_head import Head
from towerws.core.identity import Identity, Revocation
from towerws.core.settings import AccessSettings
from towerws.websocket.credential_monitor import CREDENTIALS_AT_ONCE, CREDENTIALS_PER_TICK
from towerws.websocket.session import MAX_UNCHECKED_S


@pytest.fixture
def make() -> Iterator[Edges]:
    """Edges in memory, checked for leaks at the end."""
    with edges() as maker:
        yield maker


class Tower:
    """A method whose users and objects the test can revoke. The query names the user and the session."""

    name = "tower"

    def __init__(self) -> None:
        self.expires_at: float | None = None
        self.checked_at: float | None = None
        self.answer: Deferred[Identity] | Exception | None = None
        self.hidden: dict[str, str] = {}
        self.asked: list[str | None] = []
        self.forgotten: list[Revocation | None] = []

    def authenticate(self, head: Head, address: str) -> Deferred[Identity | None]:
        """Fires at once."""
        user, _, session = head.query.partition("-")
        return succeed(Identity(int(user), "tower", session=session or None, expires_at=self.expires_at, checked_at=self.checked_at))

    def refusals(self, identity: Identity, topics: Sequence[str]) -> Deferred[dict[str, str]]:
        """Fires at once."""
        return succeed({topic: self.hidden[topic] for topic in topics if topic in self.hidden})

    def revalidate(self, identity: Identity) -> Deferred[Identity]:
        """Gives the answer that the test set, else the identity unchanged."""
        self.asked.append(identity.session)
        if isinstance(self.answer, Deferred):
            return self.answer
        return fail(self.answer) if self.answer is not None else succeed(dataclasses.replace(identity, private="new"))

    def forget(self, revocation: Revocation | None) -> None:
        """Note it."""
        self.forgotten.append(revocation)

    def stop(self) -> Deferred[None]:
        """Nothing to close."""
        return succeed(None)


def enter(edge: Edge, who: str, *, v1: bool = False) -> Client:
    """A client whose connection is open."""
    client = edge.connect().send(request(f"/websocket/?{who}", v1=v1))
    assert client.take()
    return client


def watch(edge: Edge, seconds: float) -> None:
    """Let the credential monitor run its rounds for some time. Clients answer pings meanwhile."""
    edge.context.credential_monitor.start()
    for _ in range(round(seconds)):
        edge.clock.advance(1)
    edge.context.credential_monitor.stop()


def test_disconnect_by_user_and_by_session(make: Edges) -> None:
    """Exactly the named connections are closed, with 1008. The method drops its cache for them, and other connections notice nothing."""
    method = Tower()
    edge = make(method, ping_s=3600)
    disconnect = edge.context.credential_monitor.disconnect
    first, second = enter(edge, "7-a"), enter(edge, "7-b", v1=True)
    other = enter(edge, "8-c").listen(1)
    assert disconnect(Revocation(user=7)) == 2
    assert first.close_code() == 1008
    (bye,) = second.take()
    assert (bye["type"], bye["action"], bye["reason"]) == ("bye", "authenticate", "credential no longer valid")
    assert second.close_code() == 1008
    assert disconnect(Revocation(user="7")) == disconnect(Revocation(session="a")) == 0
    edge.publish("job_events.1", {"n": 1})
    assert other.take() == [{"n": 1}]
    assert disconnect(Revocation(session="c")) == 1
    assert other.close_code() == 1008
    assert edge.context.credential_monitor.revoked == 3
    assert method.forgotten == [Revocation(user=7), Revocation(user="7"), Revocation(session="a"), Revocation(session="c")]


class Slow(Tower):
    """A method that answers during the handshake only when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[Deferred[Identity | None]] = []

    def authenticate(self, head: Head, address: str) -> Deferred[Identity | None]:
        """Fires when the test says so."""
        self.waiting.append(Deferred())
        return self.waiting[-1]


@each_row("revocation", [Revocation(user=7), Revocation(user="7"), Revocation(session="a")])
@each_row("later", [0, 14.5], make=edges)
def test_a_handshake_that_was_under_way(make: Edges, revocation: Revocation, later: float) -> None:
    """An authentication that began before the revocation opens nothing, however late it succeeds. Others do."""
    method = Slow()
    edge = make(method, handshake_s=15)
    client, other = (edge.connect().send(request()) for _ in range(2))
    assert edge.context.credential_monitor.disconnect(revocation) == 0
    edge.clock.advance(later)
    method.waiting[0].callback(Identity(7, "tower", session="a"))
    method.waiting[1].callback(Identity(8, "tower", session="b"))
    assert client.status == 403
    assert b"the credential was refused" in client.response
    assert edge.factory.refused_for == {"revoked": 1}
    assert other.status == 101
    edge.clock.advance(0.001)
    again = edge.connect().send(request())
    method.waiting[2].callback(Identity(7, "tower", session="a"))
    assert again.status == 101


def test_when_revocations_may_have_been_missed(make: Edges) -> None:
    """All credentials are checked again over the next ticks, a bounded number in each. Cached answers no longer count."""
    method = Tower()
    edge = make(method, ping_s=3600)
    for number in range(CREDENTIALS_PER_TICK + 20):
        enter(edge, f"{number}-{number}")
    edge.context.credential_monitor.recheck_all()
    assert method.forgotten == [None]
    watch(edge, 1)
    assert len(method.asked) == CREDENTIALS_PER_TICK
    watch(edge, 1)
    assert len(set(method.asked)) == CREDENTIALS_PER_TICK + 20
    watch(edge, 20)
    assert len(method.asked) == CREDENTIALS_PER_TICK + 20


def test_expiry_follows_the_wall_clock(make: Edges) -> None:
    """A connection ends within a second of its credential's expiry, even if the wall clock is set forward meanwhile."""
    method = Tower()
    method.expires_at = WALL + 30
    edge = make(method, ping_s=3600)
    client = enter(edge, "7-a")
    method.expires_at = WALL + 3600
    later = enter(edge, "8-b")
    watch(edge, 29)
    assert client.close_code() is None
    watch(edge, 2)
    assert client.close_code() == 1008
    assert later.close_code() is None
    edge.context.credential_monitor._wall = lambda: WALL + 3601
    watch(edge, 1)
    assert later.close_code() == 1008


@each_row("step_s", [-86400.0, -3600.0, -13.0, 0.0], make=edges)
def test_a_wall_clock_that_is_put_back_adds_nothing(make: Edges, step_s: float) -> None:
    """A connection gets the lifetime that its credential had left at the handshake, however far the clock is set back."""
    method = Tower()
    method.expires_at = WALL + 12
    edge = make(method, ping_s=3600)
    client = enter(edge, "7-a")
    edge.context.credential_monitor._wall = lambda: WALL + step_s + edge.clock.seconds()
    watch(edge, 11)
    assert client.close_code() is None
    watch(edge, 2)
    assert client.close_code() == 1008


def test_an_end_that_is_far_away(make: Edges) -> None:
    """The latest possible `exp` in a token closes no connection."""
    method = Tower()
    method.expires_at = 253402300799.0
    edge = make(method, ping_s=3600)
    client = enter(edge, "7-a")
    watch(edge, 300)
    assert client.close_code() is None


def test_disconnected_credentials_do_not_delay_the_rounds(make: Edges, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only connected credentials take part in the rounds. One is checked within 50 s, however many others have disconnected."""
    per_tick = 50
    monkeypatch.setattr("towerws.websocket.credential_monitor.CREDENTIALS_PER_TICK", per_tick)
    method = Tower()
    edge = make(method, ping_s=3600)
    enter(edge, "7-a")
    for number in range(60 * per_tick):
        enter(edge, f"8-{number}x").hang_up()
    edge.clients[:] = edge.clients[:1]
    assert len(edge.context.credential_monitor._due) == 1
    watch(edge, 51)
    assert method.asked == ["a"]


def test_a_credential_that_was_revoked(make: Edges) -> None:
    """Its connection is closed within a minute. Messages published after that do not reach it."""
    method = Tower()
    edge = make(method, ping_s=3600)
    client = enter(edge, "7-a").listen(1)
    method.answer = Refused("logged out")
    watch(edge, 60)
    assert client.close_code() == 1008
    assert edge.context.credential_monitor.revoked == 1
    assert edge.hub.topics == 0


def test_each_credential_about_once_a_minute(make: Edges) -> None:
    """All connections of a credential share one check, about every 50 seconds at most."""
    method = Tower()
    edge = make(method, ping_s=3600)
    for _ in range(3):
        enter(edge, "7-a")
    watch(edge, 24)
    assert method.asked == []
    watch(edge, 27)
    assert method.asked == ["a"] * 3
    watch(edge, 600)
    assert 36 <= len(method.asked) <= 48
    for client in edge.clients:
        client.hang_up()
    method.asked.clear()
    watch(edge, 120)
    assert method.asked == []


def test_not_all_at_once(make: Edges) -> None:
    """When all checks are due at the same time, they are sent in portions."""
    method = Tower()
    edge = make(method, ping_s=3600)
    for number in range(CREDENTIALS_PER_TICK + 20):
        enter(edge, f"{number}-{number}")
    edge.clock.advance(60)
    edge.context.credential_monitor.tick()
    assert len(method.asked) == CREDENTIALS_AT_ONCE
    edge.clock.advance(0)
    assert len(method.asked) == CREDENTIALS_PER_TICK
    edge.context.credential_monitor.tick()
    assert len(method.asked) == CREDENTIALS_PER_TICK + 20


class Session:
    """The part of a connection that the credential monitor uses."""

    def __init__(self, number: int, checked_at: float | None = None) -> None:
        self.identity = Identity(number, "tower", session=str(number), checked_at=checked_at)
        self.checks = 0

    def recheck(self) -> None:
        """The check succeeds."""
        self.checks += 1

    def apply_groups(self) -> None:
        """The check succeeds."""

    def revoke(self) -> None:
        """Not expected."""
        raise AssertionError


@pytest.fixture
def late() -> Iterator[list[str]]:
    """The log's lines about late re-checks."""
    lines: list[str] = []

    def observe(event: LogEvent) -> None:
        if "re-checks are late" in (event.get("log_format") or ""):
            lines.append(str(formatEvent(event)))

    globalLogPublisher.addObserver(cast("ILogObserver", observe))
    yield lines
    globalLogPublisher.removeObserver(cast("ILogObserver", observe))


def test_how_late_re_checks_are(make: Edges, late: list[str]) -> None:
    """With more credentials than a round can check, `/status` and the log say how late the checks are."""
    edge = make(Tower(), access=AccessSettings(revalidate_s=10))
    credential_monitor = edge.context.credential_monitor
    room = 6 * CREDENTIALS_PER_TICK
    sessions = [Session(number) for number in range(3 * room)]
    try:
        for session in sessions[:room]:
            credential_monitor.enter(session)
        watch(edge, 40)
        assert credential_monitor.figures() == {"credentials": room, "per_s": CREDENTIALS_PER_TICK, "late_s": 0.0}
        assert late == []
        for session in sessions[room:]:
            credential_monitor.enter(session)
        watch(edge, 100)
        assert 5 < float(str(credential_monitor.figures()["late_s"])) < 15  # 18 s for all of them, and rounds of 8 to 10 s
        assert len(late) == 2
        assert "4500 credentials are connected, at most 250 a second are checked" in late[0]
        for session in sessions[room:]:
            credential_monitor.leave(session)
        watch(edge, 20)
        assert credential_monitor.figures()["late_s"] == 0.0
    finally:
        for session in sessions[:room]:
            credential_monitor.leave(session)


@each_row("age_s", [(0, 50), (0, 100), (3600, 3600)], make=edges)
def test_sessions_of_another_process_are_not_late(make: Edges, late: list[str], age_s: tuple[float, float]) -> None:
    """After a hand-over nothing is late: this process could not check them before. None outlives its interval by more than a tick."""
    edge = make(Tower(), access=AccessSettings(revalidate_s=50))
    edge.clock.advance(5000)
    credential_monitor, now = edge.context.credential_monitor, edge.clock.seconds()
    count = CREDENTIALS_PER_TICK
    first, last = age_s
    sessions = [Session(number, now - first - (last - first) * number / count) for number in range(count)]
    for session in sessions:
        credential_monitor.enter(session)
    for _ in range(50):
        watch(edge, 1)
        age = edge.clock.seconds() - 1
        assert credential_monitor.figures()["late_s"] == 0.0
        assert all(session.checks for session in sessions if (session.identity.checked_at or 0) + 50 <= age)
    assert late == []
    for session in sessions:
        credential_monitor.leave(session)


def test_a_successor_continues_failed_checks_at_their_rate(make: Edges) -> None:
    """A check without an answer counts as one when the next one is planned. Otherwise all would be due at once after a hand-over."""
    method = Tower()
    method.checked_at = 0.0
    edge = make(method, ping_s=3600)
    enter(edge, "7-a")
    method.answer = Unavailable("down")
    watch(edge, 600)
    (session,) = edge.context.credential_monitor._registry.all()
    assert session.identity.checked_at is not None
    assert edge.clock.seconds() - session.identity.checked_at <= 51


@pytest.mark.parametrize("groups", [False, True])
def test_a_check_of_all_is_not_late(make: Edges, late: list[str], groups: bool) -> None:
    """It takes its time, as it should. Another daemon would not help."""
    edge = make(Tower(), access=AccessSettings(revalidate_s=60))
    credential_monitor = edge.context.credential_monitor
    sessions = [Session(number) for number in range(6 * CREDENTIALS_PER_TICK)]
    for session in sessions:
        credential_monitor.enter(session)
    if groups:
        done = credential_monitor.apply_groups_to_all()
        edge.clock.pump([0] * len(sessions))
        assert done.called
    else:
        credential_monitor.recheck_all()
    watch(edge, 20)
    assert min(session.checks for session in sessions) == 1
    assert late == []
    for session in sessions:
        credential_monitor.leave(session)


def test_a_role_that_was_taken_away(make: Edges) -> None:
    """A topic that the user may no longer read is removed. Other topics go on without a gap, and the connection stays."""
    method = Tower()
    edge = make(method, ping_s=3600)
    tower, v1 = enter(edge, "7-a").listen(1, 2), enter(edge, "7-a", v1=True).listen(1, 2)
    method.hidden = {"job_events.2": "not visible to this user"}
    watch(edge, 61)
    assert tower.take() == [{"error": "access denied to channel job_events for resource id 2"}]
    (answer,) = v1.take()
    assert (answer["type"], "id" in answer, answer["groups_current"]) == ("revoked", False, ["job_events.1"])
    assert answer["denied"] == [{"topic": "job_events.2", "reason": "not visible to this user"}]
    edge.publish("job_events.2", {"n": 2})
    edge.publish("job_events.1", {"n": 1})
    assert tower.take() == [{"n": 1}]
    assert [message["payload"] for message in v1.take()] == [{"n": 1}]


def test_a_check_that_cannot_be_made(make: Edges) -> None:
    """Existing subscriptions stay for as long as checks fail. After five minutes new ones are refused until a check succeeds."""
    method = Tower()
    edge = make(method, ping_s=3600)
    client = enter(edge, "7-a", v1=True).listen(1)
    method.answer = Unavailable("down")
    watch(edge, 120)
    client.ask({"job_events": [1, 2]})
    assert client.take()[0]["denied"] == []
    watch(edge, MAX_UNCHECKED_S)
    client.ask({"job_events": [1, 2, 3]})
    assert client.take()[0]["denied"] == [{"topic": "job_events.3", "reason": "unavailable"}]
    edge.publish("job_events.2", {"n": 2})
    assert client.take()[0]["payload"] == {"n": 2}
    method.answer = None
    watch(edge, 70)
    client.ask({"job_events": [1, 2, 3]})
    assert client.take()[0]["denied"] == []


def test_an_object_that_cannot_be_asked_for(make: Edges) -> None:
    """A topic whose check fails to get an answer is kept."""
    method = Tower()
    edge = make(method, ping_s=3600)
    client = enter(edge, "7-a").listen(1)
    method.hidden = {"job_events.1": "unavailable"}
    watch(edge, 120)
    edge.publish("job_events.1", {"n": 1})
    assert client.take() == [{"n": 1}]


def test_a_bug_in_a_check_closes_no_connection(make: Edges) -> None:
    """The bug is logged. The connection stays, and is checked again later."""
    method = Tower()
    edge = make(method, ping_s=3600)
    client = enter(edge, "7-a")
    method.answer = ValueError("a bug")
    watch(edge, 51)
    assert client.close_code() is None
    assert any("a bug" in failure for failure in make.failures())
    method.answer = None
    asked = len(method.asked)
    watch(edge, 51)
    assert len(method.asked) > asked


def test_hang_up_while_asking(make: Edges) -> None:
    """The pending check is cancelled and its answer has no effect. No second check runs at the same time."""
    method = Tower()
    edge = make(method, ping_s=3600)
    client = enter(edge, "7-a").listen(1)
    cancelled: list[object] = []
    method.answer = Deferred(cancelled.append)
    edge.context.credential_monitor.recheck_user("7")
    edge.context.credential_monitor.recheck_user("7")
    assert method.asked == ["a"]
    client.hang_up()
    assert len(cancelled) == 1


def test_limit_reached(make: Edges) -> None:
    """When AWX says that it ended sessions of a user, that user is checked at once, and no other user."""
    method = Tower()
    edge = make(method, ping_s=3600)
    client, other = enter(edge, "7-a"), enter(edge, "8-b")
    method.answer = Refused("session limit")
    edge.publish("control.limit_reached_7", {"group_name": "control", "reason": "limit_reached"})
    edge.clock.advance(0)
    assert method.asked == ["a"]
    assert client.close_code() == 1008
    assert other.close_code() is None
    assert edge.context.credential_monitor.watchers == 1
    assert method.forgotten == [Revocation(user="7")], "no session joins a question from before the event"


def limit_reached(edge: Edge) -> None:
    """AWX ends sessions of the user."""
    edge.publish("control.limit_reached_7", {})


def revocations_were_missed(edge: Edge) -> None:
    """The control exchange was away."""
    edge.context.credential_monitor.recheck_all()


def reload_groups(edge: Edge) -> None:
    """A reload changed what the groups allow."""
    edge.context.credential_monitor.apply_groups_to_all()


@each_row("event", [limit_reached, revocations_were_missed, reload_groups], make=edges)
def test_an_event_during_a_check(make: Edges, event: Callable[[Edge], None]) -> None:
    """The answer under way may be older than the event. So another check follows it, also if none run by themselves."""
    method = Tower()
    edge = make(method, ping_s=3600, access=AccessSettings(revalidate_s=0))
    client = enter(edge, "7-a").listen(1)
    answer: Deferred[Identity] = Deferred()
    method.answer = answer
    edge.context.credential_monitor._due.add("a", 0)
    edge.context.credential_monitor.recheck_user("7")
    event(edge)
    event(edge)
    watch(edge, 2)
    assert method.asked == ["a"]
    method.answer = Refused("session limit")
    answer.callback(Identity(7, "tower", session="a"))
    assert method.asked == ["a"] * 2
    assert client.close_code() == 1008
    watch(edge, 100)
    assert method.asked == ["a"] * 2


def test_an_event_during_a_check_that_fails(make: Edges) -> None:
    """Another check follows a failed one as well. One follows, however many events came, and then none."""
    method = Tower()
    edge = make(method, ping_s=3600)
    client = enter(edge, "7-a").listen(1)
    answer: Deferred[Identity] = Deferred()
    method.answer = answer
    for _ in range(3):
        edge.context.credential_monitor.recheck_user("7")
    method.answer = None
    answer.errback(Unavailable("no answer"))
    assert method.asked == ["a"] * 2
    assert client.close_code() is None


def test_limit_reached_while_history_is_replayed(make: Edges) -> None:
    """A refill replays what came while the user entered. Later events are followed, too."""
    method = Tower()
    edge = make(method, ping_s=3600)
    enter(edge, "7-a")
    edge.publish("control.limit_reached_7", {})
    edge.clock.advance(0)
    (watcher,) = [each for each in edge.hub.subscribers if "control.limit_reached_7" in each.topics]
    edge.hub.replay(edge.hub.history.floor, [watcher])
    edge.clock.advance(0)
    assert method.asked == ["a"] * 2
    assert not watcher.behind
    edge.publish("control.limit_reached_7", {})
    edge.clock.advance(0)
    assert method.asked == ["a"] * 3


def test_limit_reached_that_history_has_lost(make: Edges) -> None:
    """A refill that is larger than history drops an event of the user's topic. The user is checked, and later events are followed."""
    method = Tower()
    edge = make(method, ping_s=3600, start=False)
    ingest, offsets = edge.ingest, itertools.count()

    def deliver(topic: str, body: bytes) -> None:
        ingest.deliver(topic, body, next(offsets), None)
        ingest.end_batch(lambda _: None)

    ingest.proven(True)
    client = enter(edge, "7-a", v1=True).listen(1)
    marker = Marker("a" * 8, "d" * 16)
    ingest.marker_confirmed(marker.text)
    ingest.marker(marker, marker.body, next(offsets), marker.text, through_exchange=True)
    ingest.end_batch(lambda _: None)
    deliver("control.limit_reached_7", b"{}")
    for _ in range(30):  # 1.8 MB, and history holds 1 MiB
        deliver("jobs.x", b'{"x": "%s"}' % (b"y" * 60_000))
    ingest.caught_up()
    edge.clock.advance(0)
    edge.clock.advance(0)
    assert method.asked == ["a"]
    (watcher,) = [each for each in edge.hub.subscribers if "control.limit_reached_7" in each.topics]
    assert not watcher.behind
    assert edge.context.credential_monitor.watchers == 1
    for checks in (2, 3):
        deliver("control.limit_reached_7", b"{}")
        edge.clock.advance(0)
        assert method.asked == ["a"] * checks
    client.hang_up()
    assert edge.context.credential_monitor.watchers == 0
    assert edge.hub.topics == 0


@each_row("revalidate_s", [0, 50], make=edges)
def test_limit_reached_in_a_hole(make: Edges, revalidate_s: float) -> None:
    """Events that the log lost may have ended sessions. Each connected credential is checked once, at the rate of the other checks."""
    method = Tower()
    edge = make(method, ping_s=3600, access=AccessSettings(revalidate_s=revalidate_s))
    clients = [enter(edge, f"{user}-{user}", v1=True).listen(1) for user in range(CREDENTIALS_PER_TICK + 1)]
    edge.ingest.gap("broker")
    edge.clock.advance(0)
    assert method.asked == []
    method.answer = Refused("session limit")
    watch(edge, 1)
    assert len(method.asked) == CREDENTIALS_PER_TICK
    watch(edge, 1)
    assert len(method.asked) == len(clients)
    assert {client.close_code() for client in clients} == {1008}
    assert Revocation(user="7") in method.forgotten, "no kept answer is used"


def test_limit_reached_in_a_hole_of_the_refill(make: Edges) -> None:
    """The same holds for a hole that a refill meets."""
    method = Tower()
    edge = make(method, ping_s=3600, access=AccessSettings(revalidate_s=0))
    enter(edge, "7-a").listen(1)
    edge.ingest.history_complete = False
    edge.ingest.gap("broker")
    watch(edge, 2)
    assert method.asked == []
    edge.ingest.caught_up(replay=True)
    watch(edge, 2)
    assert method.asked == ["a"]
    watch(edge, 100)
    assert method.asked == ["a"]


def test_a_user_who_leaves_when_history_has_lost_an_event(make: Edges) -> None:
    """No new watcher is left behind."""
    edge = make(Tower(), ping_s=3600)
    client = enter(edge, "7-a")
    (watcher,) = [each for each in edge.hub.subscribers if "control.limit_reached_7" in each.topics]
    watcher.peer.end(CloseReason.HISTORY)
    client.hang_up()
    edge.clock.advance(0)
    assert edge.context.credential_monitor.watchers == 0
    assert edge.hub.topics == 0


def test_never(make: Edges) -> None:
    """With 0 no checks run by themselves, and no answer becomes stale."""
    method = Tower()
    edge = make(method, access=AccessSettings(revalidate_s=0), ping_s=3600)
    client = enter(edge, "7-a", v1=True)
    watch(edge, MAX_UNCHECKED_S + 300)
    assert method.asked == []
    client.ask({"job_events": [3]})
    assert client.take()[0]["denied"] == []


class Broken:
    """A session that fails on each call."""

    identity = Identity(9, "tower", session="x", expires_at=WALL + 1)

    def recheck(self) -> None:
        """Fails."""
        raise RuntimeError("ours")

    def apply_groups(self) -> None:
        """Fails."""
        raise RuntimeError("ours")

    def revoke(self) -> None:
        """Fails."""
        raise RuntimeError("ours")


def test_a_bug_does_not_end_the_rounds(make: Edges) -> None:
    """A failure on one connection is logged. The other connections are still checked, and the failing one does not stay for ever."""
    method = Tower()
    edge = make(method, ping_s=3600)
    broken = Broken()
    edge.context.credential_monitor.enter(broken)
    client = enter(edge, "7-a")
    method.answer = Refused("logged out")
    watch(edge, 61)
    assert client.close_code() == 1008
    assert len(make.failures()) == 2
    edge.context.credential_monitor.leave(broken)


def test_a_bug_does_not_spare_the_others(make: Edges) -> None:
    """If closing one of a user's connections fails, the user's other connections are still closed. The failure is logged."""
    edge = make(Tower(), ping_s=3600)
    broken = Broken()
    edge.context.credential_monitor.enter(broken)
    client = enter(edge, "9-a")
    assert edge.context.credential_monitor.disconnect(Revocation(user=9)) == 2
    assert client.close_code() == 1008
    assert len(make.failures()) == 1
    edge.context.credential_monitor.leave(broken)


class SlowTower(Tower):
    """Its answer about job 9 comes when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.slow: Deferred[dict[str, str]] = Deferred()

    def refusals(self, identity: Identity, topics: Sequence[str]) -> Deferred[dict[str, str]]:
        """Fires at once, but for job 9."""
        return self.slow if "job_events.9" in topics else super().refusals(identity, topics)


class SlowTopics(Tower):
    """Its answers about topics come when the test says so, once it is slow."""

    slow = False

    def __init__(self) -> None:
        super().__init__()
        self.topics: list[Deferred[dict[str, str]]] = []

    def refusals(self, identity: Identity, topics: Sequence[str]) -> Deferred[dict[str, str]]:
        """Fires when the test says so."""
        if not self.slow:
            return super().refusals(identity, topics)
        self.topics.append(Deferred())
        return self.topics[-1]


def test_a_credential_is_checked_while_its_topics_are(make: Edges) -> None:
    """However long the check of the topics takes, a session that ends is closed at once. The topics are checked again afterwards."""
    tower = SlowTopics()
    edge = make(tower, ping_s=3600)
    client = enter(edge, "7-a", v1=True)
    client.ask({"job_events": [1]}).take()
    tower.slow = True
    recheck = edge.context.credential_monitor.recheck_user
    recheck("7")
    recheck("7")
    assert (tower.asked, len(tower.topics)) == (["a", "a"], 1)
    tower.topics[0].callback({})
    assert len(tower.topics) == 2, "the first check may be older than the reason for the second"
    tower.topics[1].callback({"job_events.1": "not visible to this user"})
    assert [each["topic"] for each in client.take()[0]["denied"]] == ["job_events.1"]
    assert len(tower.topics) == 2
    recheck("7")
    recheck("7")
    tower.answer = Refused("session limit")
    recheck("7")
    assert client.close_code() == 1008
    assert len(tower.topics) == 3


@pytest.mark.parametrize("waits_for", ["the position", "the authority"])
def test_a_topic_that_is_taken_away_while_a_request_waits(make: Edges, waits_for: str) -> None:
    """The request names it, and was allowed to have it. It does not bring the topic back."""
    tower = SlowTower()
    edge = make(tower, ping_s=3600, start=waits_for == "the authority")
    client = enter(edge, "7-a", v1=True)
    client.ask({"job_events": [1]}).take()
    if waits_for == "the position":
        client.ask({"job_events": [1, 2]}, id=2, since="5-0123456789ab")
    else:
        client.ask({"job_events": [1, 2, 9]}, id=2)
    client.take()
    tower.hidden = {"job_events.1": "not visible to this user"}
    edge.context.credential_monitor.recheck_user("7")
    (revoked,) = client.take()
    assert revoked["denied"] == [{"topic": "job_events.1", "reason": "not visible to this user"}]
    edge.source.start()
    tower.slow.callback({})
    (answer,) = [frame for frame in client.take() if frame["type"] == "subscribed"]
    assert "job_events.1" not in answer["groups_current"]
    assert answer["denied"] == [{"topic": "job_events.1", "reason": "not visible to this user"}]
    edge.publish("job_events.1", {})
    edge.publish("job_events.2", {})
    assert [frame["event"] for frame in client.take()] == ["2"]
    client.ask({"job_events": [1]})
    assert client.take()[0]["denied"] == [{"topic": "job_events.1", "reason": "not visible to this user"}]
    tower.hidden = {}
    client.ask({"job_events": [1]})
    assert client.take()[0]["groups_current"] == ["job_events.1"]
