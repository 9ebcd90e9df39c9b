"""docs/openapi.yaml and docs/asyncapi.yaml are valid, and say what the daemon does."""

from __future__ import annotations

import inspect
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote

import api_pages
import pytest
import yaml
from jsonschema import Draft7Validator, Draft202012Validator
from openapi_spec_validator import validate
from referencing import Registry
from referencing.jsonschema import DRAFT7, DRAFT202012
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.selectreactor import SelectReactor

from tests.integration.conftest import NO_LANGUAGE, require
from tests.kit.event_stream import read_events
from tests.kit.rows import each_row
from tests.kit.ws_kit import Edge, Edges, edges
from tests.languages import Node
from tests.test_admin import Reply
from tests.test_clock import close
from tests.test_console import GETS, ConsoleAdmin
from tests.websocket.test_plain_http import Named, Nobody, Stream, get
from towerws.admin import MetricsPage, monitor_site
from towerws.admin.console import _SCRIPTS
from towerws.admin.endpoint import Answer, EndpointSite
from towerws.admin.samples import EVERY_S, KEPT, NAMES, Samples
from towerws.admin.site import probed_handshake, restart_daemon
from towerws.auth.base import Refused, Throttled, Unavailable
from towerws.core.errors import CloseReason
from towerws.core.handshake_probes import PROBE_HEADER, HandshakeProbes
from towerws.core.http_head import parse_head
from towerws.core.identity import Disconnection
from towerws.core.plain_http import CREDENTIALS, HistoryPage, Route, find_route, last_segment, page_json
from towerws.core.publication import Outcome, Published
from towerws.core.requests import Denied
from towerws.core.settings import BrokerSettings, BrokerUrl, JwtSettings, Secret, Settings, TowerSettings
from towerws.core.sources import SourceState, SourceStatus
from towerws.core.wire import Gap
from towerws.handover.predecessor import HandOver, HandOverCounters, HandOverFailed
from towerws.service import TowerwsService
from towerws.status import status_figures
from towerws.websocket.inspection import canonical_topic, explain
from towerws.websocket.plain_http import load_client_files

ROOT = Path(__file__).parents[1]
HTTP: dict[str, Any] = yaml.load((ROOT / "docs" / "openapi.yaml").read_text(), yaml.CSafeLoader)
WEBSOCKET: dict[str, Any] = yaml.load((ROOT / "docs" / "asyncapi.yaml").read_text(), yaml.CSafeLoader)
SAMPLES = json.loads((ROOT / "tests" / "data" / "protocol-samples.json").read_text())

_HTTP_SCHEMAS: Registry[Any] = Registry().with_resource("urn:http", DRAFT202012.create_resource(HTTP))
_WEBSOCKET_SCHEMAS: Registry[Any] = Registry().with_resource("urn:websocket", DRAFT7.create_resource(WEBSOCKET))


@pytest.fixture
def make() -> Iterator[Edges]:
    """Edges in memory. At the end they are checked for leaks, and the log for tracebacks."""
    with edges() as maker:
        yield maker


# The HTTP ports


def test_openapi_is_valid() -> None:
    """By the schema of OpenAPI 3.1. References, parameters and the names of operations are checked too."""
    validate(HTTP)


@contextmanager
def daemon(**settings: Any) -> Iterator[TowerwsService]:
    """A daemon that is not started. Without settings: with the embedded source and without authentication."""
    reactor = SelectReactor()
    try:
        yield TowerwsService(Settings(**(settings or {"broker": None, "auth": ("open",)})), reactor)
    finally:
        close(reactor)


def routes(site: EndpointSite) -> set[tuple[str, str]]:
    """The paths of a port, with their methods."""
    return {(f"/{path.decode()}", endpoint._method.decode().lower()) for path, endpoint in site._endpoints.items()}


def described(port: str) -> set[tuple[str, str]]:
    """The paths of the document that this port has, with their methods."""
    found = set()
    for path, methods in HTTP["paths"].items():
        for method, operation in methods.items():
            tags = operation.get("tags", [])
            if port in tags or (port == "admin" and "websocket" not in tags):
                found.add((path, method))
    return found


