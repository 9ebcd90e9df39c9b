"""The console's endpoints in memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from importlib.resources import files
from typing import Any

import pytest
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.defer import Deferred, succeed

from tests.kit.rows import each_row
from tests.kit.ws_kit import Edges, edges
from tests.test_admin import LIMIT, Admin
from towerws.admin import AdminSite, ConsoleData, Samples, console_endpoints
from towerws.admin.console import CONSOLE_PATHS
from towerws.core.topics import GroupTable
from towerws.websocket.inspection import canonical_topic, end_connection, list_connections

STATIC = files("towerws").joinpath("static")
FIGURES = {"version": "1", "uptime_s": 5.0, "source": {"state": "consuming", "secret": "x"}, "connections": {"max": 9}}
END = b'{"connection": 1, "instance": "me"}'
OUTSIDE = IPv4Address("TCP", "192.0.2.2", 9051)
GETS = (
    "/console/samples",
    "/console/topics",
    "/console/events",
    "/console/event?offset=1",
    "/console/connections",
    "/console/explain?topic=a.b",
)


class ConsoleAdmin(Admin):
    """An admin port with the console, in memory."""

    def __init__(self, make: Edges, *, show_details: bool = True) -> None:
        super().__init__(make)
        self.figures = lambda: FIGURES
        self.explained: list[tuple[str, str]] = []
        edge = self.edge
        self.data = data = ConsoleData(
            instance="me",
            status=self.status,
            samples=Samples(self.status, lambda: True),
            history=edge.history,
            hub=edge.hub,
            groups=lambda: GroupTable().listing,
            auth=("open",),
            clock=edge.clock.seconds,
            connections=lambda after, text, limit, behind: list_connections(
                edge.factory, after=after, text=text, limit=limit, behind=behind
            ),
            end=lambda number: end_connection(edge.factory, number),
            explain=self.explain,
            show_details=show_details,
        )
        self.site = AdminSite(
            status=self.status,
            source_status=lambda: self.state,
            publish=self.publish,
            disconnect=self.disconnect,
            websocket_port=lambda: 18051,
            max_payload_bytes=LIMIT,
            later=lambda call: edge.clock.callLater(0, call),
            console=console_endpoints(data),
        )
        self.site.reactor = edge.clock

    def explain(self, user: str, topic: str) -> Deferred[dict[str, object]]:
        """Note the question."""
        self.explained.append((user, canonical_topic(topic)))
        return succeed({"verdict": {}})


@pytest.fixture
def make() -> Iterator[Edges]:
    """Edges in memory. At the end they are checked for leaks, and the log for tracebacks."""
    with edges() as maker:
        yield maker


@pytest.fixture
def admin(make: Edges) -> ConsoleAdmin:
    """An admin port in memory."""
    return ConsoleAdmin(make)


@contextmanager
def admin_port() -> Iterator[ConsoleAdmin]:
    """The same for one row of a table."""
    with edges() as maker:
        yield ConsoleAdmin(maker)


def test_samples(admin: ConsoleAdmin) -> None:
    """The present state comes with the samples. Nothing of the source's details that the page doesn't need is in it."""
    found = admin.ask("GET", "/console/samples?after=3.5").json
    assert (found["instance"], found["every_s"], found["kept_s"], found["samples"]) == ("me", 5, 900, [])
    assert found["present"]["source"] == {"state": "consuming", "reason": None, "unproven": None, "broker": None, "mode": None}
    assert (found["present"]["connections_max"], found["present"]["api"]) == (9, False)


def test_events_and_one_event(admin: ConsoleAdmin) -> None:
    """A list has the beginning of each payload. One event has all of it, with the bytes as they came."""
    admin.edge.publish("jobs.summary", b'{"n": 12345678901234567890, "x": NaN}')
    admin.edge.publish("job_events.1", b'{"text": "' + b"y" * 5000 + b'"}')
    admin.edge.clock.advance(2)
    found = admin.ask("GET", "/console/events").json
    assert [(event["topic"], event["bytes"], event["age_s"]) for event in found["events"]] == [
        ("job_events.1", 5012, 2.0),
        ("jobs.summary", 37, 2.0),
    ]
    assert len(found["events"][0]["preview"]) == 2048
    assert (found["complete"], found["newest"]) == (True, found["events"][0]["seq"])
    one = admin.ask("GET", f"/console/event?offset={found['events'][1]['offset']}").json
    assert one["instance"] == found["instance"] == "me"
    assert one["payload"] == '{"n": 12345678901234567890, "x": NaN}'
    newer = f"/console/events?after={found['newest']}&instance="
    assert admin.ask("GET", newer + "me").json["events"] == []
    assert len(admin.ask("GET", newer + "another").json["events"]) == 2, "numbers of another process mean nothing"
    assert len(admin.ask("GET", "/console/events?group=jobs").json["events"]) == 1
    assert len(admin.ask("GET", "/console/events?text=yyy").json["events"]) == 1
    assert admin.ask("GET", "/console/event?offset=99").status == 404


def test_topics(admin: ConsoleAdmin) -> None:
    """All groups with who may have them, and the newest topics with their subscribers."""
    admin.edge.open(v1=True).ask({"jobs": ["summary"]})
    admin.edge.publish("jobs.summary", {})
    found = admin.ask("GET", "/console/topics").json
    assert found["topics"] == [{"topic": "jobs.summary", "events": 1, "age_s": 0.0, "subscribers": 1}]
    assert {"group": "control", "events": "limit_reached_<number>", "policy": "own"} in found["groups"]


def test_connections(admin: ConsoleAdmin) -> None:
    """The list, and the end of one connection."""
    client = admin.edge.open(v1=True)
    found = admin.ask("GET", "/console/connections?limit=1").json
    assert (found["instance"], [row["connection"] for row in found["connections"]]) == ("me", [1])
    reply = admin.ask("POST", "/console/connections/end", END)
    assert (reply.status, reply.json) == (202, {"ended": 1})
    assert client.close_code() == 1012
    client.hang_up()
    reply = admin.ask("POST", "/console/connections/end", END)
    assert (reply.status, "may have ended already" in reply.error) == (404, True)


def test_end_of_another_process(admin: ConsoleAdmin) -> None:
    """Numbers begin again at 1 in each process. A number that another process listed ends no connection here."""
    client = admin.edge.open(v1=True)
    reply = admin.ask("POST", "/console/connections/end", b'{"connection": 1, "instance": "another"}')
    assert (reply.status, "listed by another process" in reply.error) == (409, True)
    assert client.close_code() is None
    assert admin.ask("POST", "/console/connections/end", END).status == 202


@each_row(
    "body",
    [
        *(b"", b"{}", b"[]", b'{"connection": 1}', b'{"instance": "me"}', b"[" * 5000),
        *(b'{"connection": "1", "instance": "me"}', b'{"connection": true, "instance": "me"}', b'{"connection": 1, "instance": 2}'),
        b'{"connection": 1, "instance": "me", "x": 2}',
    ],
    admin=admin_port,
)
def test_bad_end(admin: ConsoleAdmin, body: bytes) -> None:
    """The body names one connection by its number, and the process that gave it the number."""
    reply = admin.ask("POST", "/console/connections/end", body)
    assert (reply.status, '{"connection": 17, "instance": "…"}' in reply.error) == (400, True)


def test_explain(admin: ConsoleAdmin) -> None:
    """User and topic reach the question. Without a user, an anonymous client is meant."""
    assert admin.ask("GET", "/console/explain?user=7&topic=job_events-42").status == 200
    assert admin.ask("GET", "/console/explain?topic=jobs.summary").status == 200
    assert admin.explained == [("7", "job_events.42"), ("", "jobs.summary")]


@each_row(
    "path,text",
    [
        ("/console/explain", "topic is missing"),
        ("/console/explain?topic=nothing", "has no '.'"),
        ("/console/explain?topic=a.b&topic=a.c", "topic is given 2 times"),
        (f"/console/explain?topic=a.b&user={'x' * 201}", "at most 200"),
        ("/console/explain?topic=a.b&user=%ff", "user is not UTF-8"),
        ("/console/events?after=x", "must be a number"),
        ("/console/events?after=-2", "must be a number"),
        ("/console/samples?after=nan", "must be a number"),
        ("/console/samples?after=1e999", "must be a number"),
        (f"/console/event?offset={'9' * 5000}", "must be a number"),
        ("/console/topics?x=1", "unknown parameter 'x'"),
        ("/console/connections?limit=0", "must be 1 to 100"),
        ("/console/connections?limit=101", "must be 1 to 100"),
        ("/console/connections?%1b=1", "unknown parameter"),
    ],
    admin=admin_port,
)
def test_bad_queries(admin: ConsoleAdmin, path: str, text: str) -> None:
    """A parameter that is unknown, given twice or out of bounds is a 400 that names it."""
    reply = admin.ask("GET", path)
    assert reply.status == 400
    assert text in reply.error


@each_row("path", [*GETS, "/", "/console.css", "/console.js", "/console-kit.js"], admin=admin_port)
def test_methods(admin: ConsoleAdmin, path: str) -> None:
    """Each path takes GET and HEAD. Any other method is a 405."""
    admin.edge.publish("jobs.summary", {})
    head = admin.ask("HEAD", path)
    assert head.status in {200, 404}
    assert head.body == b""
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert admin.ask(method, path).status == 405
    assert admin.ask("GET", "/console/connections/end").status == 405


@each_row("path", GETS, admin=admin_port)
def test_other_sites(admin: ConsoleAdmin, path: str) -> None:
    """A page of another site gets nothing: by Origin, by Host, nor by a request without an Origin that it makes a browser send."""
    foreign: list[dict[str, Any]] = [
        {"Origin": "http://evil.example"},
        {"Host": "evil.example:9051"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ]
    for headers in foreign:
        reply = admin.ask("GET", path, **headers)
        assert reply.status == 403, (path, headers)
        assert admin.ask("POST", "/console/connections/end", END, **headers).status == 403
    assert admin.ask("GET", "/console/samples", Sec_Fetch_Site="same-origin").status == 200
    assert admin.ask("GET", "/", Sec_Fetch_Site="cross-site").status == 200, "a link from a wiki may lead here"


@each_row("path", [path for path in GETS if path != "/console/samples"], admin=admin_port)
def test_details_stay_on_this_machine(admin: ConsoleAdmin, path: str) -> None:
    """On an address that other machines reach, events and users are not shown. On a UNIX socket they are."""
    reply = admin.ask("GET", path, at=OUTSIDE)
    assert (reply.status, "only on loopback or a UNIX socket" in reply.error) == (403, True)
    assert admin.ask("POST", "/console/connections/end", END, at=OUTSIDE).status == 403
    assert admin.ask("GET", path, at=UNIXAddress(b"/run/towerws")).status in {200, 404}
    assert admin.ask("GET", "/console/samples", at=OUTSIDE).status == 200


def test_details_switched_off(make: Edges) -> None:
    """With `admin_details = false` only the figures are shown, on every address."""
    admin = ConsoleAdmin(make, show_details=False)
    for path in GETS[1:]:
        assert "admin_details is false" in admin.ask("GET", path).error
    assert admin.ask("GET", "/console/samples").status == 200


# the page


SCRIPTS = sorted(path.name for path in STATIC.iterdir() if path.name.startswith("console") and path.name.endswith(".js"))


class Tags(HTMLParser):
    """All start tags of a page with their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note it."""
        self.found.append((tag, dict(attrs)))


def test_page(admin: ConsoleAdmin) -> None:
    """The page loads its own files only, and each of them is served. Its policy forbids everything else."""
    reply = admin.ask("GET", "/")
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert "unsafe" not in reply.headers["content-security-policy"]
    tags = Tags()
    tags.feed(reply.body.decode())
    loaded = [attributes.get("src") or attributes.get("href") for tag, attributes in tags.found if tag in {"script", "link"}]
    assert [name for name in loaded if not (name or "").startswith("data:")] == ["console.css", "console.js"]
    for tag, attributes in tags.found:
        assert tag not in {"iframe", "object", "embed", "base", "form", "style"}
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
    style = admin.ask("GET", "/console.css")
    assert style.headers["content-type"] == "text/css; charset=utf-8"
    assert not re.search(r"url\(|@import", style.body.decode())


def test_every_script_is_served(admin: ConsoleAdmin) -> None:
    """Each module is served, and imports only served ones. None parses HTML, or code from a string."""
    assert len(SCRIPTS) == 7
    for name in SCRIPTS:
        reply = admin.ask("GET", f"/{name}")
        assert (reply.status, reply.headers["content-type"]) == (200, "text/javascript; charset=utf-8")
        script = reply.body.decode()
        assert {found.removeprefix("./") for found in re.findall(r'from "([^"]*)"', script)} <= set(SCRIPTS)
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|new Function|srcdoc|import\(", script
        )


def test_ids_of_the_scripts_are_in_the_page() -> None:
    """Each element that a script looks for exists, once."""
    page = STATIC.joinpath("console.html").read_text(encoding="utf-8")
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for name in SCRIPTS:
        assert set(re.findall(r'\$\("([^"]+)"\)', STATIC.joinpath(name).read_text(encoding="utf-8"))) <= set(ids)


def test_json_only(admin: ConsoleAdmin) -> None:
    """Every answer of an endpoint is one JSON object that is never cached."""
    admin.edge.publish("jobs.summary", {})
    for path in GETS:
        reply = admin.ask("GET", path)
        found: Any = json.loads(reply.body)
        assert isinstance(found, dict)
        assert reply.headers["cache-control"] == "no-store"


def test_the_paths_of_the_console_are_listed(admin: ConsoleAdmin) -> None:
    """The parent of several workers refuses exactly these."""
    assert set(console_endpoints(admin.data)) == set(CONSOLE_PATHS)
