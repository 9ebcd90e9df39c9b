"""What the server writes, in both dialects: the payload of each text frame, of an event the frame (all is in docs/protocol.md).

A delivery's payload passes through as bytes, never decoded and encoded again: AWX's producers send lone surrogates and even
`NaN`, which no second encoder would bring out the same (awx-contract: "the bytes should pass through untouched").
A dialect that has no word for something says None, and then nothing is sent.
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
"""The reason of an item whose check could not be made."""

SUPERSEDED = "superseded"
"""The reason of an item that was still being checked when a newer request came."""


class Change(NamedTuple):
    """What a request made of a connection's topics (routing keys).

    `position` is "" where there is none to resume from. `recovered` is None for a request without a position.
    """

    current: tuple[str, ...]
    joined: tuple[str, ...]
    left: tuple[str, ...]
    position: str
    recovered: bool | None


@dataclass(frozen=True, slots=True)
class Gap:
    """Deliveries between two positions that can't be had, and the topics (routing keys) they may have been on."""

    topics: tuple[str, ...]
    start: str
    end: str
    reason: str


class Dialect(Protocol):
    """How one kind of client is spoken to. Every method gives the payload of one text frame, or None for silence."""

    name: str
    subprotocol: str | None

    def welcome(self, identity: Identity, position: str, ping_s: float) -> bytes:
        """The first frame."""

    def renewed(self, identity: Identity, request_id: object) -> bytes:
        """The answer to a new token, once what it grants is in force."""

    def event(self, delivery: Delivery) -> bytes:
        """A delivery."""

    def frame(self, delivery: Delivery) -> bytes:
        """A delivery as a whole frame: the same bytes for everyone who is spoken to in this way."""

    def pong(self, ping: object, position: str) -> bytes:
        """The answer to a client's own ping."""

    def revoked(self, change: Change, denied: list[Denied]) -> list[bytes]:
        """Topics that were taken away from a client that did not ask."""

    def denied(self, denied: Denied) -> bytes | None:
        """One item of a request that was left out."""

    def subscribed(self, change: Change, denied: list[Denied], request_id: object) -> bytes:
        """The answer to a request, once the new set of topics is in force."""

    def error(self, error: BadRequest) -> bytes:
        """The answer to a request that changed nothing."""

    def gap(self, gap: Gap) -> bytes | None:
        """Deliveries that can't be had; the client should fetch the state again."""

    def bye(self, close: Close, reconnect_after_ms: int | None) -> bytes | None:
        """The last frame before the server closes."""


class TowerDialect:
    """AWX's own words, 1.0 to 24 (awx/main/consumers.py): the payload is the frame, and there is none for a gap."""

    name = "tower"
    subprotocol: str | None = None

    def welcome(self, identity: Identity, position: str, ping_s: float) -> bytes:
        """`{"accept": true, "user": 7}`. The contract demands a number: an anonymous or named user is 0."""
        user = identity.user_id if isinstance(identity.user_id, int) else 0
        return b'{"accept": true, "user": %d}' % user

    def renewed(self, identity: Identity, request_id: object) -> bytes:
        """The first frame again: AWX, which has no such message, has no answer to it either."""
        return self.welcome(identity, "", 0)

    def pong(self, ping: object, position: str) -> bytes:
        """AWX has no such message and no answer to it: an error, as for any object without groups."""
        return self.error(BadRequest("no_groups", 'message has no "groups"'))

    def revoked(self, change: Change, denied: list[Denied]) -> list[bytes]:
        """The error frame of each. AWX's reply would be taken for the answer to a request."""
        return [frame for frame in map(self.denied, denied) if frame is not None]

    def event(self, delivery: Delivery) -> bytes:
        """The payload itself."""
        return delivery.payload

    def frame(self, delivery: Delivery) -> bytes:
        """A delivery as a whole frame."""
        return text_frame(delivery.payload)

    def denied(self, denied: Denied) -> bytes | None:
        """AWX's text; but what could not be checked is not what was refused, and what a newer request replaced needs no word."""
        if denied.reason == SUPERSEDED:
            return None
        if denied.reason == UNAVAILABLE:
            return _spaced({"error": f"access to channel {denied.group} for resource id {denied.item} can't be checked just now"})
        return _spaced({"error": f"access denied to channel {denied.group} for resource id {denied.item}"})

    def subscribed(self, change: Change, denied: list[Denied], request_id: object) -> bytes:
        """The reply of AWX 10 and later, with flat names. awxkit's `unsubscribe()` waits for `groups_current`."""
        current, left, joined = map(_names, (change.current, change.left, change.joined))
        return f'{{"groups_current": {current}, "groups_left": {left}, "groups_joined": {joined}}}'.encode("ascii")

    def error(self, error: BadRequest) -> bytes:
        """`{"error": …}`; for a value that is not a list AWX's own text, for what AWX answered with silence, ours."""
        return _spaced({"error": "access denied to channel" if error.code == "not_a_list" else str(error)})

    def gap(self, gap: Gap) -> bytes | None:
        """Nothing."""
        return None

    def bye(self, close: Close, reconnect_after_ms: int | None) -> bytes | None:
        """Nothing."""
        return None


