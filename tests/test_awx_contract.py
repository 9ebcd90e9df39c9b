"""What AWX's clients rely on, row by row and end to end: an opening from nginx, the Tower API over HTTP, and the answer.

The API is `tests/kit/fake_tower.py`. Each test names the contract rows that it proves. `integration/test_tower_contract.py` has 3.1 to 3.3.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from twisted.internet import reactor as _reactor

from tests.auth.tower_kit import run
from tests.kit.fake_tower import FakeTower, User
from tests.kit.rows import each_row
from tests.kit.ws_kit import BINARY, PING, PONG, Client, Edge, edges, frame, request, text
from tests.test_outgoing import until
from towerws.auth.tower import TowerMethod
from towerws.auth.tower_objects import AWX_OBJECTS
from towerws.core.errors import CloseReason
from towerws.core.identity import Revocation
from towerws.core.settings import AccessSettings, TowerSettings
from towerws.websocket.autobahn_parts import GRAIN_S

reactor: Any = _reactor

TOKEN = "t0ken"
ADA = "Cookie: sessionid=ada; csrftoken=t0ken"


class Site:
    """AWX's API, the edge that uses it, and clients of both."""

    def __init__(self, edge: Edge, api: FakeTower) -> None:
        self.edge, self.api = edge, api

    async def open(self, *lines: str, path: str = "/websocket/", raw: bytes = b"") -> Client:
        """A client whose opening was answered."""
        client = self.edge.connect().send(raw or request(path, added=lines or [ADA]))
        await until(lambda: client.status != 0)
        return client

    async def enter(self, *lines: str) -> Client:
        """A client whose connection is open. Its first frame has been read."""
        client = await self.open(*lines)
        assert client.take() == [{"accept": True, "user": 7}]
        return client

    async def ask(self, client: Client, message: Any, frames: int = 1) -> list[Any]:
        """Send a message, with the right `xrftoken` unless it has one. Returns exactly this many frames."""
        if isinstance(message, dict) and "xrftoken" not in message:
            message = {**message, "xrftoken": TOKEN}
        client.send(message if isinstance(message, bytes) else text(message))
        found = client.take()

        def came() -> bool:
            found.extend(client.take())
            return len(found) >= frames

        await until(came)
        assert len(found) == frames, found
        return found


@asynccontextmanager
async def site(**settings: Any) -> AsyncIterator[Site]:
    """A site. Its API knows ada, who may see the jobs 1 and 2. At the end no client and no question is left."""
    visible = {path.replace("{id}", number): {7} for path in AWX_OBJECTS.values() for number in ("1", "2")}
    api = FakeTower(sessions={"ada": User(7)}, tokens={"bearer": User(7)}, visible=visible | {"/api/v2/jobs/3/": {8}}).start()
    method = TowerMethod(TowerSettings(url=api.url, **{"deadline_s": 2, "retry_s": 2.5, **settings}), reactor)
    before = set(reactor.getDelayedCalls())
    try:
        with edges() as make:
            yield Site(make(method, access=AccessSettings()), api)
    finally:
        await method.stop()
        await until(lambda: not api.connections)
        await api.stop()
        await until(lambda: not set(reactor.getDelayedCalls()) - before)


# 1.1, 1.4: the opening


@run
@each_row("path", ["/websocket/", "/websocket", "/api/websocket/", "/jobs/playbook/1/output/websocket/", "/websocket/?session_key=ada"])
async def test_paths(path: str) -> None:
    """Contract 1.1 URL, query string, 1.4.1, 1.4.5: any path that ends with the segment `websocket`. The first frame names the user."""
    async with site() as made:
        client = await made.open(*([] if "?" in path else [ADA]), "User-Agent: x", path=path)
        assert client.take() == [{"accept": True, "user": 7}]
        assert b"Sec-WebSocket-Protocol" not in client.response
        assert b"Sec-WebSocket-Extensions" not in client.response


