"""The two dialects: what the server writes to a client of AWX, and to a client of `towerws.v1` (docs/protocol.md).

A delivery's payload passes through as bytes and is never decoded and encoded again. AWX's producers send lone surrogates and even
`NaN`. A second encoder would write these differently (awx-contract: "the bytes should pass through untouched").
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from towerws.core.deliveries import Delivery
from towerws.core.errors import BadRequest, Close
from towerws.core.frames import text_frame
from towerws.core.identity import Identity
from towerws.core.requests import Denied
from towerws.core.topics import flat_name

SUBPROTOCOL = "towerws.v1"

UNAVAILABLE = "unavailable"
"""The reason for an item that could not be checked."""

SUPERSEDED = "superseded"
"""The reason for an item that was still being checked when a newer request came."""


class Change(NamedTuple):
    """A connection's topics (routing keys) after a request, and how they changed.

    `position` is "" if no client can resume from here. `recovered` is None for a request without a position.
    """

    current: tuple[str, ...]
    joined: tuple[str, ...]
    left: tuple[str, ...]
    position: str
    recovered: bool | None


@dataclass(frozen=True, slots=True)
class Gap:
    """Deliveries between two positions are lost. `topics` has the topics (routing keys) that they may have had."""

    topics: tuple[str, ...]
    start: str
    end: str
    reason: str


class Dialect(Protocol):
    """What the server writes to one kind of client.

    Each method but `wrap` and `frame` returns the payload of one message. None: the dialect has no such message, and nothing is
    sent. `wrap` turns a payload into the bytes that go over the wire.
    """

    name: str
    subprotocol: str | None

    def wrap(self, payload: bytes) -> bytes:
        """Return the bytes for the wire of a payload from one of the other methods."""

    def welcome(self, identity: Identity, position: str, ping_s: float) -> bytes:
        """Write the first message."""

    def renewed(self, identity: Identity, request_id: object) -> bytes:
        """Answer a new token, once what it grants is in force."""

    def event(self, delivery: Delivery) -> bytes:
        """Write a delivery."""

    def frame(self, delivery: Delivery) -> bytes:
        """Write a delivery as `wrap` does with `event`: the same bytes for every client of this dialect."""

    def pong(self, ping: object, position: str) -> bytes:
        """Answer a client's ping message."""

    def revoked(self, change: Change, denied: list[Denied]) -> list[bytes]:
        """Report topics that the server took away from a client. Return the payloads of any number of messages."""

    def denied(self, denied: Denied) -> bytes | None:
        """Report one item of a request that was left out."""

    def subscribed(self, change: Change, denied: list[Denied], request_id: object) -> bytes:
        """Answer a request, once the new set of topics is in force."""

    def error(self, error: BadRequest) -> bytes:
        """Answer a request that was refused as a whole and changed nothing."""

    def gap(self, gap: Gap) -> bytes | None:
        """Report lost deliveries. The client should fetch the state again."""

    def bye(self, close: Close, reconnect_after_ms: int | None) -> bytes | None:
        """Write the last message before the server closes."""


class TowerDialect:
    """What AWX 1.0 to 24 writes (awx/main/consumers.py): an event is the bare payload, and there is no message for a gap."""

    name = "tower"
    subprotocol: str | None = None

    def wrap(self, payload: bytes) -> bytes:
        """Return one whole text message of a websocket."""
        return text_frame(payload)

    def welcome(self, identity: Identity, position: str, ping_s: float) -> bytes:
        """Write `{"accept": true, "user": 7}`. The user must be a number: 0 stands for an anonymous user or a name."""
        user = identity.user_id if isinstance(identity.user_id, int) else 0
        return b'{"accept": true, "user": %d}' % user

    def renewed(self, identity: Identity, request_id: object) -> bytes:
        """Repeat the first message: AWX has no such request, and so no answer to it."""
        return self.welcome(identity, "", 0)

    def pong(self, ping: object, position: str) -> bytes:
        """Write an error, as for any object without groups: AWX has no ping message."""
        return self.error(BadRequest("no_groups", 'message has no "groups"'))

    def revoked(self, change: Change, denied: list[Denied]) -> list[bytes]:
        """Write the error of each topic. A client would take AWX's reply for the answer to a request."""
        return [payload for payload in map(self.denied, denied) if payload is not None]

    def event(self, delivery: Delivery) -> bytes:
        """Return the payload itself."""
        return delivery.payload

    def frame(self, delivery: Delivery) -> bytes:
        """Write a delivery as a whole frame."""
        return text_frame(delivery.payload)

    def denied(self, denied: Denied) -> bytes | None:
        """Write AWX's text for a refused item, our own for one that can't be checked, and nothing for a superseded one."""
        if denied.reason == SUPERSEDED:
            return None
        if denied.reason == UNAVAILABLE:
            return _spaced({"error": f"access to channel {denied.group} for resource id {denied.item} can't be checked just now"})
        return _spaced({"error": f"access denied to channel {denied.group} for resource id {denied.item}"})

    def subscribed(self, change: Change, denied: list[Denied], request_id: object) -> bytes:
        """Write the reply of AWX 10 and later, with flat names. awxkit's `unsubscribe()` waits for `groups_current`."""
        current, left = _names(change.current), _names(change.left)
        joined = current if change.joined is change.current else _names(change.joined)
        return f'{{"groups_current": {current}, "groups_left": {left}, "groups_joined": {joined}}}'.encode("ascii")

    def error(self, error: BadRequest) -> bytes:
        """Write `{"error": …}`: AWX's text for a value that is not a list, and our own where AWX gives no answer."""
        return _spaced({"error": "access denied to channel" if error.code == "not_a_list" else str(error)})

    def gap(self, gap: Gap) -> bytes | None:
        """Write nothing: AWX has no such message."""
        return None

    def bye(self, close: Close, reconnect_after_ms: int | None) -> bytes | None:
        """Write nothing: AWX has no such message."""
        return None


