"""docs/openapi.yaml and docs/asyncapi.yaml are valid, and say what the daemon does."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import api_pages
import yaml
from jsonschema import Draft7Validator, Draft202012Validator
from openapi_spec_validator import validate
from referencing import Registry
from referencing.jsonschema import DRAFT7, DRAFT202012
from twisted.internet.defer import succeed
from twisted.internet.selectreactor import SelectReactor

from tests.integration.conftest import NO_LANGUAGE, require
from tests.kit.rows import each_row
from tests.languages import Node
from tests.test_admin import Admin, Reply, admin_port
from tests.test_clock import close
from towerws.admin import MetricsPage, monitor_site
from towerws.admin.endpoint import EndpointSite
from towerws.core.errors import CloseReason
from towerws.core.publication import Outcome, Published
from towerws.core.revocation import Disconnection
from towerws.core.settings import Settings
from towerws.core.sources import SourceState, SourceStatus
from towerws.service import TowerwsService
from towerws.status import status_figures

ROOT = Path(__file__).parents[1]
HTTP: dict[str, Any] = yaml.safe_load((ROOT / "docs" / "openapi.yaml").read_text())
WEBSOCKET: dict[str, Any] = yaml.safe_load((ROOT / "docs" / "asyncapi.yaml").read_text())
SAMPLES = json.loads((ROOT / "tests" / "data" / "protocol-samples.json").read_text())

_HTTP_SCHEMAS: Registry[Any] = Registry().with_resource("urn:http", DRAFT202012.create_resource(HTTP))
_WEBSOCKET_SCHEMAS: Registry[Any] = Registry().with_resource("urn:websocket", DRAFT7.create_resource(WEBSOCKET))


# The HTTP ports


def test_openapi_is_valid() -> None:
    """By the schema of OpenAPI 3.1. References, parameters and the names of operations are checked too."""
    validate(HTTP)


def routes(site: EndpointSite) -> set[tuple[str, str]]:
    """The paths of a port, with their methods."""
    return {(f"/{path.decode()}", endpoint._method.decode().lower()) for path, endpoint in site._endpoints.items()}


def described(tag: str = "") -> set[tuple[str, str]]:
    """The paths of the document, with their methods: all, or those with this tag."""
    return {
        (path, method)
        for path, methods in HTTP["paths"].items()
        for method, operation in methods.items()
        if not tag or tag in operation.get("tags", [])
    }


def test_each_route_is_described() -> None:
    """Every path and method of the three ports, and no other."""
    with admin_port() as admin:
        assert routes(admin.site) == described()
    status = SourceStatus(SourceState.CONSUMING)
    health: Any = health_site(lambda: status)
    monitor: Any = monitor_site(lambda: status, MetricsPage(dict, lambda: 0.0))
    assert routes(health.wrappedFactory) == described("health")
    assert routes(monitor.wrappedFactory) == described("monitor")


def test_the_words_are_those_of_the_code() -> None:
    """Outcomes, states, and the parts of `/status`."""
    schemas = HTTP["components"]["schemas"]
    assert schemas["EventAnswer"]["properties"]["outcome"]["enum"] == [outcome.value for outcome in Outcome]
    assert schemas["Readiness"]["properties"]["state"]["enum"] == [state.value for state in SourceState]
    reactor = SelectReactor()
    figures = status_figures(TowerwsService(Settings(broker=None, auth=("open",)), reactor))
    close(reactor)
    content = HTTP["paths"]["/status"]["get"]["responses"]["200"]["content"]
    assert list(content["application/json"]["schema"]["properties"]) == list(figures)


def check(method: str, path: str, reply: Reply) -> None:
    """The document has this status for the path, with this content type, and the body is as its schema says."""
    response = HTTP["paths"][path][method.lower()]["responses"][str(reply.status)]
    pointer = f"/paths/{path.replace('/', '~1')}/{method.lower()}/responses/{reply.status}"
    if "$ref" in response:
        pointer = response["$ref"].removeprefix("#")
        response = HTTP["components"]["responses"][pointer.rpartition("/")[2]]
    kind = reply.headers["content-type"].partition(";")[0]
    assert kind in response["content"]
    if kind == "application/json":
        reference = f"urn:http#{pointer}/content/application~1json/schema"
        Draft202012Validator({"$ref": reference}, registry=_HTTP_SCHEMAS).validate(reply.json)
    elif kind == "application/x-ndjson":
        line = {"anyOf": [{"$ref": f"urn:http#/components/schemas/{name}"} for name in ("EventAnswer", "Error")]}
        for text in reply.body.splitlines():
            Draft202012Validator(line, registry=_HTTP_SCHEMAS).validate(json.loads(text))


EVENT = b'{"topic": "job_events.42", "payload": {}, "message_id": "id-1"}'


@each_row(
    ("method", "path", "body", "headers", "status"),
    [
        ("GET", "/", b"", {}, 200),
        ("GET", "/live.css", b"", {}, 200),
        ("GET", "/live.js", b"", {}, 200),
        ("GET", "/healthz", b"", {}, 200),
        ("GET", "/readyz", b"", {}, 200),
        ("GET", "/status", b"", {}, 200),
        ("GET", "/metrics", b"", {}, 200),
        ("GET", "/topics", b"", {}, 200),
        ("GET", "/topics", b"", {"Host": "evil.example"}, 403),
        ("POST", "/publish", EVENT, {}, 202),
        ("POST", "/publish", EVENT + b"\nx", {"Content_Type": "application/x-ndjson"}, 200),
        ("POST", "/publish", b"x", {}, 400),
        ("POST", "/publish", b'{"topic": "a.b", "payload": {"x": "' + b"y" * 100_000 + b'"}}', {}, 413),
        ("POST", "/disconnect", b'{"user": 7}', {}, 202),
        ("POST", "/disconnect", b"x", {}, 400),
    ],
    admin=admin_port,
)
def test_answers_are_as_described(admin: Admin, method: str, path: str, body: bytes, headers: dict[str, Any], status: int) -> None:
    """Status, content type and body of real answers."""
    reply = admin.ask(method, path, body, **headers)
    assert reply.status == status
    check(method, path, reply)


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


def test_codes_are_those_of_the_code() -> None:
    """Error codes, and closes with their reasons and actions."""
    source = "".join(path.read_text() for part in ("core", "websocket") for path in (ROOT / "towerws" / part).glob("*.py"))
    codes = WEBSOCKET["components"]["messages"]["error"]["payload"]["properties"]["code"]["enum"]
    assert codes == sorted(set(re.findall(r'BadRequest\("(\w+)"', source)))
    for channel in WEBSOCKET["channels"].values():
        closes = channel["x-close-codes"]
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