def test_each_route_is_described() -> None:
    """Every path and method of the daemon's admin port and of the port `monitor`, and no other."""
    with daemon() as service:
        assert routes(service.admin) == described("admin")
    status = SourceStatus(SourceState.CONSUMING)
    monitor: Any = monitor_site(lambda: status, MetricsPage(dict, lambda: 0.0))
    assert routes(monitor.wrappedFactory) == described("monitor")
    assert {tag["name"] for tag in HTTP["tags"]} == {"monitor", "websocket"}


def test_the_words_are_those_of_the_code() -> None:
    """Outcomes, states, and the numbers of the console's samples."""
    schemas = HTTP["components"]["schemas"]
    assert schemas["EventAnswer"]["properties"]["outcome"]["enum"] == [outcome.value for outcome in Outcome]
    states = [state.value for state in SourceState]
    present = schemas["Samples"]["properties"]["present"]
    for schema in (schemas["Readiness"], schemas["StatusSource"], present["properties"]["source"]):
        assert schema["properties"]["state"]["enum"] == states
    assert schemas["Samples"]["properties"]["names"]["items"]["enum"] == list(NAMES)
    assert schemas["Samples"]["properties"]["samples"]["maxItems"] == KEPT


def found(schema: Mapping[str, Any]) -> Any:
    """The part of the document that a reference leads to."""
    while "$ref" in schema:
        schema = _HTTP_SCHEMAS.resolver().lookup(f"urn:http{schema['$ref']}").contents
    return next((found(each) for each in schema["oneOf"] if each != {"type": "null"}), schema) if "oneOf" in schema else schema


