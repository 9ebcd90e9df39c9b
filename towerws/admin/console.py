"""The console: its page, and the JSON endpoints that the page asks.

  GET  /console/samples           the last 15 minutes in figures, and the present state
  GET  /console/topics            all groups, and the newest topics
  GET  /console/events            the newest events, with the beginning of each payload
  GET  /console/event             one event: its whole payload
  GET  /console/connections       the connections, a page at a time
  POST /console/connections/end   end one connection of the process that listed it
  GET  /console/explain           why a user does not get the events of a topic

A page of another site can neither read these answers nor make the daemon compute them. All paths but `/console/samples` answer only if the
admin port is on loopback or a UNIX socket, and `admin_details` is true.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from twisted.internet.defer import Deferred
from twisted.web.server import Request

from towerws.admin.endpoint import Answer, Endpoint, HttpError, body_of, check_reader, details_check, json_answer
from towerws.admin.samples import EVERY_S, KEPT, NAMES, Samples, at, breaker_is_open
from towerws.admin.site import static_file
from towerws.core.deliveries import Delivery
from towerws.core.errors import printable
from towerws.core.history import History, count_topics, find_events
from towerws.core.hub import Hub
from towerws.core.topics import WITHHELD

MAX_ROWS = 100
"""Most connections in one answer."""

MAX_TEXT = 200
"""Most characters of a search, of a user and of a topic."""

PREVIEW_BYTES = 2048
"""Bytes of a payload's beginning in the list of events."""

BIGGEST = 2**63 - 1
"""Highest number in a query: the highest offset of a log (signed 64 bits)."""

_SCRIPTS = ("console", "console-kit", "console-overview", "console-events", "console-clients", "console-publish", "console-explain")

CONSOLE_PATHS = (
    *(b"", b"console.css", b"console/samples", b"console/topics", b"console/events", b"console/event"),
    *(b"console/connections", b"console/connections/end", b"console/explain"),
    *(f"{name}.js".encode() for name in _SCRIPTS),
)
"""The paths of `console_endpoints`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleData:
    """The parts of the daemon that the console uses.

    - `instance` names this process. A successor in a hand-over has another name.
    - `connections` takes the parameters `after`, `text`, `limit` and `behind` of `/console/connections`.
    - `end` takes the number of a connection, and returns whether it exists.
    - `explain` takes a user and a topic, and raises `ValueError` for a malformed topic.
    - `show_details` is `admin_details`.
    """

    instance: str
    status: Callable[[], Mapping[str, object]]
    samples: Samples
    history: History
    hub: Hub
    groups: Callable[[], list[dict[str, str]]]
    auth: tuple[str, ...]
    clock: Callable[[], float]
    connections: Callable[[int, str, int, bool], Mapping[str, object]]
    end: Callable[[int], bool]
    explain: Callable[[str, str], Deferred[dict[str, object]]]
    show_details: bool


def console_endpoints(data: ConsoleData) -> dict[bytes, Endpoint]:
    """Return the endpoints by path."""
    check = details_check(shown=data.show_details)

    def details(answer: Callable[[Request], Answer | Deferred[Answer]]) -> Endpoint:
        return Endpoint(b"GET", answer, check)

    return {
        b"": static_file("console.html"),
        b"console.css": static_file("console.css"),
        b"console/samples": Endpoint(b"GET", lambda request: _samples(request, data), check_reader),
        b"console/topics": details(lambda request: _topics(request, data)),
        b"console/events": details(lambda request: _events(request, data)),
        b"console/event": details(lambda request: _event(request, data)),
        b"console/connections": details(lambda request: _connections(request, data)),
        b"console/connections/end": Endpoint(b"POST", lambda request: _end(body_of(request), data), check),
        b"console/explain": details(lambda request: _explain(request, data)),
        **{f"{name}.js".encode(): static_file(f"{name}.js") for name in _SCRIPTS},
    }


# reading a query


def _query(request: Request, **defaults: str | float) -> dict[str, str | float]:
    """Read the query's parameters, each at most once. The type of a default is that of its parameter. Raises `HttpError` 400."""
    found = dict(defaults)
    for raw_name, values in request.args.items():
        name = raw_name.decode("latin-1")
        if name not in defaults:
            raise HttpError(400, f"unknown parameter '{printable(name)}': this path takes {', '.join(defaults) or 'none'}")
        if len(values) != 1:
            raise HttpError(400, f"{name} is given {len(values)} times: give it once")
        found[name] = _read(name, values[0], defaults[name])
    return found


def _read(name: str, raw: bytes, default: str | float) -> str | float:
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise HttpError(400, f"{name} is not UTF-8") from None
    if isinstance(default, str):
        if len(text) > MAX_TEXT:
            raise HttpError(400, f"{name} has {len(text)} characters: at most {MAX_TEXT}")
        return text
    try:
        number = type(default)(text)
    except ValueError:
        number = BIGGEST + 1
    if not -1 <= number <= BIGGEST:
        raise HttpError(400, f"{name} = '{printable(text)}': must be a number from -1 to {BIGGEST}")
    return number