@run
@each_row("path", ["/websocket/broadcast/", "/websocket/relay/"])
async def test_other_paths(path: str) -> None:
    """Contract 1.1 other paths: the path that AWX's nodes use among each other gets a 404."""
    async with site() as made:
        assert (await made.open(path=path)).status == 404


@run
@each_row(
    "lines",
    [
        ['Cookie: awx_sessionid="ada";csrftoken=t0ken'],
        ["Cookie: sessionid=ada; csrftoken=t0ken", "Origin: http://tower.example.com"],
        ["Authorization: Bearer bearer"],
    ],
    ids=["awxkit", "browser", "bearer"],
)
async def test_clients(lines: list[str]) -> None:
    """Contract 1.1 cookies, Origin, 3.4: awxkit writes `http` into Origin over TLS too, so the scheme does not matter."""
    async with site() as made:
        if "awx_sessionid" in lines[0]:
            made.api.session_cookie = "awx_sessionid"
        await made.enter(*lines)


@run
@each_row("lines", [["Cookie: sessionid=gone; csrftoken=t0ken"], ["Cookie: csrftoken=t0ken"], ["User-Agent: x"]])
async def test_a_bad_credential(lines: list[str]) -> None:
    """Contract 1.2 bad credential, 1.4.2, 1.4.3: HTTP 403 before the upgrade."""
    async with site() as made:
        client = await made.open(*lines)
        assert client.status == 403
        assert made.edge.factory.opened == 0


@run
@each_row("fault", ["slow", "hang", "500", "502", "302", "malformed", "cut", "close", "refuse"])
async def test_an_api_that_cannot_be_asked(fault: str) -> None:
    """Contract 1.4.4, 3.2: 5xx, a redirect, silence, invalid answers and no listener give HTTP 503, never 403."""
    async with site(deadline_s=0.2) as made:
        made.api.fault, made.api.delay_s = fault, 5
        if fault == "refuse":
            await made.api.stop()
        client = await made.open()
        assert client.status == 503
        assert made.edge.factory.opened == 0


# 1.2, 1.3: the messages


@run
async def test_a_subscription() -> None:
    """Contract 1.2 subscribe accepted, event, 1.4.11: one reply, sorted. After it each event's payload, byte for byte."""
    async with site() as made:
        client = await made.enter()
        groups = {"jobs": ["summary", "status_changed"], "job_events": ["2", 1], "control": ["limit_reached_7"]}
        (reply,) = await made.ask(client, {"groups": groups})
        current = ["control-limit_reached_7", "job_events-1", "job_events-2", "jobs-status_changed", "jobs-summary"]
        assert reply == {"groups_current": current, "groups_left": [], "groups_joined": current}
        client.frames.clear()
        payload = b'{"group_name": "job_events", "stdout": "\\ud800", "n":  NaN}'
        made.edge.publish("job_events.1", payload)
        client._parse()
        assert client.frames == [(1, payload)]


@run
async def test_a_new_subscription_takes_the_place_of_the_old() -> None:
    """Contract 1.3, 1.4.10: common topics have no gap. Others end with the reply. `{}` and empty lists unsubscribe from all."""
    async with site() as made:
        client = await made.enter()
        await made.ask(client, {"groups": {"job_events": [1, 2]}})
        made.api.fault = "slow"
        client.send(text({"groups": {"job_events": [2], "workflow_events": [1]}, "xrftoken": TOKEN}))
        for number in range(3):
            made.edge.publish("job_events.2", {"n": number})
        found: list[Any] = []

        def replied() -> bool:
            found.extend(client.take())
            return "groups_current" in found[-1]

        await until(replied)
        made.edge.publish("job_events.1", {"n": "left"})
        made.edge.publish("job_events.2", {"n": "kept"})
        *before, reply, after = found + client.take()
        assert (before, after) == ([{"n": 0}, {"n": 1}, {"n": 2}], {"n": "kept"})
        assert (reply["groups_left"], reply["groups_joined"]) == (["job_events-1"], ["workflow_events-1"])
        nothing: list[dict[str, list[int]]] = [{}, {"job_events": []}]
        for groups in nothing:
            (reply,) = await made.ask(client, {"groups": groups})
            assert reply["groups_current"] == []