def figures_of(schema: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """The figures that a schema names. A part by free names counts as `*`."""
    schema = found(schema)
    parts = dict(schema.get("properties", {}))
    if isinstance(more := schema.get("additionalProperties"), dict):
        parts["*"] = more
    for name, part in parts.items():
        yield f"{path}.{name}"
        yield from figures_of(part, f"{path}.{name}")


def figures_in(value: object, schema: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """The same names, of which figures have an example."""
    if not isinstance(value, Mapping):
        return
    schema = found(schema)
    for key, part in value.items():
        name = key if key in schema.get("properties", {}) else "*"
        yield f"{path}.{name}"
        yield from figures_in(part, schema["properties"][key] if name == key else schema["additionalProperties"], f"{path}.{name}")


def test_status_is_as_described() -> None:
    """Each figure of a daemon with each source and each method is in the document, and the document has no other."""
    schema = {"$ref": "#/components/schemas/Status"}
    url = BrokerUrl("rabbit.example", 5672, "alice", Secret("secret"), "vhost", tls=False)
    everything = {
        "broker": BrokerSettings(urls=(url,)),
        "auth": ("jwt", "tower", "open"),
        "tower": TowerSettings(url="http://tower.example"),
        "jwt": JwtSettings(algorithms=("RS256",), jwks_url="https://issuer.example/keys"),
    }
    seen: set[str] = set()
    for settings in ({}, everything):
        with daemon(**settings) as service:
            figures = json.loads(json.dumps(status_figures(service)))
            validator("#/components/schemas/Status").validate(figures)
            seen.update(figures_in(figures, schema))
    by_free_names = {name for name in figures_of(schema) if name.endswith(".*")}
    assert set(figures_of(schema)) - by_free_names == seen - by_free_names


def validator(pointer: str) -> Draft202012Validator:
    """For a schema of the document."""
    return Draft202012Validator({"$ref": f"urn:http{pointer}"}, registry=_HTTP_SCHEMAS)


def check(method: str, path: str, reply: Reply) -> None:
    """The document has this status for the path, with this content type, and the body is as its schema says."""
    response = HTTP["paths"][path][method.lower()]["responses"][str(reply.status)]
    pointer = f"#/paths/{path.replace('~', '~0').replace('/', '~1')}/{method.lower()}/responses/{reply.status}"
    if "$ref" in response:
        pointer = response["$ref"]
        response = HTTP["components"]["responses"][pointer.rpartition("/")[2]]
    if "content" not in response:
        assert not reply.body
        return
    kind = reply.headers["content-type"].partition(";")[0]
    assert kind in response["content"]
    if kind == "application/json":
        # A fragment of a URI: the braces of a path are written with %.
        validator(f"{quote(pointer, safe='#/~')}/content/application~1json/schema").validate(json.loads(reply.body))
    elif kind == "application/x-ndjson":
        line = {"anyOf": [{"$ref": f"urn:http#/components/schemas/{name}"} for name in ("EventAnswer", "Error")]}
        for text in reply.body.splitlines():
            Draft202012Validator(line, registry=_HTTP_SCHEMAS).validate(json.loads(text))


class ExplainingAdmin(ConsoleAdmin):
    """An admin port in memory, with the console and real explanations."""

    def explain(self, user: str, topic: str) -> Deferred[dict[str, object]]:
        """Explain as the daemon does."""
        return explain(self.edge.factory, self.edge.history, user, canonical_topic(topic), lambda: self.state)


@contextmanager
def admin_port() -> Iterator[ExplainingAdmin]:
    """An admin port with one client, which has got an event."""
    with edges() as maker:
        admin = ExplainingAdmin(maker)
        admin.edge.open(v1=True).listen(42)
        admin.edge.connect()
        admin.edge.publish("job_events.42", {"counter": 1})
        yield admin


EVENT = b'{"topic": "job_events.42", "payload": {}, "message_id": "id-1"}'
PROBE = b'{"probe": "' + b"a" * 32 + b'"}'
EVIL = {"Host": "evil.example"}
PAGES = ["/", "/console.css", "/live", "/live.css", "/live.js"]
SCRIPTS = [f"/{name}.js" for name in _SCRIPTS]


@each_row(
    ("method", "path", "body", "headers", "status"),
    [
        *[("GET", path, b"", {}, 200) for path in (*PAGES, *SCRIPTS)],
        *[("GET", path, b"", EVIL, 403) for path in (*PAGES, *SCRIPTS)],
        ("GET", "/healthz", b"", {}, 200),
        ("GET", "/readyz", b"", {}, 200),
        ("GET", "/metrics", b"", {}, 200),
        ("GET", "/live/topics", b"", {}, 200),
        ("GET", "/live/topics", b"", EVIL, 403),
        ("GET", "/console/samples", b"", {}, 200),
        ("GET", "/console/samples?x=1", b"", {}, 400),
        ("GET", "/console/samples", b"", EVIL, 403),
        ("GET", "/console/topics", b"", {}, 200),
        ("GET", "/console/topics?x=1", b"", {}, 400),
        ("GET", "/console/topics", b"", EVIL, 403),
        ("GET", "/console/events?after=-1&group=job_events&text=counter&instance=me", b"", {}, 200),
        ("GET", "/console/events?after=x", b"", {}, 400),
        ("GET", "/console/events", b"", EVIL, 403),
        ("GET", "/console/event?offset=1", b"", {}, 200),
        ("GET", "/console/event?offset=x", b"", {}, 400),
        ("GET", "/console/event?offset=99", b"", {}, 404),
        ("GET", "/console/event?offset=1", b"", EVIL, 403),
        ("GET", "/console/connections?after=0&text=&limit=9&behind=0", b"", {}, 200),
        ("GET", "/console/connections?limit=0", b"", {}, 400),
        ("GET", "/console/connections", b"", EVIL, 403),
        ("POST", "/console/connections/end", b'{"connection": 1, "instance": "me"}', {}, 202),
        ("POST", "/console/connections/end", b"x", {}, 400),
        ("POST", "/console/connections/end", b"{}", EVIL, 403),
        ("POST", "/console/connections/end", b'{"connection": 99, "instance": "me"}', {}, 404),
        ("POST", "/console/connections/end", b'{"connection": 1, "instance": "another"}', {}, 409),
        ("POST", "/console/connections/end", b"x" * 200_000, {}, 413),
        ("GET", "/console/explain?topic=job_events.42", b"", {}, 200),
        ("GET", "/console/explain?topic=job_events.42&user=7", b"", {}, 200),
        ("GET", "/console/explain", b"", {}, 400),
        ("GET", "/console/explain?topic=job_events.42", b"", EVIL, 403),
        ("POST", "/publish", EVENT, {}, 202),
        ("POST", "/publish", EVENT + b"\nx", {"Content_Type": "application/x-ndjson"}, 200),
        ("POST", "/publish", b"x", {}, 400),
        ("POST", "/publish", b'{"topic": "a.b", "payload": {"x": "' + b"y" * 100_000 + b'"}}', {}, 413),
        ("POST", "/disconnect", b'{"user": 7}', {}, 202),
        ("POST", "/disconnect", b"x", {}, 400),
        ("POST", "/probe", PROBE, {}, 200),
        ("POST", "/probe", b"x", {}, 400),
        ("POST", "/probe", PROBE, EVIL, 403),
        ("POST", "/restart", b"", EVIL, 403),
    ],
    admin=admin_port,
)
def test_answers_are_as_described(
    admin: ExplainingAdmin, method: str, path: str, body: bytes, headers: dict[str, Any], status: int
) -> None:
    """Status, content type and body of real answers. The document has each parameter of the query."""
    reply = admin.ask(method, path, body, **headers)
    assert reply.status == status
    route, _, query = path.partition("?")
    check(method, route, reply)
    if status == 200:
        parameters = {each["name"] for each in HTTP["paths"][route][method.lower()].get("parameters", []) if each["in"] == "query"}
        assert set(parse_qs(query)) <= parameters


def test_the_query_of_each_path_is_described() -> None:
    """The daemon names the parameters that a path takes."""
    with admin_port() as admin:
        for path in GETS:
            route = path.partition("?")[0]
            names = admin.ask("GET", f"{route}?x=1").error.partition("this path takes ")[2]
            parameters = [each["name"] for each in HTTP["paths"][route]["get"].get("parameters", [])]
            assert names == (", ".join(parameters) or "none"), route


def test_answers_about_a_broker_are_as_described() -> None:
    """Each outcome of an event, a source that is not ready, and daemons that did not answer."""
    with admin_port() as admin:
        for outcome in Outcome:
            admin.answers = [Published(outcome, None, "id-1", error="why")]
            check("POST", "/publish", admin.ask("POST", "/publish", EVENT))
        admin.state = SourceStatus(SourceState.BACKOFF, "connection refused", {}, ("the binding",))
        check("GET", "/readyz", admin.ask("GET", "/readyz"))
        admin.disconnected = succeed(Disconnection(1, told=False, reason="why", no_answer=(("id", "web2:1"),)))
        reply = admin.ask("POST", "/disconnect", b'{"user": 7}')
        assert reply.status == 503
        check("POST", "/disconnect", reply)


def test_the_figures_that_the_console_and_the_doctor_get_are_as_described() -> None:
    """Samples of a daemon, a handshake that arrived, and both ends of a hand-over."""
    schemas = HTTP["components"]["schemas"]
    with daemon() as service:
        samples = Samples(lambda: status_figures(service), lambda: True)
        samples.tick(0)
        samples.tick(EVERY_S)
    taken = schemas["Samples"]["properties"]["samples"]
    Draft202012Validator(taken).validate([list(sample) for sample in samples.since(-1)])
    assert len(samples.since(-1)) == 1
    probes = HandshakeProbes()
    name = "a" * 32
    probes.ask(name)
    probes.note({PROBE_HEADER: name, "host": "a"}, "192.0.2.1", 40000, "192.0.2.2", trusted=True)
    check("POST", "/probe", as_reply(probed_handshake(PROBE, probes)))
    moved = restart_daemon(lambda: succeed({"pid": 7, **HandOverCounters(closed=Counter(tls=1)).figures()}))
    check("POST", "/restart", as_reply(fired(moved)))
    failed = restart_daemon(lambda: fail(HandOverFailed("why")))
    check("POST", "/restart", as_reply(fired(failed)))
    assert '{"pid": pid, **figures}' in inspect.getsource(HandOver._hand_over)


def as_reply(answer: Answer) -> Reply:
    """An answer as a client gets it."""
    return Reply(b"HTTP/1.1 %d X\r\nContent-Type: %b\r\n\r\n%b" % (answer.status, answer.content_type, answer.body))


def fired(waiting: Deferred[Answer]) -> Answer:
    """What a Deferred has fired with."""
    answers: list[Answer] = []
    waiting.addCallback(answers.append)
    return answers[0]


# Plain HTTP on the websocket port

FILES = load_client_files()


def path_on_websocket_port(path: str) -> str:
    """A path of the document as a client writes it."""
    pattern = re.escape(last_segment(path)).replace(re.escape("{hash}"), "[0-9a-f]{12}")
    return next((f"/{name}" for name in FILES if re.fullmatch(pattern, name)), path)


def ask(edge: Edge, method: str, path: str, *lines: str) -> Reply:
    """Ask the websocket port."""
    client = edge.connect().send(get(path, *lines, method=method))
    return Reply(bytes(client.transport.received))


def test_each_plain_route_is_described(make: Edges) -> None:
    """Every plain path of the websocket port, and no other, with the methods that it takes. `HEAD` of a file is told in words."""
    on_port = described("websocket")
    names = {last_segment(path_on_websocket_port(path)) for path, _ in on_port}
    assert names == {*FILES, *(route.value for route in Route if route is not Route.FILE)}
    edge = make()
    for path in {path for path, _ in on_port}:
        asked = path_on_websocket_port(path)
        route = find_route(parse_head(get(asked), 9), FILES)
        for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
            reply = ask(edge, method, asked, "Origin: https://tower.example.com")
            answered = (path, method.lower()) in on_port or (method == "HEAD" and route is Route.FILE)
            assert (reply.status != 405) == answered, (method, path)
            assert reply.status != 404, path
    urls = [HTTP["paths"][path][method]["servers"] for path, method in on_port]
    assert all(url == [{"url": "http://127.0.0.1:8051", "description": urls[0][0]["description"]}] for url in urls)
    assert Settings(broker=None, auth=("open",)).listen == "tcp:8051:interface=127.0.0.1"


def user(problem: Exception | None = None, *allowed: str) -> Named:
    """A method by which every client is the same user, or has this problem."""
    method = Named(*allowed)
    method.problem = problem
    return method


SITE = "https://tower.example.com"
STREAM = "/events?topic=job_events.1"
PAGE = "/history?topic=job_events.1"


@each_row(
    ("method", "path", "lines", "auth", "status"),
    [
        ("GET", "/websocket/", [], user(), 426),
        ("GET", "/websocket/", ["Origin: https://evil.example"], user(), 403),
        ("GET", "/websocket/", [], user(Refused("no")), 403),
        ("GET", "/websocket/", [], user(Unavailable("no")), 503),
        *[("GET", path, [], user(), 200) for path in (STREAM, PAGE, f"{STREAM}&since=1-x", f"{PAGE}&since=1-x&limit=1")],
        ("GET", f"{PAGE}&topic=job_events.2", [], user(), 200),
        *[("GET", f"{path}&x=1", [], user(), 400) for path in (STREAM, PAGE)],
        *[("GET", path, [], Nobody(), 401) for path in (STREAM, PAGE)],
        *[("GET", path, [], user(Refused("no")), 401) for path in (STREAM, PAGE)],
        *[("GET", path, [], user(None, "jobs.summary"), 403) for path in (STREAM, PAGE)],
        *[("GET", path, [], user(Throttled("no")), 429) for path in (STREAM, PAGE)],
        *[("GET", path, [], user(Unavailable("no")), 503) for path in (STREAM, PAGE)],
        *[("OPTIONS", path, [f"Origin: {SITE}"], user(), 204) for path in ("/events", "/history")],
        *[("OPTIONS", path, ["Origin: https://evil.example"], user(), 403) for path in ("/events", "/history")],
        *[("GET", f"/{name}", [], user(), 200) for name in FILES],
        *[("GET", f"/{name}", [f'If-None-Match: "{file.etag}"'], user(), 304) for name, file in FILES.items()],
    ],
    make=edges,
)
def test_plain_answers_are_as_described(make: Edges, method: str, path: str, lines: list[str], auth: Any, status: int) -> None:
    """Status, content type and body of real answers of the websocket port."""
    edge = make(auth=auth)
    edge.publish("job_events.1", {"counter": 1})
    edge.publish("job_events.1", b'{"counter": NaN}')
    reply = ask(edge, method, path, *lines)
    assert reply.status == status
    check(method, re.sub("-[0-9a-f]{12}", "-{hash}", path.partition("?")[0]), reply)


def test_a_page_with_a_gap_is_as_described() -> None:
    """Which real answers seldom have."""
    page = HistoryPage([], "9-x", Gap(("job_events.1",), "1-x", "9-x", "history"), complete=True)
    body = json.loads(page_json(page, [Denied("jobs", "summary", "not allowed")], recovered=True))
    validator("#/components/schemas/HistoryPage").validate(body)


def test_the_query_of_each_plain_path_is_described(make: Edges) -> None:
    """The daemon names the parameters that a path takes. Credentials are described as security schemes."""
    edge = make()
    for path in ("/events", "/history"):
        names = ask(edge, "GET", f"{path}?x=1").body.decode().strip().partition("known are ")[2]
        parameters = [found(each) for each in HTTP["paths"][path]["get"]["parameters"]]
        assert names == ", ".join(sorted(each["name"] for each in parameters if each["in"] == "query"))
    schemes = HTTP["components"]["securitySchemes"].values()
    assert {scheme["name"] for scheme in schemes if scheme.get("in") == "query"} == CREDENTIALS


# The websocket


def test_asyncapi_is_valid() -> None:
    """By AsyncAPI's own schema."""
    require(NO_LANGUAGE, True if Node().here() else None)
    Node().prepare()
    schemas = Node().folder / "node_modules" / "@asyncapi" / "specs" / "schemas"
    schema = json.loads((schemas / "3.0.0.json").read_text())
    Draft7Validator(schema).validate(WEBSOCKET)
    broken = {**WEBSOCKET, "operations": {"send": {"action": "shout", "channel": {"$ref": "#/channels/tower"}}}}
    assert not Draft7Validator(schema).is_valid(broken)


def test_its_references_lead_somewhere() -> None:
    """Each reference is to a part of the document, and each operation's messages are those of its channel."""
    for reference in re.findall(r"\$ref: \"(.*?)\"", (ROOT / "docs" / "asyncapi.yaml").read_text()):
        _WEBSOCKET_SCHEMAS.resolver().lookup(f"urn:websocket{reference}")
    for name, channel in WEBSOCKET["channels"].items():
        used = [
            message["$ref"]
            for operation in WEBSOCKET["operations"].values()
            if operation["channel"]["$ref"] == f"#/channels/{name}"
            for message in operation["messages"]
        ]
        assert sorted(used) == sorted(f"#/channels/{name}/messages/{key}" for key in channel["messages"])


def messages(dialect: str, direction: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The name and the schema's reference of each message of a dialect, in one direction."""
    channel = "tower" if dialect == "tower" else "towerwsV1"
    action = "receive" if direction == "from client" else "send"
    for operation in WEBSOCKET["operations"].values():
        if operation["channel"]["$ref"] == f"#/channels/{channel}" and operation["action"] == action:
            for message in operation["messages"]:
                name = message["$ref"].rpartition("/")[2]
                part = WEBSOCKET["channels"][channel]["messages"][name]["$ref"].rpartition("/")[2]
                yield name, {"$ref": f"urn:websocket#/components/messages/{part}/payload"}


def fits(schema: Mapping[str, Any], frame: object) -> bool:
    """Whether a frame is as a message's schema says."""
    return bool(Draft7Validator(schema, registry=_WEBSOCKET_SCHEMAS).is_valid(frame))


def keys_of(schema: Mapping[str, Any]) -> set[str]:
    """The keys that a message's schema names."""
    found: Any = _WEBSOCKET_SCHEMAS.resolver().lookup(schema["$ref"]).contents
    return set(found.get("properties", {}))


ALIASES = {"denied": "error", "unavailable": "error", "not-a-list": "error"}
"""Samples of the Tower dialect that are one message."""


@each_row("sample", SAMPLES, ids=lambda sample: f"{sample['dialect']}-{sample['name']}")
def test_each_sample_is_as_described(sample: dict[str, str]) -> None:
    """A frame of docs/protocol.md fits its message, with no key that the document lacks. Without one of its keys it does not fit."""
    frame = json.loads(sample["frame"])
    name = ALIASES.get(sample["name"], sample["name"]) if sample["dialect"] == "tower" else sample["name"]
    schema = dict(messages(sample["dialect"], sample["direction"]))[name]
    assert fits(schema, frame)
    if (sample["dialect"], name) == ("tower", "event"):
        return  # the payload and nothing else
    assert set(frame) <= keys_of(schema)
    if sample["direction"] == "from server":
        for key in frame:
            assert not fits(schema, {other: value for other, value in frame.items() if other != key}), key
        assert not fits(schema, {**frame, next(iter(frame)): {}})


def test_each_message_has_a_sample() -> None:
    """So no message of the document is without a check, and each frame of the server is a message."""
    for dialect in ("tower", "towerws.v1"):
        for direction in ("from client", "from server"):
            described = {name for name, _ in messages(dialect, direction)}
            sampled = {
                ALIASES.get(sample["name"], sample["name"])
                for sample in SAMPLES
                if sample["dialect"] in {dialect, "any"} and sample["direction"] == direction
            }
            assert described == sampled
    types = set(re.findall(r'"type": ?"(\w+)"', (ROOT / "towerws" / "core" / "wire.py").read_text()))
    assert types == {name for name, _ in messages("towerws.v1", "from server")}


def stream_messages() -> dict[str, Mapping[str, Any]]:
    """The schema of each message of an event stream."""
    parts = WEBSOCKET["channels"]["events"]["messages"]
    return {name: {"$ref": f"urn:websocket{part['$ref']}/payload"} for name, part in parts.items()}


def test_streams_are_as_described(make: Edges) -> None:
    """Each event of a stream fits its message: those of docs/protocol.md, and those of a real stream. No other frame is an event."""
    edge = make(auth=user())
    stream = Stream(edge)
    edge.publish("job_events.1", {"counter": 1})
    stream.client.connection.end(CloseReason.RESTART)
    page = (ROOT / "docs" / "protocol.md").read_text()
    sample = re.search(r"```text\n(retry: .*?)```", page, re.DOTALL)
    assert sample is not None
    for events in (stream.take(), read_events(sample[1].encode())):
        kinds = ["event" if event.kind == "message" else event.kind for event in events]
        assert {"welcome", "subscribed", "event", "bye"} <= set(kinds)
        for kind, event in zip(kinds, events, strict=True):
            schema = stream_messages()[kind]
            assert fits(schema, event.frame), event
            assert set(event.frame) == keys_of(schema), event
    assert set(stream_messages()) == {name for name, _ in messages("towerws.v1", "from server")} - {"renewed", "pong", "error"}


def test_codes_are_those_of_the_code() -> None:
    """Error codes, and closes with their reasons and actions."""
    source = "".join(path.read_text() for part in ("core", "websocket") for path in (ROOT / "towerws" / part).glob("*.py"))
    codes = WEBSOCKET["components"]["messages"]["error"]["payload"]["properties"]["code"]["enum"]
    assert codes == sorted(set(re.findall(r'(?:BadRequest|AmbiguousJson)\("(\w+)"', source)))
    for name in ("tower", "towerwsV1"):
        closes = WEBSOCKET["channels"][name]["x-close-codes"]
        assert [close["code"] for close in closes][:2] == [1002, 1007]
        assert sorted((close["code"], close["reason"], close["action"]) for close in closes[2:]) == sorted(
            (reason.value.code, reason.value.reason, reason.value.action) for reason in CloseReason
        )


# The site


def test_the_pages_name_everything() -> None:
    """The site has a page of each document, with each path, schema, message and close."""
    pages = api_pages.pages(ROOT / "docs")
    for path, methods in HTTP["paths"].items():
        for method in methods:
            assert f"## {method.upper()} {path}\n" in pages["admin-api"]
    for name in HTTP["components"]["schemas"]:
        assert f"## {name}\n" in pages["admin-api"]
    for channel in WEBSOCKET["channels"].values():
        for name in channel["messages"]:
            assert f"#### {name} ({channel['title']})\n" in pages["websocket-api"]
    for reason in CloseReason:
        assert f"| {reason.value.code} | {reason.value.reason} | {reason.value.action} |" in pages["websocket-api"]