# the answers


def _samples(request: Request, data: ConsoleData) -> Answer:
    asked = _query(request, after=-1.0)
    figures = data.status()
    source = at(figures, "source")
    present = {
        "version": figures.get("version"),
        "uptime_s": figures.get("uptime_s"),
        "source": {name: at(source, name) for name in ("state", "reason", "unproven", "broker", "mode")},
        "connections_max": at(figures, "connections.max"),
        "auth": data.auth,
        "api": at(figures, "auth.tower.calls") is not None,
        "breaker_open": breaker_is_open(figures),
        "refused_for": at(figures, "connections.refused_for"),
        "not_recovered": at(figures, "hub.not_recovered"),
        "history_events": at(figures, "history.deliveries"),
    }
    return json_answer(
        200,
        {
            "instance": data.instance,
            "now": round(data.clock(), 2),
            "every_s": EVERY_S,
            "kept_s": EVERY_S * KEPT,
            "names": NAMES,
            "samples": data.samples.since(float(asked["after"])),
            "present": present,
        },
    )


def _topics(request: Request, data: ConsoleData) -> Answer:
    _query(request)
    now = data.clock()
    topics = [
        {"topic": topic, "events": count, "age_s": round(now - newest.arrived, 1), "subscribers": data.hub.subscriber_count(topic)}
        for topic, count, newest in count_topics(data.history)
    ]
    return json_answer(200, {"groups": data.groups(), "topics": topics})


def _events(request: Request, data: ConsoleData) -> Answer:
    asked = _query(request, after=-1, group="", text="", instance="")
    # The numbers of another process mean nothing here.
    after = int(asked["after"]) if asked["instance"] in {"", data.instance} else -1
    found = find_events(data.history, after=after, group=str(asked["group"]), text=str(asked["text"]))
    now = data.clock()
    events = [_row(delivery, now) for delivery in found.events]
    return json_answer(200, {"instance": data.instance, "newest": data.history.head.seq, "complete": found.complete, "events": events})


def _row(delivery: Delivery, now: float) -> dict[str, object]:
    beginning = delivery.payload[:PREVIEW_BYTES].decode("utf-8", "replace")
    return {
        "seq": delivery.seq,
        "offset": delivery.offset,
        "topic": delivery.topic,
        "age_s": round(now - delivery.arrived, 2),
        "bytes": len(delivery.payload),
        "preview": beginning,
    }


def _event(request: Request, data: ConsoleData) -> Answer:
    asked = _query(request, offset=-1)
    delivery = data.history.at(int(asked["offset"]))
    if delivery is None or not delivery.topic or delivery.topic in WITHHELD:
        raise HttpError(404, f"history holds no event with offset {asked['offset']}: it may have been dropped since")
    row = _row(delivery, data.clock())
    del row["preview"]
    payload = delivery.payload.decode("utf-8", "replace")
    more = {"position": delivery.position or None, "message_id": delivery.message_id, "payload": payload}
    return json_answer(200, {"instance": data.instance, **row, **more})


def _connections(request: Request, data: ConsoleData) -> Answer:
    asked = _query(request, after=0, text="", limit=50, behind=0)
    if not 1 <= asked["limit"] <= MAX_ROWS:  # type: ignore[operator]  # its default is a number
        raise HttpError(400, f"limit = {asked['limit']}: must be 1 to {MAX_ROWS}")
    found = data.connections(int(asked["after"]), str(asked["text"]), int(asked["limit"]), bool(asked["behind"]))
    return json_answer(200, {"instance": data.instance, **found})


def _end(body: bytes, data: ConsoleData) -> Answer:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    match found:
        case {"connection": int() as number, "instance": str() as instance, **rest} if not rest and not isinstance(number, bool):
            # Numbers begin again at 1 in each process, also after a hand-over.
            if instance != data.instance:
                text = f"connection {number} was listed by another process of the daemon, so nothing was ended: load the list again"
                raise HttpError(409, text)
            if data.end(number):
                return json_answer(202, {"ended": number})
            raise HttpError(404, f"there is no connection {number}: it may have ended already")
    raise HttpError(400, 'the body is not {"connection": 17, "instance": "…"}, with the number and the instance of /console/connections')


def _explain(request: Request, data: ConsoleData) -> Deferred[Answer]:
    asked = _query(request, user="", topic="")
    if not asked["topic"]:
        raise HttpError(400, "topic is missing: /console/explain?user=7&topic=job_events.42 (without user: an anonymous client)")
    try:
        explained = data.explain(str(asked["user"]), str(asked["topic"]))
    except ValueError as error:
        raise HttpError(400, str(error)) from None
    return explained.addCallback(lambda found: json_answer(200, found))