@run
async def test_objects_that_are_not_visible() -> None:
    """Contract 1.2 object not visible, 3.3: an error for each, in AWX's words, before the reply. The other items are subscribed."""
    async with site() as made:
        client = await made.enter()
        groups = {group: [1, 3, 99] for group in AWX_OBJECTS}
        *errors, reply = await made.ask(client, {"groups": groups}, 13)
        wanted = {f"access denied to channel {group} for resource id {number}" for group in AWX_OBJECTS for number in (3, 99)}
        assert {error["error"] for error in errors} == wanted
        assert reply["groups_current"] == sorted(f"{group}-1" for group in AWX_OBJECTS)


@run
async def test_a_check_that_cannot_be_made() -> None:
    """Contract 1.4.9: the check is repeated, then answered with its own error, never allowed. The rest of the request is handled."""
    async with site() as made:
        client = await made.enter()
        made.api.fault = "500"
        error, reply = await made.ask(client, {"groups": {"job_events": [1], "jobs": ["summary"]}}, 2)
        assert error == {"error": "access to channel job_events for resource id 1 can't be checked just now"}
        assert reply["groups_current"] == ["jobs-summary"]
        assert made.api.paths().count("/api/v2/jobs/1/") > 1


DENIED = "access denied to channel"

ODD = [
    ("not JSON", text("hello"), "message is not JSON"),
    ("binary", frame(BINARY, b'{"groups": {}}'), "message is binary, not text"),
    ("list", text("[]"), "message is not a JSON object"),
    ("number", text("1"), "message is not a JSON object"),
    ("null", text("null"), "message is not a JSON object"),
    ("without groups", {"xrftoken": TOKEN}, 'message has no "groups"'),
    ("token missing", text({"groups": {}}), DENIED),
    ("token null", {"groups": {}, "xrftoken": None}, DENIED),
    ("token empty", {"groups": {}, "xrftoken": ""}, DENIED),
    ("token wrong", {"groups": {}, "xrftoken": "wrong"}, DENIED),
    ("groups a list", {"groups": ["job_events-2"]}, '"groups" is not an object'),
    ("groups a number", {"groups": 1}, '"groups" is not an object'),
    ("groups null", {"groups": None}, '"groups" is not an object'),
    ("value a number", {"groups": {"job_events-2": 1}}, DENIED),
    ("value true", {"groups": {"job_events": [2], "jobs": True}}, DENIED),
    ("value a string", {"groups": {"job_events": "2"}}, DENIED),
    ("metrics", {"groups": {"metrics": True}}, DENIED),
]


@run
@each_row(("message", "error"), [row[1:] for row in ODD], ids=[row[0] for row in ODD])
async def test_odd_messages(message: Any, error: str) -> None:
    """Contract 1.2 XRF, value not a list, 1.3, 1.4.6, 1.4.7: one error frame. The socket and its subscriptions stay."""
    async with site() as made:
        client = await made.enter()
        await made.ask(client, {"groups": {"job_events": [1]}})
        assert await made.ask(client, message) == [{"error": error}]
        made.edge.publish("job_events.1", {"n": 1})
        made.edge.publish("job_events.2", {"n": 2})
        assert client.take() == [{"n": 1}]
        assert client.close_code() is None


ITEMS = [
    ("unknown group", "nonsense", 1, False),
    ("unknown word", "jobs", "foo", False),
    ("text", "job_events", "1", True),
    ("number", "job_events", 1, True),
    ("fraction", "job_events", 1.0, False),
    ("true", "job_events", True, False),
    ("with a space", "job_events", " 1", False),
    ("null", "job_events", None, False),
    ("a word", "job_events", "abc", False),
    ("too long", "job_events", "1" * 201, False),
    ("19 digits", "job_events", 10**18, False),
    ("a pattern", "job_events", "#", False),
    ("metrics", "metrics", "x", False),
    ("between nodes", "broadcast-group_send", "x", False),
    ("another user's", "control", "limit_reached_1", False),
    ("of all", "control", "limit_reached", False),
    ("one's own", "control", "limit_reached_7", True),
    ("schedules", "schedules", "changed", True),
    ("inventories", "inventories", "status_changed", True),
]


