"""Plain HTTP on the websocket port: `/events`, `/history`, the client's files, and a GET of the websocket's own path.

This module reads the requests, and writes the answers. It reads strictly: the answer to an unknown parameter or topic is a 400 that names
it. Otherwise a page with a misspelled name would wait for ever. `topic` may be repeated. `token` and `session_key` are the credentials
that a URL may carry.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Container
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import parse_qsl

from towerws.core.deliveries import Delivery
from towerws.core.errors import Close, HandshakeError, QueryError, printable
from towerws.core.http_head import WEBSOCKET_PATHS, Head
from towerws.core.identity import Identity
from towerws.core.origins import read_origin
from towerws.core.payload import is_plain_object
from towerws.core.requests import Denied
from towerws.core.topics import GroupTable, UnknownItem, parse_routing_key
from towerws.core.wire import UNAVAILABLE, V1, Change, Gap, V1Dialect, denial

CREDENTIALS = frozenset({"token", "session_key"})
"""The parameters that the methods of authentication read."""

_SINGLE = CREDENTIALS | {"since", "limit"}
"""The parameters besides `topic`. A request needs each of them once at most."""

MAX_NAMED = 10
"""The most topics that an answer names."""

PREFLIGHT_S = 600
"""How long a browser may remember the answer to a preflight."""

HEARTBEAT = b":\n\n"
"""A comment, which readers ignore. Proxies see that the connection lives, and TCP notices a reader that has gone."""

MAX_EVENTS = 1000
DEFAULT_EVENTS = 100

MAX_PAGE_BYTES = 256 * 1024
"""Bound of a page, as `History.after` counts. A larger event has a page of its own."""


class Route(enum.Enum):
    """What a plain request is for."""

    WEBSOCKET_PATH = "websocket"
    """A probe: a GET of the websocket's path without an upgrade. It asks for the status of a handshake, which browsers hide."""
    EVENTS = "events"
    HISTORY = "history"
    FILE = "file"


_BY_NAME = {"events": Route.EVENTS, "history": Route.HISTORY}


class PlainRequest(NamedTuple):
    """A request that is no handshake. `groups` is the table by which its topics were read. A probe has neither groups nor topics.

    `limit` is for `/history`.
    """

    route: Route
    topics: tuple[str, ...] = ()
    since: str | None = None
    limit: int = DEFAULT_EVENTS
    groups: GroupTable | None = None


def last_segment(path: str) -> str:
    """Return the last segment of a path, which decides what the request is for. One slash behind it is ignored. Return "" for two."""
    return "" if path.endswith("//") else path.rstrip("/").rpartition("/")[2]


def find_route(head: Head, files: Container[str]) -> Route | None:
    """Return what a request is for. None for an opening handshake, and for a request that `check_route` refuses."""
    if head.path.endswith(WEBSOCKET_PATHS):
        return None if "upgrade" in head.headers or head.method != "GET" else Route.WEBSOCKET_PATH
    name = last_segment(head.path)
    return Route.FILE if name in files else _BY_NAME.get(name)


def read_plain_request(head: Head, route: Route, groups: GroupTable, max_topics: int) -> PlainRequest:
    """Read a request for events or history, or a probe. Raises `HandshakeError` 400 that names what is wrong, or 405."""
    if head.method != "GET":
        raise HandshakeError(405, "this can be asked with GET only")
    if route is Route.WEBSOCKET_PATH:
        return PlainRequest(route)
    known = {"topic", "since", "limit"} if route is Route.HISTORY else {"topic", "since"}
    topics: dict[str, None] = {}
    once: dict[str, str] = {}
    for name, value in _parameters(head.query, max_topics):
        if name == "topic":
            topics[_topic(value, groups)] = None
        elif name not in known and name not in CREDENTIALS:
            raise QueryError(400, f"unknown parameter {_shown(name)}: known are {', '.join(sorted(known))}")
        elif once.setdefault(name, value) is not value and name in known:
            raise HandshakeError(400, f"the parameter {name} may come once")
    if not topics:
        raise HandshakeError(400, "no topic: add ?topic=GROUP.EVENT, such as ?topic=jobs.status_changed")
    if len(topics) > max_topics:
        raise HandshakeError(400, f"more than {max_topics} topics")
    # An EventSource reconnects with the URL of its beginning, and with the newest position in the header.
    since = (route is Route.EVENTS and head.headers.get("last-event-id")) or once.get("since") or None
    return PlainRequest(route, tuple(topics), since, _limit(once.get("limit")), groups)


