"""What a reload does to connections that are open, and to the next ones."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kit.rows import each_row
from tests.kit.ws_kit import Edge, Edges, SlowMethod, edges, request
from tests.websocket.test_credential_monitor import Tower, enter, watch
from towerws.core.settings import AccessSettings, GroupSettings, LimitSettings, Settings, WebSocketSettings
from towerws.core.topics import GroupTable
from towerws.websocket.accept_throttle import ACCEPTS_AT_ONCE


@pytest.fixture
def make() -> Iterator[Edges]:
    """Edges in memory, checked for leaks at the end."""
    with edges() as maker:
        yield maker


def reload(
    edge: Edge,
    groups: dict[str, GroupSettings] | None = None,
    *,
    access: AccessSettings | None = None,
    limits: LimitSettings | None = None,
    websocket: WebSocketSettings | None = None,
) -> None:
    """Put settings in force, as the service does. Sessions are reviewed at once: there are few."""
    settings = Settings(
        broker=None,
        auth=("tower",),
        access=access or AccessSettings(),
        limits=limits or LimitSettings(connections=1000),
        websocket=websocket or edge.factory.settings,
    )
    edge.context.reload(settings, GroupTable({"chat": GroupSettings()} if groups is None else groups))
    edge.factory.reload(settings, settings.limits)
    edge.context.credential_monitor.apply_groups_to_all()


@each_row(
    ("groups", "kept"),
    [
        ({"chat": GroupSettings()}, ["chat.a", "chat.7"]),
        ({}, []),
        ({"chat": GroupSettings(policy="never")}, []),
        ({"chat": GroupSettings(policy="own")}, ["chat.7"]),
        ({"chat": GroupSettings(events=("a", "b"))}, ["chat.a"]),
        ({"chat": GroupSettings(events="id")}, ["chat.7"]),
    ],
)
@each_row("v1", [True, False], make=edges)
def test_open_connections_lose_what_the_groups_no_longer_allow(
    make: Edges, groups: dict[str, GroupSettings], kept: list[str], v1: bool
) -> None:
    """The client is told, keeps its other topics and gets their events. A new client is held to the new groups."""
    edge = make(Tower(), ping_s=3600)
    client = enter(edge, "7-a", v1=v1)
    client.ask({"chat": ["a", "7"], "jobs": ["summary"]})
    client.take()
    reload(edge, groups)
    (subscriber,) = [each for each in edge.hub.subscribers if "jobs.summary" in each.topics]
    assert sorted(subscriber.topics) == sorted([*kept, "jobs.summary"])
    said = client.take()
    assert bool(said) == (len(kept) < 2)
    edge.publish("chat.a", {"n": 1})
    edge.publish("jobs.summary", {"n": 2})
    payloads = [frame.get("payload") if v1 else frame for frame in client.take()]
    assert payloads == [*([{"n": 1}] if "chat.a" in kept else []), {"n": 2}]
    assert client.connection.state == client.connection.STATE_OPEN


def test_a_request_that_waits_is_held_to_the_new_groups(make: Edges) -> None:
    """The group was allowed when the client asked, and is gone when the answer about its access comes."""
    method = SlowMethod()
    edge = make(method, ping_s=3600)
    client = edge.open(v1=True)
    client.ask({"chat": ["a"], "jobs": ["summary"]})
    ((_, asked),) = method.questions
    reload(edge, {})
    asked.callback({})
    (answer,) = client.take()
    assert answer["denied"] == [{"topic": "chat.a", "reason": "no such group"}]
    assert answer["groups_current"] == ["jobs.summary"]


def test_limits_hold_for_the_next_connection(make: Edges) -> None:
    """A lower limit ends no connection. It refuses the next one. A higher one lets it in."""
    edge = make(Tower(), ping_s=3600)
    first, second = enter(edge, "7-a"), enter(edge, "7-b")
    reload(edge, limits=LimitSettings(connections=1000, per_user=2))
    assert edge.connect().send(request("/websocket/?7-c")).status == 503
    reload(edge, limits=LimitSettings(connections=2))
    assert edge.connect().send(request("/websocket/?8-c")).status == 503
    reload(edge, limits=LimitSettings(connections=3, per_user=3))
    edge.advance(3)  # the refused ones are gone
    enter(edge, "7-c")
    assert all(client.connection.state == client.connection.STATE_OPEN for client in (first, second))


def test_origins_and_proxies(make: Edges) -> None:
    """Pages and proxies are judged by the new lists."""
    edge = make(Tower(), ping_s=3600)
    page = request("/websocket/?7-a", added=["Origin: https://portal.example", "X-Forwarded-For: 203.0.113.9"])
    assert edge.connect().send(page).status == 403
    reload(edge, access=AccessSettings(origins=("https://portal.example",), trusted_proxies=("192.0.2.1",)))
    client = edge.connect().send(page)
    assert client.status == 101
    assert client.connection.address == "203.0.113.9"
    reload(edge)
    assert edge.connect().send(page).status == 403


def test_open_connections_keep_the_pings_that_they_were_told(make: Edges) -> None:
    """A client that was told 20 s gets its pings every 20 s, also after the interval was raised. A new one gets the new interval."""
    edge = make(Tower(), ping_s=20)
    old = enter(edge, "7-a", v1=True)
    reload(edge, websocket=WebSocketSettings(ping_s=50, topics=1))
    new = enter(edge, "8-b", v1=True)
    edge.advance(21)
    old.take(), new.take()
    assert [len(client.frames) for client in (old, new)] == [1, 0]
    old.ask({"job_events": [1, 2]})
    (refused,) = old.take()
    assert refused["code"] == "too_many_topics", "what is looked up at each request holds for all"


@each_row(("before", "after", "checks"), [(0, 10, 1), (3600, 10, 1), (10, 0, 0), (10, 3600, 1)], make=edges)
def test_another_interval_of_checks(make: Edges, before: float, after: float, checks: int) -> None:
    """Credentials of open connections are checked at the new interval. A check that was due sooner is still made."""
    method = Tower()
    edge = make(method, ping_s=3600, access=AccessSettings(revalidate_s=before))
    enter(edge, "7-a")
    edge.context.credential_monitor.set_interval(after)
    watch(edge, 11)
    assert min(1, len(method.asked)) == checks


def test_credentials_are_checked_after_a_reload_even_if_never_otherwise(make: Edges) -> None:
    """With `revalidate_s` = 0 a reload still asks once: policies and objects may have changed."""
    method = Tower()
    edge = make(method, ping_s=3600, access=AccessSettings(revalidate_s=0))
    client = enter(edge, "7-a", v1=True)
    client.listen(1, 2)
    method.hidden = {"job_events.1": "hidden"}
    reload(edge, access=AccessSettings(revalidate_s=0))
    watch(edge, 30)
    assert method.asked == ["a"]
    assert edge.hub.topics == 2, "one of the client's, and the monitor's own"
    assert client.take()


def test_the_rate_of_accepting(make: Edges) -> None:
    """The throttle's period follows."""
    edge = make(Tower())
    reload(edge, limits=LimitSettings(connections=1000, accepts_per_s=ACCEPTS_AT_ONCE))
    assert edge.factory.accept_throttle._period_s == 1
