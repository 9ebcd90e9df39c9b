"""What clients get that use plain HTTP: a stream of events, or a page of history as JSON (`GET /history`).

The stream has Server-Sent Events (WHATWG HTML, section 9.2): `towerws.v1` for clients that only read, such as a browser's `EventSource`.
Each frame of `towerws.v1` is one event. Its `data` is the frame, its `event` the frame's type, and its `id` the position that the frame
moves its reader to. An `EventSource` that reconnects sends the last `id`, and so resumes.

A delivery has no `event` line: a page gets it by `onmessage`. Its `data` leaves out the type and the position, which the event has
already: with them a burst takes 15 % more CPU than on websockets (make bench SCENARIO=events). A delivery's bytes are the same for every
reader, so the hub frames it once.

The body has no length and no chunks: it ends when the connection does. nginx speaks HTTP/1.0 to its upstream unless told otherwise, and
HTTP/1.0 has no chunks. An event that is cut off is no loss: readers drop it, and resume at the one before.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from towerws.core.deliveries import Delivery
from towerws.core.errors import Close
from towerws.core.identity import Identity
from towerws.core.payload import is_plain_object
from towerws.core.requests import Denied
from towerws.core.wire import V1, Change, Gap, V1Dialect

HEARTBEAT = b":\n\n"
"""A comment, which readers ignore. Proxies see that the connection lives, and TCP notices a reader that has gone."""

MAX_EVENTS = 1000
DEFAULT_EVENTS = 100

MAX_PAGE_BYTES = 256 * 1024
"""Bound of a page, as `History.after` counts. A larger event comes alone."""


class EventStreamDialect(V1Dialect):
    """The frames of `towerws.v1` as events. A reader sends no messages, so `renewed`, `pong` and `error` are never written."""

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

    def gap(self, gap: Gap) -> bytes | None:
        """Write the notice. A reader may resume behind the gap."""
        frame = super().gap(gap)
        return None if frame is None else _named("gap", frame, gap.end)

    def bye(self, close: Close, reconnect_after_ms: int | None) -> bytes | None:
        """Write the last event. An `EventSource` waits as long as its `retry` says."""
        frame = super().bye(close, reconnect_after_ms)
        retry = b"" if reconnect_after_ms is None else retry_line(reconnect_after_ms)
        return None if frame is None else retry + _named("bye", frame)


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
    gap = None if page.gap is None else V1.gap(page.gap)
    rest = {
        "next": page.next or None,
        "complete": page.complete,
        "recovered": recovered,
        "denied": [{"topic": f"{item.group}.{item.item}", "reason": item.reason} for item in denied],
    }
    events = b",".join(map(_event, page.deliveries))
    tail = json.dumps(rest, separators=(",", ":"))[1:].encode("ascii")
    return b'{"events":[%b],"gap":%b,%b\n' % (events, gap or b"null", tail)


def _event(delivery: Delivery) -> bytes:
    """Write the event of `towerws.v1`. One whose payload a strict parser may refuse has it as `text`, so that the page stays JSON."""
    if is_plain_object(delivery.payload):
        return V1.event(delivery)
    text = json.dumps(delivery.payload.decode()).encode("ascii")
    group, _, event = delivery.topic.partition(".")
    head = f'{{"type":"event","position":"{delivery.position}","group":"{group}","event":"{event}","payload":null,"text":'
    return b"%b%b}" % (head.encode("ascii"), text)