def _parameters(query: str, max_topics: int) -> list[tuple[str, str]]:
    most = max_topics + len(_SINGLE)
    if query.count("&") >= most:
        raise HandshakeError(400, f"more than {most} parameters: {max_topics} topics are the most")
    try:
        return parse_qsl(query, keep_blank_values=True, errors="strict")
    except ValueError:  # UnicodeDecodeError is one
        raise HandshakeError(400, "the query is not NAME=VALUE pairs in UTF-8") from None


def _topic(text: str, groups: GroupTable) -> str:
    try:
        topic = parse_routing_key(text)
        return groups.routing_key(topic.group, topic.event)
    except UnknownItem as problem:
        raise QueryError(400, f"topic {_shown(text)}: {problem}") from None
    except ValueError:
        raise QueryError(400, f"topic {_shown(text)}: a topic is GROUP.EVENT, such as job_events.42") from None


def _limit(text: str | None) -> int:
    if text is None:
        return DEFAULT_EVENTS
    if not (text.isascii() and text.isdigit() and len(text) <= 6 and 1 <= int(text) <= MAX_EVENTS):
        raise QueryError(400, f"limit {_shown(text)}: a number from 1 to {MAX_EVENTS}")
    return int(text)


def _shown(text: str) -> str:
    """Return a client's text for its own answer: one line of ASCII, shortened."""
    return printable(text).encode("ascii", "backslashreplace").decode()


def all_refused(denied: list[Denied]) -> HandshakeError:
    """Return the refusal of a request without an allowed topic: 503 if a topic could not be checked, else 403."""
    named = "; ".join(f"{item.group}.{item.item}: {item.reason}" for item in denied[:MAX_NAMED])
    more = f"; and {len(denied) - MAX_NAMED} more" if len(denied) > MAX_NAMED else ""
    if any(item.reason == UNAVAILABLE for item in denied):
        unchecked = "whether this user may have these topics can't be checked just now"
        return QueryError(503, f"{unchecked}: {named}{more}", "unavailable", logged=unchecked)
    refused = "this user may have none of these topics"
    return QueryError(403, f"{refused}: {named}{more}", "topics", logged=refused)


_STATUSES = {"no_credential": 401, "credential": 401, "revoked": 401, "user": 429, "throttled": 429}


def plain_error(error: HandshakeError, route: Route) -> HandshakeError:
    """Return the refusal with the status that it has for events and history. A probe gets the status of the handshake.

    AWX's clients know 403 and 503 only, so a handshake gets no other. For events and history, 401 stands for a missing or refused
    credential, and 429 for a limit of the user's own.
    """
    status = error.status if route is Route.WEBSOCKET_PATH else _STATUSES.get(error.reason, error.status)
    return error if status == error.status else HandshakeError(status, str(error), error.reason, retry_s=error.retry_s)


def cors_headers(origin: str | None, *, credentials: bool) -> list[str]:
    """Return the lines that let a page of another origin read an answer.

    `credentials`: also the answer to a request with the user's cookies.
    """
    lines = ["Vary: Origin"]
    if origin is not None and (origin == "null" or read_origin(origin) is not None):
        lines += [f"Access-Control-Allow-Origin: {origin}", "Access-Control-Expose-Headers: Retry-After"]
        if credentials:
            lines.append("Access-Control-Allow-Credentials: true")
    return lines