@run
@each_row(("group", "item", "joins"), [row[1:] for row in ITEMS], ids=[row[0] for row in ITEMS])
async def test_items(group: str, item: Any, joins: bool) -> None:
    """Contract 1.3, 1.4.8, 3.3 control: an invalid item gets its own error. The other items of the request are handled."""
    async with site() as made:
        client = await made.enter()
        groups = {"job_events": [2]} if group != "job_events" else {}
        groups[group] = [*groups.get(group, []), item] if group != "job_events" else [2, item]
        *errors, reply = await made.ask(client, {"groups": groups}, 1 if joins else 2)
        assert [error["error"].startswith(f"{DENIED} {group} for resource id {str(item)[:30]}") for error in errors] == [True] * (not joins)
        assert reply["groups_current"] == sorted(["job_events-2", *([f"{group}-{item}"] if joins else [])])


@run
async def test_ids_collapse() -> None:
    """Contract 1.3: `"1"` and `1` are the same id."""
    async with site() as made:
        client = await made.enter()
        (reply,) = await made.ask(client, {"groups": {"job_events": ["1", 1, 1]}})
        assert reply["groups_joined"] == ["job_events-1"]


@run
async def test_bearers_need_no_xrftoken() -> None:
    """Contract 1.4.6, 3.4: a credential that no browser sends by itself needs no xrftoken. awxkit sends null."""
    async with site() as made:
        client = await made.enter("Authorization: Bearer bearer")
        (reply,) = await made.ask(client, {"groups": {"job_events": [1]}, "xrftoken": None})
        assert reply["groups_current"] == ["job_events-1"]


@run
async def test_messages_are_followed_in_their_order() -> None:
    """Contract 1.4.12: the newest request wins, and does not wait for the checks of the one before. Each gets one reply."""
    async with site() as made:
        client = await made.enter()
        made.api.fault, made.api.delay_s = "slow", 0.1
        for groups in ({"job_events": [1]}, {"jobs": ["summary"]}, {"job_events": [2]}, {"schedules": ["changed"]}):
            client.send(text({"groups": groups, "xrftoken": TOKEN}))
        replies: list[Any] = []

        def all_came() -> bool:
            replies.extend(client.take())
            return len(replies) == 4

        await until(all_came)
        assert [reply["groups_current"] for reply in replies] == [
            [],
            ["jobs-summary"],
            [],
            ["schedules-changed"],
        ]


# 1.4: keeping and closing


@run
async def test_pings_and_no_age() -> None:
    """Contract 1.4.15, 1.4.16: a ping every 20 s, 30 s for its answer. A client that answers stays open, here for 25 hours."""
    async with site() as made:
        made.edge.context.credential_monitor.revalidate_s = 0
        client, silent = await made.enter(), await made.enter()
        assert (made.edge.settings.ping_s, made.edge.settings.pong_s) == (20, 30)
        answered = 0
        for _ in range(25 * 180):
            made.edge.clock.pump([5, 5, 5, 5 + GRAIN_S])
            for ping in client.control(PING)[answered:]:
                client.send(frame(PONG, ping))
                answered += 1
        assert silent.transport.lost
        assert not client.transport.lost
        assert answered > 4000


@run
@each_row("end", ["restart", "credential"])
async def test_no_close_is_1000(end: str) -> None:
    """Contract 1.4.14: a restart is 1012, an ended credential 1008. 1000 is never sent: React takes it as final."""
    async with site() as made:
        client = await made.enter()
        if end == "restart":
            client.connection.end(CloseReason.RESTART)
        else:
            made.edge.context.credential_monitor.disconnect(Revocation(user=7))
        assert client.close_code() == (1012 if end == "restart" else 1008)
