"""Promise 34, with the real Tower method and the real monitor: revoked access ends within a minute."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from tests.kit.rows import each_row
from tests.kit.ws_kit import Client, Edge, Edges, edges, request, text
from towerws.auth.chain import Chain
from towerws.auth.tower import TowerMethod
from towerws.auth.tower_api import Answer
from towerws.core.settings import TowerSettings

PROMISED_S = 60.0
ANSWER_S = 1.9
"""Seconds that the API takes for each answer, which shows the state at the time of the question. Its timeout is 2 s."""


class Api:
    """A Tower with one session and one job, each of which can be revoked. Used in place of `Fetcher`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.session = self.job = True
        self.down = False
        self.asked = 0

    def get(self, url: str, headers: Iterable[tuple[str, str]]) -> Deferred[Answer]:
        """Answer after a delay, with the state of now."""
        self.asked += 1
        user = {"id": 7, "is_superuser": False, "is_system_auditor": False}
        body = json.dumps({"count": 1, "results": [user]}).encode()
        hidden = url.endswith("/jobs/42/") and not self.job
        if self.down:
            answer = Answer(500, b"")
        else:
            answer = Answer(401, b"") if not self.session else Answer(404, b"") if hidden else Answer(200, body)
        asked: Deferred[Answer] = Deferred(lambda _: call.cancel())
        call = self._clock.callLater(ANSWER_S, asked.callback, answer)
        return asked

    def stop(self) -> Deferred[None]:
        """Nothing to close."""
        return succeed(None)


@pytest.fixture
def make() -> Iterator[Edges]:
    """Edges in memory, checked for leaks at the end."""
    with edges() as maker:
        yield maker