def preflight_response(cors: list[str]) -> bytes:
    """Return the answer to a browser's question whether a page may send `Authorization` (Fetch section 3.2.2)."""
    return _head(
        "204 No Content",
        [
            *cors,
            "Access-Control-Allow-Methods: GET",
            "Access-Control-Allow-Headers: Authorization, Last-Event-ID",
            f"Access-Control-Max-Age: {PREFLIGHT_S}",
        ],
    )


def stream_response(cors: list[str]) -> bytes:
    """Return the head of an event stream. Its body has no length: it ends with the connection."""
    # `no-transform`: a proxy that compresses would hold events back. The third line is for nginx.
    lines = ["Content-Type: text/event-stream", "Cache-Control: no-store, no-transform", "X-Accel-Buffering: no", *cors]
    return _head("200 OK", lines)


def json_response(body: bytes, cors: list[str]) -> bytes:
    """Return a whole answer with JSON."""
    lines = ["Content-Type: application/json", "Cache-Control: no-store", f"Content-Length: {len(body)}", *cors]
    return _head("200 OK", lines) + body


class ClientFile(NamedTuple):
    """A file that the daemon serves to pages. `packed` is the body as gzip. `forever`: its name changes with its contents."""

    content_type: str
    body: bytes
    packed: bytes
    etag: str
    forever: bool


_takes_gzip = re.compile(r"[ \t]*gzip[ \t]*(?!;[ \t]*q[ \t]*=[ \t]*0(\.0*)?[ \t]*$)(;|$)", re.IGNORECASE).match
"""Matches a coding of Accept-Encoding: gzip, unless its weight is 0 (RFC 9110 section 12.5.3)."""


def file_response(head: Head, file: ClientFile) -> bytes:
    """Return the answer to a GET or HEAD of a file. Raise `HandshakeError` 405 for another method."""
    if head.method not in ("GET", "HEAD"):
        raise HandshakeError(405, "this can be asked with GET only")
    lines = [
        f'ETag: W/"{file.etag}"',
        f"Cache-Control: public, {'max-age=31536000, immutable' if file.forever else 'max-age=300'}",
        "Vary: Accept-Encoding",
        "Access-Control-Allow-Origin: *",
        "Cross-Origin-Resource-Policy: cross-origin",
    ]
    if f'"{file.etag}"' in head.headers.get("if-none-match", ""):
        return _head("304 Not Modified", lines)
    body = file.body
    if any(map(_takes_gzip, head.headers.get("accept-encoding", "").split(","))):
        body = file.packed
        lines.append("Content-Encoding: gzip")
    lines += [f"Content-Type: {file.content_type}", f"Content-Length: {len(body)}"]
    return _head("200 OK", lines) + (b"" if head.method == "HEAD" else body)


def _head(status: str, lines: list[str]) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "X-Content-Type-Options: nosniff", "Connection: close", "", ""]).encode("ascii")