class V1Dialect:
    """`towerws.v1`: one object a frame, its kind in `type`, and a position on all that moves a reader."""

    name = "v1"
    subprotocol: str | None = SUBPROTOCOL

    def welcome(self, identity: Identity, position: str, ping_s: float) -> bytes:
        """Says where the log stands, and how often a ping will come."""
        return _compact({"type": "welcome", "user": identity.user_id, "position": position or None, "ping_s": ping_s})

    def renewed(self, identity: Identity, request_id: object) -> bytes:
        """Says whose token it was, and repeats the message's own id."""
        return _compact({"type": "renewed", "id": request_id, "user": identity.user_id})

    def pong(self, ping: object, position: str) -> bytes:
        """Repeats what the client sent, and says where the log stands for it."""
        return _compact({"type": "pong", "ping": ping, "position": position or None})

    def revoked(self, change: Change, denied: list[Denied]) -> list[bytes]:
        """One frame with all of them, and what is left."""
        return [
            _compact(
                {
                    "type": "revoked",
                    "groups_current": change.current,
                    "groups_left": change.left,
                    "denied": [_denial(item) for item in denied],
                    "position": change.position or None,
                }
            )
        ]

    def event(self, delivery: Delivery) -> bytes:
        """The payload between its position and a brace. Names need no escaping: topics.py keeps them plain."""
        group, _, event = delivery.topic.partition(".")
        head = f'{{"type":"event","position":"{delivery.position}","group":"{group}","event":"{event}","payload":'
        return b"%b%b}" % (head.encode("ascii"), delivery.payload)

    def frame(self, delivery: Delivery) -> bytes:
        """A delivery as a whole frame."""
        return text_frame(self.event(delivery))

    def denied(self, denied: Denied) -> bytes | None:
        """Nothing: `subscribed` lists them."""
        return None

    def subscribed(self, change: Change, denied: list[Denied], request_id: object) -> bytes:
        """The new set, what was left out, and whether the missed deliveries follow."""
        return _compact(
            {
                "type": "subscribed",
                "id": request_id,
                "groups_current": change.current,
                "groups_joined": change.joined,
                "groups_left": change.left,
                "denied": [_denial(item) for item in denied],
                "position": change.position or None,
                "recovered": change.recovered,
            }
        )

    def error(self, error: BadRequest) -> bytes:
        """A code for programs, a text for people, and the request's own id."""
        return _compact({"type": "error", "code": error.code, "message": str(error), "id": error.request_id})

    def gap(self, gap: Gap) -> bytes | None:
        """The notice, with routing keys as topics."""
        return _compact({"type": "gap", "topics": gap.topics, "from": gap.start or None, "to": gap.end or None, "reason": gap.reason})

    def bye(self, close: Close, reconnect_after_ms: int | None) -> bytes | None:
        """What to do next, when, and why."""
        return _compact({"type": "bye", "action": close.action, "reconnect_after_ms": reconnect_after_ms, "reason": close.reason})


# AWX encodes with Python's default separators; a client that compares text finds what it knows.
_encode_spaced = json.JSONEncoder(check_circular=False).encode
_encode_compact = json.JSONEncoder(check_circular=False, separators=(",", ":")).encode

TOWER: Dialect = TowerDialect()
V1: Dialect = V1Dialect()

PLAIN = {dialect.subprotocol: dialect for dialect in (TOWER, V1)}
"""Both, by subprotocol."""


def _names(topics: tuple[str, ...]) -> str:
    """A list of flat names as JSON. None of them needs escaping (topics.py), so a storm's answers need no encoder."""
    return '["' + '", "'.join(map(flat_name, topics)) + '"]' if topics else "[]"


def _denial(item: Denied) -> dict[str, str]:
    return {"topic": f"{item.group}.{item.item}", "reason": item.reason}


def _spaced(reply: dict[str, object]) -> bytes:
    return _encode_spaced(reply).encode("ascii")


def _compact(reply: dict[str, object]) -> bytes:
    return _encode_compact(reply).encode("ascii")