@pytest.fixture(params=["by chance", "as late as can be"])
def late(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The monitor spreads its rounds at random. The worst spread must hold, too."""
    if request.param == "as late as can be":
        monkeypatch.setattr(random, "uniform", lambda low, high: high)


def enter(edge: Edge) -> Client:
    """A client that subscribes to the job right after its handshake."""
    wanted = {"groups": {"job_events": [42]}, "xrftoken": "c"}
    return edge.connect().send(request(added=["Cookie: sessionid=k; csrftoken=c"]) + text(wanted))


def rest(edge: Edge) -> None:
    """Let pending checks finish, and start no new ones."""
    edge.context.credential_monitor.stop()
    edge.advance(2 * ANSWER_S)
    edge.advance(10, step=0.03)  # a round of a thousand questions, four at a time, takes 8 s


def play(make: Edges, taken_at: float, arrivals: tuple[float, ...], what: str) -> tuple[Edge, Api, dict[float, float]]:
    """Connect at these times and revoke at that time. Returns when each client got its last event."""
    api = Api(make.clock)
    edge = make(TowerMethod(TowerSettings(url="http://tower"), make.clock, fetcher=api), ping_s=3600)
    edge.context.credential_monitor.start()
    clients: dict[float, Client] = {}
    heard: dict[float, float] = {}
    for tick in range(round((taken_at + PROMISED_S + 70) * 4)):
        now = tick / 4
        if now == taken_at:
            setattr(api, what, False)
        if now in arrivals:
            clients[now] = enter(edge)
        edge.publish("job_events.42", {"at": now})
        for arrived, client in clients.items():
            messages: list[Any] = client.take() if client.status == 101 else []
            if events := [message["at"] for message in messages if "at" in message]:
                heard[arrived] = events[-1]
        edge.clock.advance(0.25)
    rest(edge)
    return edge, api, heard


ARRIVALS = (0.0, 10.0, 43.5, 44.75, 47.0, 60.0, 90.0)


@pytest.mark.usefixtures("late")
@each_row("what", ["session", "job"])
@each_row("taken_at", [2.0, 4.0, 44.0, 45.0, 51.25, 93.5], make=edges)
def test_nothing_is_heard_a_minute_after_it_was_taken_away(make: Edges, taken_at: float, what: str) -> None:
    """After a session ends or a job is hidden, each client gets its last event in time, whichever cached answer let it in.

    The API is as slow as it may be, and each answer is as old as it may be when it arrives.
    """
    _, _, heard = play(make, taken_at, ARRIVALS, what)
    assert any(arrived < taken_at for arrived in heard)
    for arrived, last in heard.items():
        assert last <= taken_at + PROMISED_S, f"who came at {arrived} heard the event of {last}"


@each_row("what", ["session", "job"], make=edges, monkeypatch=pytest.MonkeyPatch.context)
def test_a_reload_with_a_cached_answer_from_before_the_revocation(make: Edges, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """A reloaded page is let in by a cached answer from before the revocation. The answer's age counts from when it was given."""
    shares = iter((0.5, *[1.0] * 9))
    monkeypatch.setattr(random, "uniform", lambda low, high: next(shares))
    api = Api(make.clock)
    edge = make(TowerMethod(TowerSettings(url="http://tower"), make.clock, fetcher=api), ping_s=3600)
    edge.context.credential_monitor.start()
    first = enter(edge)
    edge.advance(4)
    assert len(first.take()) == 2
    first.hang_up()
    setattr(api, what, False)
    edge.advance(40)
    asked = api.asked
    second = enter(edge)
    assert len(second.take()) == 2
    assert api.asked == asked, "by what is kept"
    edge.advance(4 + PROMISED_S - 44)
    second.take()
    edge.publish("job_events.42", {})
    assert second.take() == []
    rest(edge)


@pytest.mark.usefixtures("late")
def test_what_that_costs(make: Edges) -> None:
    """A credential is checked once per round, not once per connection. The rounds are as long as before."""
    _, api, heard = play(make, 600.0, tuple(float(second) for second in range(3, 30)), "session")
    rounds = 600 / (0.8 * 50) + 1
    assert len(heard) == 27
    assert api.asked <= 2 * rounds + 2


def test_an_api_that_is_down_when_it_is_asked(make: Edges) -> None:
    """A failed check closes no connection. The next round repeats it."""
    api = Api(make.clock)
    edge = make(TowerMethod(TowerSettings(url="http://tower"), make.clock, fetcher=api), ping_s=3600)
    edge.context.credential_monitor.start()
    client = enter(edge)
    edge.advance(10)
    api.down = True
    edge.advance(100)
    assert client.close_code() is None
    api.down = api.session = False
    edge.advance(PROMISED_S)
    assert client.close_code() == 1008
    rest(edge)


class ManyJobs(Api):
    """A Tower with a thousand jobs. Each answer takes a moment."""

    answer_s = 0.03

    def get(self, url: str, headers: Iterable[tuple[str, str]]) -> Deferred[Answer]:
        """Answer after a moment, with the state of now."""
        self.asked += 1
        body = json.dumps({"count": 1, "results": [{"id": 7, "is_superuser": False, "is_system_auditor": False}]}).encode()
        asked: Deferred[Answer] = Deferred(lambda _: call.cancel())
        hidden = url.endswith("/jobs/999/") and not self.job
        call = self._clock.callLater(self.answer_s, asked.callback, Answer(404, b"") if hidden else Answer(200, body))
        return asked


def reload(edge: Edge, clients: list[Client], wanted: bytes, second: int) -> None:
    """Every second another page is loaded again."""
    clients[second % len(clients)].hang_up()
    clients[second % len(clients)] = edge.connect().send(request(added=["Cookie: sessionid=k0; csrftoken=c"]) + wanted)


def ask_again(edge: Edge, clients: list[Client], wanted: bytes, second: int) -> None:
    """Each page sends its request again, in the middle of the round."""
    clients[second % len(clients)].send(wanted)


def ask_for_more(edge: Edge, clients: list[Client], wanted: bytes, second: int) -> None:
    """Pages take other jobs, and the first ones again."""
    more = text({"groups": {"job_events": [999, *range(second * 100, second * 100 + 99)]}, "xrftoken": "c"})
    clients[second % len(clients)].send(more if second % 2 else wanted)


def nothing(edge: Edge, clients: list[Client], wanted: bytes, second: int) -> None:
    """The pages stay as they are."""


@each_row(
    ("sessions", "meanwhile"),
    [(1, reload), (1, ask_again), (1, ask_for_more), (3, nothing), (3, ask_again), (5, nothing)],
    make=edges,
    monkeypatch=pytest.MonkeyPatch.context,
)
def test_a_job_of_a_user_who_keeps_the_daemon_busy(
    make: Edges, monkeypatch: pytest.MonkeyPatch, sessions: int, meanwhile: Callable[[Edge, list[Client], bytes, int], None]
) -> None:
    """A revoked job is delivered for at most a minute, also with several sessions of 200 jobs, and while pages ask or are loaded again."""
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    api = ManyJobs(make.clock)
    edge = make(TowerMethod(TowerSettings(url="http://tower"), make.clock, fetcher=api), ping_s=3600)
    edge.context.credential_monitor.start()
    wanted = text({"groups": {"job_events": [*range(199), 999]}, "xrftoken": "c"})
    clients = [
        edge.connect().send(request(added=[f"Cookie: sessionid=k{number % sessions}; csrftoken=c"]) + wanted) for number in range(10)
    ]
    edge.advance(10, step=0.0625)
    last = 0.0
    for second in range(10, 100):
        api.job = second < 30
        meanwhile(edge, clients, wanted, second)
        edge.publish("job_events.999", {"at": second})
        if ["at" for client in clients if client.status == 101 for message in client.take() if "at" in message]:
            last = second
        edge.advance(1, step=0.0625)
    assert 29 <= last <= 30 + PROMISED_S
    rest(edge)


@pytest.mark.usefixtures("late")
@each_row(("count", "answer_s", "within_s"), [(400, 0.4, PROMISED_S), (400, 1.0, 100 + 3)], make=edges)
def test_many_jobs_at_an_api_that_is_always_slow(make: Edges, count: int, answer_s: float, within_s: float) -> None:
    """A refusal counts once it is known, not once the round has ended. So a job is delivered for a round, if rounds take longer."""
    api = ManyJobs(make.clock)
    edge = make(Chain([TowerMethod(TowerSettings(url="http://tower"), make.clock, fetcher=api)]), ping_s=3600)
    wanted = text({"groups": {"job_events": [999, *range(1, count)]}, "xrftoken": "c"})
    client = edge.connect().send(request(added=["Cookie: sessionid=k; csrftoken=c"]) + wanted)
    edge.advance(10, step=0.03)
    client.take()
    api.answer_s = answer_s
    edge.context.credential_monitor.start()
    asked = api.asked
    while api.asked < asked + 6:  # the round has got the answer about job 999
        edge.advance(0.25)
    api.job = False
    taken_at, last = edge.clock.seconds(), 0.0
    while edge.clock.seconds() < taken_at + within_s + 30:
        edge.publish("job_events.999", {"at": edge.clock.seconds()})
        last = max([last, *(message["at"] for message in client.take() if "at" in message)])
        edge.advance(1, step=0.25)
    assert taken_at <= last <= taken_at + within_s
    edge.context.credential_monitor.stop()
    api.answer_s = 0.01
    edge.advance(2 * count * 0.25, step=0.25)


class BrokenJobs(ManyJobs):
    """A Tower that can't show some jobs any more: it answers 500, or not in time."""

    broken: frozenset[int] = frozenset()
    hangs = False

    def get(self, url: str, headers: Iterable[tuple[str, str]]) -> Deferred[Answer]:
        """Answer after a moment, or not at all."""
        if not any(url.endswith(f"/jobs/{number}/") for number in self.broken):
            return super().get(url, headers)
        self.asked += 1
        if not self.hangs:
            return succeed(Answer(500, b""))
        hanging: Deferred[Answer] = Deferred()
        return hanging


@pytest.mark.usefixtures("late")
@each_row(("broken", "hangs"), [(1, True), (4, False), (4, True), (19, True)], make=edges)
def test_a_job_behind_others_that_the_api_cannot_show(make: Edges, broken: int, hangs: bool) -> None:
    """Jobs without an answer stay subscribed. A job behind them that was revoked is delivered for at most a minute."""
    api = BrokenJobs(make.clock)
    api.hangs = hangs
    edge = make(TowerMethod(TowerSettings(url="http://tower"), make.clock, fetcher=api), ping_s=3600)
    edge.context.credential_monitor.start()
    wanted = text({"groups": {"job_events": [*range(broken), 999]}, "xrftoken": "c"})
    client = edge.connect().send(request(added=["Cookie: sessionid=k; csrftoken=c"]) + wanted)
    edge.advance(10, step=0.03)
    client.take()
    api.broken, api.job = frozenset(range(broken)), False
    last = 0
    for second in range(10, 200):
        edge.publish("job_events.999", {"at": second})
        if any("at" in message for message in client.take()):
            last = second
        edge.advance(1, step=0.0625)
    assert 10 <= last <= 10 + PROMISED_S
    edge.publish("job_events.0", {"at": 200})
    assert client.take() == [{"at": 200}]
    rest(edge)


@pytest.mark.parametrize("late", ["as late as can be"], indirect=True)
@pytest.mark.usefixtures("late")
@each_row("taken_at", [20, 55], make=edges)
def test_a_job_among_a_thousand_on_forty_connections(make: Edges, taken_at: int) -> None:
    """One user subscribes to a thousand jobs on each of forty connections. A revoked job is delivered for at most a minute."""
    api = ManyJobs(make.clock)
    edge = make(TowerMethod(TowerSettings(url="http://tower"), make.clock, fetcher=api), ping_s=3600)
    edge.context.credential_monitor.start()
    wanted = text({"groups": {"job_events": list(range(1000))}, "xrftoken": "c"})
    clients = [edge.connect().send(request(added=["Cookie: sessionid=k; csrftoken=c"]) + wanted) for _ in range(40)]
    edge.advance(10, step=0.03)
    asked = api.asked
    assert asked == 1001, "one question for each"
    for client in clients:
        client.take()
    last = 0.0
    for second in range(10, taken_at + 75):
        api.job = second < taken_at
        edge.publish("job_events.999", {"at": second})
        if ["at" for client in clients for message in client.take() if "at" in message]:
            last = second
        edge.advance(1, step=0.03125)
    assert taken_at <= last <= taken_at + PROMISED_S
    rest(edge)