class EventStreamDialect(V1Dialect):
    """The frames of `towerws.v1` as Server-Sent Events (WHATWG HTML, section 9.2), for clients that only read.

    Each frame is one event. Its `data` is the frame, its `event` the frame's type, and its `id` the position that the frame moves its
    reader to. An `EventSource` that reconnects sends the last `id`, and so resumes. A reader sends no messages, so `renewed`, `pong` and
    `error` are never written.

    A delivery has no `event` line: a page gets it by `onmessage`. Its `data` leaves out the type and the position, which the event has
    already. With them a burst takes 15 % more CPU than on websockets (make bench SCENARIO=events). A delivery's bytes are the same for
    every reader, so the hub frames it once.

    The body has no length and no chunks: it ends when the connection does. nginx speaks HTTP/1.0 to its upstream unless told otherwise,
    and HTTP/1.0 has no chunks. An event that is cut off is no loss: readers drop it, and resume at the one before.
    """

    name = "events"

    def wrap(self, payload: bytes) -> bytes:
        """Return the payload: the methods below write whole events."""
        return payload

    def welcome(self, identity: Identity, position: str, ping_s: float) -> bytes:
        """Write the first event. It has no `id`: a reader that is cut off before `subscribed` must keep its own position."""
        return _named("welcome", super().welcome(identity, position, ping_s))

    def event(self, delivery: Delivery) -> bytes:
        """Write a delivery. A line end in the payload becomes a line feed: outside of JSON's strings it is a space like any other."""
        group, _, event = delivery.topic.partition(".")
        payload = delivery.payload
        if b"\n" in payload or b"\r" in payload:
            payload = b"\ndata: ".join(payload.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"))
        head = f'{_id(delivery.position)}data: {{"group":"{group}","event":"{event}","payload":'
        return b"%b%b}\n\n" % (head.encode("ascii"), payload)

    def frame(self, delivery: Delivery) -> bytes:
        """Write a delivery."""
        return self.event(delivery)

    def revoked(self, change: Change, denied: list[Denied]) -> list[bytes]:
        """Write one event with all topics that were taken away."""
        return [_named("revoked", frame, change.position) for frame in super().revoked(change, denied)]

    def subscribed(self, change: Change, denied: list[Denied], request_id: object) -> bytes:
        """Write the topics, what was left out, and whether the missed deliveries follow."""
        return _named("subscribed", super().subscribed(change, denied, request_id), change.position)

    def gap(self, gap: Gap) -> bytes:
        """Write the notice. A reader may resume behind the gap."""
        return _named("gap", super().gap(gap), gap.end)

    def bye(self, close: Close, reconnect_after_ms: int | None) -> bytes:
        """Write the last event. An `EventSource` waits as long as its `retry` says."""
        retry = b"" if reconnect_after_ms is None else retry_line(reconnect_after_ms)
        return retry + _named("bye", super().bye(close, reconnect_after_ms))


EVENT_STREAM = EventStreamDialect()


def retry_line(wait_ms: int) -> bytes:
    """Return the line that tells a reader how long to wait before it reconnects."""
    return b"retry: %d\n" % wait_ms


def _named(kind: str, frame: bytes, position: str = "") -> bytes:
    return f"{_id(position)}event: {kind}\ndata: ".encode("ascii") + frame + b"\n\n"


def _id(position: str) -> str:
    """Return the line for a position, or nothing where there is none: an empty `id` would delete the reader's."""
    return f"id: {position}\n" if position else ""


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """Some deliveries, and the position from which the next page goes on ("" where no client can resume)."""

    deliveries: list[Delivery]
    next: str
    gap: Gap | None
    """What is lost between the last delivery and `next`."""
    complete: bool
    """Whether there is nothing more now."""


def page_json(page: HistoryPage, denied: list[Denied], *, recovered: bool | None) -> bytes:
    """Write a page. `recovered` is as in `subscribed`: false if the client's position is not in history, None if it gave none."""
    gap = b"null" if page.gap is None else V1.gap(page.gap)
    rest = {
        "next": page.next or None,
        "complete": page.complete,
        "recovered": recovered,
        "denied": [denial(item) for item in denied],
    }
    events = b",".join(map(_event, page.deliveries))
    tail = json.dumps(rest, separators=(",", ":"))[1:].encode("ascii")
    return b'{"events":[%b],"gap":%b,%b\n' % (events, gap, tail)


def _event(delivery: Delivery) -> bytes:
    """Write the event of `towerws.v1`. A payload that a strict parser might refuse is written as `text`, so that the page stays JSON."""
    if is_plain_object(delivery.payload):
        return V1.event(delivery)
    text = json.dumps(delivery.payload.decode()).encode("ascii")
    group, _, event = delivery.topic.partition(".")
    head = f'{{"type":"event","position":"{delivery.position}","group":"{group}","event":"{event}","payload":null,"text":'
    return b"%b%b}" % (head.encode("ascii"), text)