class V1Dialect:
    """`towerws.v1`: each message is one JSON object with a `type`. Messages that move a client's place in the log have a position."""

    name = "v1"
    subprotocol: str | None = SUBPROTOCOL

    def wrap(self, payload: bytes) -> bytes:
        """Return one whole text message of a websocket."""
        return text_frame(payload)

    def welcome(self, identity: Identity, position: str, ping_s: float) -> bytes:
        """Write the current position, and how often the server pings."""
        return _compact({"type": "welcome", "user": identity.user_id, "position": position or None, "ping_s": ping_s})

    def renewed(self, identity: Identity, request_id: object) -> bytes:
        """Write the token's user, and the `id` of the client's message."""
        return _compact({"type": "renewed", "id": request_id, "user": identity.user_id})

    def pong(self, ping: object, position: str) -> bytes:
        """Write what the client sent, and the client's position."""
        return _compact({"type": "pong", "ping": ping, "position": position or None})

    def revoked(self, change: Change, denied: list[Denied]) -> list[bytes]:
        """Write one message with all of them, and with the topics that are left."""
        return [
            _compact(
                {
                    "type": "revoked",
                    "groups_current": change.current,
                    "groups_left": change.left,
                    "denied": [denial(item) for item in denied],
                    "position": change.position or None,
                }
            )
        ]

    def event(self, delivery: Delivery) -> bytes:
        """Write the envelope around the payload. The names need no escaping: topics.py allows no character that does."""
        group, _, event = delivery.topic.partition(".")
        head = f'{{"type":"event","position":"{delivery.position}","group":"{group}","event":"{event}","payload":'
        return b"%b%b}" % (head.encode("ascii"), delivery.payload)

    def frame(self, delivery: Delivery) -> bytes:
        """Write a delivery as a whole frame."""
        return text_frame(self.event(delivery))

    def denied(self, denied: Denied) -> bytes | None:
        """Write nothing: `subscribed` lists them."""
        return None

    def subscribed(self, change: Change, denied: list[Denied], request_id: object) -> bytes:
        """Write the new set, what was left out, and whether the missed deliveries follow."""
        return _compact(
            {
                "type": "subscribed",
                "id": request_id,
                "groups_current": change.current,
                "groups_joined": change.joined,
                "groups_left": change.left,
                "denied": [denial(item) for item in denied],
                "position": change.position or None,
                "recovered": change.recovered,
            }
        )

    def error(self, error: BadRequest) -> bytes:
        """Write a code for programs, a text for people, and the `id` of the request."""
        return _compact({"type": "error", "code": error.code, "message": str(error), "id": error.request_id})

    def gap(self, gap: Gap) -> bytes:
        """Write the notice, with routing keys as topics."""
        return _compact({"type": "gap", "topics": gap.topics, "from": gap.start or None, "to": gap.end or None, "reason": gap.reason})

    def bye(self, close: Close, reconnect_after_ms: int | None) -> bytes:
        """Write what to do next, when, and why."""
        return _compact({"type": "bye", "action": close.action, "reconnect_after_ms": reconnect_after_ms, "reason": close.reason})


# AWX encodes with Python's default separators. A client that compares text finds the same text.
_encode_spaced = json.JSONEncoder(check_circular=False).encode
_encode_compact = json.JSONEncoder(check_circular=False, separators=(",", ":")).encode

TOWER: Dialect = TowerDialect()
V1 = V1Dialect()

DIALECTS: dict[str | None, Dialect] = {dialect.subprotocol: dialect for dialect in (TOWER, V1)}
"""Both dialects, by subprotocol. `deflated` makes their compressed twins."""


def _names(topics: tuple[str, ...]) -> str:
    """Write a JSON list of flat names. They need no escaping (topics.py), so the answers during a storm need no encoder."""
    return '["' + '", "'.join(map(flat_name, topics)) + '"]' if topics else "[]"


def denial(item: Denied) -> dict[str, str]:
    """Return a topic that was left out, for JSON."""
    return {"topic": f"{item.group}.{item.item}", "reason": item.reason}


def _spaced(reply: dict[str, object]) -> bytes:
    return _encode_spaced(reply).encode("ascii")


def _compact(reply: dict[str, object]) -> bytes:
    return _encode_compact(reply).encode("ascii")
